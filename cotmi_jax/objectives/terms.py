"""Losses as (sum, weight) pairs in float32: added over micro-batches and devices, divided once at the end."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class Term(NamedTuple):
    """A weighted mean before the division. Terms of parts of a batch add up to the term of the batch."""

    sum: Array
    weight: Array

    @property
    def mean(self) -> Array:
        """sum / weight; 0 where nothing weighed anything."""
        return self.sum / jnp.where(self.weight == 0, 1.0, self.weight)


Terms = dict[str, Term]


def token_mask(targets_BxT: Array, valid_B: Array, pad_id: int) -> Array:
    """True at the real target tokens of valid examples, bool [B, T]."""
    return (targets_BxT != pad_id) & valid_B[:, None]


def token_cross_entropy(logits_BxTxV: Array, targets_BxT: Array, mask_BxT: Array) -> Term:
    """Summed cross-entropy of the targets in nats, weighted by the number of unmasked tokens."""
    normalizer_BxT = jax.nn.logsumexp(logits_BxTxV, axis=-1)
    target_BxT = jnp.take_along_axis(logits_BxTxV, targets_BxT[..., None], axis=-1)[..., 0]
    loss_BxT = jnp.where(mask_BxT, normalizer_BxT - target_BxT, 0.0)
    return Term(loss_BxT.sum(), mask_BxT.sum(dtype=jnp.float32))


def token_accuracy(logits_BxTxV: Array, targets_BxT: Array, mask_BxT: Array) -> Term:
    """Number of unmasked tokens that the highest logit hits under teacher forcing, and their count."""
    hit_BxT = (jnp.argmax(logits_BxTxV, axis=-1) == targets_BxT) & mask_BxT
    return Term(hit_BxT.sum(dtype=jnp.float32), mask_BxT.sum(dtype=jnp.float32))

"""Losses as (sum, weight) pairs in float32: added over micro-batches and devices, divided once at the end."""

from typing import NamedTuple

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

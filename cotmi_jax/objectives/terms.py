"""Losses as (sum, weight) pairs in float32: added over micro-batches and devices, divided once at the end."""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from cotmi_jax.objectives.pooling import members


class Term(NamedTuple):
    """A weighted mean before the division. Terms of micro-batches add up to the term of the batch."""

    sum: Array
    weight: Array

    @property
    def mean(self) -> Array:
        """sum / weight; 0 if the weight is 0."""
        return self.sum / jnp.where(self.weight == 0, 1.0, self.weight)


Terms = dict[str, Term]


def is_packed(batch: Mapping) -> bool:
    """Whether rows of a batch hold several examples (data/packing.py) rather than one (data/tokens.py)."""
    return "rows" in batch


def slots_of(batch: Mapping) -> Mapping[str, Array] | None:
    """Positions of the sequence pairs of a packed batch, by task; None for a padded one."""
    return batch["examples"]["slots"] if is_packed(batch) else None


def packed_weights(rows: Mapping[str, Array], task: int) -> Array:
    """Loss weight of every target token of packed rows that belongs to a task, 0 elsewhere, float32 [R, T]."""
    weight_RxN = jnp.where(rows["task"] == task, rows["weight"], 0.0)
    member_RxNxT = members(rows["target_segments"], weight_RxN.shape[1])
    return jnp.where(member_RxNxT, weight_RxN[:, :, None], 0.0).sum(axis=1)


def counterfactual_mask(batch: Mapping, tasks: Sequence[str], pad_id: int) -> Array:
    """Which of the M − 1 counterfactuals of every example there are, bool [B, M − 1]."""
    if is_packed(batch):
        return batch["examples"]["counterfactuals"]
    present = [(batch["counterfactuals"][task] != pad_id).any(axis=-1) for task in tasks]
    return functools.reduce(jnp.logical_and, present)


def token_mask(targets_BxT: Array, valid_B: Array, pad_id: int) -> Array:
    """True at the real target tokens of valid examples, bool [B, T]."""
    return (targets_BxT != pad_id) & valid_B[:, None]

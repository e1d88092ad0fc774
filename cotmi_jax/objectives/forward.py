"""The student under teacher forcing: states, losses and pooled features of every task of a batch, padded or packed."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array


class TaskStates(NamedTuple):
    """What a student computed for one task, with the tokens of each example (pooling.py); R = B and N = 1 if padded."""

    encoded_RxSxD: Array
    input_RxNxS: Array
    states_RxTxD: Array
    target_RxNxT: Array
    log_pooled_RxNxV: Array | None  # for vocabulary features


class TaskOutput(NamedTuple):
    """What the student computed for one task under teacher forcing, by row: examples, or packed rows of both tasks."""

    states: TaskStates  # what features are pooled from
    weight_RxT: Array  # in the loss, 0 but at the task's real target tokens
    loss_RxT: Array
    hit_RxT: Array


def _up_to_longest(mask_BxT: Array) -> Array:
    """True for every example at each position where at least one example of the batch has a token."""
    return jnp.broadcast_to(mask_BxT.any(axis=0, keepdims=True), mask_BxT.shape)

"""The student under teacher forcing: states, losses and pooled features of every task of a batch, padded or packed."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from cotmi_jax.models.student import Student
from cotmi_jax.objectives.pooling import members
from cotmi_jax.objectives.terms import is_packed, token_mask
from cotmi_jax.objectives.token_loss import TokenLoss
from cotmi_jax.objectives.token_scan import Pool, scan_tokens


class TaskStates(NamedTuple):
    """What a student computed for one task, with the tokens of each example (pooling.py); R = B and N = 1 if padded."""

    encoded_RxSxD: Array
    input_RxNxS: Array
    states_RxTxD: Array
    target_RxNxT: Array
    log_pooled_RxNxV: Array | None  # for vocabulary features


class TaskOutput(NamedTuple):
    """States of one task and what its tokens give, by row: an example, or a packed row of both tasks."""

    states: TaskStates
    loss_RxT: Array
    hit_RxT: Array


@dataclasses.dataclass(frozen=True)
class Heads:
    """What is computed from the decoder states.

    pools: by task, how probabilities are pooled into a vocabulary feature. pool_padding: in padded batches, positions
    up to the batch's longest example enter the pooling of every example (the defect of the released loss). token_loss:
    None for the cross-entropy.
    """

    pools: Mapping[str, Pool] = dataclasses.field(default_factory=dict)
    pool_padding: bool = False
    token_loss: TokenLoss | None = None


def forward(
    student: Student, batch: Mapping, key: Array | None, tasks: tuple[str, ...], heads: Heads
) -> dict[str, TaskOutput]:
    """Run the student on the tasks of a batch. Dropout is on where a key is given."""
    return (_forward_packed if is_packed(batch) else _forward_padded)(student, batch, key, tasks, heads)


def _forward_packed(
    student: Student, batch: Mapping, key: Array | None, tasks: tuple[str, ...], heads: Heads
) -> dict[str, TaskOutput]:
    """One call of encoder and decoder for the rows, which hold all tasks."""
    rows, keys = batch["rows"], (None, None) if key is None else jax.random.split(key)
    segments = rows["input_segments"], rows["target_segments"]
    encoded_RxSxD = student.encode(rows["inputs"], keys[0], segments[0])
    states_RxTxD = student.decode(encoded_RxSxD, rows["inputs"], rows["targets"], keys[1], segments)
    input_RxNxS, target_RxNxT = (members(each, rows["task"].shape[1]) for each in segments)
    # All segments of a row are pooled in one way: no estimator that reads packed rows pools its two sides differently.
    pool = next(iter(heads.pools.values()), None)
    scanned = scan_tokens(
        states_RxTxD,
        rows["targets"],
        student.make_logits(),
        mask_BxT=segments[1] > 0,
        member_BxNxT=target_RxNxT if pool else None,
        pool=pool,
        token_loss=heads.token_loss,
    )
    task_states = TaskStates(encoded_RxSxD, input_RxNxS, states_RxTxD, target_RxNxT, scanned.log_pooled_BxNxV)
    return dict.fromkeys(tasks, TaskOutput(task_states, scanned.loss_BxT, scanned.hit_BxT))


def _forward_padded(
    student: Student, batch: Mapping, key: Array | None, tasks: tuple[str, ...], heads: Heads
) -> dict[str, TaskOutput]:
    """The encoder reads all tasks' inputs in one call; each task is decoded separately."""
    encoder_key, *decoder_keys = [None] * (1 + len(tasks)) if key is None else jax.random.split(key, 1 + len(tasks))
    # Tasks on an axis of their own, not one batch after the other: so the rows of an example stay on its device.
    inputs_BxIxS = jnp.stack([batch[task]["inputs"] for task in tasks], axis=1)
    encoded = student.encode(inputs_BxIxS.reshape(-1, inputs_BxIxS.shape[-1]), encoder_key)
    encoded_BxIxSxD = encoded.reshape(*inputs_BxIxS.shape, -1)
    outputs = {}
    for index, (task, decoder_key) in enumerate(zip(tasks, decoder_keys, strict=True)):
        encoded_BxSxD = encoded_BxIxSxD[:, index]
        inputs_BxS, targets_BxT = batch[task]["inputs"], batch[task]["targets"]
        states_BxTxD = student.decode(encoded_BxSxD, inputs_BxS, targets_BxT, decoder_key)
        pad_id, valid_B = student.config.pad_id, batch["valid"]
        mask_BxT, input_mask_BxS = token_mask(targets_BxT, valid_B, pad_id), token_mask(inputs_BxS, valid_B, pad_id)
        pooled_BxT = _up_to_longest(mask_BxT) if heads.pool_padding else mask_BxT
        pool = heads.pools.get(task)
        scanned = scan_tokens(
            states_BxTxD,
            targets_BxT,
            student.make_logits(),
            mask_BxT=mask_BxT | pooled_BxT,
            member_BxNxT=pooled_BxT[:, None, :] if pool else None,
            pool=pool,
            token_loss=heads.token_loss,
        )
        pooled = scanned.log_pooled_BxNxV
        task_states = TaskStates(encoded_BxSxD, input_mask_BxS[:, None], states_BxTxD, mask_BxT[:, None], pooled)
        outputs[task] = TaskOutput(task_states, scanned.loss_BxT, scanned.hit_BxT)
    return outputs


def _up_to_longest(mask_BxT: Array) -> Array:
    """True for every example at each position where at least one example of the batch has a token."""
    return jnp.broadcast_to(mask_BxT.any(axis=0, keepdims=True), mask_BxT.shape)

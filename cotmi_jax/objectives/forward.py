"""The student under teacher forcing: states, losses and pooled features of every task of a batch, padded or packed."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from cotmi_jax.errors import UserError
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
    counterfactuals: TaskStates | None = None  # N' = (M − 1) · N targets a row, first those of m = 1


@dataclasses.dataclass(frozen=True)
class Heads:
    """What is computed from the decoder states.

    pools: by task, how probabilities are pooled into a vocabulary feature. pool_padding: in padded batches, positions
    up to the batch's longest example enter the pooling of every example (the defect of the released loss). token_loss:
    None for the cross-entropy. counterfactuals: how many further targets of each input are decoded, M − 1; they have
    states, and neither logits nor losses.
    """

    pools: Mapping[str, Pool] = dataclasses.field(default_factory=dict)
    pool_padding: bool = False
    token_loss: TokenLoss | None = None
    counterfactuals: int = 0


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
    num = rows["task"].shape[1]
    input_RxNxS, target_RxNxT = (members(each, num) for each in segments)
    further = None
    if heads.counterfactuals:
        states_RxTxD, others_RxUxD = _decode_with_counterfactuals(student, encoded_RxSxD, rows, keys[1])
        other_RxPxU = members(rows["counterfactual_segments"], (1 + heads.counterfactuals) * num)[:, num:]
        further = TaskStates(encoded_RxSxD, input_RxNxS, others_RxUxD, other_RxPxU, None)
    else:
        states_RxTxD = student.decode(encoded_RxSxD, rows["inputs"], rows["targets"], keys[1], segments)
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
    return dict.fromkeys(tasks, TaskOutput(task_states, scanned.loss_BxT, scanned.hit_BxT, further))


def _decode_with_counterfactuals(
    student: Student, encoded_RxSxD: Array, rows: Mapping, key: Array | None
) -> tuple[Array, Array]:
    """States of the targets and of the counterfactuals' targets, which attend to the input of the same pair."""
    decode: Callable[..., Array] = student.decode
    if "source_segments_BxT" not in inspect.signature(decode).parameters:
        raise UserError(
            f"mi.estimator conditional with packed rows needs the argument source_segments_BxT of "
            f"{type(student).__name__}.decode: set data.packing to False"
        )
    num, length = rows["task"].shape[1], rows["targets"].shape[1]
    targets_RxT = jnp.concatenate([rows["targets"], rows["counterfactuals"]], axis=1)
    segment_RxT = jnp.concatenate([rows["target_segments"], rows["counterfactual_segments"]], axis=1)
    source_RxT = jnp.where(segment_RxT > 0, (segment_RxT - 1) % num + 1, 0)
    states_RxTxD = decode(
        encoded_RxSxD,
        rows["inputs"],
        targets_RxT,
        key,
        (rows["input_segments"], segment_RxT),
        source_segments_BxT=source_RxT,
        split=length,
    )
    return states_RxTxD[:, :length], states_RxTxD[:, length:]


def _forward_padded(
    student: Student, batch: Mapping, key: Array | None, tasks: tuple[str, ...], heads: Heads
) -> dict[str, TaskOutput]:
    """The encoder reads all tasks' inputs in one call; each task is decoded separately."""
    encoder_key, *decoder_keys = [None] * (1 + len(tasks)) if key is None else jax.random.split(key, 1 + len(tasks))
    pad_id, valid_B = student.config.pad_id, batch["valid"]
    # Tasks on an axis of their own, not one batch after the other: so the rows of an example stay on its device.
    inputs_BxIxS = jnp.stack([batch[task]["inputs"] for task in tasks], axis=1)
    encoded = student.encode(inputs_BxIxS.reshape(-1, inputs_BxIxS.shape[-1]), encoder_key)
    encoded_BxIxSxD = encoded.reshape(*inputs_BxIxS.shape, -1)
    outputs = {}
    for index, (task, decoder_key) in enumerate(zip(tasks, decoder_keys, strict=True)):
        encoded_BxSxD = encoded_BxIxSxD[:, index]
        inputs_BxS, targets_BxT = batch[task]["inputs"], batch[task]["targets"]
        states_BxTxD = student.decode(encoded_BxSxD, inputs_BxS, targets_BxT, decoder_key)
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
        further = None
        if heads.counterfactuals:
            further_key = None if decoder_key is None else jax.random.fold_in(decoder_key, 1)
            others_BxMxT = batch["counterfactuals"][task]
            further = _decode_counterfactuals(student, encoded_BxSxD, inputs_BxS, others_BxMxT, valid_B, further_key)
        outputs[task] = TaskOutput(task_states, scanned.loss_BxT, scanned.hit_BxT, further)
    return outputs


def _decode_counterfactuals(
    student: Student, encoded_BxSxD: Array, inputs_BxS: Array, targets_BxMxT: Array, valid_B: Array, key: Array | None
) -> TaskStates:
    """States of M further targets of each input, which is not encoded again; M · T columns."""
    batch, num, length = targets_BxMxT.shape

    def repeat(x: Array) -> Array:
        return jnp.broadcast_to(x[:, None], (batch, num, *x.shape[1:])).reshape(batch * num, *x.shape[1:])

    targets = targets_BxMxT.reshape(batch * num, length)
    states = student.decode(repeat(encoded_BxSxD), repeat(inputs_BxS), targets, key)
    mask_BxMxT = token_mask(targets, repeat(valid_B), student.config.pad_id).reshape(targets_BxMxT.shape)
    member_BxMxMxT = jnp.eye(num, dtype=bool)[None, :, :, None] & mask_BxMxT[:, None]
    return TaskStates(
        encoded_BxSxD,
        token_mask(inputs_BxS, valid_B, student.config.pad_id)[:, None],
        states.reshape(batch, num * length, -1),
        member_BxMxMxT.reshape(batch, num, num * length),
        None,
    )


def _up_to_longest(mask_BxT: Array) -> Array:
    """True for every example at each position where at least one example of the batch has a token."""
    return jnp.broadcast_to(mask_BxT.any(axis=0, keepdims=True), mask_BxT.shape)

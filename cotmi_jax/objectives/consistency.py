"""The answer-consistency term: two predictions of one answer by one student, compared token by token.

At token i of the answer the label task has a distribution p_i over the vocabulary, and the rationale task a
distribution q_i where its rationale states the answer, both under teacher forcing. The loss is the mean over all such
positions of a batch of a distance between p_i and q_i. It has no critic and no cap. As −E log q it is the bound of
Barber and Agakov at the positions of the answer, where `released` takes a maximum over all positions.

Features Z and V are the decoder states at these positions, [R, N, L·D]; L is the length of the longest answer.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from cotmi_jax.data.tasks import EXPLAIN, PREDICT
from cotmi_jax.models.student import Student
from cotmi_jax.objectives.forward import TaskStates
from cotmi_jax.objectives.mi_term import DISTANCES, Features
from cotmi_jax.objectives.terms import Term, Terms, is_packed
from cotmi_jax.objectives.token_scan import Logits, logits_by_shard, rows_at_a_time
from cotmi_jax.parallel.batch import constrain_batch, current_batch_shards

Distance = Callable[[Array, Array], Array]


def _cross_entropy(log_p: Array, log_q: Array) -> Array:
    return -(jnp.exp(log_p) * log_q).sum(axis=-1)


def _kl(log_p: Array, log_q: Array) -> Array:
    return (jnp.exp(log_p) * (log_p - log_q)).sum(axis=-1)


def _symmetric_kl(log_p: Array, log_q: Array) -> Array:
    return 0.5 * (_kl(log_p, log_q) + _kl(log_q, log_p))


def _js(log_p: Array, log_q: Array) -> Array:
    log_m = jnp.logaddexp(log_p, log_q) - jnp.log(2.0)
    return 0.5 * (_kl(log_p, log_m) + _kl(log_q, log_m))


# From log p and log q [..., V] to nats. cross_entropy: of the side without gradient relative to the other.
_DISTANCES: dict[str, Distance] = dict(zip(DISTANCES, (_cross_entropy, _symmetric_kl, _js), strict=True))


def answer_lengths(batch: Mapping, pairs_B: Array) -> Array:
    """Number of tokens of the answer of each example, int32 [B]; 0 where it takes no part in the term."""
    examples = batch["examples"] if is_packed(batch) else batch
    return jnp.where(pairs_B, examples["answer_length"], 0)


def gather_answers(batch: Mapping, label: TaskStates, rationale: TaskStates) -> Features:
    """The states of both tasks at the tokens of the answers, 0 where there is none."""
    packed = is_packed(batch)

    def at_answers(states: TaskStates, task: str) -> Array:
        position_RxNxL = batch["rows"]["answers"] if packed else batch[task]["answers"][:, None]
        rows, num, _ = position_RxNxL.shape
        position_RxPx1 = position_RxNxL.reshape(rows, -1, 1)
        found_RxPxD = jnp.take_along_axis(states.states_RxTxD, jnp.maximum(position_RxPx1, 0), axis=1)
        return jnp.where(position_RxPx1 < 0, 0, found_RxPxD).reshape(rows, num, -1)

    return Features(at_answers(label, PREDICT), at_answers(rationale, EXPLAIN), None, None)


def consistency_loss(
    distance: str, detach: str, student: Student, features: Features, length_B: Array, others_B: Array | None = None
) -> Terms:
    """`mi`, the distance in nats, and `mi_agreement`, whether both have one most probable token, summed over positions.

    detach: the side, z (label) or v (rationale), whose distribution is constant; "none".
    features: Z and V by example [B, L·D]. length_B: positions of each example. others_B: the example whose V each Z is
    compared with instead of its own (`placebo`); where its answer is shorter, its positions are repeated, so that the
    number of positions is unchanged.
    """
    batch, size = length_B.shape[0], student.config.d_model
    z_BxLxD, v_BxLxD = (x.reshape(batch, -1, size) for x in (features.z, features.v))
    column_L = jnp.arange(z_BxLxD.shape[1])
    if others_B is not None:
        column_BxL = column_L[None] % jnp.maximum(length_B[others_B], 1)[:, None]
        v_BxLxD = jnp.take_along_axis(v_BxLxD[others_B], column_BxL[..., None], axis=1)
    is_answer_BxL = column_L[None] < length_B[:, None]
    shards = current_batch_shards(batch)
    count_P = is_answer_BxL.reshape(shards, -1).sum(axis=1)
    # Positions first, so that only as many chunks are computed as they fill.
    order_PxM = jnp.argsort(~is_answer_BxL.reshape(shards, -1), axis=1, stable=True)
    # Fewer rows than in the scan over targets: answers are short, and the last chunk is padded.
    chunk = min(order_PxM.shape[1], rows_at_a_time() // 4)
    padding = -order_PxM.shape[1] % chunk

    def compact(x_BxLxD: Array) -> Array:
        x_PxMxD = constrain_batch(x_BxLxD.reshape(shards, -1, size))
        x_PxMxD = jnp.take_along_axis(x_PxMxD, order_PxM[..., None], axis=1)
        return jnp.pad(x_PxMxD, ((0, 0), (0, padding), (0, 0)))

    example = jnp.zeros((shards, chunk, size), z_BxLxD.dtype)
    logits, closed = logits_by_shard(student.make_logits(), example, shards)
    spec = _Spec(logits, _DISTANCES[distance], distance == "cross_entropy", detach, chunk)
    loss, hits = _sum_positions(spec, closed, compact(z_BxLxD), compact(v_BxLxD), count_P)
    count = length_B.sum(dtype=jnp.float32)
    return {"mi": Term(loss, count), "mi_agreement": Term(jax.lax.stop_gradient(hits), count)}


@dataclasses.dataclass(frozen=True)
class _Spec:
    """What is not differentiated. directed: the distance is of the first argument, the target, to the second."""

    logits: Logits
    distance: Distance
    directed: bool
    detach: str
    chunk: int


class _Sums(NamedTuple):
    loss: Array
    hits: Array


def _chunk_sums(
    spec: _Spec, is_answer_PxC: Array, closed: list[Array], z_PxCxD: Array, v_PxCxD: Array
) -> tuple[Array, Array]:
    """Sum of the distance, and number of positions where both sides have the same most probable token."""
    logits = [spec.logits(x, *closed) for x in (z_PxCxD, v_PxCxD)]
    hit_PxC = logits[0].argmax(axis=-1) == logits[1].argmax(axis=-1)
    logits = [jax.lax.stop_gradient(x) if spec.detach == side else x for x, side in zip(logits, "zv", strict=True)]
    log_p, log_q = (jax.nn.log_softmax(x) for x in logits)
    if spec.directed and spec.detach == "v":
        log_p, log_q = log_q, log_p
    loss_PxC = spec.distance(log_p, log_q)
    return jnp.where(is_answer_PxC, loss_PxC, 0.0).sum(), (hit_PxC & is_answer_PxC).sum(dtype=jnp.float32)


def _chunk(spec: _Spec, index: Array, z_PxMxD: Array, v_PxMxD: Array, count_P: Array) -> tuple[Array, Array, Array]:
    """Which rows of a chunk are positions, and their states."""
    start = index * spec.chunk
    z_PxCxD, v_PxCxD = (jax.lax.dynamic_slice_in_dim(x, start, spec.chunk, axis=1) for x in (z_PxMxD, v_PxMxD))
    return (start + jnp.arange(spec.chunk))[None] < count_P[:, None], z_PxCxD, v_PxCxD


def _num_chunks(spec: _Spec, count_P: Array) -> Array:
    return -(-count_P.max() // spec.chunk)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sum_positions(spec: _Spec, closed: list[Array], z_PxMxD: Array, v_PxMxD: Array, count_P: Array) -> _Sums:
    """Sums over the first count_P positions of each shard, chunk by chunk.

    Its derivative is computed along with its value: the number of chunks depends on the data, so that JAX could not
    differentiate the loop, and neither logits nor residuals are kept.
    """

    def body(index: Array, sums: _Sums) -> _Sums:
        is_answer_PxC, z_PxCxD, v_PxCxD = _chunk(spec, index, z_PxMxD, v_PxMxD, count_P)
        loss, hits = _chunk_sums(spec, is_answer_PxC, closed, z_PxCxD, v_PxCxD)
        return _Sums(sums.loss + loss, sums.hits + hits)

    return jax.lax.fori_loop(0, _num_chunks(spec, count_P), body, _Sums(jnp.float32(0.0), jnp.float32(0.0)))


_Grads = tuple[list[Array], Array, Array]


def _forward(spec: _Spec, closed: list[Array], z_PxMxD: Array, v_PxMxD: Array, count_P: Array) -> tuple[_Sums, _Grads]:
    def body(index: Array, carry: tuple[_Sums, _Grads]) -> tuple[_Sums, _Grads]:
        sums, (d_closed, d_z_PxMxD, d_v_PxMxD) = carry
        is_answer_PxC, z_PxCxD, v_PxCxD = _chunk(spec, index, z_PxMxD, v_PxMxD, count_P)
        sums_of = functools.partial(_chunk_sums, spec, is_answer_PxC)
        loss, pull_back, hits = jax.vjp(sums_of, closed, z_PxCxD, v_PxCxD, has_aux=True)
        d_closed_here, d_z_PxCxD, d_v_PxCxD = pull_back(jnp.ones_like(loss))
        d_closed = [total + here.astype(total.dtype) for total, here in zip(d_closed, d_closed_here, strict=True)]
        d_z_PxMxD, d_v_PxMxD = (
            jax.lax.dynamic_update_slice_in_dim(total, here, index * spec.chunk, axis=1)
            for total, here in ((d_z_PxMxD, d_z_PxCxD), (d_v_PxMxD, d_v_PxCxD))
        )
        return _Sums(sums.loss + loss, sums.hits + hits), (d_closed, d_z_PxMxD, d_v_PxMxD)

    # Sums over chunks are float32 in every dtype.
    zeros = [jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)) for x in closed]
    start = _Sums(jnp.float32(0.0), jnp.float32(0.0)), (zeros, jnp.zeros_like(z_PxMxD), jnp.zeros_like(v_PxMxD))
    sums, (d_closed, *d_states) = jax.lax.fori_loop(0, _num_chunks(spec, count_P), body, start)
    return sums, ([total.astype(x.dtype) for total, x in zip(d_closed, closed, strict=True)], *d_states)


def _backward(spec: _Spec, grads: _Grads, cotangent: _Sums) -> tuple[list[Array], Array, Array, None]:
    d_closed, d_z_PxMxD, d_v_PxMxD = jax.tree.map(lambda x: (cotangent.loss * x).astype(x.dtype), grads)
    return d_closed, d_z_PxMxD, d_v_PxMxD, None


_sum_positions.defvjp(_forward, _backward)

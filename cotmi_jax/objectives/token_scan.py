"""Loss, hits and pooled vocabulary features of a batch of targets, from one scan over chunks of their positions.

Only the logits of one chunk exist at a time, forward and backward; no array has size [B, T, V]. Shape suffixes: C
chunks of L positions (C · L ≥ T), N segments of a row, B, T, D, V as everywhere.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero

from cotmi_jax.errors import UserError
from cotmi_jax.objectives.token_loss import TokenLoss
from cotmi_jax.parallel.batch import copy_per_shard, current_batch_shards
from cotmi_jax.parallel.mesh import current_platform

Pool = Literal["max", "mean"]
Logits = Callable[..., Array]

# Log pooled probability of a segment without positions. Finite: −inf would turn a zero gradient into NaN.
EMPTY = -1e9


class TokenScan(NamedTuple):
    """Results of the scan, from one evaluation of the logits."""

    loss_BxT: Array  # −log p(target) in nats, or the token loss given; float32
    hit_BxT: Array  # float32: 1 if the target's logit is the highest, 1/k if k share the highest; 0 of a NaN
    log_pooled_BxNxV: Array | None  # log of the pooled probability, float32; EMPTY where a segment has no position


@dataclasses.dataclass(frozen=True)
class _Functions:
    """What is not differentiated: logits(states, *closed) closes over nothing differentiable."""

    logits: Logits
    pool: Pool | None
    token_loss: TokenLoss | None


class _Roles(NamedTuple):
    """Target and segments of each position, by chunk; N is 0 if nothing is pooled."""

    targets_CxBxL: Array
    member_CxBxNxL: Array


class _Outputs(NamedTuple):
    loss_CxBxL: Array
    hit_CxBxL: Array
    log_pooled_BxNxV: Array


class _Residuals(NamedTuple):
    """Residuals of the backward pass, which computes the logits again, as under `jax.checkpoint`."""

    closed: list[Array]
    states_CxBxLxD: Array
    roles: _Roles
    highest_CxBxL: Array  # logit
    log_sum_CxBxL: Array  # log Σ exp(logit − highest)
    log_pooled_BxNxV: Array
    winner_BxNxV: Array  # pool "max": the first position of the maximum, −1 in a segment without positions


def scan_tokens(
    states_BxTxD: Array,
    targets_BxT: Array,
    logits: Callable[[Array], Array],
    *,
    member_BxNxT: Array | None = None,
    pool: Pool | None = None,
    mask_BxT: Array | None = None,
    chunk: int | None = None,
    token_loss: TokenLoss | None = None,
) -> TokenScan:
    """Loss and hit of every target, and the probabilities of each segment pooled over its positions.

    logits: states [B, L, D] → float32 logits [B, L, V]; gradients reach the parameters that it closes over.
    member_BxNxT: which positions of a row belong to which of its N segments (N = 1 unless rows are packed); each
        position to one segment or none.
    pool: "max" is the log of the highest probability of each vocabulary entry over the segment's positions, whose
        gradient goes to the first such position; "mean" is the log of the mean probability; None pools nothing.
    mask_BxT: where it is False the state is replaced by zero and belongs to no segment, so that no value there, not
        even NaN, affects another value or a gradient; loss and hit there are finite and have no meaning. A zero
        cotangent does not suffice: 0 · NaN is NaN in the gradient of the head. None: every position counts.
    chunk: most positions at a time; memory grows with B · chunk · V. T need not be a multiple of it. None: as many as
        make 1,024 rows on an accelerator or 256 on a CPU, at least 8. Fewer rows leave processors idle, and every
        chunk reads and writes the gradient of the head.
    token_loss: from logits and targets to losses (token_loss.py), differentiated by jax.vjp chunk by chunk. None: the
        cross-entropy, whose derivative is written in closed form since that is faster.

    Over a mesh the parameters that `logits` closes over are gathered once on every device, and each device sums their
    gradient over the chunks before the sum over devices.

    Reverse-mode differentiable, once. If the gradient of a result is stopped, its part of the backward pass is left
    out.

    Raises:
      ValueError: one of pool and member_BxNxT without the other.
      UserError: token_loss gives no loss for each target.
    """
    if (pool is None) != (member_BxNxT is None):
        raise ValueError("pool and member_BxNxT are given together or not at all")
    batch, length, _ = states_BxTxD.shape
    shards = current_batch_shards(batch)
    if chunk is None:
        chunk = max(8, rows_at_a_time() * shards // batch)
    member_BxNxT = jnp.zeros((batch, 0, length), bool) if member_BxNxT is None else member_BxNxT
    if mask_BxT is not None:
        states_BxTxD = jnp.where(mask_BxT[..., None], states_BxTxD, 0)
        member_BxNxT = member_BxNxT & mask_BxT[:, None]
    count = -(-length // chunk)
    chunk = -(-length // count)  # chunks of equal length need the least padding

    def split(x: Array, axis: int) -> Array:
        widths = [(0, count * chunk - length if i == axis else 0) for i in range(x.ndim)]
        chunked = jnp.pad(x, widths).reshape(*x.shape[:axis], count, chunk, *x.shape[axis + 1 :])
        return jnp.moveaxis(chunked, axis, 0)

    def join(x_CxBxL: Array) -> Array:
        return jnp.moveaxis(x_CxBxL, 0, 1).reshape(batch, count * chunk)[:, :length]

    states_CxBxLxD, roles = split(states_BxTxD, 1), _Roles(split(targets_BxT, 1), split(member_BxNxT, 2))
    converted, closed = logits_by_shard(logits, states_CxBxLxD[0], shards)
    if token_loss is not None:
        _check_token_loss(token_loss, converted, closed, states_CxBxLxD, roles)
    outputs = _scan(_Functions(converted, pool, token_loss), closed, states_CxBxLxD, roles)
    log_pooled_BxNxV = None if pool is None else outputs.log_pooled_BxNxV
    return TokenScan(join(outputs.loss_CxBxL), join(outputs.hit_CxBxL), log_pooled_BxNxV)


def rows_at_a_time() -> int:
    """Positions of a batch shard whose logits are computed together."""
    return 256 if current_platform() == "cpu" else 1024


def logits_by_shard(logits: Callable[[Array], Array], states_BxLxD: Array, shards: int) -> tuple[Logits, list[Array]]:
    """logits(states, *closed) for states of these shapes, and `closed`, the arrays that `logits` closes over.

    On several batch shards `closed` has a copy for each, so that their gradient is summed over shards once, at the end.
    """
    # closure_convert caches by function: a new function each time, or it would return the parameters of an earlier
    # call.
    converted, closed = jax.closure_convert(
        lambda states: logits(states), states_BxLxD[: states_BxLxD.shape[0] // shards]
    )
    if shards == 1:
        return converted, closed
    return _by_shard(converted, shards), [copy_per_shard(each, shards) for each in closed]


def _by_shard(logits: Logits, shards: int) -> Logits:
    """logits of each batch shard, given a copy per shard of what they close over."""

    def apply(states_BxLxD: Array, *closed: Array) -> Array:
        split = states_BxLxD.reshape(shards, -1, *states_BxLxD.shape[1:])
        logits_PxBxLxV = jax.vmap(logits)(split, *closed)
        return logits_PxBxLxV.reshape(*states_BxLxD.shape[:2], -1)

    return apply


def _check_token_loss(
    token_loss: TokenLoss, logits: Logits, closed: list[Array], states_CxBxLxD: Array, roles: _Roles
) -> None:
    targets_BxL = roles.targets_CxBxL[0]
    loss = jax.eval_shape(lambda states: token_loss(logits(states, *closed), targets_BxL), states_CxBxLxD[0])
    if loss.shape != targets_BxL.shape or not jnp.issubdtype(loss.dtype, jnp.floating):
        raise UserError(
            f"a token loss gives {loss.dtype}{list(loss.shape)} for targets {list(targets_BxL.shape)}: it must be one "
            "float for each target"
        )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(functions: _Functions, closed: list[Array], states_CxBxLxD: Array, roles: _Roles) -> _Outputs:
    """The scan over chunks.

    It has a derivative of its own: `jax.checkpoint` around the body is slower by a tenth and keeps the pooled
    probabilities of every chunk for the backward pass.
    """
    return _forward(functions, closed, states_CxBxLxD, roles)[0]


def _forward(
    functions: _Functions, closed: list[Array], states_CxBxLxD: Array, roles: _Roles
) -> tuple[_Outputs, _Residuals]:
    logits, pool, token_loss = functions.logits, functions.pool, functions.token_loss

    def body(pooled: tuple[Array, Array], operands: tuple[Array, _Roles, Array]) -> tuple[tuple[Array, Array], tuple]:
        states_BxLxD, (targets_BxL, member_BxNxL), positions_L = operands
        logits_BxLxV = logits(states_BxLxD, *closed)
        highest_BxL = logits_BxLxV.max(axis=-1)
        log_sum_BxL = jnp.log(jnp.exp(logits_BxLxV - highest_BxL[..., None]).sum(axis=-1))
        target_BxL = jnp.take_along_axis(logits_BxLxV, targets_BxL[..., None], axis=-1)[..., 0]
        if pool is not None:
            log_p_BxLxV = _log_softmax(logits_BxLxV, highest_BxL, log_sum_BxL)
            if pool == "max" and _by_position(member_BxNxL):
                pooled = _add_positions_to_max(*pooled, log_p_BxLxV, member_BxNxL, positions_L)
            else:
                log_p_BxNxLxV = jnp.where(member_BxNxL[..., None], log_p_BxLxV[:, None], EMPTY)
                pooled = (_add_to_max if pool == "max" else _add_to_sum)(*pooled, log_p_BxNxLxV, positions_L)
        loss_BxL = log_sum_BxL + (highest_BxL - target_BxL)
        if token_loss is not None:
            loss_BxL = token_loss(logits_BxLxV, targets_BxL).astype(jnp.float32)
        ties_BxL = (logits_BxLxV == highest_BxL[..., None]).sum(axis=-1, dtype=jnp.float32)
        hit_BxL = jnp.where(target_BxL >= highest_BxL, 1.0 / ties_BxL, 0.0)
        return pooled, (loss_BxL, hit_BxL, highest_BxL, log_sum_BxL)

    vocab_size = jax.eval_shape(logits, states_CxBxLxD[0], *closed).shape[-1]
    shape = (*roles.member_CxBxNxL.shape[1:3], vocab_size)
    nothing = jnp.full(shape, EMPTY, jnp.float32), jnp.full(shape, -1, jnp.int32)
    operands = states_CxBxLxD, roles, _positions(roles)
    (log_pooled_BxNxV, winner_BxNxV), per_token = jax.lax.scan(body, nothing, operands)
    if pool == "mean":
        log_pooled_BxNxV -= jnp.log(_sizes(roles))
    loss_CxBxL, hit_CxBxL, highest_CxBxL, log_sum_CxBxL = per_token
    normalizer = highest_CxBxL, log_sum_CxBxL
    residuals = _Residuals(closed, states_CxBxLxD, roles, *normalizer, log_pooled_BxNxV, winner_BxNxV)
    return _Outputs(loss_CxBxL, hit_CxBxL, log_pooled_BxNxV), residuals


def _log_softmax(logits_BxLxV: Array, highest_BxL: Array, log_sum_BxL: Array) -> Array:
    """In two steps, since the sum of both normalizers would be rounded at the magnitude of the logits."""
    return (logits_BxLxV - highest_BxL[..., None]) - log_sum_BxL[..., None]


def _add_to_max(max_BxNxV: Array, winner_BxNxV: Array, log_p_BxNxLxV: Array, positions_L: Array) -> tuple[Array, Array]:
    """The maximum and its first position after one more chunk. Two reductions are faster than argmax on a CPU."""
    chunk_max_BxNxV = log_p_BxNxLxV.max(axis=2)
    is_max_BxNxLxV = log_p_BxNxLxV == chunk_max_BxNxV[:, :, None]
    first_BxNxV = jnp.where(is_max_BxNxLxV, positions_L[None, None, :, None], jnp.iinfo(jnp.int32).max).min(axis=2)
    winner_BxNxV = jnp.where(chunk_max_BxNxV > max_BxNxV, first_BxNxV, winner_BxNxV)
    return jnp.maximum(max_BxNxV, chunk_max_BxNxV), winner_BxNxV


def _add_positions_to_max(
    max_BxNxV: Array, winner_BxNxV: Array, log_p_BxLxV: Array, member_BxNxL: Array, positions_L: Array
) -> tuple[Array, Array]:
    """_add_to_max, one position after another, each into its own segment, without an array [B, N, L, V]."""
    slot_BxL, inside_BxL = _slots(member_BxNxL)

    def add(index: Array, pooled: tuple[Array, Array]) -> tuple[Array, Array]:
        slot_B, inside_Bx1 = slot_BxL[:, index], inside_BxL[:, index, None]
        log_p_BxV, (max_BxV, winner_BxV) = log_p_BxLxV[:, index], (_take_slot(x, slot_B) for x in pooled)
        wins_BxV = inside_Bx1 & (log_p_BxV > max_BxV)
        winner_BxV = jnp.where(wins_BxV, positions_L[index], winner_BxV)
        max_BxV = jnp.where(inside_Bx1, jnp.maximum(max_BxV, log_p_BxV), max_BxV)  # NaN propagates
        return _put_slot(pooled[0], max_BxV, slot_B), _put_slot(pooled[1], winner_BxV, slot_B)

    return jax.lax.fori_loop(0, len(positions_L), add, (max_BxNxV, winner_BxNxV))


def _by_position(member_BxNxL: Array) -> bool:
    """Whether segments are pooled one position at a time: on CPU, where XLA writes arrays [B, N, L, V] to memory, N
    times the logits."""
    return current_platform() == "cpu" and member_BxNxL.shape[1] > 1


def _slots(member_BxNxL: Array) -> tuple[Array, Array]:
    """The segment of each position, int32 [B, L], and whether it has one, bool [B, L]."""
    return jnp.argmax(member_BxNxL, axis=1).astype(jnp.int32), member_BxNxL.any(axis=1)


def _take_slot(x_BxNxV: Array, slot_B: Array) -> Array:
    return jnp.take_along_axis(x_BxNxV, slot_B[:, None, None], axis=1)[:, 0]


def _put_slot(x_BxNxV: Array, row_BxV: Array, slot_B: Array) -> Array:
    return jax.vmap(lambda x_NxV, row_V, slot: x_NxV.at[slot].set(row_V))(x_BxNxV, row_BxV, slot_B)


def _add_to_sum(
    log_sum_BxNxV: Array, winner_BxNxV: Array, log_p_BxNxLxV: Array, positions_L: Array
) -> tuple[Array, Array]:
    """The log of the sum after one more chunk; there is no position of a maximum."""
    return jnp.logaddexp(log_sum_BxNxV, jax.nn.logsumexp(log_p_BxNxLxV, axis=2)), winner_BxNxV


def _positions(roles: _Roles) -> Array:
    """Position of each column of each chunk, int32 [C, L]."""
    count, _, length = roles.targets_CxBxL.shape
    return jnp.arange(count * length, dtype=jnp.int32).reshape(count, length)


def _sizes(roles: _Roles) -> Array:
    """Positions of each segment, at least 1, float32 [B, N, 1]."""
    return jnp.maximum(roles.member_CxBxNxL.sum(axis=(0, 3), dtype=jnp.float32), 1.0)[..., None]


def _forward_of_primals(
    functions: _Functions, closed: list[CustomVJPPrimal], states: CustomVJPPrimal, roles: _Roles
) -> tuple[_Outputs, _Residuals]:
    """The forward pass as `symbolic_zeros` calls it, with a CustomVJPPrimal around every array."""
    return _forward(functions, *jax.tree.map(lambda primal: primal.value, (closed, states, roles)))


def _backward(functions: _Functions, residuals: _Residuals, cotangents: _Outputs) -> tuple[list[Array], Array, None]:
    """d_logits = w − onehot(target) · d_loss + softmax · (d_loss − Σ_v w), where w is the cotangent of log-softmax.

    With a token loss its vector-Jacobian product takes the place of the terms in d_loss.
    """
    logits, pool, token_loss = functions.logits, functions.pool, functions.token_loss
    closed, states_CxBxLxD, roles, highest_CxBxL, log_sum_CxBxL, log_pooled_BxNxV, winner_BxNxV = residuals
    d_loss_CxBxL, _, d_pooled_BxNxV = cotangents
    if isinstance(d_loss_CxBxL, SymbolicZero):
        d_loss_CxBxL = jnp.zeros(d_loss_CxBxL.shape, d_loss_CxBxL.dtype)
    pools = pool is not None and not isinstance(d_pooled_BxNxV, SymbolicZero)
    if pools and pool == "mean":
        d_pooled_BxNxV = d_pooled_BxNxV / _sizes(roles)

    def pooled_cotangent(log_p_BxLxV: Array, member_BxNxL: Array, positions_L: Array) -> Array:
        d_pooled_BxNx1xV = d_pooled_BxNxV[:, :, None]
        if pool == "max" and _by_position(member_BxNxL):
            slot_BxLx1 = _slots(member_BxNxL)[0][..., None]
            winner_BxLxV, d_pooled_BxLxV = (
                jnp.take_along_axis(x, slot_BxLx1, axis=1) for x in (winner_BxNxV, d_pooled_BxNxV)
            )
            return jnp.where(winner_BxLxV == positions_L[None, :, None], d_pooled_BxLxV, 0)
        if pool == "max":
            wins_BxNxLxV = winner_BxNxV[:, :, None] == positions_L[None, None, :, None]
            return jnp.where(wins_BxNxLxV, d_pooled_BxNx1xV, 0).sum(axis=1)
        ratio_BxNxLxV = jnp.exp(log_p_BxLxV[:, None] - log_pooled_BxNxV[:, :, None])
        return jnp.where(member_BxNxL[..., None], d_pooled_BxNx1xV * ratio_BxNxLxV, 0).sum(axis=1)

    def body(
        d_closed: list[Array], operands: tuple[Array, _Roles, Array, Array, Array, Array]
    ) -> tuple[list[Array], Array]:
        states_BxLxD, (targets_BxL, member_BxNxL), positions_L, highest_BxL, log_sum_BxL, d_loss_BxL = operands
        logits_BxLxV, pull_back = jax.vjp(logits, states_BxLxD, *closed)
        log_p_BxLxV = _log_softmax(logits_BxLxV, highest_BxL, log_sum_BxL)
        if token_loss is None:
            is_target_BxLxV = jax.lax.broadcasted_iota(jnp.int32, log_p_BxLxV.shape, 2) == targets_BxL[..., None]
            d_logits_BxLxV = -jnp.where(is_target_BxLxV, d_loss_BxL[..., None], 0)
        else:
            loss_BxL, pull_back_loss = jax.vjp(lambda each: token_loss(each, targets_BxL), logits_BxLxV)
            (d_logits_BxLxV,) = pull_back_loss(d_loss_BxL.astype(loss_BxL.dtype))
            d_loss_BxL = jnp.zeros_like(d_loss_BxL)
        if pools:
            d_log_p_BxLxV = pooled_cotangent(log_p_BxLxV, member_BxNxL, positions_L)
            d_logits_BxLxV += d_log_p_BxLxV
            d_loss_BxL -= d_log_p_BxLxV.sum(axis=-1)
        if token_loss is None or pools:
            d_logits_BxLxV += jnp.exp(log_p_BxLxV) * d_loss_BxL[..., None]
        d_states_BxLxD, *d_closed_here = pull_back(d_logits_BxLxV)
        d_closed = [total + here.astype(total.dtype) for total, here in zip(d_closed, d_closed_here, strict=True)]
        return d_closed, d_states_BxLxD

    operands = states_CxBxLxD, roles, _positions(roles), highest_CxBxL, log_sum_CxBxL, d_loss_CxBxL
    # Sums over chunks are float32 in every dtype.
    zeros = [jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)) for x in closed]
    d_closed, d_states_CxBxLxD = jax.lax.scan(body, zeros, operands)
    d_closed = [total.astype(x.dtype) for total, x in zip(d_closed, closed, strict=True)]
    return d_closed, d_states_CxBxLxD, None


_scan.defvjp(_forward_of_primals, _backward, symbolic_zeros=True)

"""Generation with a key-value cache in one jitted loop: greedy, sampling and beam search. Legend of dims in t5.py.

K is the number of beams here. Sequences hold the generated tokens without the decoder's start token, and pad_id after
eos.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from cotmi_jax.errors import UserError
from cotmi_jax.models.attention_pattern import MASKED
from cotmi_jax.models.student import Student
from cotmi_jax.models.t5 import Cache


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How to generate. `sample` uses temperature, top_k (0: off) and top_p (1: off); `beam` uses num_beams and
    length_penalty: a beam's score is its log-probability divided by length^length_penalty.

    Raises UserError for an unknown method and for values out of range.
    """

    method: Literal["greedy", "sample", "beam"] = "greedy"
    max_tokens: int = 64
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    num_beams: int = 4
    length_penalty: float = 1.0

    def __post_init__(self) -> None:
        if self.method not in ("greedy", "sample", "beam"):
            raise UserError(f"unknown decoding method {self.method!r}: choose greedy, sample or beam")
        if self.max_tokens < 1 or self.num_beams < 1 or self.top_k < 0:
            raise UserError(
                f"decoding: max_tokens {self.max_tokens} and num_beams {self.num_beams} must be at least 1, "
                f"top_k {self.top_k} at least 0"
            )
        if self.temperature <= 0.0 or not 0.0 < self.top_p <= 1.0:
            raise UserError(f"decoding: temperature {self.temperature} must be above 0, top_p {self.top_p} in (0, 1]")


class Generated(NamedTuple):
    """tokens int32 [B, T]; score [B] in nats: the sequence's log-probability under the model (at temperature 1, without
    top-k or top-p), for beam search divided by length^length_penalty. A row of padding gets no token and score 0."""

    tokens: Array
    score: Array | None  # None if not asked for


def generate(
    student: Student,
    inputs_BxS: Array,
    decoding: Decoding,
    key: Array | None = None,
    encoded_BxSxD: Array | None = None,
    *,
    scores: bool = True,
) -> Generated:
    """Generate for padded inputs until every row has its eos or max_tokens. `sample` needs a key.

    encoded_BxSxD: the encoder states of the inputs, if the caller has them. scores False leaves out the scores, which
    cost a sum over the vocabulary for each token.
    """
    if decoding.method == "sample" and key is None:
        raise ValueError("sampling needs a key")
    if encoded_BxSxD is None:
        encoded_BxSxD = student.encode(inputs_BxS)
    if decoding.method == "beam":
        beam = _beam_search(student, inputs_BxS, encoded_BxSxD, decoding)
        return beam if scores else beam._replace(score=None)
    key = key if decoding.method == "sample" else None
    return _left_to_right(student, inputs_BxS, encoded_BxSxD, decoding, key, scores)


def filter_logits(logits_BxV: Array, decoding: Decoding) -> Array:
    """Logits [B, V] divided by the temperature, masked by top-k (Fan et al. 2018), then top-p (Holtzman et al. 2020).

    top-p keeps the smallest set of most probable tokens whose probability reaches p, and always the most probable one.
    """
    logits_BxV = logits_BxV / decoding.temperature
    if decoding.top_k:
        kth_Bx1 = jax.lax.top_k(logits_BxV, min(decoding.top_k, logits_BxV.shape[-1]))[0][:, -1:]
        logits_BxV = jnp.where(logits_BxV < kth_Bx1, MASKED, logits_BxV)
    if decoding.top_p < 1.0:
        sorted_BxV = jnp.sort(logits_BxV, axis=-1, descending=True)
        probability_BxV = jax.nn.softmax(sorted_BxV, axis=-1)
        before_BxV = jnp.cumsum(probability_BxV, axis=-1) - probability_BxV
        lowest_Bx1 = jnp.where(before_BxV < decoding.top_p, sorted_BxV, jnp.inf).min(axis=-1, keepdims=True)
        logits_BxV = jnp.where(logits_BxV < lowest_Bx1, MASKED, logits_BxV)
    return logits_BxV


class _Loop(NamedTuple):
    position: Array  # scalar: tokens generated so far
    token_B: Array
    tokens_BxT: Array
    score_B: Array
    done_B: Array
    cache: Cache


def _left_to_right(
    student: Student, inputs_BxS: Array, encoded_BxSxD: Array, decoding: Decoding, key: Array | None, scores: bool
) -> Generated:
    batch, config = inputs_BxS.shape[0], student.config
    valid_BxS = inputs_BxS != config.pad_id

    def choose(logits_BxV: Array, position: Array) -> Array:
        if key is None:
            return jnp.argmax(logits_BxV, axis=-1)
        return jax.random.categorical(jax.random.fold_in(key, position), filter_logits(logits_BxV, decoding))

    def body(loop: _Loop) -> _Loop:
        logits_BxV, cache = student.decode_step(loop.token_B, loop.position, loop.cache, valid_BxS)
        chosen_B = choose(logits_BxV, loop.position).astype(jnp.int32)
        log_probability_B = jnp.zeros_like(loop.score_B)
        if scores:
            log_probability_B = jnp.take_along_axis(jax.nn.log_softmax(logits_BxV), chosen_B[:, None], axis=-1)[:, 0]
        token_B = jnp.where(loop.done_B, config.pad_id, chosen_B)
        return _Loop(
            loop.position + 1,
            token_B,
            jax.lax.dynamic_update_slice_in_dim(loop.tokens_BxT, token_B[:, None], loop.position, axis=1),
            loop.score_B + jnp.where(loop.done_B, 0.0, log_probability_B),
            loop.done_B | (chosen_B == config.eos_id),
            cache,
        )

    start = _Loop(
        jnp.zeros((), jnp.int32),
        jnp.full((batch,), config.pad_id, jnp.int32),
        jnp.full((batch, decoding.max_tokens), config.pad_id, jnp.int32),
        jnp.zeros((batch,)),
        ~valid_BxS.any(axis=1),  # a row of padding is done from the start and does not prolong the loop
        student.init_cache(encoded_BxSxD, decoding.max_tokens),
    )
    end = jax.lax.while_loop(lambda loop: (loop.position < decoding.max_tokens) & ~loop.done_B.all(), body, start)
    return Generated(end.tokens_BxT, end.score_B if scores else None)


class _Beams(NamedTuple):
    """Live beams, which have no eos yet, and finished ones, each in order of decreasing score."""

    position: Array  # scalar: tokens generated so far
    live_BxKxT: Array
    live_score_BxK: Array  # log-probability
    finished_BxKxT: Array
    finished_score_BxK: Array  # log-probability / length^length_penalty
    open_B: Array  # rows whose best finished beam may still change; a closed row stays closed
    cache: Cache


def _take_beams(x_BxK: Array, index_BxN: Array) -> Array:
    """[B, K, …] → [B, N, …]: entries of axis 1 by index."""
    return jnp.take_along_axis(x_BxK, index_BxN.reshape(*index_BxN.shape, *[1] * (x_BxK.ndim - 2)), axis=1)


def _reorder_cache(cache: Cache, index_BxK: Array) -> Cache:
    """Give every beam the cache of its parent; entries named cross_* depend only on the inputs and stay."""
    batch, beams = index_BxK.shape
    index_BK = (jnp.arange(batch)[:, None] * beams + index_BxK).reshape(-1)
    return {name: leaf if name.startswith("cross_") else leaf[:, index_BK] for name, leaf in cache.items()}


def _beam_search(student: Student, inputs_BxS: Array, encoded_BxSxD: Array, decoding: Decoding) -> Generated:
    """Beam search with 2K candidates a step, so that K of them stay live even if K end (Wu et al. 2016, section 7).

    A row stops when no live beam's score, normalized at its current length, exceeds that of its worst finished beam.
    """
    config, beams, length = student.config, decoding.num_beams, decoding.max_tokens
    batch, vocab = inputs_BxS.shape[0], config.vocab_size
    valid_BxS = inputs_BxS != config.pad_id
    valid_BKxS = jnp.repeat(valid_BxS, beams, axis=0)
    open_B = valid_BxS.any(axis=1)  # a row of padding is closed from the start
    if 2 * beams > vocab:
        raise UserError(f"decoding.num_beams {beams} is more than half of the vocabulary of {vocab} tokens: lower it")

    def body(state: _Beams) -> _Beams:
        last_BxK = jnp.where(
            state.position == 0, config.pad_id, state.live_BxKxT[:, :, jnp.maximum(state.position - 1, 0)]
        )
        logits_BKxV, cache = student.decode_step(last_BxK.reshape(-1), state.position, state.cache, valid_BKxS)
        log_p_BxKxV = jax.nn.log_softmax(logits_BKxV).reshape(batch, beams, vocab)
        total_BxKV = (state.live_score_BxK[:, :, None] + log_p_BxKxV).reshape(batch, beams * vocab)
        score_Bx2K, index_Bx2K = jax.lax.top_k(total_BxKV, 2 * beams)
        parent_Bx2K, token_Bx2K = index_Bx2K // vocab, (index_Bx2K % vocab).astype(jnp.int32)
        grown_Bx2KxT = jax.lax.dynamic_update_slice_in_dim(
            _take_beams(state.live_BxKxT, parent_Bx2K), token_Bx2K[:, :, None], state.position, axis=2
        )
        ends_Bx2K = (token_Bx2K == config.eos_id) | (state.position + 1 == length)

        live_score_BxK, kept_BxK = jax.lax.top_k(jnp.where(ends_Bx2K, MASKED, score_Bx2K), beams)
        # A candidate that ends is finished only if it is among the K best, and only in rows that are still open.
        finishes_Bx2K = ends_Bx2K & (jnp.arange(2 * beams) < beams)[None, :] & state.open_B[:, None]
        scale = (state.position + 1).astype(jnp.float32) ** decoding.length_penalty
        normalized_Bx2K = score_Bx2K / scale
        new_score_Bx2K = jnp.where(finishes_Bx2K, normalized_Bx2K, MASKED)
        pool_score_Bx3K = jnp.concatenate([state.finished_score_BxK, new_score_Bx2K], axis=1)
        finished_score_BxK, chosen_BxK = jax.lax.top_k(pool_score_Bx3K, beams)
        pool_Bx3KxT = jnp.concatenate([state.finished_BxKxT, grown_Bx2KxT], axis=1)
        return _Beams(
            state.position + 1,
            _take_beams(grown_Bx2KxT, kept_BxK),
            live_score_BxK,
            _take_beams(pool_Bx3KxT, chosen_BxK),
            finished_score_BxK,
            state.open_B & (live_score_BxK[:, 0] / scale > finished_score_BxK[:, -1]),
            _reorder_cache(cache, _take_beams(parent_Bx2K, kept_BxK)),
        )

    empty_BxKxT = jnp.full((batch, beams, length), config.pad_id, jnp.int32)
    start = _Beams(
        jnp.zeros((), jnp.int32),
        empty_BxKxT,
        # All beams are equal at the start: the first step extends the first one only.
        jnp.broadcast_to(jnp.where(jnp.arange(beams) == 0, 0.0, MASKED), (batch, beams)),
        empty_BxKxT,
        jnp.broadcast_to(jnp.where(open_B, MASKED, 0.0)[:, None], (batch, beams)),
        open_B,
        student.init_cache(jnp.repeat(encoded_BxSxD, beams, axis=0), length),
    )
    end = jax.lax.while_loop(lambda state: (state.position < length) & state.open_B.any(), body, start)
    return Generated(end.finished_BxKxT[:, 0], end.finished_score_BxK[:, 0])

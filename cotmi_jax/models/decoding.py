"""Generation with a key-value cache: greedy, sampling, beam search. Legend of dims in t5.py; M is the number of beams.

Sequences hold the generated tokens without the decoder's start token, and pad_id after eos. A search is a start, a step
and a result, so that inference/generation.py can run it in pieces.
"""

import dataclasses
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from cotmi_jax.errors import UserError
from cotmi_jax.models.attention_pattern import MASKED
from cotmi_jax.models.incremental import Cache, Incremental, incremental
from cotmi_jax.models.student import Student, StudentConfig


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

    def log_p(self, score: float, tokens: int) -> float:
        """The log-probability of an output of so many tokens, in nats, from its score (see Generated)."""
        return score * tokens**self.length_penalty if self.method == "beam" else score


class Generated(NamedTuple):
    """tokens int32 [B, T]; score [B] in nats: the sequence's log-probability under the model (at temperature 1, without
    top-k or top-p), for beam search divided by length^length_penalty. A row of padding gets no token and score 0."""

    tokens: Array
    score: Array | None  # None if not asked for


class Search(Protocol):
    """A method of generation. States are pytrees with a scalar `position`, the number of tokens generated."""

    def start(self, inputs_BxS: Array, encoded_BxSxD: Array, length: int) -> Any:
        """The state before the first token, with room for `length` positions in the cache."""

    def step(self, state: Any) -> Any:
        """The state after one more token."""

    def done_B(self, state: Any) -> Array:
        """The examples whose result further steps do not change."""

    def result(self, state: Any) -> Generated:
        """What was generated."""


def generate(
    student: Student,
    inputs_BxS: Array,
    decoding: Decoding,
    key: Array | None = None,
    encoded_BxSxD: Array | None = None,
    *,
    prefix_BxT: Array | None = None,
    scores: bool = True,
) -> Generated:
    """Generate for padded inputs until every row has its eos or max_tokens. `sample` needs a key.

    encoded_BxSxD: the encoder states of the inputs, if the caller has them. prefix_BxT: tokens with which the outputs
    begin, padded to T = max_tokens; not for beams. scores False leaves out the scores, which cost a sum over the
    vocabulary for each token.
    """
    if decoding.method == "sample" and key is None:
        raise ValueError("sampling needs a key")
    if decoding.method == "beam" and prefix_BxT is not None:
        raise ValueError("beams have no prefix")
    if encoded_BxSxD is None:
        encoded_BxSxD = student.encode(inputs_BxS)
    search = make_search(incremental(student), student.config, decoding, key, scores=scores, prefix_BxT=prefix_BxT)
    state = search.start(inputs_BxS, encoded_BxSxD, decoding.max_tokens)
    return search.result(advance(search, state, decoding.max_tokens))


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


def make_search(
    steps: Incremental,
    config: StudentConfig,
    decoding: Decoding,
    key: Array | None = None,
    *,
    scores: bool = True,
    prefix_BxT: Array | None = None,
) -> Search:
    """The search of decoding.method. Raises UserError for more beams than the vocabulary allows."""
    if decoding.method == "beam":
        if 2 * decoding.num_beams > config.vocab_size:
            raise UserError(
                f"decoding.num_beams {decoding.num_beams} is more than half of the vocabulary of {config.vocab_size} "
                "tokens: lower it"
            )
        return _BeamSearch(steps, config, decoding, scores)
    return _LeftToRight(steps, config, decoding, key if decoding.method == "sample" else None, scores, prefix_BxT)


def advance(search: Search, state: Any, position: Array | int) -> Any:
    """The state at that position, or earlier if all examples are done."""
    return jax.lax.while_loop(
        lambda state: (state.position < position) & ~search.done_B(state).all(), search.step, state
    )


def _argmax(x_BxV: Array) -> Array:
    """Index of the first maximum of each row, by two reductions that vectorize, where an argmax does not."""
    vocab = x_BxV.shape[-1]
    first_B = jnp.where(x_BxV == x_BxV.max(axis=-1, keepdims=True), jnp.arange(vocab)[None], vocab).min(axis=-1)
    return jnp.minimum(first_B, vocab - 1)  # a row with a NaN has no maximum


class _Rows(NamedTuple):
    position: Array  # scalar: tokens generated so far
    token_B: Array
    tokens_BxT: Array
    score_B: Array
    done_B: Array
    cache: Cache


@dataclasses.dataclass(frozen=True)
class _LeftToRight:
    """Greedy decoding; sampling with a key. Tokens of the prefix that are no padding are not chosen but given."""

    steps: Incremental
    config: StudentConfig
    decoding: Decoding
    key: Array | None
    scores: bool
    prefix_BxT: Array | None = None

    def start(self, inputs_BxS: Array, encoded_BxSxD: Array, length: int) -> _Rows:
        batch, pad_id = inputs_BxS.shape[0], self.config.pad_id
        valid_BxS = inputs_BxS != pad_id
        return _Rows(
            jnp.zeros((), jnp.int32),
            jnp.full((batch,), pad_id, jnp.int32),
            jnp.full((batch, self.decoding.max_tokens), pad_id, jnp.int32),
            jnp.zeros((batch,)),
            ~valid_BxS.any(axis=1),  # a row of padding is done from the start and does not prolong the loop
            self.steps.init_cache(encoded_BxSxD, valid_BxS, length, 1),
        )

    def step(self, state: _Rows) -> _Rows:
        logits_Bx1xV, cache = self.steps.step(state.token_B[:, None], state.position, state.cache)
        logits_BxV = logits_Bx1xV[:, 0]
        if self.key is None:
            chosen_B = _argmax(logits_BxV)
        else:
            key = jax.random.fold_in(self.key, state.position)
            chosen_B = jax.random.categorical(key, filter_logits(logits_BxV, self.decoding))
        if self.prefix_BxT is not None:
            given_B = jax.lax.dynamic_index_in_dim(self.prefix_BxT, state.position, axis=1, keepdims=False)
            chosen_B = jnp.where(given_B == self.config.pad_id, chosen_B, given_B)
        score_B = state.score_B
        if self.scores:
            logit_B = jnp.take_along_axis(logits_BxV, chosen_B[:, None], axis=-1)[:, 0]
            log_probability_B = logit_B - jax.nn.logsumexp(logits_BxV, axis=-1)
            score_B = score_B + jnp.where(state.done_B, 0.0, log_probability_B)
        token_B = jnp.where(state.done_B, self.config.pad_id, chosen_B.astype(jnp.int32))
        return _Rows(
            state.position + 1,
            token_B,
            jax.lax.dynamic_update_slice_in_dim(state.tokens_BxT, token_B[:, None], state.position, axis=1),
            score_B,
            state.done_B | (chosen_B == self.config.eos_id),
            cache,
        )

    def done_B(self, state: _Rows) -> Array:
        return state.done_B

    def result(self, state: _Rows) -> Generated:
        return Generated(state.tokens_BxT, state.score_B if self.scores else None)


class _Beams(NamedTuple):
    """Live beams, which have no eos yet, and finished ones, each in order of decreasing score."""

    position: Array  # scalar: tokens generated so far
    live_BxMxT: Array
    live_score_BxM: Array  # log-probability
    finished_BxMxT: Array
    finished_score_BxM: Array  # log-probability / length^length_penalty
    open_B: Array  # rows whose best finished beam may still change; a closed row stays closed
    cache: Cache


_BLOCK = 64  # elements of which top_k looks at the maximum first


def _take_beams(x_BxM: Array, index_BxN: Array) -> Array:
    """[B, M, …] → [B, N, …]: entries of axis 1 by index."""
    return jnp.take_along_axis(x_BxM, index_BxN.reshape(*index_BxN.shape, *[1] * (x_BxM.ndim - 2)), axis=1)


@dataclasses.dataclass(frozen=True)
class _BeamSearch:
    """Beam search with 2M candidates a step, so that M of them stay live even if M end (Wu et al. 2016, section 7).

    A row stops when no live beam's score, normalized at its current length, exceeds that of its worst finished beam.
    """

    steps: Incremental
    config: StudentConfig
    decoding: Decoding
    scores: bool

    def start(self, inputs_BxS: Array, encoded_BxSxD: Array, length: int) -> _Beams:
        batch, beams, pad_id = inputs_BxS.shape[0], self.decoding.num_beams, self.config.pad_id
        valid_BxS = inputs_BxS != pad_id
        open_B = valid_BxS.any(axis=1)  # a row of padding is closed from the start
        empty_BxMxT = jnp.full((batch, beams, self.decoding.max_tokens), pad_id, jnp.int32)
        return _Beams(
            jnp.zeros((), jnp.int32),
            empty_BxMxT,
            # All beams are equal at the start: the first step extends the first one only.
            jnp.broadcast_to(jnp.where(jnp.arange(beams) == 0, 0.0, MASKED), (batch, beams)),
            empty_BxMxT,
            jnp.broadcast_to(jnp.where(open_B, MASKED, 0.0)[:, None], (batch, beams)),
            open_B,
            self.steps.init_cache(encoded_BxSxD, valid_BxS, length, beams),
        )

    def step(self, state: _Beams) -> _Beams:
        beams, length = self.decoding.num_beams, self.decoding.max_tokens
        last_BxM = state.live_BxMxT[:, :, jnp.maximum(state.position - 1, 0)]
        last_BxM = jnp.where(state.position == 0, self.config.pad_id, last_BxM)
        logits_BxMxV, cache = self.steps.step(last_BxM, state.position, state.cache)
        # One addition to the logits, which needs no array of log-probabilities.
        shift_BxM = state.live_score_BxM - jax.nn.logsumexp(logits_BxMxV, axis=-1)
        total_BxMxV = logits_BxMxV + shift_BxM[:, :, None]
        score_Bx2M, parent_Bx2M, token_Bx2M = _best(total_BxMxV, 2 * beams)
        grown_Bx2MxT = jax.lax.dynamic_update_slice_in_dim(
            _take_beams(state.live_BxMxT, parent_Bx2M), token_Bx2M[:, :, None], state.position, axis=2
        )
        ends_Bx2M = (token_Bx2M == self.config.eos_id) | (state.position + 1 == length)

        live_score_BxM, kept_BxM = jax.lax.top_k(jnp.where(ends_Bx2M, MASKED, score_Bx2M), beams)
        # A candidate that ends is finished only if it is among the M best, and only in rows that are still open.
        finishes_Bx2M = ends_Bx2M & (jnp.arange(2 * beams) < beams)[None, :] & state.open_B[:, None]
        scale = (state.position + 1).astype(jnp.float32) ** self.decoding.length_penalty
        new_score_Bx2M = jnp.where(finishes_Bx2M, score_Bx2M / scale, MASKED)
        pool_score_Bx3M = jnp.concatenate([state.finished_score_BxM, new_score_Bx2M], axis=1)
        finished_score_BxM, chosen_BxM = jax.lax.top_k(pool_score_Bx3M, beams)
        pool_Bx3MxT = jnp.concatenate([state.finished_BxMxT, grown_Bx2MxT], axis=1)
        return _Beams(
            state.position + 1,
            _take_beams(grown_Bx2MxT, kept_BxM),
            live_score_BxM,
            _take_beams(pool_Bx3MxT, chosen_BxM),
            finished_score_BxM,
            state.open_B & (live_score_BxM[:, 0] / scale > finished_score_BxM[:, -1]),
            self.steps.take_beams(cache, _take_beams(parent_Bx2M, kept_BxM)),
        )

    def done_B(self, state: _Beams) -> Array:
        return ~state.open_B

    def result(self, state: _Beams) -> Generated:
        return Generated(state.finished_BxMxT[:, 0], state.finished_score_BxM[:, 0] if self.scores else None)


def _best(total_BxMxV: Array, number: int) -> tuple[Array, Array, Array]:
    """The highest scores of each example over beams and tokens [B, number], with their beams and tokens."""
    batch, beams, vocab = total_BxMxV.shape
    score_BxN, index_BxN = top_k(total_BxMxV.reshape(batch, beams * vocab), number)
    return score_BxN, index_BxN // vocab, (index_BxN % vocab).astype(jnp.int32)


def top_k(x_BxN: Array, number: int) -> tuple[Array, Array]:
    """jax.lax.top_k along the last axis, ties included, for long rows.

    The highest numbers are in the blocks with the highest maxima, which are found by a reduction that vectorizes.
    """
    batch, size = x_BxN.shape
    if size <= _BLOCK * number:
        return jax.lax.top_k(x_BxN, number)
    padded_BxN = jnp.pad(x_BxN, ((0, 0), (0, -size % _BLOCK)), constant_values=-jnp.inf)
    blocks_BxGxC = padded_BxN.reshape(batch, -1, _BLOCK)
    # In the order of their elements, so that of equal numbers the first is taken.
    block_BxK = jnp.sort(jax.lax.top_k(blocks_BxGxC.max(axis=-1), number)[1], axis=-1)
    candidates_BxKC = jnp.take_along_axis(blocks_BxGxC, block_BxK[..., None], axis=1).reshape(batch, -1)
    found_BxK, place_BxK = jax.lax.top_k(candidates_BxKC, number)
    return found_BxK, jnp.take_along_axis(block_BxK, place_BxK // _BLOCK, axis=1) * _BLOCK + place_BxK % _BLOCK

"""Generation on one device in segments of a few tokens, between which the cache grows and finished examples leave.

A token then costs what the open examples and the filled cache cost, not what the whole batch and the longest output
would. Imports no tensorflow.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from cotmi_jax.data.vocabulary import EOS_ID
from cotmi_jax.models.decoding import Decoding, Generated, Search, advance, make_search
from cotmi_jax.models.incremental import T5Steps, T5Weights
from cotmi_jax.models.student import Params, StudentDef

SEGMENT = 16  # tokens from one look at the finished examples to the next; also the first length of the cache
GROWTH = 4  # factor of the cache's length: a program is compiled for each length
MIN_ROWS = 8  # with fewer rows a token costs hardly less
# Batches of which all examples stay to the end. Each number of rows is another program to compile, for the time of one
# to two batches.
WHOLE_BATCHES = 3


class Tokens(NamedTuple):
    """Generated, on the host."""

    tokens: np.ndarray
    score: np.ndarray | None

    def length(self, row: int) -> int:
        """Number of generated tokens of a row, with eos."""
        ends = np.flatnonzero(self.tokens[row] == EOS_ID)
        return int(ends[0]) + 1 if len(ends) else self.tokens.shape[1]

    def log_p(self, row: int, decoding: Decoding) -> float | None:
        """The log-probability of a row's tokens in nats; None without scores."""
        return None if self.score is None else decoding.log_p(float(self.score[row]), self.length(row))


class Segments:
    """Generation by a T5 on one device; the tokens are those of models.decoding.generate.

    Examples leave when half of the rows, or more, are finished; in sampling they stay, because the draws depend on the
    row.
    """

    def __init__(self, student: StudentDef, decoding: Decoding, *, scores: bool):
        self._student, self._decoding, self._scores, self._batches = student, decoding, scores, 0
        self._start = jax.jit(self._make_start, static_argnames="length")
        self._advance = jax.jit(self._make_advance, donate_argnames="state")
        self._resize = jax.jit(self._make_resize, static_argnames="length")

    def _search(self, params: Params, weights: T5Weights | None, key: Array | None) -> tuple[Search, T5Steps]:
        steps = T5Steps(self._student.bind(params), weights)
        return make_search(steps, self._student.config, self._decoding, key, scores=self._scores), steps

    def _make_start(
        self, params: Params, inputs_BxS: Array, encoded_BxSxD: Array | None, key: Array | None, length: int
    ) -> tuple[T5Weights, Any]:
        if encoded_BxSxD is None:
            encoded_BxSxD = self._student.bind(params).encode(inputs_BxS)
        search, steps = self._search(params, None, key)
        return steps.weights, search.start(inputs_BxS, encoded_BxSxD, length)

    def _make_advance(
        self, params: Params, weights: T5Weights, key: Array | None, state: Any, position: Array
    ) -> tuple[Any, Array, Array, Generated]:
        """The state at that position or at the end, its position, the finished examples and the result so far."""
        search, _ = self._search(params, weights, key)
        state = advance(search, state, position)
        return state, state.position, search.done_B(state), search.result(state)

    def _make_resize(self, params: Params, weights: T5Weights, state: Any, row_N: Array, length: int) -> Any:
        """The state of some examples, with room for `length` positions."""
        steps = T5Steps(self._student.bind(params), weights)
        cache = steps.grow(steps.take_rows(state.cache, row_N), length)
        kept = {name: leaf[row_N] for name, leaf in state._asdict().items() if name not in ("position", "cache")}
        return state._replace(cache=cache, **kept)

    def __call__(
        self, params: Params, inputs_BxS: Array, encoded_BxSxD: Array | None = None, key: Array | None = None
    ) -> Tokens:
        """Generate for padded inputs; the fields are those of Generated. Sampling needs a key."""
        if self._decoding.method == "sample" and key is None:
            raise ValueError("sampling needs a key")
        limit = self._decoding.max_tokens
        leaves = self._decoding.method != "sample" and self._batches >= WHOLE_BATCHES
        self._batches += 1
        length = min(SEGMENT, limit)
        weights, state = self._start(params, inputs_BxS, encoded_BxSxD, key, length=length)
        row_N = np.arange(inputs_BxS.shape[0])
        tokens_BxT = np.full((len(row_N), limit), self._student.config.pad_id, np.int32)
        score_B = np.zeros(len(row_N), np.float32) if self._scores else None
        position = 0
        while True:
            state, *found = self._advance(params, weights, key, state, np.int32(min(position + SEGMENT, limit)))
            reached, done_N, result = jax.device_get(found)
            position = int(reached)
            tokens_BxT[row_N] = result.tokens
            if score_B is not None:
                score_B[row_N] = result.score
            if done_N.all() or position == limit:
                return Tokens(tokens_BxT, score_B)
            kept_N = np.arange(len(row_N))
            open_N = np.flatnonzero(~done_N)
            while leaves and len(kept_N) >= 2 * max(MIN_ROWS, len(open_N)) and len(kept_N) % 2 == 0:
                kept_N = kept_N[: len(kept_N) // 2]
            if len(kept_N) < len(row_N):
                kept_N = np.argsort(done_N, kind="stable")[: len(kept_N)]  # the open ones, then finished ones to fill
            if len(kept_N) < len(row_N) or position == length:
                length = min(length * GROWTH, limit) if position == length else length
                state = self._resize(params, weights, state, kept_N, length=length)
                row_N = row_N[kept_N]

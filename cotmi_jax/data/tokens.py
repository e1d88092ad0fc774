"""Tokenized splits, and padded batches of their rows, in plain numpy."""

import dataclasses
import functools
import zlib
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np

from cotmi_jax.data.order import IntArray, Picks
from cotmi_jax.data.vocabulary import PAD_ID

Batch = dict[str, Any]  # as gather or packing.pack makes it
MULTIPLE = 8  # padded lengths are rounded up to it: vector lanes, and fewer distinct shapes


@dataclasses.dataclass(frozen=True)
class Ragged:
    """Token sequences of unequal length, end to end: sequence i is flat[offsets[i]:offsets[i + 1]]."""

    flat: IntArray  # any integer type; may be a memory map
    offsets: IntArray

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]]) -> "Ragged":
        """From lists of ids."""
        lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
        flat = np.fromiter(chain.from_iterable(sequences), np.int32, int(lengths.sum()))
        return cls(flat, offsets_of(lengths))

    @classmethod
    def join(cls, parts: "Iterable[Ragged]") -> "Ragged":
        """One after the other."""
        parts = list(parts)
        lengths = np.concatenate([part.lengths for part in parts])
        return cls(np.concatenate([part.flat for part in parts]), offsets_of(lengths))

    @functools.cached_property
    def lengths(self) -> IntArray:
        """Tokens of every sequence."""
        return np.diff(self.offsets)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence, 0 if there is none."""
        return int(self.lengths.max(initial=0))

    def concatenated(self, rows: IntArray) -> IntArray:
        """The tokens of sequences `rows`, one sequence after the other, int32."""
        ends = offsets_of(self.lengths[rows])
        position = np.repeat(self.offsets[rows] - ends[:-1], self.lengths[rows]) + np.arange(ends[-1])
        return self.flat[position].astype(np.int32)

    def padded(self, rows: IntArray, length: int) -> IntArray:
        """Sequences `rows` as int32 [len(rows), length], padded with PAD_ID; a row of −1 is all padding."""
        starts = self.offsets[rows]
        lengths = np.where(rows < 0, 0, self.offsets[rows + 1] - starts)  # offsets[-1] is in range and unused
        column = np.arange(length)
        inside = column < lengths[:, None]
        position = np.where(inside, starts[:, None] + column, 0)
        return np.where(inside, self.flat[position] if self.flat.size else 0, PAD_ID).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class TokenizedTask:
    """Inputs and targets of one task, and how many of each were cut to the limits.

    Inputs are by example; targets are by rationale if `per_rationale`, else by example as well.
    """

    inputs: Ragged
    targets: Ragged
    per_rationale: bool
    truncated_inputs: int
    truncated_targets: int


@dataclasses.dataclass(frozen=True, eq=False)  # compared and hashed as an object: its arrays are large
class TokenizedSplit:
    """A split ready for batching: every task's tokens, aligned by row.

    Of N examples, example i has the rationales first[i] … first[i + 1] − 1 (int64 [N + 1]), whose weights in the loss
    are `weights` (float32 [first[N]]). kept (bool) says which of the examples it was made from are in it; the others
    were too long.
    """

    tasks: dict[str, TokenizedTask]
    rationale_offsets: IntArray
    weights: np.ndarray
    kept: np.ndarray

    @classmethod
    def join(cls, parts: "Sequence[TokenizedSplit]") -> "TokenizedSplit":
        """Parts of a split, one after the other."""
        tasks = {
            task: TokenizedTask(
                Ragged.join(part.tasks[task].inputs for part in parts),
                Ragged.join(part.tasks[task].targets for part in parts),
                tokens.per_rationale,
                sum(part.tasks[task].truncated_inputs for part in parts),
                sum(part.tasks[task].truncated_targets for part in parts),
            )
            for task, tokens in parts[0].tasks.items()
        }
        rationale_offsets = offsets_of(np.concatenate([np.diff(part.rationale_offsets) for part in parts]))
        weights, kept = (np.concatenate([getattr(part, name) for part in parts]) for name in ("weights", "kept"))
        return cls(tasks, rationale_offsets, weights, kept)

    @property
    def size(self) -> int:
        """Number of examples."""
        return len(self.rationale_offsets) - 1

    @functools.cached_property
    def input_length(self) -> int:
        """What inputs of every task are padded to, so that one encoder call serves them: the longest, rounded up."""
        return round_up(max(tokens.inputs.longest for tokens in self.tasks.values()))

    @functools.cached_property
    def target_lengths(self) -> dict[str, int]:
        """What the targets of each task are padded to."""
        return {task: round_up(tokens.targets.longest) for task, tokens in self.tasks.items()}

    @functools.cached_property
    def rationale_counts(self) -> IntArray:
        """Number of rationales of every example."""
        return np.diff(self.rationale_offsets)

    def rationale_rows(self, rows: IntArray, passes: IntArray | int) -> IntArray:
        """The rationale of each example whose turn it is in a pass over the data; −1 for a row of −1."""
        start = self.rationale_offsets[rows]
        number = np.maximum(self.rationale_offsets[rows + 1] - start, 1)
        return np.where(rows < 0, -1, start + passes % number)

    def target_rows(self, task: str, rows: IntArray, passes: IntArray | int) -> IntArray:
        """Rows of a task's targets."""
        return self.rationale_rows(rows, passes) if self.tasks[task].per_rationale else rows

    def token_counts(self, picks: Picks) -> IntArray:
        """Input and target tokens of each example over all tasks, int64 [len(picks), 2]."""
        columns = [0, 0]
        for task, tokens in self.tasks.items():
            columns[0] += tokens.inputs.lengths[picks.rows]
            columns[1] += tokens.targets.lengths[self.target_rows(task, *picks)]
        return np.stack(columns, axis=1)

    def fingerprint(self) -> str:
        """CRC-32 of all tokens and weights, by which a resumed run notices that its data changed."""
        crc = zlib.crc32(self.weights.tobytes(), zlib.crc32(self.rationale_offsets.tobytes()))
        for _, tokens in sorted(self.tasks.items()):
            for ragged in (tokens.inputs, tokens.targets):
                crc = zlib.crc32(ragged.offsets.tobytes(), crc)
                for start in range(0, len(ragged.flat), 1 << 20):  # by parts: a memory map stays one
                    crc = zlib.crc32(ragged.flat[start : start + (1 << 20)].astype(np.int32).tobytes(), crc)
        return f"{crc:08x}"


def offsets_of(lengths: IntArray) -> IntArray:
    """Where parts of these lengths begin, laid end to end, and where the last ends."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def round_up(length: int, multiple: int = MULTIPLE) -> int:
    """The next multiple."""
    return -(-length // multiple) * multiple


def gather(split: TokenizedSplit, rows: IntArray, passes: IntArray | int = 0) -> Batch:
    """The padded batch of these rows; a row of −1 is not valid.

    {task: {inputs [B, S], targets [B, T]}, valid [B], weight [B]}: weight is that of the rationale in the loss.
    """
    batch: Batch = {
        task: {
            "inputs": tokens.inputs.padded(rows, split.input_length),
            "targets": tokens.targets.padded(split.target_rows(task, rows, passes), split.target_lengths[task]),
        }
        for task, tokens in split.tasks.items()
    }
    weights = np.where(rows < 0, np.float32(0), split.weights[split.rationale_rows(rows, passes)])
    return batch | {"valid": rows >= 0, "weight": weights}

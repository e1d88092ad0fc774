"""Tokenized splits, and padded batches of their rows, in plain numpy."""

import dataclasses
import functools
import zlib
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from cotmi_jax.data.order import IntArray, Picks
from cotmi_jax.data.tasks import EXPLAIN, PREDICT
from cotmi_jax.data.vocabulary import PAD_ID

Batch = dict[str, Any]  # made by gather or packing.pack
_BLOCK = 1 << 20  # tokens
MULTIPLE = 8  # padded lengths are rounded up to it: it fits vector lanes and gives fewer distinct shapes


class TokenCount(NamedTuple):
    """How often a token occurs, and in how many sequences."""

    tokens: int
    sequences: int


@dataclasses.dataclass(frozen=True)
class Ragged:
    """Token sequences of unequal length, concatenated: sequence i is flat[offsets[i]:offsets[i + 1]].

    Or sequences of their weights, float32.
    """

    flat: np.ndarray  # any integer type; can be a memory map
    offsets: IntArray

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]]) -> "Ragged":
        """From lists of ids."""
        lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
        flat = np.fromiter(chain.from_iterable(sequences), np.int32, int(lengths.sum()))
        return cls(flat, offsets_of(lengths))

    @classmethod
    def join(cls, pieces: "Iterable[Ragged]") -> "Ragged":
        """Concatenates the sequences of several."""
        pieces = list(pieces)
        lengths = np.concatenate([piece.lengths for piece in pieces])
        return cls(np.concatenate([piece.flat for piece in pieces]), offsets_of(lengths))

    @property
    def _dtype(self) -> type:
        """Of batches."""
        return np.int32 if np.issubdtype(self.flat.dtype, np.integer) else np.float32

    @functools.cached_property
    def lengths(self) -> IntArray:
        """Number of tokens of every sequence."""
        return np.diff(self.offsets)

    @property
    def longest(self) -> int:
        """Number of tokens of the longest sequence, 0 if there is none."""
        return int(self.lengths.max(initial=0))

    def count(self, token: int | None) -> "TokenCount":
        """Occurrences of a token, and sequences that hold it; 0 of None, a token that a vocabulary does not have."""
        if token is None:
            return TokenCount(0, 0)
        found = [  # in blocks: a memory map is not loaded at once
            np.flatnonzero(self.flat[start : start + _BLOCK] == token) + start
            for start in range(0, len(self.flat), _BLOCK)
        ]
        positions = np.concatenate([np.zeros(0, np.int64), *found])
        return TokenCount(len(positions), len(np.unique(np.searchsorted(self.offsets, positions, side="right"))))

    def concatenated(self, rows: IntArray) -> np.ndarray:
        """The concatenated tokens of sequences `rows`, int32; of weights float32."""
        ends = offsets_of(self.lengths[rows])
        position = np.repeat(self.offsets[rows] - ends[:-1], self.lengths[rows]) + np.arange(ends[-1])
        return self.flat[position].astype(self._dtype)

    def padded(self, rows: IntArray, length: int) -> np.ndarray:
        """Sequences `rows` as int32 [len(rows), length], padded with PAD_ID; a row of −1 gives padding only.

        Of weights float32, padded with 0.
        """
        starts = self.offsets[rows]
        lengths = np.where(
            rows < 0, 0, self.offsets[rows + 1] - starts
        )  # for −1, offsets[-1] is a valid index and its value is not used
        column = np.arange(length)
        inside = column < lengths[:, None]
        position = np.where(inside, starts[:, None] + column, 0)
        return np.where(inside, self.flat[position] if self.flat.size else 0, PAD_ID).astype(self._dtype)


@dataclasses.dataclass(frozen=True)
class TokenizedTask:
    """Inputs and targets of one task, and how many of each were cut to the limits.

    There is one input per example, and one target per rationale (`per_rationale`) or per example.
    weights: of the tokens of the targets in the loss, besides that of the rationale; None: 1.
    """

    inputs: Ragged
    targets: Ragged
    per_rationale: bool
    truncated_inputs: int
    truncated_targets: int
    weights: np.ndarray | None = None  # float32, aligned with targets.flat

    @property
    def target_weights(self) -> Ragged | None:
        """The weights as sequences."""
        return None if self.weights is None else Ragged(self.weights, self.targets.offsets)

    @classmethod
    def join(cls, pieces: "Sequence[TokenizedTask]") -> "TokenizedTask":
        """Concatenates those of consecutive pieces of a split."""
        weights = [piece.weights for piece in pieces if piece.weights is not None]
        return cls(
            Ragged.join(piece.inputs for piece in pieces),
            Ragged.join(piece.targets for piece in pieces),
            pieces[0].per_rationale,
            sum(piece.truncated_inputs for piece in pieces),
            sum(piece.truncated_targets for piece in pieces),
            np.concatenate(weights) if weights else None,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class CounterfactualTargets:
    """Further targets of the inputs of a split: other pairs of label and rationale, for each rationale at most `most`.

    offsets: int64 [number of rationales + 1]; rationale k has the pairs offsets[k] … offsets[k + 1] − 1.
    targets: by task, the targets of all pairs.
    """

    offsets: IntArray
    targets: dict[str, Ragged]
    most: int

    @classmethod
    def join(cls, pieces: "Sequence[CounterfactualTargets]") -> "CounterfactualTargets":
        """Concatenates those of consecutive pieces of a split."""
        offsets = offsets_of(np.concatenate([np.diff(piece.offsets) for piece in pieces]))
        tasks = pieces[0].targets
        targets = {task: Ragged.join(piece.targets[task] for piece in pieces) for task in tasks}
        return cls(offsets, targets, pieces[0].most)

    @functools.cached_property
    def longest(self) -> int:
        """The most tokens of all targets of one task that a rationale has, rounded up."""
        lengths = [self.lengths(task, np.arange(len(self.offsets) - 1)).sum(axis=1) for task in self.targets]
        return round_up(max(int(each.max(initial=0)) for each in lengths))

    def rows(self, rationales: IntArray) -> IntArray:
        """Indices of the pairs of each of these rationales, [len(rationales), most]; −1 where it has no more."""
        index = self.offsets[rationales][:, None] + np.arange(self.most)
        return np.where((rationales >= 0)[:, None] & (index < self.offsets[rationales + 1][:, None]), index, -1)

    def lengths(self, task: str, rationales: IntArray) -> IntArray:
        """Tokens of the pairs' targets of a task, [len(rationales), most]; 0 where there is none."""
        rows = self.rows(rationales)
        return np.where(rows < 0, 0, np.append(self.targets[task].lengths, 0)[rows])

    def padded(self, rationales: IntArray) -> dict[str, IntArray]:
        """By task the targets of these rationales' pairs, int32 [len(rationales), most, T], padded."""
        rows = self.rows(rationales)
        return {
            task: ragged.padded(rows.reshape(-1), round_up(ragged.longest)).reshape(*rows.shape, -1)
            for task, ragged in self.targets.items()
        }


@dataclasses.dataclass(frozen=True, eq=False)  # compared and hashed by identity: its arrays are large
class TokenizedSplit:
    """A split ready for batching: the tokens of every task, aligned by row.

    rationale_offsets: int64 [N + 1]; example i of N has the rationales offsets[i] … offsets[i + 1] − 1.
    weights: float32 [number of rationales], the weight of each rationale in the loss.
    kept: bool, which of the examples the split was made from are in it; the others were too long.
    answer_starts: int32 [number of rationales], the first token of the answer in the target of the rationale task, or
      why there is none (rationale_answer.py), and is as long as the label; None if rationales do not state answers.
    counterfactuals: None where the objective contrasts no pairs within an example.
    """

    tasks: dict[str, TokenizedTask]
    rationale_offsets: IntArray
    weights: np.ndarray
    kept: np.ndarray
    answer_starts: IntArray | None = None
    counterfactuals: CounterfactualTargets | None = None

    @classmethod
    def join(cls, pieces: "Sequence[TokenizedSplit]") -> "TokenizedSplit":
        """Concatenates consecutive pieces of a split."""
        tasks = {task: TokenizedTask.join([piece.tasks[task] for piece in pieces]) for task in pieces[0].tasks}
        rationale_offsets = offsets_of(np.concatenate([np.diff(piece.rationale_offsets) for piece in pieces]))
        weights, kept = (np.concatenate([getattr(piece, name) for piece in pieces]) for name in ("weights", "kept"))
        starts = [piece.answer_starts for piece in pieces if piece.answer_starts is not None]
        further = [piece.counterfactuals for piece in pieces if piece.counterfactuals is not None]
        return cls(
            tasks,
            rationale_offsets,
            weights,
            kept,
            np.concatenate(starts) if starts else None,
            CounterfactualTargets.join(further) if further else None,
        )

    @property
    def size(self) -> int:
        """Number of examples."""
        return len(self.rationale_offsets) - 1

    @functools.cached_property
    def input_length(self) -> int:
        """Padded length of the inputs of all tasks, which share one encoder call: the longest, rounded up."""
        return round_up(max(tokens.inputs.longest for tokens in self.tasks.values()))

    @functools.cached_property
    def target_lengths(self) -> dict[str, int]:
        """Padded length of the targets of each task."""
        return {task: round_up(tokens.targets.longest) for task, tokens in self.tasks.items()}

    @functools.cached_property
    def rationale_counts(self) -> IntArray:
        """Number of rationales of every example."""
        return np.diff(self.rationale_offsets)

    @functools.cached_property
    def answer_lengths(self) -> IntArray:
        """Tokens of the answer that each rationale states, those of its label without eos; 0 if it has no span."""
        assert self.answer_starts is not None
        labels = np.repeat(self.tasks[PREDICT].targets.lengths - 1, self.rationale_counts)
        return np.where(self.answer_starts >= 0, labels, 0)

    @functools.cached_property
    def answer_length(self) -> int:
        """Tokens of the longest of these answers, at least 1."""
        return int(self.answer_lengths.max(initial=1))

    def answer_positions(self, rows: IntArray, passes: IntArray | int) -> tuple[dict[str, IntArray], IntArray]:
        """By task, the positions in the target of the tokens of the answers, int32 [B, L], −1 beyond their end; and the
        number of tokens of each answer, int32 [B]. L is answer_length."""
        assert self.answer_starts is not None
        rationales = self.rationale_rows(rows, passes)
        length_B = np.where(rows < 0, 0, self.answer_lengths[rationales]).astype(np.int32)
        column_L = np.arange(self.answer_length, dtype=np.int32)
        inside_BxL = column_L < length_B[:, None]
        positions = {
            task: np.where(inside_BxL, start_B[:, None] + column_L, -1).astype(np.int32)
            for task, start_B in ((PREDICT, np.zeros_like(length_B)), (EXPLAIN, self.answer_starts[rationales]))
        }
        return positions, length_B

    @property
    def without_rationale(self) -> int:
        """Number of examples whose rationales all have weight 0: only their label is trained."""
        return int((np.add.reduceat(self.weights, self.rationale_offsets[:-1]) == 0.0).sum()) if self.size else 0

    def unknown(self, unk_id: int | None) -> dict[str, TokenCount]:
        """Occurrences of the unknown token by column: input, label and rationale, or target where one text holds both.

        The inputs of tasks differ by known prefixes only, so those of one task are counted.
        """
        counts = {"input": self.tasks[PREDICT].inputs.count(unk_id)}
        for task, tokens in self.tasks.items():
            column = "rationale" if task == EXPLAIN else "target" if tokens.per_rationale else "label"
            counts[column] = tokens.targets.count(unk_id)
        return counts

    def rationale_rows(self, rows: IntArray, passes: IntArray | int) -> IntArray:
        """Index of the rationale that each example uses in a pass over the data; −1 for a row of −1."""
        start = self.rationale_offsets[rows]
        number = np.maximum(self.rationale_offsets[rows + 1] - start, 1)
        return np.where(rows < 0, -1, start + passes % number)

    def target_rows(self, task: str, rows: IntArray, passes: IntArray | int) -> IntArray:
        """Indices of a task's targets."""
        return self.rationale_rows(rows, passes) if self.tasks[task].per_rationale else rows

    def pair_lengths(self, picks: Picks) -> IntArray:
        """Input and target tokens of every sequence pair of these examples, task by task: int64 [pairs, 2]."""
        pairs = [
            (tokens.inputs.lengths[picks.rows], tokens.targets.lengths[self.target_rows(task, *picks)])
            for task, tokens in self.tasks.items()
        ]
        return np.concatenate(pairs, axis=1).T

    def token_counts(self, picks: Picks) -> IntArray:
        """Input and target tokens of each example, summed over tasks: int64 [len(picks), 2].

        A split with counterfactuals has a third column, the tokens of their targets.
        """
        columns = [0, 0] if self.counterfactuals is None else [0, 0, 0]
        for task, tokens in self.tasks.items():
            columns[0] += tokens.inputs.lengths[picks.rows]
            columns[1] += tokens.targets.lengths[self.target_rows(task, *picks)]
            if self.counterfactuals is not None:
                columns[2] += self.counterfactuals.lengths(task, self.rationale_rows(*picks)).sum(axis=1)
        return np.stack(columns, axis=1)

    def eval_lengths(self, rows: IntArray) -> IntArray:
        """Lengths of examples in evaluation, int64 [len(rows), 1 + tasks]: input, the longest of all tasks, which share
        one encoder call, and the target of each task with the first rationale."""
        inputs = np.max([tokens.inputs.lengths[rows] for tokens in self.tasks.values()], axis=0)
        targets = [tokens.targets.lengths[self.target_rows(task, rows, 0)] for task, tokens in self.tasks.items()]
        return np.stack([inputs, *targets], axis=1)

    def fingerprint(self) -> str:
        """CRC-32 of all tokens, weights and answers; a resumed run compares it to detect changed data."""
        crc = zlib.crc32(self.weights.tobytes(), zlib.crc32(self.rationale_offsets.tobytes()))
        if self.answer_starts is not None:
            crc = zlib.crc32(self.answer_starts.astype(np.int32).tobytes(), crc)
        for _, tokens in sorted(self.tasks.items()):
            crc = crc if tokens.weights is None else zlib.crc32(tokens.weights.tobytes(), crc)
        sequences = [ragged for _, tokens in sorted(self.tasks.items()) for ragged in (tokens.inputs, tokens.targets)]
        if self.counterfactuals is not None:
            crc = zlib.crc32(self.counterfactuals.offsets.tobytes(), crc)
            sequences += [ragged for _, ragged in sorted(self.counterfactuals.targets.items())]
        for ragged in sequences:
            crc = zlib.crc32(ragged.offsets.tobytes(), crc)
            for start in range(0, len(ragged.flat), _BLOCK):  # in blocks: a memory map is not loaded at once
                crc = zlib.crc32(ragged.flat[start : start + _BLOCK].astype(np.int32).tobytes(), crc)
        return f"{crc:08x}"


def offsets_of(lengths: IntArray) -> IntArray:
    """Offsets of concatenated sequences with these lengths, from 0 to their total."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def round_up(length: int, multiple: int = MULTIPLE) -> int:
    """`length` rounded up to a multiple."""
    return -(-length // multiple) * multiple


def gather(
    split: TokenizedSplit, rows: IntArray, passes: IntArray | int = 0, lengths: Sequence[int] | None = None
) -> Batch:
    """The padded batch of these rows; a row of −1 is padding.

    {task: {inputs [B, S], targets [B, T]}, valid [B], weight [B]}: valid is False for padding; weight is that of
    the rationale in the loss. Of a task whose tokens have weights also target_weights [B, T]. Where rationales state
    answers, as TokenizedSplit.answer_positions gives them, also
    {task: {answers [B, L]}, answer_length [B]}. lengths: S, and T of each task, in the order of eval_lengths; no row
    exceeds them. None: those of the split.
    """
    inputs, *targets = (split.input_length, *split.target_lengths.values()) if lengths is None else lengths
    batch: Batch = {
        task: {
            "inputs": tokens.inputs.padded(rows, inputs),
            "targets": tokens.targets.padded(split.target_rows(task, rows, passes), length),
        }
        for (task, tokens), length in zip(split.tasks.items(), targets, strict=True)
    }
    for (task, tokens), length in zip(split.tasks.items(), targets, strict=True):
        if tokens.target_weights is not None:
            target_rows = split.target_rows(task, rows, passes)
            batch[task]["target_weights"] = tokens.target_weights.padded(target_rows, length)
    weight_B = np.where(rows < 0, np.float32(0), split.weights[split.rationale_rows(rows, passes)])
    batch |= {"valid": rows >= 0, "weight": weight_B}
    if split.answer_starts is not None:
        positions, batch["answer_length"] = split.answer_positions(rows, passes)
        for task, position_BxL in positions.items():
            batch[task]["answers"] = position_BxL
    return batch

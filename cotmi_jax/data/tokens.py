"""Tokenized splits, and batches of them as a pure function of the step, in plain numpy."""

import dataclasses
import functools
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from cotmi_jax.data.example import Example
from cotmi_jax.data.tasks import LabelType, Objective, task_texts, tasks_of
from cotmi_jax.data.vocabulary import EOS_ID, PAD_ID, Vocabulary
from cotmi_jax.errors import UserError

IntArray = np.ndarray
Batch = dict[str, Any]  # {task: {"inputs": …, "targets": …}, "valid": …}, see gather
MULTIPLE = 8  # padded lengths are rounded up to it: vector lanes, and fewer distinct shapes


@dataclasses.dataclass(frozen=True)
class Ragged:
    """Token sequences of unequal length, end to end: sequence i is flat[offsets[i]:offsets[i + 1]]."""

    flat: IntArray
    offsets: IntArray

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]]) -> "Ragged":
        """From lists of ids."""
        lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
        flat = np.fromiter((token for sequence in sequences for token in sequence), np.int32, int(lengths.sum()))
        return cls(flat, np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]))

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence, 0 if there is none."""
        return int(np.diff(self.offsets).max(initial=0))

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
    """Inputs and targets of one task, the fixed lengths they are padded to, and how many were cut to the limits."""

    inputs: Ragged
    targets: Ragged
    input_length: int
    target_length: int
    truncated_inputs: int
    truncated_targets: int


@dataclasses.dataclass(frozen=True)
class TokenizedSplit:
    """A split ready for batching: every task's tokens, aligned by row."""

    tasks: dict[str, TokenizedTask]
    size: int

    def fingerprint(self) -> str:
        """CRC-32 of all tokens, by which a resumed run notices that its data changed."""
        crc = 0
        for _, tokens in sorted(self.tasks.items()):
            for ragged in (tokens.inputs, tokens.targets):
                crc = zlib.crc32(ragged.offsets.tobytes(), zlib.crc32(ragged.flat.tobytes(), crc))
        return f"{crc:08x}"


def _tokenize(vocabulary: Vocabulary, texts: Sequence[str], limit: int) -> tuple[Ragged, int]:
    """Ids with a final eos, cut to `limit` tokens with the eos kept; and how many were cut."""
    encoded = vocabulary.encode(texts)
    cut = sum(len(ids) + 1 > limit for ids in encoded)
    return Ragged.of([[*ids[: limit - 1], EOS_ID] for ids in encoded]), cut


def _round_up(length: int) -> int:
    return -(-length // MULTIPLE) * MULTIPLE


def tokenize_split(
    examples: Sequence[Example],
    vocabulary: Vocabulary,
    *,
    objective: Objective,
    label_type: LabelType,
    max_input_tokens: int,
    max_target_tokens: int,
) -> TokenizedSplit:
    """Tokens of every task of `objective`, whose inputs get one common length: one encoder call serves both.

    Padded lengths are the split's own longest sequences, rounded up to MULTIPLE, never above the limits' round-up.
    """
    if not examples:
        raise UserError("a split without examples: check config.data.subsample and the data files")
    tokens: dict[str, tuple[Ragged, int, Ragged, int]] = {}
    for task in tasks_of(objective):
        texts = task_texts(examples, objective, task, label_type)
        inputs, cut_inputs = _tokenize(vocabulary, [text.input for text in texts], max_input_tokens)
        targets, cut_targets = _tokenize(vocabulary, [text.target for text in texts], max_target_tokens)
        tokens[task] = (inputs, cut_inputs, targets, cut_targets)
    input_length = _round_up(max(inputs.longest for inputs, *_ in tokens.values()))
    return TokenizedSplit(
        {
            task: TokenizedTask(inputs, targets, input_length, _round_up(targets.longest), cut_inputs, cut_targets)
            for task, (inputs, cut_inputs, targets, cut_targets) in tokens.items()
        },
        len(examples),
    )


def gather(split: TokenizedSplit, rows: IntArray) -> Batch:
    """The batch of these rows: {task: {inputs [B, S], targets [B, T]}, valid [B]}; a row of −1 is not valid."""
    batch: Batch = {
        task: {
            "inputs": tokens.inputs.padded(rows, tokens.input_length),
            "targets": tokens.targets.padded(rows, tokens.target_length),
        }
        for task, tokens in split.tasks.items()
    }
    return batch | {"valid": rows >= 0}


@functools.lru_cache(maxsize=2)  # neighbouring steps ask for the same epoch, at its seam for two
def _permutation(size: int, seed: int, epoch: int) -> IntArray:
    return np.random.default_rng([seed, epoch]).permutation(size)


@dataclasses.dataclass(frozen=True)
class TrainOrder:
    """Which rows make up each training batch: a function of (seed, epoch) alone.

    The epochs' permutations follow one another without a gap, so a batch may end one epoch and begin the next, and
    every example is seen exactly once an epoch. Asking for step 10⁶ costs what step 10 does: one permutation.
    """

    size: int
    batch_size: int
    seed: int

    def permutation(self, epoch: int) -> IntArray:
        """Order of the examples in an epoch."""
        return _permutation(self.size, self.seed, epoch)

    def rows(self, step: int) -> IntArray:
        """The batch_size rows of a step, counted from 0."""
        position, rows = step * self.batch_size, []
        remaining = self.batch_size
        while remaining:
            epoch, offset = divmod(position, self.size)
            part = self.permutation(epoch)[offset : offset + remaining]
            rows.append(part)
            position, remaining = position + len(part), remaining - len(part)
        return np.concatenate(rows)


def host_share(rows: IntArray, process: int, processes: int) -> IntArray:
    """The contiguous rows of a global batch that one process feeds. Raises UserError for an uneven split."""
    if len(rows) % processes:
        raise UserError(f"batch of {len(rows)} does not divide over {processes} processes: change config.batch_size")
    share = len(rows) // processes
    return rows[process * share : (process + 1) * share]


def eval_rows(size: int, batch_size: int) -> list[IntArray]:
    """Every row once, in order, in batches of batch_size; the last is filled up with −1."""
    padded = np.full(-(-size // batch_size) * batch_size, -1, np.int64)
    padded[:size] = np.arange(size)
    return list(padded.reshape(-1, batch_size))

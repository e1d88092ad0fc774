"""Packed batches: several examples and both tasks in one row, rows of one shape whatever the batch holds. Plain numpy.

A sequence pair, one task's input and target of one example, is the unit that is placed; its input and its target lie in
the same row under the same segment number. The examples of a batch are those of the padded form; what is packed is the
share of one feed, by itself.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from cotmi_jax.data.order import IntArray, Picks, TrainOrder
from cotmi_jax.data.tokens import Batch, TokenizedSplit, gather, offsets_of, round_up
from cotmi_jax.errors import UserError
from cotmi_jax.parallel.process_rows import ALL_ROWS, ProcessRows

PADDING = (0.10, 0.20)  # of input and target tokens, that rows should not exceed
_TRIALS = 3072  # examples on which a shape is tried before it is taken
_RESERVE = 1.03  # by which their sequences are then longer: batches to come are harder than those that were tried
_SPARE = (1.02, 1.04, 1.06, 1.08, 1.12, 1.18, 1.25, 1.4, 1.7, 2.0, 3.0)  # tokens of rows over those of a batch
_EPOCHS = 12  # whose beginnings are tried: rationales take turns over them
_ATTEMPTS = 100  # at placing a batch, from different beginnings
_SWAPS = 500  # of sequence pairs between rows, in one attempt


@dataclasses.dataclass(frozen=True)
class PackShape:
    """Shape of packed batches over all feeds: rows R, lengths S and T, at most N sequence pairs a row."""

    rows: int
    input_length: int
    target_length: int
    segments: int


class _Pairs(NamedTuple):
    """Lengths of the sequence pairs of a batch's share, task by task: [tasks · B]."""

    inputs: IntArray
    targets: IntArray

    def sizes(self, shape: PackShape) -> np.ndarray:
        """Share of a row that each takes of its input tokens, target tokens and segments, [pairs, 3]."""
        each = np.full(len(self.inputs), 1.0 / shape.segments)
        return np.stack([self.inputs / shape.input_length, self.targets / shape.target_length, each], axis=1)


def share_picks(split: TokenizedSplit, picks: Picks, process_rows: ProcessRows) -> IntArray:
    """Which of a batch's examples a feed packs: as many as any other, with about as many tokens."""
    process_rows.size(len(picks.rows))  # or they do not divide
    return np.flatnonzero(_owners(split, picks, process_rows.groups) == process_rows.group)


def _owners(split: TokenizedSplit, picks: Picks, groups: int) -> IntArray:
    """Which of the feeds packs each of a batch's examples, [B]. UserError where they do not divide."""
    share = ProcessRows(0, groups).size(len(picks.rows))
    if groups == 1:
        return np.zeros(share, np.int64)
    loads = split.token_counts(picks)
    loads = loads / loads.mean(axis=0)
    total, room = np.zeros((groups, 2)), np.full(groups, share)
    owner = np.empty(len(picks.rows), np.int64)
    for example in np.argsort(-loads.max(axis=1), kind="stable"):
        owner[example] = np.where(room > 0, (total + loads[example]).max(axis=1), np.inf).argmin()
        total[owner[example]] += loads[example]
        room[owner[example]] -= 1
    return owner


def _pairs(split: TokenizedSplit, picks: Picks) -> _Pairs:
    tasks = split.tasks.items()
    return _Pairs(
        np.concatenate([tokens.inputs.lengths[picks.rows] for _, tokens in tasks]),
        np.concatenate([tokens.targets.lengths[split.target_rows(task, *picks)] for task, tokens in tasks]),
    )


def _place(size_PxK: np.ndarray, rows: int, attempt: int) -> IntArray | None:
    """The row of each of P pairs, such that no row holds more than 1 of any of K things; None where none is found.

    Large pairs first, each to the row that is then least full; after that pairs leave overfull rows, alone or in
    exchange, while it helps. Attempts beyond the first begin with another order, and where nothing helps any more they
    exchange two pairs at random and go on.
    """
    draw = np.random.default_rng(attempt)
    first = size_PxK.max(axis=1) * (draw.uniform(0.8, 1.0, len(size_PxK)) if attempt else 1.0)
    row_P, load_RxK = np.empty(len(size_PxK), np.int64), np.zeros((rows, size_PxK.shape[1]))
    for pair in np.argsort(-first, kind="stable"):
        after = load_RxK + size_PxK[pair]
        row_P[pair] = row = int((after.max(axis=1) + 1e-3 * after.sum(axis=1)).argmin())
        load_RxK[row] = after[row]
    for _ in range(_SWAPS):
        row = int(load_RxK.max(axis=1).argmax())
        if load_RxK[row].max() <= 1.0 + 1e-9:
            return row_P
        if not _relieve(size_PxK, row_P, load_RxK, row):
            if not attempt:
                return None
            ours, theirs = draw.choice(np.flatnonzero(row_P == row)), draw.integers(len(row_P))
            row_P[[ours, theirs]] = row_P[[theirs, ours]]
            load_RxK[:] = 0.0
            np.add.at(load_RxK, row_P, size_PxK)
    return None


def _strain(load: np.ndarray) -> np.ndarray:
    """What the search lowers: how far rows are overfull and, a little, how unequal they are."""
    return 10.0 * np.maximum(load - 1.0, 0.0).sum(axis=-1) + 0.05 * (load * load).sum(axis=-1)


def _relieve(size_PxK: np.ndarray, row_P: IntArray, load_RxK: np.ndarray, row: int) -> bool:
    """The best move or exchange of one pair of an overfull row, made in place; False where none helps."""
    ours, theirs = np.flatnonzero(row_P == row), np.flatnonzero(row_P != row)
    before_R = _strain(load_RxK)
    # The last column of candidates is no pair at all, once for each row: a move.
    others = np.concatenate([row_P[theirs], np.arange(len(load_RxK))])
    gain = np.concatenate([size_PxK[theirs], np.zeros_like(load_RxK)])[None] - size_PxK[ours][:, None]
    change = _strain(load_RxK[row] + gain) - before_R[row] + _strain(load_RxK[others][None] - gain) - before_R[others]
    change[:, others == row] = np.inf
    mine, other = np.unravel_index(change.argmin(), change.shape)
    if change[mine, other] >= -1e-12:
        return False
    load_RxK[row] += gain[mine, other]
    load_RxK[others[other]] -= gain[mine, other]
    row_P[ours[mine]] = others[other]
    if other < len(theirs):
        row_P[theirs[other]] = row
    return True


def make_shape(split: TokenizedSplit, order: TrainOrder, *, multiple: int, groups: int = 1) -> PackShape:
    """The cheapest shape whose rows hold the batches of a balanced order; `multiple` divides the number of rows.

    Shapes with at most PADDING come first, where there are such. Cost counts padded tokens, and attention's part that
    grows with their square. Shapes are tried on the first batches of the passes in which rationales take turns.

    Raises:
      UserError: no shape up to three times the tokens of a batch holds them.
    """
    pairs, tokens = order.batch_size * len(split.tasks), order.batch_size * order.mean
    longest = split.input_length, max(split.target_lengths.values())
    shapes = set()
    for rows in range(multiple, max(pairs, multiple) + 1, multiple):
        for spare in _SPARE:
            inputs, targets = (
                max(most, round_up(int(cap * spare / rows))) for cap, most in zip(order.cap, longest, strict=True)
            )
            shapes.add(PackShape(rows, inputs, targets, segments=int(1.3 * pairs / rows) + 2))

    def key(shape: PackShape) -> tuple[bool, float, int]:
        padding = 1.0 - tokens / (shape.rows * np.array([shape.input_length, shape.target_length]))
        return bool((padding > PADDING).any()), _cost(shape), shape.rows

    trials = _trials(split, order, groups)
    for shape in sorted(shapes, key=key):
        if all(_holds(pairs_of_share, shape, shape.rows // groups) for pairs_of_share in trials):
            return shape
    raise UserError(
        f"no packed rows hold every batch of {order.batch_size} examples of {groups} hosts, of which the "
        f"longest has {longest[0]} input tokens: set config.data.packing to False"
    )


def _trials(split: TokenizedSplit, order: TrainOrder, groups: int) -> list[_Pairs]:
    """What feeds have to place in some batches from the beginning of each of the first epochs."""
    epochs = min(_EPOCHS, math.lcm(*np.unique(split.rationale_counts).tolist()))
    each = max(8, _TRIALS // order.batch_size) // epochs + 1
    starts = [epoch * order.size // order.batch_size for epoch in range(epochs)]
    trials = []
    for step in sorted({start + number for start in starts for number in range(each)}):
        picks = order.picks(step)
        owners = _owners(split, picks, groups)
        trials += [_pairs(split, picks.take(np.flatnonzero(owners == number))) for number in range(groups)]
    return trials


def _holds(pairs: _Pairs, shape: PackShape, rows: int) -> bool:
    """Whether pairs find their places with some reserve, and at the first attempt of those that `pack` makes."""
    sizes = pairs.sizes(shape)
    sizes[:, :2] = np.minimum(sizes[:, :2] * _RESERVE, 1.0)
    return _place(sizes, rows, attempt=0) is not None


def _cost(shape: PackShape) -> float:
    """Of a step, in tokens: a decoder layer does twice an encoder's work, and the vocabulary's logits come to it."""
    inputs, targets = shape.input_length, shape.target_length
    return shape.rows * (inputs * (1 + inputs / 1500) + targets * (2.4 + (inputs + targets) / 1500))


def pack(split: TokenizedSplit, picks: Picks, shape: PackShape, process_rows: ProcessRows = ALL_ROWS) -> Batch:
    """A feed's share of the packed batch of these examples.

    rows: inputs and input_segments [R, S], targets and target_segments [R, T], where segments are numbered from 1 in
      every row and 0 is padding; task and weight [R, N]: which task a segment is of (−1: none) and its weight in the
      loss.
    examples: valid and weight [B] as in the padded form; slots {task: [B]}: where its sequence pair lies, row · N +
      segment − 1, rows counted over the whole batch.

    Raises:
      UserError: the rows do not hold the batch.
    """
    picks = picks.take(share_picks(split, picks, process_rows))
    rows, pairs = process_rows.size(shape.rows), _pairs(split, picks)
    row_P = _search(pairs, shape, rows)
    segment_P = _segments(row_P)
    slot_P = row_P * shape.segments + segment_P - 1
    slot_by_task = dict(zip(split.tasks, slot_P.reshape(len(split.tasks), -1), strict=True))
    weight_B = split.weights[split.rationale_rows(*picks)]
    task, weight = np.full(rows * shape.segments, -1, np.int32), np.zeros(rows * shape.segments, np.float32)
    flat: dict[str, list[IntArray]] = {"input": [], "target": []}
    for index, (name, tokens) in enumerate(split.tasks.items()):
        task[slot_by_task[name]] = index
        weight[slot_by_task[name]] = weight_B if tokens.per_rationale else 1.0
        flat["input"].append(tokens.inputs.concatenated(picks.rows))
        flat["target"].append(tokens.targets.concatenated(split.target_rows(name, *picks)))
    by_row = {"task": task.reshape(rows, -1), "weight": weight.reshape(rows, -1)}
    for kind, lengths, length in (
        ("input", pairs.inputs, shape.input_length),
        ("target", pairs.targets, shape.target_length),
    ):
        laid = _lay(np.concatenate(flat[kind]), lengths, row_P, segment_P, (rows, length))
        by_row[f"{kind}s"], by_row[f"{kind}_segments"] = laid
    # Where those rows lie in the whole batch.
    shift_R = (process_rows.indices(shape.rows) - np.arange(rows)) * shape.segments
    slots = {
        name: (slot_B + shift_R[slot_B // shape.segments]).astype(np.int32) for name, slot_B in slot_by_task.items()
    }
    return {
        "rows": by_row,
        "examples": {"valid": np.ones(len(picks.rows), bool), "weight": weight_B, "slots": slots},
    }


def _search(pairs: _Pairs, shape: PackShape, rows: int) -> IntArray:
    """The row of each pair. Raises UserError where none is found."""
    for attempt in range(_ATTEMPTS):
        row_P = _place(pairs.sizes(shape), rows, attempt)
        if row_P is not None:
            return row_P
    raise UserError(
        f"a batch of {pairs.inputs.sum()} input and {pairs.targets.sum()} target tokens does not fit into {rows} rows "
        f"of {shape.input_length} and {shape.target_length}: set config.data.packing to False, in another --workdir"
    )


def _segments(row_P: IntArray) -> IntArray:
    """Number of each pair in its row, from 1, in the order given."""
    order, count_R = np.argsort(row_P, kind="stable"), np.bincount(row_P)
    segment_P = np.empty_like(row_P)
    segment_P[order] = np.arange(len(order)) - np.repeat(offsets_of(count_R)[:-1], count_R) + 1
    return segment_P


def _lay(
    flat: IntArray, length_P: IntArray, row_P: IntArray, segment_P: IntArray, shape: tuple[int, int]
) -> tuple[IntArray, IntArray]:
    """Tokens of pairs, given one after the other, and their segments, both int32 of `shape`, from the left in rows."""
    order = np.lexsort((segment_P, row_P))
    filled_R = np.bincount(row_P, weights=length_P, minlength=shape[0]).astype(np.int64)
    start_P = np.empty_like(length_P)  # in the row: what the pairs before take, less what lies in the rows before
    start_P[order] = offsets_of(length_P[order])[:-1]
    start_P -= offsets_of(filled_R)[row_P]
    place = np.repeat(row_P * shape[1] + start_P - offsets_of(length_P)[:-1], length_P) + np.arange(len(flat))
    tokens, segments = np.zeros(shape[0] * shape[1], np.int32), np.zeros(shape[0] * shape[1], np.int32)
    tokens[place], segments[place] = flat, np.repeat(segment_P, length_P)
    return tokens.reshape(shape), segments.reshape(shape)


def make_batch(
    split: TokenizedSplit,
    order: TrainOrder,
    step: int,
    shape: PackShape | None,
    process_rows: ProcessRows = ALL_ROWS,
) -> Batch:
    """A feed's share of the batch of a step: packed into rows of a shape or, without one, padded."""
    picks = order.picks(step)
    if shape is not None:
        return pack(split, picks, shape, process_rows)
    return gather(split, *picks.take(process_rows.indices(len(picks.rows))))

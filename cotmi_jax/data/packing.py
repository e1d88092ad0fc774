"""Packed batches: a row holds several examples and both tasks, and all batches have the same shape. Plain numpy.

The unit is a sequence pair: one task's input and target of one example, which are placed in the same row with the same
segment number. The targets of an example's counterfactuals are placed in the row of the input that they share, in
columns of their own. A batch has the same examples as in the padded form; the rows of each group of processes
(ProcessRows) are packed separately.
"""

import dataclasses
import itertools
import math
from typing import NamedTuple

import numpy as np

from cotmi_jax.data.order import IntArray, Picks, TrainOrder
from cotmi_jax.data.tokens import Batch, TokenizedSplit, gather, offsets_of, round_up
from cotmi_jax.errors import UserError
from cotmi_jax.parallel.process_rows import ALL_ROWS, ProcessRows

PADDING = (0.10, 0.20)  # preferred maximum fraction of padding among input and target tokens
# Tokens of a row at which attention, quadratic in them, costs as much as all else: by processor time on a CPU, and by
# bytes moved on other platforms, which bound the step of an accelerator.
_EQUAL_COST = {"cpu": 1500.0}
_EQUAL_COST_BY_BYTES = 350.0
_TILE = {"tpu": 128}  # to a multiple of which the last axis of an array is padded in memory
_TRIALS = 3072  # number of examples on which a shape is tried before it is chosen
_RESERVE = 1.03  # factor on the lengths in trials, since later batches can be harder to pack
_CAPACITIES = (1.02, 1.04, 1.06, 1.08, 1.12, 1.18, 1.25, 1.4, 1.7, 2.0, 3.0)  # tokens of all rows per token of a batch
_MORE = (1.0, 1.2, 1.5)  # times as much for counterfactuals: a third limit needs longer rows, or room in one column
_EPOCHS = 12  # number of epochs whose first batches are tried, since they use different rationales
_ATTEMPTS = 100  # at placing a batch, from different initial placements
_SWAPS = 500  # moves or exchanges of sequence pairs in one attempt


@dataclasses.dataclass(frozen=True)
class PackShape:
    """Shape of packed batches over all processes: R rows, lengths S and T, at most N sequence pairs a row.

    counterfactual_length: columns of the targets of counterfactuals. increment: rows that are added, as often as
    necessary, for a batch that R rows do not hold; 0: such a batch is an error.
    """

    rows: int
    input_length: int
    target_length: int
    segments: int
    counterfactual_length: int = 0
    increment: int = dataclasses.field(default=0, compare=False)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of a row, by the columns of token_counts."""
        lengths = self.input_length, self.target_length, self.counterfactual_length
        return lengths if self.counterfactual_length else lengths[:2]


class _Pairs(NamedTuple):
    """Lengths of the sequence pairs of the examples of a group, task by task: [tasks · B].

    counterfactuals: [tasks · B, M − 1], of their targets.
    """

    inputs: IntArray
    targets: IntArray
    counterfactuals: IntArray | None

    @property
    def tokens(self) -> np.ndarray:
        """Tokens of each pair, [pairs, C], by the columns of token_counts."""
        further = [] if self.counterfactuals is None else [self.counterfactuals.sum(axis=1)]
        return np.stack([self.inputs, self.targets, *further], axis=1)

    def sizes(self, shape: PackShape) -> np.ndarray:
        """Fractions of a row's tokens, by column, and of its segments that each pair takes: [pairs, C + 1]."""
        each = np.full((len(self.inputs), 1), 1.0 / shape.segments)
        return np.concatenate([self.tokens / np.array(shape.lengths), each], axis=1)


def group_picks(split: TokenizedSplit, picks: Picks, process_rows: ProcessRows) -> IntArray:
    """Indices of the examples of a batch that a group packs; groups have equal numbers, and about equal tokens."""
    process_rows.size(len(picks.rows))  # raises UserError if they do not divide
    return np.flatnonzero(_group_of_each(split, picks, process_rows.groups) == process_rows.group)


def _group_of_each(split: TokenizedSplit, picks: Picks, groups: int) -> IntArray:
    """The group that packs each of a batch's examples, [B]. UserError if they do not divide."""
    size = ProcessRows(0, groups).size(len(picks.rows))
    if groups == 1:
        return np.zeros(size, np.int64)
    count_BxC = split.token_counts(picks)
    load_BxC = count_BxC / np.maximum(count_BxC.mean(axis=0), 1.0)  # a batch can lack counterfactuals
    total_GxC, room_G = np.zeros((groups, count_BxC.shape[1])), np.full(groups, size)
    group_B = np.empty(len(picks.rows), np.int64)
    for example in np.argsort(-load_BxC.max(axis=1), kind="stable"):
        group = np.where(room_G > 0, (total_GxC + load_BxC[example]).max(axis=1), np.inf).argmin()
        group_B[example] = group
        total_GxC[group] += load_BxC[example]
        room_G[group] -= 1
    return group_B


def _pairs(split: TokenizedSplit, picks: Picks) -> _Pairs:
    tasks, further = split.tasks.items(), split.counterfactuals
    return _Pairs(
        np.concatenate([tokens.inputs.lengths[picks.rows] for _, tokens in tasks]),
        np.concatenate([tokens.targets.lengths[split.target_rows(task, *picks)] for task, tokens in tasks]),
        None
        if further is None
        else np.concatenate([further.lengths(task, split.rationale_rows(*picks)) for task, _ in tasks]),
    )


def _place(size_PxK: np.ndarray, rows: int, attempt: int) -> IntArray | None:
    """The row of each of P pairs, such that each of K sizes adds up to at most 1 in every row; None if none is found.

    Greedy placement, largest pairs first, each into the row that is then least full; then local search: pairs leave
    overfull rows, alone or in exchange for another, while that lowers the penalty. Attempts after the first begin with
    another order, and exchange two random pairs when the search is stuck.
    """
    draw = np.random.default_rng(attempt)
    priority_P = size_PxK.max(axis=1) * (draw.uniform(0.8, 1.0, len(size_PxK)) if attempt else 1.0)
    row_P, load_RxK = np.empty(len(size_PxK), np.int64), np.zeros((rows, size_PxK.shape[1]))
    for pair in np.argsort(-priority_P, kind="stable"):
        after = load_RxK + size_PxK[pair]
        row_P[pair] = row = int((after.max(axis=1) + 1e-3 * after.sum(axis=1)).argmin())
        load_RxK[row] = after[row]
    for _ in range(_SWAPS):
        row = int(load_RxK.max(axis=1).argmax())
        if load_RxK[row].max() <= 1.0 + 1e-9:
            return row_P
        if not _improve(size_PxK, row_P, load_RxK, row):
            if not attempt:
                return None
            ours, theirs = draw.choice(np.flatnonzero(row_P == row)), draw.integers(len(row_P))
            row_P[[ours, theirs]] = row_P[[theirs, ours]]
            load_RxK[:] = 0.0
            np.add.at(load_RxK, row_P, size_PxK)
    return None


def _penalty(load: np.ndarray) -> np.ndarray:
    """What the search minimizes: by how much rows are overfull and, with a small weight, their sum of squares."""
    return 10.0 * np.maximum(load - 1.0, 0.0).sum(axis=-1) + 0.05 * (load * load).sum(axis=-1)


def _improve(size_PxK: np.ndarray, row_P: IntArray, load_RxK: np.ndarray, row: int) -> bool:
    """Makes the best move or exchange of one pair of an overfull row in place; returns False if none helps."""
    ours, theirs = np.flatnonzero(row_P == row), np.flatnonzero(row_P != row)
    before_R = _penalty(load_RxK)
    # The last candidates, one for each row, are no pair: a move instead of an exchange.
    others = np.concatenate([row_P[theirs], np.arange(len(load_RxK))])
    gain = np.concatenate([size_PxK[theirs], np.zeros_like(load_RxK)])[None] - size_PxK[ours][:, None]
    change = _penalty(load_RxK[row] + gain) - before_R[row] + _penalty(load_RxK[others][None] - gain) - before_R[others]
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


def make_shape(
    split: TokenizedSplit, order: TrainOrder, *, multiple: int, groups: int = 1, platform: str = "cpu"
) -> PackShape:
    """The cheapest shape whose rows hold the batches of a balanced order; `multiple` divides the number of rows.

    Shapes with at most PADDING are preferred. The cost counts padded tokens and attention, which is quadratic in the
    lengths and takes a larger part of the step on an accelerator: `platform` is that of the devices, cpu, gpu or tpu.
    Shapes are tried on the first batches of several epochs, which use different rationales.

    Raises:
      UserError: no shape up to three times the tokens of a batch holds them.
    """
    pairs, tokens = order.batch_size * len(split.tasks), order.batch_size * order.mean
    longest = [split.input_length, max(split.target_lengths.values())]
    if split.counterfactuals is not None:
        longest.append(split.counterfactuals.longest)
    shapes = set()
    for rows in range(multiple, max(pairs, multiple) + 1, multiple):
        for capacity, more in itertools.product(_CAPACITIES, _MORE if split.counterfactuals is not None else (1.0,)):
            inputs, targets, *further = (
                max(most, round_up(int(cap * factor / rows)))
                for cap, most, factor in zip(order.cap, longest, (capacity, capacity, capacity * more), strict=False)
            )
            shapes.add(PackShape(rows, inputs, targets, int(1.3 * pairs / rows) + 2, *further))

    def key(shape: PackShape) -> tuple[bool, float, int]:
        padding = 1.0 - tokens / (shape.rows * np.array(shape.lengths))
        return bool((padding[:2] > PADDING).any()), _cost(shape, platform), shape.rows

    trials = _trials(split, order, groups)
    for shape in sorted(shapes, key=key):
        if all(_holds(pairs_of_group, shape, shape.rows // groups) for pairs_of_group in trials):
            # Of several hosts none knows whether the rows of another one hold its examples.
            return dataclasses.replace(shape, increment=multiple if groups == 1 else 0)
    raise UserError(
        f"no packed rows hold every batch of {order.batch_size} examples on {groups} hosts; the longest "
        f"example has {longest[0]} input tokens: set config.data.packing to False"
    )


def _trials(split: TokenizedSplit, order: TrainOrder, groups: int) -> list[_Pairs]:
    """The pairs of every group in some batches at the beginning of each of the first epochs."""
    epochs = min(_EPOCHS, math.lcm(*np.unique(split.rationale_counts).tolist()))
    batches = max(8, _TRIALS // order.batch_size) // epochs + 1
    starts = [epoch * order.size // order.batch_size for epoch in range(epochs)]
    trials = []
    for step in sorted({start + number for start in starts for number in range(batches)}):
        picks = order.picks(step)
        group_B = _group_of_each(split, picks, groups)
        trials += [_pairs(split, picks.take(np.flatnonzero(group_B == number))) for number in range(groups)]
    return trials


def _holds(pairs: _Pairs, shape: PackShape, rows: int) -> bool:
    """Whether the pairs can be placed with some reserve, at the first of the attempts that `pack` makes."""
    sizes = pairs.sizes(shape)
    sizes[:, :-1] = np.minimum(sizes[:, :-1] * _RESERVE, 1.0)
    return _place(sizes, rows, attempt=0) is not None


def _cost(shape: PackShape, platform: str) -> float:
    """Cost of a step in encoder tokens: a target token costs more, for cross attention and the vocabulary's logits.

    Those of counterfactuals have no logits.
    """
    inputs, targets, equal = shape.input_length, shape.target_length, _EQUAL_COST.get(platform, _EQUAL_COST_BY_BYTES)
    decoded = targets + shape.counterfactual_length
    # Positions that a query's scores are stored for.
    keys, own_keys = (round_up(size, _TILE.get(platform, 1)) for size in (inputs, decoded))
    per_token = inputs * (1 + keys / equal) + targets * 2.4 + shape.counterfactual_length * 1.2
    return shape.rows * (per_token + decoded * (keys + own_keys) / equal)


def pack(split: TokenizedSplit, picks: Picks, shape: PackShape, process_rows: ProcessRows = ALL_ROWS) -> Batch:
    """The rows of a packed batch of these examples that a process supplies: {rows: …, examples: …}.

    rows: inputs and input_segments [R, S], targets and target_segments [R, T], where segments are numbered from 1 in
      every row and 0 is padding; task and weight [R, N]: which task a segment is of (−1: none) and its weight in the
      loss. Where tokens have weights, target_weights [R, T], a further factor. Where rationales state answers, answers
      [R, N, L]: the positions of their tokens in the row, −1 for none.
    examples: valid and weight [B] as in the padded form; slots {task: [B]}: the position of the sequence pair,
      row · N + segment − 1, with rows counted over all processes. Where rationales state answers, answer_length [B],
      the number of their tokens.
    With counterfactuals, M − 1 of them at most for each example, also:
    rows: counterfactuals and counterfactual_segments [R, T']: the targets of the m-th, from 1, of a sequence pair have
      the segment m · N + its number.
    examples: counterfactuals, which there are, bool [B, M − 1].

    A batch that the rows do not hold, which is rare, has more of them: a step of that shape is compiled once more.

    Raises:
      UserError: the rows do not hold the batch, and several hosts pack it.
    """
    whole, picks = picks, picks.take(group_picks(split, picks, process_rows))
    rows, pairs = process_rows.size(shape.rows), _pairs(split, picks)
    row_P = _search(pairs, shape, rows)
    if row_P is None and shape.increment:
        larger = dataclasses.replace(shape, rows=shape.rows + shape.increment)
        return pack(split, whole, larger, process_rows)
    if row_P is None:
        raise UserError(_does_not_fit(pairs, shape, rows))
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
    by_row: dict[str, np.ndarray] = {"task": task.reshape(rows, -1), "weight": weight.reshape(rows, -1)}
    for kind, lengths, length in (
        ("input", pairs.inputs, shape.input_length),
        ("target", pairs.targets, shape.target_length),
    ):
        written = _write_rows(np.concatenate(flat[kind]), lengths, row_P, segment_P, (rows, length))
        by_row[f"{kind}s"], by_row[f"{kind}_segments"] = written
    if any(tokens.weights is not None for tokens in split.tasks.values()):
        weights = np.concatenate([_target_weights(split, name, picks) for name in split.tasks])
        size = rows, shape.target_length
        by_row["target_weights"] = _write_rows(weights, pairs.targets, row_P, segment_P, size)[0]
    examples: dict[str, np.ndarray] = {"valid": np.ones(len(picks.rows), bool), "weight": weight_B}
    if split.answer_starts is not None:
        positions, examples["answer_length"] = split.answer_positions(*picks)
        start_P = _starts(pairs.targets, row_P, segment_P)
        answers = np.full((rows * shape.segments, split.answer_length), -1, np.int32)
        for start_B, (name, slot_B) in zip(np.split(start_P, len(slot_by_task)), slot_by_task.items(), strict=True):
            answers[slot_B] = np.where(positions[name] < 0, -1, positions[name] + start_B[:, None])
        by_row |= {"answers": answers.reshape(rows, shape.segments, -1)}
    if split.counterfactuals is not None:
        more = _pack_counterfactuals(split, picks, pairs, row_P, segment_P, dataclasses.replace(shape, rows=rows))
        by_row["counterfactuals"], by_row["counterfactual_segments"], examples["counterfactuals"] = more
    # From rows of this group to rows of the batch.
    shift_R = (process_rows.indices(shape.rows) - np.arange(rows)) * shape.segments
    slots = {
        name: (slot_B + shift_R[slot_B // shape.segments]).astype(np.int32) for name, slot_B in slot_by_task.items()
    }
    return {"rows": by_row, "examples": examples | {"slots": slots}}


def _target_weights(split: TokenizedSplit, task: str, picks: Picks) -> np.ndarray:
    """The weights of the tokens of a task's targets, concatenated, float32."""
    tokens, rows = split.tasks[task], split.target_rows(task, *picks)
    if tokens.target_weights is None:
        return np.ones(int(tokens.targets.lengths[rows].sum()), np.float32)
    return tokens.target_weights.concatenated(rows)


def _pack_counterfactuals(
    split: TokenizedSplit, picks: Picks, pairs: _Pairs, row_P: IntArray, segment_P: IntArray, shape: PackShape
) -> tuple[IntArray, IntArray, IntArray]:
    """Tokens and segments of the counterfactuals' targets, [R, T'], and which there are, bool [B, M − 1]."""
    further, rationale_B, length_PxM = split.counterfactuals, split.rationale_rows(*picks), pairs.counterfactuals
    assert further is not None and length_PxM is not None
    rows_BxM = further.rows(rationale_B)
    present_BxM = rows_BxM >= 0
    flat = np.concatenate([further.targets[task].concatenated(rows_BxM[present_BxM]) for task in split.tasks])
    segment_PxM = segment_P[:, None] + shape.segments * np.arange(1, further.most + 1)
    row_Q = np.repeat(row_P, further.most)
    size = shape.rows, shape.counterfactual_length
    return *_write_rows(flat, length_PxM.reshape(-1), row_Q, segment_PxM.reshape(-1), size), present_BxM


def _search(pairs: _Pairs, shape: PackShape, rows: int) -> IntArray | None:
    """The row of each pair; None if no placement is found."""
    for attempt in range(_ATTEMPTS):
        row_P = _place(pairs.sizes(shape), rows, attempt)
        if row_P is not None:
            return row_P
    return None


def _does_not_fit(pairs: _Pairs, shape: PackShape, rows: int) -> str:
    kinds = "input", "target", "counterfactual"
    tokens = " and ".join(f"{count} {kind}" for count, kind in zip(pairs.tokens.sum(axis=0), kinds, strict=False))
    return (
        f"a batch of {tokens} tokens does not fit into {rows} rows of {' and '.join(map(str, shape.lengths))}: set "
        "config.data.packing to False, in another --workdir"
    )


def _segments(row_P: IntArray) -> IntArray:
    """Segment number of each pair in its row, from 1, in the order of the pairs."""
    order, count_R = np.argsort(row_P, kind="stable"), np.bincount(row_P)
    segment_P = np.empty_like(row_P)
    segment_P[order] = np.arange(len(order)) - np.repeat(offsets_of(count_R)[:-1], count_R) + 1
    return segment_P


def _starts(length_P: IntArray, row_P: IntArray, segment_P: IntArray) -> IntArray:
    """Position of each pair in its row: the tokens of all earlier pairs, minus those in earlier rows."""
    order = np.lexsort((segment_P, row_P))
    filled_R = np.bincount(row_P, weights=length_P).astype(np.int64)
    start_P = np.empty_like(length_P)
    start_P[order] = offsets_of(length_P[order])[:-1]
    return start_P - offsets_of(filled_R)[row_P]


def _write_rows(
    flat: np.ndarray, length_P: IntArray, row_P: IntArray, segment_P: IntArray, shape: tuple[int, int]
) -> tuple[np.ndarray, IntArray]:
    """Writes the concatenated tokens of all pairs, or their weights, into rows of `shape`, from the left.

    Returns them, in the type of `flat`, and their segments, int32.
    """
    start_P = _starts(length_P, row_P, segment_P)
    place = np.repeat(row_P * shape[1] + start_P - offsets_of(length_P)[:-1], length_P) + np.arange(len(flat))
    tokens, segments = np.zeros(shape[0] * shape[1], flat.dtype), np.zeros(shape[0] * shape[1], np.int32)
    tokens[place], segments[place] = flat, np.repeat(segment_P, length_P)
    return tokens.reshape(shape), segments.reshape(shape)


def make_batch(
    split: TokenizedSplit,
    order: TrainOrder,
    step: int,
    shape: PackShape | None,
    process_rows: ProcessRows = ALL_ROWS,
) -> Batch:
    """The rows of the batch of a step that a process supplies: packed into `shape` or, without one, padded.

    A padded batch has the targets of counterfactuals as counterfactuals {task: [B, M − 1, T]}.
    """
    picks = order.picks(step)
    if shape is not None:
        return pack(split, picks, shape, process_rows)
    picks = picks.take(process_rows.indices(len(picks.rows)))
    batch = gather(split, *picks)
    if split.counterfactuals is not None:
        batch["counterfactuals"] = split.counterfactuals.padded(split.rationale_rows(*picks))
    return batch

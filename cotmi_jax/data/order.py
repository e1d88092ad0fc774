"""Which examples make up each training batch: a pure function of seed and epoch, in plain numpy."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from cotmi_jax.errors import UserError

IntArray = np.ndarray

# How far above the mean a batch's input and target tokens may lie; a batch beyond it exchanges examples.
EXCESS = (0.04, 0.10)


class Picks(NamedTuple):
    """Examples by their row, and the pass over the data in which each is seen, from 0: it chooses among rationales."""

    rows: IntArray
    passes: IntArray

    def take(self, index: IntArray | slice) -> "Picks":
        """Some of them."""
        return Picks(self.rows[index], self.passes[index])

    @classmethod
    def join(cls, parts: "Sequence[Picks]") -> "Picks":
        """One after the other."""
        return cls(np.concatenate([part.rows for part in parts]), np.concatenate([part.passes for part in parts]))


class ComponentQuota(NamedTuple):
    """A part of the train split, rows one after another, and how many of its examples each epoch draws."""

    size: int
    quota: int


class ExampleLengths(Protocol):
    """What knows how long examples are."""

    @property
    def rationale_counts(self) -> IntArray:
        """Number of rationales of every example, which take turns over the passes."""

    def token_counts(self, picks: Picks) -> IntArray:
        """Input and target tokens of each over all tasks, int64 [len(picks), 2]."""


def make_quotas(sizes: Sequence[int], rates: Sequence[float]) -> tuple[ComponentQuota, ...]:
    """Quotas in proportion to rates; as many examples an epoch as there are in all.

    Raises UserError where a part's quota would be less than one example.
    """
    total = sum(sizes)
    # Rounding the running sum keeps the total.
    ends = np.rint(total * np.cumsum(rates) / sum(rates)).astype(int)
    components = tuple(map(ComponentQuota, sizes, np.diff(ends, prepend=0).tolist()))
    for component, rate in zip(components, rates, strict=True):
        if component.quota < 1:
            raise UserError(
                f"rate {rate:g} of {sum(rates):g} gives none of an epoch's {total} examples: raise it, or leave the "
                "component out of config.data.dataset"
            )
    return components


@functools.lru_cache(maxsize=8)
def _permutation(size: int, seed: int, *stream: int) -> IntArray:
    return np.random.default_rng([seed, *stream]).permutation(size)


def _passes(size: int, seed: int, part: int, start: int, stop: int) -> Picks:
    """Positions start…stop−1 of a part's endless stream of permutations of its rows."""
    picks = []
    while start < stop:
        number, offset = divmod(start, size)
        taken = _permutation(size, seed, number, part)[offset : offset + stop - start]
        picks.append(Picks(taken, np.full(len(taken), number)))
        start += len(taken)
    return Picks.join(picks)


@dataclasses.dataclass(frozen=True)
class TrainOrder:
    """The examples of each training batch: a function of seed and epoch, whatever the hosts and devices.

    An epoch holds every example of the train split once; of several components it holds `quota` examples each, mixed,
    and successive epochs use all of a component's rows equally often. A batch may end one epoch and begin the next.
    Asking for step 10⁶ costs what step 10 does: one epoch's permutation.

    With `tokens` batches are balanced: where a random one has more tokens than EXCESS allows, it exchanges a few
    examples for lighter ones with other batches of its epoch, so that packed rows of one shape hold any batch. The
    order then depends on the lengths too, and so on the objective's tasks.
    """

    components: tuple[ComponentQuota, ...]
    batch_size: int
    seed: int
    tokens: ExampleLengths | None = None

    @classmethod
    def of(cls, size: int, batch_size: int, seed: int, tokens: ExampleLengths | None = None) -> "TrainOrder":
        """The order of a single data set of `size` examples."""
        return cls((ComponentQuota(size, size),), batch_size, seed, tokens)

    @property
    def size(self) -> int:
        """Examples an epoch."""
        return sum(component.quota for component in self.components)

    def epoch(self, number: int) -> Picks:
        """The examples of an epoch in order."""
        return _epoch(self, number)

    def picks(self, step: int) -> Picks:
        """The batch_size examples of a step, counted from 0."""
        position, picks, remaining = step * self.batch_size, [], self.batch_size
        while remaining:
            number, offset = divmod(position, self.size)
            part = self.epoch(number).take(slice(offset, offset + remaining))
            picks.append(part)
            position, remaining = position + len(part.rows), remaining - len(part.rows)
        return Picks.join(picks)

    @property
    def mean(self) -> np.ndarray:
        """Input and target tokens of an example, [2]."""
        return _budget(self)[0]

    @property
    def cap(self) -> np.ndarray:
        """Most input and target tokens of a balanced batch, [2]."""
        mean, slack = _budget(self)
        return self.batch_size * (mean + slack)


@functools.lru_cache(maxsize=2)  # neighbouring steps ask for the same epoch, at its seam for two
def _epoch(order: TrainOrder, number: int) -> Picks:
    if len(order.components) == 1:
        (component,) = order.components
        rows = _permutation(component.size, order.seed, number)
        picks = Picks(rows, np.full(component.size, number))
    else:
        parts, offset = [], 0
        for index, component in enumerate(order.components):
            drawn = _passes(component.size, order.seed, index, number * component.quota, (number + 1) * component.quota)
            parts.append(Picks(drawn.rows + offset, drawn.passes))
            offset += component.size
        picks = Picks.join(parts).take(_permutation(order.size, order.seed, number, len(parts)))
    return picks if order.tokens is None else _balance(order, number, picks)


@functools.lru_cache(maxsize=8)
def _budget(order: TrainOrder) -> tuple[np.ndarray, np.ndarray]:
    """Mean tokens of an example, and by how much a batch's mean may exceed it; inputs and targets, [2] each.

    Examples with equally many rationales, which are at the same turn in every pass, count with the turn that is longest
    over all of them. The excess leaves room for the longest example, however small the batch is.
    """
    assert order.tokens is not None
    total, longest, offset = np.zeros(2), np.zeros(2), 0
    for component in order.components:
        rows = np.arange(offset, offset + component.size)
        counts = order.tokens.rationale_counts[rows]
        for count in np.unique(counts):
            group = rows[counts == count]
            turns = [order.tokens.token_counts(Picks(group, np.full_like(group, number))) for number in range(count)]
            total += np.max([loads.sum(axis=0) for loads in turns], axis=0) * component.quota / component.size
            longest = np.maximum(longest, np.max(turns, axis=(0, 1)))
        offset += component.size
    mean = total / order.size
    return mean, np.maximum(np.array(EXCESS) * mean, (longest - mean) / order.batch_size)


def _balance(order: TrainOrder, number: int, picks: Picks) -> Picks:
    """The epoch with some examples of its heaviest batches exchanged for examples of its lightest ones.

    A batch that two epochs share counts as two parts, each with its share of the budget.
    """
    assert order.tokens is not None
    mean, slack = _budget(order)
    cost = order.tokens.token_counts(picks) / (mean + slack)  # of an example that is in the budget: at most 1
    batch = (number * order.size + np.arange(order.size)) // order.batch_size
    starts = np.flatnonzero(np.diff(batch, prepend=-1))
    ends = np.append(starts[1:], order.size)
    excess = np.add.reduceat(cost, starts) - (ends - starts)[:, None]  # [batches, 2], above 0 where it is too heavy
    places = np.arange(order.size)
    for _ in range(4 * len(starts)):
        heavy = int(excess.max(axis=1).argmax())
        if excess[heavy].max() <= 0.0:
            break
        light = int(excess.max(axis=1).argmin())
        ours, theirs = np.arange(starts[heavy], ends[heavy]), np.arange(starts[light], ends[light])
        change = cost[theirs][None, :] - cost[ours][:, None]  # to the heavy batch, [ours, theirs, 2]
        worst = np.maximum(excess[heavy] + change, excess[light] - change).max(axis=2)
        i, j = np.unravel_index(worst.argmin(), worst.shape)
        if worst[i, j] >= excess[heavy].max():
            break  # nothing better: the rows have some room beyond the budget
        for array in (cost, places):
            array[[ours[i], theirs[j]]] = array[[theirs[j], ours[i]]]
        excess[heavy] += change[i, j]
        excess[light] -= change[i, j]
    return picks.take(places)


def eval_rows(size: int, batch_size: int) -> list[IntArray]:
    """Every row once, in order, in batches of batch_size; the last is filled up with −1."""
    padded = np.full(-(-size // batch_size) * batch_size, -1, np.int64)
    padded[:size] = np.arange(size)
    return list(padded.reshape(-1, batch_size))

"""The order of training: the examples of each batch are a pure function of seed and epoch. Plain numpy."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from cotmi_jax.errors import UserError

IntArray = np.ndarray

# By how much a balanced batch's input and target tokens can exceed the mean, as a fraction of it.
EXCESS = (0.04, 0.10)


class Picks(NamedTuple):
    """Rows of examples, and the pass over the data, from 0, in which each is used: it selects the rationale."""

    rows: IntArray
    passes: IntArray

    def take(self, index: IntArray | slice) -> "Picks":
        """Those at `index`."""
        return Picks(self.rows[index], self.passes[index])

    @classmethod
    def join(cls, pieces: "Sequence[Picks]") -> "Picks":
        """Concatenates several."""
        return cls(np.concatenate([each.rows for each in pieces]), np.concatenate([each.passes for each in pieces]))


class ComponentQuota(NamedTuple):
    """A component of the train split: its number of examples, which are contiguous, and how many an epoch draws."""

    size: int
    quota: int


class ExampleLengths(Protocol):
    """Numbers of tokens of examples, as a TokenizedSplit has them."""

    @property
    def rationale_counts(self) -> IntArray:
        """Number of rationales of every example; each pass uses the next one."""

    def token_counts(self, picks: Picks) -> IntArray:
        """Input and target tokens of each example, summed over tasks: int64 [len(picks), 2]."""


def make_quotas(sizes: Sequence[int], rates: Sequence[float]) -> tuple[ComponentQuota, ...]:
    """Quotas in proportion to rates; an epoch has as many examples as all components together.

    Raises UserError if a component's quota is less than one example.
    """
    total = sum(sizes)
    # Rounding the cumulative sum preserves the total.
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


def _passes(size: int, seed: int, component: int, start: int, stop: int) -> Picks:
    """Positions start…stop−1 of a component's infinite sequence of permutations of its rows."""
    picks = []
    while start < stop:
        number, offset = divmod(start, size)
        taken = _permutation(size, seed, number, component)[offset : offset + stop - start]
        picks.append(Picks(taken, np.full(len(taken), number)))
        start += len(taken)
    return Picks.join(picks)


@dataclasses.dataclass(frozen=True)
class TrainOrder:
    """The examples of each training batch: a function of seed and epoch, independent of hosts and devices.

    An epoch holds every example of the train split once; of several components it holds `quota` examples each, mixed,
    and successive epochs use all of a component's rows equally often. A batch may end one epoch and begin the next.
    Asking for step 10⁶ costs what step 10 does: one epoch's permutation.

    With `tokens`, batches are balanced, so that packed rows of one shape hold every batch: a random batch with more
    tokens than EXCESS allows exchanges a few examples for shorter ones of other batches of its epoch. The order then
    depends on the lengths too, and so on the objective's tasks.
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
        """Number of examples of an epoch."""
        return sum(component.quota for component in self.components)

    def epoch(self, number: int) -> Picks:
        """The examples of an epoch in order."""
        return _epoch(self, number)

    def picks(self, step: int) -> Picks:
        """The batch_size examples of a step, counted from 0."""
        position, picks, remaining = step * self.batch_size, [], self.batch_size
        while remaining:
            number, offset = divmod(position, self.size)
            taken = self.epoch(number).take(slice(offset, offset + remaining))
            picks.append(taken)
            position, remaining = position + len(taken.rows), remaining - len(taken.rows)
        return Picks.join(picks)

    @property
    def mean(self) -> np.ndarray:
        """Mean input and target tokens of an example, [2]."""
        return _budget(self)[0]

    @property
    def cap(self) -> np.ndarray:
        """Maximum input and target tokens of a balanced batch, [2]."""
        mean, slack = _budget(self)
        return self.batch_size * (mean + slack)


@functools.lru_cache(maxsize=2)  # consecutive steps need the same epoch; a batch can need two
def _epoch(order: TrainOrder, number: int) -> Picks:
    if len(order.components) == 1:
        (component,) = order.components
        rows = _permutation(component.size, order.seed, number)
        picks = Picks(rows, np.full(component.size, number))
    else:
        drawn, offset = [], 0
        for index, component in enumerate(order.components):
            picks = _passes(component.size, order.seed, index, number * component.quota, (number + 1) * component.quota)
            drawn.append(Picks(picks.rows + offset, picks.passes))
            offset += component.size
        picks = Picks.join(drawn).take(_permutation(order.size, order.seed, number, len(drawn)))
    return picks if order.tokens is None else _balance(order, number, picks)


@functools.lru_cache(maxsize=8)
def _budget(order: TrainOrder) -> tuple[np.ndarray, np.ndarray]:
    """Mean tokens of an example, and by how much a batch's mean can exceed it; inputs and targets, [2] each.

    Examples with the same number of rationales use rationales of the same index in a pass; they are counted with the
    index at which their total length is largest. The excess admits the longest example, however small the batch is.
    """
    assert order.tokens is not None
    total, longest, offset = np.zeros(2), np.zeros(2), 0
    for component in order.components:
        rows = np.arange(offset, offset + component.size)
        counts = order.tokens.rationale_counts[rows]
        for count in np.unique(counts):
            group = rows[counts == count]
            by_index = [order.tokens.token_counts(Picks(group, np.full_like(group, index))) for index in range(count)]
            total += np.max([counted.sum(axis=0) for counted in by_index], axis=0) * component.quota / component.size
            longest = np.maximum(longest, np.max(by_index, axis=(0, 1)))
        offset += component.size
    mean = total / order.size
    return mean, np.maximum(np.array(EXCESS) * mean, (longest - mean) / order.batch_size)


def _balance(order: TrainOrder, number: int, picks: Picks) -> Picks:
    """The epoch with some examples of its longest batches exchanged for examples of its shortest ones.

    The two epochs of a batch that spans both are balanced separately, each with its fraction of the budget. N is the
    number of examples of the epoch, B that of its batches.
    """
    assert order.tokens is not None
    mean, slack = _budget(order)
    cost_Nx2 = order.tokens.token_counts(picks) / (mean + slack)  # as a fraction of the budget of one example
    batch_N = (number * order.size + np.arange(order.size)) // order.batch_size
    start_B = np.flatnonzero(np.diff(batch_N, prepend=-1))
    end_B = np.append(start_B[1:], order.size)
    excess_Bx2 = np.add.reduceat(cost_Nx2, start_B) - (end_B - start_B)[:, None]  # above 0 the batch is too long
    place_N = np.arange(order.size)
    for _ in range(4 * len(start_B)):
        long = int(excess_Bx2.max(axis=1).argmax())
        if excess_Bx2[long].max() <= 0.0:
            break
        short = int(excess_Bx2.max(axis=1).argmin())
        of_long_I, of_short_J = (np.arange(start_B[b], end_B[b]) for b in (long, short))
        change_IxJx2 = cost_Nx2[of_short_J][None, :] - cost_Nx2[of_long_I][:, None]  # of the long batch
        worst_IxJ = np.maximum(excess_Bx2[long] + change_IxJx2, excess_Bx2[short] - change_IxJx2).max(axis=2)
        i, j = np.unravel_index(worst_IxJ.argmin(), worst_IxJ.shape)
        if worst_IxJ[i, j] >= excess_Bx2[long].max():
            break  # no exchange helps; packed rows have some room beyond the budget
        for array in (cost_Nx2, place_N):
            array[[of_long_I[i], of_short_J[j]]] = array[[of_short_J[j], of_long_I[i]]]
        excess_Bx2[long] += change_IxJx2[i, j]
        excess_Bx2[short] -= change_IxJx2[i, j]
    return picks.take(place_N)


def eval_rows(size: int, batch_size: int) -> list[IntArray]:
    """Every row once, in order, in batches of batch_size; the last is padded with −1."""
    padded = np.full(-(-size // batch_size) * batch_size, -1, np.int64)
    padded[:size] = np.arange(size)
    return list(padded.reshape(-1, batch_size))

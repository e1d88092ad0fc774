"""The order of training: the examples of each batch are a pure function of seed and epoch. Plain numpy."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from cotmi_jax.errors import UserError

IntArray = np.ndarray

# By how much a balanced batch's tokens can exceed the mean, as a fraction of it: inputs, targets, and targets of
# counterfactuals.
EXCESS = (0.04, 0.10, 0.10)
MAX_EVAL_SHAPES = 8  # shapes of the batches of an evaluation: a program is compiled for each


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
        """Input and target tokens of each example, summed over tasks: int64 [len(picks), 2].

        A third column counts the targets of counterfactuals, where the objective has any.
        """


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
        """Mean tokens of an example, by the columns of token_counts."""
        return _budget(self)[0]

    @property
    def cap(self) -> np.ndarray:
        """Maximum tokens of a balanced batch, by the columns of token_counts."""
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
    """Mean tokens of an example, and by how much a batch's mean can exceed it; each by the columns of token_counts.

    Examples with the same number of rationales use rationales of the same index in a pass; they are counted with the
    index at which their total length is largest. The excess admits the longest example, however small the batch is.
    """
    assert order.tokens is not None
    total, longest, offset = np.zeros(1), np.zeros(1), 0
    for component in order.components:
        rows = np.arange(offset, offset + component.size)
        counts = order.tokens.rationale_counts[rows]
        for count in np.unique(counts):
            group = rows[counts == count]
            by_index = [order.tokens.token_counts(Picks(group, np.full_like(group, index))) for index in range(count)]
            total = (
                total + np.max([counted.sum(axis=0) for counted in by_index], axis=0) * component.quota / component.size
            )
            longest = np.maximum(longest, np.max(by_index, axis=(0, 1)))
        offset += component.size
    mean = total / order.size
    return mean, np.maximum(np.array(EXCESS[: len(mean)]) * mean, (longest - mean) / order.batch_size)


def _balance(order: TrainOrder, number: int, picks: Picks) -> Picks:
    """The epoch with some examples of its longest batches exchanged for examples of its shortest ones.

    The two epochs of a batch that spans both are balanced separately, each with its fraction of the budget. N is the
    number of examples of the epoch, B that of its batches, C the columns of token_counts.
    """
    assert order.tokens is not None
    mean, slack = _budget(order)
    cost_NxC = order.tokens.token_counts(picks) / (mean + slack)  # as a fraction of the budget of one example
    batch_N = (number * order.size + np.arange(order.size)) // order.batch_size
    start_B = np.flatnonzero(np.diff(batch_N, prepend=-1))
    end_B = np.append(start_B[1:], order.size)
    excess_BxC = np.add.reduceat(cost_NxC, start_B) - (end_B - start_B)[:, None]  # above 0 the batch is too long
    place_N = np.arange(order.size)
    for _ in range(4 * len(start_B)):
        long = int(excess_BxC.max(axis=1).argmax())
        if excess_BxC[long].max() <= 0.0:
            break
        short = int(excess_BxC.max(axis=1).argmin())
        of_long_I, of_short_J = (np.arange(start_B[b], end_B[b]) for b in (long, short))
        change_IxJxC = cost_NxC[of_short_J][None, :] - cost_NxC[of_long_I][:, None]  # of the long batch
        worst_IxJ = np.maximum(excess_BxC[long] + change_IxJxC, excess_BxC[short] - change_IxJxC).max(axis=2)
        i, j = np.unravel_index(worst_IxJ.argmin(), worst_IxJ.shape)
        if worst_IxJ[i, j] >= excess_BxC[long].max():
            break  # no exchange helps; packed rows have some room beyond the budget
        for array in (cost_NxC, place_N):
            array[[of_long_I[i], of_short_J[j]]] = array[[of_short_J[j], of_long_I[i]]]
        excess_BxC[long] += change_IxJxC[i, j]
        excess_BxC[short] -= change_IxJxC[i, j]
    return picks.take(place_N)


class EvalBatch(NamedTuple):
    """Rows of a batch, with −1 for padding, and the length to which each column of lengths is padded."""

    rows: IntArray
    lengths: tuple[int, ...]


def eval_batches(
    lengths_NxC: IntArray,
    batch_size: int,
    *,
    weights_C: Sequence[int],
    min_saving: int,
    multiple: int,
    sort: bool = True,
) -> list[EvalBatch]:
    """Every row once, in batches of rows of similar lengths, the longest first; −1 fills the one that is not full.

    A column holds the lengths of the inputs or of the targets of a task. A row of a batch costs the sum over columns of
    weight · padded length, where batches are padded to the longest row of their set, rounded up to `multiple`. There is
    one set at first. As long as this saves at least `min_saving`, the cost of compiling for another shape, and there
    are fewer than MAX_EVAL_SHAPES sets, one set is divided into its longer and its shorter rows by one column: where
    that saves most, and after a multiple of batch_size, so that the number of batches stays. A pure function of its
    arguments: all processes find the same batches. sort False: one set, in order.
    """
    weights = np.asarray(weights_C)
    sets = [np.arange(len(lengths_NxC))]
    while sort and len(sets) < MAX_EVAL_SHAPES:
        divisions = [_divide(lengths_NxC[rows], batch_size, weights, multiple) for rows in sets]
        best = max(range(len(sets)), key=lambda index: divisions[index].saving)
        if divisions[best].saving < max(min_saving, 1):
            break
        rows = sets.pop(best)[divisions[best].order]
        sets += [rows[: divisions[best].longer], rows[divisions[best].longer :]]
    shapes = [_round_up(lengths_NxC[rows].max(axis=0, initial=0), multiple) for rows in sets]
    return [
        EvalBatch(batch, tuple(shapes[index].tolist()))
        for index in sorted(range(len(sets)), key=lambda index: -int(shapes[index] @ weights))
        for batch in _in_batches(np.sort(sets[index]), batch_size)
    ]


class _Division(NamedTuple):
    """A set of rows in order, of which the first `longer` are divided from the others, and the tokens that saves."""

    saving: int
    order: IntArray
    longer: int


def _divide(lengths_NxC: IntArray, batch_size: int, weights_C: IntArray, multiple: int) -> _Division:
    """The division by one column that saves most; saving 0 if there is none."""
    size = len(lengths_NxC)
    best = _Division(0, np.arange(size), 0)
    longer = np.arange(batch_size, size, batch_size)
    if not len(longer):
        return best
    batches = -(-size // batch_size)
    undivided = batches * int(_round_up(lengths_NxC.max(axis=0), multiple) @ weights_C)
    for column in range(lengths_NxC.shape[1]):
        order = np.argsort(-lengths_NxC[:, column], kind="stable")
        sorted_NxC = lengths_NxC[order]
        long_N = _round_up(np.maximum.accumulate(sorted_NxC), multiple) @ weights_C  # of the rows up to each
        short_N = _round_up(np.maximum.accumulate(sorted_NxC[::-1])[::-1], multiple) @ weights_C  # from each on
        number = longer // batch_size
        saving = batch_size * (undivided - number * long_N[longer - 1] - (batches - number) * short_N[longer])
        place = int(saving.argmax())
        if saving[place] > best.saving:
            best = _Division(int(saving[place]), order, int(longer[place]))
    return best


def _round_up(length: IntArray, multiple: int) -> IntArray:
    return -(-length // multiple) * multiple


def _in_batches(rows: IntArray, batch_size: int) -> list[IntArray]:
    """The rows in order, in batches of batch_size; the last is filled with −1."""
    padded = np.full(-(-len(rows) // batch_size) * batch_size, -1, np.int64)
    padded[: len(rows)] = rows
    return list(padded.reshape(-1, batch_size))

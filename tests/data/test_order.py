"""The examples of each batch: every example once an epoch, mixtures at their rates, batches of balanced length."""

import dataclasses

import numpy as np
import pytest
from splits import random_split, sequence

from cotmi_jax.data.order import EXCESS, ComponentQuota, Picks, TrainOrder, make_quotas
from cotmi_jax.data.packing import make_shape, pack
from cotmi_jax.data.tokens import Ragged, TokenizedSplit
from cotmi_jax.errors import UserError


@pytest.mark.parametrize(("size", "batch_size"), [(10, 4), (8, 8), (9, 3), (3, 8), (1, 2)])
def test_every_epoch_holds_every_example_once_without_a_gap(size: int, batch_size: int) -> None:
    order = TrainOrder.of(size, batch_size, seed=5)
    steps = 4 * size
    stream = np.concatenate([order.picks(step).rows for step in range(steps)])
    assert stream.shape == (steps * batch_size,)
    epochs = stream.reshape(-1, size)
    np.testing.assert_array_equal(np.sort(epochs), np.broadcast_to(np.arange(size), epochs.shape))
    for epoch, rows in enumerate(epochs):
        np.testing.assert_array_equal(rows, order.epoch(epoch).rows)
    if size > 3:
        assert not np.array_equal(epochs[0], epochs[1])


def test_a_step_does_not_depend_on_earlier_calls() -> None:
    straight = [TrainOrder.of(10, 4, seed=5).picks(step).rows for step in range(9)]
    for step in (8, 2, 7, 0, 3):
        np.testing.assert_array_equal(TrainOrder.of(10, 4, seed=5).picks(step).rows, straight[step])


def test_the_stream_depends_on_the_seed_and_not_on_the_batch_size() -> None:
    def stream(batch_size: int, seed: int) -> list[int]:
        order = TrainOrder.of(12, batch_size, seed)
        return [row for step in range(24 // batch_size) for row in order.picks(step).rows.tolist()]

    assert stream(4, 1) == stream(6, 1) == stream(8, 1)
    assert stream(4, 1) != stream(4, 2)
    # Consecutive seeds must not share epochs, as they would if the generator's seed were seed + epoch.
    assert stream(4, 1)[12:] != stream(4, 2)[:12]


def test_a_late_step_costs_no_more_than_the_first() -> None:
    rows = TrainOrder.of(10, 4, seed=5).picks(10**12).rows
    assert rows.shape == (4,) and set(rows.tolist()) <= set(range(10))


# Mixtures.


def test_rates_divide_an_epoch_and_each_component_uses_its_rows_equally_often() -> None:
    components = make_quotas([30, 10], [1.0, 1.0])
    assert components == (ComponentQuota(30, 20), ComponentQuota(10, 20))
    order = TrainOrder(components, batch_size=8, seed=3)
    first, second = order.epoch(0), order.epoch(1)
    for epoch in (first, second):
        assert (epoch.rows < 30).sum() == 20 and len(epoch.rows) == order.size == 40
    small = np.concatenate([epoch.rows[epoch.rows >= 30] for epoch in (first, second)])
    assert np.bincount(small)[30:].tolist() == [4] * 10
    large = np.concatenate([epoch.rows[epoch.rows < 30] for epoch in (first, second, order.epoch(2))])
    assert np.bincount(large).tolist() == [2] * 30
    # Passes continue from those of the previous epoch.
    assert sorted(set(second.passes[second.rows >= 30].tolist())) == [2, 3]
    assert sorted(set(second.passes[second.rows < 30].tolist())) == [0, 1]
    of_large = first.rows < 30
    assert 5 < np.abs(np.diff(of_large.astype(int))).sum()  # mixed, not concatenated


def test_quotas_add_up_and_a_rate_that_gives_no_example_is_refused() -> None:
    for rates in ([1, 1, 1], [0.2, 0.3, 0.7], [5, 1, 3]):
        assert sum(component.quota for component in make_quotas([7, 5, 8], rates)) == 20
    with pytest.raises(UserError, match=r"rate 0.001 of 1.001 gives none of an epoch's 20 examples"):
        make_quotas([10, 10], [1.0, 0.001])


# Balance.


def skewed(num: int = 400) -> TokenizedSplit:
    return random_split(num, seed=5, inputs=(2, 60), labels=(1, 10), explanations=(2, 60))


def balanced(split: TokenizedSplit, batch_size: int = 16, seed: int = 3) -> TrainOrder:
    return TrainOrder.of(split.size, batch_size, seed, split)


def totals(order: TrainOrder, split: TokenizedSplit, steps: int) -> np.ndarray:
    return np.stack([split.token_counts(order.picks(step)).sum(axis=0) for step in range(steps)])


@pytest.mark.parametrize("batch_size", [16, 24, 64])  # 400 = 25 · 16, not a multiple of 24 or 64
def test_balanced_epochs_hold_every_example_once_in_batches_of_bounded_length(batch_size: int) -> None:
    split = skewed()
    order, plain = balanced(split, batch_size), TrainOrder.of(split.size, batch_size, 3)
    steps = 3 * split.size // batch_size
    for epoch in range(3):
        np.testing.assert_array_equal(np.sort(order.epoch(epoch).rows), np.arange(split.size))
    assert (totals(order, split, steps) <= order.cap).all()
    assert not (totals(plain, split, steps) <= order.cap).all()
    longest = split.token_counts(Picks(np.arange(split.size), np.zeros(split.size, int))).max(axis=0)
    room = np.maximum(np.array(EXCESS[:2]) * order.mean * batch_size, longest - order.mean)
    np.testing.assert_allclose(order.cap, batch_size * order.mean + room)


def test_balancing_moves_few_examples() -> None:
    split = skewed(4000)
    order, plain = balanced(split, 64), TrainOrder.of(split.size, 64, 3)
    moved = order.epoch(0).rows != plain.epoch(0).rows
    assert 0 < moved.mean() < 0.1


def test_balance_depends_on_seed_and_epoch_alone() -> None:
    split = skewed()
    late = balanced(split).picks(10**9)
    for step in (3, 10**9 - 1):
        balanced(split).picks(step)
    np.testing.assert_array_equal(balanced(split).picks(10**9).rows, late.rows)
    assert not np.array_equal(balanced(split, seed=4).picks(10**9).rows, late.rows)


def test_batches_of_complete_epochs_are_not_rebalanced() -> None:
    split = random_split(6, seed=1)
    order, plain = balanced(split, batch_size=12), TrainOrder.of(6, 12, 3)  # every batch holds two complete epochs
    for step in range(5):
        np.testing.assert_array_equal(order.picks(step).rows, plain.picks(step).rows)


def test_the_budget_fits_the_passes_with_the_longest_rationales() -> None:
    """Examples have two or three rationales, of which the last is long: all of them use it in every sixth pass."""
    split = random_split(240, rationales=3, explanations=(2, 6))
    last = np.zeros(len(split.weights), bool)
    last[split.rationale_offsets[1:][np.diff(split.rationale_offsets) > 1] - 1] = True
    targets = split.tasks["explain"].targets
    long = [sequence(targets, row) * (10 if last[row] else 1) for row in range(len(last))]
    tokens = dataclasses.replace(split.tasks["explain"], targets=Ragged.of(long))
    split = dataclasses.replace(split, tasks=split.tasks | {"explain": tokens})
    order = balanced(split, 24)
    found = totals(order, split, 12 * 10)
    assert (found <= order.cap).all()
    longest = found[50:60].mean(axis=0)  # epoch 5
    assert longest[1] > 0.97 * 24 * order.mean[1] and longest[1] > 1.2 * found[:10, 1].mean()
    shape = make_shape(split, order, multiple=1)
    for step in range(200):
        pack(split, order.picks(step), shape)


def test_each_pass_uses_the_next_rationale() -> None:
    split = random_split(40, seed=2, rationales=3)
    order = TrainOrder.of(split.size, 8, 0)
    seen: dict[int, list[int]] = {}
    for epoch in range(6):
        picks = order.epoch(epoch)
        for row, target in zip(picks.rows, split.target_rows("explain", *picks), strict=True):
            seen.setdefault(int(row), []).append(int(target - split.rationale_offsets[row]))
    for row, indices in seen.items():
        number = int(split.rationale_offsets[row + 1] - split.rationale_offsets[row])
        assert indices == [epoch % number for epoch in range(6)]

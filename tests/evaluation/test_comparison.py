"""Intervals and tests of methods over runs and clustered items: coverage, degenerate cases, and scipy's tests."""

import math

import numpy as np
import pytest
from scipy import stats

from cotmi_jax.errors import UserError
from cotmi_jax.evaluation import comparison
from cotmi_jax.evaluation.comparison import Variance, difference, equivalence, mean_interval

TRUE = 0.02  # difference of the simulated methods


def simulated(
    draw: np.random.Generator, runs: int, clusters: int, between_runs: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two methods that differ by TRUE on three items a cluster: common difficulties, clusters that suit one, noise."""
    cluster_N = np.repeat(np.arange(clusters), 3)
    difficulty_N = 0.1 * draw.normal(size=clusters)[cluster_N] + 0.2 * draw.normal(size=len(cluster_N))

    def method(mean: float, own: float) -> np.ndarray:
        suits_N = own * draw.normal(size=clusters)[cluster_N]
        run_S = between_runs * draw.normal(size=(runs, 1))
        return np.asarray(mean + difficulty_N + suits_N + run_S + 0.4 * draw.normal(size=(runs, len(cluster_N))))

    return method(0.5 + TRUE, 0.05), method(0.5, 0.0), cluster_N


@pytest.mark.parametrize(("runs", "between_runs"), [(3, 0.01), (5, 0.0), (5, 0.02), (10, 0.02)])
def test_intervals_cover_the_true_difference(runs: int, between_runs: float) -> None:
    """300 studies: 95% ± 3 standard errors of the simulation, and no more than conservative."""
    draw = np.random.default_rng(0)
    covered = []
    for _ in range(300):
        ours, theirs, cluster_N = simulated(draw, runs, 60, between_runs)
        found = difference(ours, theirs, cluster_N)
        covered.append(found.low <= TRUE <= found.high)
    assert 0.912 <= np.mean(covered) <= 0.99


def test_ignored_clusters_and_pooled_runs_would_not_cover() -> None:
    """The law that this module is for: what it replaces is far below its nominal 95%."""
    draw = np.random.default_rng(0)
    ignored = []
    for _ in range(200):
        ours, theirs, _ = simulated(draw, 5, 60, 0.03)
        pooled = (ours - theirs).ravel()  # every answer of every run as an independent item
        half = 1.96 * pooled.std() / math.sqrt(pooled.size)
        ignored.append(abs(pooled.mean() - TRUE) <= half)
    assert np.mean(ignored) < 0.85


def test_runs_that_are_alike_leave_the_items_and_items_that_are_alike_the_runs() -> None:
    draw = np.random.default_rng(0)
    item_N = draw.normal(size=40)
    same_runs = mean_interval(np.stack([item_N, item_N, item_N]))
    assert same_runs.variance.runs == 0.0
    assert (same_runs.low, same_runs.high) == pytest.approx(stats.ttest_1samp(item_N, 0).confidence_interval(0.95))
    run_S = draw.normal(size=5)
    same_items = mean_interval(np.repeat(run_S[:, None], 40, axis=1))
    assert same_items.variance.clusters == pytest.approx(0.0, abs=1e-30)
    assert (same_items.low, same_items.high) == pytest.approx(stats.ttest_1samp(run_S, 0).confidence_interval(0.95))
    assert same_items.p == pytest.approx(stats.ttest_1samp(run_S, 0).pvalue)
    # A cluster whose items are copies counts as one item.
    copied = mean_interval(np.repeat(np.stack([item_N] * 3), 2, axis=1), np.repeat(np.arange(40), 2))
    assert copied.variance.error == pytest.approx(same_runs.variance.error)


def test_paired_seeds_have_the_interval_of_their_differences() -> None:
    draw = np.random.default_rng(0)
    run_S = draw.normal(size=(6, 1))
    theirs = run_S + np.zeros((1, 50))
    paired = difference(theirs + 0.1 + 1e-3 * draw.normal(size=(6, 50)), theirs, paired=True)
    assert paired.high - paired.low < 1e-3 and paired.value == pytest.approx(0.1, abs=1e-3)
    assert difference(theirs + 0.1, theirs).low < -0.3  # the runs differ by more than the methods
    with pytest.raises(UserError, match="^6 runs against 5: paired runs are equally many"):
        difference(theirs, theirs[:5], paired=True)


def test_the_minimum_detectable_effect_is_found_with_its_power() -> None:
    variance = Variance(0.01**2, 0.005**2, 8.0)
    effect = comparison.minimum_detectable_effect(variance)
    draw = np.random.default_rng(0)
    value = effect + variance.error * draw.standard_normal(40_000)
    error = variance.error * np.sqrt(draw.chisquare(variance.dof, 40_000) / variance.dof)
    assert np.mean(np.abs(value / error) > stats.t.ppf(0.975, variance.dof)) == pytest.approx(0.8, abs=0.03)


def test_seeds_that_a_smaller_effect_needs() -> None:
    found = comparison.Interval(0.01, 0.0, 0.02, 0.05, Variance(0.02**2, 0.002**2, 8.0))
    effect = comparison.minimum_detectable_effect(found.variance)
    assert comparison.seeds_needed(found, 5, effect) == 5
    more = comparison.seeds_needed(found, 5, effect / 2)
    assert more is not None and 12 <= more <= 24  # about four times as many
    assert comparison.seeds_needed(found, 5, 0.004) is None  # items alone have a standard error of .002


def test_equivalence_is_two_one_sided_tests() -> None:
    found = mean_interval(np.repeat(np.array([0.01, -0.02, 0.0, 0.02])[:, None], 30, axis=1))
    run_S = np.array([0.01, -0.02, 0.0, 0.02])
    expected = max(
        stats.ttest_1samp(run_S, -0.05, alternative="greater").pvalue,
        stats.ttest_1samp(run_S, 0.05, alternative="less").pvalue,
    )
    assert equivalence(found, 0.05) == pytest.approx(expected) and expected < 0.05
    assert equivalence(found, 0.001) > 0.4
    with pytest.raises(UserError, match="^margin = 0: equivalence needs"):
        equivalence(found, 0)


def test_tests_of_two_runs() -> None:
    ours = np.array([1] * 12 + [0] * 4 + [1] * 30 + [0] * 10)
    theirs = np.array([0] * 12 + [1] * 4 + [1] * 30 + [0] * 10)
    assert comparison.mcnemar(ours, theirs) == pytest.approx(stats.binomtest(12, 16).pvalue)
    assert comparison.mcnemar(ours, ours) == 1.0
    # Of independent items the exchange of signs is McNemar's test; in clusters of two equal items it is weaker.
    assert comparison.sign_flip(ours, theirs) == pytest.approx(comparison.mcnemar(ours, theirs), abs=0.02)
    pairs = np.repeat(np.arange(len(ours) // 2), 2)
    assert comparison.sign_flip(ours, theirs, pairs) > 2 * comparison.mcnemar(ours, theirs)


def test_holm_adjusts_step_by_step() -> None:
    assert comparison.holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert comparison.holm([0.5, 0.6]) == pytest.approx([1.0, 1.0])


def test_ranks_with_their_ranges() -> None:
    draw = np.random.default_rng(0)
    noise = {name: 0.3 * draw.normal(size=(4, 200)) for name in "abc"}
    found = comparison.ranks({"a": noise["a"], "b": noise["b"] + 0.001, "c": noise["c"] + 1.0})
    assert found["c"] == (1, 1, 1)
    assert {found["a"].rank, found["b"].rank} == {2, 3}
    assert (found["a"].low, found["a"].high) == (found["b"].low, found["b"].high) == (2, 3)


def test_what_gives_no_interval_is_an_error() -> None:
    for scores, cluster_N, message in (
        (np.ones((1, 9)), None, "an interval of a method needs at least 2 training runs with different seeds, not 1"),
        (np.ones((2, 9)), np.zeros(9), "an interval needs items of at least 2 clusters"),
        (np.ones((2, 9)), np.arange(8), "9 items have 8 clusters: give one for each item"),
        (np.full((2, 9), np.nan), None, r"scores of shape \(2, 9\): give a finite number for each run and item"),
    ):
        with pytest.raises(UserError, match=f"^{message}"):
            mean_interval(scores, cluster_N)
    with pytest.raises(UserError, match="^9 items against 8: compare methods on the same items"):
        difference(np.ones((2, 9)), np.ones((2, 8)))

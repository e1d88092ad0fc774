"""Comparison of methods by their answers to the same items, over training runs. Plain numpy; imports no jax.

The unit of replication of a method is the training run (seed), items are crossed with runs, and items of one cluster
(hypotheses about one premise) are not independent. score_SxN holds a number for each run and item: 1 for a correct
answer, or a loss. Two methods share the items; their runs are independent unless the seeds are paired.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from cotmi_jax.errors import UserError
from cotmi_jax.evaluation.scores import Score

CONFIDENCE = 0.95
POWER = 0.8  # of the minimum detectable effect
_MAX_SEEDS = 1000


class Variance(NamedTuple):
    """Variance of a mean over runs and items, from the variation of runs and that of clusters.

    dof: degrees of freedom of the sum (Satterthwaite 1946).
    """

    runs: float
    clusters: float
    dof: float

    @property
    def total(self) -> float:
        """Of the mean."""
        return self.runs + self.clusters

    @property
    def error(self) -> float:
        """The standard error of the mean."""
        return math.sqrt(self.total)


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean, its 95% interval, and the p-value of a true value of 0."""

    value: float
    low: float
    high: float
    p: float
    variance: Variance


def check_scores(score_SxN: np.ndarray, cluster_N: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Scores as float64 [S, N], and each item's cluster as a number. Raises UserError where an interval needs more."""
    score_SxN = np.asarray(score_SxN, np.float64)
    if score_SxN.ndim != 2 or not np.isfinite(score_SxN).all():
        raise UserError(f"scores of shape {score_SxN.shape}: give a finite number for each run and item")
    if score_SxN.shape[0] < 2:
        raise UserError("an interval of a method needs at least 2 training runs with different seeds, not 1")
    cluster_N = np.arange(score_SxN.shape[1]) if cluster_N is None else np.asarray(cluster_N)
    if len(cluster_N) != score_SxN.shape[1]:
        raise UserError(f"{score_SxN.shape[1]} items have {len(cluster_N)} clusters: give one for each item")
    number_N = np.unique(cluster_N, return_inverse=True)[1]
    if number_N.max(initial=0) < 1:
        raise UserError("an interval needs items of at least 2 clusters")
    return score_SxN, number_N


def _by_cluster(score_SxN: np.ndarray, number_N: np.ndarray) -> np.ndarray:
    """Deviations from each run's mean, summed by cluster and divided by the number of items: [S, G]."""
    deviation_SxN = score_SxN - score_SxN.mean(axis=1, keepdims=True)
    sums = [np.bincount(number_N, weights=row) for row in deviation_SxN]
    return np.stack(sums) / score_SxN.shape[1]


def _runs_part(score_SxN: np.ndarray, number_N: np.ndarray) -> tuple[float, float]:
    """Variance of the mean over runs that runs cause beyond the sampling of items, and its degrees of freedom.

    Means of runs vary by the run and, since every run answers the same items in its own way, by the interaction of runs
    and items. The latter is part of the clusters' variation too, so it is subtracted here, as in the two-way clustering
    of Cameron, Gelbach and Miller (2011).
    """
    runs = len(score_SxN)
    between = float(score_SxN.mean(axis=1).var(ddof=1)) / runs
    cluster_SxG = _by_cluster(score_SxN, number_N)
    groups = cluster_SxG.shape[1]
    own_SxG = cluster_SxG - cluster_SxG.mean(axis=0)
    interaction = float((own_SxG**2).sum()) / (runs * (runs - 1)) * groups / (groups - 1)
    return max(between - interaction, 0.0), runs - 1.0


def _clusters_part(difference_N: np.ndarray, number_N: np.ndarray) -> tuple[float, float]:
    """Variance of a mean over items that is caused by the sampling of clusters, and its degrees of freedom."""
    sum_G = _by_cluster(difference_N[None], number_N)[0]
    groups = len(sum_G)
    return float((sum_G**2).sum()) * groups / (groups - 1), groups - 1.0


def _variance(runs_parts: Sequence[tuple[float, float]], clusters_part: tuple[float, float]) -> Variance:
    parts = [*runs_parts, clusters_part]
    total = sum(value for value, _ in parts)
    denominator = sum(value**2 / dof for value, dof in parts)
    dof = total**2 / denominator if denominator else clusters_part[1]
    return Variance(sum(value for value, _ in runs_parts), clusters_part[0], dof)


def _interval(value: float, variance: Variance, confidence: float = CONFIDENCE) -> Interval:
    from scipy import special

    if variance.total == 0.0:
        return Interval(value, value, value, float(value == 0.0), variance)
    half = float(special.stdtrit(variance.dof, 0.5 + confidence / 2)) * variance.error
    p = 2.0 * float(special.stdtr(variance.dof, -abs(value) / variance.error))
    return Interval(value, value - half, value + half, p, variance)


def mean_interval(score_SxN: np.ndarray, cluster_N: np.ndarray | None = None) -> Interval:
    """The mean score of a method, with an interval for other runs on other items of the same kinds.

    Raises:
      UserError: fewer than 2 runs or 2 clusters.
    """
    score_SxN, number_N = check_scores(score_SxN, cluster_N)
    variance = _variance([_runs_part(score_SxN, number_N)], _clusters_part(score_SxN.mean(axis=0), number_N))
    return _interval(float(score_SxN.mean()), variance)


def runs_interval(value_S: np.ndarray) -> Interval:
    """The mean over runs of a value that is not a mean over items, with the t interval for other runs on these items.

    Raises:
      UserError: fewer than 2 runs, or a value that is not finite.
    """
    return mean_interval(alike_items(value_S))


def alike_items(value_S: np.ndarray) -> np.ndarray:
    """Values of runs as scores [S, 2] of items that are alike, so that only runs vary: of a value of a whole split."""
    return np.repeat(np.asarray(value_S, np.float64)[:, None], 2, axis=1)


def linearized(total_SxN: np.ndarray, count_SxN: np.ndarray) -> np.ndarray:
    """Scores [S, N] of a ratio: their mean over items is each run's Σ total / Σ count, and they vary as it does.

    To first order, as in the variance of a ratio estimate (Cochran 1977, eq. 6.9): for losses by token, or shares of
    steps, of which examples have different numbers.

    Raises:
      UserError: a run whose counts sum to 0.
    """
    total_SxN, count_SxN = np.asarray(total_SxN, np.float64), np.asarray(count_SxN, np.float64)
    if (count_SxN.sum(axis=1) == 0).any():
        raise UserError("a run has no observation: a ratio needs at least one")
    ratio_Sx1 = total_SxN.sum(axis=1, keepdims=True) / count_SxN.sum(axis=1, keepdims=True)
    return ratio_Sx1 + (total_SxN - ratio_Sx1 * count_SxN) / count_SxN.mean(axis=1, keepdims=True)


def items_interval(score_N: np.ndarray, cluster_N: np.ndarray | None = None) -> Interval:
    """The mean score of one run, with an interval for other items of the same kinds; it says nothing of other runs.

    Raises:
      UserError: fewer than 2 clusters, or a score that is not finite.
    """
    score_SxN, number_N = check_scores(np.stack([score_N, score_N]), cluster_N)
    return _interval(float(np.mean(score_SxN)), _variance([], _clusters_part(score_SxN[0], number_N)))


def mean_by_cluster(value_N: np.ndarray, cluster_N: np.ndarray) -> Score:
    """The mean over items as a Score, with the interval of `items_interval`; None for items of one cluster."""
    if len(np.unique(cluster_N)) < 2:
        return Score(value=float(np.mean(value_N)), interval=None, n=len(value_N))
    found = items_interval(value_N, cluster_N)
    return Score(value=found.value, interval=(found.low, found.high), n=len(value_N))


def cluster_draws(clusters: int, draws: int, seed: int = 0) -> np.ndarray:
    """Bootstrap of clusters: how often each is drawn, [draws, clusters]."""
    drawn_DxG = np.random.default_rng(seed).integers(0, clusters, (draws, clusters))
    return np.stack([np.bincount(row, minlength=clusters) for row in drawn_DxG])


def difference(
    ours_SxN: np.ndarray, theirs_SxN: np.ndarray, cluster_N: np.ndarray | None = None, *, paired: bool = False
) -> Interval:
    """Mean of ours − theirs on the same items, with an interval over runs and clusters.

    paired: run s of both has the same seed, as an arm and its baseline in one study; differences within a seed then
    have their own variance. Numbers of runs differ only where seeds are not paired.

    Raises:
      UserError: different items, fewer than 2 runs of a method or 2 clusters, or unequal runs that are to be paired.
    """
    ours_SxN, number_N = check_scores(ours_SxN, cluster_N)
    theirs_SxN, _ = check_scores(theirs_SxN, cluster_N)
    if ours_SxN.shape[1] != theirs_SxN.shape[1]:
        raise UserError(f"{ours_SxN.shape[1]} items against {theirs_SxN.shape[1]}: compare methods on the same items")
    if paired:
        if len(ours_SxN) != len(theirs_SxN):
            raise UserError(f"{len(ours_SxN)} runs against {len(theirs_SxN)}: paired runs are equally many")
        return mean_interval(ours_SxN - theirs_SxN, cluster_N)
    runs_parts = [_runs_part(ours_SxN, number_N), _runs_part(theirs_SxN, number_N)]
    difference_N = ours_SxN.mean(axis=0) - theirs_SxN.mean(axis=0)
    return _interval(float(difference_N.mean()), _variance(runs_parts, _clusters_part(difference_N, number_N)))


def minimum_detectable_effect(variance: Variance, power: float = POWER, confidence: float = CONFIDENCE) -> float:
    """The smallest true difference that a test at 1 − confidence, two-sided, finds with this power."""
    from scipy import special  # a hundred times as fast as scipy.stats, with the same values

    quantiles = special.stdtrit(variance.dof, (0.5 + confidence / 2, power))
    return float(quantiles.sum()) * variance.error


def seeds_needed(found: Interval, runs: int, effect: float, power: float = POWER) -> int | None:
    """Runs of each method at which `effect` is the minimum detectable one; None if the items do not suffice for it.

    found: the difference with `runs` runs of each. The part of the variance that clusters cause stays as it is.
    """
    for wanted in range(2, _MAX_SEEDS + 1):
        scaled = found.variance.runs * runs / wanted, found.variance.clusters
        dof = found.variance.dof if scaled[0] == 0 else max(found.variance.dof * (wanted - 1) / (runs - 1), 1.0)
        if minimum_detectable_effect(Variance(*scaled, dof), power) <= effect:
            return wanted
    return None


def equivalence(found: Interval, margin: float) -> float:
    """p-value of two one-sided tests (Schuirmann 1987): below .05, the true difference is within ± margin."""
    from scipy import special

    if margin <= 0:
        raise UserError(f"margin = {margin}: equivalence needs a difference above 0 that does not matter")
    if found.variance.total == 0.0:
        return float(abs(found.value) >= margin)
    distance = margin - abs(found.value)
    return float(special.stdtr(found.variance.dof, -distance / found.variance.error))


def mcnemar(ours_N: np.ndarray, theirs_N: np.ndarray) -> float:
    """Exact two-sided p-value that two runs err on equally many items (McNemar 1947); of independent items."""
    from scipy import stats

    ours_N, theirs_N = np.asarray(ours_N, bool), np.asarray(theirs_N, bool)
    only_ours, only_theirs = int((ours_N & ~theirs_N).sum()), int((theirs_N & ~ours_N).sum())
    if not only_ours + only_theirs:
        return 1.0
    return float(stats.binomtest(only_ours, only_ours + only_theirs).pvalue)


def sign_flip(
    ours_N: np.ndarray, theirs_N: np.ndarray, cluster_N: np.ndarray | None = None, *, draws: int = 9999, seed: int = 0
) -> float:
    """Two-sided p-value that two runs score alike: the signs of the clusters' differences are exchanged at random."""
    difference_N = np.asarray(ours_N, np.float64) - np.asarray(theirs_N, np.float64)
    number_N = np.arange(len(difference_N)) if cluster_N is None else np.unique(cluster_N, return_inverse=True)[1]
    sum_G = np.bincount(number_N, weights=difference_N)
    sum_G = sum_G[sum_G != 0]
    draw, seen = np.random.default_rng(seed), abs(sum_G.sum()) - 1e-9
    hits = sum(abs((draw.integers(0, 2, len(sum_G)) * 2 - 1) @ sum_G) >= seen for _ in range(draws))
    return (hits + 1) / (draws + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values that are adjusted for their number (Holm 1979), in the order given."""
    order = np.argsort(p_values, kind="stable")
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


class RankInterval(NamedTuple):
    """The rank of a method by its mean score, 1 the highest, and the 95% range over resampled runs and clusters."""

    rank: int
    low: int
    high: int


def ranks(
    scores: Mapping[str, np.ndarray], cluster_N: np.ndarray | None = None, *, draws: int = 1000, seed: int = 0
) -> dict[str, RankInterval]:
    """Ranks of methods [S, N] on the same items by two-way bootstrap: runs of each method, and clusters in common."""
    checked = {name: check_scores(score_SxN, cluster_N) for name, score_SxN in scores.items()}
    if len({score_SxN.shape[1] for score_SxN, _ in checked.values()}) > 1:
        raise UserError("methods have different numbers of items: compare them on the same items")
    draw = np.random.default_rng(seed)
    number_N = next(iter(checked.values()))[1]
    items_G = np.bincount(number_N)
    sums = {
        name: np.stack([np.bincount(number_N, weights=row) for row in score_SxN])
        for name, (score_SxN, _) in checked.items()
    }
    seen = np.empty((draws, len(sums)))
    for each in seen:
        times_G = np.bincount(draw.integers(0, len(items_G), len(items_G)), minlength=len(items_G))
        each[:] = [
            (sum_SxG[draw.integers(0, len(sum_SxG), len(sum_SxG))] @ times_G).mean() for sum_SxG in sums.values()
        ]
    rank_DxM = 1 + (seen[:, None, :] > seen[:, :, None]).sum(axis=2)
    low_M, high_M = np.quantile(rank_DxM, (0.025, 0.975), axis=0, method="inverted_cdf")
    mean_M = np.array([sum_SxG.mean() for sum_SxG in sums.values()])
    rank_M = 1 + (mean_M[None] > mean_M[:, None]).sum(axis=1)
    return {
        name: RankInterval(int(rank), int(low), int(high))
        for name, rank, low, high in zip(sums, rank_M, low_M, high_M, strict=True)
    }

"""Differences of methods in any measure, with interval, adjusted p-value and a verdict in words."""

import dataclasses
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np

from cotmi_jax.errors import UserError
from cotmi_jax.evaluation import comparison
from cotmi_jax.evaluation.by_example import Sums
from cotmi_jax.evaluation.comparison import Interval, RankInterval
from cotmi_jax.evaluation.measures import MEASURES, Measure
from cotmi_jax.evaluation.methods import EvaluatedRun, Method, Methods

# higher, lower: of measures of which neither is better.
Verdict = Literal["better", "worse", "higher", "lower", "equivalent", "undecided"]
LEVEL = 0.05  # of tests
_ROUNDING = 1e-12  # of sums of numbers near 1
ACCURACY = MEASURES["accuracy"]
Value = TypeVar("Value")


@dataclasses.dataclass(frozen=True)
class Contrast:
    """A method against the baseline, in the measure as metrics.json has it: shares are fractions.

    paired: whether runs of equal seeds were paired. p_holm: adjusted for the number of contrasts. p_equivalent: of two
    one-sided tests against the margin. detectable: the minimum detectable difference (power 80%). seeds:
    runs of each that would find a difference as large as the margin; None: no number does, more items are needed.
    """

    interval: Interval
    paired: bool
    p_holm: float
    p_equivalent: float
    detectable: float
    seeds: int | None
    verdict: Verdict


@dataclasses.dataclass(frozen=True)
class Row:
    """A method: its mean over seeds, and the value of each; they, interval, rank and contrast are None where `missing`
    says why."""

    method: Method
    mean: float | None
    by_seed: tuple[float, ...] | None
    interval: Interval | None
    rank: RankInterval | None
    contrast: Contrast | None
    missing: str = ""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All methods beside a baseline, in one measure.

    margin: as the measure's, a fraction of shares. items, clusters: that have a value of it; None: it is one of the
    split as a whole, whose intervals are over seeds alone. contrasts: number of differences that p is adjusted for.
    """

    methods: Methods
    baseline: str
    margin: float
    rows: tuple[Row, ...]
    measure: Measure = ACCURACY
    items: int | None = None
    clusters: int | None = None
    contrasts: int = 1

    @property
    def missing(self) -> str:
        """Why no method has a value; "" if one has."""
        return "" if any(row.mean is not None for row in self.rows) else self.rows[0].missing

    def to_json(self) -> dict[str, Any]:
        """JSON values: fractions, not percent."""
        rows = []
        for row in self.rows:
            found: dict[str, Any] = {"method": row.method.name, "seeds": list(row.method.seeds)}
            found |= {"workdirs": [str(run.workdir) for run in row.method.runs], "value": row.mean}
            if self.measure is ACCURACY:
                found["accuracy"] = row.mean
            found["by_seed"] = None if row.by_seed is None else list(row.by_seed)
            found["interval"] = None if row.interval is None else [row.interval.low, row.interval.high]
            found["rank"] = None if row.rank is None else row.rank._asdict()
            found["difference"] = None if row.contrast is None else _contrast_json(row.contrast)
            found["not_available"] = row.missing or None
            rows.append(found)
        return {
            "dataset": self.methods.dataset,
            "split": self.methods.split,
            "measure": self.measure.name,
            "unit": self.measure.unit,
            "better": self.measure.better,
            "items": self.items,
            "clusters": self.clusters,
            "intervals_over": "seeds" if self.items is None else "seeds and examples",
            "baseline": self.baseline,
            "margin": self.margin,
            "contrasts": self.contrasts,
            "methods": rows,
        }


def _contrast_json(contrast: Contrast) -> dict[str, Any]:
    fields = dataclasses.asdict(contrast)
    interval = fields.pop("interval")
    variance = contrast.interval.variance
    shares = {"variance_of_runs": variance.runs, "variance_of_clusters": variance.clusters, "dof": variance.dof}
    return {"value": interval["value"], "interval": [interval["low"], interval["high"]], "p": interval["p"]} | (
        shares | fields
    )


def to_json(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """That of one comparison; of several {"measures": those in which a method has a value, "not_available": reasons}"""
    if len(comparisons) == 1:
        return comparisons[0].to_json()
    return {
        "measures": [each.to_json() for each in comparisons if not each.missing],
        "not_available": {each.measure.name: each.missing for each in comparisons if each.missing},
    }


@dataclasses.dataclass(frozen=True)
class _Scores:
    """A measure of all methods: scores [S, N] of runs and items by method, or the reason why it has none.

    of_split: whether the items are copies of one value of the split. targets: of losses the tokens of each item.
    """

    measure: Measure
    by_method: Mapping[str, np.ndarray | str]
    cluster_N: np.ndarray
    of_split: bool
    targets: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, measure: Measure, methods: Methods) -> "_Scores":
        return (_of_split if measure.of_examples is None else _of_examples)(measure, methods)


def _of_split(measure: Measure, methods: Methods) -> _Scores:
    found: dict[str, np.ndarray | str] = {}
    for method in methods.methods:
        values = _read(method, lambda run: measure.of_run(run.metrics))
        found[method.name] = values if isinstance(values, str) else comparison.alike_items(np.array(values))
    return _Scores(measure, found, np.arange(2), True, {})


def _of_examples(measure: Measure, methods: Methods) -> _Scores:
    found: dict[str, np.ndarray | str] = {}
    sums: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def read(run: EvaluatedRun) -> Sums:
        assert measure.of_examples is not None
        each = measure.of_examples([run.predictions[key] for key in methods.ids])  # type: ignore[misc]
        if not each.count_N.any():
            raise UserError("no example has a value")
        return each

    for method in methods.methods:
        values = _read(method, read)
        if isinstance(values, str):
            found[method.name] = values
        else:
            total_SxN, count_SxN = (np.stack(each) for each in zip(*values, strict=True))
            sums[method.name] = total_SxN, count_SxN
    # Items of which no run has a value are none of the measure's.
    kept_N = np.zeros(len(methods.ids), bool)
    for _, count_SxN in sums.values():
        kept_N |= count_SxN.any(axis=0)
    for name, (total_SxN, count_SxN) in sums.items():
        found[name] = comparison.linearized(total_SxN[:, kept_N], count_SxN[:, kept_N])
    targets = {name: count_SxN[0, kept_N] for name, (_, count_SxN) in sums.items()} if measure.same_targets else {}
    return _Scores(measure, found, methods.cluster_N[kept_N], False, targets)


def _read(method: Method, read: Callable[[EvaluatedRun], Value]) -> list[Value] | str:
    """What is read of each run; or why there is nothing, with the run's name unless it is so of all."""
    values, reasons = [], {}
    for run in method.runs:
        try:
            values.append(read(run))
        except UserError as error:
            reasons[run.workdir.name] = str(error)
    if not reasons:
        return values
    name, reason = next(iter(reasons.items()))
    return reason if not values and len(set(reasons.values())) == 1 else f"{name}: {reason}"


def compare(methods: Methods, baseline: Method, margin: float | None = None, measure: Measure = ACCURACY) -> Comparison:
    """Every method against the baseline in one measure. Raises UserError as compare_all does."""
    return compare_all(methods, baseline, [measure], margin)[0]


def compare_all(
    methods: Methods,
    baseline: Method,
    measures: Sequence[Measure],
    margin: float | None = None,
    *,
    ranked: bool = True,
) -> list[Comparison]:
    """Every method against the baseline in each measure; p-values are adjusted over all of them.

    margin: of equivalence, a fraction of shares; None: that of each measure. ranked: whether to rank the methods, which
    takes most of the time. Raises UserError for one that is not
    positive or, of shares, no fraction.
    """
    drafts = []
    for measure in measures:
        given = measure.margin / measure.factor if margin is None else margin
        if not 0 < given < (1 if measure.factor == 100 else np.inf):
            limits = "percentage points between 0 and 100" if measure.factor == 100 else "a difference above 0"
            raise UserError(f"--margin={measure.factor * given:g}: give {limits}")
        drafts.append((_Scores.of(measure, methods), given))
    estimates = [_estimate(scores, methods, baseline, ranked=ranked) for scores, _ in drafts]
    p_values = [found.p for each in estimates for found in each.differences.values()]
    adjusted = iter(comparison.holm(p_values))
    return [
        _comparison(scores, each, methods, baseline, margin, adjusted=adjusted, contrasts=len(p_values))
        for (scores, margin), each in zip(drafts, estimates, strict=True)
    ]


@dataclasses.dataclass(frozen=True)
class _Estimates:
    """By method: intervals of means and of differences to the baseline, and why others have none."""

    intervals: dict[str, Interval]
    differences: dict[str, Interval]
    ranks: dict[str, RankInterval]
    missing: dict[str, str]


def _estimate(scores: _Scores, methods: Methods, baseline: Method, *, ranked: bool) -> _Estimates:
    found = _Estimates({}, {}, {}, {})
    of, cluster_N = scores.by_method, scores.cluster_N
    known = {name: each for name, each in of.items() if not isinstance(each, str)}
    for method in methods.methods:
        name, own, theirs = method.name, of[method.name], of[baseline.name]
        if isinstance(own, str):
            found.missing[name] = own
            continue
        try:
            if len(method.runs) < 2:
                raise UserError("one run: an interval needs at least 2 seeds")
            found.intervals[name] = comparison.mean_interval(own, cluster_N)
            if method is baseline:
                continue
            if isinstance(theirs, str):
                raise UserError(f"of the baseline {baseline.name}: {theirs}")
            if len(baseline.runs) < 2:
                raise UserError(
                    f"the baseline {baseline.name} has one run: a difference needs at least 2 seeds of both"
                )
            _check_targets(scores, name, baseline.name)
            paired = method.seeds == baseline.seeds
            difference = comparison.difference(own, theirs, cluster_N, paired=paired)
            if scores.of_split and difference.variance.error <= _ROUNDING * max(1.0, abs(difference.value)):
                raise UserError("all seeds give the same difference: its interval needs values that vary")
            found.differences[name] = difference
        except UserError as error:
            found.missing[name] = str(error)
    if ranked and len(found.intervals) > 1:
        sign = -1.0 if scores.measure.better == "lower" else 1.0
        found.ranks.update(comparison.ranks({name: sign * known[name] for name in found.intervals}, cluster_N))
    return found


def _check_targets(scores: _Scores, name: str, baseline: str) -> None:
    if scores.measure.same_targets and not np.array_equal(scores.targets[name], scores.targets[baseline]):
        own, theirs = (int(scores.targets[each].sum()) for each in (name, baseline))
        raise UserError(f"targets of {own} tokens, of the baseline {theirs}: losses of other targets do not compare")


def _comparison(
    scores: _Scores,
    found: _Estimates,
    methods: Methods,
    baseline: Method,
    margin: float,
    *,
    adjusted: Iterator[float],
    contrasts: int,
) -> Comparison:
    rows = []
    for method in methods.methods:
        own, contrast = scores.by_method[method.name], None
        by_seed = None if isinstance(own, str) else tuple(own.mean(axis=1).tolist())
        if method.name in found.differences:
            runs = min(len(method.runs), len(baseline.runs))
            paired = method.seeds == baseline.seeds
            difference = found.differences[method.name]
            contrast = _contrast(difference, paired, next(adjusted), runs, margin, scores.measure)
        mean = None if by_seed is None else statistics.fmean(by_seed)
        estimates = found.intervals.get(method.name), found.ranks.get(method.name), contrast
        rows.append(Row(method, mean, by_seed, *estimates, found.missing.get(method.name, "")))
    items = None if scores.of_split else len(scores.cluster_N)
    clusters = None if scores.of_split else len(np.unique(scores.cluster_N))
    return Comparison(methods, baseline.name, margin, tuple(rows), scores.measure, items, clusters, contrasts)


def _contrast(found: Interval, paired: bool, p_holm: float, runs: int, margin: float, measure: Measure) -> Contrast:
    p_equivalent = comparison.equivalence(found, margin)
    verdict: Verdict = "undecided"
    if p_holm < LEVEL:
        verdict = "higher" if found.value > 0 else "lower"
        if measure.better is not None:
            verdict = "better" if verdict == measure.better else "worse"
    elif p_equivalent < LEVEL:
        verdict = "equivalent"
    detectable = comparison.minimum_detectable_effect(found.variance)
    seeds = comparison.seeds_needed(found, runs, margin)
    return Contrast(found, paired, p_holm, p_equivalent, detectable, seeds, verdict)

"""Differences of methods in label accuracy, with interval, adjusted p-value and a verdict in words."""

import dataclasses
from typing import Any, Literal

from cotmi_jax.errors import UserError
from cotmi_jax.evaluation import comparison
from cotmi_jax.evaluation.comparison import Interval, RankInterval
from cotmi_jax.evaluation.methods import Method, Methods

Verdict = Literal["better", "worse", "equivalent", "undecided"]
LEVEL = 0.05  # of tests
MARGIN = 0.01  # difference in accuracy below which methods count as equivalent


@dataclasses.dataclass(frozen=True)
class Contrast:
    """A method against the baseline, in label accuracy as a fraction.

    paired: whether runs of equal seeds were paired. p_holm: adjusted for the number of contrasts. p_equivalent: of two
    one-sided tests against the margin. detectable: the true difference that is found in 80% of such studies. seeds:
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
    """A method: its mean accuracy over seeds; interval, rank and contrast are None where `missing` says why."""

    method: Method
    mean: float
    interval: Interval | None
    rank: RankInterval | None
    contrast: Contrast | None
    missing: str = ""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All methods beside a baseline."""

    methods: Methods
    baseline: str
    margin: float
    rows: tuple[Row, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON values: fractions, not percent."""
        rows = []
        for row in self.rows:
            found: dict[str, Any] = {"method": row.method.name, "seeds": list(row.method.seeds)}
            found |= {"workdirs": [str(run.workdir) for run in row.method.runs], "accuracy": row.mean}
            found["by_seed"] = row.method.correct_SxN.mean(axis=1).tolist()
            found["interval"] = None if row.interval is None else [row.interval.low, row.interval.high]
            found["rank"] = None if row.rank is None else row.rank._asdict()
            found["difference"] = None if row.contrast is None else _contrast_json(row.contrast)
            found["not_available"] = row.missing or None
            rows.append(found)
        items = self.methods.cluster_N
        return {
            "dataset": self.methods.dataset,
            "split": self.methods.split,
            "items": len(items),
            "clusters": int(items.max()) + 1,
            "baseline": self.baseline,
            "margin": self.margin,
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


def compare(methods: Methods, baseline: Method, margin: float = MARGIN) -> Comparison:
    """Every method against the baseline. Raises UserError for a margin that is no positive fraction."""
    if not 0 < margin < 1:
        raise UserError(f"--margin={100 * margin:g}: give percentage points between 0 and 100")
    several = [method for method in methods.methods if len(method.runs) > 1]
    cluster_N = methods.cluster_N
    ranks = comparison.ranks({each.name: each.correct_SxN for each in several}, cluster_N) if len(several) > 1 else {}
    intervals = {each.name: comparison.mean_interval(each.correct_SxN, cluster_N) for each in several}
    differences = {
        each.name: comparison.difference(
            each.correct_SxN, baseline.correct_SxN, cluster_N, paired=each.seeds == baseline.seeds
        )
        for each in several
        if each is not baseline and baseline in several
    }
    adjusted = dict(zip(differences, comparison.holm([found.p for found in differences.values()]), strict=True))
    rows = []
    for method in methods.methods:
        contrast = None
        if method.name in differences:
            found, paired = differences[method.name], method.seeds == baseline.seeds
            contrast = _contrast(
                found, paired, adjusted[method.name], min(len(method.runs), len(baseline.runs)), margin
            )
        missing = ""
        if len(method.runs) < 2:
            missing = "one run: an interval needs at least 2 seeds"
        elif method is not baseline and contrast is None:
            missing = f"the baseline {baseline.name} has one run: a difference needs at least 2 seeds of both"
        mean = float(method.correct_SxN.mean())
        rows.append(Row(method, mean, intervals.get(method.name), ranks.get(method.name), contrast, missing))
    return Comparison(methods, baseline.name, margin, tuple(rows))


def _contrast(found: Interval, paired: bool, p_holm: float, runs: int, margin: float) -> Contrast:
    p_equivalent = comparison.equivalence(found, margin)
    verdict: Verdict = "undecided"
    if p_holm < LEVEL:
        verdict = "better" if found.value > 0 else "worse"
    elif p_equivalent < LEVEL:
        verdict = "equivalent"
    detectable = comparison.minimum_detectable_effect(found.variance)
    seeds = comparison.seeds_needed(found, runs, margin)
    return Contrast(found, paired, p_holm, p_equivalent, detectable, seeds, verdict)

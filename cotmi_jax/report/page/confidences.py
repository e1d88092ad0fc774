"""What confidences are worth: reliability diagrams, risk–coverage curves and a table of a data set's methods."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cotmi_jax.errors import UserError
from cotmi_jax.evaluation.calibration import risk_coverage
from cotmi_jax.evaluation.confidences import KINDS
from cotmi_jax.evaluation.methods import EvaluatedRun
from cotmi_jax.report.calibration_rows import KIND_NAMES
from cotmi_jax.report.page.chart import Chart, Curve
from cotmi_jax.report.page.gather import Arm, ResultSet
from cotmi_jax.report.page.words import number, points

_COVERAGE = np.linspace(0.02, 1.0, 50)  # shares of the answers at which curves of several runs are averaged


def kind_of(each: ResultSet) -> tuple[str, str]:
    """The confidence that most can be said of, and "": among the choices, or else in the generated label.

    ("", reason) where no run has one.
    """
    reasons: dict[str, None] = {}
    for kind in ("closed_set", "sequence"):
        parts = [_part(run, kind) for arm in each.arms for run in arm.runs]
        if any("not_available" not in part for part in parts):
            return kind, ""
        reasons |= dict.fromkeys(part["not_available"] for part in parts)
    return "", "; ".join(reasons)


def _part(run: EvaluatedRun, kind: str) -> Mapping[str, Any]:
    """The measures of a kind of confidence in metrics.json, or {"not_available": reason}."""
    missing = f"{run.metrics.get('split', 'the split')} was evaluated without the metric calibration"
    found = run.metrics.get("calibration", {}).get(kind, {"not_available": missing})
    return found if isinstance(found, Mapping) else {"not_available": missing}


def reliability(each: ResultSet, kind: str) -> list[Chart]:
    """A diagram for each method: accuracy by confidence of each run, and the range of a calibrated student.

    The range is that of the first run: its width depends on the number of examples, which is that of all runs.
    """
    found = {arm.name: [_part(run, kind) for run in arm.runs] for arm in each.arms}
    diagrams = {
        name: [part["reliability_diagram"] for part in parts if "not_available" not in part]
        for name, parts in found.items()
    }
    every = [part for parts in diagrams.values() for part in parts]
    shown = [value for part in every for key in ("confidence", "accuracy") for value in part[key]]
    if not shown:
        return []
    start = min(90.0, 10 * np.floor(10 * min(shown)))
    charts = []
    for arm in each.arms:
        if not diagrams[arm.name]:
            continue
        curves = [_diagram(arm, part, faint=len(arm.runs) > 1) for part in diagrams[arm.name]]
        first = diagrams[arm.name][0]
        band = zip(*(first[key] for key in ("confidence", "calibrated_low", "calibrated_high")), strict=True)
        ranges = [(100 * x, max(100 * low, start), 100 * high) for x, low, high in band]
        gaps = [part["overconfidence"]["value"] for part in found[arm.name] if "not_available" not in part]
        spoken = f"{KIND_NAMES[kind]}: confidence minus accuracy {points(float(np.mean(gaps)))} points, mean over seeds"
        limits = (float(start), 100.0)
        file = f"{each.slug}-reliability-{arm.place}"
        charts.append(
            Chart(
                *(file, arm.name, spoken, "confidence, %", "accuracy, %", curves, [(arm.place, arm.name)], ranges),
                x_limits=limits,
                y_limits=limits,
                diagonal=True,
            )
        )
    return charts


def _diagram(arm: Arm, part: Mapping[str, Any], *, faint: bool) -> Curve:
    x, y = ([100 * value for value in part[key]] for key in ("confidence", "accuracy"))
    return Curve(arm.place, x, y, marks=not faint, faint=faint)


def risk_coverage_chart(each: ResultSet, kind: str) -> Chart | None:
    """Wrong answers among the surest, by their share: mean and range of the seeds; None: there are no confidences."""
    curves: list[Curve] = []
    spoken = []
    for arm in each.arms:
        risks = [risk for run in arm.runs if (risk := _risk(run, kind)) is not None]
        if not risks:
            continue
        y_RxC = 100 * np.array(risks)
        low, high = (y_RxC.min(axis=0).tolist(), y_RxC.max(axis=0).tolist()) if len(risks) > 1 else ([], [])
        y = y_RxC.mean(axis=0)
        curves.append(Curve(arm.place, (100 * _COVERAGE).tolist(), y.tolist(), low, high))
        half = float(np.interp(0.5, _COVERAGE, y))
        spoken.append(f"{arm.name} {number(half)}% wrong among the surest half, {number(float(y[-1]))}% among all")
    if not curves:
        return None
    legend = [(arm.place, arm.name) for arm in each.arms]
    title, x_label = "Risk and coverage", "% answered, the surest first"
    text = "; ".join(spoken)
    file = f"{each.slug}-risk-coverage"
    return Chart(file, title, text, x_label, "% wrong among them", curves, legend, y_limits=_from_zero(curves))


def _from_zero(curves: Sequence[Curve]) -> tuple[float, float]:
    highest = max(float(np.max(row)) for curve in curves for row in (curve.y, curve.high) if len(row))
    return 0.0, max(1.05 * highest, 1.0)


def _risk(run: EvaluatedRun, kind: str) -> np.ndarray | None:
    """The share of wrong answers among the surest at each of _COVERAGE."""
    try:
        found = KINDS[kind](list(run.predictions.values()))  # type: ignore[arg-type]
    except UserError:  # the section states the reason
        return None
    coverage, risk = risk_coverage(found.confidence_N, found.correct_N)
    return np.asarray(risk[np.searchsorted(coverage, _COVERAGE - 1e-12)])


def calibration_table(each: ResultSet, kind: str) -> list[tuple[str, ...]]:
    """Rows (method, confidence − accuracy, smooth error with that of a calibrated student, Brier, AUROC): means."""
    rows: list[tuple[str, ...]] = []
    for arm in each.arms:
        parts = [part for run in arm.runs if "not_available" not in (part := _part(run, kind))]
        if not parts:
            rows.append((arm.name, f"not available: {_part(arm.runs[0], kind)['not_available']}", "", "", ""))
            continue
        errors = [part["errors"]["smooth_ece"] for part in parts]
        smooth = _mean(errors)
        if smooth is not None:
            low, high = (np.mean([each["noise_floor"][end] for each in errors]) for end in ("low", "high"))
            smooth += f" (calibrated: {low:.3f} to {high:.3f})"
        gap = points(float(np.mean([part["overconfidence"]["value"] for part in parts])))
        auroc = _mean([part["auroc"] for part in parts])
        brier = f"{np.mean([part['brier']['value'] for part in parts]):.3f}"
        rows.append((arm.name, gap, smooth or "not available", brier, auroc or "not available: all answers are alike"))
    return rows


def _mean(scores: Sequence[Mapping[str, Any]]) -> str | None:
    """Of the runs that have the value; None: none has."""
    values = [score["value"] for score in scores if "value" in score]
    return f"{np.mean(values):.3f}" if values else None

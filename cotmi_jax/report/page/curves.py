"""Curves over training steps, and accuracy by the fraction of the train split: charts of a data set."""

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from cotmi_jax.files import read_json_lines
from cotmi_jax.report.page.chart import Chart, Curve
from cotmi_jax.report.page.gather import Arm, ResultSet
from cotmi_jax.report.page.words import number
from cotmi_jax.workdir.metrics import METRICS_FILE

Lines = Sequence[Mapping[str, float]]
Value = Callable[[Mapping[str, float]], float | None]

# Of metrics.jsonl: key, title, axis, and by what the value is multiplied.
_LEARNING = (
    ("valid/accuracy", "Label accuracy on valid", "%", 100.0),
    ("valid/predict", "Token loss of labels on valid", "nats a token", 1.0),
    ("valid/explain", "Token loss of rationales on valid", "nats a token", 1.0),
    ("valid/agreement", "Rationales that end in the student's own label, valid", "%", 100.0),
)
_INFORMATION = {
    "x_z": "I(X;Z): input and label feature",
    "z_y": "I(Z;Y): label feature and label",
    "within": "I(Z;V | X): label and rationale, given the input",
    "contradiction_auc": "Rationales that contradict the label, AUC",
}


def read_logs(each: ResultSet) -> dict[str, list[Lines]]:
    """By the name of each method the lines of metrics.jsonl of its runs."""
    return {arm.name: [read_json_lines(run.workdir / METRICS_FILE) for run in arm.runs] for arm in each.arms}


def learning_curves(each: ResultSet, logs: Mapping[str, Sequence[Lines]]) -> list[Chart]:
    """Accuracy and losses on the valid split over the steps: mean over seeds, and the range of the seeds."""
    charts = []
    for key, title, unit, factor in _LEARNING:
        curves = _over_steps(each, logs, _scaled(key, factor))
        if curves:
            spoken = _ends(each, curves, "%" if unit == "%" else " nats")
            name = f"{each.slug}-{key.replace('/', '-')}"
            charts.append(Chart(name, title, spoken, "training step", unit, curves, _legend(each)))
    return charts


def information_curves(each: ResultSet, logs: Mapping[str, Sequence[Lines]]) -> list[Chart]:
    """Estimates of mutual information on valid: changes since the initial weights, and those given the input."""
    found = [line for runs in logs.values() for lines in runs for line in lines if "mi/x_z_change" in line]
    names = {key[3:-7] for line in found for key in line if key.endswith("_change") and key.startswith("mi/")}
    charts = []
    for name in [*sorted(names - _INFORMATION.keys()), "x_z", "z_y"]:
        title = _INFORMATION.get(name, f"I(Z;V): label and rationale, {name}")
        # Before the first step the change is 0.
        curves = _over_steps(each, logs, _scaled(f"mi/{name}_change", 1.0), start=0.0)
        if curves:
            spoken, axis = _ends(each, curves, " nats", sign=True), "nats since step 0"
            file = f"{each.slug}-mi-{name}"
            charts.append(Chart(file, title, spoken, "training step", axis, curves, _legend(each), zero_line=True))
    for name, axis in (("within", "nats"), ("contradiction_auc", "AUC")):
        curves = _over_steps(each, logs, _scaled(f"mi/{name}", 1.0))
        if curves:
            spoken = _ends(each, curves, " nats" if name == "within" else "", digits=3)
            file = f"{each.slug}-mi-{name.replace('_', '-')}"
            chart = Chart(file, _INFORMATION[name], spoken, "training step", axis, curves, _legend(each))
            charts.append(chart)
    return charts


def data_efficiency(sets: Sequence[ResultSet]) -> list[Chart]:
    """Accuracy by the fraction of the train split, for each data set on which methods differ in it."""
    charts: list[Chart] = []
    for dataset, label_type in dict.fromkeys((each.dataset, each.label_type) for each in sets):
        families: dict[str, list[Arm]] = {}
        for each in sets:
            if (each.dataset, each.label_type) == (dataset, label_type):
                level = _without_fraction(each.name).removeprefix(dataset)  # a study's sets may be divided by sizes
                for arm in each.arms:
                    families.setdefault(_without_fraction(arm.name) + level, []).append(arm)
        curves: list[Curve] = []
        legend, spoken = [], []
        for name, arms in families.items():
            if len({_fraction(arm) for arm in arms}) < 2:
                continue
            curve = _by_fraction(len(curves), sorted(arms, key=_fraction))
            legend.append((curve.place, name))
            listed = ", ".join(f"{at:g}% {number(value)}%" for at, value in zip(curve.x, curve.y, strict=True))
            spoken.append(f"{name}: {listed}")
            curves.append(curve)
        if curves:
            title, axes = f"Accuracy by the amount of train data, {dataset}", ("% of the train split", "accuracy, %")
            file = f"data-efficiency-{len(charts) + 1}"
            charts.append(Chart(file, title, "; ".join(spoken), *axes, curves, legend, log_x=True))
    return charts


def _by_fraction(place: int, arms: Sequence[Arm]) -> Curve:
    intervals = [arm.row.interval for arm in arms]
    low = [100 * found.low for found in intervals if found]
    high = [100 * found.high for found in intervals if found]
    if len(low) < len(arms):  # a method with one run has no interval
        low, high = [], []
    x, y = [100 * _fraction(arm) for arm in arms], [100 * arm.accuracy for arm in arms]
    return Curve(place, x, y, low, high, marks=True)


def _fraction(arm: Arm) -> float:
    return float(arm.runs[0].config["data.subsample"])


def _without_fraction(name: str) -> str:
    return re.sub(r"[ ,]*\b(data\.)?subsample=\S+", "", name) or name


def _legend(each: ResultSet) -> list[tuple[int, str]]:
    return [(arm.place, arm.name) for arm in each.arms]


def _scaled(key: str, factor: float) -> Value:
    def value(line: Mapping[str, float]) -> float | None:
        found = line.get(key)
        return factor * found if isinstance(found, int | float) and np.isfinite(found) else None

    return value


def _over_steps(
    each: ResultSet, logs: Mapping[str, Sequence[Lines]], value: Value, start: float | None = None
) -> list[Curve]:
    """Of each method the mean over its runs at the steps that all of them logged, and the lowest and highest run."""
    curves = []
    for arm in each.arms:
        runs = []
        for lines in logs[arm.name]:
            found = {line["step"]: at for line in lines if (at := value(line)) is not None}
            if found:
                runs.append(found | ({0: start} if start is not None else {}))
        if not runs:
            continue
        steps = sorted(set.intersection(*(set(run) for run in runs)))
        if not steps:
            continue
        y_RxT = np.array([[run[step] for step in steps] for run in runs])
        low, high = (y_RxT.min(axis=0).tolist(), y_RxT.max(axis=0).tolist()) if len(runs) > 1 else ([], [])
        curves.append(Curve(arm.place, steps, y_RxT.mean(axis=0).tolist(), low, high, marks=len(steps) <= 8))
    return curves


def _ends(each: ResultSet, curves: Sequence[Curve], unit: str, *, sign: bool = False, digits: int = 2) -> str:
    """The last value of each curve, as text for a screen reader."""
    names = {arm.place: arm.name for arm in each.arms}
    digits = 1 if unit == "%" else digits
    return "At the last step " + ", ".join(
        f"{names[curve.place]} {number(float(curve.y[-1]), digits, sign)}{unit}" for curve in curves
    )

"""Plots of an evaluation, as PNG and SVG: reliability diagram, risk–coverage curve, confusion matrix."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cotmi_jax.evaluation.calibration import risk_coverage
from cotmi_jax.evaluation.confidences import KINDS, Confidences
from cotmi_jax.evaluation.scores import Prediction
from cotmi_jax.files import Path
from cotmi_jax.report.plots import pyplot, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TITLES = {"sequence": "generated label", "closed_set": "among the choices"}
_MAX_POINTS = 1000  # of a risk–coverage curve
_MAX_CELL_TEXT = 12  # labels above which cells of a confusion matrix have no numbers
_MAX_LABEL = 18  # characters of a label on an axis


def draw_evaluation(metrics: Mapping[str, Any], predictions: Sequence[Prediction], folder: Path) -> list[str]:
    """Write what the metrics calibration and label_scores have to draw into a folder; returns the names of the files.

    metrics: those of metrics.json.
    """
    written: list[str] = []
    measured = {kind: part for kind, part in metrics.get("calibration", {}).items() if "not_available" not in part}
    if measured:
        confidences = {kind: KINDS[kind](predictions) for kind in measured}
        written += save(_reliability(measured, confidences), folder, "reliability")
        written += save(_risk_coverage(measured, confidences), folder, "risk_coverage")
    if "confusion" in metrics.get("labels", {}):
        written += save(_confusion(metrics["labels"]), folder, "confusion")
    return written


def _reliability(measured: Mapping[str, Any], confidences: Mapping[str, Confidences]) -> "Figure":
    """By kind of confidence accuracy by confidence with the range of a calibrated student, above a histogram."""
    figure, axes = pyplot().subplots(
        2,
        len(measured),
        figsize=(4.6 * len(measured), 5.2),
        layout="constrained",
        squeeze=False,
        sharex="col",
        height_ratios=(4, 1),
    )
    for column, (kind, part) in enumerate(measured.items()):
        _draw_reliability(axes[0, column], part)
        error, gap = part["errors"]["smooth_ece"], 100 * part["overconfidence"]["value"]
        floor = error["noise_floor"]
        title = (
            f"{_TITLES[kind]}, {part['n']} examples\nconfidence − accuracy {gap:+.1f} points\n"
            f"smooth error {error['value']:.3f} (calibrated: {floor['low']:.3f} to {floor['high']:.3f})"
        )
        axes[0, column].set_title(title, fontsize=10)
        start = axes[0, column].get_xlim()[0]
        axes[1, column].hist(100 * confidences[kind].confidence_N, bins=40, range=(start, 100), color="0.45")
        axes[1, column].set_xlabel("confidence, %")
        axes[1, column].set_ylabel("examples" if column == 0 else "")
    axes[0, 0].set_ylabel("accuracy, %")
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    return figure


def _draw_reliability(axes: "Axes", part: Mapping[str, Any]) -> None:
    bins = {name: np.asarray(column) for name, column in part["reliability_diagram"].items()}
    confidence, accuracy = 100 * bins["confidence"], 100 * bins["accuracy"]
    axes.plot([0, 100], [0, 100], color="0.6", linewidth=1, linestyle="--", zorder=0)
    low, high = 100 * bins["calibrated_low"], 100 * bins["calibrated_high"]
    middle = (low + high) / 2
    axes.errorbar(
        confidence,
        middle,
        (middle - low, high - middle),
        fmt="none",
        ecolor="0.8",
        elinewidth=7,
        zorder=1,
        label="a calibrated student (95%)",
    )
    axes.plot(confidence, accuracy, "C0o-", markersize=5, linewidth=1, zorder=2, label="this student")
    # Confidences are often all near 100%: the axes show where they are.
    start = min(90.0, 10 * np.floor(min(confidence.min(), accuracy.min(), low.min()) / 10))
    axes.set(xlim=(start, 101), ylim=(start - 1, 101))


def _risk_coverage(measured: Mapping[str, Any], confidences: Mapping[str, Confidences]) -> "Figure":
    figure, axes = pyplot().subplots(figsize=(5, 4), layout="constrained")
    for index, (kind, part) in enumerate(measured.items()):
        coverage, risk = risk_coverage(confidences[kind].confidence_N, confidences[kind].correct_N)
        shown = np.unique(np.linspace(0, len(risk) - 1, _MAX_POINTS).astype(int))
        auroc = part["auroc"]
        name = _TITLES[kind] + (f", AUROC {auroc['value']:.2f}" if "value" in auroc else "")
        axes.plot(100 * coverage[shown], 100 * risk[shown], f"C{index}", label=name)
        axes.axhline(100 * risk[-1], color=f"C{index}", linewidth=1, linestyle=":")
    axes.set(xlabel="answers given, the surest first, %", ylabel="wrong answers among them, %", xlim=(0, 100))
    axes.set_ylim(0, max(1.0, axes.get_ylim()[1]))
    axes.set_title("dotted: without regard to confidence", fontsize=10)
    axes.legend(frameon=False, fontsize=9)
    return figure


def _shown(label: str) -> str:
    return label if len(label) <= _MAX_LABEL else f"{label[: _MAX_LABEL - 1]}…"


def _confusion(labels: Mapping[str, Any]) -> "Figure":
    """Rows are gold labels: cells are numbers of examples, colours shares of the row."""
    counts = np.asarray(labels["confusion"])
    rows = [_shown(label) for label in labels["labels"]]
    columns = [*rows, "no label"]
    if not counts[:, -1].any():
        counts, columns = counts[:, :-1], rows
    size = 1.8 + 0.75 * max(len(columns), 3)
    figure, axes = pyplot().subplots(figsize=(size + 1.4, size), layout="constrained")
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="fraction of the gold label", shrink=0.8)
    if len(rows) <= _MAX_CELL_TEXT:
        for (row, column), count in np.ndenumerate(counts):
            dark = share[row, column] > 0.55
            axes.text(column, row, f"{count}", ha="center", va="center", color="white" if dark else "black")
    axes.set_xticks(range(len(columns)), columns, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    axes.set(xlabel="generated", ylabel="gold")
    return figure

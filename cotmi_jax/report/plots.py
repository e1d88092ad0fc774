"""Plots of what a run measured besides its losses: mutual information, and agreement of labels and rationales."""

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cotmi_jax.files import Path, read_json_lines, replace_file
from cotmi_jax.workdir.metrics import METRICS_FILE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Measurement = dict[str, float]
_CHANGE = "_change"
_BETWEEN_TASKS = "I(Z;V), label and rationale"
_OF_LABEL_TASK = {"x_z": "I(X;Z), input", "z_y": "I(Z;Y), label"}
# Fractions of generated rationales, where the run measured them.
_FRACTIONS = {
    "valid/agreement": "rationale agrees with its label",
    "valid/agreement_permuted": "with another example's label",
    "valid/true_steps": "steps that are true",
}


def pyplot() -> Any:
    """matplotlib.pyplot, imported where it is needed: it takes half a second, and most commands draw nothing."""
    import matplotlib

    matplotlib.use("agg")  # without a display; has to precede the import of pyplot
    import matplotlib.pyplot as plt

    return plt


def read_measurements(workdir: Path) -> list[Measurement]:
    """The lines of a run's metrics.jsonl with mutual-information estimates, in the order of the steps."""
    return _measurements(read_json_lines(workdir / METRICS_FILE))


def _measurements(lines: list[Measurement]) -> list[Measurement]:
    return [line for line in lines if "mi/x_z_change" in line]


def _draw_changes(axes: "Axes", lines: list[Measurement], labels: Mapping[str, str], title: str) -> None:
    """Curves of the changes since the initial weights, with their standard errors.

    A run that was resumed with other mi.monitor.estimators has those of each start in its own lines.
    """
    for index, (name, label) in enumerate(labels.items()):
        own = [line for line in lines if f"mi/{name}{_CHANGE}" in line]
        steps = [line["step"] for line in own]
        change, error = ([line[f"mi/{name}_{key}"] for line in own] for key in ("change", "change_error"))
        axes.plot(steps, change, f"C{index}-", marker=".", label=label)
        low, high = ([x + sign * dx for x, dx in zip(change, error, strict=True)] for sign in (-1, 1))
        axes.fill_between(steps, low, high, color=f"C{index}", alpha=0.2, linewidth=0)
    axes.axhline(0.0, color="0.7", linewidth=1, zorder=0)
    axes.set(xlabel="training step", ylabel="nats since the initial weights", title=title)
    axes.legend(frameon=False)


def _draw_fractions(axes: "Axes", lines: list[Measurement]) -> None:
    for index, (key, label) in enumerate(_FRACTIONS.items()):
        points = [(line["step"], 100 * line[key]) for line in lines if key in line]
        if points:
            axes.plot(*zip(*points, strict=True), f"C{index}-", marker=".", label=label)
    axes.set(xlabel="training step", ylabel="% of valid rationales", title="Rationales", ylim=(0, 100))
    axes.legend(frameon=False)


def draw_information(workdir: Path, path: Path) -> bool:
    """Writes a PNG of how mutual information and rationales changed; False if a run has fewer than two measurements."""
    logged = read_json_lines(workdir / METRICS_FILE)
    lines = _measurements(logged)
    if len(lines) < 2:
        return False
    plt = pyplot()
    generated = [line for line in logged if _FRACTIONS.keys() & line.keys()]
    panels = 2 + bool(generated)
    figure, axes = plt.subplots(1, panels, figsize=(5 * panels, 4), layout="constrained")
    keys = dict.fromkeys(key for line in lines for key in line if key.startswith("mi/") and key.endswith(_CHANGE))
    names = [key[3 : -len(_CHANGE)] for key in keys]
    estimators = {name: name for name in names if name not in _OF_LABEL_TASK}
    _draw_changes(axes[0], lines, estimators, _BETWEEN_TASKS)
    _draw_changes(axes[1], lines, _OF_LABEL_TASK, "Label task: input and label")
    if generated:
        _draw_fractions(axes[2], generated)
    replace_file(path, _image(figure, "png"))
    plt.close(figure)
    return True


def save(figure: "Figure", folder: Path, name: str) -> list[str]:
    """Write a figure as NAME.png and NAME.svg and close it; returns the names of the files."""
    for kind in ("png", "svg"):
        replace_file(folder / f"{name}.{kind}", _image(figure, kind))
    pyplot().close(figure)
    return [f"{name}.png", f"{name}.svg"]


def _image(figure: "Figure", kind: str) -> bytes:
    import matplotlib

    image = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "", "svg.fonttype": "none"}):  # the same file each time; texts as text
        figure.savefig(image, format=kind, dpi=120, metadata={"Date": None} if kind == "svg" else None)
    return image.getvalue()

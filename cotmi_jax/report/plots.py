"""Pictures of a run's measurements."""

import io
from typing import Any

import matplotlib

from cotmi_jax.files import Path, read_json_lines, replace_file

matplotlib.use("agg")  # files only; before pyplot is imported
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

Line = dict[str, float]


def read_measurements(workdir: Path) -> list[Line]:
    """The lines of a run's metrics.jsonl that the information monitor wrote, by step."""
    return [line for line in read_json_lines(workdir / "metrics.jsonl") if "mi/plane_x_z" in line]


def _between(axes: Axes, lines: list[Line]) -> None:
    steps = [line["step"] for line in lines]
    names = [key[3:-8] for key in lines[0] if key.startswith("mi/") and key.endswith("_control")]
    for index, name in enumerate(names):
        for key, style, label in ((name, "-", name), (f"{name}_control", ":", f"{name}, permuted pairs")):
            axes.plot(steps, [line[f"mi/{key}"] for line in lines], f"C{index}{style}", marker=".", label=label)
        low, high = ([line[f"mi/{name}"] + s * line[f"mi/{name}_error"] for line in lines] for s in (-1, 1))
        axes.fill_between(steps, low, high, color=f"C{index}", alpha=0.2, linewidth=0)
    axes.set(xlabel="training step", ylabel="held-out I(Z;V), nats", title="Between the two tasks")
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.legend(frameon=False)


def _plane(axes: Axes, lines: list[Line]) -> Any:
    x, y, x_error, y_error = (
        [line[f"mi/plane_{key}"] for line in lines] for key in ("x_z", "z_y", "x_z_error", "z_y_error")
    )
    axes.errorbar(x, y, xerr=x_error, yerr=y_error, fmt="-", color="0.7", linewidth=1, zorder=1)
    points = axes.scatter(x, y, c=[line["step"] for line in lines], cmap="viridis", zorder=2)
    axes.set(xlabel="I(X;Z), lower bound in nats", ylabel="I(Z;Y), lower bound in nats")
    axes.set_title("Information plane of the label task")
    return points


def draw_information(workdir: Path, path: Path) -> bool:
    """Draw I(Z;V) over training beside the information plane into a PNG; False where fewer than two were measured."""
    lines = read_measurements(workdir)
    if len(lines) < 2:
        return False
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    _between(left, lines)
    figure.colorbar(_plane(right, lines), ax=right, label="training step")
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120)
    plt.close(figure)
    replace_file(path, picture.getvalue())
    return True

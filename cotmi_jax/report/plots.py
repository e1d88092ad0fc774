"""Plots of the mutual-information estimates of a run."""

import io
from typing import TYPE_CHECKING, Any

from cotmi_jax.files import Path, read_json_lines, replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Measurement = dict[str, float]


def read_measurements(workdir: Path) -> list[Measurement]:
    """The lines of a run's metrics.jsonl with mutual-information estimates, in the order of the steps."""
    return [line for line in read_json_lines(workdir / "metrics.jsonl") if "mi/plane_x_z" in line]


def _plot_between_tasks(axes: "Axes", lines: list[Measurement]) -> None:
    steps = [line["step"] for line in lines]
    names = [key[3:-8] for key in lines[0] if key.startswith("mi/") and key.endswith("_control")]
    for index, name in enumerate(names):
        for key, style, label in ((name, "-", name), (f"{name}_control", ":", f"{name}, permuted pairs")):
            axes.plot(steps, [line[f"mi/{key}"] for line in lines], f"C{index}{style}", marker=".", label=label)
        low, high = ([line[f"mi/{name}"] + sign * line[f"mi/{name}_error"] for line in lines] for sign in (-1, 1))
        axes.fill_between(steps, low, high, color=f"C{index}", alpha=0.2, linewidth=0)
    axes.set(xlabel="training step", ylabel="held-out I(Z;V), nats", title="Between the two tasks")
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.legend(frameon=False)


def _plot_plane(axes: "Axes", lines: list[Measurement]) -> Any:
    x, y, x_error, y_error = (
        [line[f"mi/plane_{key}"] for line in lines] for key in ("x_z", "z_y", "x_z_error", "z_y_error")
    )
    axes.errorbar(x, y, xerr=x_error, yerr=y_error, fmt="-", color="0.7", linewidth=1, zorder=1)
    points = axes.scatter(x, y, c=[line["step"] for line in lines], cmap="viridis", zorder=2)
    axes.set(xlabel="I(X;Z), lower bound in nats", ylabel="I(Z;Y), lower bound in nats")
    axes.set_title("Information plane of the label task")
    return points


def draw_information(workdir: Path, path: Path) -> bool:
    """Writes a PNG with I(Z;V) over training and the information plane; False if a run has fewer than two estimates."""
    lines = read_measurements(workdir)
    if len(lines) < 2:
        return False
    # Imported where it is needed: it takes half a second, and most evaluations draw nothing.
    import matplotlib

    matplotlib.use("agg")  # without a display; has to precede the import of pyplot
    import matplotlib.pyplot as plt

    figure, (curves, plane) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    _plot_between_tasks(curves, lines)
    figure.colorbar(_plot_plane(plane, lines), ax=plane, label="training step")
    image = io.BytesIO()
    figure.savefig(image, dpi=120)
    plt.close(figure)
    replace_file(path, image.getvalue())
    return True

"""Where a run's numbers go: JSON lines, TensorBoard, and a progress bar or plain lines."""

import json
import os
import sys
from collections.abc import Mapping

from tensorboardX import SummaryWriter
from tqdm import tqdm

from cotmi_jax.files import Path, is_remote
from cotmi_jax.training.mirror import Mirror


def _truncate(path: Path, step: int) -> None:
    """Drop the lines after `step`, which a resumed run writes again, and a last line that a kill cut short."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        if line.endswith("\n") and json.loads(line)["step"] <= step:
            kept.append(line)
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept))
    os.replace(temporary, path)


class MetricWriter:
    """Appends {"step": …, name: value} lines to {workdir}/metrics.jsonl and the same scalars to {workdir}/tensorboard.

    Started at step n it first drops what an interrupted run wrote after n, so that the file holds every step once.
    """

    def __init__(self, workdir: Path, *, start: int):
        self._mirror = Mirror(workdir) if is_remote(workdir) else None
        if self._mirror:
            self._mirror.fetch("metrics.jsonl")
            workdir = self._mirror.folder
        path = workdir / "metrics.jsonl"
        _truncate(path, start)
        self._lines = open(path, "a", buffering=1)
        self._tensorboard = SummaryWriter(str(workdir / "tensorboard"), purge_step=start + 1)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of a step."""
        self._lines.write(json.dumps({"step": step, **metrics}) + "\n")
        for name, value in metrics.items():
            self._tensorboard.add_scalar(name, value, step)
        self._tensorboard.flush()  # else a kill takes up to two minutes of it, which a resumed run does not write again
        if self._mirror:
            self._mirror.copy(now=False)

    def flush(self) -> None:
        """Return once all of it is in the workdir: due before a checkpoint, after which nothing is written again."""
        if self._mirror:
            self._mirror.copy(now=True)

    def close(self) -> None:
        """Flush both."""
        self._lines.close()
        self._tensorboard.close()
        if self._mirror:
            self._mirror.close()


class Progress:
    """A bar on a terminal; elsewhere a line now and then, fit for a log."""

    def __init__(self, *, start: int, stop: int):
        self._stop = stop
        self._bar = tqdm(total=stop, initial=start, unit="step", dynamic_ncols=True) if sys.stderr.isatty() else None

    def step(self) -> None:
        """One more step is done."""
        if self._bar is not None:
            self._bar.update()

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show metrics: behind the bar, or as a line."""
        text = " ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        if self._bar is not None:
            self._bar.set_postfix_str(text)
        else:
            print(f"step {step}/{self._stop} {text}", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """A line of its own."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()

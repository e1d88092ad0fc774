"""Where a run's numbers go: JSON lines, TensorBoard, and a progress bar or plain lines."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from tensorboardX import SummaryWriter
from tqdm import tqdm


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

    Started at step n it first drops what an interrupted run wrote after n, so that the file holds every step once. In
    all processes but the first it is given no workdir and writes nothing.
    """

    def __init__(self, workdir: Path | None, *, start: int):
        self._lines: IO[str] | None = None
        if workdir is None:
            return
        path = workdir / "metrics.jsonl"
        _truncate(path, start)
        self._lines = path.open("a", buffering=1)
        self._tensorboard = SummaryWriter(str(workdir / "tensorboard"), purge_step=start + 1)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of a step."""
        if self._lines is None:
            return
        self._lines.write(json.dumps({"step": step, **metrics}) + "\n")
        for name, value in metrics.items():
            self._tensorboard.add_scalar(name, value, step)
        self._tensorboard.flush()  # else a kill takes up to two minutes of it, which a resumed run does not write again

    def close(self) -> None:
        """Flush both."""
        if self._lines is None:
            return
        self._lines.close()
        self._tensorboard.close()


class Progress:
    """A bar on a terminal; elsewhere a line now and then, fit for a log; nothing where it is silent."""

    def __init__(self, *, start: int, stop: int, silent: bool = False):
        self._stop, self._silent = stop, silent
        bar = not silent and sys.stderr.isatty()
        self._bar = tqdm(total=stop, initial=start, unit="step", dynamic_ncols=True) if bar else None

    def step(self) -> None:
        """One more step is done."""
        if self._bar is not None:
            self._bar.update()

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show metrics: behind the bar, or as a line."""
        text = " ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        if self._bar is not None:
            self._bar.set_postfix_str(text)
        elif not self._silent:
            print(f"step {step}/{self._stop} {text}", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """A line of its own."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        elif not self._silent:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()

"""What a run logs: metrics as JSON lines, everything through trackers, and its progress on a terminal."""

import errno
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from cotmi_jax.errors import UserError
from cotmi_jax.files import Path, as_path, is_remote, read_json_lines, replace_file, run_all, user_error_on_write
from cotmi_jax.workdir.mirror import Mirror
from cotmi_jax.workdir.trackers import TRACKERS, TrackedRun

METRICS_FILE = "metrics.jsonl"


def _truncate(path: Path, step: int) -> None:
    """Drop the lines after `step`, which a resumed run writes again, and a last line that a kill truncated."""
    if not path.exists():
        return
    kept = []
    for number, line in enumerate(read_json_lines(path), 1):
        if not isinstance(line.get("step"), int):
            raise UserError(f"{path}, line {number}: metrics without a step: remove the line")
        if line["step"] <= step:
            kept.append(json.dumps(line) + "\n")
    replace_file(path, "".join(kept))


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class MetricWriter:
    """Appends {"step": …, name: value} lines to {workdir}/metrics.jsonl, and passes what is logged to the trackers.

    Started at step n it first drops the lines of an interrupted run after n, so that the file holds every step once.
    All methods raise UserError if the files cannot be written.

    trackers: names of registered ones. project, config, say: for the trackers, see TrackedRun.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        start: int,
        trackers: Sequence[str] = ("tensorboard",),
        project: str = "cotmi_jax",
        config: Mapping[str, Any] | None = None,
        say: Callable[[str], None] = _print,
    ):
        self._mirror = Mirror(workdir) if is_remote(workdir) else None
        if self._mirror:
            self._mirror.fetch(METRICS_FILE)
        folder = self._mirror.folder if self._mirror else workdir
        self._path = folder / METRICS_FILE
        with user_error_on_write(self._path):
            _truncate(self._path, start)
            self._lines = open(self._path, "a", buffering=1)
        run = TrackedRun(workdir, as_path(str(folder)), start, project, config or {}, say)
        self._trackers = [TRACKERS[name](run) for name in trackers]

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of a step; on a local disk the operating system has them when this returns."""
        with user_error_on_write(self._path):
            if not self._path.exists():  # writing to an open file succeeds even after it was removed
                raise FileNotFoundError(errno.ENOENT, "", str(self._path))
            self._lines.write(json.dumps({"step": step, **metrics}) + "\n")
        for tracker in self._trackers:
            tracker.scalars(step, metrics)
        if self._mirror:
            self._mirror.copy(now=False)

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Pass texts in Markdown to the trackers."""
        for tracker in self._trackers:
            tracker.texts(step, texts)

    def flush(self) -> None:
        """Return once all lines are in the workdir: required before a checkpoint, since its steps are not repeated."""
        if self._mirror:
            self._mirror.copy(now=True)

    def close(self) -> None:
        """Flush all."""
        ends = [tracker.close for tracker in self._trackers] + ([self._mirror.close] if self._mirror else [])
        with run_all(*ends), user_error_on_write(self._path):
            self._lines.close()


class SilentWriter:
    """The MetricWriter of all processes but the first."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write nothing."""

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Write nothing."""

    def flush(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


class Progress:
    """A progress bar on a terminal, lines elsewhere; prints nothing if `silent`."""

    def __init__(self, *, start: int, stop: int, silent: bool = False):
        self._stop, self._silent = stop, silent
        bar = not silent and sys.stderr.isatty()
        self._bar = tqdm(total=stop, initial=start, unit="step", dynamic_ncols=True) if bar else None

    def step(self) -> None:
        """One more step is done."""
        if self._bar is not None:
            self._bar.update()

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show metrics, after the bar or as a line."""
        text = " ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        if self._bar is not None:
            self._bar.set_postfix_str(text)
        elif not self._silent:
            print(f"step {step}/{self._stop} {text}", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """Print a line."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        elif not self._silent:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()

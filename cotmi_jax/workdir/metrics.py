"""Writers of a run's metrics: JSON lines, TensorBoard, and a progress bar or plain lines."""

import errno
import json
import pathlib
import sys
import tempfile
import time
from collections.abc import Mapping

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar
from tqdm import tqdm

from cotmi_jax.errors import UserError
from cotmi_jax.files import (
    Path,
    is_remote,
    read_json_lines,
    replace_file,
    run_all,
    user_error_on_failure,
    user_error_on_write,
)

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


class _Scalars:
    """Scalars for TensorBoard, in one event file per start. Written synchronously: tensorboardX's own writer uses a
    thread, which ends when the disk is full, and the run would wait for it forever."""

    def __init__(self, folder: Path, *, start: int):
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads files in order of their names, which otherwise have only the second and the host.
        self._events = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
        # TensorBoard then drops the events of former starts from this step on.
        self._write(Event(step=start + 1, session_log=SessionLog(status=SessionLog.START)))
        self._events.flush()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._write(Event(step=step, summary=scalar(name, value)))
        self._events.flush()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._events.write_event(event)

    def close(self) -> None:
        self._events.close()


class MetricWriter:
    """Appends {"step": …, name: value} lines to {workdir}/metrics.jsonl and the same scalars to {workdir}/tensorboard.

    Started at step n it first drops the lines of an interrupted run after n, so that the file holds every step once.
    All methods raise UserError if the files cannot be written.
    """

    def __init__(self, workdir: Path, *, start: int):
        self._mirror = Mirror(workdir) if is_remote(workdir) else None
        if self._mirror:
            self._mirror.fetch(METRICS_FILE)
            workdir = self._mirror.folder
        self._path, self._folder = workdir / METRICS_FILE, workdir / "tensorboard"
        with user_error_on_write(self._path):
            _truncate(self._path, start)
            self._lines = open(self._path, "a", buffering=1)
        with user_error_on_write(self._folder):
            self._scalars = _Scalars(self._folder, start=start)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of a step; on a local disk the operating system has them when this returns."""
        with user_error_on_write(self._path):
            if not self._path.exists():  # writing to an open file succeeds even after it was removed
                raise FileNotFoundError(errno.ENOENT, "", str(self._path))
            self._lines.write(json.dumps({"step": step, **metrics}) + "\n")
        with user_error_on_write(self._folder):
            self._scalars.write(step, metrics)
        if self._mirror:
            self._mirror.copy(now=False)

    def flush(self) -> None:
        """Return once all lines are in the workdir: required before a checkpoint, since its steps are not repeated."""
        if self._mirror:
            self._mirror.copy(now=True)

    def close(self) -> None:
        """Flush all."""
        ends = [self._lines.close, self._scalars.close] + ([self._mirror.close] if self._mirror else [])
        with user_error_on_write(self._folder), run_all(*ends):
            pass


class SilentWriter:
    """The MetricWriter of all processes but the first."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
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


_SECONDS = 30.0  # between copies; Cloud Storage accepts one write per second of an object, each with all its content


class Mirror:
    """A local folder whose files are copied to a remote one every 30 seconds and on request."""

    def __init__(self, place: Path):
        self._place = place
        self._scratch = tempfile.TemporaryDirectory(prefix="cotmi_jax_")
        self.folder = pathlib.Path(self._scratch.name)
        self._copied: dict[pathlib.Path, int] = {}  # copied bytes of every file
        self._last = 0.0  # so that the first copy is made immediately

    def fetch(self, name: str) -> None:
        """Copy the file of an earlier start from the workdir, if there is one."""
        with user_error_on_failure(f"cannot read {self._place / name}"):
            if (self._place / name).exists():
                (self.folder / name).write_bytes((self._place / name).read_bytes())

    def copy(self, *, now: bool) -> None:
        """Copy the files that have grown. Raises UserError where that fails."""
        if not now and time.monotonic() - self._last < _SECONDS:
            return
        for path in self.folder.rglob("*"):
            if path.is_dir() or path.stat().st_size == self._copied.get(path):
                continue
            content, target = path.read_bytes(), self._place / str(path.relative_to(self.folder))
            with user_error_on_write(target):
                replace_file(target, content)
            self._copied[path] = len(content)
        self._last = time.monotonic()

    def close(self) -> None:
        """Copy everything, and remove the local folder."""
        try:
            self.copy(now=True)
        finally:
            self._scratch.cleanup()

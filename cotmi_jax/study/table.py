"""What a study looks like on a terminal: counts, time left, the runs that are running or failed."""

import datetime
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import TextIO

from cotmi_jax.errors import UserError
from cotmi_jax.files import is_remote, read_json_lines
from cotmi_jax.study.commands import train_command
from cotmi_jax.study.estimate import estimate, seconds_left
from cotmi_jax.study.identity import changed_settings
from cotmi_jax.study.record import State, StudyRecord, StudyRun
from cotmi_jax.study.study import Study
from cotmi_jax.workdir.metrics import METRICS_FILE

_STATES: tuple[State, ...] = ("done", "running", "failed", "pending")


def headline(record: StudyRecord) -> str:
    """The counts of a study's runs by state, and the time left."""
    counts = Counter(run.state for run in record.runs)
    states = ", ".join(f"{counts[state]} {state}" for state in _STATES)
    left = seconds_left(record)
    time = "" if left is None else f"; about {duration(left)} left"
    if left is None and counts["pending"] + counts["running"]:
        time = "; time left not available: no run is done yet"
    return f"{record.name}: {states}, {len(record.runs)} runs{time}"


def duration(seconds: float) -> str:
    """A time for people."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def run_lines(runs: Sequence[StudyRun]) -> list[str]:
    """A line for each run: state, name, and what is known of it."""
    width = max((len(run.name) for run in runs), default=0)
    return [f"  {run.state:<8}{run.name:<{width}}  {_detail(run)}".rstrip() for run in runs]


def _detail(run: StudyRun) -> str:
    if run.state == "running":
        step = _step(run)
        return f"{f'step {step}, ' if step else ''}{run.holder}"
    if run.state == "failed":
        return run.reason
    if run.state == "pending" and run.job:
        return f"submitted: {run.job}"
    return duration(run.seconds) if run.seconds else ""


def _step(run: StudyRun) -> int:
    """The last step that a run has logged; 0 if it has logged none, or in a bucket, where it is not looked up."""
    if is_remote(run.workdir):
        return 0
    try:
        lines = read_json_lines(run.workdir / METRICS_FILE)
    except (OSError, UserError):  # the training, which repairs the file or ends with its name, is what it concerns
        return 0
    return int(lines[-1].get("step", 0)) if lines else 0


def status(record: StudyRecord) -> str:
    """All of a study: the counts, every run, and the runs that are no longer in the study file."""
    lines = [headline(record), *run_lines(record.runs)]
    if record.removed:
        lines += [f"no longer in the study file, or of earlier code or data ({len(record.removed)}):"]
        lines += run_lines(record.removed)
    return "\n".join(lines)


class Display:
    """The state of a study while a worker runs: a table that is redrawn on a terminal, elsewhere a line a change."""

    def __init__(self, study: Study, stream: TextIO | None = None):
        self._study, self._stream = study, stream or sys.stderr
        self._live = self._stream.isatty()
        self._drawn = 0  # lines on the terminal
        self._last = ""
        self._say = study.say

    def __enter__(self) -> "Display":
        self._study.say = self.say
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._clear()
        self._study.say = self._say

    def say(self, text: str) -> None:
        """Print a line, above the table."""
        self._clear()
        self._say(f"{datetime.datetime.now():%H:%M:%S} {text}")

    def show(self, record: StudyRecord) -> None:
        """Draw the table, or print a line if a run has changed its state."""
        if self._live:
            columns, rows = shutil.get_terminal_size((100, 24))
            running = [run for run in record.runs if run.state in ("running", "failed")]
            lines = [headline(record), *run_lines(running)][: rows - 2]
            self._clear()
            print("\n".join(line[: columns - 1] for line in lines), file=self._stream, flush=True)
            self._drawn = len(lines)
            return
        states = repr([(run.name, run.state) for run in record.runs])
        if states != self._last:
            self._last = states
            self.say(headline(record))

    def end(self, record: StudyRecord) -> None:
        """The last word: counts, and the runs that failed."""
        self._clear()
        failed = [run for run in record.runs if run.state == "failed"]
        print("\n".join([headline(record), *run_lines(failed)]), file=self._stream, flush=True)

    def _clear(self) -> None:
        if self._drawn:
            self._stream.write(f"\x1b[{self._drawn}F\x1b[J")  # to the first line of the table; erase from there on
            self._drawn = 0


def dry_run(study: Study, topology: str = "") -> str:
    """The runs that would be run, a command to train each by hand, and the hours that they are estimated to take.

    topology: a slice to compile the runs for, as of aot; "": by the times of the runs that are done.
    """
    record, entries = study.record(), study.preview()
    done = [run for run in record.runs if run.state == "done"]
    left = [entry for entry in entries if entry.run.state != "done"]
    lines = []
    for entry in entries:
        command = shlex.join(train_command(entry.planned, entry.run)[1:])
        lines += [f"{entry.run.name}: {entry.run.state}", f"  python {command}"]
    if topology:
        from cotmi_jax.study.compiled import compiled_hours  # imports the compilers of slices

        times = compiled_hours([entry.planned for entry in left], topology, study.say)
        what = f"device-hours of {topology} at least, for training at the roofline without communication"
    else:
        found = [estimate(changed_settings(entry.planned.config), done) for entry in left]
        times = [None if seconds is None else seconds / 3600 for seconds in found]
        what = "hours of one worker, by the runs that are done"
    known = [time for time in times if time is not None]
    total = f"{len(entries)} runs, {len(left)} of them not done"
    if known:
        total += f": {sum(known):.1f} {what}"
    if len(known) < len(times):
        reason = "see above" if topology else "no run like them is done; --topology estimates from compiled programs"
        total += f"; hours of {len(times) - len(known)} runs are not available: {reason}"
    return "\n".join([*lines, total])

"""A worker: takes one run of a study at a time, trains and evaluates it, and records how it ended.

Any number of workers share a study. A run has a lease, a lock (workdir/lock.py) on {study}/leases/{name}.json, which
its worker holds: where the file system has locks, the system releases it when the worker ends, even if it is killed.
The run's commands inherit the locked file, and get SIGTERM when their worker ends (on Linux). So while a training saves
after its worker was killed, it still holds the run, which no other worker can start. In a bucket, and where there are
no locks, a heartbeat replaces the lock; there such a training still owns its workdir, and the worker that takes the run
over waits for its end.
"""

import contextlib
import dataclasses
import errno
import os
import signal
import socket
import time
from collections.abc import Iterator
from types import FrameType

from cotmi_jax.errors import UserError
from cotmi_jax.files import make_folder, user_error_on_write
from cotmi_jax.parallel.distributed import EXIT_PEER_LOST
from cotmi_jax.study.commands import Command, Log, evaluate_command, train_command
from cotmi_jax.study.plan import load_plan
from cotmi_jax.study.record import StudyRecord
from cotmi_jax.study.study import ChangedCode, Entry, Study
from cotmi_jax.study.table import Display
from cotmi_jax.workdir.checkpoint import LATEST, steps_saved
from cotmi_jax.workdir.lock import IN_USE, InUseError, Owner, Periods, lock

LEASES_FOLDER = "leases"
_ATTEMPTS = 3  # of a command that is killed before it saves anything new
_FULL = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))


@dataclasses.dataclass(frozen=True)
class Options:
    """Of a worker. poll: seconds between two looks at the study while a command runs or others are waited for.

    in_job: it is a process of a job, with others. If one of them is lost, it ends with code 75: the job starts again.
    """

    retry_failed: bool = False
    fail_fast: bool = False
    changed_code: ChangedCode = "error"
    poll: float = 2.0
    periods: Periods = Periods()
    in_job: bool = False


@dataclasses.dataclass(frozen=True)
class Ending:
    """How a run or a command of it ended.

    done; failed; stopped: by a signal to this worker; again: see Worker._execute; busy: it is still trained elsewhere;
    full: the disk is; lost: another worker has taken the lease over.
    """

    kind: str
    reason: str = ""


class Worker:
    """Works on a study until no run is left that it could take."""

    def __init__(self, argument: str, study: Study, options: Options):
        self._argument, self._study, self._options = argument, study, options
        self._command: Command | None = None
        self._signal = 0  # the number of the signal that stops this worker
        self._peer_lost = False
        self._failures: dict[str, int] = {}  # of runs that had failed when this worker started
        self._busy: dict[str, float] = {}  # runs still trained elsewhere, and when to try them again
        self._unreadable = ""  # why an edited study file could not be read
        self._display = Display(study)

    def work(self) -> int:
        """Run what is left. Returns 0 if all selected runs are done, 1 if some failed, 128 + the number of a signal."""
        study = self._study
        study.enroll(self._options.changed_code)
        self._failures = {run.name: run.failures for run in study.record().runs if run.state == "failed"}
        with self._signals(), self._display:
            while not self._signal and not self._peer_lost:
                self._reload()
                study.check_code()
                record = study.record()
                if self._options.fail_fast and self._newly_failed(record):
                    break
                todo = self._todo(record)
                if not todo:
                    break
                self._display.show(record)
                if not self._take_one(todo):
                    self._pause(self._options.poll)
        return self._result()

    def _result(self) -> int:
        record = self._study.record()
        self._display.end(record)
        if self._signal:
            self._study.say("stopped: the same command resumes")
            return 128 + self._signal
        if self._peer_lost:
            return EXIT_PEER_LOST
        return 1 if any(entry.run.state == "failed" for entry in self._study.entries(record)) else 0

    def _newly_failed(self, record: StudyRecord) -> list[str]:
        entries = [entry.run for entry in self._study.entries(record) if entry.run.state == "failed"]
        return [run.name for run in entries if run.failures > self._failures.get(run.name, 0)]

    def _todo(self, record: StudyRecord) -> list[Entry]:
        """The runs that are not finished: pending ones first, those that a worker may be working on last."""
        order = {"pending": 0, "failed": 1, "done": 2, "running": 3}
        entries = [entry for entry in self._study.entries(record) if self._is_left(entry)]
        return sorted(entries, key=lambda entry: order[entry.run.state])

    def _is_left(self, entry: Entry) -> bool:
        run = entry.run
        if run.state == "failed":
            return self._options.retry_failed and run.failures == self._failures.get(run.name, 0)
        return run.state != "done" or bool(self._study.fault(entry))

    def _take_one(self, todo: list[Entry]) -> bool:
        """Work on the first of these runs whose lease is free; whether there was one."""
        for entry in todo:
            if self._signal:
                return True
            if time.monotonic() < self._busy.get(entry.run.name, 0.0):
                continue
            with contextlib.ExitStack() as stack:
                path = self._study.folder / LEASES_FOLDER / f"{entry.run.name}.json"
                with user_error_on_write(path):
                    make_folder(path.parent)
                try:
                    lease = stack.enter_context(lock(path, self._options.periods))
                except InUseError:
                    continue
                record = self._study.record()  # another worker may have finished it meanwhile
                now = next((each for each in self._study.entries(record) if each.run.name == entry.run.name), None)
                if now is not None and self._is_left(now):
                    self._run(now, lease)
                return True
        return False

    def _run(self, entry: Entry, lease: Owner) -> None:
        """Train and evaluate a run, and record its end."""
        study, run = self._study, entry.run
        if run.state == "done":
            study.say(f"{run.name} was done, and is done again: {study.fault(entry)}")
        elif run.state == "running":
            study.say(f"{run.name} is taken over: its worker ({run.holder}) has ended")
        study.write("running", name=run.name, host=socket.gethostname(), pid=os.getpid())
        start = time.monotonic()
        log = Log(study.folder, run.name)
        try:
            ending = self._train_and_evaluate(entry, lease, log)
        finally:
            log.close()
        seconds = round(time.monotonic() - start, 3)
        if ending.kind == "done":
            study.write("done", name=run.name, seconds=seconds, evaluation=dataclasses.asdict(study.plan.evaluation))
        elif ending.kind == "failed":
            study.write("failed", name=run.name, seconds=seconds, reason=ending.reason)
            study.say(f"{run.name} failed: {ending.reason} (log: {log})")
        elif ending.kind == "lost":
            study.say(f"{run.name} is left to another worker: {ending.reason}")
        else:
            study.write("stopped", name=run.name, seconds=seconds)
            if ending.kind == "busy":
                self._busy[run.name] = time.monotonic() + self._options.periods.stale
                study.say(f"{run.name} is left for now: {ending.reason}")
        if ending.kind == "full":
            raise UserError(f"{run.name}: {ending.reason}; the same command resumes")

    def _train_and_evaluate(self, entry: Entry, lease: Owner, log: Log) -> Ending:
        run, plan, attempts = entry.run, self._study.plan, 0
        while not entry.is_trained:
            before = steps_saved(run.workdir / LATEST)
            ending = self._execute(train_command(entry.planned, run), log, lease)
            if ending.kind not in ("done", "again"):
                return ending
            attempts = 0 if steps_saved(run.workdir / LATEST) != before else attempts + 1
            if attempts >= _ATTEMPTS:
                return Ending("failed", f"{ending.reason}, {attempts} times without a new checkpoint")
        ending = self._execute(evaluate_command(plan.evaluation, run), log, lease)
        for _ in range(_ATTEMPTS - 1):
            if ending.kind == "again":
                ending = self._execute(evaluate_command(plan.evaluation, run), log, lease)
        if ending.kind != "done":
            return Ending("failed", f"evaluate: {ending.reason}") if ending.kind == "again" else ending
        done = dataclasses.replace(run, evaluation=dataclasses.asdict(plan.evaluation))
        fault = self._study.fault(Entry(entry.planned, done))
        return Ending("failed", fault) if fault else ending

    def _execute(self, command: list[str], log: Log, lease: Owner) -> Ending:
        """Run a command to its end. Kind "again": it was killed or stopped, or a process of it was lost."""
        if self._signal:  # it came between two commands
            return Ending("stopped")
        self._command = Command(command, log, lease.descriptor)
        if self._signal:  # it came while the command was started
            self._command.stop()
        try:
            while (code := self._command.wait(self._options.poll)) is None:
                try:
                    lease.check()
                except UserError as error:
                    self._command.stop(kill=True)
                    return Ending("lost", str(error))
                with contextlib.suppress(UserError, OSError):  # only shown, and again at the next look
                    self._display.show(self._study.record())
        except BaseException:
            self._command.stop()
            if self._command.wait(60.0) is None:
                self._command.stop(kill=True)
                self._command.wait(60.0)
            raise
        finally:
            self._command = None
        if self._signal:
            return Ending("stopped")
        if code == 0:
            return Ending("done", "ended before its last step")
        reason = log.last_line().removeprefix("error: ")
        if code in (1, 2):
            if IN_USE in reason:
                return Ending("busy", reason)
            return Ending("full" if any(text in reason for text in _FULL) else "failed", reason or f"exit code {code}")
        if code == EXIT_PEER_LOST:
            self._peer_lost = self._options.in_job
            return Ending("stopped" if self._peer_lost else "again", "another process of the run was lost")
        return Ending("again", f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}")

    def _reload(self) -> None:
        """Read the study file again if it was edited. If it cannot be used, that is reported and the plan stays."""
        study = self._study
        if study.plan.is_current():
            return
        try:
            study.replan(load_plan(self._argument))
            study.say(f"{self._argument} has changed, and was read again")
            self._unreadable = ""
        except UserError as error:
            if str(error) != self._unreadable:
                self._unreadable = str(error)
                study.say(f"{self._argument} has changed and cannot be used, the runs stay as they were: {error}")

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self._signal and time.monotonic() < end:
            time.sleep(min(0.2, seconds))

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """On SIGINT and SIGTERM the command saves and ends, and this worker with it; a second one kills the command."""

        def stop(number: int, frame: FrameType | None) -> None:
            if self._command is not None:
                self._command.stop(kill=bool(self._signal))
            if self._signal:
                raise KeyboardInterrupt
            self._signal = number

        old = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

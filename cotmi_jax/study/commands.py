"""The commands of a run, each in a process of its own whose output goes to the run's log."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path as LocalPath

from cotmi_jax.files import Path, as_path, copy_file, is_remote, make_folder, user_error_on_write
from cotmi_jax.study.grid import Evaluation
from cotmi_jax.study.plan import PlannedRun
from cotmi_jax.study.record import StudyRun

LOGS_FOLDER = "logs"
# Executes its arguments after the first, the process that starts it, at whose end the system sends SIGTERM (1 is
# PR_SET_PDEATHSIG): a training then saves and ends. subprocess's preexec_fn would fork, which JAX warns of.
_TIED = (
    "import ctypes, os, signal, sys; ctypes.CDLL(None).prctl(1, signal.SIGTERM); "
    "os.getppid() == int(sys.argv[1]) or sys.exit(143); os.execv(sys.argv[2], sys.argv[2:])"
)
_TAIL_BYTES = 8192


def train_command(planned: PlannedRun, run: StudyRun) -> list[str]:
    """The training of a run, which resumes where there is a checkpoint."""
    return [sys.executable, "-m", "cotmi_jax.train", *planned.flags(), f"--workdir={run.workdir}"]


def evaluate_command(evaluation: Evaluation, run: StudyRun) -> list[str]:
    """The evaluation of a trained run."""
    flags = [f"--workdir={run.workdir}", f"--split={evaluation.split}", f"--checkpoint={evaluation.checkpoint}"]
    if evaluation.metrics is not None:
        flags.append(f"--metrics={evaluation.metrics}")
    if evaluation.information is not None:
        flags.append("--information" if evaluation.information else "--noinformation")
    return [sys.executable, "-m", "cotmi_jax.evaluate", *flags]


class Log:
    """The log of a run: a file that commands append to; in a bucket, a local file that is copied there."""

    def __init__(self, folder: Path, name: str):
        self._place = folder / LOGS_FOLDER / f"{name}.log"
        self._scratch = tempfile.mkdtemp(prefix="cotmi_jax_log_") if is_remote(folder) else None
        self.path = LocalPath(self._scratch, f"{name}.log") if self._scratch else LocalPath(str(self._place))
        with user_error_on_write(self._place):
            make_folder(self._place.parent)
            if self._scratch and self._place.exists():
                copy_file(self._place, as_path(str(self.path)))
            self.path.touch()

    def last_line(self) -> str:
        """The last line that is not blank; "" if there is none."""
        if not self.path.exists():
            return ""
        with self.path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def close(self) -> None:
        """Copy the log to the bucket, if the study is in one."""
        if self._scratch:
            with user_error_on_write(self._place):
                copy_file(as_path(str(self.path)), self._place)
            shutil.rmtree(self._scratch)

    def __str__(self) -> str:
        return str(self._place)


class Command:
    """A command that is running. `lease`: a descriptor that it inherits, and so the lock of the locked file.

    It has a process group of its own: Ctrl-C on a terminal reaches the worker alone, which then ends it by `stop`. On
    Linux it also gets SIGTERM where this process ends without a word.
    """

    def __init__(self, command: Sequence[str], log: Log, lease: int | None):
        with log.path.open("ab") as output:
            output.write(f"$ {' '.join(command)}\n".encode())
            output.flush()
            tied = [sys.executable, "-SE", "-c", _TIED, str(os.getpid())] if sys.platform == "linux" else []
            self._process = subprocess.Popen(
                [*tied, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=() if lease is None else (lease,),
                process_group=0,
            )
        self._asked = False  # to save and end: the second time would kill it

    def wait(self, seconds: float) -> int | None:
        """The exit code, negative for a signal that ended it; None if it is still running after this time."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def stop(self, *, kill: bool = False) -> None:
        """Ask it to save and end, or end it at once."""
        if self._process.poll() is None and (kill or not self._asked):
            self._asked = True
            self._process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)

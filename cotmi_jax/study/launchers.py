"""Each run of a study as a job of a scheduler, through the scripts of launch/. A job is a worker for its one run.

Of a job with several processes the first is the worker, and the others are its companions: they run the same commands,
and write nothing to the study.
"""

import os
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path as LocalPath
from types import FrameType

from cotmi_jax.errors import UserError
from cotmi_jax.study.commands import evaluate_command, train_command
from cotmi_jax.study.record import StudyRun
from cotmi_jax.study.study import ChangedCode, Entry, Study

_ROOT = LocalPath(__file__).parents[2]
# By --launcher: the script, and its command.
LAUNCHERS = {"slurm": ("slurm.sh", "run"), "xpk": ("gke_xpk.sh", "run"), "queued": ("tpu_vm.sh", "watch")}
# Of the index of a process in its job, as distributed.py and the schedulers name it; absent: there is one process.
_RANKS = ("COTMI_PROCESS_ID", "SLURM_PROCID", "TPU_WORKER_ID", "OMPI_COMM_WORLD_RANK")
_SHORT = 39  # most characters of an XPK workload


def launch_commands(launcher: str, flags: Sequence[str], argument: str, study: Study, entry: Entry) -> list[list[str]]:
    """The commands that submit a run. flags: of the script. argument: the study file, as given.

    A TPU of queued resources is created for the run, and deleted after it: tpu_vm.sh returns when the run has ended.
    """
    script, verb = LAUNCHERS[launcher]
    name = f"{entry.planned.label}-{entry.run.hash}"
    short = _short_name(entry.planned.label, entry.run.hash)
    own = {"slurm": [f"--name={name}"], "xpk": [f"--workload={short}"], "queued": [f"--name={short}", "--queued"]}
    worker = [f"--config={_in_checkout(argument)}", f"--workdir={study.folder}", f"--only={name}"]
    # The job's image has its own package versions: they are recorded, and change no names.
    worker.append("--changed_code=keep")
    if entry.run.state == "failed":
        worker.append("--retry_failed")
    start = ["bash", str(_ROOT / "launch" / script)]
    commands = [[*start, verb, *own[launcher], *flags, "--module=cotmi_jax.study", "--", *worker]]
    if launcher == "queued":
        place = [flag for flag in flags if flag.startswith(("--zone=", "--project="))]
        commands.append([*start, "delete", *own[launcher], *place])
    return commands


def submit(
    launcher: str,
    flags: Sequence[str],
    argument: str,
    study: Study,
    *,
    again: bool,
    dry_run: bool,
    changed_code: ChangedCode = "error",
) -> int:
    """Submit every selected run that is not done, has not failed, and has no job or worker; `again`: also the others.

    A job for a run that another worker still holds ends at once. Returns 0, or 1 if a run could not be submitted.
    Raises UserError where launch/ is not there, or for other code.
    """
    if not (_ROOT / "launch").is_dir():
        raise UserError(f"--launcher needs a checkout of the repository: {_ROOT} has no launch/")
    if dry_run:
        entries = study.preview()
    else:
        study.enroll(changed_code)
        entries = study.entries(study.record())
    code = 0
    for entry in entries:
        if entry.run.state == "done" and not study.fault(entry):
            continue
        if (known := _known(entry.run)) and not again:
            study.say(f"{entry.run.name} {known}: --retry_failed submits it again")
            continue
        for command in launch_commands(launcher, flags, argument, study, entry):
            if dry_run:
                command.insert(command.index("--") if "--" in command else len(command), "--dry-run")
            code = max(code, _call(command, launcher, study, entry, dry_run=dry_run))
    return code


def _known(run: StudyRun) -> str:
    """Why a run is not submitted without being asked for; "" if it was neither started nor submitted."""
    if run.state == "failed":
        return f"has failed ({run.reason})"
    if run.state == "running":
        return f"is recorded as running ({run.holder})"
    return f"was submitted before ({run.job})" if run.job else ""


def _call(command: Sequence[str], launcher: str, study: Study, entry: Entry, *, dry_run: bool) -> int:
    """Run a command of a launcher, and record what it printed last, such as the number of the job."""
    waits = launcher == "queued"
    if waits and not dry_run:
        study.write("submitted", name=entry.run.name, job=f"{launcher} {command[3].removeprefix('--name=')}")
    output = None if dry_run or waits else subprocess.PIPE
    done = subprocess.run(command, stdout=output, text=True, cwd=_ROOT, check=False)
    if done.returncode:
        study.say(f"{entry.run.name}: {command[2]} of {launcher} failed with exit code {done.returncode}")
        return 1
    if not dry_run and not waits:
        answer = (done.stdout or "").strip().splitlines()
        job = f"{launcher} job {answer[-1]}" if answer else f"{launcher} job"
        study.write("submitted", name=entry.run.name, job=job)
        study.say(f"{entry.run.name}: {job}")
    return 0


def rank(environment: Mapping[str, str]) -> int:
    """The index of this process in its job; 0 for a process by itself."""
    if not environment.get("COTMI_COORDINATOR"):
        return 0
    return next((int(environment[name]) for name in _RANKS if environment.get(name, "").isdecimal()), 0)


def accompany(study: Study) -> int:
    """As a further process of a job: run the commands of its run. Returns the exit code of the last one."""
    (entry,) = study.preview()
    running: list[subprocess.Popen[bytes]] = []
    stopped: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.append(number)
        for process in running:
            process.send_signal(signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    commands = [train_command(entry.planned, entry.run), evaluate_command(study.plan.evaluation, entry.run)]
    if entry.is_trained:
        del commands[0]
    for command in commands:
        running[:] = [subprocess.Popen(command)]
        if code := running[0].wait():
            return code
        if stopped or not entry.is_trained:
            return 128 + signal.SIGTERM
    return 0


def _short_name(label: str, hash_: str) -> str:
    """A name for XPK and Cloud TPU: lower case letters, digits and -, beginning with a letter."""
    text = re.sub(r"[^a-z0-9]+", "-", f"r-{label}".lower()).strip("-")
    return f"{text[: _SHORT - len(hash_) - 1].rstrip('-')}-{hash_}"


def _in_checkout(argument: str) -> str:
    """A study file in the checkout relative to it, since the job has a checkout of its own."""
    name, colon, variant = argument.partition(":")
    path = LocalPath(name)
    if path.is_file() and path.resolve().is_relative_to(_ROOT):
        name = str(path.resolve().relative_to(_ROOT))
    elif path.is_file():
        name = os.path.abspath(name)
    return f"{name}{colon}{variant}"

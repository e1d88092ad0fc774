"""Fakes of what the launchers call: gcloud with TPU workers, xpk, kubectl, SLURM's tools, and a trainer.

`install` puts links to this file, one for each name, into a directory for PATH. Every call adds a line of JSON to
{FAKE_CLUSTER}/calls.jsonl. With FAKE_PASSIVE nothing else happens; a call that
has FAKE_FAILURE among its arguments fails.

Workers of the one TPU are directories {FAKE_CLUSTER}/worker-{i}, in which bash runs the command of ssh, without this
environment. {FAKE_CLUSTER}/states lists the answers of `describe` of the node, one line per query, and READY
after the last; a TPU whose answer is PREEMPTED loses its workers.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

NAMES = ("gcloud", "xpk", "kubectl", "sbatch", "srun", "scancel", "squeue", "scontrol", "python3", "hostname")
WORKERS = 2


def install(directory: Path) -> None:
    """Put the fakes into a directory."""
    directory.mkdir()
    for name in NAMES:
        (directory / name).write_text(f'#!/bin/sh\nexec {sys.executable} -SE {Path(__file__).resolve()} {name} "$@"\n')
        (directory / name).chmod(0o755)
    sleep = directory / "sleep"  # tests wait less than users do
    sleep.write_text(f"#!/bin/sh\nexec {shutil.which('sleep')} 0.1\n")
    sleep.chmod(0o755)


def flag(arguments: Sequence[str], name: str) -> str:
    """The value of --name=value."""
    return next(a.split("=", 1)[1] for a in arguments if a.startswith(f"--{name}="))


def workers(here: Path) -> list[Path]:
    """The home directories of the TPU's workers."""
    return sorted(here.glob("worker-*"))


def node_state(here: Path) -> str:
    """What the next `describe` answers."""
    states = here / "states"
    first, *rest = states.read_text().split() or ["READY"]
    states.write_text("\n".join(rest))
    return first if workers(here) or first != "READY" else "GONE"


def preempt(here: Path) -> None:
    """Kill everything on the workers, as the loss of the machines does; only the state of the node remains."""
    for home in workers(here):
        pid = home / "cotmi_jax_run" / "pid"
        if pid.exists():
            try:
                os.killpg(int(pid.read_text()), signal.SIGKILL)
            except ProcessLookupError:
                pass  # it had ended
        shutil.rmtree(home)


def make_workers(here: Path) -> None:
    """New machines, with a virtual environment whose python is the fake one."""
    for index in range(WORKERS):
        python = here / f"worker-{index}" / "cotmi_jax_venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.symlink_to(shutil.which("python3") or "")


def ssh(here: Path, arguments: Sequence[str]) -> int:
    """Run --command on the workers, as gcloud does: concurrently, and failing if one fails."""
    chosen = workers(here) if flag(arguments, "worker") == "all" else [workers(here)[int(flag(arguments, "worker"))]]
    command = ["bash", "-c", flag(arguments, "command")]
    keep = {name: os.environ[name] for name in ("PATH", "FAKE_CLUSTER") if name in os.environ}
    own = ({"HOME": str(home), "FAKE_WORKER": home.name} for home in chosen)
    running = [subprocess.Popen(command, cwd=variables["HOME"], env=keep | variables) for variables in own]
    return max(process.wait() for process in running)


def pip(here: Path) -> int:
    """Fail once on the worker that {FAKE_CLUSTER}/pip names."""
    failing = here / "pip"
    if not failing.exists() or failing.read_text() != os.environ["FAKE_WORKER"]:
        return 0
    failing.unlink()
    return 1


def gcloud(here: Path, arguments: Sequence[str]) -> int:
    """`gcloud compute tpus {tpu-vm,queued-resources} …`."""
    match arguments[2:4]:
        case [_, "create"]:
            if workers(here):
                print("ERROR: ALREADY_EXISTS", file=sys.stderr)
                return 1
            make_workers(here)
        case [_, "delete"]:
            preempt(here)
        case ["queued-resources", "describe"] if workers(here):
            print("ACTIVE")
        case ["tpu-vm", "describe"] if (state := node_state(here)) != "GONE":
            if state == "PREEMPTED":
                preempt(here)
            print(state)
        case [_, "describe"]:
            print("ERROR: (gcloud.compute.tpus.describe) NOT_FOUND: Resource was not found", file=sys.stderr)
            return 1
        case ["tpu-vm", "scp"]:
            for home in workers(here):
                shutil.copy(arguments[4], home / arguments[5].split(":", 1)[1])
        case ["tpu-vm", "ssh"]:
            return ssh(here, arguments)
    return 0


def exported(variables: Mapping[str, str], names: str) -> dict[str, str]:
    """The variables that sbatch or srun passes on with --export=NAMES, and those that the fakes need."""
    own = ("SLURM_", "FAKE_")
    return {n: v for n, v in variables.items() if names == "ALL" or n in names.split(",") or n.startswith(own)}


def srun(here: Path, arguments: Sequence[str]) -> int:
    """Run SLURM_NTASKS tasks; the highest of their codes. SIGTERM is not passed on: it kills them all."""
    start = next(i for i, a in enumerate(arguments) if not a.startswith("--"))
    flags = dict(a[2:].split("=", 1) for a in arguments[:start])
    variables = exported(os.environ, flags.get("export", os.environ.get("SLURM_EXPORT_ENV", "ALL")))
    tasks = [
        subprocess.Popen(arguments[start:], env=variables | {"SLURM_PROCID": str(index)})
        for index in range(int(os.environ["SLURM_NTASKS"]))
    ]

    def end(*_: object) -> None:
        for task in tasks:
            task.kill()

    signal.signal(signal.SIGTERM, lambda *_: (end(), os._exit(143)))
    (here / "step").write_text(" ".join(str(task.pid) for task in tasks))
    while any(task.poll() is None for task in tasks):
        if flags["kill-on-bad-exit"] == "1" and any(task.poll() for task in tasks):
            end()
        time.sleep(0.02)
    return max(code if code >= 0 else 128 - code for code in (task.wait() for task in tasks))


def scancel(here: Path, arguments: Sequence[str]) -> int:
    """Signal the tasks of a step, neither what these have started (as proctrack/cgroup does) nor the batch shell."""
    for task in (here / "step").read_text().split():
        os.kill(int(task), signal.Signals[f"SIG{flag(arguments, 'signal')}"])
    return 0


def wait_for_starts(notes: Path, count: int) -> None:
    """Wait until `count` trainers have recorded their arguments."""
    while len(notes.read_text().splitlines()) < count:
        time.sleep(0.02)


def save_and_end(*_: object) -> None:
    """Signal handler; it does not use print, which the signal may have interrupted."""
    os.write(1, b"saved\n")
    os._exit(0)


def train(here: Path, arguments: Sequence[str]) -> int:
    """A trainer that records its arguments, and then behaves as {FAKE_CLUSTER}/trainer specifies."""
    names = ("HF_TOKEN", "CUDA_VISIBLE_DEVICES", "XLA_FLAGS", "JAX_NUM_CPU_DEVICES", "JAX_LOCAL_DEVICE_IDS")
    given = {n: v for n, v in os.environ.items() if n in names or n.startswith("COTMI_")}
    what = (here / "trainer").read_text() if (here / "trainer").exists() else "0"
    # "2 75 75": every process, once all have started, exits with its own code. One that fails by itself (not 75)
    # notifies the others first and so exits last; it ignores SIGTERM from the start.
    codes = what.split() if " " in what and " in " not in what else []
    own = codes[int(os.environ.get("SLURM_PROCID") or os.environ["COTMI_PROCESS_ID"])] if codes else "75"
    signal.signal(signal.SIGTERM, save_and_end if own == "75" else signal.SIG_IGN)
    print("training", flush=True)
    notes = here / "trainings.jsonl"
    with notes.open("a") as file:
        file.write(json.dumps({"arguments": list(arguments), "environment": given}) + "\n")
    if codes:
        wait_for_starts(notes, len(codes))
        time.sleep(0.0 if own == "75" else 0.8)
        return int(own)
    # "7 in 1": the process whose id is 1 ends with 7 once all have started, the others wait for a signal.
    code, _, process = what.partition(" in ")
    if process:
        wait_for_starts(notes, int(os.environ["COTMI_PROCESSES"]))
    if code == "wait" or (process and process != os.environ.get("COTMI_PROCESS_ID")):
        time.sleep(30)
    return int(code) if code != "wait" else 1


def main(name: str, arguments: list[str]) -> int:
    """Act as the program of that name."""
    here = Path(os.environ["FAKE_CLUSTER"])
    if name == "hostname":
        print("here")
        return 0
    if arguments[:2] == ["-m", "pip"] and "FAKE_WORKER" in os.environ:
        return pip(here)
    if name == "python3" and arguments[:1] == ["-m"] and arguments[1].startswith("cotmi_jax"):
        return train(here, arguments[2:])
    call = {"name": name, "arguments": arguments}
    if name == "sbatch":
        call["input"] = sys.stdin.read()
    with (here / "calls.jsonl").open("a") as file:
        file.write(json.dumps(call) + "\n")
    if os.environ.get("FAKE_FAILURE") in arguments:
        return 1
    if os.environ.get("FAKE_PASSIVE"):
        print(("ACTIVE" if "queued-resources" in arguments else "READY") if "describe" in arguments else "")
    elif name == "gcloud" and arguments[:2] == ["compute", "tpus"]:
        return gcloud(here, arguments)
    elif name == "srun":
        return srun(here, arguments)
    elif name == "scancel":
        return scancel(here, arguments)
    elif name == "xpk" and "list" in arguments:
        print("Jobset Name\nw-1  medium\nw  medium")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))

"""Launchers in a git checkout of their own, called with fake machines on PATH."""

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import fake_cluster
import pytest
from paths import REPOSITORY

SECRET = 'hf_it\'s a "secret" $HOME'
TRICKY = ['--config.a=it\'s "q" $HOME `date` \\ * ~ ;&|<>(){}#!', "--config.b=", "--config.c=ü\tz", "x  y"]

TPU = "--name=t5 --zone=us-west4-a"
POD = f"{TPU} --project=p --type=v5litepod-64"
TRAIN = ["--", "--config=configs/cqa.py", "--workdir=gs://bucket/run", "--config.data.root=it's here"]
GKE = "--cluster=c --zone=us-east5-b --project=p"
WORKLOAD = f"{GKE} --workload=w --tpu-type=v6e-16"
SLURM = "--name=cqa --time=24:00:00 --venv=/shared/venv"


def environment(home: Path, **more: str) -> dict[str, str]:
    """Environment of a launcher that finds the fakes; home is their directory."""
    plain = {"HF_TOKEN": SECRET, "WANDB_API_KEY": "wandb-secret", "FAKE_CLUSTER": str(home), "HOME": str(home)}
    return {"PATH": f"{home / 'bin'}:{os.environ['PATH']}", "TMPDIR": str(home), "USER": "u", **plain, **more}


def launch(
    root: Path, launcher: str, flags: str, extra: Sequence[str], variables: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Call a launcher of the checkout at root."""
    command = ["bash", str(root / "launch" / f"{launcher}.sh"), *shlex.split(flags), *extra]
    return subprocess.run(command, cwd=root, env=dict(variables), capture_output=True, text=True)


def make_checkout(root: Path) -> Path:
    """A git checkout of the launchers in the working tree, committed or not."""
    shutil.copytree(REPOSITORY / "launch", root / "launch")
    git = ["git", "-c", "user.name=n", "-c", "user.email=e", "-c", "init.defaultBranch=main", "-C", str(root)]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "launchers"]):
        subprocess.run([*git, *command], check=True)
    return root


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkout(tmp_path_factory.mktemp("checkout"))


@pytest.fixture
def fakes(tmp_path: Path) -> Path:
    """A directory with the fake machines, and their programs in bin."""
    fake_cluster.install(tmp_path / "bin")
    (tmp_path / "states").touch()
    return tmp_path


def recorded(fakes: Path, name: str = "calls") -> list[dict]:
    """The calls of fake programs, or the trainings, so far."""
    file = fakes / f"{name}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def until(condition: Callable[[], object]) -> None:
    """Wait until a condition on another process holds; fails after 60 s."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextlib.contextmanager
def background(command: Sequence[str], variables: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A process in a group of its own, which is killed on exit.

    It gets SIGINT, also where a shell runs the tests in its background and has them ignore SIGINT: bash cannot trap a
    signal that was ignored when it started.
    """
    process = subprocess.Popen(
        command,
        env=dict(variables),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()

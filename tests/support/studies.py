"""Studies of fake runs (fake_runs.py), and workers on them, in this process or in processes that can be killed."""

import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import fake_gcs
import fake_runs
import pytest
import runs

from cotmi_jax import files
from cotmi_jax.config import base
from cotmi_jax.study import launchers, worker
from cotmi_jax.study.plan import load_plan
from cotmi_jax.study.record import StudyRun, read_study
from cotmi_jax.study.study import Study
from cotmi_jax.study.worker import Options, Worker

TWO_ARMS = """\"\"\"The term changes nothing.\"\"\"
from cotmi_jax.config import base
from cotmi_jax.study.grid import Evaluation, arms, axis, product, seeds
EVALUATION = Evaluation()
def get_config(arg=""):
    config = base()
    config.data.dataset = "arithmetic"
    config.steps = 6
    config.checkpoint.every = 2
    config.mi.warmup_steps = config.mi.ramp_steps = 0
    return config
def sweep():
    return product(seeds(2), arms({"dss": {}, "infonce": {"objective.name": "cotmi"}}))
"""
QUICK = dict(poll=0.02, periods=worker.Periods(beat=0.1, stale=0.6, settle=0.1))


class StudyFolder:
    """A study file, the study's folder, and what the fake commands did."""

    def __init__(self, folder: Path):
        self.file, self.folder, self.fakes = folder / "two.py", folder / "S", folder / "fakes"
        self.file.write_text(TWO_ARMS)
        self.folder.mkdir()
        self.fakes.mkdir()
        fake_runs.install(self.fakes, base().to_dict())

    def edit(self, old: str, new: str) -> None:
        """Change the study file."""
        text = self.file.read_text()
        assert old in text
        self.file.write_text(text.replace(old, new))

    def act(self, acts: Mapping[str, Any]) -> None:
        """Have fake commands go wrong, as in fake_runs.py."""
        (self.fakes / "acts").write_text(json.dumps(acts))

    def study(self, only: str = "", say: Callable[[str], None] = print) -> Study:
        """The study as a process sees it."""
        return Study(self.folder, load_plan(str(self.file)), only=only, say=say)

    def work(self, only: str = "", say: Callable[[str], None] = print, **options: Any) -> int:
        """Work in this process until the end; the exit code."""
        return Worker(str(self.file), self.study(only, say), Options(**(QUICK | options))).work()

    def start(self, *flags: str, folder: Path) -> BaseProcess:
        """Start a worker in a process of its own, as the command does."""
        folder.mkdir(exist_ok=True)
        arguments = [f"--config={self.file}", f"--workdir={self.folder}", *flags]
        seconds = os.environ.get(fake_runs.STEP_SECONDS, "0.002")
        return runs.start_command("study", arguments, folder, 1, functools.partial(prepare, self.fakes, seconds))

    def runs(self) -> dict[str, StudyRun]:
        """The runs by label, without the hash."""
        return {run.name.rpartition("-")[0]: run for run in read_study(self.folder).runs}

    def states(self) -> dict[str, str]:
        """Their states."""
        return {label: run.state for label, run in self.runs().items()}

    def done(self, *commands: str) -> list[tuple[str, int]]:
        """What the fakes did: label and step, in order."""
        found = [each for each in fake_runs.done(self.fakes) if each["command"] in commands]
        return [(each["workdir"].rpartition("-")[0], each["step"]) for each in found]


def prepare(fakes: Path, step_seconds: str) -> None:
    """Have the workers of this process start fake commands.

    Processes of commands are forked from a server, which may have started before a test set its variables.
    """
    os.environ["FAKE_RUNS"], os.environ[fake_runs.STEP_SECONDS] = str(fakes), step_seconds
    fake_runs.use()


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StudyFolder]:
    """A study of four fake runs."""
    made = StudyFolder(tmp_path)
    for module in (worker, launchers):
        for name in ("train_command", "evaluate_command"):
            monkeypatch.setattr(module, name, getattr(module, name))  # so that it is as before in the end
    monkeypatch.setattr(Options.__init__, "__defaults__", Options.__init__.__defaults__)
    monkeypatch.setenv("FAKE_RUNS", str(made.fakes))
    fake_runs.use()
    yield made


@pytest.fixture(scope="module")
def store() -> Iterator[fake_gcs.FakeGcs]:
    """A bucket in this process; skips without the extra gcs."""
    if not files.GCS_INSTALLED:
        pytest.skip("gs:// needs the extra gcs")
    with fake_gcs.serving("bucket") as store, pytest.MonkeyPatch.context() as patch:
        for name in store.environment:
            patch.setenv(name, "")  # so that they are as before in the end
        fake_gcs.use(store.environment)
        files._check_bucket.cache_clear()
        files.as_path("gs://bucket/x")
        yield store
    files._check_bucket.cache_clear()

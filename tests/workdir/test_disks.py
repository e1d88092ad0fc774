"""Full disks and removed folders: each is reported with its remedy, and the run resumes from what was saved."""

import errno
import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest
import runs

from cotmi_jax.data.vocabulary import Vocabulary
from cotmi_jax.errors import UserError
from cotmi_jax.evaluation import job as evaluation_job
from cotmi_jax.files import run_all, user_error_on_write
from cotmi_jax.training.job import train
from cotmi_jax.training.state import TrainState
from cotmi_jax.workdir.checkpoint import (
    Checkpoints,
    Saved,
    steps_saved,
)
from cotmi_jax.workdir.metrics import MetricWriter
from cotmi_jax.workdir.record import record_start, run_directory
from cotmi_jax.workdir.recovery import choose

quick_compilation = runs.quick_compilation


class Disk:
    """A small file system of its own. Skips where none can be mounted."""

    def __init__(self, place: Path, size: str):
        self.place = place
        place.mkdir()
        self._mount(f"size={size}", "tmpfs")

    def _mount(self, options: str, *source: str) -> None:
        command = ["mount", *(["-t", "tmpfs"] if source else []), "-o", options, *source, str(self.place)]
        mounted = subprocess.run(command, capture_output=True, text=True)
        if mounted.returncode:
            pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")

    def enlarge(self) -> None:
        """Make room."""
        self._mount("remount,size=64m")

    def end(self) -> None:
        """Take it away."""
        subprocess.run(["umount", "--lazy", str(self.place)], check=True)


@pytest.fixture
def make_disk(tmp_path: Path) -> Iterator[Callable[[str], Disk]]:
    """Makes a Disk of a size such as 4m, which is removed when the test ends."""
    disks: list[Disk] = []

    def make(size: str) -> Disk:
        disks.append(Disk(tmp_path / "disk", size))
        return disks[-1]

    yield make
    for disk in disks:
        disk.end()


FULL = "No space left on device: make room there, and the same command resumes from the last checkpoint"


def steps_outlast_saves() -> None:
    """Have a trainer wait, once the metrics of a step are written, until no checkpoint is being written behind it."""
    managers, save, write = [], Checkpoints.save, MetricWriter.write

    def save_noted(checkpoints: Checkpoints, *given: Any) -> None:
        managers.append(checkpoints._latest.manager)
        save(checkpoints, *given)

    def write_and_wait(writer: MetricWriter, step: int, metrics: Mapping[str, float]) -> None:
        write(writer, step, metrics)
        while any(manager.is_saving_in_progress() for manager in managers):
            time.sleep(0.01)

    Checkpoints.save, MetricWriter.write = save_noted, write_and_wait  # type: ignore[method-assign]


# Embeddings so large that a failed write leaves room: metrics could fail first on a disk that small arrays fill. With
# the network and the objective that compile fastest.
LARGE = {"model.vocab_size": 8192, "model.dropout": 0.0, "objective.name": "standard"}


@pytest.mark.slow
def test_a_full_disk_is_reported_and_the_run_resumes_where_there_is_room(
    make_disk: Callable[[str], Disk], tmp_path: Path
) -> None:
    config, straight = runs.tiny_config(LARGE), tmp_path / "straight"
    assert train(config, str(straight)) == 6
    disk = make_disk("11m")  # holds the checkpoint of step 2 and the best of step 3, not the checkpoint of step 4
    workdir = disk.place / "run"
    flags = [*runs.config_flags(config), f"--workdir={workdir}"]
    result = runs.command("train", *flags, devices=8, before=steps_outlast_saves)
    assert result.code == 2 and "Traceback" not in result.err, result.err
    assert result.err.splitlines()[-1] == f"error: cannot write {workdir}/checkpoints: {FULL}"
    assert [line["step"] for line in runs.read_metrics(workdir)][-1] < 6  # it did not continue until the next one
    assert steps_saved(workdir / "checkpoints") == [2] and steps_saved(workdir / "best") == [3]
    disk.enlarge()
    assert train(config, str(workdir)) == 6
    assert json.loads((workdir / "starts.jsonl").read_text().splitlines()[-1])["step"] == 2
    runs.assert_same(runs.read_state(workdir), runs.read_state(straight))
    assert runs.read_metrics(workdir) == runs.read_metrics(straight)
    assert runs.steps_in(workdir / "checkpoints") == [4, 6]


def test_an_incomplete_checkpoint_on_a_full_disk_is_ignored(make_disk: Callable[[str], Disk]) -> None:
    disk = make_disk("2m")
    random = np.random.default_rng(0)
    checkpoints = Checkpoints(disk.place, keep=5)
    with pytest.raises(KeyboardInterrupt) as error, run_all(checkpoints.close):
        for step in (1, 2):  # of 0.4 and 3 MB
            arrays = {"student": {"w": jnp.asarray(random.normal(size=(10 ** (4 + step),)), jnp.float32)}}
            checkpoints.save(TrainState(jnp.int32(0), arrays, (jnp.ones(1),), None).items(), step, {}, {})
            if step == 1:
                checkpoints.wait()
        raise KeyboardInterrupt
    assert error.value.__notes__ == [f"cannot write {disk.place}/checkpoints: {FULL}"]
    assert choose(disk.place).latest == Saved(disk.place / "checkpoints", 1) and choose(disk.place).damaged == ()
    runs.save_states(disk.place, 2)  # what was left of it is gone, and it is small this time
    assert runs.steps_in(disk.place / "checkpoints") == [1, 2]


def test_a_failed_write_is_raised_before_the_next_one(make_disk: Callable[[str], Disk]) -> None:
    disk = make_disk("2m")
    checkpoints = Checkpoints(disk.place, keep=1)
    checkpoints.save(runs.small_state(1.0).items(), 1, {}, {})
    checkpoints.wait()
    large = jnp.asarray(np.random.default_rng(0).normal(size=(10**6,)), jnp.float32)
    checkpoints.save(TrainState(jnp.int32(0), {"student": {"w": large}}, (jnp.ones(1),), None).items(), 2, {}, {})
    with pytest.raises(UserError, match=f"^cannot write {disk.place}/checkpoints: {FULL}"), run_all(checkpoints.close):
        for _ in range(3000):
            checkpoints.check()
            time.sleep(0.01)
    assert choose(disk.place).latest == Saved(disk.place / "checkpoints", 1)


def test_metrics_on_a_full_disk_are_an_error_and_earlier_lines_stay_readable(
    make_disk: Callable[[str], Disk],
) -> None:
    disk = make_disk("64k")
    writer = MetricWriter(disk.place, start=0)
    with pytest.raises(UserError) as error, run_all(writer.close):
        for step in range(1, 100_000):
            writer.write(step, {"loss": 1.0 / step})
    message = str(error.value)
    assert message in (f"cannot write {disk.place}/{name}: {FULL}" for name in ("metrics.jsonl", "tensorboard"))
    disk.enlarge()
    MetricWriter(disk.place, start=step).close()
    lines = runs.read_metrics(disk.place)
    assert len(lines) in (step - 1, step) and lines[:2] == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}]


def test_the_files_of_a_start_on_a_full_disk_are_an_error(make_disk: Callable[[str], Disk]) -> None:
    disk = make_disk("16k")
    vocabulary = mock.create_autospec(Vocabulary, instance=True)
    vocabulary.files.return_value = {"spiece.model": b"v" * 4096}
    with pytest.raises(UserError) as error:
        record_start(disk.place, {"config": "c" * 20_000}, vocabulary, 0)
    assert str(error.value) == f"cannot write {disk.place}/run.json: {FULL}"


def test_a_checkpoint_is_complete_only_after_the_best_of_its_step(tmp_path: Path) -> None:
    """A kill between the two would lose the best student: the run resumes after its step and does not save it again."""
    checkpoints = Checkpoints(tmp_path, keep=5)
    large = jnp.asarray(np.random.default_rng(0).normal(size=(10**7,)), jnp.float32)
    checkpoints.save_best({"student": {"w": large}}, 2, {}, {})
    checkpoints.save(runs.small_state(1.0).items(), 2, {}, {})
    assert steps_saved(tmp_path / "best") == [2]
    checkpoints.close()


def test_a_later_best_that_cannot_be_deleted_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(step: int) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path))

    checkpoints = Checkpoints(tmp_path, keep=5)
    params = {"student": {"w": jnp.zeros(3)}}
    checkpoints.save_best(params, 6, {}, {})
    monkeypatch.setattr(checkpoints._best.manager, "delete", refuse)
    with pytest.raises(UserError, match="cannot write .*/best: Permission denied: make it writable"):
        checkpoints.save_best(params, 4, {}, {})
    checkpoints.close()


def test_a_removed_checkpoint_folder_is_not_created_again(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=5)
    checkpoints.save(runs.small_state(1.0).items(), 1, {}, {})
    checkpoints.wait()
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(UserError) as error, run_all(checkpoints.close):
        checkpoints.save(runs.small_state(2.0).items(), 2, {}, {})
    reason = "No such file or directory: check that the folder exists and can be reached"
    assert str(error.value).startswith(f"cannot write {tmp_path}/checkpoints: {reason}, and the same command")
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.slow
def test_a_removed_workdir_ends_the_run_immediately(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs.trained()
    write = MetricWriter.write

    def write_and_remove(writer: MetricWriter, step: int, metrics: dict[str, float]) -> None:
        write(writer, step, metrics)
        if step == 1:
            os.rename(tmp_path / "run", tmp_path / "elsewhere")

    monkeypatch.setattr(MetricWriter, "write", write_and_remove)
    with pytest.raises(UserError) as error:
        train(runs.tiny_config(), str(tmp_path / "run"))
    assert str(error.value).startswith(
        f"cannot write {tmp_path}/run/metrics.jsonl: No such file or directory: check that"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "code, words",
    [
        (errno.ENOSPC, "No space left on device: make room there"),
        (errno.EACCES, "Permission denied: make it writable"),
        (errno.EROFS, "Read-only file system: make it writable"),
        (errno.EIO, "Input/output error: check that the folder exists"),
    ],
)
def test_every_system_error_has_its_remedy(code: int, words: str) -> None:
    with pytest.raises(UserError, match=f"^cannot write /w/file: {words}"), user_error_on_write(Path("/w/file")):
        raise OSError(code, os.strerror(code))


def test_all_ends_are_called_and_the_first_error_is_raised() -> None:
    called: list[str] = []

    def end(name: str) -> None:
        called.append(name)
        raise UserError(name)

    with pytest.raises(UserError) as error, run_all(lambda: end("a"), lambda: end("b")):
        pass
    assert called == ["a", "b"] and str(error.value) == "a" and error.value.__notes__ == ["b"]


@pytest.mark.parametrize("kind", [ZeroDivisionError, KeyboardInterrupt])
def test_all_ends_are_called_where_one_is_defective_or_interrupted(kind: type[BaseException]) -> None:
    called: list[str] = []

    def end(name: str, error: BaseException) -> None:
        called.append(name)
        raise error

    def ends(body: BaseException | None) -> None:
        with run_all(lambda: end("a", kind("a")), lambda: end("b", UserError("b")), lambda: end("c", kind("c"))):
            if body is not None:
                raise body

    with pytest.raises(kind) as error:
        ends(None)
    assert called == ["a", "b", "c"] and error.value.args == ("a",)
    note, defect = error.value.__notes__
    assert note == "b" and defect.startswith("Traceback") and defect.endswith(f"{kind.__name__}: c\n")
    with pytest.raises(UserError, match="^body"):
        ends(UserError("body"))
    assert called == ["a", "b", "c"] * 2


def test_a_read_only_workdir_is_refused(make_disk: Callable[[str], Disk]) -> None:
    disk = make_disk("64k")
    disk._mount("remount,ro")
    with pytest.raises(UserError, match=f"^cannot write to --workdir {disk.place}/run: Read-only file system"):
        run_directory(str(disk.place / "run"))


@pytest.mark.slow
def test_a_workdir_behind_a_link_is_the_same_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "link").symlink_to(runs.trained())
    assert train(runs.tiny_config(), str(tmp_path / "link")) == 6
    assert "is complete: 6 of 6 steps" in capsys.readouterr().out
    assert runs.steps_in(tmp_path / "link" / "checkpoints") == runs.steps_in(runs.trained() / "checkpoints")


def test_a_kill_between_the_files_of_an_evaluation_leaves_no_mixture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation_job._write(tmp_path, {"accuracy": 0.5}, [])
    replaced = evaluation_job.replace_file

    def killed_after_one(path: Path, content: str) -> None:
        replaced(path, content)
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation_job, "replace_file", killed_after_one)
    with pytest.raises(KeyboardInterrupt):
        evaluation_job._write(tmp_path, {"accuracy": 1.0}, [])
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.jsonl"]


def test_a_line_of_metrics_that_is_not_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n\0\0\n{"step": 2}\n')
    with pytest.raises(UserError, match=rf"{tmp_path}/metrics.jsonl, line 2: no JSON object"):
        MetricWriter(tmp_path, start=2)


def test_a_line_of_metrics_without_a_step_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"loss": 2}\n')
    with pytest.raises(UserError, match=rf"{tmp_path}/metrics.jsonl, line 2: metrics without a step"):
        MetricWriter(tmp_path, start=2)


def test_a_start_within_the_second_of_another_keeps_its_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nanoseconds = itertools.count(10**18)
    monkeypatch.setattr(time, "time_ns", lambda: next(nanoseconds))
    monkeypatch.setattr(time, "time", lambda: 1e9)
    for step in range(12):
        writer = MetricWriter(tmp_path, start=step)
        writer.write(step + 1, {"loss": 1.0})
        writer.close()
    names = sorted(path.name for path in (tmp_path / "tensorboard").iterdir())
    assert len(names) == 12 and [int(name.rpartition(".")[2]) - 10**18 for name in names] == list(range(12))


def test_tensorboard_shows_a_run_with_a_truncated_last_event(tmp_path: Path) -> None:
    viewer = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    writer = MetricWriter(tmp_path, start=0)
    for step in range(1, 6):
        writer.write(step, {"loss": 1.0 / step})
    writer.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    file.write_bytes(file.read_bytes()[:-7])
    writer = MetricWriter(tmp_path, start=3)
    for step in (4, 5):
        writer.write(step, {"loss": 1.0 / step})
    writer.close()
    shown = viewer.EventAccumulator(str(tmp_path / "tensorboard"))
    shown.Reload()
    assert [event.step for event in shown.Scalars("loss")] == [1, 2, 3, 4, 5]

"""What breaks under a run: damaged checkpoints, full disks, folders that go. It is named, and nothing is lost."""

import errno
import gc
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import runs

from cotmi_jax.errors import UserError
from cotmi_jax.files import ended_by, writing
from cotmi_jax.training import checkpoint as checkpoint_module
from cotmi_jax.training.checkpoint import Checkpoints, Saved, contents, damage, find, restore_params, steps_saved
from cotmi_jax.training.loop import train
from cotmi_jax.training.recovery import choose, set_aside
from cotmi_jax.training.state import TrainState
from cotmi_jax.training.workdir import record_start
from cotmi_jax.training.writers import MetricWriter

quick_compilation = runs.quick_compilation
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def given_up_reads_end_here() -> Iterator[None]:
    """The reads that orbax gave up complain when they go: here, not in another test."""
    yield
    gc.collect()


def copy_of_trained(tmp_path: Path) -> Path:
    """A copy of the complete run, with the checkpoints of steps 4 and 6."""
    return shutil.copytree(runs.trained(), tmp_path / "run")


def state(value: float, size: int = 1000) -> TrainState:
    params = {"student": {"w": jnp.full((size,), value) * jnp.arange(size)}}
    return TrainState(jnp.int32(0), params, (jnp.float32(value), {"m": jnp.ones((3, 4))}), None)


def save_all(workdir: Path, *steps: int, keep: int = 5) -> None:
    checkpoints = Checkpoints(workdir, keep=keep)
    for step in steps:
        checkpoints.save(state(step), step, {"position": step}, {"seed": 0})
    checkpoints.close()


# Damage.


def overwrite_array(item: Path) -> None:
    largest = runs.largest(item)
    largest.write_bytes(b"\0" * largest.stat().st_size)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "params: array cut short": lambda checkpoint: runs.truncate(runs.largest(checkpoint / "params")),
    "params: array lost": lambda checkpoint: runs.largest(checkpoint / "params").unlink(),
    "params: array of zeros": lambda checkpoint: overwrite_array(checkpoint / "params"),
    "params: manifest lost": lambda checkpoint: (checkpoint / "params" / "manifest.ocdbt").unlink(),
    "params: tree cut short": lambda checkpoint: runs.truncate(checkpoint / "params" / "_METADATA"),
    "params: lost": lambda checkpoint: shutil.rmtree(checkpoint / "params"),
    "optimizer: array cut short": lambda checkpoint: runs.truncate(runs.largest(checkpoint / "optimizer")),
    "optimizer: lost": lambda checkpoint: shutil.rmtree(checkpoint / "optimizer"),
    "mi: lost": lambda checkpoint: shutil.rmtree(checkpoint / "mi"),
    "data: cut short": lambda checkpoint: runs.truncate(checkpoint / "data" / "metadata"),
    "data: lost": lambda checkpoint: shutil.rmtree(checkpoint / "data"),
    "config: lost": lambda checkpoint: shutil.rmtree(checkpoint / "config"),
    "_CHECKPOINT_METADATA: everything lost": lambda checkpoint: [shutil.rmtree(checkpoint), checkpoint.mkdir()],
}


@pytest.mark.parametrize("what", DAMAGES)
def test_damage_is_found_and_an_earlier_checkpoint_chosen(tmp_path: Path, what: str) -> None:
    workdir = copy_of_trained(tmp_path)
    DAMAGES[what](workdir / "checkpoints" / "6")
    before = sorted(workdir.rglob("*"))
    choice = choose(workdir)
    assert choice.latest == Saved(workdir / "checkpoints", 4) and choice.best is not None
    ((checkpoint, reason),) = choice.damaged
    assert checkpoint == Saved(workdir / "checkpoints", 6)
    assert reason.startswith(what.partition(":")[0] + ": ") and "\n" not in reason
    assert sorted(workdir.rglob("*")) == before


def test_an_intact_checkpoint_is_read_whole_in_groups_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    latest = find(runs.trained(), "latest")
    whole = dict(contents(latest))
    assert damage(latest) is None
    restored = runs.read_state(runs.trained())
    arrays = [leaf for leaf in whole.values() if isinstance(leaf, np.ndarray)]
    expected = jax.tree.leaves((restored.opt_state, restored.params["student"], restored.params["mi"]))
    assert sum(leaf.nbytes for leaf in arrays) == sum(leaf.nbytes for leaf in expected)
    monkeypatch.setattr(checkpoint_module, "_GROUP_BYTES", 1 << 18)
    for (name, leaf), (other_name, other) in zip(whole.items(), contents(latest), strict=True):
        assert name == other_name
        np.testing.assert_array_equal(leaf, other)


def test_training_goes_on_from_the_newest_intact_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workdir = copy_of_trained(tmp_path)
    runs.truncate(runs.largest(workdir / "checkpoints" / "6" / "optimizer"))
    (best,) = runs.steps_in(workdir / "best")
    runs.truncate(runs.largest(workdir / "best" / str(best)))
    capsys.readouterr()
    assert train(runs.tiny_config(), str(workdir)) == 6
    latest, worst = (line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: "))
    checkpoints = workdir / "checkpoints"
    assert latest.startswith(f"warning: checkpoint {checkpoints}/6 is damaged (optimizer: ")
    assert latest.endswith(f"moved to {workdir}/damaged/checkpoints-6: going on from {checkpoints}/4")
    assert worst.startswith(f"warning: checkpoint {workdir}/best/{best} is damaged (params: ")
    assert worst.endswith(f"moved to {workdir}/damaged/best-{best}: the best is sought among the steps that follow")
    assert json.loads((workdir / "starts.jsonl").read_text().splitlines()[-1])["step"] == 4
    runs.assert_same(runs.read_state(workdir), runs.read_state(runs.trained()))
    assert runs.read_metrics(workdir) == runs.read_metrics(runs.trained())
    assert runs.steps_in(checkpoints) == [4, 6] and runs.steps_in(workdir / "best") == [6]
    assert damage(Saved(checkpoints, 6)) is None
    assert sorted(path.name for path in (workdir / "damaged").iterdir()) == [f"best-{best}", "checkpoints-6"]


def test_where_all_are_damaged_training_does_not_begin_anew(tmp_path: Path) -> None:
    save_all(tmp_path, 4, 6)
    shutil.rmtree(tmp_path / "checkpoints" / "4" / "optimizer")
    (tmp_path / "checkpoints" / "6" / "params" / "manifest.ocdbt").unlink()
    with pytest.raises(UserError) as error:
        choose(tmp_path)
    message = str(error.value)
    assert message.startswith(f"every checkpoint in {tmp_path}/checkpoints is damaged (6: params: ")
    assert "; 4: optimizer: " in message and "\n" not in message and message.endswith("another --workdir")
    assert steps_saved(tmp_path / "checkpoints") == [4, 6]


def test_the_same_step_may_be_damaged_twice(tmp_path: Path) -> None:
    said: list[str] = []
    save_all(tmp_path, 1)
    for _ in range(2):
        save_all(tmp_path, 2)
        (tmp_path / "checkpoints" / "2" / "data" / "metadata").unlink()
        set_aside(tmp_path, choose(tmp_path), said.append)
    assert sorted(path.name for path in (tmp_path / "damaged").iterdir()) == ["checkpoints-2", "checkpoints-2.2"]
    assert [line.count("/damaged/checkpoints-2.2: ") for line in said] == [0, 1]


def test_what_does_not_fit_is_not_damage(tmp_path: Path) -> None:
    save_all(tmp_path, 2)
    other = {"student": {"w": jax.ShapeDtypeStruct((7, 7), jnp.float32, sharding=jnp.zeros(1).sharding)}}
    with pytest.raises(UserError, match="/checkpoints/2 is whole, but not what is to be restored"):
        restore_params(find(tmp_path, 2), {"student": {"other": other["student"]["w"]}})
    assert choose(tmp_path).damaged == ()


@pytest.mark.parametrize("failure", [PermissionError(errno.EACCES, "no"), ValueError("UNAVAILABLE: no network")])
def test_what_is_out_of_reach_is_not_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    save_all(tmp_path, 1, 2)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise failure

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", refuse)
    with pytest.raises(UserError, match=rf"checkpoint {tmp_path}/checkpoints/2 is out of reach \(.*no"):
        choose(tmp_path)


def test_a_defect_of_the_code_is_not_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_all(tmp_path, 2)

    def broken(*args: Any, **kwargs: Any) -> None:
        raise AttributeError("restore")

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", broken)
    with pytest.raises(AttributeError):
        choose(tmp_path)


def test_what_a_kill_left_of_a_checkpoint_is_cleaned_up(tmp_path: Path) -> None:
    save_all(tmp_path, 2)
    left = shutil.copytree(tmp_path / "checkpoints" / "2", tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp")
    assert choose(tmp_path).latest == Saved(tmp_path / "checkpoints", 2)
    save_all(tmp_path, 4)
    assert not left.exists() and runs.steps_in(tmp_path / "checkpoints") == [2, 4]


# Full disks and folders that go.


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
    """Makes a Disk of a size such as 4m; it goes when the test ends."""
    disks: list[Disk] = []

    def make(size: str) -> Disk:
        disks.append(Disk(tmp_path / "disk", size))
        return disks[-1]

    yield make
    for disk in disks:
        disk.end()


FULL = "No space left on device: make room there, and the same command goes on from the last checkpoint"


def test_a_run_whose_disk_is_full_says_so_and_goes_on_where_there_is_room(make_disk: Callable[[str], Disk]) -> None:
    straight = runs.trained()
    disk = make_disk("22m")  # holds the checkpoint of step 2 and the best of step 3, not the checkpoint of step 4
    workdir = disk.place / "run"
    flags = [*runs.config_flags(runs.tiny_config()), f"--workdir={workdir}"]
    result = runs.command("train", *flags, devices=8)
    assert result.code == 2 and "Traceback" not in result.err, result.err
    assert result.err.splitlines()[-1] == f"error: cannot write {workdir}/checkpoints: {FULL}"
    assert steps_saved(workdir / "checkpoints") == [2] and steps_saved(workdir / "best") == [3]
    disk.enlarge()
    assert train(runs.tiny_config(), str(workdir)) == 6
    assert json.loads((workdir / "starts.jsonl").read_text().splitlines()[-1])["step"] == 2
    runs.assert_same(runs.read_state(workdir), runs.read_state(straight))
    assert runs.read_metrics(workdir) == runs.read_metrics(straight)
    assert runs.steps_in(workdir / "checkpoints") == [4, 6]


def test_a_checkpoint_that_found_no_room_is_none_and_hides_nothing(make_disk: Callable[[str], Disk]) -> None:
    disk = make_disk("2m")
    random = np.random.default_rng(0)
    checkpoints = Checkpoints(disk.place, keep=5)
    with pytest.raises(KeyboardInterrupt) as error, ended_by(checkpoints.close):
        for step in (1, 2):  # of 0.4 and 3 MB
            arrays = {"student": {"w": jnp.asarray(random.normal(size=(10 ** (4 + step),)), jnp.float32)}}
            checkpoints.save(TrainState(jnp.int32(0), arrays, (jnp.ones(1),), None), step, {}, {})
            if step == 1:
                checkpoints.wait()
        raise KeyboardInterrupt
    assert error.value.__notes__ == [f"cannot write {disk.place}/checkpoints: {FULL}"]
    assert choose(disk.place).latest == Saved(disk.place / "checkpoints", 1) and choose(disk.place).damaged == ()
    save_all(disk.place, 2)  # what was left of it is gone, and it is small this time
    assert runs.steps_in(disk.place / "checkpoints") == [1, 2]


def test_metrics_that_find_no_room_are_an_error_and_what_there_is_stays_readable(
    make_disk: Callable[[str], Disk],
) -> None:
    disk = make_disk("64k")
    writer = MetricWriter(disk.place, start=0)
    with pytest.raises(UserError) as error, ended_by(writer.close):
        for step in range(1, 100_000):
            writer.write(step, {"loss": 1.0 / step})
    message = str(error.value)
    assert message in (f"cannot write {disk.place}/{name}: {FULL}" for name in ("metrics.jsonl", "tensorboard"))
    disk.enlarge()
    MetricWriter(disk.place, start=step).close()
    lines = runs.read_metrics(disk.place)
    assert len(lines) in (step - 1, step) and lines[:2] == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}]


def test_the_files_of_a_start_find_no_room(make_disk: Callable[[str], Disk]) -> None:
    disk = make_disk("16k")
    (disk.place / "vocabulary").write_bytes(b"v" * 4096)
    with pytest.raises(UserError) as error:
        record_start(disk.place, {"config": "c" * 20_000}, disk.place / "vocabulary", 0)
    assert str(error.value) == f"cannot write {disk.place}/run.json: {FULL}"


def test_a_checkpoint_folder_that_goes_is_not_made_anew(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=5)
    checkpoints.save(state(1.0), 1, {}, {})
    checkpoints.wait()
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(UserError) as error, ended_by(checkpoints.close):
        checkpoints.save(state(2.0), 2, {}, {})
    reason = "No such file or directory: see that the folder is there and can be reached"
    assert str(error.value).startswith(f"cannot write {tmp_path}/checkpoints: {reason}, and the same command")
    assert not (tmp_path / "checkpoints").exists()


def test_a_workdir_that_goes_ends_the_run_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        f"cannot write {tmp_path}/run/metrics.jsonl: No such file or directory: see that"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "code, words",
    [
        (errno.ENOSPC, "No space left on device: make room there"),
        (errno.EACCES, "Permission denied: make it writable"),
        (errno.EROFS, "Read-only file system: make it writable"),
        (errno.EIO, "Input/output error: see that the folder is there"),
    ],
)
def test_every_reason_has_its_way_out(code: int, words: str) -> None:
    with pytest.raises(UserError, match=f"^cannot write /w/file: {words}"), writing(Path("/w/file")):
        raise OSError(code, os.strerror(code))


def test_all_ends_are_called_and_the_first_error_is_raised() -> None:
    called: list[str] = []

    def end(name: str) -> None:
        called.append(name)
        raise UserError(name)

    with pytest.raises(UserError) as error, ended_by(lambda: end("a"), lambda: end("b")):
        pass
    assert called == ["a", "b"] and str(error.value) == "a" and error.value.__notes__ == ["b"]


def test_a_line_of_metrics_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n\0\0\n{"step": 2}\n')
    with pytest.raises(UserError, match=rf"{tmp_path}/metrics.jsonl, line 2: no line of metrics"):
        MetricWriter(tmp_path, start=2)

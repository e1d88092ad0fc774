"""Damaged checkpoints: which one a run resumes from, and which errors count as damage."""

import dataclasses
import errno
import functools
import gc
import json
import os
import shutil
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
from cotmi_jax.training.job import train
from cotmi_jax.training.state import TrainState
from cotmi_jax.workdir import checkpoint as checkpoint_module
from cotmi_jax.workdir.checkpoint import (
    Checkpoints,
    Saved,
    contents,
    damage,
    find,
    restore_json,
    restore_params,
    steps_saved,
)
from cotmi_jax.workdir.recovery import Choice, choose, set_aside

quick_compilation = runs.quick_compilation
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module", autouse=True)
def given_up_reads_end_here() -> Iterator[None]:
    """Reads that orbax abandoned are reported when they are garbage-collected: here, not in another file."""
    yield
    gc.collect()


def copy_of_trained(tmp_path: Path) -> Path:
    """A copy of the complete run, with the checkpoints of steps 4 and 6."""
    return shutil.copytree(runs.trained(), tmp_path / "run")


def overwrite_array(item: Path) -> None:
    largest = runs.largest(item)
    largest.write_bytes(b"\0" * largest.stat().st_size)


def small_state(step: int) -> TrainState:
    """A state with all items of a checkpoint, and an array that has a file of its own."""
    weight = jnp.asarray(np.random.default_rng(step).normal(size=30_000), jnp.float32)
    params = {"student": {"w": weight}, "mi": {"critic": jnp.full((5,), float(step))}}
    return dataclasses.replace(runs.small_state(step), params=params)


@functools.cache
def small_run() -> Path:
    """A workdir with the checkpoints of steps 4 and 6 and a best one of step 4."""
    workdir = runs.scratch() / "small"
    checkpoints = Checkpoints(workdir, keep=5)
    checkpoints.save_best({"student": small_state(4).params["student"]}, 4, {}, {})
    for step in (4, 6):
        checkpoints.save(small_state(step).items(), step, {"position": step}, {"seed": 0})
    checkpoints.close()
    return workdir


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
    workdir, state = shutil.copytree(small_run(), tmp_path / "run"), small_state(4).items()
    DAMAGES[what](workdir / "checkpoints" / "6")
    before = sorted(workdir.rglob("*"))
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)
    verified, restored = choose(workdir), choose(workdir, abstract)
    for choice in (verified, restored):
        assert choice.latest == Saved(workdir / "checkpoints", 4) and choice.best is not None
        ((checkpoint, reason),) = choice.damaged  # which of several damaged arrays is named differs from time to time
        assert checkpoint == Saved(workdir / "checkpoints", 6)
        assert reason.startswith(what.partition(":")[0] + ": ") and "\n" not in reason
    assert verified.items is None and restored.items is not None
    runs.assert_same(restored.items, state)
    assert sorted(workdir.rglob("*")) == before


@pytest.mark.slow
def test_an_intact_checkpoint_is_read_completely_in_groups_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.slow
def test_training_resumes_from_the_newest_intact_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workdir = copy_of_trained(tmp_path)
    runs.truncate(runs.largest(workdir / "checkpoints" / "6" / "optimizer"))
    (best,) = runs.steps_in(workdir / "best")
    runs.truncate(runs.largest(workdir / "best" / str(best)))
    capsys.readouterr()
    assert train(runs.tiny_config(), str(workdir)) == 6
    latest, worst = (line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: "))
    checkpoints = workdir / "checkpoints"
    assert latest.startswith(f"warning: checkpoint {checkpoints}/6 is damaged (optimizer: ")
    assert latest.endswith(f"moved to {workdir}/damaged/checkpoints-6: resuming from {checkpoints}/4")
    assert worst.startswith(f"warning: checkpoint {workdir}/best/{best} is damaged (params: ")
    assert worst.endswith(f"moved to {workdir}/damaged/best-{best}: the best is chosen among later steps")
    assert json.loads((workdir / "starts.jsonl").read_text().splitlines()[-1])["step"] == 4
    runs.assert_same(runs.read_state(workdir), runs.read_state(runs.trained()))
    assert runs.read_metrics(workdir) == runs.read_metrics(runs.trained())
    assert runs.steps_in(checkpoints) == [4, 6] and runs.steps_in(workdir / "best") == [6]
    assert damage(Saved(checkpoints, 6)) is None
    assert sorted(path.name for path in (workdir / "damaged").iterdir()) == [f"best-{best}", "checkpoints-6"]


def test_training_aborts_where_all_checkpoints_are_damaged(tmp_path: Path) -> None:
    runs.save_states(tmp_path, 4, 6)
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
    runs.save_states(tmp_path, 1)
    for _ in range(2):
        runs.save_states(tmp_path, 2)
        (tmp_path / "checkpoints" / "2" / "data" / "metadata").unlink()
        set_aside(tmp_path, choose(tmp_path), said.append)
    assert sorted(path.name for path in (tmp_path / "damaged").iterdir()) == ["checkpoints-2", "checkpoints-2.2"]
    assert [line.count("/damaged/checkpoints-2.2: ") for line in said] == [0, 1]


def test_a_wrong_shape_is_not_damage(tmp_path: Path) -> None:
    runs.save_states(tmp_path, 2)
    other = {"student": {"w": jax.ShapeDtypeStruct((7, 7), jnp.float32, sharding=jnp.zeros(1).sharding)}}
    with pytest.raises(UserError, match="/checkpoints/2 is intact, but not what is to be restored"):
        restore_params(find(tmp_path, 2), {"student": {"other": other["student"]["w"]}})
    assert choose(tmp_path).damaged == ()


def of_an_array(cause: Exception) -> Exception:
    """The exception in which orbax wraps an error of tensorstore."""
    error = Exception("Encountered error while reading array index: (). See full TensorStore details: {}.")
    error.__cause__ = cause
    return error


@pytest.mark.slow
@pytest.mark.parametrize(
    "failure",
    [
        PermissionError(errno.EACCES, "no"),
        OSError("Forbidden: no"),
        OSError(errno.ESTALE, "no"),
        OSError(errno.EMFILE, "no"),
        OSError(errno.EIO, "no"),
        ValueError("UNAVAILABLE: no network"),
        ValueError("RESOURCE_EXHAUSTED: no files left [os_error_code='24']"),
        ValueError("UNKNOWN: no handle [os_error_code='116']"),
        ValueError("INTERNAL: no"),
        of_an_array(ValueError("UNAVAILABLE: no network")),
        of_an_array(ConnectionResetError(errno.ECONNRESET, "no")),
    ],
    ids=repr,
)
def test_inaccessible_files_are_not_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    runs.save_states(tmp_path, 1, 2)
    runs.remove_checksums(tmp_path / "checkpoints" / "2")  # with them, only a restore reads arrays

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise failure

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", refuse)
    with pytest.raises(UserError, match=rf"checkpoint {tmp_path}/checkpoints/2 cannot be accessed \(.*no"):
        choose(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "failure",
    [
        IsADirectoryError(errno.EISDIR, "no file"),
        ValueError("DATA_LOSS: no file"),
        ValueError("FAILED_PRECONDITION: no file [os_error_code='20']"),
        KeyError("no file"),
        of_an_array(ValueError("OUT_OF_RANGE: no file")),
        Exception("no file"),
    ],
    ids=repr,
)
def test_an_error_about_content_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    runs.save_states(tmp_path, 2)
    runs.remove_checksums(tmp_path / "checkpoints" / "2")

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise failure

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", refuse)
    assert "no file" in str(damage(find(tmp_path, 2)))


def test_checkpoints_that_cannot_be_listed_are_a_user_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs.save_states(tmp_path, 2)

    def refuse(*args: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "listdir", refuse)
    monkeypatch.setattr(os, "scandir", refuse)
    for ask in (choose, lambda workdir: find(workdir, "latest")):
        with pytest.raises(UserError, match=f"^checkpoints in {tmp_path}/checkpoints cannot be read: Permission"):
            ask(tmp_path)


@pytest.mark.parametrize("error", [AttributeError("restore"), of_an_array(AttributeError("restore"))], ids=repr)
def test_a_defect_of_the_code_is_not_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    runs.save_states(tmp_path, 2)
    runs.remove_checksums(tmp_path / "checkpoints" / "2")

    def broken(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", broken)
    with pytest.raises(type(error), match=str(error)[:20]):
        choose(tmp_path)


def test_an_incomplete_checkpoint_is_removed(tmp_path: Path) -> None:
    runs.save_states(tmp_path, 2)
    left = shutil.copytree(tmp_path / "checkpoints" / "2", tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp")
    assert choose(tmp_path).latest == Saved(tmp_path / "checkpoints", 2)
    runs.save_states(tmp_path, 4)
    assert not left.exists() and runs.steps_in(tmp_path / "checkpoints") == [2, 4]


def test_a_partly_deleted_older_checkpoint_does_no_harm(tmp_path: Path) -> None:
    runs.save_states(tmp_path, 2, 4)
    for item in ("params", "_CHECKPOINT_METADATA"):
        place = tmp_path / "checkpoints" / "2" / item
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    assert choose(tmp_path) == Choice(Saved(tmp_path / "checkpoints", 4), None, ())
    runs.save_states(tmp_path, 6, keep=2)
    assert runs.steps_in(tmp_path / "checkpoints") == [4, 6]


def test_a_checkpoint_that_is_replaced_while_it_is_read_is_not_called_damaged(tmp_path: Path) -> None:
    runs.save_states(tmp_path, 2)
    found = find(tmp_path, 2)
    shutil.rmtree(tmp_path / "checkpoints" / "2")
    with pytest.raises(UserError, match="/checkpoints/2 was removed while it was read.*give the same command again"):
        restore_json(found, "data")

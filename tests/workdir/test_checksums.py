"""Checksums of checkpoints: each altered bit is noticed, saving stays asynchronous, earlier ones are still read."""

import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import runs

from cotmi_jax.errors import UserError
from cotmi_jax.workdir import checkpoint as checkpoint_module
from cotmi_jax.workdir import checksums
from cotmi_jax.workdir.checkpoint import Checkpoints, Saved, damage, find, restore_json, restore_params, steps_saved
from cotmi_jax.workdir.recovery import choose, set_aside

PARAMS = {"student": {"w": jax.ShapeDtypeStruct((1000,), jnp.float32, sharding=jnp.zeros(1).sharding)}}


@pytest.fixture(scope="module")
def saved() -> Path:
    """A workdir with checkpoints of steps 1 and 2, and a best of step 2. Tests that write into it copy it first."""
    workdir = runs.scratch() / "checksums"
    checkpoints = Checkpoints(workdir, keep=5)
    for step in (1, 2):
        items = runs.small_state(step).items()
        checkpoints.save(items, step, {"position": step}, {"seed": 0})
    checkpoints.save_best(items["params"], 2, {"valid/accuracy": 0.5}, {"seed": 0})
    checkpoints.close()
    return workdir


@pytest.fixture
def workdir(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "run")


def files(checkpoint: Path) -> list[Path]:
    """The files of all items."""
    return sorted(path for path in checkpoint.glob("*/**/*") if path.is_file())


def flip(path: Path) -> None:
    """Flip one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def test_items_that_orbax_lists_late_are_waited_for(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = workdir / "checkpoints" / "2"
    metadata = (place / checksums.METADATA_FILE).read_text()
    (place / checksums.METADATA_FILE).write_text("{}")
    timer = threading.Timer(0.2, lambda: (place / checksums.METADATA_FILE).write_text(metadata))
    timer.start()
    checksums.write_checksums(place, 2)
    timer.join()
    assert damage(Saved(workdir / "checkpoints", 2)) is None
    (place / checksums.METADATA_FILE).write_text("{}")
    monkeypatch.setattr(checksums, "_LISTING_SECONDS", 0.1)
    with pytest.raises(checksums.ChecksumError, match="it lists no items"):
        checksums.write_checksums(place, 2)


def test_a_flipped_bit_in_any_file_is_noticed(workdir: Path) -> None:
    for folder in ("checkpoints", "best"):
        checkpoint = Saved(workdir / folder, 2)
        assert damage(checkpoint) is None
        arrays = 0
        for path in files(workdir / folder / "2"):
            content = path.read_bytes()
            flip(path)
            item, name = path.relative_to(workdir / folder / "2").as_posix().split("/", 1)
            reason = damage(checkpoint)
            assert reason is not None and reason.startswith(f"{item}: {name[:40]}") and "was altered (CRC-32C" in reason
            path.write_bytes(content)
            arrays += "/d/" in name
        assert arrays and damage(checkpoint) is None


def test_a_run_resumes_from_the_checkpoint_before_an_altered_one(workdir: Path) -> None:
    flip(runs.largest(workdir / "checkpoints" / "2" / "params"))
    flip(runs.largest(workdir / "best" / "2" / "params"))
    abstract = jax.eval_shape(lambda: runs.small_state(0.0).items())
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=jnp.zeros(1).sharding), abstract
    )
    for choice in (choose(workdir), choose(workdir, abstract)):
        assert choice.latest == Saved(workdir / "checkpoints", 1) and choice.best is None
        assert [str(each) for each, _ in choice.damaged] == [f"{workdir}/checkpoints/2", f"{workdir}/best/2"]
    said: list[str] = []
    set_aside(workdir, choice, said.append)
    assert steps_saved(workdir / "checkpoints") == [1] and "params: " in said[0] and "was altered" in said[0]


def test_every_restore_compares_what_it_reads(workdir: Path) -> None:
    checkpoint = find(workdir, 2)
    flip(runs.largest(workdir / "checkpoints" / "2" / "params"))
    assert restore_json(checkpoint, "data") == {"position": 2}  # which is intact
    with pytest.raises(UserError) as error:
        restore_params(checkpoint, PARAMS)
    assert str(error.value).startswith(f"checkpoint {workdir}/checkpoints/2 is damaged (params: ")
    assert str(error.value).endswith(
        f"there are {workdir}/best/2, {workdir}/checkpoints/1 (--checkpoint=best, latest or a step)"
    )
    flip(workdir / "checkpoints" / "2" / "data" / "metadata")
    with pytest.raises(UserError, match=r"is damaged \(data: metadata was altered"):
        restore_json(checkpoint, "data")


def copy_params(checkpoints: Path) -> None:
    shutil.rmtree(checkpoints / "2" / "params")
    shutil.copytree(checkpoints / "1" / "params", checkpoints / "2" / "params")


def copy_checkpoint(checkpoints: Path) -> None:
    shutil.rmtree(checkpoints / "2")
    shutil.copytree(checkpoints / "1", checkpoints / "2")


def replace(path: Path, make: Callable[[Path], object]) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    make(path)


def list_other_items(checkpoints: Path) -> None:
    metadata = json.loads((checkpoints / "2" / "_CHECKPOINT_METADATA").read_text())
    del metadata["item_handlers"]["optimizer"]
    (checkpoints / "2" / "_CHECKPOINT_METADATA").write_text(json.dumps(metadata))


DEEP = "[" * 200_000
ALTERED: dict[str, tuple[Callable[[Path], object], str]] = {
    "parameters of another step": (copy_params, "params: .* (is lost|bytes|was altered)"),
    "a checkpoint of another step": (copy_checkpoint, "checksums.json: it is the checkpoint of step 1$"),
    "checksums lost": (lambda folder: (folder / "2" / "checksums.json").unlink(), "checksums.json: lost"),
    "checksums that are not UTF-8": (
        lambda folder: (folder / "2" / "checksums.json").write_bytes(b"\xff{"),
        "checksums.json: not JSON",
    ),
    "checksums nested deeply": (
        lambda folder: (folder / "2" / "checksums.json").write_text(DEEP),
        "checksums.json: not JSON .nested too deeply",
    ),
    "checksums of wrong types": (
        lambda folder: (folder / "2" / "checksums.json").write_text('{"step": 2, "items": 3, "files": {"a": 7}}'),
        "checksums.json: it does not list",
    ),
    "a FIFO instead of checksums": (
        lambda folder: replace(folder / "2" / "checksums.json", os.mkfifo),
        "checksums.json: not a regular file",
    ),
    "a folder instead of metadata": (
        lambda folder: replace(folder / "2" / "_CHECKPOINT_METADATA", Path.mkdir),
        "_CHECKPOINT_METADATA: ",
    ),
    "a loop instead of metadata": (
        lambda folder: replace(folder / "2" / "_CHECKPOINT_METADATA", lambda path: path.symlink_to(path)),
        "_CHECKPOINT_METADATA: Too many levels",
    ),
    "a list of other items": (list_other_items, "_CHECKPOINT_METADATA: it lists other items"),
    "a FIFO instead of an item's file": (
        lambda folder: replace(folder / "2" / "data" / "metadata", os.mkfifo),
        "data: metadata is not a file",
    ),
    "a FIFO instead of an item": (lambda folder: replace(folder / "2" / "data", os.mkfifo), "data: .* is lost"),
    "a loop instead of an item's file": (
        lambda folder: replace(folder / "2" / "data" / "metadata", lambda path: path.symlink_to(path)),
        "Too many levels",
    ),
}


@pytest.mark.parametrize("what", ALTERED)
def test_what_is_not_the_checkpoint_that_was_written_is_damaged(workdir: Path, what: str) -> None:
    alter, expected = ALTERED[what]
    alter(workdir / "checkpoints")
    choice = choose(workdir)
    assert choice.latest == Saved(workdir / "checkpoints", 1)
    ((checkpoint, reason),) = choice.damaged
    assert checkpoint.step == 2 and "\n" not in reason and len(reason) < 300
    assert re.search(expected, reason), reason


def test_files_that_were_added_have_no_effect(workdir: Path) -> None:
    (workdir / "checkpoints" / "2" / "params" / ".nfs0001").touch()
    assert damage(find(workdir, 2)) is None


def test_a_checkpoint_counts_only_with_its_checksums_and_saving_does_not_wait_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proceed, write = threading.Event(), checkpoint_module.write_checksums

    def write_later(place: Path, step: int) -> None:
        assert proceed.wait(60)
        write(place, step)

    monkeypatch.setattr(checkpoint_module, "write_checksums", write_later)
    checkpoints = Checkpoints(tmp_path, keep=5)
    checkpoints.save(runs.small_state(1.0).items(), 1, {}, {})
    checkpoints.check()
    assert steps_saved(tmp_path / "checkpoints") == []
    proceed.set()
    checkpoints.close()
    assert steps_saved(tmp_path / "checkpoints") == [1] and (tmp_path / "checkpoints/1/checksums.json").is_file()


def test_checksums_that_cannot_be_written_are_an_error_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(place: Path, step: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_module, "write_checksums", refuse)
    checkpoints = Checkpoints(tmp_path, keep=5)
    checkpoints.save(runs.small_state(1.0).items(), 1, {}, {})
    with pytest.raises(UserError, match="^cannot write .*/checkpoints: No space left on device: make room there"):
        checkpoints.close()
    assert steps_saved(tmp_path / "checkpoints") == []


@pytest.fixture
def earlier(workdir: Path) -> Iterator[Path]:
    """A workdir of a version without checksums."""
    for place in (*(workdir / "checkpoints").iterdir(), *(workdir / "best").iterdir()):
        runs.remove_checksums(place)
    checkpoint_module._say_unchecked.cache_clear()
    yield workdir


def test_checkpoints_of_an_earlier_version_are_read_and_reported_once(
    earlier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = find(earlier, 2)
    assert damage(checkpoint) is None and restore_json(checkpoint, "data") == {"position": 2}
    runs.assert_same(jax.device_get(restore_params(checkpoint, PARAMS)), runs.small_state(2.0).items()["params"])
    assert choose(earlier).damaged == ()
    assert capsys.readouterr().err == (
        f"{earlier} has checkpoints of an earlier version, without checksums: values altered in them since are not "
        "noticed\n"
    )


@pytest.mark.parametrize("name", ["data/metadata", "params/manifest.ocdbt"])
def test_a_checkpoint_of_an_earlier_version_is_read_to_find_damage(earlier: Path, name: str) -> None:
    runs.truncate(earlier / "checkpoints" / "2" / name)
    ((checkpoint, reason),) = choose(earlier).damaged
    assert checkpoint.step == 2 and reason.startswith(f"{name.partition('/')[0]}: ")


def test_a_fifo_in_a_checkpoint_of_an_earlier_version_is_not_waited_for(earlier: Path) -> None:
    replace(earlier / "checkpoints" / "2" / "data" / "metadata", os.mkfifo)
    assert damage(find(earlier, 2)) == "data: metadata is not a file"


def test_several_processes_divide_the_files(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    checksum = checksums._checksum

    def counted(place: Path, file: checksums._File) -> str:
        read.append(file.name)
        return checksum(place, file)

    monkeypatch.setattr(checksums, "_checksum", counted)
    found = [damage(find(workdir, 2), process, 3) for process in range(3)]
    assert found == [None] * 3
    assert sorted(read) == [
        str(path.relative_to(workdir / "checkpoints/2")) for path in files(workdir / "checkpoints/2")
    ]

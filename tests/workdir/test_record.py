"""The record of a run: whatever else is in its files is one line, and what a run depends on is compared."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import runs

from cotmi_jax.errors import UserError
from cotmi_jax.experiment import with_data_root
from cotmi_jax.models.config import preset
from cotmi_jax.workdir import provenance
from cotmi_jax.workdir.metrics import MetricWriter
from cotmi_jax.workdir.record import check_resumable, is_workdir, read_run

make_run = runs.make_record


def test_an_initial_checkpoint_is_recorded_by_its_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t5").mkdir()
    monkeypatch.chdir(tmp_path)
    config = with_data_root(runs.tiny_config({"model.init": "t5"}))
    assert config.model.init == str(tmp_path / "t5")
    assert with_data_root(runs.tiny_config({"model.init": "google/t5-v1_1-base"})).model.init == "google/t5-v1_1-base"
    (tmp_path / "run").mkdir()
    workdir = make_run(tmp_path / "run", {"model.init": "t5"})
    change(workdir / "run.json", "config.model.init", "t5")  # as earlier versions recorded it
    assert check_resumable(workdir, config) == []


def test_a_folder_with_a_model_of_another_is_no_workdir(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="holds tokenizer.json, which is of no run: take another --workdir"):
        make_run(tmp_path)
    assert (tmp_path / "tokenizer.json").read_text() == "{}"


def test_the_revision_is_not_that_of_a_repository_around_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "venv" / "cotmi_jax" / "workdir" / "provenance.py"
    installed.parent.mkdir(parents=True)
    shutil.copy(provenance.__file__, installed)
    monkeypatch.setattr(provenance, "__file__", str(installed))
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "-m", "of the user"], check=True)
    assert provenance.revision() is None
    subprocess.run([*git, "add", "venv"], check=True)
    assert (provenance.revision() or "").endswith("+")


def change(path: Path, keys: str, value: object) -> None:
    """Set a value of a JSON file, by dotted key."""
    record = json.loads(path.read_text())
    *parents, last = keys.split(".")
    place = record
    for key in parents:
        place = place[key]
    place[last] = value
    path.write_text(json.dumps(record))


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    message = str(error.value)
    assert "\n" not in message and len(message) < 500
    return message


@pytest.mark.parametrize(
    ("keys", "value", "expected"),
    [
        ("config", [1], "is not a run's record"),
        ("student", "large", "is not a run's record"),
        ("config.steps", "many", "config is not that of a run"),
        ("config.steps", None, "config.steps is None, must be a int"),
        ("config.seed", True, "config.seed is True, must be a int"),
        ("config.data", 7, "config"),
        ("config.mi", {}, ""),  # of a version that declared none: defaults
        ("config.model.network", "mlp", "config.model.network is 'mlp': choose one of t5"),
        ("student.d_model", "4", "student.d_model is '4', must be a int"),
        ("student.gated", 1, "student.gated is 1, must be a bool"),
        ("student.norm_epsilon", [[[]]], "must be a float"),
        ("student.x\n" + "y" * 5000, 1, "student.x"),
        # Magnitudes that would ask for any memory, or that no network has.
        ("student.num_decoder_layers", 10**10, "student.num_decoder_layers is 10000000000: it must be at least 1 and"),
        ("student.vocab_size", 10**400, "student.vocab_size is <integer of 1329 bits>: it must be at least 1 and"),
        ("student.d_model", 0, "student.d_model is 0: it must be at least 1"),
        ("student.pad_id", 512, "student.pad_id is 512: it must be below vocab_size 512"),
        ("student.relative_max_distance", 16, "student.relative_max_distance is 16: it must be more than half of"),
        ("student.norm_epsilon", 1e300, "student.norm_epsilon is 1e+300: it must be at least 0 and below 1"),
        ("student.dropout", float("nan"), "student.dropout is nan"),
        ("config.eval.batch_size", 10**9, "config.eval.batch_size is 1000000000: it must be at most 1048576"),
        ("config.eval.batch_size", -8, "config.eval.batch_size is -8: it must be at least 1"),
        ("config.eval.max_decode_tokens", 10**7, "config.eval.max_decode_tokens is 10000000: it must be at most"),
        ("config.data.size", 10**10, "config.data.size is 10000000000: it must be at most"),
        ("vocabulary", 7, "is not the vocabulary of this run"),
        ("extensions", 7, ""),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_record_of_wrong_types_or_sizes_is_refused_in_one_line(
    tmp_path: Path, keys: str, value: object, expected: str
) -> None:
    workdir = make_run(tmp_path)
    change(workdir / "run.json", keys, value)
    if not expected:
        read_run(workdir)
        return
    with pytest.raises(UserError) as error:
        read_run(workdir)
    assert expected in one_line(error)


def test_batches_of_too_many_generated_tokens_are_refused(tmp_path: Path) -> None:
    workdir = make_run(tmp_path)
    for key in ("batch_size", "max_decode_tokens"):
        change(workdir / "run.json", f"config.eval.{key}", 2**20)
    with pytest.raises(UserError, match="config.eval.batch_size times max_decode_tokens must be at most 67108864"):
        read_run(workdir)


def test_an_incomplete_student_is_refused(tmp_path: Path) -> None:
    workdir = make_run(tmp_path)
    record = json.loads((workdir / "run.json").read_text())
    del record["student"]["d_model"]
    (workdir / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="run.json: student is incomplete .*'d_model'.*restore it"):
        read_run(workdir)


def loop(path: Path) -> None:
    path.symlink_to(path)


NO_FILES: list[tuple[Callable[[Path], object], str]] = [
    (os.mkfifo, "(not a regular file|No such device)"),
    (Path.mkdir, "(not a regular file|Is a directory)"),
    (loop, "Too many levels of symbolic links"),
]


@pytest.mark.parametrize(("make", "expected"), NO_FILES)
def test_what_is_no_file_is_refused_and_not_waited_for(
    tmp_path: Path, make: Callable[[Path], object], expected: str
) -> None:
    (tmp_path / "run").mkdir()
    workdir = make_run(tmp_path / "run")
    for name in ("run.json", "starts.jsonl"):
        (workdir / name).unlink()
        make(workdir / name)
    assert is_workdir(str(workdir))  # so that the message is about this file
    with pytest.raises(UserError, match=f"run.json: {expected}"):
        read_run(workdir)
    make(tmp_path / "starts.jsonl")
    with pytest.raises(UserError, match=f"starts.jsonl: {expected}"):
        make_run(tmp_path)
    make(tmp_path / "metrics.jsonl")
    with pytest.raises(UserError, match=f"metrics.jsonl: {expected}"):
        MetricWriter(tmp_path, start=0)


@pytest.mark.parametrize("line", [b"\xff\xfe", b"[" * 200_000, b'{"step": 1' + b"0" * 5000 + b"}", b'{"step": "1"}'])
def test_metrics_that_are_no_json_lines_are_named(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + line + b"\n")
    with pytest.raises(UserError, match="metrics.jsonl, line 2: .*: remove the line") as error:
        MetricWriter(tmp_path, start=0)
    one_line(error)


def test_another_vocabulary_in_a_workdir_is_refused(tmp_path: Path) -> None:
    workdir = make_run(tmp_path)
    vocabulary = workdir / "spiece.model"
    vocabulary.write_bytes(vocabulary.read_bytes() + b"\x12\x00")  # an empty message: still a SentencePiece model
    with pytest.raises(
        UserError, match="spiece.model is not the vocabulary of this run .*from the run's data, 'arithmetic'$"
    ):
        read_run(workdir)
    record = json.loads((workdir / "run.json").read_text())
    del record["vocabulary"]
    (workdir / "run.json").write_text(json.dumps(record))
    read_run(workdir)  # of an earlier version, which recorded none


def test_extensions_may_move_if_their_content_is_the_same(tmp_path: Path) -> None:
    first, second = tmp_path / "first.py", tmp_path / "second.py"
    first.write_text("VALUE = 1\n")
    (tmp_path / "run").mkdir()
    workdir = make_run(tmp_path / "run", {"extensions": f"{first},json"})
    shutil.move(first, second)
    moved = runs.tiny_config({"extensions": f"{second},json"})
    assert check_resumable(workdir, moved) == []
    _, student, _ = read_run(workdir, extensions=moved.extensions)  # does not import the former path
    assert student == preset("tiny", vocab_size=512)
    second.write_text("VALUE = 2\n")
    with pytest.raises(UserError, match=rf"holds a run of another config \(extensions: {first},json → {second},json\)"):
        check_resumable(workdir, moved)
    shutil.move(second, first)  # changed where it was
    same = runs.tiny_config({"extensions": f"{first},json"})
    assert check_resumable(workdir, same) == [f"extension {first} has changed since the run was recorded"]


def test_extensions_of_an_earlier_version_are_compared_by_path(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    workdir = make_run(tmp_path / "run", {"extensions": "json"})
    record = json.loads((workdir / "run.json").read_text())
    del record["extensions"]
    (workdir / "run.json").write_text(json.dumps(record))
    assert check_resumable(workdir, runs.tiny_config({"extensions": "json"})) == []
    with pytest.raises(UserError, match="extensions: json → csv"):
        check_resumable(workdir, runs.tiny_config({"extensions": "csv"}))


@pytest.mark.parametrize(
    ("schedule", "steps", "refused"),
    [
        ("constant", 9, ""),
        ("constant", 5, "steps: 6 → 5"),
        ("linear", 9, "steps: 6 → 9.*steps may be raised where optimizer.schedule is constant"),
    ],
)
def test_a_run_with_a_constant_learning_rate_may_be_extended(
    tmp_path: Path, schedule: str, steps: int, refused: str
) -> None:
    workdir = make_run(tmp_path, {"optimizer.schedule": schedule})
    config = runs.tiny_config({"optimizer.schedule": schedule, "steps": steps})
    if refused:
        with pytest.raises(UserError, match=refused):
            check_resumable(workdir, config)
    else:
        check_resumable(workdir, config)

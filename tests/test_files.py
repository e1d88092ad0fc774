"""Paths and files, on disk; test_gcs.py has those in a bucket."""

import os
from pathlib import Path

import pytest

from cotmi_jax import files
from cotmi_jax.data.grammar import parse_dataset, with_absolute_paths
from cotmi_jax.errors import UserError


def test_user_paths_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert str(files.as_path("a/b")) == "a/b"
    assert str(files.as_path("~/b")) == str(tmp_path / "home" / "b")
    assert files.absolute("a/b") == str(tmp_path / "a" / "b")
    assert files.absolute("~/b") == str(tmp_path / "home" / "b")
    assert files.absolute("gs://bucket/a") == "gs://bucket/a"


@pytest.mark.parametrize("text", ["s3://bucket/a", "http://host/a", "gs://", "gs:///a"])
def test_other_urls_are_refused(text: str) -> None:
    for given in (text, files.absolute(text)):
        with pytest.raises(UserError, match=f"{text}: give a local path, or gs://BUCKET/PATH"):
            files.as_path(given)


def test_a_bucket_needs_its_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "GCS_INSTALLED", False)
    with pytest.raises(UserError, match="gs://bucket/run: gs:// needs gcsfs: pip install -e '.\\[gcs\\]'"):
        files.as_path("gs://bucket/run")


def test_data_sets_in_a_bucket_keep_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (part,) = parse_dataset("jsonl:gs://bucket/mine.jsonl=2")
    assert (part.argument, part.rate) == ("gs://bucket/mine.jsonl", 2)
    written = with_absolute_paths("jsonl:gs://bucket/mine.jsonl=2,jsonl:own.jsonl")
    assert written == f"jsonl:gs://bucket/mine.jsonl=2,jsonl:{tmp_path}/own.jsonl"


def test_a_file_is_replaced_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = files.Path(tmp_path / "a.json")
    files.replace_file(path, "grüß")
    assert path.read_bytes() == "grüß".encode()

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        files.replace_file(path, b"half")
    assert path.read_bytes() == "grüß".encode()


def test_lines_are_appended_and_folders_created(tmp_path: Path) -> None:
    folder = files.Path(tmp_path / "a" / "b")
    files.make_folder(folder)
    files.make_folder(folder)
    for line in ("one", "two"):
        files.append_line(folder / "lines", line)
    assert (folder / "lines").read_text() == "one\ntwo\n"


@pytest.mark.parametrize("rest", ["", '{"step": 3, "lo', '{"step": 3}', "null"])
def test_a_truncated_last_line_is_not_read(tmp_path: Path, rest: str) -> None:
    path = tmp_path / "lines"
    assert files.read_json_lines(path) == []
    path.write_text('{"step": 1}\n{"step": 2, "mi/plane_x_z": 0.5}\n' + rest)
    assert files.read_json_lines(path) == [{"step": 1}, {"step": 2, "mi/plane_x_z": 0.5}]


@pytest.mark.parametrize("line", ['{"step": 3, "lo', "null", "7"])
def test_an_invalid_line_in_the_middle_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "lines").write_text('{"step": 1}\n' + line + '\n{"step": 2}\n')
    with pytest.raises(UserError, match=f"^{tmp_path}/lines, line 2: no JSON object .*: remove the line$"):
        files.read_json_lines(tmp_path / "lines")


def test_failures_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^results: No such file or directory; look elsewhere$"):
        with files.user_error_on_failure("results", "look elsewhere"):
            (tmp_path / "nothing").read_bytes()
    with pytest.raises(UserError, match="^results: Is a directory$"):
        with files.user_error_on_failure("results"):
            tmp_path.read_bytes()
    assert files.reason(OSError("Forbidden: b/o\nno access")) == "Forbidden: b/o no access"
    with pytest.raises(ZeroDivisionError):  # a defect stays one
        with files.user_error_on_failure("results"):
            raise ZeroDivisionError

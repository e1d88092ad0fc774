"""Paths and files, on disk; test_gcs.py has those in a bucket."""

import errno
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from paths import REPOSITORY

from cotmi_jax import files
from cotmi_jax.data.grammar import parse_dataset, with_absolute_paths
from cotmi_jax.errors import UserError, one_line, shown


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
    assert list(tmp_path.iterdir()) == [tmp_path / "a.json"]


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_a_new_file_has_the_mode_of_the_umask(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        files.replace_file(files.Path(tmp_path / "a"), "a")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~mask


def test_nothing_is_written_through_links(tmp_path: Path) -> None:
    """A link that another user made in a shared folder must not lead to a file of this user."""
    mine = tmp_path / "mine"
    mine.write_text("mine")
    for name in ("a.json", "a.json.tmp"):
        (tmp_path / name).symlink_to(mine)
    files.replace_file(files.Path(tmp_path / "a.json"), "new")
    assert mine.read_text() == "mine"
    assert (tmp_path / "a.json").read_text() == "new" and not (tmp_path / "a.json").is_symlink()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_failed_write_leaves_the_old_file(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = files.Path(tmp_path / "a")
    files.replace_file(path, "old")

    def fail(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match=f"^cannot write {path}: {os.strerror(number)}: make [^\n]*$"):
        with files.user_error_on_write(path):
            files.replace_file(path, "new")
    assert list(tmp_path.iterdir()) == [tmp_path / "a"] and path.read_text() == "old"


def test_a_kill_leaves_the_old_file(tmp_path: Path) -> None:
    path = files.Path(tmp_path / "a")
    files.replace_file(path, "old")
    code = (
        "import os, signal; from cotmi_jax import files\n"
        "os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"files.replace_file(files.Path({str(path)!r}), 'new')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    files.replace_file(path, "newer")  # what the kill left is in nobody's way
    assert path.read_text() == "newer"


def test_lines_are_appended_and_folders_created(tmp_path: Path) -> None:
    folder = files.Path(tmp_path / "a" / "b")
    files.make_folder(folder)
    files.make_folder(folder)
    for line in ("one", "two"):
        files.append_line(folder / "lines", line)
    assert (folder / "lines").read_text() == "one\ntwo\n"
    (folder / "lines").write_text("one\ntw")  # as a full disk leaves it
    files.append_line(folder / "lines", "three")
    assert (folder / "lines").read_text() == "one\nthree\n"


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


def test_lines_end_at_newlines_only(tmp_path: Path) -> None:
    (tmp_path / "lines").write_text('{"text": "a\u2028b\x85c"}\n', "utf-8")
    assert files.read_json_lines(tmp_path / "lines") == [{"text": "a\u2028b\x85c"}]


BROKEN_JSON = {
    "nested": b'{"a": ' + 200_000 * b"[",
    "digits": b'{"a": ' + 5_000 * b"9" + b"}",
    "encoding": b'{"a": "\xff"}',
    "cut": b'{"a": "',
    "list": b"[1]",
    "empty": b"",
}


@pytest.mark.parametrize("kind", BROKEN_JSON)
def test_broken_json_is_one_short_line(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(BROKEN_JSON[kind])
    with pytest.raises(UserError, match=f"^{path}[^\n]{{,200}}; restore it$"):
        files.read_json(path, "restore it")
    path.write_bytes(BROKEN_JSON[kind] + b"\n")
    with pytest.raises(UserError, match=f"^{path}, line 1: no JSON object [^\n]{{,200}}: remove the line$"):
        files.read_json_lines(path)


OTHER_KINDS: dict[str, Callable[[Path], object]] = {
    "folder": lambda path: path.mkdir(),
    "loop": lambda path: path.symlink_to(path),
    "fifo": lambda path: os.mkfifo(path),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "missing": lambda path: None,
    "large": lambda path: path.write_bytes(b"{}" + bytes(files.MAX_JSON_BYTES)),
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_what_is_no_small_regular_file_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    OTHER_KINDS[kind](path)
    with pytest.raises(UserError, match=f"^{path}: [^\n]*; restore it$"):
        files.read_json(path, "restore it")


@pytest.mark.parametrize("name", [5_000 * "a", "a\0b", "a\ud800b"])
def test_names_that_no_file_can_have_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^[^\n]{,400}; restore it$") as raised:
        files.read_json(tmp_path / name, "restore it")
    assert str(raised.value).isprintable()


def test_quoted_values_are_short_and_on_one_line() -> None:
    nested: object = ()
    shared: object = ()
    for _ in range(100_000):
        nested, shared = (nested,), (shared, shared)
    for value in (nested, shared, 1 << 10**6, "\n\x1b[2J" * 10**5, {"\u202e": [nested] * 1000}, b"\0" * 10**6):
        assert len(shown(value)) <= 100 and shown(value).isprintable()
    assert (shown(12), shown("a"), shown(None)) == ("12", "'a'", "None")
    assert one_line("a\tb\ud800") == "a\\tb\\ud800" and len(one_line("\0" * 300)) == 100


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

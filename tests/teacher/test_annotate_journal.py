"""No response is lost or requested twice: incomplete lines, other settings, full disks, kills, two processes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from annotations import annotation, read_rows, sums, write_rows
from fake_teacher import MODEL, FakeTeacher, slow, status
from paths import REPOSITORY

from cotmi_jax.errors import UserError
from cotmi_jax.teacher.journal import Choice, Journal, Record, read_journal

HEADER = {"model": "m", "prompt": "p", "body.temperature": 0.5}


def record(name: str, text: str = "Said so.") -> Record:
    return Record(name, "asked", False, "m", (Choice(text, "stop"),), 3, 4)


def journal_of(path: Path, *names: str) -> bytes:
    with Journal(path, HEADER) as journal:
        for name in names:
            journal.append(record(name))
    return path.read_bytes()


def test_a_response_is_read_back_unchanged(tmp_path):
    odd = Record("a b", "x", True, "m", (Choice('line\nend \u2028 "ü"', None), Choice("", "length")), None, 0)
    with Journal(tmp_path / "j", HEADER) as journal:
        journal.append(odd)
        journal.append(record("c"))
        assert journal.records == {"a b": [odd], "c": [record("c")]}
    assert read_journal(tmp_path / "j", HEADER) == {"a b": [odd], "c": [record("c")]}


@pytest.mark.parametrize("cut", [1, 2, 40, -1], ids=["line end", "brace", "half", "all but one byte"])
def test_only_an_incomplete_last_line_is_removed(tmp_path, cut):
    path = tmp_path / "j"
    one = journal_of(path, "a")
    two = journal_of(path, "b")
    keep = len(one) + 1 if cut == -1 else len(two) - cut
    path.write_bytes(two[:keep])
    complete = cut == 1  # only the line end is missing
    assert set(read_journal(path, HEADER)) == ({"a", "b"} if complete else {"a"})
    with Journal(path, HEADER) as journal:
        assert set(journal.records) == ({"a", "b"} if complete else {"a"})
        assert journal.truncated_bytes == (0 if complete else keep - len(one))
        journal.append(record("c"))
    assert path.read_bytes().startswith(one)
    assert set(read_journal(path, HEADER)) == ({"a", "b", "c"} if complete else {"a", "c"})


def test_an_incomplete_header_is_written_again(tmp_path):
    path = tmp_path / "j"
    content = journal_of(path, "a")
    path.write_bytes(content[:10])
    assert journal_of(path, "a") == content


def test_an_incomplete_character_is_removed(tmp_path):
    path = tmp_path / "j"
    one = journal_of(path, "a")
    path.write_bytes(one + '{"id": "ü'.encode()[:-1])
    assert journal_of(path) == one


def test_an_invalid_line_is_refused_with_its_number(tmp_path):
    path = tmp_path / "j"
    lines = journal_of(path, "a", "b").splitlines(keepends=True)
    for broken in (b"{oops\n", b'{"id": "a"}\n', b"[]\n", lines[1].replace(b'"tokens_in": 3', b'"tokens_in": "3"')):
        path.write_bytes(lines[0] + broken + lines[2])
        with pytest.raises(UserError, match=r"j:2: not a line of a journal"):
            Journal(path, HEADER)
        assert path.read_bytes() == lines[0] + broken + lines[2]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({**HEADER, "model": "n"}, "model was 'm', is 'n'"),
        ({**HEADER, "body.temperature": 0.7}, "body.temperature was 0.5, is 0.7"),
        ({"model": "m", "prompt": "p"}, "body.temperature was 0.5, is None"),
        ({**HEADER, "body.top_p": 0.9}, "body.top_p was None, is 0.9"),
    ],
)
def test_other_settings_are_refused(tmp_path, header, message):
    before = journal_of(tmp_path / "j", "a")
    with pytest.raises(UserError, match=f"{message}; restore them, or choose another --journal"):
        Journal(tmp_path / "j", header)
    assert (tmp_path / "j").read_bytes() == before


@pytest.mark.parametrize("content", ['{"input": "a question"}\n', "[]\n", "text\n", "[1]", "a\nb"])
def test_a_file_that_is_not_a_journal_is_refused_and_unchanged(tmp_path, content):
    (tmp_path / "j").write_text(content)
    with pytest.raises(UserError, match="j:1: not a (line of a )?journal"):
        Journal(tmp_path / "j", HEADER)
    assert (tmp_path / "j").read_text() == content


def test_only_one_process_opens_a_journal(tmp_path):
    with Journal(tmp_path / "j", HEADER):
        with pytest.raises(UserError, match="another run writes to it"):
            Journal(tmp_path / "j", HEADER)
    Journal(tmp_path / "j", HEADER).__exit__(None, None, None)


def test_a_full_disk_leaves_no_fragment(tmp_path, monkeypatch):
    write = os.write

    def write_to_full_disk(file: int, content: bytes) -> int:
        if len(content) < 20:
            raise OSError(28, "No space left on device")
        return write(file, content[:-10])

    path = tmp_path / "j"
    before = journal_of(path, "a")
    with Journal(path, HEADER) as journal:
        monkeypatch.setattr(os, "write", write_to_full_disk)
        with pytest.raises(UserError, match="No space left on device; free space"):
            journal.append(record("b"))
        assert path.read_bytes() == before
        monkeypatch.undo()
        journal.append(record("c"))
    assert set(read_journal(path, HEADER)) == {"a", "c"}


def test_a_response_is_on_disk_before_the_next_request(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_size))
    with Journal(tmp_path / "j", HEADER) as journal:
        journal.append(record("a"))
        journal.append(record("b"))
    sizes = [len(line) for line in (tmp_path / "j").read_bytes().splitlines(keepends=True)]
    assert synced == [sizes[0] + sizes[1], sum(sizes)]


def test_a_run_without_responses_does_not_fix_the_settings(tmp_path):
    with FakeTeacher(faults=(status(404),)) as teacher:
        with pytest.raises(UserError, match="404"):
            annotation(tmp_path, teacher.url, sums(1), model="orcale-1").run()
        assert annotation(tmp_path, teacher.url, sums(1)).run() == 0


def test_a_changed_question_is_refused_before_any_request(tmp_path):
    with FakeTeacher() as teacher:
        annotation(tmp_path, teacher.url, sums(2)).run()
        rows = sums(3)
        rows[1]["input"] = "What is 5 + 5?"
        with pytest.raises(UserError, match=r"q.jsonl:2: question 'q1' differs from the one that the journal has"):
            annotation(tmp_path, teacher.url, rows).run()
        assert len(teacher.requests) == 2


def test_a_changed_prompt_is_refused_unless_only_comments_differ(tmp_path):
    text = (REPOSITORY / "cotmi_jax/teacher/prompts/generic.toml").read_text()
    own = tmp_path / "own.toml"
    own.write_text(text)
    with FakeTeacher() as teacher:
        annotation(tmp_path, teacher.url, sums(2), prompt=own).run()
        own.write_text("# A comment.\n" + text)
        annotation(tmp_path, teacher.url, sums(2), prompt=own).run()
        own.write_text(text.replace("From 9:40 it is", "It is"))
        with pytest.raises(UserError, match="other settings: prompt"):
            annotation(tmp_path, teacher.url, sums(2), prompt=own).run()
    assert len(teacher.requests) == 2


def command(folder: Path, url: str, *more: str) -> list[str]:
    options = [f"--questions={folder}/q.jsonl", f"--output={folder}/r.jsonl", f"--base_url={url}", f"--model={MODEL}"]
    return [sys.executable, "-m", "cotmi_jax.annotate", *options, "--concurrency=4", "--backoff=0.01", *more]


def start(folder: Path, url: str, *more: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(command(folder, url, *more), cwd=REPOSITORY, stdout=pipe, stderr=pipe, text=True)


def wait_for_lines(path: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert time.monotonic() < deadline, "the run made no progress for 120 s"
        time.sleep(0.005)


@pytest.mark.slow
def test_a_killed_run_resumes_without_paying_twice(tmp_path):
    write_rows(tmp_path / "q.jsonl", sums(60))
    journal = tmp_path / "r.journal.jsonl"
    with FakeTeacher(delay_s=0.2) as teacher:
        killed = start(tmp_path, teacher.url)
        wait_for_lines(journal, 20)
        killed.kill()
        assert killed.wait() == -signal.SIGKILL
        killed.communicate()
        before = journal.read_bytes()
        paid = {json.loads(line)["id"] for line in before.splitlines()[1:]}
        assert 19 <= len(paid) < 60 and not (tmp_path / "r.jsonl").exists()
        time.sleep(0.3)  # requests that the server still processes
        del teacher.requests[:]
        journal.write_bytes(before + b'{"id": "q5", "ask')  # as a kill during a write leaves it
        teacher.delay_s = 0
        again = start(tmp_path, teacher.url)
        out, err = again.communicate(timeout=60)
    assert again.returncode == 0, err
    assert "removed an incomplete last line of 17 bytes" in err
    assert len(teacher.requests) == 60 - len(paid)
    asked = {f"q{text.split()[3]}" for text in teacher.asked}
    assert asked == {f"q{i}" for i in range(60)} - paid
    assert journal.read_bytes().startswith(before)
    assert Counter(row["id"] for row in read_rows(journal)[1:]) == Counter(f"q{i}" for i in range(60))
    assert [row["teacher_label"] for row in read_rows(tmp_path / "r.jsonl")] == [str(i + 10) for i in range(60)]


@pytest.mark.slow
@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM])
def test_after_a_signal_the_run_waits_for_requests_in_flight(tmp_path, name):
    write_rows(tmp_path / "q.jsonl", sums(40))
    with FakeTeacher(delay_s=0.3) as teacher:
        run = start(tmp_path, teacher.url)
        wait_for_lines(tmp_path / "r.journal.jsonl", 5)
        time.sleep(0.1)
        run.send_signal(name)
        _, err = run.communicate(timeout=30)
    assert run.returncode == 130, err
    assert "the same command resumes" in err and "Traceback" not in err
    assert len(read_rows(tmp_path / "r.journal.jsonl")) - 1 == len(teacher.requests) < 40
    assert not (tmp_path / "r.jsonl").exists()


def test_a_second_signal_cancels_the_requests_in_flight(tmp_path):
    write_rows(tmp_path / "q.jsonl", sums(8))
    with FakeTeacher(faults=[slow(20)] * 8) as teacher:
        run = start(tmp_path, teacher.url)
        deadline = time.monotonic() + 120
        while len(teacher.requests) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        run.send_signal(signal.SIGINT)
        time.sleep(0.2)
        assert run.poll() is None
        run.send_signal(signal.SIGINT)
        _, err = run.communicate(timeout=15)
    assert run.returncode == 130 and "Traceback" not in err, err

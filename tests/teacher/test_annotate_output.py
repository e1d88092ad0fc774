"""A kill while the output is written, journals of earlier versions, and journals that hold anything."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from annotations import annotation, read_rows, report, sums
from fake_teacher import FakeTeacher
from paths import REPOSITORY

from cotmi_jax.errors import UserError
from cotmi_jax.teacher.consistency import Policy
from cotmi_jax.teacher.journal import Journal, read_journal

# As the version before thinking was read has written it.
EARLIER = [
    {
        "format": "cotmi_jax annotations 1",
        "model": "oracle-1",
        "prompt": "f045a02c8469a501",
        "body.temperature": 0.7,
        "body.max_tokens": 64,
    },
    {
        "id": "q0",
        "asked": "218ed4ef0bf010a5",
        "hinted": False,
        "model": "oracle-1",
        "choices": [{"text": "0 and 10 make 10. So the answer is 10.", "finish_reason": "stop"}],
        "tokens_in": 100,
        "tokens_out": 10,
    },
]


class Killed(BaseException):
    """Ends a run where a kill would."""


def kill_at(call: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which raises Killed instead of its call number `call`, from 0."""
    count = iter(range(100))

    def counted(*arguments: Any, **options: Any) -> Any:
        if next(count) == call:
            raise Killed
        return function(*arguments, **options)

    return counted


@pytest.mark.parametrize("call", [0, 1])
@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_kill_while_the_output_is_written_leaves_the_earlier_or_the_new_one(tmp_path, monkeypatch, name, call):
    """Calls 0 and 1 write output and report; the next run writes both without a request."""
    with FakeTeacher() as teacher:
        annotation(tmp_path, teacher.url, sums(3, wrong_gold=[1])).run()
        earlier = (tmp_path / "r.jsonl").read_bytes(), (tmp_path / "r.report.json").read_bytes()
        changed = annotation(tmp_path, teacher.url, sums(3, wrong_gold=[1]), policy=Policy("keep", 0.25, 1.0))
        with monkeypatch.context() as patch:
            patch.setattr(os, name, kill_at(call, getattr(os, name)))
            with pytest.raises(Killed):
                changed.run()
        kept = [len(row["rationale"]) for row in read_rows(tmp_path / "r.jsonl")]
        assert kept == ([1, 0, 1], [1, 1, 1])[call]
        assert ((tmp_path / "r.jsonl").read_bytes() == earlier[0]) == (call == 0)
        assert (tmp_path / "r.report.json").read_bytes() == earlier[1]
        assert changed.run() == 0
    assert [len(row["rationale"]) for row in read_rows(tmp_path / "r.jsonl")] == [1, 1, 1]
    assert report(tmp_path)["rationales"]["inconsistent_keep"] == 1
    assert len(teacher.requests) == 3


@pytest.mark.slow
def test_a_killed_process_leaves_the_earlier_output_and_the_next_one_writes_it(tmp_path):
    with FakeTeacher() as teacher:
        annotation(tmp_path, teacher.url, sums(3)).run()
        earlier = (tmp_path / "r.jsonl").read_bytes()
        flags = [f"--questions={tmp_path}/q.jsonl", f"--output={tmp_path}/r.jsonl", f"--base_url={teacher.url}"]
        flags += ["--model=oracle-1", "--max_tokens=64", "--samples=2"]
        killed = "import os, runpy, sys; os.replace = lambda *_: os.kill(os.getpid(), 9); "
        killed += "runpy.run_module('cotmi_jax.annotate', run_name='__main__', alter_sys=True)"
        run = subprocess.run([sys.executable, "-c", killed, *flags], cwd=REPOSITORY, capture_output=True, timeout=60)
        assert run.returncode == -9, run.stderr
        assert (tmp_path / "r.jsonl").read_bytes() == earlier and len(teacher.requests) == 6
        assert annotation(tmp_path, teacher.url, sums(3), samples=2).run() == 0
    assert len(teacher.requests) == 6 and report(tmp_path)["samples"] == 6


def test_a_journal_of_an_earlier_version_is_resumed(tmp_path):
    lines = "".join(json.dumps(line) + "\n" for line in EARLIER)
    (tmp_path / "r.journal.jsonl").write_text(lines)
    with FakeTeacher() as teacher:
        assert annotation(tmp_path, teacher.url, sums(2)).run() == 0
    assert teacher.asked == ["Q: What is 1 + 10?\nA:"]
    assert (tmp_path / "r.journal.jsonl").read_text().startswith(lines)
    assert "thinking" not in (tmp_path / "r.journal.jsonl").read_text()  # so that an earlier version reads it
    assert [row["rationale"] for row in read_rows(tmp_path / "r.jsonl")] == [
        ["0 and 10 make 10."],
        ["1 and 10 make 11."],
    ]


def test_other_line_ends_in_a_completion_do_not_split_its_line(tmp_path):
    text = "One.\u2028Two.\x85Three.\x0cFour.\r\nFive. So the answer is 10."
    with FakeTeacher(lambda *_: text) as teacher:
        annotation(tmp_path, teacher.url, sums(1)).run()
        assert annotation(tmp_path, teacher.url, sums(1)).run() == 0
    assert len(teacher.requests) == 1
    assert (tmp_path / "r.jsonl").read_bytes().count(b"\n") == 1
    assert read_rows(tmp_path / "r.jsonl")[0]["rationale"] == [text.partition(" So")[0]]


HEADER, RESPONSE = (json.dumps(line) for line in EARLIER)
BROKEN = {
    "nested": '{"id": ' + "[" * 200_000,
    "digits": RESPONSE.replace("100", "9" * 5_000),
    "not UTF-8": RESPONSE.encode().replace(b"make", b"\xff"),
    "thinking": RESPONSE.replace('"finish_reason"', '"thinking": 3, "finish_reason"'),
    "reason": RESPONSE.replace('"stop"', "[1]"),
    "hinted": RESPONSE.replace("false", '"no"'),
    "choices": RESPONSE.replace('"choices": [', '"choices": [7, '),
}


@pytest.mark.parametrize("line", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_line_of_a_journal_is_refused_in_one_line(tmp_path, line):
    content = line if isinstance(line, bytes) else line.encode()
    path = tmp_path / "j"
    path.write_bytes(HEADER.encode() + b"\n" + content + b"\n" + RESPONSE.encode() + b"\n")
    header = {name: value for name, value in EARLIER[0].items() if name != "format"}
    with pytest.raises(UserError, match="j:2: not a line of a journal") as raised:
        read_journal(path, header)
    assert len(str(raised.value)) < 400


def test_an_incomplete_character_at_the_end_of_a_journal_does_not_end_a_dry_run(tmp_path, capsys):
    (tmp_path / "r.journal.jsonl").write_bytes(f"{HEADER}\n{RESPONSE}\n".encode() + '{"id": "ü'.encode()[:-1])
    annotation(tmp_path, None, sums(2)).dry_run()
    assert "1 requests for 1 of 2 questions" in capsys.readouterr().out


def test_a_journal_that_is_no_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for open_journal in (Journal, read_journal):
        with pytest.raises(UserError, match="fifo: not a regular file; choose another --journal"):
            open_journal(tmp_path / "fifo", {})


def test_settings_of_a_journal_that_differ_are_named_in_one_short_line(tmp_path):
    path = tmp_path / "journal.jsonl"
    odd = {f"\x7f{number}" * 1000: 1 for number in range(50)}
    path.write_text(json.dumps({**EARLIER[0], "model": "other", **odd}) + "\n")
    with pytest.raises(UserError, match="model was 'other'.* and 47 more; restore them") as error:
        read_journal(path, {name: value for name, value in EARLIER[0].items() if name != "format"})
    assert str(error.value).isprintable() and len(str(error.value)) < 1000

"""Lines of predict: text and JSON, their answers, and lines that cannot be used."""

import errno
import io
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from cotmi_jax.errors import UserError
from cotmi_jax.inference import lines
from cotmi_jax.inference.lines import Line, OpenStream, read_lines


def read(content: bytes, form: Any = "auto", skip: Any = None) -> list[Line]:
    return [line for line in read_lines(io.BytesIO(content), form, skip) if line is not None]


def test_lines_are_split_at_newlines_only() -> None:
    content = " one\u2028two\x85three\x0bfour \r\nfive\rsix\n \u2028seven\x85".encode()
    assert [line.text for line in read(content)] == ["one\u2028two\x85three\x0bfour", "five\rsix", "\u2028seven\x85"]


def test_the_first_line_determines_the_format() -> None:
    row = b'{"input": "a\\nb", "id": 7}'
    for start in (b"", b" ", b"\xef\xbb\xbf"):
        assert read(start + row) == [Line(1, "a\nb", {"input": "a\nb", "id": 7})]
    assert read(b"{a set}\n" + row) == [Line(1, "{a set}"), Line(2, row.decode())]
    assert read(row, "text") == [Line(1, row.decode())]
    assert read(b"\xef\xbb\xbfone") == [Line(1, "one")]


@pytest.mark.parametrize(
    ("row", "samples", "expected"),
    [
        (None, [{"label": "1"}], {"input": "x", "label": "1"}),
        (
            {"id": 3, "input": "x", "tags": ["a"]},
            [{"label": "1"}],
            {"id": 3, "input": "x", "tags": ["a"], "label": "1"},
        ),
        (
            {"input": "x", "label": "gold", "given": 1},
            [{"label": "1"}],
            {"input": "x", "label": "1", "given": {"label": "gold", "given": 1}},
        ),
        ({"input": "x", "given": 1}, [{"label": "1"}], {"input": "x", "given": 1, "label": "1"}),
        (
            {"input": "x", "label": "gold"},
            [{"label": "1"}, {"label": "2"}],
            {"input": "x", "label": "gold", "samples": [{"label": "1"}, {"label": "2"}]},
        ),
    ],
)
def test_an_answer_keeps_every_field_of_its_row(row: Any, samples: Any, expected: dict) -> None:
    assert json.loads(Line(1, "x", row).answered(samples)) == expected


GOOD = b'{"input": "1 + 1?", "id": "a"}'


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b'{"input": "caf\xe9"}', "not UTF-8 .* at byte 14"),
        (b"", "is empty"),
        (b'{"input": ' + b"[" * 200_000, "not JSON"),
        (b'{"input": "a", "deep": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "not JSON"),
        (b'{"input": "a", "n": ' + b"1" * 5_000 + b"}", "not JSON"),
        (b'{"input": "a", "n": NaN}', "not JSON"),
        (b'{"input": "a", "n": 1e999}', "not JSON"),
        (b'{"input": "a", "n": "\\ud83d"}', "surrogate"),
        (b'["input"]', "no JSON object but list"),
        (b'"input"', "no JSON object but str"),
        (b"null", "no JSON object but NoneType"),
        (b'{"input": 7}', "no text in the field input, but int"),
        (b'{"input": ["a"]}', "no text in the field input, but list"),
        (b'{"' + b"x" * 5_000 + b'": 1}', "has no field input, but"),
        (b'{"input": " "}', "empty input"),
        (b'{"input": "a"', "not JSON"),
    ],
    ids=lambda value: value[:20].decode("latin1") if isinstance(value, bytes) else "",
)
def test_a_bad_line_is_one_line_of_error_or_skipped(bad: bytes, message: str) -> None:
    content = b"\n".join((GOOD, bad, GOOD))
    found = read_lines(io.BytesIO(content))
    assert next(found).number == 1
    with pytest.raises(UserError, match=f"^line 2 of the input .*{message}") as error:
        next(found)
    assert len(str(error.value)) < 300 and "\n" not in str(error.value) and str(error.value).isprintable()
    reasons: list[str] = []
    assert [line.number for line in read(content, skip=reasons.append)] == [1, 3]
    assert reasons == [str(error.value)]


def test_input_without_a_line_that_can_be_used_is_an_error() -> None:
    with pytest.raises(UserError, match="none of the 2 lines"):
        read(b"\xff\n\xff", skip=lambda reason: None)
    assert read(b"") == []


def test_a_stream_that_cannot_be_read_is_an_error() -> None:
    class Folder(io.BytesIO):
        def readline(self, size: int | None = -1) -> bytes:
            raise IsADirectoryError(errno.EISDIR, "Is a directory")

    with pytest.raises(UserError, match="cannot read the input: Is a directory; give a file"):
        list(read_lines(Folder()))


def test_a_line_that_is_too_long_is_not_kept_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 10)
    reasons: list[str] = []
    content = b"a\n" + b"b" * 10 + b"\n" + b"c" * 11 + b"\n" + b"d" * 35 + b"\nlast"
    assert [line.text for line in read(content, skip=reasons.append)] == ["a", "b" * 10, "last"]
    assert [reason.split()[1] for reason in reasons] == ["3", "4"]


def test_lines_of_a_pipe_that_are_not_at_hand_are_announced() -> None:
    source, sink = os.pipe()
    found = read_lines(OpenStream(source), "jsonl", lambda reason: None)
    os.write(sink, GOOD + b"\n" + GOOD + b"\nnot JSON\n" + GOOD[:9])
    # A line that is skipped or incomplete is no line at hand.
    assert [line and line.number for line in (next(found), next(found), next(found))] == [1, 2, None]
    os.write(sink, GOOD[9:] + b"\n")
    assert next(found) == Line(4, "1 + 1?", {"input": "1 + 1?", "id": "a"})
    assert next(found) is None
    threading.Timer(0.1, lambda: (os.write(sink, GOOD), os.close(sink))).start()
    assert [line and line.number for line in found] == [5]  # waits for it; the end of a stream is no pause
    os.close(source)


@pytest.mark.parametrize("limit", [1, 7, 1 << 20])
def test_an_open_stream_reads_what_a_file_reads(limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "_READ_BYTES", 5)
    content = b"one\n\n\xff three\n" + b"4" * 20 + b"\nlast"
    (tmp_path / "in").write_bytes(content)
    with (tmp_path / "in").open("rb") as file:
        stream, other = OpenStream(file.fileno()), io.BytesIO(content)
        while expected := other.readline(limit):
            assert not stream.pauses() and stream.readline(limit) == expected
        assert not stream.pauses() and stream.readline(limit) == stream.readline(limit) == b""

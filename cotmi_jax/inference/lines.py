"""Inputs of `predict`, one a line, as text or as JSON objects, and the lines that answer them. Imports no jax."""

import dataclasses
import json
import os
import re
import select
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

from cotmi_jax.errors import UserError
from cotmi_jax.files import parse_json, user_error_on_failure

Format = Literal["auto", "text", "jsonl"]
Answer = dict[str, Any]
MAX_LINE_BYTES = 1 << 24  # a longer line is not read into memory
GIVEN = "given"  # field of an answer with those fields of its row whose names the answer uses itself
_WHITESPACE = " \t\r\n\v\f"  # other line ends of Unicode, such as U+2028, are content
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_MAX_SHOWN = 100  # characters of a reason
_PAUSE = 0.05  # seconds without input after which the next line is not at hand
_READ_BYTES = 1 << 16
_READING = "cannot read the input", "give a file, or the output of a command"


class Stream(Protocol):
    """What lines are read from: a binary file, or an OpenStream."""

    def readline(self, limit: int, /) -> bytes:
        """Up to and including the next newline, of at most `limit` bytes; b"" at the end."""


class OpenStream:
    """The lines of a file descriptor that may stay open without input: a pipe, a socket, a terminal."""

    def __init__(self, descriptor: int):
        self._descriptor, self._content, self._ended = descriptor, bytearray(), False

    def readline(self, limit: int, /) -> bytes:
        """As in Stream."""
        while not self._has_line(limit):
            self._fill()
        end = self._content.find(b"\n", 0, limit) + 1 or limit
        line = bytes(self._content[:end])
        del self._content[:end]
        return line

    def pauses(self) -> bool:
        """Whether neither a line nor the end of the input is at hand."""
        while not self._has_line(MAX_LINE_BYTES):
            if not select.select([self._descriptor], [], [], _PAUSE)[0]:
                return True
            self._fill()
        return False

    def _has_line(self, limit: int) -> bool:
        return self._ended or len(self._content) >= limit or b"\n" in self._content

    def _fill(self) -> None:
        content = os.read(self._descriptor, _READ_BYTES)
        self._content += content
        self._ended = not content


@dataclasses.dataclass(frozen=True)
class Line:
    """An input, and the JSON object that holds it (None: the line is text)."""

    number: int
    text: str
    row: Mapping[str, Any] | None = None

    @property
    def choices(self) -> tuple[str, ...]:
        """The candidate labels of the line: the field `choices` of its object, where that is a list of texts."""
        given = None if self.row is None else self.row.get("choices")
        is_list = isinstance(given, list) and all(isinstance(choice, str) for choice in given)
        return tuple(choice.strip() for choice in given or ()) if is_list else ()

    def answered(self, samples: Sequence[Answer]) -> str:
        r"""The line of JSON that answers it, without "\n": its own fields, then those of its answer.

        One sample is given by its fields, several as a list in the field `samples`. Fields of the row whose names the
        answer uses are kept in the field GIVEN.
        """
        answer: Answer = dict(samples[0]) if len(samples) == 1 else {"samples": list(samples)}
        own = {"input": self.text} if self.row is None else dict(self.row)
        if replaced := {name: own.pop(name) for name in list(own) if name in answer or name == GIVEN}:
            if replaced.keys() == {GIVEN}:
                own |= replaced
            else:
                answer[GIVEN] = replaced
        return json.dumps(own | answer, ensure_ascii=False, allow_nan=False)


def read_lines(
    stream: Stream,
    form: Format = "auto",
    skip: Callable[[str], None] | None = None,
    check: Callable[[Line], None] = lambda line: None,
) -> Iterator[Line | None]:
    r"""The lines of a stream, split at "\n" only, without surrounding whitespace; of an OpenStream, None before each
    line that is not at hand.

    form: "text", or "jsonl" for JSON objects with a text `input`; "auto": jsonl if the first line begins an object.
    skip: is called with the reason for each line that cannot be used; None: such a line raises UserError.
    check: raises UserError for a line that cannot be used.

    Raises:
      UserError: a line that cannot be used; with `skip`, if no line can.
    """
    number = usable = 0
    for content in _split(stream):
        if content is None:
            yield None
            continue
        number += 1
        if number == 1:
            content = content.removeprefix(_BYTE_ORDER_MARK)
            if form == "auto":
                form = "jsonl" if re.match(rb'\s*\{\s*["}]', content) else "text"
        try:
            line = _parse(content, number, form)
            check(line)
        except UserError as error:
            if skip is None:
                raise
            skip(str(error))
            continue
        usable += 1
        yield line
    if number and not usable:
        raise UserError(f"none of the {number} lines of the input can be used: the lines above say why")


def _split(stream: Stream) -> Iterator[bytes | None]:
    """The lines; of one that is too long, its first MAX_LINE_BYTES + 1 bytes. None: the next one is not at hand."""
    while True:
        with user_error_on_failure(*_READING):
            pauses = isinstance(stream, OpenStream) and stream.pauses()
        if pauses:
            yield None
        rest = content = _read(stream)
        if not content:
            return
        while len(rest) > MAX_LINE_BYTES and not rest.endswith(b"\n"):
            rest = _read(stream)
        yield content


def _read(stream: Stream) -> bytes:
    with user_error_on_failure(*_READING):
        return stream.readline(MAX_LINE_BYTES + 1)


def _parse(content: bytes, number: int, form: Format) -> Line:
    where = f"line {number} of the input"
    if len(content.rstrip(b"\n")) > MAX_LINE_BYTES:
        raise UserError(f"{where} has more than {MAX_LINE_BYTES >> 20} MiB: shorten it")
    try:
        text = content.decode().strip(_WHITESPACE)
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 ({error.reason} at byte {error.start}): convert it") from error
    if not text:
        raise UserError(f"{where} is empty; remove it or write a text")
    if form == "text":
        return Line(number, text)
    try:
        row = parse_json(text)
        json.dumps(row, ensure_ascii=False, allow_nan=False).encode()  # the answer will repeat it
    except UnicodeEncodeError as error:
        raise UserError(f"{where} holds half of a surrogate pair: correct the text") from error
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:_MAX_SHOWN]
        raise UserError(f"{where} is not JSON ({reason}): correct it, or give --format=text") from error
    if not isinstance(row, dict):
        raise UserError(f"{where} is no JSON object but {type(row).__name__}: give one object a line")
    if "input" in row and not isinstance(row["input"], str):
        raise UserError(f"{where} has no text in the field input, but {type(row['input']).__name__}: give a text")
    if "input" not in row:
        found = ascii(sorted(row))[:_MAX_SHOWN]
        raise UserError(f"{where} has no field input, but {found}: add it, or give --format=text")
    if not row["input"].strip():
        raise UserError(f"{where} has an empty input; remove it or write a text")
    return Line(number, row["input"], row)


def log_probability(total: float, tokens: int) -> dict[str, float | int]:
    """The score of an output: sum and mean of the log-probabilities of its tokens in nats, and their number."""
    return {"sum": total, "mean": total / tokens, "tokens": tokens}

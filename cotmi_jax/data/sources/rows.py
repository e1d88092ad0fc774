"""Reads rows of JSON files, each with its place ("file:line") for messages. Every UserError names the place."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator
from typing import Protocol

from cotmi_jax.errors import UserError, one_line, shown
from cotmi_jax.files import Path, is_remote, read_regular, user_error_on_failure

Row = dict[str, object]
RESTORE = "restore the file, or correct the path to it"
BAD_ROWS = ("error", "skip")
NUM_NOTES = 5
BOM = b"\xef\xbb\xbf"  # which some editors begin a file in UTF-8 with


class BadRows:
    """The policy for rows that cannot be used: raise an error at the first, or skip them and count them by split.

    notes: messages of the first NUM_NOTES skipped rows; each begins with the place.
    """

    def __init__(self, policy: str = "error"):
        self.policy = check_choice("bad_rows", policy, BAD_ROWS)
        self.skipped: dict[str, int] = {}
        self.notes: list[str] = []

    @contextlib.contextmanager
    def guard(self, split: str) -> Iterator[None]:
        """Wraps the handling of one row and raises or counts its UserError, by the policy."""
        try:
            yield
        except UserError as error:
            if self.policy == "error":
                raise
            self.skipped[split] = self.skipped.get(split, 0) + 1
            if len(self.notes) < NUM_NOTES:
                self.notes.append(str(error))

    def check_usable(self, usable: int, read: int, where: str) -> None:
        """Raises UserError where no row of `where` (a file, or a split of a prepared set) can be used."""
        if not read:
            raise UserError(f"{where}: holds nothing; restore it, or leave it out")
        if not usable:
            raise UserError(f"{where}: none of its {read} rows is usable; bad_rows=error says what is wrong")


class RawRow(Protocol):
    """A row that is not parsed yet, so that one that cannot be parsed is counted or raised like any bad row.

    is_table: the row is one of a table, in which numbers can be written as texts.
    """

    @property
    def place(self) -> str:
        """Where it is, for messages."""

    @property
    def is_table(self) -> bool: ...

    def parse(self) -> Row:
        """The fields of the row. UserError if it cannot be parsed."""


@dataclasses.dataclass(frozen=True, slots=True)
class JsonRow:
    """A line, counted from 1, or an item of a JSON list, counted from 0. where: the file, for messages."""

    where: str
    number: int
    content: object
    is_line: bool

    @property
    def place(self) -> str:
        return f"{self.where}:{self.number}" if self.is_line else f"{self.where}: item {self.number}"

    @property
    def is_table(self) -> bool:
        return False

    def parse(self) -> Row:
        """UserError where a line is not UTF-8 or not JSON, or the row is no object."""
        value = self.content
        if isinstance(value, bytes):
            value = parse_json(_decode(value, self.where, self.number), self.where, self.number)
        if not isinstance(value, dict):
            raise UserError(f"{self.place}: not a JSON object but {shown(value)}; give one object per row")
        return value


def read_raw_rows(path: Path, remedy: str = RESTORE) -> list[JsonRow]:
    """Rows of JSON Lines, or of a file that is one JSON list. remedy: for a file that cannot be read.

    Raises:
      UserError: the file cannot be read, or is a JSON list that is broken or not UTF-8.
    """
    where, content = shown_path(path), read_bytes(path, remedy).removeprefix(BOM)
    if content.lstrip().startswith(b"["):
        listed = parse_json(_decode(content, where), where)
        assert isinstance(listed, list)  # JSON that starts with "[" is one.
        return [JsonRow(where, i, row, is_line=False) for i, row in enumerate(listed)]
    # Not splitlines(): JSON texts may hold its other line ends, such as U+2028.
    lines = enumerate(content.split(b"\n"), start=1)
    return [JsonRow(where, i, line, is_line=True) for i, line in lines if line.strip()]


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Rows with their place, "file:line", or "file: item i" where the file is one JSON list.

    Raises:
      UserError: the file cannot be read, is not UTF-8 or not JSON, or a row is no object.
    """
    for row in read_raw_rows(path):
        yield row.place, row.parse()


def check_choice(key: str, value: str, known: tuple[str, ...]) -> str:
    """The value. Raises UserError, listing the known values, unless it is one of them."""
    if value not in known:
        raise UserError(f"{key} = {value!r}: choose one of {', '.join(known)}")
    return value


def text_field(row: Row, field: str, place: str) -> str:
    """The text in a field of a row. UserError where it holds none."""
    value = row.get(field)
    if not isinstance(value, str):
        found = one_line(", ".join(sorted(row))) or "no fields"
        raise UserError(f"{place}: field {shown(field)} holds no text; the row has {found}")
    return check_text(value, field, place)


def check_text(value: str, field: str, place: str) -> str:
    r"""The text. UserError if it holds a null character, or half of a surrogate pair ("\ud83d" alone in JSON).

    UTF-8 cannot encode the latter; the former is a sign of a file that is binary, or in UTF-16.
    """
    if "\0" in value:
        raise UserError(f"{place}: field {shown(field)} holds the null character U+0000; correct the text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"\\u{ord(value[error.start]):x}"
        raise UserError(f"{place}: field {shown(field)} holds {half}, half a character; correct the text") from error
    return value


def parse_json(text: str, where: Path | str, first_line: int = 1) -> object:
    """The value of a JSON text that begins on a line of a file. UserError, with the line, where it is broken."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise UserError(f"{where}:{line}: broken JSON ({error.msg}); restore the file from its source") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists nested as deep
        raise UserError(f"{where}:{first_line}: JSON beyond the parser's limits ({error}); restore the file") from error


def read_text(path: Path, remedy: str = RESTORE) -> str:
    """The content of a file. UserError where it cannot be read or, with the line, is not UTF-8."""
    return _decode(read_bytes(path, remedy).removeprefix(BOM), shown_path(path))


def read_bytes(path: Path, remedy: str = RESTORE) -> bytes:
    """The content of a regular file. UserError, with the remedy, where it cannot be read."""
    with user_error_on_failure(shown_path(path), remedy):
        return read_regular(path)


def is_present(path: Path) -> bool:
    """Whether there is a file; also for a link that points nowhere or to itself, which must not pass for no file."""
    return path.exists() or (not is_remote(path) and os.path.islink(path))


def shown_path(path: Path) -> str:
    """A path for messages."""
    return one_line(str(path), 300)


def _decode(content: bytes, where: str, first_line: int = 1) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = first_line + content.count(b"\n", 0, error.start)
        raise UserError(f"{where}:{line}: not UTF-8 ({error.reason}); save the file as UTF-8") from error

"""Reads rows of JSON files, each with its place ("file:line") for messages. Every UserError names the place."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator

from cotmi_jax.errors import UserError
from cotmi_jax.files import Path, user_error_on_failure

Row = dict[str, object]
BAD_ROWS = ("error", "skip")
NUM_NOTES = 5


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


@dataclasses.dataclass(frozen=True, slots=True)
class RawRow:
    """A row that is not parsed yet: a line, counted from 1, or an item of a JSON list, counted from 0."""

    path: Path
    number: int
    content: object
    is_line: bool

    @property
    def place(self) -> str:
        return f"{self.path}:{self.number}" if self.is_line else f"{self.path}: item {self.number}"

    def parse(self) -> Row:
        """The fields of the row. UserError where a line is not UTF-8 or not JSON, or the row is no object."""
        value = self.content
        if isinstance(value, bytes):
            value = parse_json(_decode(value, self.path, self.number), self.path, self.number)
        if not isinstance(value, dict):
            raise UserError(f"{self.place}: not a JSON object but {value!r:.50}; give one object per row")
        return value


def read_raw_rows(path: Path) -> list[RawRow]:
    """Rows of JSON Lines, or of a file that is one JSON list.

    Raises:
      UserError: the file cannot be read, or is a JSON list that is broken or not UTF-8.
    """
    content = read_bytes(path)
    if content.lstrip().startswith(b"["):
        listed = parse_json(_decode(content, path), path)
        assert isinstance(listed, list)  # JSON that starts with "[" is one.
        return [RawRow(path, i, row, is_line=False) for i, row in enumerate(listed)]
    # Not splitlines(): JSON texts may hold its other line ends, such as U+2028.
    lines = enumerate(content.split(b"\n"), start=1)
    return [RawRow(path, i, line, is_line=True) for i, line in lines if line.strip()]


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
        raise UserError(f"{place}: field {field!r} holds no text; the row has {', '.join(sorted(row)) or 'no fields'}")
    return check_text(value, field, place)


def check_text(value: str, field: str, place: str) -> str:
    r"""The text. UserError if it has half of a surrogate pair ("\ud83d" alone in JSON), which UTF-8 cannot encode."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"\\u{ord(value[error.start]):x}"
        raise UserError(f"{place}: field {field!r} holds {half}, half a character; correct the text") from error
    return value


def parse_json(text: str, path: Path, first_line: int = 1) -> object:
    """The value of a JSON text that begins on a line of a file. UserError, with the line, where it is broken."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise UserError(f"{path}:{line}: broken JSON ({error.msg}); restore the file from its source") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists nested as deep
        raise UserError(f"{path}:{first_line}: JSON beyond the parser's limits ({error}); restore the file") from error


def read_text(path: Path) -> str:
    """The content of a file. UserError where it cannot be read or, with the line, is not UTF-8."""
    return _decode(read_bytes(path), path)


def read_bytes(path: Path) -> bytes:
    """The content of a file. UserError where it cannot be read."""
    with user_error_on_failure(str(path), "restore the file, or correct the path to it"):
        return path.read_bytes()


def _decode(content: bytes, path: Path, first_line: int = 1) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = first_line + content.count(b"\n", 0, error.start)
        raise UserError(f"{path}:{line}: not UTF-8 ({error.reason}); save the file as UTF-8") from error

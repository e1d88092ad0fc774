"""Rows of JSON files with the place of each, "file:line", for messages. What is broken is a UserError that names it."""

import json
from collections.abc import Iterator
from pathlib import Path

from cotmi_jax.errors import UserError

Row = dict[str, object]


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Rows with their place, "file:line", or "file: item i" where the file is one JSON list.

    Raises:
      UserError: the file cannot be read, is not UTF-8 or not JSON, or a row is no object.
    """
    text = read_text(path)
    items: Iterator[tuple[str, object]]
    if text.lstrip().startswith("["):
        listed = parse_json(text, path)
        assert isinstance(listed, list)  # JSON that starts with "[" is one.
        items = ((f"{path}: item {i}", row) for i, row in enumerate(listed))
    else:  # Not splitlines(): JSON texts may hold its other line ends, such as U+2028.
        lines = enumerate(text.split("\n"), start=1)
        items = ((f"{path}:{i}", parse_json(line, path, i)) for i, line in lines if line.strip())
    for place, row in items:
        if not isinstance(row, dict):
            raise UserError(f"{place}: not a JSON object but {row!r:.50}; give one object per row")
        yield place, row


def text_field(row: Row, field: str, place: str) -> str:
    """The text in a field of a row. UserError where it holds none."""
    value = row.get(field)
    if not isinstance(value, str):
        raise UserError(f"{place}: field {field!r} holds no text; the row has {', '.join(sorted(row)) or 'no fields'}")
    return value


def parse_json(text: str, path: Path, first_line: int = 1) -> object:
    """The value of a JSON text that begins on a line of a file. UserError, with the line, where it is broken."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise UserError(f"{path}:{line}: broken JSON ({error.msg}); restore the file from its source") from error


def read_text(path: Path) -> str:
    """The content of a file. UserError where it cannot be read or, with the line, is not UTF-8."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; restore the file from the release") from error
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: not UTF-8 ({error.reason}); save the file as UTF-8") from error

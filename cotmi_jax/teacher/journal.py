"""The journal: an append-only JSON Lines file of the raw responses, flushed to disk after every line.

The first line is a header with all that determines the distribution of responses; each further line is one response. A
killed run may leave an incomplete last line, which is removed when the journal is opened. A lock admits one process at
a time.
"""

import dataclasses
import fcntl
import hashlib
import json
import os
import stat
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from cotmi_jax.data.sources.rows import Row
from cotmi_jax.errors import UserError, one_line, shown
from cotmi_jax.files import parse_json, read_regular, user_error_on_failure

FORMAT = "cotmi_jax annotations 1"
_MAX_LISTED = 4  # differing settings that a message names


class Choice(NamedTuple):
    """One completion of a response, without the key if the server repeated it.

    thinking is the text of a reasoning model before the completion, where the server separates the two; else None.
    """

    text: str
    finish_reason: str | None
    thinking: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One response. Tokens are None if the server did not count them; asked is the digest of the user message."""

    id: str
    asked: str
    hinted: bool
    model: str
    choices: tuple[Choice, ...]
    tokens_in: int | None
    tokens_out: int | None


Records = dict[str, list[Record]]


def digest(text: str) -> str:
    """A hash of the user message; with the digest of the prompt in the header it identifies the conversation."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Journal:
    """An open journal; a context manager.

    `records` has the responses by question id, `truncated_bytes` is the length of the incomplete line that was removed.

    Raises:
      UserError: another process has it open, it was made with other settings, or a line is invalid.
    """

    def __init__(self, path: Path, header: Mapping[str, object]):
        self.path = path
        self.truncated_bytes = 0
        self._header = {"format": FORMAT, **header}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}; choose another --journal or --output") from error
        try:
            if not stat.S_ISREG(os.fstat(self._file).st_mode):
                raise UserError(f"{path}: not a regular file; choose another --journal")
            self._lock()
            self._check_start()
            self._repair_last_line()
            self.records = read_journal(path, header)
        except BaseException:
            os.close(self._file)
            raise

    def append(self, record: Record) -> None:
        """Writes a response and returns once it is on disk. UserError if that fails; no fragment remains then."""
        row = dataclasses.asdict(record) | {"choices": [_choice_row(choice) for choice in record.choices]}
        # The header is written with the first response: a run without responses does not fix the settings.
        self._write([row] if os.fstat(self._file).st_size else [self._header, row])
        self.records[record.id].append(record)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            reason = "another run writes to it" if isinstance(error, BlockingIOError) else error.strerror
            raise UserError(f"{self.path}: {reason}; wait, or choose another --journal") from error

    def _check_start(self) -> None:
        """Raises UserError for another kind of file, which stays as it is."""
        first = os.pread(self._file, 1 << 16, 0).partition(b"\n")[0]
        start = json.dumps({"format": FORMAT}).encode().removesuffix(b"}")
        if not first.startswith(start) and not start.startswith(first):
            raise UserError(f"{self.path}:1: not a journal ({FORMAT}); choose another --journal")

    def _repair_last_line(self) -> None:
        """Removes an incomplete last line; to a complete one without line end it appends the line end."""
        kept, _, tail = self.path.read_bytes().rpartition(b"\n")
        if not tail:
            return
        if _is_complete(tail):
            os.write(self._file, b"\n")
        else:
            self.truncated_bytes = len(tail)
            os.ftruncate(self._file, len(kept) + 1 if kept else 0)
        os.fsync(self._file)

    def _write(self, rows: Sequence[Mapping[str, object]]) -> None:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        size = os.fstat(self._file).st_size
        try:
            written = 0
            while written < len(lines):
                written += os.write(self._file, lines[written:])
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, size)
            raise UserError(f"{self.path}: {error.strerror}; free space, then the same command resumes") from error


def read_journal(path: Path, header: Mapping[str, object]) -> Records:
    """The responses of a journal by question id, without an incomplete last line; empty if there is no file.

    Raises:
      UserError: a line is invalid, or the journal was made with other settings; the message names the line or settings.
    """
    records: Records = defaultdict(list)
    if not path.exists():
        return records
    with user_error_on_failure(str(path), "choose another --journal"):
        content = read_regular(path)
    lines = content.split(b"\n")  # not splitlines(): texts may hold its other line ends, such as U+2028
    if lines[-1] and not _is_complete(lines[-1]):
        lines.pop()
    for i, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            row = parse_json(line)
            if i == 1:
                _check_header(path, row, header)
            else:
                record = _record(row)
                records[record.id].append(record)
        except UserError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}:{i}: not a line of a journal ({type(error).__name__}); remove the line (its response is "
                "requested again), or choose another --journal"
            ) from error
    return records


def _is_complete(line: bytes) -> bool:
    try:
        return isinstance(parse_json(line), dict)
    except ValueError:
        return False


def _check_header(path: Path, found: object, header: Mapping[str, object]) -> None:
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise UserError(f"{path}:1: not a journal ({FORMAT!r}); choose another --journal")
    recorded, current = {**dict.fromkeys(header), **found}, {**dict.fromkeys(found), **header, "format": FORMAT}
    differing = [key for key in recorded if recorded[key] != current[key]]
    if differing:
        listed = ", ".join(
            f"{one_line(key)} was {shown(recorded[key])}, is {shown(current[key])}" for key in differing[:_MAX_LISTED]
        )
        if len(differing) > _MAX_LISTED:
            listed += f" and {len(differing) - _MAX_LISTED} more"
        raise UserError(f"{path}: made with other settings: {listed}; restore them, or choose another --journal")


def _choice_row(choice: Choice) -> dict[str, str | None]:
    row = choice._asdict()
    if choice.thinking is None:  # earlier versions read no such field
        del row["thinking"]
    return row


def _record(row: Row) -> Record:
    choices = row["choices"]
    if not isinstance(choices, list):
        raise TypeError
    fields = {field.name: row[field.name] for field in dataclasses.fields(Record)}
    record = Record(**(fields | {"choices": tuple(Choice(**choice) for choice in choices)}))  # type: ignore[arg-type]
    texts = (record.id, record.asked, record.model, *(choice.text for choice in record.choices))
    optional = (value for choice in record.choices for value in (choice.finish_reason, choice.thinking))
    counts = (record.tokens_in, record.tokens_out)
    if not all(isinstance(text, str) for text in texts) or not all(isinstance(text, str | None) for text in optional):
        raise TypeError
    if not all(isinstance(n, int | None) for n in counts) or not isinstance(record.hinted, bool):
        raise TypeError
    return record

"""What was paid for: an append-only JSON Lines file of raw responses, synced line by line and never rewritten.

The first line is a header with everything that shapes a response; each further line is one response. A run that was
killed may have left a torn last line: it is cut off on opening. One process at a time may hold a journal open.
"""

import dataclasses
import fcntl
import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from cotmi_jax.data.sources.rows import Row, read_text
from cotmi_jax.errors import UserError

FORMAT = "cotmi_jax annotations 1"


class Choice(NamedTuple):
    """One sample of a response, as the server gave it."""

    text: str
    finish_reason: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One response. Tokens are None where the server counted none; asked is the digest of the turn that asked."""

    id: str
    asked: str
    hinted: bool
    model: str
    choices: tuple[Choice, ...]
    tokens_in: int | None
    tokens_out: int | None


Records = dict[str, list[Record]]


def digest(text: str) -> str:
    """Short name of the turn that asked: with the header's prompt, that of the whole conversation."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Journal:
    """An open journal; a context manager. `records` holds the responses by question id, `cut` the bytes of a torn line.

    Raises:
      UserError: another process holds it, it was made with other settings, or a line is broken.
    """

    def __init__(self, path: Path, header: Mapping[str, object]):
        self.path = path
        self.cut = 0
        self._header = {"format": FORMAT, **header}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}; choose another --journal or --output") from error
        try:
            self._lock()
            self._mend()
            self.records = read_journal(path, header)
        except BaseException:
            os.close(self._file)
            raise

    def append(self, record: Record) -> None:
        """Returns once the response is on disk. UserError where the disk takes no more; then nothing of it stays."""
        row = dataclasses.asdict(record) | {"choices": [choice._asdict() for choice in record.choices]}
        # The header comes with the first response: settings under which nothing was paid for bind nobody.
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
            why = "another run writes to it" if isinstance(error, BlockingIOError) else error.strerror
            raise UserError(f"{self.path}: {why}; wait, or choose another --journal") from error

    def _mend(self) -> None:
        """Cut off a torn last line; one that lacks its line end alone is whole, and gets it."""
        kept, _, tail = self.path.read_bytes().rpartition(b"\n")
        if not tail:
            return
        if _is_whole(tail):
            os.write(self._file, b"\n")
        else:
            self.cut = len(tail)
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
            raise UserError(f"{self.path}: {error.strerror}; make room, then the same command goes on") from error


def read_journal(path: Path, header: Mapping[str, object]) -> Records:
    """The responses of a journal by question id, none where there is no file; a torn last line is passed over.

    Raises:
      UserError: with the line, what is broken; or the settings in which the journal differs from the header.
    """
    records: Records = defaultdict(list)
    if not path.exists():
        return records
    lines = read_text(path).split("\n")
    if lines[-1] and not _is_whole(lines[-1].encode()):
        lines.pop()
    for i, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            row = json.loads(line)
            if i == 1:
                _check_header(path, row, header)
            else:
                record = _record(row)
                records[record.id].append(record)
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}:{i}: no line of a journal ({type(error).__name__}); remove the line (its response is asked "
                "for again), or choose another --journal"
            ) from error
    return records


def _is_whole(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _check_header(path: Path, found: object, header: Mapping[str, object]) -> None:
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise UserError(f"{path}:1: no journal of this program ({FORMAT!r}); choose another --journal")
    there, now = {**dict.fromkeys(header), **found}, {**dict.fromkeys(found), **header, "format": FORMAT}
    differing = [key for key in there if there[key] != now[key]]
    if differing:
        listed = ", ".join(f"{key} {there[key]!r:.60} there, {now[key]!r:.60} now" for key in differing)
        raise UserError(f"{path}: made with other settings: {listed}; set them back, or choose another --journal")


def _record(row: Row) -> Record:
    choices = row["choices"]
    if not isinstance(choices, list):
        raise TypeError
    fields = {field.name: row[field.name] for field in dataclasses.fields(Record)}
    record = Record(**(fields | {"choices": tuple(Choice(**choice) for choice in choices)}))  # type: ignore[arg-type]
    texts = (record.id, record.asked, record.model, *(choice.text for choice in record.choices))
    counts = (record.tokens_in, record.tokens_out)
    if not all(isinstance(text, str) for text in texts) or not all(isinstance(n, int | None) for n in counts):
        raise TypeError
    return record

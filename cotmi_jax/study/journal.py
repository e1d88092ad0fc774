"""The events of a study: a file that is only appended to or, in a bucket, which has no such files, an object an event.

{study}/study.jsonl              on disk: a line of JSON an event, in the order of writing
{study}/events/{number}-{token}.json    in a bucket: number is 1 + the highest that the writer had seen

No order depends on a clock: events that depend on each other are written by holders of one lease, one after the other,
and the later holder has seen what the earlier one wrote.
"""

import contextlib
import errno
import fcntl
import json
import os
import secrets
import sys
from typing import Any

from cotmi_jax.errors import one_line
from cotmi_jax.files import Path, is_remote, list_objects, parse_json, read_regular, replace_file, user_error_on_failure

JOURNAL_FILE, EVENTS_FOLDER = "study.jsonl", "events"
Event = dict[str, Any]


class Journal:
    """The events of the study in a folder. An instance remembers what it has read of a bucket, and what it reported."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.path = folder / (EVENTS_FOLDER if is_remote(folder) else JOURNAL_FILE)
        self._known: dict[str, Event] = {}  # of a bucket, by object name
        self._reported: set[int] = set()

    def read(self) -> list[Event]:
        """All events in order; [] where there is no study. Raises UserError where they cannot be read."""
        with user_error_on_failure(f"cannot read {self.path}", "make it readable"):
            return self._read_objects() if is_remote(self.folder) else self._read_lines()

    def append(self, event: Event) -> None:
        """Write an event; it is on the disk when this returns. Raises UserError."""
        with user_error_on_failure(
            f"cannot write {self.path}", "make room or make it writable, and give the command again"
        ):
            if is_remote(self.folder):
                self._append_object(event)
            else:
                self._append_line(json.dumps(event))

    def _read_lines(self) -> list[Event]:
        try:
            lines = read_regular(self.path).split(b"\n")
        except FileNotFoundError:
            return []
        # What follows the last line end is being written, or was cut short by a kill.
        return [event for number, line in enumerate(lines[:-1], 1) if (event := self._parse(line, number)) is not None]

    def _parse(self, line: bytes, number: int) -> Event | None:
        try:
            event = parse_json(line)
        except ValueError:
            event = None
        if isinstance(event, dict) and isinstance(event.get("event"), str):
            return event
        if line and number not in self._reported:
            self._reported.add(number)
            text = one_line(line.decode(errors="replace"), 40)
            print(f"{self.path}, line {number}: cut short or damaged, and ignored ({text})", file=sys.stderr)
        return None

    def _append_line(self, line: str) -> None:
        with open(self.path, "ab", buffering=0) as file:
            with contextlib.ExitStack() as stack:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX)
                    stack.callback(fcntl.flock, file, fcntl.LOCK_UN)
                except OSError as error:  # a file system without locks: appending a line is one system call
                    if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                        raise
                data = f"{line}\n".encode()
                if _is_cut(self.path):
                    print(f"{self.path} ended in a line that a kill cut short: it is ignored", file=sys.stderr)
                    self._reported.add(read_regular(self.path).count(b"\n") + 1)
                    data = b"\n" + data
                written = file.write(data)
                if written != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())

    def _read_objects(self) -> list[Event]:
        for name in list_objects(self.path):
            if name not in self._known:
                event = parse_json(read_regular(self.path / name))  # an object is written atomically
                if isinstance(event, dict) and isinstance(event.get("event"), str):
                    self._known[name] = event
        return [self._known[name] for name in sorted(self._known)]

    def _append_object(self, event: Event) -> None:
        self._read_objects()
        last = max((int(name.partition("-")[0]) for name in self._known), default=0)
        name = f"{last + 1:08d}-{secrets.token_hex(4)}.json"
        replace_file(self.path / name, json.dumps(event) + "\n")
        self._known[name] = event


def _is_cut(path: Path) -> bool:
    """Whether a file has content that does not end in a line end."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        if not size:
            return False
        file.seek(size - 1)
        return file.read(1) != b"\n"

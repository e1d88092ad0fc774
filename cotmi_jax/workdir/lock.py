"""One training run in a workdir at a time: the owner is recorded, and a second run is refused.

{workdir}/owner.json    host, pid, start and, without locks, token and heartbeat of the run that owns it

Where the file system has locks, owner.json is locked while the process lives; the system releases the lock at its end.
Elsewhere, as in an object store, the owner writes a new heartbeat every 20 seconds; an unchanged heartbeat is stale
after 60 s. (A conditional write, if_generation_match=0, would replace only the check after taking over: a killed run
must still be detected, and a mount without locks has no such write.) Reading a workdir, as evaluation does, needs no
lock.
"""

import contextlib
import dataclasses
import datetime
import errno
import fcntl
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from io import FileIO
from typing import Protocol

import jax

from cotmi_jax.errors import UserError, one_line
from cotmi_jax.files import (
    Path,
    failures,
    is_remote,
    parse_json,
    read_regular,
    reason,
    run_all,
    user_error_on_write,
)

OWNER_FILE = "owner.json"
IN_USE = "another run is training"  # begins the message of a workdir that has an owner
_READ_BYTES = 4096  # more than the size of an owner file
_LONG_AGO = 3600.0  # seconds; clocks of two hosts differ by less, so an older heartbeat is stale without a wait
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class InUseError(UserError):
    """Another process holds the lock; `owner` names it."""

    def __init__(self, message: str, owner: str):
        super().__init__(message)
        self.owner = owner


class Owner(Protocol):
    """The run that owns a workdir."""

    @property
    def descriptor(self) -> int | None:
        """Of the locked file: a child process that inherits it holds the lock too. None where a heartbeat is kept."""

    def check(self) -> None:
        """Raises UserError where another run has taken the workdir over. Costs nothing."""


@dataclasses.dataclass(frozen=True)
class Periods:
    """Periods of the heartbeat in seconds. `stale` is several beats, so that a slow store does not look like a kill."""

    beat: float = 20.0
    stale: float = 60.0
    settle: float = 5.0  # between taking over and checking whether another run did so at the same time


def _myself() -> dict[str, str | int]:
    since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": since}


def _description(text: str) -> str:
    """The owner that a file names, as one line."""
    try:
        owner = parse_json(text)
        return one_line(f"{owner['host']}, process {owner['pid']}, since {owner['since']}")
    except (ValueError, KeyError, TypeError):
        return "its host and process are not recorded yet"


def _refusal(path: Path, text: str) -> InUseError:
    owner = _description(text)
    return InUseError(f"{IN_USE} in {path.parent} ({owner}): wait for it, end it, or take another --workdir", owner)


@contextlib.contextmanager
def workdir_lock(workdir: Path, periods: Periods = Periods()) -> Iterator[Owner]:
    """Own a workdir during the body; the first process does so for all processes of a run. Raises UserError.

    In object stores, and where the file system cannot lock (which is reported), a heartbeat replaces the lock.
    """
    if jax.process_index():
        yield _Locked()
        return
    with lock(workdir / OWNER_FILE, periods) as owner:
        yield owner


@contextlib.contextmanager
def lock(path: Path, periods: Periods = Periods()) -> Iterator[Owner]:
    """Hold a lock, with a file that names its holder, during the body. Its folder exists.

    Raises InUseError where another process holds it, UserError where the file cannot be written.
    """
    file = None if is_remote(path) else _locked_file(path)
    with _heartbeat(path, periods) if file is None else _file_lock(path, file) as owner:
        yield owner


def _locked_file(path: Path) -> FileIO | None:
    """The owner file, locked; None where the file system has no locks. Raises UserError."""
    with user_error_on_write(path):
        while True:
            new = not path.exists()
            file = FileIO(path, "a+")  # child processes do not inherit it: only this process holds the lock
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(file, path):
                    return file
                file.close()  # the former owner removed the file between open and lock
            except BlockingIOError as error:
                text = os.pread(file.fileno(), _READ_BYTES, 0).decode(errors="replace")
                file.close()
                raise _refusal(path, text) from error
            except OSError as error:
                file.close()
                if error.errno not in _NO_LOCKS:
                    raise
                if new:
                    path.unlink(missing_ok=True)  # an empty file would look like that of a run that is just starting
                message = f"{path.parent} cannot be locked ({error.strerror}): a heartbeat in {path} replaces the lock"
                print(message, file=sys.stderr)
                return None


def _is_at(file: FileIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


class _Locked:
    """The owner that holds a file lock, which no other run can take over."""

    def __init__(self, descriptor: int | None = None):
        self.descriptor = descriptor

    def check(self) -> None:
        """Nothing to check."""


@contextlib.contextmanager
def _file_lock(path: Path, file: FileIO) -> Iterator[Owner]:
    def end() -> None:
        with file, user_error_on_write(path):
            path.unlink(missing_ok=True)  # before the lock is released: until then the file is not another run's

    with run_all(end):
        with user_error_on_write(path):
            os.ftruncate(file.fileno(), 0)
            os.pwrite(file.fileno(), json.dumps(_myself()).encode(), 0)
        yield _Locked(file.fileno())


class _HeartbeatOwner:
    """An owner whose thread renews the heartbeat in the owner file; another token there means a takeover."""

    descriptor = None

    def __init__(self, path: Path, periods: Periods):
        self._workdir, self._path, self._periods = path.parent, path, periods
        self._token = secrets.token_hex(8)
        self._myself = _myself() | {"token": self._token}
        self._lost: str | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="workdir_beat", daemon=True)

    def check(self) -> None:
        """Raises UserError if another run has taken the workdir over, or if the heartbeat is no longer renewed."""
        if self._lost is not None:
            raise UserError(
                f"another run has taken {self._workdir} over ({_description(self._lost)}): this run ends and writes "
                "nothing more there; give every run a --workdir of its own"
            )
        if not self._thread.is_alive():
            raise UserError(
                f"{self._path} is no longer renewed, so that another run could take the workdir over: give the same "
                "command again"
            )

    def take(self) -> None:
        """Become the owner, after a wait if the last heartbeat may be recent. UserError if another run is the owner."""
        found = self._read()
        if found is not None and self._may_be_recent(found):
            print(
                f"{self._path} has an owner ({_description(found)}): waiting {self._periods.stale:g} seconds for its "
                "next heartbeat",
                file=sys.stderr,
                flush=True,
            )
            end = time.monotonic() + self._periods.stale
            while found is not None and time.monotonic() < end:
                time.sleep(self._periods.beat / 4)
                now = self._read()
                if now == "":
                    continue  # another process is writing it: the next read shows which
                if now is not None and now != found:
                    raise _refusal(self._path, now)
                found = now  # None: that run has ended
        self._write()
        time.sleep(self._periods.settle)
        written = self._read()
        if written is None or not self._mine(written):
            raise _refusal(self._path, written or "")
        self._thread.start()

    def release(self) -> None:
        """Stop the heartbeat; remove the file if it is still this run's."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()
        with user_error_on_write(self._path):
            text = self._read()
            if text is not None and self._mine(text):
                self._path.unlink()

    def _renew(self) -> None:
        while not self._end.wait(self._periods.beat):
            try:
                text = self._read()
                if text is not None and not self._mine(text):
                    self._lost = text
                    return
                self._write()
            except failures() as error:  # the store may recover; a takeover in the meantime is detected afterwards
                print(f"cannot renew {self._path}: {reason(error)}; trying again", file=sys.stderr, flush=True)

    def _mine(self, text: str) -> bool:
        return self._token in text

    def _may_be_recent(self, text: str) -> bool:
        try:
            return time.time() - parse_json(text)["beat"] < _LONG_AGO
        except (ValueError, KeyError, TypeError):
            return True  # possibly incomplete, since it is being written

    def _read(self) -> str | None:
        try:
            return read_regular(self._path).decode(errors="replace")
        except FileNotFoundError:
            return None

    def _write(self) -> None:
        self._path.write_text(json.dumps(self._myself | {"beat": time.time()}))


@contextlib.contextmanager
def _heartbeat(path: Path, periods: Periods) -> Iterator[Owner]:
    owner = _HeartbeatOwner(path, periods)
    with user_error_on_write(path):
        owner.take()
    with run_all(owner.release):
        yield owner


@contextlib.contextmanager
def heartbeat_lock(workdir: Path, periods: Periods = Periods()) -> Iterator[Owner]:
    """workdir_lock for folders without locks. A killed run keeps the next one waiting for `stale` seconds at most."""
    with _heartbeat(workdir / OWNER_FILE, periods) as owner:
        yield owner

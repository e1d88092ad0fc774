"""Several processes, one per host, that train or evaluate together on JAX's distributed runtime.

They are told of each other by environment variables, so that the command is the same on every host:

    COTMI_COORDINATOR=HOST:PORT   where process 0 listens; with it
    COTMI_PROCESSES=N             how many processes there are, and
    COTMI_PROCESS_ID=I            which of them this is, 0 … N−1; or
    COTMI_COORDINATOR=auto        alone: JAX finds all three (Cloud TPU, GKE with TPUs, SLURM, Open MPI)
    COTMI_HEARTBEAT=SECONDS       after how long a silence a process counts as gone; 30 by default

Without any of them there is one process. All share one workdir; the first, process 0, alone writes and speaks.

None can go on without the others. One that fails tells them why, and they end with it. One that is killed, or whose
host is lost, is noticed within COTMI_HEARTBEAT and a few seconds; process 0, at once. Each of the others says so in its
last line, after the runtime's own log where that noticed first. Exit codes: in the process that fails 2 for an error of
the user's and 1 for any other; in those that end because of it 75 (EXIT_PEER_LOST).
"""

import contextlib
import ctypes
import dataclasses
import itertools
import os
import secrets
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Final, Literal, NoReturn

import jax

# No public way leads to the runtime's key-value store. Orbax takes this one too.
from jax._src.distributed import global_state

from cotmi_jax.errors import UserError
from cotmi_jax.files import Path, failures, make_folder

AllGather = Callable[[str], list[str]]  # what each process says, by its number

EXIT_PEER_LOST: Final = 75  # EX_TEMPFAIL of sysexits.h: starting the same command again is the cure
HEARTBEAT_SECONDS: Final = 30
JOIN_SECONDS: Final = 300  # that processes may start apart
_COORDINATOR, _PROCESSES, _PROCESS_ID, _HEARTBEAT = (
    "COTMI_COORDINATOR", "COTMI_PROCESSES", "COTMI_PROCESS_ID", "COTMI_HEARTBEAT"
)  # fmt: skip
_NOTICE = "cotmi_jax/failed"  # under this key a process that fails says so
_NOTICE_SECONDS = 1.0  # for a notice to arrive
_FOREVER = 2**31 - 1  # milliseconds
# How a collective fails when a process is gone (Gloo on CPUs, NCCL on GPUs), and not for lack of memory.
_LOST = ("Gloo", "NCCL", "UNAVAILABLE", "ABORTED", "onnection")
_ADVICE = "start the job again; training resumes from its last checkpoint"

_ending = threading.Lock()
_joined = threading.Event()
_libc = ctypes.CDLL(None)


@dataclasses.dataclass(frozen=True)
class ProcessConfig:
    """Where a process stands among all; what is None is JAX's to find."""

    coordinator: str | None
    processes: int | None
    process: int | None
    heartbeat: int

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "ProcessConfig | None":
        """From the variables above; None for a single process. Raises UserError for half of them or wrong values."""
        given = {name: environment[name] for name in (_COORDINATOR, _PROCESSES, _PROCESS_ID) if environment.get(name)}
        heartbeat = _number(environment.get(_HEARTBEAT) or str(HEARTBEAT_SECONDS), _HEARTBEAT, 1, 3600)
        if not given:
            return None
        if given == {_COORDINATOR: "auto"}:
            return cls(None, None, None, heartbeat)
        missing = {_COORDINATOR, _PROCESSES, _PROCESS_ID} - given.keys()
        if missing or given[_COORDINATOR] == "auto":
            raise UserError(
                f"{' '.join(f'{name}={value}' for name, value in given.items())}: set {_COORDINATOR}=HOST:PORT, "
                f"{_PROCESSES} and {_PROCESS_ID}, or {_COORDINATOR}=auto alone, or none of them for one process"
            )
        address, processes = given[_COORDINATOR], _number(given[_PROCESSES], _PROCESSES, 1, 1_000_000)
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal():
            raise UserError(f"{_COORDINATOR}={address}: give HOST:PORT of process 0, or auto")
        return cls(address, processes, _number(given[_PROCESS_ID], _PROCESS_ID, 0, processes - 1), heartbeat)


def _number(text: str, name: str, low: int, high: int) -> int:
    if not text.isdecimal() or not low <= int(text) <= high:
        raise UserError(f"{name}={text}: give a whole number from {low} to {high}")
    return int(text)


def is_main_process() -> bool:
    """Whether this process is the one that writes and speaks; a single process is."""
    return jax.process_index() == 0


def _client() -> Any:
    """The runtime's key-value store and barriers; there once this process has joined the others."""
    return global_state.client


def _who() -> str:
    return f"process {global_state.process_id} of {global_state.num_processes}"


def _end(code: int, text: str) -> NoReturn:
    """End this process here and now; of several threads that come here the first is heard.

    Not by way of exceptions and exit handlers: those wait for the other processes, which wait for this one.
    """
    if not _ending.acquire(blocking=False):
        time.sleep(10 * _NOTICE_SECONDS)
    os.write(2, f"{text}\n".encode())
    os._exit(code)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _aborted(_: int) -> None:
    """Handler of SIGABRT: where the runtime learns that a process is gone, it logs that in its own way and aborts."""
    lost = "another process is gone or cannot be reached, or this one crashed"
    if not _joined.is_set():
        lost = f"not all processes came to {global_state.coordinator_address} within {JOIN_SECONDS} s"
    _end(EXIT_PEER_LOST, f"error: {_who()}: {lost}: {_ADVICE}")


def _listen() -> None:
    """Wait for a process to say that it fails, and end with it."""
    try:
        notice = _client().blocking_key_value_get(_NOTICE, _FOREVER)
    except jax.errors.JaxRuntimeError:
        return  # the runtime is shut down, or about to abort
    process, _, text = notice.partition(" ")
    if int(process) != global_state.process_id:
        _end(EXIT_PEER_LOST, f"error: {_who()}: process {process} failed: {text}")


def _fail(code: int, text: str, reason: str) -> NoReturn:
    """Tell the others the reason, and end this process with a text."""
    _client().key_value_set(_NOTICE, f"{global_state.process_id} {reason}", allow_overwrite=True)
    if global_state.process_id == 0:
        time.sleep(_NOTICE_SECONDS)  # the notice goes through this process
    _end(code, text)


class AbortAllOnError:
    """A block that, left by an exception, ends this process and all others; of no effect in a single process.

    Where others wait, no `finally` outside may come first: it could wait for them in turn.
    """

    def __init__(self, *, show_traceback: bool = False):
        self._show_traceback = show_traceback  # of a user's error too

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        if error is None or not _joined.is_set():
            return False
        reason = " ".join(str(error).split())
        if isinstance(error, jax.errors.JaxRuntimeError) and any(sign in reason for sign in _LOST):
            time.sleep(_NOTICE_SECONDS)  # if the other process could say why, _listen ends this one first
            _end(EXIT_PEER_LOST, f"error: {_who()}: another process is gone ({reason[:200]}): {_ADVICE}")
        if isinstance(error, UserError):
            text = "".join(traceback.format_exception(error)) * self._show_traceback + f"error: {_who()}: {reason}"
            _fail(2, text, reason)
        if isinstance(error, KeyboardInterrupt):
            _fail(130, f"error: {_who()}: interrupted", "interrupted")
        _fail(1, "".join(traceback.format_exception(error)).rstrip(), f"{type(error).__name__}: {reason[:200]}")


@contextlib.contextmanager
def process_group(*, preemption: bool, show_traceback: bool = False) -> Iterator[None]:
    """Join the other processes, before any device is used, for the time of the block; end it with all of them.

    preemption: whether SIGTERM is noted for training.interrupt, from here on; else it ends the process as ever.

    Raises:
      UserError: there are other processes that this one was not told of, or they cannot be joined.
    """
    place = ProcessConfig.of(os.environ)
    if place is None:
        yield
        return
    if place.coordinator and place.process == 0:
        _check_port(place.coordinator)
    jax.config.update("jax_enable_preemption_service", preemption)
    _libc.signal(signal.SIGABRT, _aborted)  # Python's own handlers run only where abort() has not ended the process yet
    _join(place)
    _joined.set()
    listener = threading.Thread(target=_listen, daemon=True)
    listener.start()
    with AbortAllOnError(show_traceback=show_traceback):
        yield
        jax.distributed.shutdown()  # waits until all are here
    _joined.clear()
    listener.join()
    _libc.signal(signal.SIGABRT, 0)  # the default: _aborted must not run in an interpreter that ends


def _check_port(address: str) -> None:
    """Raises UserError where the coordinator could not listen: the runtime crashes."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the runtime: a port of late may be taken again
        try:
            probe.bind(("", int(address.rpartition(":")[2])))
        except (OSError, OverflowError) as error:
            raise UserError(f"{_COORDINATOR}={address}: cannot listen there ({error}): choose another port") from error


def _join(place: ProcessConfig) -> None:
    try:
        jax.distributed.initialize(
            place.coordinator,
            place.processes,
            place.process,
            cluster_detection_method="deactivate" if place.coordinator else None,
            initialization_timeout=JOIN_SECONDS,
            heartbeat_timeout_seconds=place.heartbeat,
        )
    except (jax.errors.JaxRuntimeError, ValueError, RuntimeError) as error:
        if place.coordinator:
            raise UserError(f"{_COORDINATOR}={place.coordinator}: {error}") from error
        raise UserError(
            f"{_COORDINATOR}=auto: JAX does not find the processes of this job ({error}): set "
            f"{_COORDINATOR}=HOST:PORT, {_PROCESSES} and {_PROCESS_ID}"
        ) from error


def barrier(what: str) -> None:
    """Wait until every process has come to `what`, however long that takes; collectives wait for 30 s on CPUs.

    Raises:
      UserError: this process shares its devices with others, and was not told.
    """
    if jax.process_count() == 1:
        return
    if not jax.distributed.is_initialized():
        raise UserError(f"{jax.process_count()} processes share these devices: set {_COORDINATOR}=auto for all of them")
    _client().wait_at_barrier(f"cotmi_jax/{what}", _FOREVER)


_gathered = itertools.count()


def all_gather_text(text: str) -> list[str]:
    """What each process says, by its number; all of them have to call it, and it waits for them, however long.

    Raises:
      UserError: as barrier does.
    """
    if jax.process_count() == 1:
        return [text]
    number = next(_gathered)
    barrier(f"all_gather_text {number}")
    client, key = _client(), f"cotmi_jax/all_gather_text/{number}"
    client.key_value_set(f"{key}/{global_state.process_id}", f"{text}.")  # no value may be empty
    return [client.blocking_key_value_get(f"{key}/{n}", _FOREVER)[:-1] for n in range(global_state.num_processes)]


def is_shared(folder: Path, all_gather: AllGather = all_gather_text) -> bool:
    """Whether all processes see one folder: each leaves a file there and looks for those of the others."""
    name = f".seen-{secrets.token_hex(8)}"
    # What cannot be written nobody sees: each process is on its own then, and finds out itself why not.
    with contextlib.suppress(*failures()):
        make_folder(folder)
        (folder / name).touch()
    names, sees_all = all_gather(name), False
    with contextlib.suppress(*failures()):
        sees_all = all((folder / other).exists() for other in names)
    shared = all(answer == "yes" for answer in all_gather("yes" if sees_all else "no"))
    with contextlib.suppress(*failures()):
        (folder / name).unlink()
    return shared

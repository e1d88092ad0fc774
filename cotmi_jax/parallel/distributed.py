"""Several processes, one per host, that train or evaluate one model on JAX's distributed runtime.

Environment variables configure them, so that the command is the same on every host:

    COTMI_COORDINATOR=HOST:PORT   address of process 0; requires the next two
    COTMI_PROCESSES=N             number of processes
    COTMI_PROCESS_ID=I            index of this process, 0 … N−1
    COTMI_COORDINATOR=auto        instead of the three: JAX finds them (Cloud TPU, GKE with TPUs, SLURM, Open MPI)
    COTMI_HEARTBEAT=SECONDS       a process without a heartbeat for this long counts as lost; 30 by default

Without these variables there is one process. All processes share one workdir and write its checkpoints; all other
output is that of the main process, process 0.

If one process ends, all do. A process that fails first sends its error to the others. If a process is killed or its
host is lost, the others detect it within COTMI_HEARTBEAT plus a few seconds (the loss of process 0, at once). They
report it in their last line, after the runtime's own log if that detected it first. Exit codes: 2 of a process with a
user error, 1 of one with any other error, 75 (EXIT_PEER_LOST) of those that end because of it.
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

# There is no public access to the runtime's key-value store. Orbax uses this one too.
from jax._src.distributed import global_state

from cotmi_jax.errors import UserError
from cotmi_jax.files import Path, failures, make_folder

AllGather = Callable[[str], list[str]]  # the text of each process, by process index

EXIT_PEER_LOST: Final = 75  # EX_TEMPFAIL of sysexits.h: the remedy is to start the same command again
HEARTBEAT_SECONDS: Final = 30
JOIN_SECONDS: Final = 300  # by how much the start of processes may differ
_COORDINATOR, _PROCESSES, _PROCESS_ID, _HEARTBEAT = (
    "COTMI_COORDINATOR", "COTMI_PROCESSES", "COTMI_PROCESS_ID", "COTMI_HEARTBEAT"
)  # fmt: skip
_NOTICE = "cotmi_jax/failed"  # key of the notice that a failing process sends
_NOTICE_SECONDS = 1.0  # for a notice to arrive
_FOREVER = 2**31 - 1  # milliseconds
# In the message of a collective that fails because a process is lost (Gloo on CPUs, NCCL on GPUs), but not in that of
# one that fails for lack of memory.
_PEER_LOST_SIGNS = ("Gloo", "NCCL", "UNAVAILABLE", "ABORTED", "onnection")
_ADVICE = "start the job again; training resumes from its last checkpoint"

_exiting = threading.Lock()
_joined = threading.Event()
_libc = ctypes.CDLL(None)


@dataclasses.dataclass(frozen=True)
class ProcessConfig:
    """Arguments of jax.distributed.initialize; JAX finds those that are None.

    heartbeat: seconds without a heartbeat after which a process counts as lost.
    """

    coordinator: str | None
    processes: int | None
    process: int | None
    heartbeat: int

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "ProcessConfig | None":
        """From the variables above; None for a single process. Raises UserError for missing or wrong values."""
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
            raise UserError(f"{_COORDINATOR}={address}: must be HOST:PORT of process 0, or auto")
        return cls(address, processes, _number(given[_PROCESS_ID], _PROCESS_ID, 0, processes - 1), heartbeat)


def _number(text: str, name: str, low: int, high: int) -> int:
    if not text.isdecimal() or not low <= int(text) <= high:
        raise UserError(f"{name}={text}: must be a whole number from {low} to {high}")
    return int(text)


def is_main_process() -> bool:
    """Whether this is process 0, which prints and writes all files but checkpoints; true for a single process."""
    return jax.process_index() == 0


def _client() -> Any:
    """The runtime's key-value store and barriers; None before process_group has joined the other processes."""
    return global_state.client


def _process_name() -> str:
    return f"process {global_state.process_id} of {global_state.num_processes}"


def _exit(code: int, text: str, *, notice_sent: bool = False) -> NoReturn:
    """Print a text and end this process at once; if several threads call this, only the first does.

    Exceptions and exit handlers are not run: they would wait for the other processes, which wait for this one.
    notice_sent: by any process; process 0 serves the store that confirms and delivers it, and so waits before it ends.
    """
    if not _exiting.acquire(blocking=False):
        time.sleep(10 * _NOTICE_SECONDS)  # the first thread ends the process meanwhile
    os.write(2, f"{text}\n".encode())
    if notice_sent and global_state.process_id == 0:
        time.sleep(_NOTICE_SECONDS)
    os._exit(code)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _aborted(_: int) -> None:
    """Handler of SIGABRT: when the runtime detects that a process is lost, it logs this and calls abort()."""
    reason = "another process is lost or cannot be reached, or this one crashed"
    if not _joined.is_set():
        reason = f"not all processes joined {global_state.coordinator_address} within {JOIN_SECONDS} s"
    _exit(EXIT_PEER_LOST, f"error: {_process_name()}: {reason}: {_ADVICE}")


def _await_notice() -> None:
    """Wait for the notice of a failing process, and end this one."""
    try:
        notice = _client().blocking_key_value_get(_NOTICE, _FOREVER)
    except jax.errors.JaxRuntimeError:
        return  # the runtime is shut down, or about to abort
    process, _, text = notice.partition(" ")
    if int(process) != global_state.process_id:
        _exit(EXIT_PEER_LOST, f"error: {_process_name()}: process {process} failed: {text}", notice_sent=True)


def _fail(code: int, text: str, reason: str) -> NoReturn:
    """Send the reason to the other processes, and end this one with a text."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # process 0 has ended, and the others end with it
        _client().key_value_set(_NOTICE, f"{global_state.process_id} {reason}", allow_overwrite=True)
    _exit(code, text, notice_sent=True)


class AbortAllOnError:
    """A block that ends all processes when it is left by an exception; without effect in a single process.

    Make it the innermost block: the cleanup of an outer one may wait for other processes, which wait for this one.
    """

    def __init__(self, *, show_traceback: bool = False):
        self._show_traceback = show_traceback  # for user errors too

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        if error is None or not _joined.is_set():
            return False
        reason = " ".join(str(error).split())
        if isinstance(error, jax.errors.JaxRuntimeError) and any(sign in reason for sign in _PEER_LOST_SIGNS):
            time.sleep(_NOTICE_SECONDS)  # a notice of the other process ends this one first, with the reason
            _exit(EXIT_PEER_LOST, f"error: {_process_name()}: another process is lost ({reason[:200]}): {_ADVICE}")
        if isinstance(error, UserError):
            shown = "".join(traceback.format_exception(error)) * self._show_traceback
            _fail(2, f"{shown}error: {_process_name()}: {reason}", reason)
        if isinstance(error, KeyboardInterrupt):
            _fail(130, f"error: {_process_name()}: interrupted", "interrupted")
        _fail(1, "".join(traceback.format_exception(error)).rstrip(), f"{type(error).__name__}: {reason[:200]}")


@contextlib.contextmanager
def process_group(*, preemption: bool, show_traceback: bool = False) -> Iterator[None]:
    """Join the other processes for the duration of the block, and leave it when all have reached its end.

    Enter it before any device is used.

    preemption: JAX's preemption service handles SIGTERM within the block, for training.preemption; otherwise SIGTERM
      ends the process.

    Raises:
      UserError: the environment variables are incomplete or wrong, or the other processes cannot be joined.
    """
    config = ProcessConfig.from_environment(os.environ)
    if config is None:
        yield
        return
    if config.coordinator and config.process == 0:
        _check_port(config.coordinator)
    jax.config.update("jax_enable_preemption_service", preemption)
    _libc.signal(signal.SIGABRT, _aborted)  # Python's own handlers run only where abort() has not ended the process yet
    _join(config)
    _joined.set()
    listener = threading.Thread(target=_await_notice, daemon=True)
    listener.start()
    with AbortAllOnError(show_traceback=show_traceback):
        yield
        jax.distributed.shutdown()  # waits for all processes
    _joined.clear()
    listener.join()
    _libc.signal(signal.SIGABRT, 0)  # the default: _aborted must not run while the interpreter is finalized


def _check_port(address: str) -> None:
    """Raises UserError if the coordinator cannot listen at the address: the runtime would crash."""
    with socket.socket() as probe:
        # As the runtime does, so that a recently used port is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", int(address.rpartition(":")[2])))
        except (OSError, OverflowError) as error:
            raise UserError(
                f"{_COORDINATOR}={address}: cannot listen on this port ({error}): choose another"
            ) from error


def _join(config: ProcessConfig) -> None:
    try:
        jax.distributed.initialize(
            config.coordinator,
            config.processes,
            config.process,
            cluster_detection_method="deactivate" if config.coordinator else None,
            initialization_timeout=JOIN_SECONDS,
            heartbeat_timeout_seconds=config.heartbeat,
        )
    except (jax.errors.JaxRuntimeError, ValueError, RuntimeError) as error:
        if config.coordinator:
            raise UserError(f"{_COORDINATOR}={config.coordinator}: {error}") from error
        raise UserError(
            f"{_COORDINATOR}=auto: JAX does not find the processes of this job ({error}): set "
            f"{_COORDINATOR}=HOST:PORT, {_PROCESSES} and {_PROCESS_ID}"
        ) from error


def barrier(name: str) -> None:
    """Wait until every process has reached the barrier of this name, without a time limit (collectives: 30 s on CPUs).

    Raises:
      UserError: there are several processes, but the environment variables are not set.
    """
    if jax.process_count() == 1:
        return
    if not jax.distributed.is_initialized():
        raise UserError(f"{jax.process_count()} processes share these devices: set {_COORDINATOR}=auto for all of them")
    _client().wait_at_barrier(f"cotmi_jax/{name}", _FOREVER)


_gathered = itertools.count()


def all_gather_text(text: str) -> list[str]:
    """The texts of all processes, by process index. All of them must call it; it waits without a time limit.

    Raises:
      UserError: as barrier does.
    """
    if jax.process_count() == 1:
        return [text]
    number = next(_gathered)
    barrier(f"all_gather_text {number}")
    client, key = _client(), f"cotmi_jax/all_gather_text/{number}"
    client.key_value_set(f"{key}/{global_state.process_id}", f"{text}.")  # the store does not accept an empty value
    return [client.blocking_key_value_get(f"{key}/{n}", _FOREVER)[:-1] for n in range(global_state.num_processes)]


def is_shared(folder: Path, all_gather: AllGather = all_gather_text) -> bool:
    """Whether a path is one folder for all processes: each creates a file there and looks for those of the others."""
    name = f".shared-{secrets.token_hex(8)}"
    # If the folder cannot be written, it is not shared; the caller then fails with the reason when it writes there.
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

"""Commands as several processes on this machine, each with fake devices of its own."""

import dataclasses
import functools
import os
import re
import socket
import tempfile
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import runs

Hook = Callable[[], None]


def free_address() -> str:
    """HOST:PORT for a coordinator on the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def _prepare(variables: dict[str, str], hook: Hook | None) -> None:
    os.environ.update(variables)
    if hook is not None:
        hook()


@dataclasses.dataclass(frozen=True)
class Host:
    """One process of a command."""

    process: BaseProcess
    folder: Path

    def result(self, seconds: float = runs.COMMAND_SECONDS) -> runs.Result:
        """Its exit code and output, once it has ended; kills it and raises TimeoutError if it does not end in time."""
        self.process.join(seconds)
        if self.process.is_alive():
            self.process.kill()
            raise TimeoutError((self.folder / "err").read_text())
        out, err = ((self.folder / name).read_text() for name in ("out", "err"))
        # Gloo's notices of its connections, printed by several threads at once.
        gloo = re.compile(r"\[Gloo\]|peer ranks|^$")
        output = "".join(line for line in out.splitlines(keepends=True) if not gloo.search(line.rstrip("\n")))
        return runs.Result(self.process.exitcode, output, err)


def start(
    name: str,
    *arguments: str,
    processes: int,
    devices: int = 8,
    hooks: Sequence[Hook | None] = (),
    heartbeat: int = 20,
    address: str | None = None,
    only: int | None = None,
) -> list[Host]:
    """Start `python -m cotmi_jax.{name} {arguments}` as several processes, with `devices` in total.

    hooks[i] is called in process i before the command. With `only`, just that process is started.
    """
    address, hosts = address or free_address(), []
    for number in range(processes) if only is None else [only]:
        folder = Path(tempfile.mkdtemp(dir=runs.scratch()))
        (folder / "in").touch()
        variables = {"COTMI_COORDINATOR": address, "COTMI_PROCESSES": str(processes), "COTMI_PROCESS_ID": str(number)}
        variables["COTMI_HEARTBEAT"] = str(heartbeat)
        before = functools.partial(_prepare, variables, hooks[number] if hooks else None)
        process = runs.start_command(name, arguments, folder, devices // processes, before)
        hosts.append(Host(process, folder))
    return hosts


def run(
    name: str, *arguments: str, processes: int, devices: int = 8, hooks: Sequence[Hook | None] = ()
) -> list[runs.Result]:
    """`start`, and wait for all."""
    return [host.result() for host in start(name, *arguments, processes=processes, devices=devices, hooks=hooks)]

"""What a suite of benchmarks.run returns, how its commands are timed, and the table of all suites.

A suite is a module with `rows(options: Options) -> list[Row]`. It measures each side in a process of its own, in turn,
so that a change in the machine's load affects both, and gives the values of every round to `Row.of`.
"""

import dataclasses
import importlib.metadata
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from cotmi_jax.errors import UserError
from cotmi_jax.parallel.accelerators import processor
from cotmi_jax.report.page.markdown import write_part

ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = ("jax", "libtpu", "numpy", "torch", "transformers", "ctranslate2")


@dataclasses.dataclass(frozen=True)
class Options:
    """Arguments of benchmarks.run that suites get.

    rounds: how often each side is measured. quick: the smallest sizes, whose figures mean nothing but that the suite
    runs. examples: of suites that process a data set. data_root: of the papers' sets; None: $COTMI_DATA_ROOT. baseline:
    a revision of this repository to compare with; "": none.
    """

    rounds: int = 3
    quick: bool = False
    examples: int = 512
    data_root: str | None = None
    baseline: str = ""


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table.

    ours, peer: medians over the rounds, in `unit`; peer None: not measured, for the reason in `note`.
    ratios: ours / peer of each round.
    command: measures this row alone.
    """

    what: str
    unit: str
    ours: float
    command: str
    peer_name: str = ""
    peer: float | None = None
    ratios: tuple[float, ...] = ()
    note: str = ""

    @classmethod
    def of(
        cls,
        what: str,
        unit: str,
        ours: Sequence[float],
        peer: Sequence[float] = (),
        *,
        command: str,
        peer_name: str = "",
        note: str = "",
    ) -> "Row":
        """From the values of every round, n each, or without a peer."""
        if not peer:
            return cls(what, unit, statistics.median(ours), command, peer_name, note=note)
        ratios = tuple(own / other for own, other in zip(ours, peer, strict=True))
        medians = statistics.median(ours), statistics.median(peer)
        return cls(what, unit, medians[0], command, peer_name, medians[1], ratios, note)

    def to_json(self) -> dict[str, Any]:
        """For the results file. ratio: the median over n rounds; interval: the smallest and the largest."""
        found = dataclasses.asdict(self) | {"ratio": None, "interval": None, "n": len(self.ratios)}
        if self.ratios:
            found |= {"ratio": statistics.median(self.ratios), "interval": [min(self.ratios), max(self.ratios)]}
        return found


class Spent(NamedTuple):
    """Cost of a process: seconds of wall clock, of processor time (user + system), GiB at its peak; and its output."""

    seconds: float
    cpu_seconds: float
    peak_gib: float
    output: str


def spend(
    command: Sequence[str],
    *,
    folder: Path = ROOT,
    environment: Mapping[str, str] | None = None,
    stdin: IO[str] | None = None,
) -> Spent:
    """Run a command to its end; its standard error is shown. Raises UserError if it fails.

    environment: variables besides those of this process. Children that the command waits for are counted. On Linux the
    peak memory is at least that of this process, which the command starts with.
    """
    start = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=folder, env={**os.environ, **(environment or {})}, stdin=stdin, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise UserError(f"{' '.join(command)}: exit code {process.returncode}, see its message above")
    seconds = time.perf_counter() - start
    return Spent(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20, output)


def run_json(module: str, *arguments: str, folder: Path = ROOT) -> dict[str, Any]:
    """The JSON object that `python -m MODULE ARGUMENTS` prints last, from a process of its own."""
    output = spend([sys.executable, "-m", module, *arguments], folder=folder).output
    return json.loads(output[output.index("{") :])


def print_json(measure: Callable[[], Any]) -> int:
    """Print what was measured as JSON, for run_json; the exit code, 2 after the message of a UserError."""
    try:
        print(json.dumps(measure(), indent=1))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def shown_command(module: str, *arguments: str) -> str:
    """The command of a row, as a user types it."""
    return f"python -m {module} {shlex.join(arguments)}"


def missing(*packages: str) -> list[str]:
    """Those of the packages that are not installed."""
    return [name for name in packages if _version(name) is None]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def environment() -> dict[str, Any]:
    """Machine, versions and revision that a result was measured with."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    revision = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "revision": revision or "not a git repository",
        "machine": processor(),
        "versions": {"python": platform.python_version()}
        | {name: version for name in _PACKAGES if (version := _version(name))},
    }


def markdown(suites: Mapping[str, Mapping[str, Any]]) -> str:
    """The results of all suites as a Markdown table, and below it where and how they were measured."""
    lines = ["| | unit | ours | peer | ours / peer | n | of |", "|---|---|--:|--:|--:|--:|---|"]
    commands: dict[str, None] = {}
    for result in suites.values():
        for row in result["rows"]:
            ratio = "–"
            if row["ratio"] is not None:
                low, high = row["interval"]
                ratio = f"**{row['ratio']:.2f}** ({low:.2f} to {high:.2f})"
            peer = "–" if row["peer"] is None else _number(row["peer"])
            of = "; ".join(text for text in (row["peer_name"], row["note"]) if text)
            cells = [row["what"], row["unit"], _number(row["ours"]), peer, ratio, str(row["n"] or ""), of]
            lines.append("| " + " | ".join(cells) + " |")
            commands[row["command"]] = None
    lines += ["", "Measured with", ""]
    for name, result in suites.items():
        versions = ", ".join(f"{package} {version}" for package, version in result["versions"].items())
        where = f"{result['machine']}; {versions}; revision {result['revision']}"
        lines.append(f"* {name}, {result['date']}: {where}")
    lines += ["", "The commands of the rows:", "", *(f"    {command}" for command in commands)]
    return "\n".join(lines)


def _number(value: float) -> str:
    """Three significant digits."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def measured_with(result: Mapping[str, Any], command: str) -> list[str]:
    """Lines of Markdown that say where and how a result with the fields of `environment` was measured."""
    versions = ", ".join(f"{package} {version}" for package, version in result["versions"].items())
    where = f"{result['date']}, {result['machine']}; {versions}; revision {result['revision']}"
    return [f"{where}. Command:", "", f"    {command}"]


def write_markdown(path: Path, table: str, part: str = "benchmarks") -> None:
    """Write a table between the two lines that mark a part of a page. Raises UserError for a page without them."""
    if not path.exists():
        raise UserError(f"--markdown={path}: there is no such page")
    write_part(path, table, part)

"""Kill a training run repeatedly and compare it with an undisturbed run, bit for bit.

    python -m benchmarks.soak --config=configs/quickstart.py:smoke --workdir=runs/soak --kills=20 --seed=0

Exits with 1 where they differ. {workdir}/reference is the undisturbed run, {workdir}/killed-{n} those that were
killed (kept where they differ), each with a log next to it.
"""

from cotmi_jax import cli  # isort: skip  (quiets tensorflow before anything imports it)

import collections
import dataclasses
import itertools
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from absl import flags
from ml_collections import config_flags

from cotmi_jax.config import validate
from cotmi_jax.errors import UserError
from cotmi_jax.extensions import load_extensions
from cotmi_jax.files import read_json_lines
from cotmi_jax.training.throughput import TIMINGS
from cotmi_jax.workdir.checkpoint import BEST, LATEST, Json, Saved, contents, saved
from cotmi_jax.workdir.metrics import METRICS_FILE
from cotmi_jax.workdir.record import STARTS_FILE

_CONFIG = cli.define_config()
_WORKDIR = flags.DEFINE_string("workdir", None, "A new folder for the runs.")
_KILLS = flags.DEFINE_integer("kills", 20, "Least number of kills.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the times of the kills.")
flags.mark_flags_as_required(["config", "workdir"])


@dataclasses.dataclass(frozen=True)
class Kill:
    """A kill: seconds after the start, phase of the run, the step it had reached, the last step saved."""

    seconds: float
    phase: str
    step: int
    saved: int

    def __str__(self) -> str:
        again = f", {self.step - self.saved} of them again" if self.step > self.saved else ""
        return f"after {self.seconds:.1f} s, {self.phase}, {self.step} steps done{again}"


@dataclasses.dataclass(frozen=True)
class SoakReport:
    """The kills, the number of complete runs over which they were spread, and the differences found."""

    kills: tuple[Kill, ...]
    rounds: int
    differences: tuple[str, ...]

    def text(self) -> str:
        """A summary and the differences, one per line."""
        phases = collections.Counter(kill.phase for kill in self.kills)
        hit = ", ".join(f"{count} {phase}" for phase, count in phases.most_common())
        again = sum(kill.step - kill.saved for kill in self.kills)
        verdict = self.differences or ("every one ended in the same bits as the undisturbed run",)
        return "\n".join((f"{len(self.kills)} kills in {self.rounds} runs ({hit}); {again} steps repeated", *verdict))


def _results(workdir: Path) -> list[Json]:
    """The lines of metrics without timings."""
    return [
        {name: value for name, value in line.items() if not name.removeprefix("train/").startswith(TIMINGS)}
        for line in read_json_lines(workdir / METRICS_FILE)
    ]


def _same(one: np.ndarray | Json, other: np.ndarray | Json) -> bool:
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    return type(one) is type(other) and one == other


def _compare_checkpoints(one: Saved | None, other: Saved | None) -> list[str]:
    if one is None or other is None or one.step != other.step:
        return [f"{other} is not of the step of {one}"] if one != other else []
    found: list[str] = []
    nothing: tuple[str, np.ndarray | Json] = ("nothing", {})
    for left, right in itertools.zip_longest(contents(one), contents(other), fillvalue=nothing):
        if left[0] != right[0]:
            return [*found, f"{other}: {right[0]} where {one} has {left[0]}"]
        if not _same(left[1], right[1]):
            found.append(f"{other}: {right[0]} differs")
    return found


def differences(reference: Path, workdir: Path) -> list[str]:
    """Where two complete runs differ: last and best checkpoint, every leaf by its bits, and the lines of metrics."""
    found = _compare_checkpoints(saved(reference, "latest"), saved(workdir, "latest"))
    found += _compare_checkpoints(saved(reference, "best"), saved(workdir, "best"))
    for number, (one, other) in enumerate(itertools.zip_longest(_results(reference), _results(workdir)), 1):
        if one != other:
            found.append(f"{workdir / METRICS_FILE}, line {number}: {other} where the reference has {one}")
    return found


def _hit(workdir: Path, before: tuple[list[Json], list[Json]], seconds: float, eval_every: int) -> Kill:
    """Where a run was killed, from its files; `before` are its starts and metrics before this start."""
    last = saved(workdir, "latest")
    reached = last.step if last else 0
    starts, metrics = read_json_lines(workdir / STARTS_FILE), read_json_lines(workdir / METRICS_FILE)
    if len(starts) == len(before[0]):
        return Kill(seconds, "starting", reached, reached)
    since = starts[-1]["step"]
    step = metrics[-1]["step"] if metrics and metrics != before[1] else since
    if step <= since:
        phase = "compiling"
    elif any(not path.name.isdigit() for folder in (LATEST, BEST) for path in (workdir / folder).glob("*")):
        phase = "saving"
    elif eval_every and step % eval_every == 0 and not any(name.startswith("valid/") for name in metrics[-1]):
        phase = "evaluating"
    else:
        phase = "training"
    return Kill(seconds, phase, max(step, reached), reached)


def _train(command: Sequence[str], workdir: Path, seconds: float | None) -> bool:
    """Start the trainer and kill it after `seconds`; True if it ended before. Raises UserError if it fails."""
    log = workdir.with_name(workdir.name + ".log")
    with log.open("ab") as output:
        process = subprocess.Popen([*command, f"--workdir={workdir}"], stdout=output, stderr=output)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        finally:
            process.kill()  # also if this process is interrupted
            process.wait()
    if code:
        *_, last = ["no output", *log.read_text(errors="replace").strip().splitlines()]
        raise UserError(f"training in {workdir} failed with exit code {code}: {last} ({log})")
    return True


def soak(command: Sequence[str], workdir_path: str, *, kills: int, seed: int, eval_every: int) -> SoakReport:
    """Run `command` with a --workdir once undisturbed, then killed at least `kills` times and started again each time.

    The times are uniform over the duration of an undisturbed run. A run that ends before its kill is compared, and the
    next one starts; so the number of starts is bounded, however slowly a run proceeds.

    Raises:
      UserError: the workdir is not local or not empty, or the trainer fails by itself.
    """
    if "://" in workdir_path:
        raise UserError(f"--workdir {workdir_path}: runs are killed and compared on this machine: give a local folder")
    workdir = Path(workdir_path).expanduser().absolute()
    workdir.mkdir(parents=True, exist_ok=True)
    if any(workdir.iterdir()):
        raise UserError(f"--workdir {workdir} is not empty: give a new one")
    draw, hits, found = random.Random(seed), list[Kill](), list[str]()
    _say("the undisturbed run")
    start = time.monotonic()
    _train(command, workdir / "reference", None)
    duration = time.monotonic() - start
    for number in itertools.count(1):
        folder = workdir / f"killed-{number}"
        _say(f"run {number}, killed within {duration:.1f} s of each start")
        while True:
            seconds = draw.uniform(0.0, duration) if len(hits) < kills else None
            before = read_json_lines(folder / STARTS_FILE), read_json_lines(folder / METRICS_FILE)
            start = time.monotonic()
            if _train(command, folder, seconds):
                if not before[0]:  # an undisturbed run, which may have used programs that the first one compiled
                    duration = min(duration, time.monotonic() - start)
                break
            assert seconds is not None
            hits.append(_hit(folder, before, seconds, eval_every))
            _say(f"kill {len(hits)}/{kills}: {hits[-1]}")
        differing = differences(workdir / "reference", folder)
        found += differing
        if not differing:
            shutil.rmtree(folder)
        if len(hits) >= kills:
            return SoakReport(tuple(hits), number, tuple(found))
    raise AssertionError("itertools.count does not end")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Soak from the flags."""
    jax.config.update("jax_platforms", "cpu")  # the trainers need the accelerators, which belong to one process
    config = _CONFIG.value
    load_extensions(config.extensions)
    validate(config)
    flag = flags.FLAGS["config"]
    overrides = config_flags.get_override_values(flag)
    command = [sys.executable, "-m", "cotmi_jax.train", f"--config={config_flags.get_config_filename(flag)}"]
    command += [f"--config.{key}={value}" for key, value in overrides.items()]
    report = soak(command, _WORKDIR.value, kills=_KILLS.value, seed=_SEED.value, eval_every=config.eval.every)
    print(report.text())
    return 1 if report.differences else 0


if __name__ == "__main__":
    cli.run(main)

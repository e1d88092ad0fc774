"""Kill the workers of a study repeatedly, and compare its runs with those of an undisturbed study, bit for bit.

    python -m benchmarks.study_soak --workdir=runs/study_soak --kills=10

A study of 12 runs of the quickstart at smoke size: four arms, three seeds. Two workers at a time; the process of one is
killed at a random time (SIGKILL), every third time the command of its run too, and another takes its place. Exits with
1 unless every run is done once, no step is repeated but those that a killed training had not saved, and parameters,
metrics and predictions are those of the undisturbed study. Computes on CPU.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from cotmi_jax.errors import UserError
from cotmi_jax.files import read_json_lines
from cotmi_jax.study.record import StudyRun, is_study, read_study

STUDY = '''"""Killed workers change nothing."""
from cotmi_jax.recipes import load_recipe
from cotmi_jax.study.grid import Evaluation, arms, product, seeds

EVALUATION = Evaluation(metrics="agreement", information=False)


def get_config(arg=""):
    config = load_recipe("quickstart:smoke")
    config.steps, config.checkpoint.every, config.eval.every = 12, 2, 6
    config.mi.monitor.every = config.eval.rationales = 0
    config.log.trackers = ""
    return config


def sweep():
    names = {name: {"objective.name": name} for name in ("standard", "predict", "dss", "cotmi")}
    return product(seeds(3), arms(names))
'''
_LONGEST = 3600.0  # seconds of a study


def _start(file: Path, folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "cotmi_jax.study", f"--config={file}", f"--workdir={folder}"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    with folder.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)


def _running(folder: Path) -> list[StudyRun]:
    return [run for run in read_study(folder).runs if run.state == "running"] if is_study(folder) else []


def _command_of(workdir: Path) -> int | None:
    """The process that trains in a workdir."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        return int(json.loads((workdir / "owner.json").read_text())["pid"])
    return None


def disturb(file: Path, folder: Path, kills: int, seed: int) -> Iterator[str]:
    """Run the study by two workers that are killed; yields a line for each kill."""
    draw, workers, done = random.Random(seed), list[subprocess.Popen[bytes]](), 0
    end = time.monotonic() + _LONGEST
    while True:
        codes = [worker.poll() for worker in workers]
        if any(code not in (None, 0, -signal.SIGKILL) for code in codes):
            raise UserError(f"a worker ended with {codes}: see {folder.with_suffix('.log')}")
        if 0 in codes or time.monotonic() > end:
            break
        workers = [worker for worker in workers if worker.poll() is None]
        workers += [_start(file, folder) for _ in range(2 - len(workers))]
        time.sleep(draw.uniform(3.0, 25.0))
        if done < kills and (running := _running(folder)):
            done += 1
            victim, run = draw.choice(workers), draw.choice(running)
            victim.kill()
            victim.wait()
            command = _command_of(Path(str(run.workdir))) if done % 3 == 0 else None
            if command is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(command, signal.SIGKILL)
            yield f"kill {done}: worker {victim.pid}" + (f" and the training of {run.name}" if command else "")
    for worker in workers:
        worker.wait()
    if done < kills:
        raise UserError(f"the study ended after {done} of {kills} kills: give fewer, or another --seed")


def faults(folder: Path, reference: Path, killed_trainings: int) -> list[str]:
    """Where a study differs from the undisturbed one, or did something twice."""
    from benchmarks.soak import differences  # imports jax

    found, repeated = [], 0
    record, expected = read_study(folder), read_study(reference)
    if [run.name for run in record.runs] != [run.name for run in expected.runs]:
        return ["the studies have other runs"]
    ends = [event["name"] for event in read_json_lines(folder / "study.jsonl") if event["event"] == "done"]
    for run, other in zip(record.runs, expected.runs, strict=True):
        workdir, theirs = Path(str(run.workdir)), Path(str(other.workdir))
        if run.state != "done" or ends.count(run.name) != 1:
            found.append(f"{run.name} is {run.state}, and was done {ends.count(run.name)} times")
            continue
        found += differences(theirs, workdir)
        split = Path("evaluation", "test", "predictions.jsonl")
        if (workdir / split).read_text() != (theirs / split).read_text():
            found.append(f"{run.name}: other predictions")
        starts = [start["step"] for start in read_json_lines(workdir / "starts.jsonl")]
        repeated += sum(later == earlier for earlier, later in itertools.pairwise(starts))
        if starts != sorted(starts):
            found.append(f"{run.name}: a start at an earlier step than the one before ({starts})")
    if repeated > killed_trainings:
        found.append(f"{repeated} starts made no progress, and {killed_trainings} trainings were killed")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Soak from flags."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study_soak", description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="a new folder")
    parser.add_argument("--kills", type=int, default=10, help="kills of workers")
    parser.add_argument("--seed", type=int, default=0, help="of the times of the kills")
    arguments = parser.parse_args(argv)
    folder = arguments.workdir.absolute()
    if folder.exists() and any(folder.iterdir()):
        parser.error(f"--workdir {folder} is not empty: give a new one")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "soak.py"
    file.write_text(STUDY)
    try:
        print("two workers, killed", flush=True)
        for line in disturb(file, folder / "killed", arguments.kills, arguments.seed):
            print(line, flush=True)
        print("the undisturbed study", flush=True)
        for _ in disturb(file, folder / "reference", 0, 0):
            pass
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    found = faults(folder / "killed", folder / "reference", arguments.kills // 3)
    runs = read_study(folder / "killed").runs
    print("\n".join(found) or f"{len(runs)} runs, {arguments.kills} kills: each done once, all bits as undisturbed")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

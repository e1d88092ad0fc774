"""Does the mutual-information term help? Paired runs of the quickstart's set, one per arm and seed.

    python -m benchmarks.mi_comparison --folder=runs/mi_comparison --json=mi_comparison.json

Every arm trains the quickstart's student with the same seeds: parameters and the examples of every batch are then equal
in all arms. (Batches are padded, since packed ones are balanced by the tokens of their arm.) Differences are taken
within a seed, to `dss`, and of `consistency` to the `dss` whose rationales end with the same answer sentences. The last
checkpoint is scored on the test split, once; nothing is selected by it. A run that is complete is kept, so the same
command resumes after an interruption. Runs work side by side on disjoint sets of cores. Does not import tensorflow.

Workdirs stay without their checkpoints. `cotmi compare` gives the same means and differences from them, with intervals
for other problems too, tests adjusted for their number, and verdicts:

    cotmi compare runs/mi_comparison/*/ --baseline=runs/mi_comparison/dss-seed0 \\
      --metric=accuracy,agreement,true_steps,label_loss,rationale_loss
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any, NamedTuple

from tqdm import tqdm

from benchmarks.table import environment, measured_with, print_json, shown_command, write_markdown
from cotmi_jax.errors import UserError
from cotmi_jax.files import read_json, replace_file
from cotmi_jax.workdir.checkpoint import BEST, LATEST
from cotmi_jax.workdir.record import read_config

MARK = "mi_comparison"  # of the table in a page


class Arm(NamedTuple):
    """Flags of a run's training, and the arm that it is compared with; "" for none."""

    flags: tuple[str, ...]
    baseline: str = "dss"


_DSS, _COTMI = "--config.objective.name=dss", "--config.objective.name=cotmi"
_TERM = (
    _COTMI,
    "--config.mi.estimator=infonce",
    "--config.objective.beta=0.1",
    "--config.mi.warmup_steps=50",
    "--config.mi.ramp_steps=50",
)
_CUT, _APPENDED = (f"--config.data.rationale_answer={form}" for form in ("cut", "append"))
ARMS: dict[str, Arm] = {
    "dss": Arm((_DSS,), ""),
    "released, β .1": Arm((*_TERM, "--config.mi.estimator=released")),
    "infonce, β .01": Arm((*_TERM, "--config.objective.beta=0.01")),
    "infonce, β .1": Arm(_TERM),
    "infonce on permuted pairs, β .1": Arm((*_TERM, "--config.mi.placebo=True")),
    "conditional, β .1": Arm((*_TERM, "--config.mi.estimator=conditional")),
    "dss, answers appended": Arm((_DSS, _APPENDED)),
    "consistency, β .1": Arm((*_TERM, "--config.mi.estimator=consistency", _APPENDED), "dss, answers appended"),
}


class Outcome(NamedTuple):
    """A figure of metrics.json: its name in the table, its path there, its unit, and whether more is better."""

    name: str
    path: tuple[str, ...]
    unit: str
    percent: bool


OUTCOMES = (
    Outcome("label accuracy", ("accuracy",), "%", True),
    Outcome("agreement with own label", ("metrics", "agreement", "value"), "%", True),
    Outcome("true steps", ("metrics", "true_steps", "value"), "%", True),
    Outcome("label cross-entropy", ("loss", "predict"), "nats", False),
    Outcome("rationale cross-entropy", ("loss", "explain"), "nats", False),
)


class Difference(NamedTuple):
    """Mean over seeds of an arm's paired differences to the baseline, and its 95% t interval."""

    mean: float
    low: float
    high: float


def paired_difference(arm: Sequence[float], baseline: Sequence[float]) -> Difference:
    """The paired t interval of arm − baseline over seeds. Raises ValueError for fewer than two pairs."""
    from scipy import stats

    differences = [ours - theirs for ours, theirs in zip(arm, baseline, strict=True)]
    mean, error = statistics.fmean(differences), statistics.stdev(differences) / len(differences) ** 0.5
    half = float(stats.t.ppf(0.975, len(differences) - 1)) * error
    return Difference(mean, mean - half, mean + half)


def _outcome(metrics: Mapping[str, Any], outcome: Outcome) -> float:
    value: Any = metrics
    for key in outcome.path:
        if key not in value:
            raise UserError(f"a run has no {outcome.name}: its rationales hold none; give more --steps")
        value = value[key]
    return float(value) * (100.0 if outcome.percent else 1.0)


def _name(arm: str, seed: int) -> str:
    letters = "".join(letter if letter.isalnum() or letter == "." else "_" for letter in arm.replace("β", "beta"))
    return f"{letters}-seed{seed}"


class Study(NamedTuple):
    """The runs of a comparison: one folder for each arm and seed."""

    folder: Path
    seeds: int
    steps: int
    smoke: bool

    def commands(self, arm: str, seed: int) -> list[list[str]]:
        """Training of a run and its evaluation on the test split."""
        workdir = str(self.folder / _name(arm, seed))
        recipe = "configs/quickstart.py" + ":smoke" * self.smoke
        steps = [f"--config.steps={self.steps}", f"--config.checkpoint.every={self.steps}"]
        if self.smoke:
            steps = ["--config.mi.warmup_steps=0", "--config.mi.ramp_steps=1"]
        train = ["cotmi_jax.train", f"--config={recipe}", f"--workdir={workdir}", f"--config.seed={seed}"]
        train += ["--config.data.packing=False", _CUT, *ARMS[arm].flags]
        train += [*steps, "--config.eval.every=0", "--config.mi.monitor.every=0", "--config.log.trackers="]
        scored = ["--split=test", "--checkpoint=latest", "--noinformation", "--metrics=agreement,steps"]
        evaluate = ["cotmi_jax.evaluate", f"--workdir={workdir}", *scored]
        return [[sys.executable, "-m", *command] for command in (train, evaluate)]

    def result(self, arm: str, seed: int) -> Path:
        """What remains of a complete run."""
        return self.folder / f"{_name(arm, seed)}.json"

    def run(self, arm: str, seed: int, cores: Sequence[int]) -> None:
        """Train and score a run that is not complete; its checkpoints are then deleted."""
        if self.result(arm, seed).exists():
            return
        workdir = self.folder / _name(arm, seed)
        with (self.folder / f"{_name(arm, seed)}.log").open("w") as log:
            for command in self.commands(arm, seed):
                code = subprocess.run(
                    ["taskset", "--cpu-list", ",".join(map(str, cores)), *command], stdout=log, stderr=log, check=False
                ).returncode
                if code:
                    raise UserError(f"{arm}, seed {seed}: exit code {code}, see {log.name}")
        metrics = (workdir / "evaluation/test/metrics.json").read_text()
        reached, steps = json.loads(metrics)["checkpoint"]["step"], read_config(workdir).steps
        if reached != steps:
            raise UserError(f"{arm}, seed {seed}: stopped by a signal after step {reached} of {steps}: run again")
        replace_file(self.result(arm, seed), metrics)
        for checkpoints in (LATEST, BEST):
            shutil.rmtree(workdir / checkpoints, ignore_errors=True)  # BEST is absent without evaluations


def measure(study: Study, workers: int) -> dict[str, Any]:
    """Run what is missing, `workers` runs at a time, and compare. Raises UserError if a run fails."""
    study.folder.mkdir(parents=True, exist_ok=True)
    cores = sorted(os.sched_getaffinity(0))
    free: Queue[list[int]] = Queue()
    for worker in range(workers):
        free.put(cores[worker::workers] or cores)
    # Seed by seed, so that an interrupted study compares all arms.
    runs = [(arm, seed) for seed in range(study.seeds) for arm in ARMS]

    def one(run: tuple[str, int]) -> None:
        mine = free.get()
        try:
            study.run(*run, mine)
        finally:
            free.put(mine)

    with ThreadPoolExecutor(workers) as pool:
        list(tqdm(pool.map(one, runs), total=len(runs), desc="runs", unit="run", disable=None))
    return environment() | {"seeds": study.seeds, "steps": study.steps, "rows": compare(study)}


def compare(study: Study) -> list[dict[str, Any]]:
    """For each arm: by outcome the mean and the standard deviation over seeds, and the difference to the baseline."""
    found = {arm: [read_json(study.result(arm, seed), "run again") for seed in range(study.seeds)] for arm in ARMS}
    rows = []
    for arm, results in found.items():
        baseline = ARMS[arm].baseline
        row: dict[str, Any] = {"arm": arm, "baseline": baseline, "n": results[0]["n"]}
        for outcome in OUTCOMES:
            ours = [_outcome(each, outcome) for each in results]
            row[outcome.name] = {"values": ours, "mean": statistics.fmean(ours), "sd": statistics.stdev(ours)}
            if baseline:
                theirs = [_outcome(each, outcome) for each in found[baseline]]
                row[outcome.name]["difference"] = paired_difference(ours, theirs)._asdict()
        rows.append(row)
    return rows


def markdown(result: Mapping[str, Any], command: str) -> str:
    """Mean (standard deviation over seeds) of every arm, and below it the difference to the baseline with interval."""
    lines = ["| arm | compared with | " + " | ".join(f"{outcome.name}, {outcome.unit}" for outcome in OUTCOMES) + " |"]
    lines.append("|---|---|" + "--:|" * len(OUTCOMES))
    for row in result["rows"]:
        cells = []
        for outcome in OUTCOMES:
            value, digits = row[outcome.name], 1 if outcome.percent else 3
            cell = f"{value['mean']:.{digits}f} ({value['sd']:.{digits}f})"
            if difference := value.get("difference"):
                low, high = difference["low"], difference["high"]
                clear = "**" * (low > 0 or high < 0)
                cell += f"<br>{clear}{difference['mean']:+.{digits}f}{clear} [{low:+.{digits}f}, {high:+.{digits}f}]"
            cells.append(cell)
        lines.append(f"| {row['arm']} | {row['baseline'] or '–'} | " + " | ".join(cells) + " |")
    return "\n".join(
        [
            *lines,
            "",
            f"{result['seeds']} seeds an arm, {result['steps']} steps, {result['rows'][0]['n']} test problems: mean "
            f"(standard deviation over seeds); below it the paired difference to the baseline with its 95% t interval "
            "over seeds, for these problems, in bold where it excludes 0; not corrected for the number of comparisons.",
            *measured_with(result, command),
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison from flags."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mi_comparison", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/mi_comparison"), help="results of complete runs")
    parser.add_argument("--seeds", type=int, default=6, help="runs of each arm, at least 2")
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps of a run")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="runs at a time")
    parser.add_argument("--smoke", action="store_true", help="the recipe's smallest size: shows that it runs")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--markdown", type=Path, help=f"page whose part {MARK} becomes the table")
    arguments = parser.parse_args(argv)

    def measured() -> dict[str, Any]:
        if arguments.seeds < 2:
            raise UserError(f"--seeds={arguments.seeds}: an interval over seeds needs at least 2")
        study = Study(arguments.folder.absolute(), arguments.seeds, arguments.steps, arguments.smoke)
        result = measure(study, arguments.workers)
        if arguments.json:
            replace_file(arguments.json, json.dumps(result, indent=1) + "\n")
        if arguments.markdown:
            flags = f"--seeds={arguments.seeds}", f"--steps={arguments.steps}"
            command = shown_command("benchmarks.mi_comparison", *flags)
            write_markdown(arguments.markdown, markdown(result, command), MARK)
        return result

    return print_json(measured)


if __name__ == "__main__":
    sys.exit(main())

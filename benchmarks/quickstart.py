"""Processor time of a step of the quickstart, against an earlier revision of this repository.

    python -m benchmarks.quickstart --baseline=REVISION

Both revisions train cotmi by the earlier one's configs/quickstart.py without evaluations, in turn, with few and with
many steps; the difference of the two is the cost of the steps alone, without imports, compilation and the final
checkpoint. Each revision has a cache of compiled programs, filled by a first run that is not measured. The result is
printed as JSON: seconds of processor time (user + system) and of wall clock a step, of each round.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.revisions import revisions
from benchmarks.table import Options, Row, Spent, print_json, run_json, shown_command, spend
from cotmi_jax.errors import UserError

FEW = 5  # steps of the shorter run


def train(code: Path, recipe: Path, home: Path, steps: int, changes: list[str]) -> Spent:
    """A run of a recipe by the code in a folder; `home` keeps its compiled programs and tokens."""
    with tempfile.TemporaryDirectory() as workdir:
        command = [
            sys.executable,
            "-m",
            "cotmi_jax.train",
            f"--config={recipe}",
            f"--workdir={workdir}",
            "--config.objective.name=cotmi",
        ]
        command += [f"--config.{key}" for key in (f"steps={steps}", "optimizer.warmup_steps=1", "mi.warmup_steps=1")]
        command += [
            f"--config.{key}"
            for key in ("eval.every=0", "mi.monitor.every=0", "checkpoint.every=1000", "log.trackers=")
        ]
        return spend([*command, *changes], folder=code, environment={"COTMI_CACHE": str(home)})


def checked(changes: list[str]) -> list[str]:
    """The changes of the recipe. Raises UserError for another option."""
    for each in changes:
        if not each.startswith("--config."):
            raise UserError(f"unknown option {each}: see --help")
    return changes


def compare(baseline: str, rounds: int, steps: int, changes: list[str]) -> dict[str, dict[str, list[float]]]:
    """Seconds a step of each side and round."""
    found: dict[str, dict[str, list[float]]] = {}
    with revisions(baseline) as folders, tempfile.TemporaryDirectory() as caches:
        recipe = folders["baseline" if baseline else "ours"] / "configs/quickstart.py"
        homes = {side: Path(caches) / side for side in folders}
        for side, code in folders.items():
            train(code, recipe, homes[side], FEW, changes)
            found[side] = {"cpu_seconds": [], "seconds": []}
        for _ in range(rounds):
            for side, code in folders.items():
                short, long = (train(code, recipe, homes[side], number, changes) for number in (FEW, FEW + steps))
                found[side]["cpu_seconds"].append((long.cpu_seconds - short.cpu_seconds) / steps)
                found[side]["seconds"].append((long.seconds - short.seconds) / steps)
    return found


def rows(options: Options) -> list[Row]:
    """Processor time and wall clock of a step."""
    given = [f"--rounds={options.rounds}"] + [f"--baseline={options.baseline}"] * bool(options.baseline)
    if options.quick:
        given += ["--steps=2", "--config.batch_size=8", "--config.data.size=64"]
    report = run_json("benchmarks.quickstart", *given)
    return [
        Row.of(
            f"train step of the quickstart: {label}",
            "s",
            report["ours"][name],
            report["baseline"][name] if options.baseline else (),
            command=shown_command("benchmarks.quickstart", *given),
            peer_name=f"revision {options.baseline}" if options.baseline else "",
            note="" if options.baseline else "give --baseline=REVISION to compare",
        )
        for name, label in (("cpu_seconds", "processor time"), ("seconds", "wall clock"))
    ]


def main() -> int:
    """Parse the command line and compare; 2 for a user error."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Further options --config.key=value change the recipe of both sides.",
    )
    parser.add_argument("--baseline", default="", help="revision to compare with; default: none")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60, help="measured steps of a round")
    arguments, changes = parser.parse_known_args()
    return print_json(lambda: compare(arguments.baseline, arguments.rounds, arguments.steps, checked(changes)))


if __name__ == "__main__":
    sys.exit(main())

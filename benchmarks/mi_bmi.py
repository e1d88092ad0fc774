"""The default of `estimate(x, y)` on twelve tasks of the bmi benchmark, beside the truth (Czyż et al. 2023).

    python -m benchmarks.mi_bmi --folder=runs/mi_bmi --json=mi_bmi.json

Each estimate is written to the folder as soon as it is complete and is not repeated, so the same command resumes after
an interruption. `--settings` adds the estimates of one critic that is given. Does not import tensorflow.
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.bmi_tasks import Task, tasks
from benchmarks.table import environment, measured_with, print_json, shown_command, write_markdown
from cotmi_jax.errors import UserError
from cotmi_jax.files import read_json, replace_file
from cotmi_jax.mi import CriticConfig, estimate
from cotmi_jax.parallel.accelerators import skip_absent_tpu

MARK = "mi_bmi"  # of the table in a page
# Arguments of estimate() by the name of a column.
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "separable": {"critic": "separable", "standardize": True},
    "concat 32×2": {"critic": CriticConfig("concat", hidden=32), "standardize": True},
}
# What bmi 0.1.3 gives, in nats. Its samplers do not import beside this package's jax, so it is measured on its own:
# InfoNCEEstimator().estimate(*task.sample(10_000, 0)), with its defaults.
BMI_INFONCE = {
    "dense 5×5": 0.567,
    "dense 25×25": 1.163,
    "sparse 5×5": 0.987,
    "sparse 25×25": 0.863,
    "additive 1×1, noise 0.1": 1.669,
    "swiss roll 2×1": 0.373,
    "student 1×1, 1 df": 0.175,
    "student 5×5, 2 df": 0.107,
    "asinh of student 5×5, 2 df": 0.317,
    "spiral of sparse 3×3": 0.585,
    "spiral of sparse 5×5": 0.613,
    "spiral of sparse 25×25": 0.687,
}


def result_path(folder: Path, task: Task, setting: str, size: int, seed: int) -> Path:
    """The file of an estimate."""
    letters = "".join(letter if letter.isalnum() or letter == "." else "_" for letter in f"{task.name}-{setting}")
    return folder / f"{letters}-{size}-seed{seed}.json"


def measure(task: Task, setting: str, size: int, seed: int) -> dict[str, Any]:
    """An estimate in nats, with its cost in seconds of wall clock and of processor time."""
    x_NxD, y_NxE = task.sample(size, seed)
    usage, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    found = estimate(x_NxD, y_NxE, seed=seed, **SETTINGS[setting])
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    return {
        "task": task.name,
        "truth": task.truth,
        "value": found.value,
        "standard_error": found.standard_error,
        "critics": found.critics,
        "seconds": seconds,
        "cpu_seconds": after.ru_utime + after.ru_stime - usage.ru_utime - usage.ru_stime,
    }


def measure_missing(
    folder: Path, chosen: Sequence[Task], settings: Sequence[str], size: int, seed: int
) -> list[dict[str, Any]]:
    """A row for each task, with the result of each setting; those in the folder are read."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for task in chosen:
        row: dict[str, Any] = {"task": task.name, "truth": task.truth, "bmi InfoNCE": BMI_INFONCE.get(task.name)}
        for setting in settings:
            path = result_path(folder, task, setting, size, seed)
            if not path.exists():
                replace_file(path, json.dumps(measure(task, setting, size, seed), indent=1) + "\n")
            row[setting] = result = read_json(path, "delete it and run again")
            print(f"{task.name}, {setting}: {_amount(result)} of {task.truth:.3f}", file=sys.stderr, flush=True)
        rows.append(row)
    return rows


def _amount(result: Mapping[str, Any]) -> str:
    return f"{result['value']:.3f} ± {result['standard_error']:.3f}"


def markdown(result: Mapping[str, Any], command: str) -> str:
    """The table: truth, estimates in nats, what the default misses, its critics and its cost."""
    settings = result["settings"]
    heads = ["truth", *settings, "bmi's InfoNCE", "default − truth", "in errors", "critics of the refits", "CPU s"]
    lines = ["| task | " + " | ".join(heads) + " |", "|---|" + "--:|" * (len(heads) - 2) + "---|--:|"]
    for row in result["rows"]:
        ours, bmi = row["default"], row["bmi InfoNCE"]
        excess = ours["value"] - row["truth"]
        critics = ", ".join(f"{ours['critics'].count(name)} {name}" for name in dict.fromkeys(ours["critics"]))
        cells = [row["task"], f"{row['truth']:.3f}", *(_amount(row[setting]) for setting in settings)]
        cells += ["–" if bmi is None else f"{bmi:.3f}", f"{excess:+.3f}", f"{excess / ours['standard_error']:+.1f}"]
        lines.append("| " + " | ".join([*cells, critics, f"{ours['cpu_seconds']:.0f}"]) + " |")
    return "\n".join(
        [
            *lines,
            "",
            f"{result['size']:,} samples, seed {result['seed']}, nats ± standard error; the spirals rotate by ‖x‖²/D. "
            "bmi's InfoNCE: version 0.1.3 with its defaults, on the same samples.",
            *measured_with(result, command),
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark from flags."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mi_bmi", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/mi_bmi"), help="results of complete estimates")
    parser.add_argument("--tasks", default="", help="parts of names of tasks, separated by commas; default: all")
    parser.add_argument("--settings", default="default", help=f"of {', '.join(SETTINGS)}, separated by commas")
    parser.add_argument("--size", type=int, default=10_000, help="samples of a task")
    parser.add_argument("--seed", type=int, default=0, help="of the samples and of the fits")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--markdown", type=Path, help=f"page whose part {MARK} becomes the table")
    arguments = parser.parse_args(argv)

    def measured() -> dict[str, Any]:
        settings = [name.strip() for name in arguments.settings.split(",")]
        if "default" not in settings or set(settings) - set(SETTINGS):
            raise UserError(f"--settings={arguments.settings}: give default, and others of {', '.join(SETTINGS)}")
        parts = [part.strip() for part in arguments.tasks.split(",")]
        chosen = [task for task in tasks() if any(part in task.name for part in parts)]
        if not chosen:
            raise UserError(f"--tasks={arguments.tasks}: the tasks are {', '.join(task.name for task in tasks())}")
        skip_absent_tpu()
        rows = measure_missing(arguments.folder, chosen, settings, arguments.size, arguments.seed)
        result = environment() | {
            "size": arguments.size,
            "seed": arguments.seed,
            "settings": settings,
            "rows": rows,
        }
        if arguments.json:
            replace_file(arguments.json, json.dumps(result, indent=1) + "\n")
        flags = f"--settings={arguments.settings}", f"--size={arguments.size}", f"--seed={arguments.seed}"
        command = shown_command("benchmarks.mi_bmi", *flags)
        table = markdown(result, command)
        print(table, file=sys.stderr)
        if arguments.markdown:
            write_markdown(arguments.markdown, table, MARK)
        return result

    return print_json(measured)


if __name__ == "__main__":
    sys.exit(main())

"""Speed of `evaluate` (losses, labels and rationales) with one student, against an earlier revision of this repository.

    python -m benchmarks.evaluate --dataset=esnli --examples=1024 --baseline=REVISION

Both revisions score the same examples, the first ones of the test split, with `python -m cotmi_jax.evaluate`, in turn.
Times are those of the whole command, with compiled programs from a cache that a first pass fills, unmeasured. The
student is trained for --steps small batches from random parameters: enough that it ends its labels and rationales as a
trained one does, on which the time of decoding depends; --student names the workdir of another one, which the baseline
can read. With --own_data it is scored on the test split of its own data, as --workdir does, where recalibration answers
valid too. The result is printed as JSON, with the mean lengths of what was generated and, beside a baseline, the median
over rounds of ours / baseline. The root of the data is --data_root or $COTMI_DATA_ROOT.
"""

import argparse
import json
import operator
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.revisions import revisions
from benchmarks.table import Options, Row, print_json, run_json, shown_command, spend
from cotmi_jax.config import base
from cotmi_jax.data.run_data import load_data


def write_examples(arguments: argparse.Namespace, path: Path) -> None:
    """The first examples of the test split as rows of one's own."""
    config = base()
    config.data.dataset, config.data.root = arguments.dataset, arguments.data_root or ""
    config.data.empty_rationale = "drop"
    examples = load_data(config, {"test"}).corpus.splits["test"][: arguments.examples]
    lines = (
        # Revisions that do not know choices and clusters ignore them.
        json.dumps(
            {"input": each.input, "label": each.label, "rationale": each.rationale, "cluster": each.cluster or each.id}
            | ({"choices": each.choices} if each.choices else {})
        )
        + "\n"
        for each in examples
    )
    path.write_text("".join(lines))


def train_student(arguments: argparse.Namespace, code: Path, workdir: Path, home: Path) -> None:
    """A student that ends its outputs, trained by the code in a folder."""
    settings = {
        "steps": arguments.steps,
        "batch_size": 16,
        "data.dataset": arguments.dataset,
        "data.root": arguments.data_root or "",
        "data.subsample": 0.02,
        "data.empty_rationale": "drop",
        "objective.name": "dss",
        "model.preset": arguments.preset,
        "model.init": "random",
        "model.dropout": 0.0,
        "optimizer.learning_rate": 2e-3,
        "eval.every": 0,
        "mi.monitor.every": 0,
        "checkpoint.every": arguments.steps,
        "log.trackers": "",
    }
    changes = [f"--config.{key}={value}" for key, value in settings.items()]
    command = [
        sys.executable,
        "-m",
        "cotmi_jax.train",
        f"--config={code}/configs/own.py",
        f"--workdir={workdir}",
        *changes,
    ]
    spend(command, folder=code, environment={"COTMI_CACHE": str(home)})


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Cost of every evaluation, by side and round."""
    with tempfile.TemporaryDirectory() as folder, revisions(arguments.baseline) as folders:
        temporary = Path(folder)
        scored = [f"--dataset=jsonl:{temporary / 'test.jsonl'}"]
        if not arguments.own_data:
            write_examples(arguments, temporary / "test.jsonl")
        homes = {side: temporary / f"cache-{side}" for side in folders}
        student, oldest = arguments.student, list(folders)[-1]
        if student is None:
            student = str(temporary / "student")
            train_student(arguments, folders[oldest], Path(student), homes[oldest])
        report: dict[str, Any] = {side: {"cpu_seconds": [], "seconds": [], "peak_gib": []} for side in folders}
        for round_ in range(arguments.rounds + 1):
            for side, code in folders.items():
                output = temporary / side
                command = [sys.executable, "-m", "cotmi_jax.evaluate", f"--output={output}", "--split=test"]
                command += ["--checkpoint=latest", "--noinformation"]
                command += [f"--workdir={student}"] if arguments.own_data else [f"--model={student}", *scored]
                spent = spend(command, folder=code, environment={"COTMI_CACHE": str(homes[side])})
                print(f"round {round_}: {side} {spent.seconds:.1f} s", file=sys.stderr, flush=True)
                if round_:  # the first compiles
                    for name, values in report[side].items():
                        values.append(getattr(spent, name))
        predictions = [json.loads(line) for line in (temporary / "ours" / "predictions.jsonl").read_text().splitlines()]
    report["examples"] = len(predictions)
    if arguments.baseline:
        sides = report["ours"], report["baseline"]
        report["ratio"] = {
            name: statistics.median(map(operator.truediv, *(side[name] for side in sides))) for name in sides[0]
        }
    for name in ("label", "rationale"):
        words = [len((each[f"predicted_{name}"] or "").split()) for each in predictions]
        report[f"{name}_words"] = statistics.mean(words)
    return report


def rows(options: Options) -> list[Row]:
    """Examples/s of e-SNLI and CommonsenseQA, of the whole command and by processor time."""
    found = []
    for dataset in ["arithmetic"] if options.quick else ["esnli", "cqa"]:
        given = [f"--dataset={dataset}", f"--examples={options.examples}", f"--rounds={options.rounds}"]
        given += [f"--data_root={options.data_root}"] * bool(options.data_root)
        given += [f"--baseline={options.baseline}"] * bool(options.baseline)
        given += ["--preset=tiny", "--steps=2"] * options.quick
        report = run_json("benchmarks.evaluate", *given)
        note = "" if options.baseline else "give --baseline=REVISION to compare; "
        note += f"rationales of {report['rationale_words']:.0f} words"
        for name, label in (("seconds", "wall clock"), ("cpu_seconds", "processor time")):
            found.append(
                Row.of(
                    f"evaluate {report['examples']} of {dataset}, labels and rationales: {label}",
                    "s",
                    report["ours"][name],
                    report["baseline"][name] if options.baseline else (),
                    command=shown_command("benchmarks.evaluate", *given),
                    peer_name=f"revision {options.baseline}" if options.baseline else "",
                    note=note,
                )
            )
    return found


def main() -> int:
    """Parse the command line and compare; 2 for a user error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="esnli")
    parser.add_argument("--data_root")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--steps", type=int, default=150, help="with which the student is trained")
    parser.add_argument("--student", help="workdir of another student, whose latest checkpoint is scored")
    parser.add_argument("--own_data", action="store_true", help="score --student on the test split of its training")
    parser.add_argument("--examples", type=int, default=1024)
    parser.add_argument("--baseline", default="", help="revision to compare with; default: none")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.own_data and arguments.student is None:
        parser.error("--own_data scores --student: name its workdir")
    return print_json(lambda: compare(arguments))


if __name__ == "__main__":
    sys.exit(main())

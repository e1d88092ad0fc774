"""Speed of `evaluate` (losses, labels and rationales) with one student, against an earlier revision of this repository.

    python -m benchmarks.evaluate --dataset=esnli --examples=1024 --baseline=REVISION

The sides are `ours`, `baseline` and `no_choices`. Of labels from a closed set, `ours` also scores every choice, which
early revisions do not; `no_choices` is our code on the same examples without them, so that it computes what they
compute. All score the first examples of the test split with `python -m cotmi_jax.evaluate`, in turn. Times are those of
the whole command, with compiled programs from a cache that a first pass fills, unmeasured; with --cold there is no such
pass, and every command compiles its programs.

The student is trained for --steps small batches from random parameters, enough that it ends most of its labels and
rationales as a trained one does: the time of decoding depends on their lengths. --student names the workdir of another
one, which the baseline can read. With --own_data it is scored on the test split of its own data, as --workdir does,
where recalibration answers valid too, and there is no side `no_choices`. The result is printed as JSON, with the mean
lengths of what was generated and, beside a baseline, the median over rounds of the ratio to it. The root of the data is
--data_root or $COTMI_DATA_ROOT.
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


def write_examples(arguments: argparse.Namespace, folder: Path) -> None:
    """The first examples of the test split as rows of one's own: test.jsonl, and no_choices.jsonl without choices."""
    config = base()
    config.data.dataset, config.data.root = arguments.dataset, arguments.data_root or ""
    config.data.empty_rationale = "drop"
    examples = load_data(config, {"test"}).corpus.splits["test"][: arguments.examples]
    rows = [
        # Revisions that do not know choices and clusters ignore them.
        {"input": each.input, "label": each.label, "rationale": each.rationale, "cluster": each.cluster or each.id}
        | ({"choices": each.choices} if each.choices else {})
        for each in examples
    ]
    for name, left_out in (("test", ()), ("no_choices", ("choices",))):
        kept = [{key: value for key, value in row.items() if key not in left_out} for row in rows]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))


def train_student(arguments: argparse.Namespace, code: Path, workdir: Path, home: Path) -> None:
    """A student that ends its outputs, trained by the code in a folder."""
    settings = {
        "steps": arguments.steps,
        "batch_size": 16,
        "data.dataset": arguments.dataset,
        "data.root": arguments.data_root or "",
        "data.subsample": 0.2,
        "data.empty_rationale": "drop",
        "objective.name": "dss",
        "model.preset": arguments.preset,
        "model.init": "random",
        "model.dropout": 0.0,
        "optimizer.learning_rate": 1e-3,
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
    with tempfile.TemporaryDirectory() as folder, revisions(arguments.baseline) as code:
        temporary = Path(folder)
        student, oldest = arguments.student, list(code)[-1]
        if student is None:
            student = str(temporary / "student")
            train_student(arguments, code[oldest], Path(student), temporary / "cache-training")
        sides = {side: (tree, [f"--workdir={student}"]) for side, tree in code.items()}
        if not arguments.own_data:
            write_examples(arguments, temporary)
            scored = [f"--model={student}", f"--dataset=jsonl:{temporary}/test.jsonl"]
            without = [f"--model={student}", f"--dataset=jsonl:{temporary}/no_choices.jsonl"]
            sides = {side: (tree, scored) for side, tree in code.items()} | {"no_choices": (code["ours"], without)}
        report: dict[str, Any] = {side: {"cpu_seconds": [], "seconds": [], "peak_gib": []} for side in sides}
        for round_ in range(1 if arguments.cold else 0, arguments.rounds + 1):
            for side, (tree, given) in sides.items():
                command = [sys.executable, "-m", "cotmi_jax.evaluate", f"--output={temporary / side}", "--split=test"]
                command += ["--checkpoint=latest", "--noinformation", *given]
                home = temporary / (f"cache-{side}-{round_}" if arguments.cold else f"cache-{side}")
                spent = spend(command, folder=tree, environment={"COTMI_CACHE": str(home)})
                print(f"round {round_}: {side} {spent.seconds:.1f} s", file=sys.stderr, flush=True)
                if round_:
                    for name, values in report[side].items():
                        values.append(getattr(spent, name))
        predictions = [json.loads(line) for line in (temporary / "ours" / "predictions.jsonl").read_text().splitlines()]
    if arguments.baseline:
        report["ratio"] = {side: _ratios(report[side], report["baseline"]) for side in sides if side != "baseline"}
    report["examples"] = len(predictions)
    for name in ("label", "rationale"):
        words = [len((each[f"predicted_{name}"] or "").split()) for each in predictions]
        report[f"{name}_words"] = statistics.mean(words)
    return report


def _ratios(ours: dict[str, list[float]], baseline: dict[str, list[float]]) -> dict[str, float]:
    """Of each quantity the median over rounds of ours / baseline."""
    return {name: statistics.median(map(operator.truediv, ours[name], baseline[name])) for name in ours}


def rows(options: Options) -> list[Row]:
    """Seconds of the whole command for examples of e-SNLI, by the clock and of the processors."""
    dataset = "arithmetic" if options.quick else "esnli"
    given = [f"--dataset={dataset}", f"--examples={options.examples}", f"--rounds={options.rounds}", "--cold"]
    given += [f"--data_root={options.data_root}"] * bool(options.data_root)
    given += [f"--baseline={options.baseline}"] * bool(options.baseline)
    given += ["--preset=tiny", "--steps=2"] * options.quick
    report = run_json("benchmarks.evaluate", *given)
    note = "" if options.baseline else "give --baseline=REVISION to compare; "
    note += f"with compilation; rationales of {report['rationale_words']:.0f} words"
    return [
        Row.of(
            f"evaluate {report['examples']} of {dataset}, {what}: {label}",
            "s",
            report[side][name],
            report["baseline"][name] if options.baseline else (),
            command=shown_command("benchmarks.evaluate", *given),
            peer_name=f"revision {options.baseline}" if options.baseline else "",
            note=note,
        )
        for side, what in (("no_choices", "labels and rationales"), ("ours", "labels, rationales and choices"))
        for name, label in (("seconds", "wall clock"), ("cpu_seconds", "processor time"))
    ]


def main() -> int:
    """Parse the command line and compare; 2 for a user error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="esnli")
    parser.add_argument("--data_root")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--steps", type=int, default=300, help="with which the student is trained")
    parser.add_argument("--student", help="workdir of another student, whose latest checkpoint is scored")
    parser.add_argument("--own_data", action="store_true", help="score --student on the test split of its training")
    parser.add_argument("--examples", type=int, default=1024)
    parser.add_argument("--baseline", default="", help="revision to compare with; default: none")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cold", action="store_true", help="count compilation, as in the first evaluation of a split")
    arguments = parser.parse_args()
    if arguments.own_data and arguments.student is None:
        parser.error("--own_data scores --student: name its workdir")
    return print_json(lambda: compare(arguments))


if __name__ == "__main__":
    sys.exit(main())

"""Bias of calibration errors on students of known error, and coverage of all intervals of an evaluation.

    python -m benchmarks.calibration_coverage --json=calibration_coverage.json --markdown=docs/evaluation.md

A synthetic student has log-probabilities of 3 or 5 choices; its gold labels are drawn from them. It answers with the
highest one and states its probability, exactly (a calibrated student) or with the log-probabilities multiplied by a
factor above 1 (an overconfident student, whose true error is computed from many examples). Clusters share their
difficulty, methods their items. Needs no device; about a minute of one core.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.table import environment, measured_with, print_json, shown_command, write_markdown
from cotmi_jax.evaluation import calibration, comparison
from cotmi_jax.evaluation.calibration import Answers
from cotmi_jax.evaluation.scores import share_by_cluster
from cotmi_jax.files import replace_file

MARK = "calibration_coverage"  # of the tables in a page
SIZES = (50, 200, 1000, 5000, 20_000)
FACTORS = {"calibrated": 1.0, "overconfident": 1.6}
CLASSES = (3, 5)
MEASURES: dict[str, Callable[[Answers], np.ndarray]] = {
    "ECE 15": lambda answers: answers.ece(15, "mass"),
    "ECE 100": lambda answers: answers.ece(100, "mass"),
    "debiased": lambda answers: answers.debiased_ece(15, "mass"),
    "sweep": Answers.ece_sweep,
    "smooth": Answers.smooth_ece,
}
_TRUTH_SIZE = 400_000  # examples from which true errors are computed
STUDY_ROUNDS = 10  # simulated studies for each student of a kind
TRUE_DIFFERENCE = 0.02  # of the simulated methods
STUDIES = (  # training runs, clusters, items of a cluster, standard deviation between runs
    (3, 200, 1, 0.01),
    (5, 200, 3, 0.0),
    (5, 200, 3, 0.02),
    (10, 60, 3, 0.02),
)


class Student(NamedTuple):
    """Confidences, whether the answers are correct, and the probability that each is."""

    confidence_N: np.ndarray
    correct_N: np.ndarray
    true_N: np.ndarray


def draw_student(draw: np.random.Generator, size: int, classes: int, factor: float) -> Student:
    """A student whose log-probabilities are those that gold labels are drawn from, times the factor."""
    log_p_NxC = 2.0 * draw.normal(size=(size, classes))
    p_NxC, stated_NxC = (np.exp(scale * log_p_NxC) for scale in (1.0, factor))
    true_N = p_NxC.max(axis=1) / p_NxC.sum(axis=1)
    return Student(stated_NxC.max(axis=1) / stated_NxC.sum(axis=1), draw.random(size) < true_N, true_N)


def true_errors(classes: int, factor: float) -> dict[str, float]:
    """By measure the error of infinitely many examples, and the overconfidence.

    Binned measures have that of 1,000 bins, root mean square where the measure is one; the smooth error has its own
    definition, at the probabilities in place of drawn correctness.
    """
    student = draw_student(np.random.default_rng(12345), _TRUTH_SIZE, classes, factor)
    order = np.argsort(student.confidence_N)
    gap_B = [each.mean() for each in np.array_split((student.confidence_N - student.true_N)[order], 1000)]
    mean, square = float(np.abs(gap_B).mean()), float(np.sqrt(np.square(gap_B).mean()))
    errors = dict.fromkeys(MEASURES, mean) | {"debiased": square}
    errors["smooth"] = calibration.smooth_ece(student.confidence_N, student.correct_N).value if factor != 1.0 else 0.0
    return errors | {"overconfidence": float((student.confidence_N - student.true_N).mean())}


def measure_student(classes: int, name: str, size: int, rounds: int) -> dict[str, Any]:
    """Mean values of the measures over students of one kind, and how often intervals hold the truth."""
    factor, draw = FACTORS[name], np.random.default_rng([classes, size, len(name)])
    truth = true_errors(classes, factor)
    values: dict[str, list[float]] = {measure: [] for measure in MEASURES}
    first = draw_student(draw, size, classes, factor)
    # Confidences of such students differ little, so that one floor serves all of them.
    floor = calibration.noise_floors(first.confidence_N, {"smooth": Answers.smooth_ece})["smooth"]
    covered: list[bool] = []
    for _ in range(rounds):
        student = draw_student(draw, size, classes, factor)
        answers = Answers.of(student.confidence_N, student.correct_N)
        for measure, function in MEASURES.items():
            if measure != "ECE 100" or size >= 200:
                values[measure].append(float(function(answers)[0]))
        gap = comparison.items_interval(student.confidence_N - student.correct_N)
        covered.append(gap.low <= truth["overconfidence"] <= gap.high)
    return {
        "classes": classes,
        "student": name,
        "size": size,
        "true": truth,
        "mean": {measure: float(np.mean(each)) if each else None for measure, each in values.items()},
        "coverage": float(np.mean(covered)),
        "beyond_floor": float(np.mean(np.array(values["smooth"]) > floor.high)),
        "rounds": rounds,
    }


def draw_methods(
    draw: np.random.Generator, runs: int, clusters: int, items: int, between_runs: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Correct answers [S, N] of two methods whose probabilities differ by TRUE_DIFFERENCE, and clusters [N].

    The probability of a correct answer depends on the item, its cluster, the method's way with the cluster and the run.
    """
    cluster_N = np.repeat(np.arange(clusters), items)
    base_N = 0.6 + 0.1 * draw.uniform(-1, 1, clusters)[cluster_N] + 0.1 * draw.uniform(-1, 1, len(cluster_N))

    def method(mean: float) -> np.ndarray:
        suits_N = 0.05 * draw.uniform(-1, 1, clusters)[cluster_N]
        run_Sx1 = between_runs * draw.normal(size=(runs, 1))
        return draw.random((runs, len(cluster_N))) < np.clip(base_N + mean + suits_N + run_Sx1, 0, 1)

    return method(TRUE_DIFFERENCE), method(0.0), cluster_N


def measure_study(runs: int, clusters: int, items: int, between_runs: float, rounds: int) -> dict[str, Any]:
    """How often intervals of a comparison hold the truth: ours, and those that pool all answers of all runs."""
    draw = np.random.default_rng([runs, clusters, items, int(1000 * between_runs)])
    covered: list[bool] = []
    pooled: list[bool] = []
    for _ in range(rounds):
        ours, theirs, cluster_N = draw_methods(draw, runs, clusters, items, between_runs)
        found = comparison.difference(ours, theirs, cluster_N)
        covered.append(found.low <= TRUE_DIFFERENCE <= found.high)
        each = ours.astype(float).ravel() - theirs.astype(float).ravel()
        half = 1.96 * each.std() / np.sqrt(each.size)
        pooled.append(abs(each.mean() - TRUE_DIFFERENCE) <= half)
    return {
        "runs": runs,
        "clusters": clusters,
        "items": items,
        "between_runs": between_runs,
        "coverage": float(np.mean(covered)),
        "pooled": float(np.mean(pooled)),
        "rounds": rounds,
    }


def measure_accuracy(clusters: int, items: int, rounds: int) -> dict[str, Any]:
    """How often the interval of an accuracy holds the truth, .8, where answers of a cluster are alike."""
    draw = np.random.default_rng([clusters, items])
    covered: list[bool] = []
    ignored: list[bool] = []
    cluster_N = np.repeat(np.arange(clusters), items)
    for _ in range(rounds):
        # Beta(4, 1): probabilities of clusters with mean .8.
        correct_N = draw.random(len(cluster_N)) < draw.beta(4, 1, clusters)[cluster_N]
        for found, keys in ((covered, cluster_N), (ignored, np.arange(len(cluster_N)))):
            interval = share_by_cluster(correct_N.tolist(), keys.tolist())["interval"]
            assert interval is not None
            found.append(interval[0] <= 0.8 <= interval[1])
    result: dict[str, Any] = {"clusters": clusters, "items": items, "rounds": rounds}
    return result | {"coverage": float(np.mean(covered)), "ignored": float(np.mean(ignored))}


def measure(rounds: int) -> dict[str, Any]:
    """All tables; `rounds` simulated students, and STUDY_ROUNDS times as many studies."""
    started = time.process_time()
    students = []
    for classes in CLASSES:
        for name in FACTORS:
            for size in SIZES:
                students.append(measure_student(classes, name, size, rounds))
                print(f"{classes} classes, {name}, n = {size}", file=sys.stderr, flush=True)
    studies = [measure_study(*study, STUDY_ROUNDS * rounds) for study in STUDIES]
    accuracies = [
        measure_accuracy(clusters, items, STUDY_ROUNDS * rounds) for clusters, items in ((200, 1), (200, 3), (100, 10))
    ]
    result = {"students": students, "studies": studies, "accuracies": accuracies, "rounds": rounds}
    return environment() | result | {"cpu_seconds": time.process_time() - started}


def markdown(result: Mapping[str, Any], command: str) -> str:
    """The three tables."""
    lines = ["| student | n | " + " | ".join(MEASURES) + " | covered | beyond floor |"]
    lines.append("|---|--:|" + "--:|" * (len(MEASURES) + 2))
    for row in result["students"]:
        truth = row["true"]
        if row["size"] == SIZES[0]:
            exact = ["" if name not in truth else f"*{truth[name]:.3f}*" for name in MEASURES]
            lines.append(f"| {row['student']}, {row['classes']} classes | *true* | {' | '.join(exact)} | | |")
        cells = ["–" if row["mean"][name] is None else f"{row['mean'][name]:.3f}" for name in MEASURES]
        shares = [f"{100 * row[name]:.0f}%" for name in ("coverage", "beyond_floor")]
        lines.append(f"| | {row['size']:,} | {' | '.join([*cells, *shares])} |")
    lines += ["", "| runs, clusters × items, sd of runs | covered | answers pooled |", "|---|--:|--:|"]
    for row in result["studies"]:
        what = f"{row['runs']}, {row['clusters']} × {row['items']}, {row['between_runs']:g}"
        lines.append(f"| {what} | {100 * row['coverage']:.1f}% | {100 * row['pooled']:.1f}% |")
    lines += ["", "| clusters × items | accuracy covered | clusters ignored |", "|---|--:|--:|"]
    for row in result["accuracies"]:
        what = f"{row['clusters']} × {row['items']}"
        lines.append(f"| {what} | {100 * row['coverage']:.1f}% | {100 * row['ignored']:.1f}% |")
    rounds, seconds = result["rounds"], result["cpu_seconds"]
    note = f"{rounds} students of each kind, {STUDY_ROUNDS * rounds:,} studies; {seconds:.0f} s of processor time."
    return "\n".join([*lines, "", note, *measured_with(result, command)])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark from flags."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calibration_coverage", description=__doc__)
    parser.add_argument("--rounds", type=int, default=200, help="students of each kind")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--markdown", type=Path, help=f"page whose part {MARK} becomes the tables")
    arguments = parser.parse_args(argv)

    def measured() -> dict[str, Any]:
        result = measure(arguments.rounds)
        if arguments.json:
            replace_file(arguments.json, json.dumps(result, indent=1) + "\n")
        if arguments.markdown:
            command = shown_command("benchmarks.calibration_coverage", f"--rounds={arguments.rounds}")
            write_markdown(arguments.markdown, markdown(result, command), MARK)
        return result

    return print_json(measured)


if __name__ == "__main__":
    sys.exit(main())

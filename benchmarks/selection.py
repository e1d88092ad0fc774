"""Which checkpoint to keep: the rules of config.eval.select_by against the best checkpoint on test, by size of valid.

    python -m benchmarks.selection --folder=runs/selection --markdown=docs/evaluation.md

Every run of a setting keeps CHECKPOINTS checkpoints, of each of which the valid split (labels, losses, candidates) and
the test split (labels, losses, rationales) are scored once. Then valid sets of n rows are drawn by cluster, with
replacement; on each of them every rule selects a checkpoint as training would. What is reported is the mean of the test
score of the selected checkpoint minus the best test score of any, over draws, with its 95% t interval over runs. A run
whose scores are complete is not repeated, so the same command resumes after an interruption. Does not import
tensorflow.
"""

import argparse
import functools
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from benchmarks.table import environment, measured_with, print_json, shown_command, write_markdown
from cotmi_jax.data.example import SPLITS
from cotmi_jax.data.run_data import load_data, tokenize
from cotmi_jax.errors import UserError
from cotmi_jax.evaluation.agreement import agreement
from cotmi_jax.evaluation.comparison import runs_interval
from cotmi_jax.evaluation.confidences import closed_set_confidences, cluster_numbers
from cotmi_jax.evaluation.evaluator import Evaluator
from cotmi_jax.evaluation.recalibration import fit_score_temperature, log_softmax
from cotmi_jax.evaluation.scores import Prediction
from cotmi_jax.evaluation.subject import find_subject
from cotmi_jax.experiment import eval_decoding
from cotmi_jax.files import replace_file
from cotmi_jax.objectives.objective import Objective
from cotmi_jax.training.loop import quality
from cotmi_jax.workdir.checkpoint import LATEST, steps_saved

MARK = "selection"  # of the table in a page
CHECKPOINTS = 12
RATIONALES = 128  # test examples whose rationales are generated
ROWS = (50, 80, 200, 500)  # of a valid split
LAST = "last"


class Setting(NamedTuple):
    """A recipe, and flags of its training besides the number of steps."""

    recipe: str
    steps: int
    flags: tuple[str, ...] = ()


_SMALL = "--config.batch_size=16"
# The few examples of the second setting are learned by heart, so that losses on test rise again.
SETTINGS = {
    "arithmetic": Setting("quickstart", 360, (_SMALL,)),
    "arithmetic, 300 train examples": Setting("quickstart", 360, (_SMALL, "--config.data.size=300")),
    "deduction": Setting("deduction", 1200),
}
RULES = ("accuracy", "label_loss", "loss", "log_score", LAST)


class Outcome(NamedTuple):
    """A score on test: its name, the factor by which it is shown, its unit, and whether more of it is better."""

    name: str
    factor: float
    unit: str
    sign: int


OUTCOMES = {
    "accuracy": Outcome("label accuracy", 100.0, "points", 1),
    "predict": Outcome("token loss of labels", 1000.0, "millinats", -1),
    "explain": Outcome("token loss of rationales", 1000.0, "millinats", -1),
    "agreement": Outcome("agreement", 100.0, "points", 1),
}


class Valid(NamedTuple):
    """What the rules read of K checkpoints on N rows of valid; gold_log_p scores are None of open labels."""

    cluster_N: np.ndarray
    correct_KxN: np.ndarray
    loss_KxN: dict[str, np.ndarray]
    tokens_N: dict[str, np.ndarray]
    score_KxNxC: np.ndarray | None
    gold_KxN: np.ndarray | None

    @classmethod
    def of(cls, by_step: Sequence[Sequence[Prediction]]) -> "Valid":
        """From the predictions of each checkpoint."""
        first = by_step[0]
        scores = [closed_set_confidences(each) for each in by_step] if first[0].get("candidates") else []
        return cls(
            cluster_numbers(first),
            np.array([[each["correct"] for each in predictions] for predictions in by_step]),
            {task: np.array([[e["loss"][task] for e in each] for each in by_step]) for task in first[0]["loss"]},
            {task: np.array([each["tokens"][task] for each in first]) for task in first[0]["tokens"]},
            np.array([each.score_NxC for each in scores]) if scores else None,
            np.array([each.gold_N for each in scores]) if scores else None,
        )

    def scores(self, row_N: np.ndarray, rule: str) -> list[dict[str, float]]:
        """By checkpoint, what `quality` reads for a rule, on these rows."""
        losses = {
            task: loss_KxN[:, row_N].sum(axis=1) / self.tokens_N[task][row_N].sum()
            for task, loss_KxN in self.loss_KxN.items()
        }
        columns = {"accuracy": self.correct_KxN[:, row_N].mean(axis=1)} | losses
        if rule == "log_score":
            assert self.score_KxNxC is not None and self.gold_KxN is not None
            pairs = zip(self.score_KxNxC[:, row_N], self.gold_KxN[:, row_N], strict=True)
            columns["log_score"] = np.array([best_log_score(*pair) for pair in pairs])
        return [dict(zip(columns, map(float, each), strict=True)) for each in zip(*columns.values(), strict=True)]


def best_log_score(score_NxC: np.ndarray, gold_N: np.ndarray) -> float:
    """As the metric log_score: the mean log-probability of gold among the candidates at the best temperature, nats."""
    log_p_NxC = log_softmax(score_NxC / fit_score_temperature(score_NxC, gold_N))
    return float(log_p_NxC[np.arange(len(gold_N)), gold_N].mean())


def draw_rows(cluster_N: np.ndarray, rows: int, draw: np.random.Generator) -> np.ndarray:
    """Rows of clusters that are drawn with replacement, until there are as many as wanted."""
    order = np.argsort(cluster_N, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(cluster_N))[:-1])
    found: list[int] = []
    while len(found) < rows:
        found += members[int(draw.integers(len(members)))].tolist()
    return np.array(found[:rows])


def selected(valid: Valid, row_N: np.ndarray, rule: str, objective: Objective) -> int:
    """The checkpoint that training with eval.select_by = rule would keep, the first of equal ones."""
    if rule == LAST:
        return len(valid.correct_KxN) - 1
    reached = [quality(each, rule, objective) for each in valid.scores(row_N, rule)]
    return reached.index(max(reached))


def regrets(run: Mapping[str, Any], rows: int, draws: int, seed: int = 0) -> dict[str, dict[str, float]]:
    """By rule and outcome, the mean test score of the selected checkpoint minus the best one; at most 0 where more is
    better, at least 0 of losses."""
    valid = Valid.of(run["valid"])
    objective = Objective("dss", alpha=run["alpha"])
    draw = np.random.default_rng([seed, rows])
    drawn = [draw_rows(valid.cluster_N, rows, draw) for _ in range(draws)]
    found: dict[str, dict[str, float]] = {}
    for rule in RULES:
        if rule == "log_score" and valid.score_KxNxC is None:
            continue
        chosen = [selected(valid, row_N, rule, objective) for row_N in drawn]
        found[rule] = {}
        for name, outcome in OUTCOMES.items():
            if None not in (value_K := [step.get(name) for step in run["test"]]):
                best = max(value_K) if outcome.sign > 0 else min(value_K)
                found[rule][name] = float(np.mean(np.array(value_K)[chosen])) - best
    return found


class Study(NamedTuple):
    """Where the runs of all settings are."""

    folder: Path
    smoke: bool = False

    def name(self, setting: str, seed: int) -> str:
        """Of the files of a run."""
        safe = "".join(letter if letter.isalnum() else "_" for letter in setting)
        return f"{safe}-seed{seed}{'-smoke' * self.smoke}"

    def result(self, setting: str, seed: int) -> Path:
        """The scores of a complete run."""
        return self.folder / f"{self.name(setting, seed)}.json"

    def command(self, setting: str, seed: int) -> list[str]:
        """The training of a run, which keeps every checkpoint."""
        recipe, steps, flags = SETTINGS[setting]
        steps = CHECKPOINTS if self.smoke else steps
        given = [f"--config=configs/{recipe}.py{':smoke' * self.smoke}", f"--config.steps={steps}", *flags]
        given += [f"--config.seed={seed}", "--config.objective.name=dss", f"--config.checkpoint.keep={CHECKPOINTS}"]
        given += [f"--config.checkpoint.every={steps // CHECKPOINTS}", "--config.eval.every=0"]
        given += ["--config.mi.monitor.every=0", "--config.log.trackers="]
        workdir = self.folder / self.name(setting, seed)
        return [sys.executable, "-m", "cotmi_jax.train", f"--workdir={workdir}", *given]

    def run(self, setting: str, seed: int) -> None:
        """Train and score a run that is not complete; its workdir is then deleted, its scores stay."""
        file, workdir = self.result(setting, seed), self.folder / self.name(setting, seed)
        if file.exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{workdir.name}.log").open("w") as log:
            code = subprocess.run(self.command(setting, seed), stdout=log, stderr=log, check=False).returncode
        if code:
            raise UserError(f"{setting}, seed {seed}: exit code {code}, see {log.name}")
        replace_file(file, json.dumps(score_checkpoints(workdir)))
        shutil.rmtree(workdir)


def score_checkpoints(workdir: Path) -> dict[str, Any]:
    """steps; valid: by checkpoint predictions without rationales and texts; test: by checkpoint the OUTCOMES."""
    import jax

    steps = steps_saved(workdir / LATEST)
    found: dict[str, Any] = {"steps": steps, "valid": [], "test": []}
    data, evaluator = None, None
    for step in steps:
        subject = find_subject(str(workdir), checkpoint=str(step))
        config, trained = subject.config, subject.trained
        if data is None or evaluator is None:
            splits = load_data(config, SPLITS).corpus.splits
            data = {name: tokenize(config, trained.vocabulary, splits[name], train=False) for name in ("valid", "test")}
            setup = (trained.student, subject.objective, trained.vocabulary, trained.mesh)
            evaluator = Evaluator(*setup, batch_size=config.eval.batch_size)
        with jax.set_mesh(trained.mesh):
            score = functools.partial(evaluator.evaluate, trained.params, decoding=eval_decoding(config))
            valid = score(data["valid"], splits["valid"], rationales=False, confidences=True)[1]
            losses, test = score(data["test"], splits["test"], rationales=False)
            texts = evaluator.rationales(trained.params, data["test"], eval_decoding(config), RATIONALES)
        kept = ("id", "label", "cluster", "correct", "loss", "tokens", "candidates")
        found["valid"].append([{name: each[name] for name in kept} for each in valid])  # type: ignore[literal-required]
        explained = [each | {"predicted_rationale": text} for each, text in zip(test, texts, strict=False)]
        agrees = agreement(explained).get("agreement")
        scores = {"accuracy": float(np.mean([each["correct"] for each in test]))} | losses
        found["test"].append(scores | {"agreement": agrees and agrees["value"]})
    return found | {"alpha": float(config.objective.alpha)}


def measure(study: Study, settings: Sequence[str], seeds: int, draws: int) -> dict[str, Any]:
    """Run what is missing, and the regrets by setting, rows and rule."""
    runs = [(setting, seed) for seed in range(seeds) for setting in settings]
    for run in tqdm(runs, desc="runs", unit="run", disable=None):
        study.run(*run)
    rows: list[dict[str, Any]] = []
    for setting in settings:
        results = [json.loads(study.result(setting, seed).read_text()) for seed in range(seeds)]
        curve = np.mean([[step["accuracy"] for step in result["test"]] for result in results], axis=0)
        size = len(results[0]["valid"][0])
        for count in (count for count in ROWS if count <= size):
            found = [regrets(result, count, draws) for result in results]
            cells = {
                rule: {name: _interval([each[rule][name] for each in found]) for name in found[0][rule]}
                for rule in found[0]
            }
            against = {
                rule: {
                    name: _interval([each[rule][name] - each["accuracy"][name] for each in found])
                    for name in found[0][rule]
                }
                for rule in found[0]
            }
            rows.append({"setting": setting, "rows": count, "regret": cells, "against_accuracy": against})
        rows[-1]["test_accuracy"] = curve.tolist()
    return environment() | {"seeds": seeds, "draws": draws, "rows": rows}


def _interval(values: Sequence[float]) -> dict[str, float]:
    """The mean over runs and its interval; of one run the value alone."""
    if len(values) < 2:
        return {"value": values[0]}
    found = runs_interval(np.array(values))
    return {"value": found.value, "low": found.low, "high": found.high}


def markdown(result: Mapping[str, Any], command: str) -> str:
    """A table for each outcome: a line for each setting and size of valid, a column for each rule."""
    lines: list[str] = []
    for name, outcome in OUTCOMES.items():
        lines += ["", f"| {outcome.name}, {outcome.unit} | n | " + " | ".join(RULES) + " |"]
        lines.append("|---|--:|" + "--:|" * len(RULES))
        for row in result["rows"]:
            cells = [_cell(row, rule, name, outcome) for rule in RULES]
            lines.append(f"| {row['setting']} | {row['rows']} | {' | '.join(cells)} |")
    runs = "one run, thus no interval"
    if result["seeds"] > 1:
        runs = (
            f"{result['seeds']} runs of a setting, with the 95% t interval over them, in bold where the paired "
            "difference to `accuracy` excludes 0"
        )
    note = (
        f"Mean test score of the selected checkpoint minus that of the best of {CHECKPOINTS} checkpoints, over "
        f"{result['draws']} valid sets of n rows each; {runs}."
    )
    return "\n".join([*lines[1:], "", note, *measured_with(result, command)])


def _cell(row: Mapping[str, Any], rule: str, name: str, outcome: Outcome) -> str:
    if name not in row["regret"].get(rule, {}):
        return "–"
    found = {key: outcome.factor * value for key, value in row["regret"][rule][name].items()}
    if "low" not in found:
        return f"{found['value']:+.1f}"
    against = row["against_accuracy"][rule][name]
    mark = "**" * (against["low"] > 0 or against["high"] < 0)
    return f"{mark}{found['value']:+.1f}{mark} [{found['low']:+.1f}, {found['high']:+.1f}]"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark from flags."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.selection", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/selection"), help="scores of complete runs")
    parser.add_argument("--settings", default=";".join(SETTINGS), help="names of settings, separated by semicolons")
    parser.add_argument("--seeds", type=int, default=4, help="runs of a setting; 2 or more give intervals")
    parser.add_argument("--draws", type=int, default=200, help="valid sets of each size")
    parser.add_argument("--smoke", action="store_true", help="the recipes' smallest size: shows that it runs")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--markdown", type=Path, help=f"page whose part {MARK} becomes the tables")
    arguments = parser.parse_args(argv)

    def measured() -> dict[str, Any]:
        settings = arguments.settings.split(";")
        if unknown := [name for name in settings if name not in SETTINGS]:
            raise UserError(f"--settings={arguments.settings}: no {unknown[0]}; choose of {'; '.join(SETTINGS)}")
        if arguments.seeds < 1:
            raise UserError(f"--seeds={arguments.seeds}: give at least 1, and 2 for intervals")
        study = Study(arguments.folder.absolute(), arguments.smoke)
        result = measure(study, settings, arguments.seeds, arguments.draws)
        if arguments.json:
            replace_file(arguments.json, json.dumps(result, indent=1) + "\n")
        if arguments.markdown:
            flags = [f"--seeds={arguments.seeds}", f"--draws={arguments.draws}"]
            flags += [f"--settings={arguments.settings}"] * (settings != list(SETTINGS))
            write_markdown(arguments.markdown, markdown(result, shown_command("benchmarks.selection", *flags)), MARK)
        return result

    return print_json(measured)


if __name__ == "__main__":
    sys.exit(main())

"""Evaluation of a workdir as a job: restores the parameters only, scores a split, writes the results."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from cotmi_jax.config import load_extensions
from cotmi_jax.data.corpus import Component
from cotmi_jax.data.run_data import load_data, tokenize
from cotmi_jax.data.tasks import EXPLAIN
from cotmi_jax.errors import UserError
from cotmi_jax.evaluation.evaluator import Evaluator
from cotmi_jax.evaluation.metrics import Prediction, Summary, measure, parse_metrics, summarize
from cotmi_jax.evaluation.mi_monitor import MIN_PAIRS, HeldOutEstimates, MIMonitor, fitting_rows
from cotmi_jax.experiment import eval_decoding, make_objective
from cotmi_jax.files import Path, absolute, as_path, make_folder, replace_file, user_error_on_failure
from cotmi_jax.inference.load import load_workdir, parse_checkpoint_choice
from cotmi_jax.parallel.distributed import barrier, is_main_process
from cotmi_jax.parallel.mesh import batch_shards


@dataclasses.dataclass(frozen=True)
class Scored:
    """Metrics, predictions, held-out mutual information (None: not estimated), and the folder they are written to."""

    metrics: dict[str, Any]
    predictions: list[Prediction]
    information: HeldOutEstimates | None
    workdir: Path
    output: Path


def accuracy_by_component(correct: list[bool], components: Sequence[Component], split: str) -> dict[str, Summary]:
    """Accuracy of each component of a mixture that has the split, in which examples are ordered by component."""
    found, start = {}, 0
    for component in components:
        end = start + component.sizes.get(split, 0)
        if end > start:
            found[component.name] = summarize(correct[start:end])
        start = end
    return found


def score(
    workdir_path: str,
    split_name: str,
    *,
    checkpoint: str = "best",
    output: str | None = None,
    data_root: str | None = None,
    information: bool = True,
    metrics: str | None = None,
    extensions: str = "",
) -> Scored:
    """Score a split and write metrics.json and predictions.jsonl. Raises UserError for user errors.

    `metrics`: names of registered metrics, separated by commas; None: config.eval.metrics. `extensions`: files or
    modules to import besides those of the run, in the form of config.extensions, for metrics registered since then.

    metrics.json: accuracy against gold with its 95% Wilson interval and n; `loss`: the mean of every term of the
    objective against gold labels, in nats (accuracies of tokens as fractions); `metrics`: value, 95% interval and n of
    every metric; counts of truncated inputs and targets; of a mixture `components`: the accuracy of each; with
    `information`, the held-out mutual information of a student that explains.
    """
    workdir = as_path(absolute(workdir_path))
    barrier("begin")
    load_extensions(extensions)
    trained = load_workdir(workdir, parse_checkpoint_choice(checkpoint))
    config, vocabulary = trained.config, trained.vocabulary
    assert config is not None  # of a workdir it is known
    chosen = parse_metrics(config.eval.metrics if metrics is None else metrics)
    if data_root is not None:
        config.data.root = absolute(data_root)
    with jax.set_mesh(mesh := trained.mesh):
        data = load_data(config)
        corpus = data.corpus
        if split_name not in corpus.splits:
            raise UserError(f"{corpus.name} has no {split_name} split: choose one of {', '.join(corpus.splits)}")
        examples = corpus.splits[split_name]
        split = tokenize(config, vocabulary, examples, train=False)
        barrier("data")
        objective = make_objective(config)
        batch_size = -(-config.eval.batch_size // batch_shards(mesh)) * batch_shards(mesh)
        evaluator = Evaluator(trained.student, objective, vocabulary, mesh, batch_size=batch_size)
        losses = evaluator.losses(trained.params, split)
        predictions = evaluator.predictions(trained.params, split, examples, eval_decoding(config))
        measured = None
        if information and EXPLAIN in objective.tasks:
            rows = fitting_rows(len(corpus.splits["train"]), config)
            if min(len(rows), split.size) >= MIN_PAIRS:
                known = tuple(corpus.splits["train"][row] for row in rows)
                fitted = tokenize(config, vocabulary, known, train=True)
                monitor = MIMonitor(trained.student, config, mesh, batch_size=batch_size)
                measured = monitor.measure(trained.params, fitted, np.arange(fitted.size), split)
    scores = measure(chosen, predictions)
    found: dict[str, Any] = {
        "dataset": corpus.name,
        "split": split_name,
        "checkpoint": {"which": checkpoint, "step": trained.step},
        "interval": scores["accuracy"]["interval"],
        "accuracy": scores["accuracy"]["value"],
        "n": scores["accuracy"]["n"],
        "metrics": scores,
        "loss": losses,
        "truncated": {
            task: {"inputs": tokens.truncated_inputs, "targets": tokens.truncated_targets}
            for task, tokens in split.tasks.items()
        },
    }
    if len(data.components) > 1:
        correct = [prediction["correct"] for prediction in predictions]
        found["components"] = accuracy_by_component(correct, data.components, split_name)
    if information and EXPLAIN in objective.tasks:
        found["information"] = measured.summary() if measured else None  # None: too few examples
    folder = as_path(absolute(output)) if output else workdir / "evaluation" / split_name
    if is_main_process():
        with user_error_on_failure(f"cannot write results to {folder}"):
            make_folder(folder)
            replace_file(folder / "metrics.json", json.dumps(found, indent=1) + "\n")
            replace_file(
                folder / "predictions.jsonl", "".join(json.dumps(prediction) + "\n" for prediction in predictions)
            )
    return Scored(found, predictions, measured, workdir, folder)

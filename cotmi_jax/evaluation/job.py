"""Evaluation as a job: restores the parameters only, scores a split, writes the results."""

import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from cotmi_jax.data.corpus import Component, LoadedCorpus
from cotmi_jax.data.example import SPLITS, Corpus, Example
from cotmi_jax.data.lost_labels import find_lost_labels
from cotmi_jax.data.run_data import load_data, tokenize
from cotmi_jax.data.tasks import EXPLAIN, PREDICT, find_objective, task_input
from cotmi_jax.data.tokens import TokenizedSplit
from cotmi_jax.errors import UserError
from cotmi_jax.evaluation.calibration_report import FITTING_EXAMPLES, calibrate
from cotmi_jax.evaluation.confidences import cluster_keys
from cotmi_jax.evaluation.evaluator import Evaluator
from cotmi_jax.evaluation.label_scores import label_table
from cotmi_jax.evaluation.metrics import (
    BY_DEFAULT,
    OF_CHOICES,
    OF_LABELS,
    Measured,
    Prediction,
    Summary,
    measure,
    parse_metrics,
    summarize,
)
from cotmi_jax.evaluation.mi_monitor import draw_rows
from cotmi_jax.evaluation.monitor import HeldOutEstimates, SplitMonitor
from cotmi_jax.evaluation.probe import CrossFitted, Probe
from cotmi_jax.evaluation.subject import Subject, find_subject
from cotmi_jax.experiment import initial_params
from cotmi_jax.extensions import load_extensions
from cotmi_jax.files import Path, absolute, as_path, make_folder, replace_file, user_error_on_failure
from cotmi_jax.inference.continuation import Continuation
from cotmi_jax.inference.voting import Sampling
from cotmi_jax.models.decoding import Decoding
from cotmi_jax.parallel.distributed import barrier, is_main_process
from cotmi_jax.parallel.mesh import batch_shards


@dataclasses.dataclass(frozen=True)
class Scored:
    """Metrics, predictions, held-out mutual information (None: not estimated), and the folder they are written to.

    workdir: that of the run if it was scored on its own data, else None.
    """

    metrics: dict[str, Any]
    predictions: list[Prediction]
    information: HeldOutEstimates | None
    workdir: Path | None
    output: Path


def accuracy_by_component(
    correct: Sequence[bool], clusters: Sequence[Hashable], components: Sequence[Component], split: str
) -> dict[str, Summary]:
    """Accuracy of each component of a mixture that has the split, in which examples are ordered by component."""
    found, start = {}, 0
    for component in components:
        end = start + component.sizes.get(split, 0)
        if end > start:
            found[component.name] = summarize(correct[start:end], clusters[start:end])
        start = end
    return found


def score(
    source: str,
    split_name: str,
    *,
    checkpoint: str = "best",
    dataset: str | None = None,
    objective: str | None = None,
    vocabulary: str | None = None,
    data_settings: Mapping[str, object] | None = None,
    output: str | None = None,
    information: bool | None = None,
    metrics: str | None = None,
    extensions: str = "",
    batch_size: int | None = None,
    max_tokens: int | None = None,
    decoding: Decoding | None = None,
    sampling: Sampling | None = None,
    cross_fit: Callable[..., CrossFitted] | None = None,
) -> Scored:
    """Score a split and write metrics.json and predictions.jsonl. Raises UserError for user errors.

    `source`, `checkpoint`, `dataset`, `objective`, `vocabulary`, `data_settings`: as for `subject.find_subject`.
    `information`: whether to estimate mutual information, beside that of the initial weights; None: if the student is
    scored on the data set of its training. `metrics`: names of registered metrics, separated by commas; None: those of
    labels, of rationales, if the objective gives any, and config.eval.metrics. `extensions`: files or modules to import
    besides those of the run, in the form of config.extensions, for metrics registered since then. `batch_size`,
    `max_tokens`: instead of config.eval.batch_size and config.eval.max_decode_tokens. `decoding`: of labels and
    rationales, with the limit of tokens as above; None: greedy. `sampling`: seed of sampled outputs, and how many of
    single_task vote on a label. `cross_fit`: training.fit.cross_fit, for metrics that train students.

    metrics.json: student, data, objective and decoding; accuracy against gold with its 95% interval and n; `loss`: the
    mean of every term of the objective against gold labels, in nats (accuracies of tokens as fractions), without terms
    of rationales if no example has one; `metrics`: value, 95% interval and n of every metric; `not_available`: reasons
    why there are no values of others; counts of truncated inputs and targets, of `unknown` tokens by column, and of
    `lost_labels`, which the vocabulary cannot represent, so that no answer to them is correct; of a mixture
    `components`: the accuracy of each; of the metric label_scores `labels`, as `label_scores.label_table`; of the
    metric calibration `calibration`, as `calibration_report.calibrate`; with `information`, the held-out mutual
    information of a student that explains.
    """
    barrier("begin")
    load_extensions(extensions)
    subject = find_subject(
        source,
        checkpoint=checkpoint,
        dataset=dataset,
        objective=objective,
        vocabulary=vocabulary,
        settings=data_settings,
    )
    config = subject.config
    config.eval.batch_size = batch_size or config.eval.batch_size
    config.eval.max_decode_tokens = max_tokens or config.eval.max_decode_tokens
    decoding = dataclasses.replace(decoding or Decoding(), max_tokens=config.eval.max_decode_tokens)
    sampling = sampling or Sampling()
    sampling.check(decoding, config.objective.name)
    chosen = parse_metrics(_default_metrics(config) if metrics is None else metrics)
    information = subject.own_data if information is None else information
    explains = EXPLAIN in find_objective(config.objective.name).tasks
    data = _load(subject, split_name)
    examples = data.corpus.splits[split_name]
    if metrics is None and any(example.choices for example in examples):
        chosen = parse_metrics(",".join([*OF_CHOICES, *chosen]))
    split = tokenize(config, subject.trained.vocabulary, examples, train=False)
    barrier("data")
    with jax.set_mesh(subject.trained.mesh):
        evaluator = _make_evaluator(subject, sampling)
        losses, predictions = evaluator.evaluate(subject.trained.params, split, examples, decoding, confidences=True)
        estimates = _measure_information(subject, split, examples) if information and explains else None
        probe = _make_probe(subject, evaluator, decoding, examples, predictions, cross_fit)
        measured = measure(chosen, predictions, probe, _say)
        fits = "calibration" in chosen
        valid = _answer_valid(subject, data.corpus, split_name, evaluator, decoding) if fits else None
    found = _describe(subject, checkpoint, data, split_name, split)
    found["decoding"] = dataclasses.asdict(decoding) | dataclasses.asdict(sampling)
    found |= _quality(measured, _known_losses(losses, subject, split))
    found |= _parts(chosen, predictions, valid, estimates, data.components, split_name)
    folder = as_path(absolute(output)) if output else _folder(subject, data.corpus, split_name, decoding)
    if is_main_process():
        _write(folder, found, predictions)
    return Scored(found, predictions, estimates, as_path(subject.source) if subject.own_data else None, folder)


def _default_metrics(config: ConfigDict) -> str:
    rationales = BY_DEFAULT if find_objective(config.objective.name).gives_rationale else ()
    return ",".join([*OF_LABELS, *rationales, config.eval.metrics])


def _load(subject: Subject, split_name: str) -> LoadedCorpus:
    """The data with the split that is scored: of the run's own all splits, as in training; others may have no train."""
    data = load_data(subject.config, SPLITS if subject.own_data else {split_name})
    if split_name not in data.corpus.splits:
        known = ", ".join(data.corpus.splits)
        raise UserError(f"{data.corpus.name} has no {split_name} split: choose one of {known}")
    return data


def _folder(subject: Subject, corpus: Corpus, split_name: str, decoding: Decoding) -> Path:
    """Where results go. Those of greedy decoding are what comparisons read; of another they get their own folder."""
    return subject.default_output(
        corpus.name, split_name if decoding.method == "greedy" else f"{split_name}-{decoding.method}"
    )


def _describe(
    subject: Subject, checkpoint: str, data: LoadedCorpus, split_name: str, split: TokenizedSplit
) -> dict[str, Any]:
    """The fields of metrics.json that say what is scored, and what of the split was cut, unknown or lost."""
    config, vocabulary = subject.config, subject.trained.vocabulary
    unknown = split.unknown(vocabulary.unk_id)
    return {
        "model": subject.source,
        "trained_on": subject.trained_on,
        "objective": config.objective.name,
        "data": config.data.dataset,
        "dataset": data.corpus.name,
        "split": split_name,
        "checkpoint": {"which": checkpoint, "step": subject.trained.step},
        "truncated": {
            task: {"inputs": tokens.truncated_inputs, "targets": tokens.truncated_targets}
            for task, tokens in split.tasks.items()
        },
        "unknown": {column: count.tokens for column, count in unknown.items()},
        "lost_labels": len(find_lost_labels(data.corpus.splits[split_name], vocabulary, config.objective.name)),
    }


def _quality(measured: Measured, losses: Mapping[str, float]) -> dict[str, Any]:
    """The fields of metrics.json for the metrics, of which accuracy is always one, and the losses."""
    accuracy = measured.scores["accuracy"]
    return {
        "interval": accuracy["interval"],
        "accuracy": accuracy["value"],
        "n": accuracy["n"],
        "metrics": measured.scores,
        "not_available": measured.not_available,
        "loss": losses,
    }


def _parts(
    chosen: Sequence[str],
    predictions: Sequence[Prediction],
    valid: Sequence[Prediction] | str | None,
    estimates: HeldOutEstimates | None,
    components: Sequence[Component],
    split_name: str,
) -> dict[str, Any]:
    """The fields of metrics.json that hold more than one value. valid: as for `calibrate`; None: no calibration."""
    parts: dict[str, Any] = {}
    if len(components) > 1:
        correct = [prediction["correct"] for prediction in predictions]
        parts["components"] = accuracy_by_component(correct, cluster_keys(predictions), components, split_name)
    if "label_scores" in chosen:
        parts["labels"] = label_table(predictions)
    if valid is not None:
        parts["calibration"] = calibrate(predictions, valid)
    if estimates is not None:
        parts["information"] = estimates.summary()
    return parts


def _rows(subject: Subject) -> int:
    """Examples of a batch: config.eval.batch_size, rounded up to the shards of the mesh."""
    shards = batch_shards(subject.trained.mesh)
    return -(-subject.config.eval.batch_size // shards) * shards


def _make_evaluator(subject: Subject, sampling: Sampling) -> Evaluator:
    trained, size = subject.trained, _rows(subject)
    setup = (trained.student, subject.objective, trained.vocabulary, trained.mesh)
    return Evaluator(*setup, batch_size=size, sampling=sampling)


def _say(line: str) -> None:
    if is_main_process():
        print(line, file=sys.stderr, flush=True)


def _make_probe(
    subject: Subject,
    evaluator: Evaluator,
    decoding: Decoding,
    examples: Sequence[Example],
    predictions: Sequence[Prediction],
    cross_fit: Callable[..., CrossFitted] | None,
) -> Probe:
    """For metrics that ask the student, in jax.set_mesh of its mesh."""
    config, trained = subject.config, subject.trained

    def answer(edited: Sequence[Example]) -> list[Prediction]:
        split = tokenize(config, trained.vocabulary, edited, train=False)
        return evaluator.evaluate(trained.params, split, edited, decoding)[1]

    fit = None
    if cross_fit is not None and trained.config is not None:
        fit = functools.partial(cross_fit, trained.config, trained.vocabulary, trained.mesh)
    continuation = Continuation(trained.student, trained.params, trained.vocabulary, trained.mesh)

    def continue_after(asked: Sequence[Example], prefixes: Sequence[str]) -> list[str]:
        return continuation(
            [task_input(example.input, config.objective.name, PREDICT) for example in asked],
            prefixes,
            batch_size=config.eval.batch_size,
            max_input=config.data.max_input_tokens,
            max_new=config.eval.max_decode_tokens,
        )

    return Probe(config, examples, predictions, answer, fit, continue_after)


def _answer_valid(
    subject: Subject, corpus: Corpus, split_name: str, evaluator: Evaluator, decoding: Decoding
) -> list[Prediction] | str:
    """Labels of examples of valid with confidences, to which recalibration is fitted; or the reason for none."""
    config, trained = subject.config, subject.trained
    if split_name == "valid":
        return "recalibration is fitted to the valid split, which is the one that is scored"
    if not subject.own_data:
        return "recalibration is fitted to the valid split, and of another data set only the scored one is read"
    if "valid" not in corpus.splits:
        return f"{corpus.name} has no valid split"
    valid = corpus.splits["valid"]
    rows_N = draw_rows([example.id for example in valid], FITTING_EXAMPLES, config.seed)
    examples = [valid[row] for row in rows_N]
    split = tokenize(config, trained.vocabulary, examples, train=False)
    return evaluator.evaluate(trained.params, split, examples, decoding, rationales=False, confidences=True)[1]


def _known_losses(losses: dict[str, float], subject: Subject, split: TokenizedSplit) -> dict[str, float]:
    """The terms of the objective; of rationales only if there are any to compare with."""
    if split.weights.any():
        return losses
    absent = (*find_objective(subject.objective.name).rationale_tasks, "mi")
    return {name: value for name, value in losses.items() if name.removesuffix("_token_accuracy") not in absent}


def _measure_information(subject: Subject, split: TokenizedSplit, examples: Sequence[Example]) -> HeldOutEstimates:
    """The monitor's estimates, or the reason why there are none."""
    trained = subject.trained
    if trained.config is None:
        reason = "a model that was not trained here has no initial weights to compare with"
        return HeldOutEstimates({}, not_available=reason)
    initial = functools.partial(initial_params, trained.config, trained.student, trained.vocabulary, trained.mesh)
    setup = (trained.student, subject.config, trained.vocabulary, trained.mesh)
    try:
        monitor = SplitMonitor.of(*setup, split, examples, initial, batch_size=_rows(subject))
    except UserError as error:
        return HeldOutEstimates({}, not_available=str(error))
    return monitor.measure(trained.params)


def _write(folder: Path, found: Mapping[str, Any], predictions: Sequence[Prediction]) -> None:
    with user_error_on_failure(f"cannot write results to {folder}"):
        make_folder(folder)
        # A kill between the two leaves no metrics of an earlier evaluation beside the predictions of this one.
        (folder / "metrics.json").unlink(missing_ok=True)
        replace_file(folder / "predictions.jsonl", "".join(json.dumps(prediction) + "\n" for prediction in predictions))
        replace_file(folder / "metrics.json", json.dumps(found, indent=1) + "\n")

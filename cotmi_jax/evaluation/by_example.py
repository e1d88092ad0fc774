"""Measures by example, from predictions: what comparisons of methods resample. Plain numpy; imports no jax.

Each function raises UserError with the reason where no example has the measure.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from cotmi_jax.errors import UserError
from cotmi_jax.evaluation.agreement import Agreement, Steps, check_steps, read_answers
from cotmi_jax.evaluation.confidences import KINDS, Confidences, closed_set_confidences
from cotmi_jax.evaluation.label_scores import is_unparsable
from cotmi_jax.evaluation.ranking import ranked_hit
from cotmi_jax.evaluation.recalibration import fit_score_temperature, log_softmax
from cotmi_jax.evaluation.scores import Prediction


class Sums(NamedTuple):
    """By example, sums whose ratio over all examples is the measure; a count is 0 where an example has no value."""

    total_N: np.ndarray
    count_N: np.ndarray


def _of(values: Sequence[float | bool | None], reason: str) -> Sums:
    """Of a mean over the examples that have a value, the others None."""
    known_N = np.array([value is not None for value in values])
    if not known_N.any():
        raise UserError(reason)
    return Sums(np.array([float(value or 0.0) for value in values]), known_N.astype(np.float64))


def accuracy(predictions: Sequence[Prediction]) -> Sums:
    """Whether the label is correct."""
    return _of([each["correct"] for each in predictions], "there are no predictions")


def unparsable(predictions: Sequence[Prediction]) -> Sums:
    """Whether the output holds no label."""
    return _of([is_unparsable(each) for each in predictions], "there are no predictions")


def ranked_accuracy(predictions: Sequence[Prediction]) -> Sums:
    """Whether the candidate with the highest log-probability is gold; one of k with the highest counts 1/k."""
    return _of([ranked_hit(each) for each in predictions], "no example has choices: labels are open")


def loss_of(task: str) -> Callable[[Sequence[Prediction]], Sums]:
    """The loss of the targets of a task by token, in nats, as in metrics.json."""

    def loss(predictions: Sequence[Prediction]) -> Sums:
        if not any("loss" in each for each in predictions):
            raise UserError("predictions.jsonl is of an earlier version, without losses: run evaluate again")
        weight_N = np.array([_weight(each, task) for each in predictions])
        if not weight_N.any():
            raise UserError(f"no example has a target of the task {task}")
        total_N = np.array([each.get("loss", {}).get(task, 0.0) for each in predictions])
        count_N = np.array([each.get("tokens", {}).get(task, 0) for each in predictions], np.float64)
        return Sums(weight_N * total_N, weight_N * count_N)

    return loss


def _weight(prediction: Prediction, task: str) -> float:
    if task not in prediction.get("loss", {}):
        return 0.0
    return prediction.get("loss_weight", {}).get(task, 1.0)


def _candidate_log_p(found: Confidences, temperature: Callable[[np.ndarray, np.ndarray], float]) -> np.ndarray:
    assert found.score_NxC is not None and found.gold_N is not None
    if outside := int((found.gold_N < 0).sum()):
        raise UserError(f"the gold label of {outside} examples is no candidate")
    scale = temperature(found.score_NxC, found.gold_N)
    log_p_N = log_softmax(found.score_NxC / scale)[np.arange(len(found.gold_N)), found.gold_N]
    if not np.isfinite(log_p_N).all():
        raise UserError("infinite: a gold label has probability 0")
    return np.asarray(log_p_N)


def _spread(value_K: np.ndarray, known_N: Sequence[bool]) -> Sums:
    """The values of the known examples at their places."""
    total_N = np.zeros(len(known_N))
    total_N[np.array(known_N, bool)] = value_K
    return Sums(total_N, np.array(known_N, np.float64))


def _has_candidates(predictions: Sequence[Prediction]) -> list[bool]:
    return [len(each.get("candidates") or []) > 1 for each in predictions]


def log_score(predictions: Sequence[Prediction]) -> Sums:
    """Log-probability of gold among the candidates at the temperature that is best for the run, in nats.

    The temperature adds no variance to first order, since the mean is at its maximum there.
    """
    log_p_K = _candidate_log_p(closed_set_confidences(predictions), fit_score_temperature)
    return _spread(log_p_K, _has_candidates(predictions))


def candidate_nll(predictions: Sequence[Prediction]) -> Sums:
    """Negative log-probability of gold among the candidates, in nats."""
    log_p_K = _candidate_log_p(closed_set_confidences(predictions), lambda *_: 1.0)
    return _spread(-log_p_K, _has_candidates(predictions))


def _gaps(kind: str, predictions: Sequence[Prediction]) -> tuple[np.ndarray, list[bool]]:
    """Confidence minus correctness, and which examples have a confidence of this kind."""
    found = KINDS[kind](predictions)
    if kind == "closed_set":
        return found.confidence_N - found.correct_N, _has_candidates(predictions)
    return found.confidence_N - found.correct_N, [each.get("confidence") is not None for each in predictions]


def brier_of(kind: str) -> Callable[[Sequence[Prediction]], Sums]:
    """Squared error of a kind of confidence (confidences.KINDS)."""

    def brier(predictions: Sequence[Prediction]) -> Sums:
        gap_K, known_N = _gaps(kind, predictions)
        return _spread(gap_K**2, known_N)

    return brier


def overconfidence_of(kind: str) -> Callable[[Sequence[Prediction]], Sums]:
    """Confidence minus correctness of a kind of confidence."""
    return lambda predictions: _spread(*_gaps(kind, predictions))


def agreement_of(label: Literal["own", "gold", "no_answer"]) -> Callable[[Sequence[Prediction]], Sums]:
    """Whether the rationale's answer is the student's own label, or gold, or cannot be read."""

    def agrees(predictions: Sequence[Prediction]) -> Sums:
        hits = Agreement.of(read_answers(predictions))
        found = _of(getattr(hits, label), "there are no rationales, or no labels that one could end in")
        if label != "no_answer" and not any(hit is False for hit in hits.no_answer):
            raise UserError("no rationale states an answer that can be read")
        return found

    return agrees


def _steps(predictions: Sequence[Prediction]) -> list[Steps | None]:
    found = [check_steps(each) for each in predictions]
    if not any(found):
        raise UserError("there are no rationales of calculations")
    return found


def true_steps(predictions: Sequence[Prediction]) -> Sums:
    """Steps a + b = c that are true."""
    found = _steps(predictions)
    true_N, all_N = (np.array([of(each) if each else 0.0 for each in found]) for of in (_true, _all))
    if not all_N.any():
        raise UserError("no rationale has a step")
    return Sums(true_N, all_N)


def _true(steps: Steps) -> float:
    return float(sum(steps.true))


def _all(steps: Steps) -> float:
    return float(len(steps.true))


def sound_rationales(predictions: Sequence[Prediction]) -> Sums:
    """Whether a rationale has steps, all of them true and of known operands."""
    return _of([each.sound if each else None for each in _steps(predictions)], "")


def no_steps(predictions: Sequence[Prediction]) -> Sums:
    """Whether a rationale has no step."""
    return _of([not each.true if each else None for each in _steps(predictions)], "")


def empty_rationales(predictions: Sequence[Prediction]) -> Sums:
    """Whether a rationale is empty."""
    texts = [each["predicted_rationale"] for each in predictions]
    return _of([None if text is None else not text.strip() for text in texts], "the student gives no rationales")

"""The confidences of a split's predictions, as arrays: of the generated label, and among the candidates.

Imports no jax.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cotmi_jax.errors import UserError
from cotmi_jax.evaluation.recalibration import tempered_scores
from cotmi_jax.evaluation.scores import Prediction


class Confidences(NamedTuple):
    """Answers, the probability that the student gave to each, and the cluster of the example as a number.

    score_NxC: of closed sets the log-probabilities of the candidates in nats, by decreasing score, −inf where an
    example has fewer; gold_N: the place of the gold label among them, −1 where it is no candidate. None of open sets.
    """

    confidence_N: np.ndarray
    correct_N: np.ndarray
    cluster_N: np.ndarray
    score_NxC: np.ndarray | None = None
    gold_N: np.ndarray | None = None


def cluster_keys(predictions: Sequence[Prediction]) -> list[str]:
    """The cluster of each prediction; one without a cluster is its own."""
    return [each.get("cluster") or each.get("id") or f"row {row}" for row, each in enumerate(predictions)]


def cluster_numbers(predictions: Sequence[Prediction]) -> np.ndarray:
    """The same as numbers from 0."""
    return np.asarray(np.unique(cluster_keys(predictions), return_inverse=True)[1])


def sequence_confidences(predictions: Sequence[Prediction]) -> Confidences:
    """Of the generated labels: the product of the probabilities of their tokens, end of sequence included.

    Raises UserError where no prediction has one.
    """
    known = [each for each in predictions if each.get("confidence") is not None]
    if not known:
        raise UserError("the predictions hold no confidence of a generated label")
    confidence_N = np.array([each["confidence"] for each in known], np.float64)
    return Confidences(confidence_N, np.array([each["correct"] for each in known]), cluster_numbers(known))


def closed_set_confidences(predictions: Sequence[Prediction]) -> Confidences:
    """Of the highest of each example's candidates: its probability among them.

    That candidate is the ranked answer; where several have the highest score, the answer counts as wrong. Raises
    UserError where no example has two candidates.
    """
    known = [each for each in predictions if len(each.get("candidates") or []) > 1]
    if not known:
        raise UserError("the labels are open: no example has candidates")
    score_NxC = np.full((len(known), max(len(each["candidates"]) for each in known)), -np.inf)
    gold_N = np.full(len(known), -1)
    for row, each in enumerate(known):
        ranked = sorted(each["candidates"], key=lambda candidate: -candidate["log_p"])
        score_NxC[row, : len(ranked)] = [candidate["log_p"] for candidate in ranked]
        labels = [candidate["label"].strip() for candidate in ranked]
        if each["label"].strip() in labels:
            gold_N[row] = labels.index(each["label"].strip())
    if not np.isfinite(score_NxC[:, 0]).all():
        raise UserError("an example has no candidate with a finite log-probability")
    is_tied_N = score_NxC[:, 0] == score_NxC[:, 1]
    confidence_N = tempered_scores(score_NxC, 1.0)[:, 0]
    return Confidences(confidence_N, (gold_N == 0) & ~is_tied_N, cluster_numbers(known), score_NxC, gold_N)


# By the name of their part of metrics.json.
KINDS = {"sequence": sequence_confidences, "closed_set": closed_set_confidences}

"""Scores of generated labels: macro-F1, confusion matrix, and outputs that hold no label. Imports no jax."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cotmi_jax.data.labels import evaluate_expression
from cotmi_jax.errors import UserError
from cotmi_jax.evaluation.agreement import MAX_LABELS
from cotmi_jax.evaluation.comparison import cluster_draws
from cotmi_jax.evaluation.confidences import cluster_numbers
from cotmi_jax.evaluation.scores import NotAvailable, Prediction, Score, share_by_cluster

DRAWS = 1000  # of clusters, for intervals
OTHER = "other"  # column of the confusion matrix: outputs that are no label of the set


def find_label_set(predictions: Sequence[Prediction]) -> tuple[str, ...]:
    """The labels that every example can have: its choices where they are the same for all, else the gold labels.

    Raises UserError where the labels are no closed set: calculations, choices that differ by example, one gold label,
    or more than MAX_LABELS.
    """
    choices = {tuple(each.get("choices") or ()) for each in predictions}
    if len(choices) > 1:
        raise UserError("the choices differ by example")
    labels = choices.pop()
    if not labels and any(evaluate_expression(each["label"]) is not None for each in predictions):
        raise UserError("gold labels are calculations, which are compared by value")
    labels = labels or tuple(sorted({each["label"].strip() for each in predictions}))
    if not 2 <= len(labels) <= MAX_LABELS:
        raise UserError(f"{len(labels)} different gold labels: a closed set has 2 to {MAX_LABELS}")
    return tuple(label.strip() for label in labels)


def confusion_matrix(predictions: Sequence[Prediction], labels: Sequence[str]) -> np.ndarray:
    """How often each label was generated for each: [gold, generated], with a last column of other outputs."""
    gold_N, generated_N = _numbers(predictions, labels)
    width = len(labels) + 1
    return np.bincount(gold_N * width + generated_N, minlength=len(labels) * width).reshape(len(labels), width)


def _numbers(predictions: Sequence[Prediction], labels: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the gold and the generated label; len(labels) of an output that is no label."""
    number = {label: index for index, label in enumerate(labels)}
    gold_N = np.array([number.get(each["label"].strip(), -1) for each in predictions])
    if (gold_N < 0).any():
        wrong = predictions[int(np.argmax(gold_N < 0))]
        raise UserError(f"the gold label {wrong['label']!r} of example {wrong['id']} is none of {', '.join(labels)}")
    return gold_N, np.array([number.get(each["predicted_label"].strip(), len(labels)) for each in predictions])


def _f1(hits: np.ndarray, gold: np.ndarray, generated: np.ndarray) -> np.ndarray:
    """2 hits / (gold + generated); 0 of a label that neither has."""
    return np.asarray(2.0 * hits / np.maximum(gold + generated, 1))


def label_table(predictions: Sequence[Prediction], *, draws: int = DRAWS, seed: int = 0) -> dict[str, Any]:
    """The part `labels` of metrics.json: JSON values, or {"not_available": reason} of labels that are no closed set.

    labels; confusion: [gold, generated] with a last column of other outputs; macro_f1: mean of the labels' F1 with its
    interval; per_label: n (gold), generated, precision, recall, f1 and its interval. Intervals are the 95% range over
    resampled clusters.
    """
    try:
        labels = find_label_set(predictions)
        gold_N, generated_N = _numbers(predictions, labels)
    except UserError as error:
        return {"not_available": str(error)}
    cluster_N, size = cluster_numbers(predictions), len(labels)
    clusters = int(cluster_N.max()) + 1
    one_hot = np.eye(size + 1)
    gold_NxL, generated_NxL = one_hot[gold_N][:, :size], one_hot[generated_N][:, :size]
    counts_3xGxL = np.zeros((3, clusters, size))
    for count_GxL, value_NxL in zip(counts_3xGxL, (gold_NxL * generated_NxL, gold_NxL, generated_NxL), strict=True):
        np.add.at(count_GxL, cluster_N, value_NxL)
    hits_L, gold_L, made_L = counts_3xGxL.sum(axis=1)
    drawn_DxL = _f1(*(cluster_draws(clusters, draws, seed) @ counts_3xGxL))
    low_L, high_L = np.quantile(drawn_DxL, (0.025, 0.975), axis=0)
    low, high = np.quantile(drawn_DxL.mean(axis=1), (0.025, 0.975))
    f1_L = _f1(hits_L, gold_L, made_L)
    one = clusters < 2  # of which a bootstrap says nothing
    return {
        "labels": list(labels),
        "confusion": confusion_matrix(predictions, labels).tolist(),
        "macro_f1": Score(value=float(f1_L.mean()), interval=None if one else (float(low), float(high)), n=len(gold_N)),
        "per_label": [
            {
                "label": label,
                "n": int(gold_L[i]),
                "generated": int(made_L[i]),
                "precision": float(hits_L[i] / made_L[i]) if made_L[i] else None,
                "recall": float(hits_L[i] / gold_L[i]) if gold_L[i] else None,
                "f1": float(f1_L[i]),
                "interval": None if one else [float(low_L[i]), float(high_L[i])],
            }
            for i, label in enumerate(labels)
        ],
    }


def is_unparsable(prediction: Prediction) -> bool:
    """Whether an output holds no label: it is empty, no choice of its example, or no calculation where gold is one."""
    label = prediction["predicted_label"].strip()
    if choices := prediction.get("choices"):
        return label not in [choice.strip() for choice in choices]
    if evaluate_expression(prediction["label"]) is not None:
        return evaluate_expression(label) is None
    return not label


def label_scores(predictions: Sequence[Prediction]) -> dict[str, Score | NotAvailable]:
    """unparsable: share of outputs without a label; label_macro_f1: of a closed set, the mean of the labels' F1."""
    clusters = cluster_numbers(predictions).tolist()
    table = label_table(predictions)
    f1 = NotAvailable(not_available=table["not_available"]) if "not_available" in table else table["macro_f1"]
    return {"unparsable": share_by_cluster(map(is_unparsable, predictions), clusters), "label_macro_f1": f1}

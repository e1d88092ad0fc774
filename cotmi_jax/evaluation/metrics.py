"""Accuracy of predicted labels and how far it can be trusted."""

import math
import statistics
from collections.abc import Sequence
from typing import TypedDict


class Summary(TypedDict):
    """Accuracy over n examples as a share in [0, 1], and its 95% interval."""

    accuracy: float
    interval: tuple[float, float]
    n: int


def wilson_interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """The score interval of a share: all shares p with |correct/total − p| ≤ z √(p(1−p)/total) (Wilson 1927).

    Unlike the normal approximation it stays within [0, 1] and has a width where all or none are correct.

    Raises:
      ValueError: no examples, correct outside 0..total, or confidence outside (0, 1).
    """
    if total <= 0:
        raise ValueError(f"an interval needs at least one example, total = {total}")
    if not 0 <= correct <= total:
        raise ValueError(f"correct = {correct} is outside 0..{total}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence = {confidence} is outside (0, 1)")
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    middle = 2 * correct + z * z
    half_width = z * math.sqrt(z * z + 4 * correct * (total - correct) / total)
    scale = 2 * (total + z * z)
    return max(0.0, (middle - half_width) / scale), min(1.0, (middle + half_width) / scale)


def summarize(correct: Sequence[bool]) -> Summary:
    """Accuracy, its 95% Wilson interval and the number of examples.

    Raises:
      ValueError: no examples.
    """
    n, hits = len(correct), sum(correct)
    return Summary(interval=wilson_interval(hits, n), accuracy=hits / n, n=n)

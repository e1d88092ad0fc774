"""What a student answered, values with their 95% intervals, and the intervals of shares. Imports no jax."""

import math
import statistics
from collections.abc import Hashable, Iterable, Sequence
from typing import NotRequired, TypedDict, final


class Candidate(TypedDict):
    """A label that an example can have, and its log-probability in nats, summed over its tokens and the eos."""

    label: str
    log_p: float


class Prediction(TypedDict):
    """What a student answers to one example: a line of predictions.jsonl.

    Files of earlier versions lack the fields that are not required.
    """

    id: str
    input: str
    label: str  # gold
    predicted_label: str  # "": the output holds none
    correct: bool  # by text or by value, as the set's labels are compared
    teacher_label: str | None
    teacher_rationale: str | None
    predicted_rationale: str | None  # None: the objective teaches none, or none was generated
    cluster: NotRequired[str]  # examples that depend on each other have one in common; else the id
    choices: NotRequired[list[str]]  # the labels that the example can have; []: they are open
    # Probability of the generated label, the product of those of its tokens with eos; None: not asked for, or no label.
    confidence: NotRequired[float | None]
    vote_share: NotRequired[float | None]  # of sampled outputs, those with the label; None: there was one output
    candidates: NotRequired[list[Candidate]]  # choices by decreasing log_p; []: not asked for, or labels are open
    # By task, of the gold target under teacher forcing: nats, summed over its tokens with eos, and their number. A task
    # of which the example has no target is left out: a rationale that it lacks.
    loss: NotRequired[dict[str, float]]
    tokens: NotRequired[dict[str, int]]
    loss_weight: NotRequired[dict[str, float]]  # of its rationale in the losses of metrics.json; absent: 1


@final
class Score(TypedDict):
    """A value over n examples and its 95% interval; None: the metric states none."""

    value: float
    interval: tuple[float, float] | None
    n: int
    quartiles: NotRequired[tuple[float, float, float]]  # of the examples' values, where the value is their mean
    settings: NotRequired[str]  # what the value depends on, such as the signature of BLEU


@final
class NotAvailable(TypedDict):
    """In place of a Score: the reason why a value cannot be had."""

    not_available: str


def wilson(share: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """The score interval of a share of n: all p with |share − p| ≤ z √(p(1−p)/n) (Wilson 1927).

    Unlike the normal approximation it stays within [0, 1] and has a positive width where the share is 0 or 1. n may be
    an effective number of independent observations, which is no integer.
    """
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    center = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = ((center + sign * half) / (1 + z * z / n) for sign in (-1, 1))
    return (low if share > 0 else 0.0), (high if share < 1 else 1.0)  # exact where rounding is not


def wilson_interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of `wilson` for a count.

    Raises:
      ValueError: no examples, correct outside 0..total, or confidence outside (0, 1).
    """
    if total <= 0:
        raise ValueError(f"an interval needs at least one example, total = {total}")
    if not 0 <= correct <= total:
        raise ValueError(f"correct = {correct} is outside 0..{total}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence = {confidence} is outside (0, 1)")
    return wilson(correct / total, total, confidence)


def share(hits: Sequence[bool]) -> Score:
    """The fraction of hits with its Wilson interval. Raises ValueError for no examples."""
    n, count = len(hits), sum(hits)
    interval = wilson_interval(count, n)
    return Score(value=count / n, interval=interval, n=n)


def clustered_share(hits: Sequence[float], totals: Sequence[int]) -> Score:
    """Hits of all clusters / totals of all clusters, with an interval for clusters that are independent of each other.

    The variance is that of a ratio estimate (Cochran 1977, eq. 6.9); the interval is Wilson's for the number of
    independent observations with that variance, but for no more than there are, and of a share of 0 or 1, whose
    variance says nothing, for the number of clusters. n: the sum of totals.

    Raises:
      ValueError: totals sum to 0.
    """
    pairs = [(hit, total) for hit, total in zip(hits, totals, strict=True) if total]
    n, clusters = sum(total for _, total in pairs), len(pairs)
    if not n:
        raise ValueError("a share needs at least one observation")
    value = sum(hit for hit, _ in pairs) / n
    independent = float(clusters)
    if clusters > 1 and 0 < value < 1:
        squares = sum((hit - value * total) ** 2 for hit, total in pairs)
        variance = squares * clusters / (clusters - 1) / n**2
        independent = min(float(n), value * (1 - value) / variance) if variance else float(n)
    return Score(value=value, interval=wilson(value, independent), n=n)


def share_by_cluster(hits: Iterable[bool], clusters: Iterable[Hashable]) -> Score:
    """The fraction of hits: as `share` where every example is a cluster of its own, else as `clustered_share`."""
    hits_of: dict[Hashable, list[bool]] = {}
    for hit, cluster in zip(hits, clusters, strict=True):
        hits_of.setdefault(cluster, []).append(bool(hit))
    if all(len(each) == 1 for each in hits_of.values()):
        return share([each[0] for each in hits_of.values()])
    return clustered_share([sum(each) for each in hits_of.values()], [len(each) for each in hits_of.values()])

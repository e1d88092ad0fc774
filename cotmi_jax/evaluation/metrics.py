"""Metrics of a student's answers: label accuracy and the registry of a user's own. Imports no jax."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TypedDict

from cotmi_jax.errors import UserError, unknown_name


class Prediction(TypedDict):
    """What a student answers to one example: a line of predictions.jsonl."""

    id: str
    input: str
    label: str  # gold
    predicted_label: str  # "": the output holds none
    correct: bool  # by text or by value, as the set's labels are compared
    teacher_label: str | None
    teacher_rationale: str | None
    predicted_rationale: str | None  # None: the objective teaches none, or none was generated


class Score(TypedDict):
    """A value over n examples and its 95% interval; None: the metric states none."""

    value: float
    interval: tuple[float, float] | None
    n: int


class Summary(TypedDict):
    """Accuracy over n examples as a fraction in [0, 1], and its 95% interval."""

    accuracy: float
    interval: tuple[float, float]
    n: int


MetricFunction = Callable[[Sequence[Prediction]], Mapping[str, Score]]


@dataclasses.dataclass(frozen=True)
class Metric:
    """A function from the predictions of a split to values by name; an undefined value is left out."""

    function: MetricFunction
    reads_rationales: bool = False  # evaluations within training generate labels only and leave such a metric out


def wilson_interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """The score interval of a proportion: all p with |correct/total − p| ≤ z √(p(1−p)/total) (Wilson 1927).

    Unlike the normal approximation it stays within [0, 1] and has a positive width where all or none are correct.

    Raises:
      ValueError: no examples, correct outside 0..total, or confidence outside (0, 1).
    """
    from scipy import stats  # takes 0.5 s to import

    if total <= 0:
        raise ValueError(f"an interval needs at least one example, total = {total}")
    if not 0 <= correct <= total:
        raise ValueError(f"correct = {correct} is outside 0..{total}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence = {confidence} is outside (0, 1)")
    found = stats.binomtest(correct, total).proportion_ci(confidence, method="wilson")
    return float(found.low), float(found.high)


def summarize(correct: Sequence[bool]) -> Summary:
    """Accuracy, its 95% Wilson interval and the number of examples.

    Raises:
      ValueError: no examples.
    """
    n, hits = len(correct), sum(correct)
    return Summary(interval=wilson_interval(hits, n), accuracy=hits / n, n=n)


def _accuracy(predictions: Sequence[Prediction]) -> dict[str, Score]:
    found = summarize([prediction["correct"] for prediction in predictions])
    return {"accuracy": Score(value=found["accuracy"], interval=found["interval"], n=found["n"])}


METRICS: dict[str, Metric] = {"accuracy": Metric(_accuracy)}
_BUILT_IN = frozenset(METRICS)


def register_metric(name: str, *, reads_rationales: bool = False) -> Callable[[MetricFunction], MetricFunction]:
    """Decorator: make a metric available to config.eval.metrics and evaluate --metrics.

    It replaces an earlier one that was registered as `name`. The keys of the mapping that the function returns name its
    values in metrics.json, in the terminal's table and, as valid/KEY, in the metrics of training.

    Raises:
      UserError: a built-in metric has that name.
    """
    if name in _BUILT_IN:
        raise UserError(f"metric {name!r} is built in: register yours under another name")

    def register(function: MetricFunction) -> MetricFunction:
        METRICS[name] = Metric(function, reads_rationales)
        return function

    return register


def parse_metrics(names: str) -> tuple[str, ...]:
    """Names separated by commas, after accuracy, which is always measured: it decides which checkpoint is the best.

    Raises:
      UserError: a name that is not registered.
    """
    chosen = tuple(dict.fromkeys(("accuracy", *(name.strip() for name in names.split(",") if name.strip()))))
    unknown = [name for name in chosen if name not in METRICS]
    if unknown:
        raise unknown_name(f"unknown metric {', '.join(map(repr, unknown))}", METRICS)
    return chosen


def measure(names: Sequence[str], predictions: Sequence[Prediction]) -> dict[str, Score]:
    """The values of the metrics, in order.

    Raises:
      UserError: two metrics give values of one name.
    """
    scores: dict[str, Score] = {}
    for name in names:
        found = METRICS[name].function(predictions)
        if twice := found.keys() & scores.keys():
            raise UserError(
                f"metric {name!r} gives {', '.join(sorted(twice))}, as another metric does: rename its values"
            )
        scores |= found
    return scores

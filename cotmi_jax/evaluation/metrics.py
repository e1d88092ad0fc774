"""Metrics of a student's answers: label accuracy, what its rationales are worth, and a registry. Imports no jax."""

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple, TypedDict, TypeVar

from cotmi_jax.errors import UserError, unknown_name
from cotmi_jax.evaluation import covariation, interventions, simulatability
from cotmi_jax.evaluation.agreement import agreement, steps
from cotmi_jax.evaluation.calibration_report import calibration_scores, log_score
from cotmi_jax.evaluation.confidences import cluster_keys
from cotmi_jax.evaluation.label_scores import label_scores
from cotmi_jax.evaluation.overlap import rationale_overlap
from cotmi_jax.evaluation.probe import Probe
from cotmi_jax.evaluation.ranking import ranked_accuracy
from cotmi_jax.evaluation.scores import NotAvailable, Prediction, Score, share_by_cluster


class Summary(TypedDict):
    """Accuracy over n examples as a fraction in [0, 1], and its 95% interval."""

    accuracy: float
    interval: tuple[float, float]
    n: int


AnyFunction = TypeVar("AnyFunction", bound=Callable[..., Mapping[str, Score | NotAvailable]])


@dataclasses.dataclass(frozen=True)
class Metric:
    """A function from the predictions of a split, or from a Probe, to values by name.

    A value that the data does not define is left out; for one that cannot be had here, such as for a package that is
    not installed, stands its reason.
    """

    function: Callable[..., Mapping[str, Score | NotAvailable]]  # of predictions or of a Probe, and of its argument
    reads_rationales: bool = False  # evaluations within training generate labels only and leave such a metric out
    argument: str = ""  # what the function takes as its second argument, from "name:ARGUMENT"; "": nothing
    asks_student: bool = False  # whether its function takes a Probe; training leaves such a metric out
    cost: str = ""  # of one that takes long, which evaluate prints before it starts
    reads_confidences: bool = False  # of labels and candidates, which evaluations within training score for it only


def summarize(correct: Sequence[bool], clusters: Sequence[Hashable] | None = None) -> Summary:
    """Accuracy, its 95% interval and the number of examples.

    The interval is Wilson's; where examples share clusters, for the number of independent answers with the variance
    between clusters.

    Raises:
      ValueError: no examples.
    """
    found = share_by_cluster(correct, range(len(correct)) if clusters is None else clusters)
    assert found["interval"] is not None  # of a share there is always one
    return Summary(interval=found["interval"], accuracy=found["value"], n=found["n"])


def _accuracy(predictions: Sequence[Prediction]) -> dict[str, Score]:
    correct = [prediction["correct"] for prediction in predictions]
    found = summarize(correct, cluster_keys(predictions))
    return {"accuracy": Score(value=found["accuracy"], interval=found["interval"], n=found["n"])}


METRICS: dict[str, Metric] = {
    "accuracy": Metric(_accuracy),
    "ranked_accuracy": Metric(ranked_accuracy, reads_confidences=True),
    "label_scores": Metric(label_scores),
    "calibration": Metric(calibration_scores, reads_confidences=True),
    "log_score": Metric(log_score, reads_confidences=True),
    "agreement": Metric(agreement, reads_rationales=True),
    "steps": Metric(steps, reads_rationales=True),
    "rationale_overlap": Metric(rationale_overlap, reads_rationales=True, argument="an encoder of sentences"),
    "covariation": Metric(covariation.covariation, asks_student=True, cost=covariation.COST),
    "interventions": Metric(interventions.interventions, asks_student=True, cost=interventions.COST),
    "simulatability": Metric(
        simulatability.simulatability, asks_student=True, argument="steps of a simulator", cost=simulatability.COST
    ),
}
_BUILT_IN = frozenset(METRICS)
# The default besides config.eval.metrics where rationales are generated: in training, and of evaluate.
OF_RATIONALES = ("agreement", "steps")
BY_DEFAULT = (*OF_RATIONALES, "rationale_overlap")
OF_CHOICES = ("ranked_accuracy",)  # where examples have choices
# The default of evaluate for all students.
OF_LABELS = ("label_scores", "calibration")


def register_metric(
    name: str,
    *,
    reads_rationales: bool = False,
    reads_confidences: bool = False,
    asks_student: bool = False,
    cost: str = "",
) -> Callable[[AnyFunction], AnyFunction]:
    """Decorator: make a metric available to config.eval.metrics and evaluate --metrics.

    `reads_confidences`: of labels and candidates, which training then scores. `asks_student`: the function takes a
    Probe in place of predictions. `cost`: printed before it starts. The metric replaces an earlier one that was
    registered as `name`. The keys of the mapping that the function returns name its values in metrics.json, in the
    terminal's table and, as valid/KEY, in the metrics of training.

    Raises:
      UserError: a built-in metric has that name.
    """
    if name in _BUILT_IN:
        raise UserError(f"metric {name!r} is built in: register yours under another name")

    def register(function: AnyFunction) -> AnyFunction:
        METRICS[name] = Metric(
            function,
            reads_rationales,
            reads_confidences=reads_confidences,
            asks_student=asks_student,
            cost=cost,
        )
        return function

    return register


def parse_metrics(names: str) -> tuple[str, ...]:
    """Names separated by commas, after accuracy, which is always measured: it decides which checkpoint is the best.

    A name can have an argument, as in rationale_overlap:FacebookAI/roberta-base.

    Raises:
      UserError: a name that is not registered, or an argument of a metric that takes none.
    """
    chosen = tuple(dict.fromkeys(("accuracy", *(name.strip() for name in names.split(",") if name.strip()))))
    unknown = [name for name in chosen if name.partition(":")[0] not in METRICS]
    if unknown:
        raise unknown_name(f"unknown metric {', '.join(map(repr, unknown))}", METRICS)
    for name, _, argument in (each.partition(":") for each in chosen):
        if argument and not METRICS[name].argument:
            raise UserError(f"metric {name!r} takes no argument, and {argument!r} is given: leave it out")
    return chosen


def find_metric(name: str) -> Metric:
    """The metric of a name that parse_metrics returned."""
    return METRICS[name.partition(":")[0]]


class Measured(NamedTuple):
    """The values of metrics by name, and by name the reasons why others are not available."""

    scores: dict[str, Score]
    not_available: dict[str, str]


def measure(
    names: Sequence[str],
    predictions: Sequence[Prediction],
    probe: Probe | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> Measured:
    """The values of the metrics, in order. `probe`: for those that ask the student; `say` gets a line on costs.

    Raises:
      UserError: two metrics give values of one name, or one asks the student and there is no probe.
    """
    scores: dict[str, Score] = {}
    reasons: dict[str, str] = {}
    for name in names:
        metric, argument = find_metric(name), name.partition(":")[2]
        if metric.asks_student and probe is None:
            raise UserError(f"metric {name!r} asks the student, which is known to evaluate only: measure it there")
        if metric.cost:
            say(f"{name}: {metric.cost}")
        found = metric.function(probe if metric.asks_student else predictions, *[argument] * bool(argument))
        if twice := found.keys() & (scores.keys() | reasons.keys()):
            raise UserError(
                f"metric {name!r} gives {', '.join(sorted(twice))}, as another metric does: rename its values"
            )
        for key, value in found.items():
            if "not_available" in value:
                reasons[key] = value["not_available"]
            else:
                scores[key] = value
    return Measured(scores, reasons)

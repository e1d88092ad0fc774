"""Every measure of an evaluation: its name, unit and direction, and where its value comes from. Imports no jax.

One table, MEASURES, for comparisons, for the terminal and for pages. A measure of examples is computed from
predictions, so that its uncertainty over examples is known; one of a split as a whole is read from metrics.json.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from cotmi_jax.data.tasks import EXPLAIN, PREDICT
from cotmi_jax.errors import UserError, did_you_mean
from cotmi_jax.evaluation import by_example
from cotmi_jax.evaluation.by_example import Sums
from cotmi_jax.evaluation.scores import Prediction

SHARE = "%"  # unit of fractions, which are shown in percent and whose differences are points


# By how names of values begin; others are named as their metric.
_METRIC_OF = {
    **dict.fromkeys(("sequence_", "closed_set_", "candidate_nll"), "calibration"),
    **dict.fromkeys(("label_macro_f1", "unparsable"), "label_scores"),
    **dict.fromkeys(("agreement", "no_answer"), "agreement"),
    **dict.fromkeys(("true_steps", "sound_rationales", "no_steps"), "steps"),
    **dict.fromkeys(
        ("bleu", "rouge_l", "cosine", "rationale_words", "copied_", "empty_rationales"), "rationale_overlap"
    ),
    "changed_": "interventions",
    **dict.fromkeys(("simulated_", "v_information", "las"), "simulatability"),
    **dict.fromkeys(("covariation_", "invariance_"), "covariation"),
}


@dataclasses.dataclass(frozen=True)
class Measure:
    """name: in metrics.json where it stands there under `metrics`; text: what tables call it.

    unit: SHARE, nats, or "" of a number without one. better: which values are; None: neither, as of a length. digits:
    after the decimal point, as shown. margin: difference, in percentage points of a SHARE, below which two methods are
    equivalent unless another is given. path: the place of the value in metrics.json. of_examples: its sums by example;
    None of a measure of a split as a whole. same_targets: whether it compares losses, which is possible only on the
    same tokens.
    """

    name: str
    text: str
    unit: str
    better: Literal["higher", "lower"] | None
    digits: int
    margin: float
    path: tuple[str, ...]
    of_examples: Callable[[Sequence[Prediction]], Sums] | None = None
    same_targets: bool = False

    @property
    def factor(self) -> float:
        """By which a value is multiplied to be shown."""
        return 100.0 if self.unit == SHARE else 1.0

    @property
    def difference_unit(self) -> str:
        """Of differences as shown."""
        return "points" if self.unit == SHARE else self.unit

    def show(self, value: float, *, signed: bool = False) -> str:
        """A value or a difference in its unit, which is not appended."""
        return f"{self.factor * value:{'+' if signed else ''}.{self.digits}f}"

    def of_run(self, metrics: Mapping[str, Any]) -> float:
        """The value in the metrics.json of a run. Raises UserError with the reason where there is none."""
        found: Any = metrics
        for key in self.path:
            if isinstance(found, Mapping) and "not_available" in found and key not in found:
                break
            found = found.get(key) if isinstance(found, Mapping) else None
        if isinstance(found, Mapping) and isinstance(found.get("not_available"), str):
            raise UserError(found["not_available"])
        reasons = metrics.get("not_available", {})
        for name in (self.name, self.metric):
            if isinstance(reason := reasons.get(name), str):
                raise UserError(reason)
        if not isinstance(found, int | float) or isinstance(found, bool):
            remedy = f": evaluate with --metrics={self.metric}" if self.metric else ""
            raise UserError(f"metrics.json has no {'.'.join(self.path)}{remedy}")
        return float(found)

    @property
    def metric(self) -> str:
        """The metric (metrics.METRICS) that gives the value; "" of a loss."""
        if self.path[0] == "loss":
            return ""
        return next((metric for start, metric in _METRIC_OF.items() if self.name.startswith(start)), self.name)


def _share(name: str, text: str, better: Literal["higher", "lower"] | None = None, **more: Any) -> Measure:
    return Measure(name, text, SHARE, better, 1, 1.0, **{"path": ("metrics", name, "value")} | more)


def _number(
    name: str, text: str, unit: str, better: Literal["higher", "lower"] | None, margin: float, **more: Any
) -> Measure:
    digits = more.pop("digits", 3)
    return Measure(name, text, unit, better, digits, margin, **{"path": ("metrics", name, "value")} | more)


def _labels_and_losses() -> list[Measure]:
    loss = {"same_targets": True}
    return [
        _share("accuracy", "label accuracy", "higher", path=("accuracy",), of_examples=by_example.accuracy),
        _share("label_macro_f1", "macro-F1 of labels", "higher"),
        _share("unparsable", "outputs that hold no label", "lower", of_examples=by_example.unparsable),
        _share(
            "ranked_accuracy",
            "accuracy of the most probable choice",
            "higher",
            of_examples=by_example.ranked_accuracy,
        ),
        _number(
            "label_loss",
            "token loss, label",
            "nats",
            "lower",
            0.01,
            path=("loss", PREDICT),
            of_examples=by_example.loss_of(PREDICT),
            **loss,
        ),
        _number(
            "rationale_loss",
            "token loss, rationale",
            "nats",
            "lower",
            0.01,
            path=("loss", EXPLAIN),
            of_examples=by_example.loss_of(EXPLAIN),
            **loss,
        ),
        _number("mi", "mutual-information term", "nats", None, 0.01, path=("loss", "mi")),
        _share("label_token_accuracy", "token accuracy, label", "higher", path=("loss", f"{PREDICT}_token_accuracy")),
        _share(
            "rationale_token_accuracy",
            "token accuracy, rationale",
            "higher",
            path=("loss", f"{EXPLAIN}_token_accuracy"),
        ),
    ]


def _confidences() -> list[Measure]:
    found = [
        _number(
            "log_score",
            "log-probability of gold, tempered",
            "nats",
            "higher",
            0.01,
            of_examples=by_example.log_score,
        ),
        _number(
            "candidate_nll",
            "negative log-probability of gold among the choices",
            "nats",
            "lower",
            0.01,
            path=("calibration", "closed_set", "candidate_nll", "value"),
            of_examples=by_example.candidate_nll,
        ),
    ]
    for kind, of in (("sequence", "in the label"), ("closed_set", "among the choices")):
        part = ("calibration", kind)
        found += [
            _number(
                f"{kind}_brier",
                f"Brier score of confidence {of}",
                "",
                "lower",
                0.01,
                of_examples=by_example.brier_of(kind),
            ),
            _share(
                f"{kind}_overconfidence",
                f"confidence {of} minus accuracy",
                of_examples=by_example.overconfidence_of(kind),
            ),
            _number(
                f"{kind}_nll",
                f"negative log-likelihood of correctness, confidence {of}",
                "nats",
                "lower",
                0.01,
                path=(*part, "nll", "value"),
            ),
            _number(
                f"{kind}_auroc",
                f"AUROC of confidence {of}",
                "",
                "higher",
                0.01,
                path=(*part, "auroc", "value"),
            ),
            _number(
                f"{kind}_aurc",
                f"area under risk–coverage, confidence {of}",
                "",
                "lower",
                0.01,
                path=(*part, "aurc", "value"),
            ),
        ]
        for error, text in (
            ("smooth_ece", "smooth calibration error"),
            ("debiased_ece", "debiased calibration error"),
            ("ece_15", "ECE of 15 bins"),
            ("ece_100", "ECE of 100 bins"),
        ):
            place = (*part, "errors", error, "value")
            found.append(_number(f"{kind}_{error}", f"{text}, confidence {of}", "", "lower", 0.01, path=place))
    return found


def _rationales() -> list[Measure]:
    agreement = by_example.agreement_of
    return [
        _share("agreement", "rationales that end in the student's own label", "higher", of_examples=agreement("own")),
        _share("agreement_gold", "rationales that end in the gold label", "higher", of_examples=agreement("gold")),
        _share("agreement_permuted", "rationales that end in another example's label"),
        _share("no_answer", "rationales without a readable answer", "lower", of_examples=agreement("no_answer")),
        _share("true_steps", "steps a + b = c that are true", "higher", of_examples=by_example.true_steps),
        _share(
            "sound_rationales", "rationales with sound steps only", "higher", of_examples=by_example.sound_rationales
        ),
        _share("no_steps", "rationales without a step", "lower", of_examples=by_example.no_steps),
        _number("bleu", "BLEU with the teacher's rationale", "", "higher", 1.0, digits=1),
        _number("rouge_l", "ROUGE-L with the teacher's rationale", "", "higher", 0.01),
        _number("cosine", "cosine of embeddings with the teacher's", "", "higher", 0.01),
        _number("rationale_words", "words of a rationale", "", None, 1.0, digits=1),
        _share("copied_1grams", "words of a rationale that are in its input"),
        _share("copied_4grams", "4-grams of a rationale that are in its input"),
        _share("empty_rationales", "empty rationales", "lower", of_examples=by_example.empty_rationales),
    ]


def _faithfulness() -> list[Measure]:
    found = [_share("changed_control", "labels that change after the same rationale")]
    found += [
        _share(f"changed_early_{share}", f"labels that change after {share}% of the rationale")
        for share in (0, 25, 50, 75)
    ]
    found += [
        _share("changed_filler", "labels that change after dots"),
        _share("changed_mistake", "labels that change after a mistake"),
        _share("simulated_input", "labels simulated from the input alone"),
        _share("simulated_rationale", "labels simulated from the rationale alone"),
        _share("simulated_both", "labels simulated from both"),
        _share("simulated_masked", "labels simulated from the masked rationale alone"),
        _share("simulated_both_masked", "labels simulated from input and masked rationale"),
        _number("v_information", "rationale → label beyond the input", "nats", "higher", 0.05),
        _number("v_information_masked", "rationale → label, label words masked", "nats", "higher", 0.05),
        _number("las", "leakage-adjusted gain in simulated accuracy", "", "higher", 0.01),
        _number("las_masked", "leakage-adjusted gain, label words masked", "", "higher", 0.01),
        _share("covariation_edited", "inputs that a rule could edit"),
    ]
    parts = {"label": "label", "rationale": "rationale's answer", "both": "both"}
    for kind, text, better in (
        ("covariation", "number or fact changed", "higher"),
        ("invariance", "choices exchanged", "lower"),
    ):
        for suffix, what in (("", "changed"), ("_correct", "right both times")):
            for part, name in parts.items():
                direction: Any = "higher" if suffix else better
                found.append(_share(f"{kind}_{part}{suffix}", f"{text}, {name} {what}", direction))
        found.append(_share(f"{kind}_both_by_chance", f"{text}, both changed if independent"))
    return found


MEASURES = {
    measure.name: measure
    for measures in (_labels_and_losses(), _confidences(), _rationales(), _faithfulness())
    for measure in measures
}
ALL = "all"


def parse_measures(names: str) -> tuple[Measure, ...]:
    """Names separated by commas, or ALL. Raises UserError for an unknown one, or none."""
    if names.strip() == ALL:
        return tuple(MEASURES.values())
    chosen = tuple(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    if not chosen:
        raise UserError(f"--metric={names}: give names of measures, or {ALL}")
    for name in chosen:
        if name not in MEASURES:
            remedy = did_you_mean(name, MEASURES) or f": choose of {', '.join(MEASURES)}, or {ALL}"
            raise UserError(f"unknown measure {name!r}{remedy}")
    return tuple(MEASURES[name] for name in chosen)


def markdown() -> str:
    """The table of measures as Markdown, for docs/evaluation.md."""
    lines = ["| measure | | unit | better | margin | from |", "|---|---|---|---|--:|---|"]
    for each in MEASURES.values():
        source = "examples" if each.of_examples is not None else f"`{'.'.join(each.path)}`"
        lines.append(
            f"| `{each.name}` | {each.text} | {each.unit} | {each.better or ''} | {each.margin:g} | {source} |"
        )
    return "\n".join(lines)

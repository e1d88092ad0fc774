"""The report of an annotation: agreement with gold, parse failures, lengths, tokens and cost."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from cotmi_jax.data.example import LabelKind
from cotmi_jax.data.labels import is_correct
from cotmi_jax.evaluation.metrics import Summary, summarize
from cotmi_jax.teacher.consistency import Annotated
from cotmi_jax.teacher.journal import Choice, Records

# The possible outcomes for a rationale, in the order of the report.
OUTCOMES = (
    "consistent",
    "inconsistent_keep",
    "inconsistent_downweight",
    "inconsistent_drop",
    "rationalized",
    "rationalized_drop",
    "duplicate",
    "empty",
)


class Prices(NamedTuple):
    """Dollars per million tokens; None if not known."""

    tokens_in: float | None
    tokens_out: float | None

    def dollars(self, tokens_in: float, tokens_out: float) -> float | None:
        """The cost of so many tokens in dollars; None if a price is not known."""
        if self.tokens_in is None or self.tokens_out is None:
            return None
        return (tokens_in * self.tokens_in + tokens_out * self.tokens_out) / 1e6


@dataclasses.dataclass
class Totals:
    """The number of responses, and the tokens of those whose server counted them."""

    prices: Prices
    responses: int = 0
    uncounted: int = 0
    tokens_in: int = 0
    tokens_out: int = 0

    def add(self, tokens_in: int | None, tokens_out: int | None) -> None:
        """Adds a response."""
        self.responses += 1
        self.uncounted += tokens_in is None or tokens_out is None
        self.tokens_in += tokens_in or 0
        self.tokens_out += tokens_out or 0

    @property
    def cost(self) -> float | None:
        """In dollars; None if a price is not known."""
        return self.prices.dollars(self.tokens_in, self.tokens_out)

    def __str__(self) -> str:
        cost = "" if self.cost is None else f", ${self.cost:.4f}"
        return f"{self.tokens_in} + {self.tokens_out} tokens{cost}"


def journal_totals(records: Records, prices: Prices) -> Totals:
    """The totals of all responses of a journal."""
    totals = Totals(prices)
    for responses in records.values():
        for record in responses:
            totals.add(record.tokens_in, record.tokens_out)
    return totals


class RationaleLengths(NamedTuple):
    """Lengths of the rationales in the output, in words."""

    mean: float
    p95: float
    max: int


class AnnotationReport(NamedTuple):
    """The fields that docs/annotation.md lists. Agreement needs gold labels; cost is in dollars."""

    questions: int
    with_gold: int
    missing: int
    without_label: int
    without_rationale: int
    samples: int
    parse_failures: int
    cut_by_length: int
    agreement_samples: Summary | None
    agreement_majority: Summary | None
    rationales: dict[str, int]
    words: RationaleLengths | None
    model: str
    models: dict[str, int]
    responses: int
    responses_without_count: int
    tokens_in: int
    tokens_out: int
    cost: float | None


def make_report(
    annotated: Sequence[Annotated],
    samples: Sequence[Choice],
    missing: int,
    records: Records,
    model: str,
    kind: LabelKind,
    prices: Prices,
) -> AnnotationReport:
    """The report of a run.

    Args:
      annotated: every question.
      samples: every sample of these questions, with and without hint.
      missing: number of questions with fewer samples than requested.
      records: the journal, whose totals include those of earlier runs.
      model: the model that was requested.
    """
    gold = [(one, one.question.label) for one in annotated if one.question.label is not None and one.answers]
    samples_correct = [_is_correct(answer, label, kind) for one, label in gold for answer in one.answers]
    majority_correct = [_is_correct(one.teacher_label, label, kind) for one, label in gold]
    counts: Counter[str] = sum((one.counts for one in annotated), Counter())
    lengths = [len(rationale.split()) for one in annotated for rationale, _ in one.rationales]
    totals = journal_totals(records, prices)
    return AnnotationReport(
        questions=len(annotated),
        with_gold=sum(one.question.label is not None for one in annotated),
        missing=missing,
        without_label=sum(one.label is None for one in annotated),
        without_rationale=sum(not one.rationales for one in annotated),
        samples=sum(len(one.answers) for one in annotated),
        parse_failures=sum(answer is None for one in annotated for answer in one.answers),
        cut_by_length=sum(sample.finish_reason == "length" for sample in samples),
        agreement_samples=summarize(samples_correct) if samples_correct else None,
        agreement_majority=summarize(majority_correct) if majority_correct else None,
        rationales={outcome: counts[outcome] for outcome in OUTCOMES},
        words=RationaleLengths(float(np.mean(lengths)), float(np.percentile(lengths, 95)), max(lengths))
        if lengths
        else None,
        model=model,
        models=dict(Counter(record.model for responses in records.values() for record in responses)),
        responses=totals.responses,
        responses_without_count=totals.uncounted,
        tokens_in=totals.tokens_in,
        tokens_out=totals.tokens_out,
        cost=totals.cost,
    )


def report_row(report: AnnotationReport) -> dict[str, object]:
    """The report as a JSON object."""
    return report._asdict() | {"words": report.words._asdict() if report.words else None}


def report_lines(report: AnnotationReport) -> list[str]:
    """The report as text for the terminal."""
    cost = "" if report.cost is None else f", ${report.cost:.4f}"
    lines = [
        f"questions   {report.questions}, {report.with_gold} with gold; {report.missing} missing, "
        f"{report.without_label} without label, {report.without_rationale} without rationale",
        f"samples     {report.samples}; {report.parse_failures} without answer, {report.cut_by_length} cut by length",
        f"agreement   samples {_format_accuracy(report.agreement_samples)}; "
        f"majority {_format_accuracy(report.agreement_majority)}",
        "rationales  " + ", ".join(f"{count} {outcome}" for outcome, count in report.rationales.items() if count),
        f"tokens      {report.tokens_in} in, {report.tokens_out} out, {report.responses} responses{cost}",
    ]
    if report.words:
        lines.append(f"words       mean {report.words.mean:.1f}, p95 {report.words.p95:.0f}, max {report.words.max}")
    warnings = response_warnings(report.model, report.models, report.responses_without_count)
    return lines + [f"warning     {warning}" for warning in warnings]


def response_warnings(model: str, models: Mapping[str, int], responses_without_count: int) -> list[str]:
    """Anomalies in the responses to requests for `model`, as text. models: the names in them, with numbers."""
    warnings = []
    if responses_without_count:
        warnings.append(f"{responses_without_count} responses have no token count")
    # For an alias servers report the full name of the version, which begins with the alias.
    if others := sorted(name for name in models if not name.startswith(model)):
        warnings.append(f"requested {model}, but {', '.join(others)} answered")
    elif len(models) > 1:
        warnings.append(f"several versions answered: {', '.join(sorted(models))}")
    return warnings


def _is_correct(answer: str | None, label: str, kind: LabelKind) -> bool:
    return answer is not None and is_correct(answer, label, kind)


def _format_accuracy(summary: Summary | None) -> str:
    if summary is None:
        return "not measured (no gold)"
    low, high = summary["interval"]
    return f"{summary['accuracy']:.4f} [{low:.4f}, {high:.4f}] of {summary['n']}"

"""The label and the weighted rationales of a question, from the teacher's samples."""

import dataclasses
from collections import Counter
from collections.abc import Sequence

from cotmi_jax.data.example import LabelKind, Pair
from cotmi_jax.data.labels import is_correct
from cotmi_jax.teacher.answers import Rule, read_sample
from cotmi_jax.teacher.journal import Choice
from cotmi_jax.teacher.questions import Question


@dataclasses.dataclass(frozen=True)
class Policy:
    """Treatment of rationales whose answer is not the label ("drop", "keep" or "downweight"), and their weights."""

    inconsistent: str
    inconsistent_weight: float
    rationalized_weight: float


@dataclasses.dataclass(frozen=True)
class Annotated:
    """A question with its label and rationales.

    label is the gold label or, without one, the majority answer; None if there is neither. answers has one entry for
    each sample without hint, None if the rule reads no answer. rationales are (text, weight). counts is the number of
    rationales by outcome (report.OUTCOMES). counterfactuals are the answers other than the label, each once, with the
    first rationale that leads to it.
    """

    question: Question
    label: str | None
    teacher_label: str | None
    rationales: tuple[tuple[str, float], ...]
    answers: tuple[str | None, ...]
    counts: Counter[str]
    counterfactuals: tuple[Pair, ...] = ()


def majority(answers: Sequence[str | None], kind: LabelKind) -> str | None:
    """The most frequent answer, on a tie the first to occur; None if there is no answer.

    Self-consistency (Wang et al. 2023, arXiv 2203.11171). Equations with the same value count as the same answer.
    """
    votes: dict[str, int] = {}
    for answer in answers:
        if answer is not None:
            same = next((seen for seen in votes if is_correct(answer, seen, kind)), answer)
            votes[same] = votes.get(same, 0) + 1
    return max(votes, key=votes.__getitem__, default=None)


def agrees(samples: Sequence[Choice], label: str, rule: Rule) -> bool:
    """Whether the answer of any sample is the label."""
    answers = (read_sample(sample, rule)[1] for sample in samples)
    return any(answer is not None and is_correct(answer, label, rule.kind) for answer in answers)


def annotate_question(
    question: Question, samples: Sequence[Choice], hinted: Sequence[Choice], rule: Rule, policy: Policy
) -> Annotated:
    """Filters the rationales of a question by whether their answer is its label.

    A rationale without an answer is inconsistent. Hinted samples, whose request stated the label (rationalization:
    Zelikman et al. 2022, arXiv 2203.14465), are used if their answer is the label and no sample without hint has it.
    Of identical rationales one is kept, with the largest weight. Weights are not added: training alternates between the
    rationales of an example, so a sum would give a question with one rationale more weight than one with several.
    """
    completions = [read_sample(sample, rule) for sample in samples]
    teacher_label = majority([answer for _, answer in completions], rule.kind)
    label = teacher_label if question.label is None else question.label
    counts: Counter[str] = Counter()
    weights: dict[str, float] = {}

    def add(rationale: str, weight: float | None, kept: str, dropped: str) -> None:
        """Adds a rationale (weight None: drops it) and counts it under the outcome `kept` or `dropped`."""
        if not rationale:
            counts["empty"] += 1
        elif weight is None:
            counts[dropped] += 1
        elif rationale in weights:
            counts["duplicate"] += 1
            weights[rationale] = max(weights[rationale], weight)
        else:
            counts[kept] += 1
            weights[rationale] = weight

    def is_label(answer: str | None) -> bool:
        return answer is not None and label is not None and is_correct(answer, label, rule.kind)

    inconsistent_weight = {"drop": None, "keep": 1.0, "downweight": policy.inconsistent_weight}[policy.inconsistent]
    for rationale, answer in completions:
        if is_label(answer):
            add(rationale, 1.0, "consistent", "")
        else:
            add(rationale, inconsistent_weight, f"inconsistent_{policy.inconsistent}", "inconsistent_drop")
    if not any(is_label(answer) for _, answer in completions):
        for rationale, answer in (read_sample(sample, rule) for sample in hinted):
            weight = policy.rationalized_weight if is_label(answer) else None
            add(rationale, weight, "rationalized", "rationalized_drop")
    answers = tuple(answer for _, answer in completions)
    others = () if label is None else _other_answers(completions, label, rule.kind)
    return Annotated(question, label, teacher_label, tuple(weights.items()), answers, counts, others)


def _other_answers(completions: Sequence[tuple[str, str | None]], label: str, kind: LabelKind) -> tuple[Pair, ...]:
    """One pair for each answer other than the label that a rationale leads to, in the order of the samples."""
    found: list[Pair] = []
    for rationale, answer in completions:
        known = (label, *(pair.label for pair in found))
        if rationale and answer is not None and not any(is_correct(answer, other, kind) for other in known):
            found.append(Pair(answer, rationale))
    return tuple(found)

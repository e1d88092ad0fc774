"""From the samples of a question to its answer and its weighted rationales."""

import dataclasses
from collections import Counter
from collections.abc import Sequence

from cotmi_jax.data.example import LabelKind
from cotmi_jax.data.labels import is_correct
from cotmi_jax.teacher.answers import Rule, read_completion
from cotmi_jax.teacher.journal import Choice
from cotmi_jax.teacher.questions import Question


@dataclasses.dataclass(frozen=True)
class Policy:
    """What becomes of rationales whose answer is not the label, and the weights of those that are not the rule."""

    inconsistent: str
    inconsistent_weight: float
    rationalized_weight: float


@dataclasses.dataclass(frozen=True)
class Annotated:
    """A question with what the teacher made of it.

    label is gold or, without gold, the majority answer, and None where there is neither. answers are those of the
    samples that were not given the answer, None where unreadable; counts says what became of each rationale.
    """

    question: Question
    label: str | None
    teacher_label: str | None
    rationales: tuple[tuple[str, float], ...]
    answers: tuple[str | None, ...]
    counts: Counter[str]


def majority(answers: Sequence[str | None], kind: LabelKind) -> str | None:
    """The answer most samples give, the first seen of equals; None where none is readable.

    Self-consistency (Wang et al. 2023, arXiv 2203.11171). Equations count as the same where their values agree.
    """
    votes: dict[str, int] = {}
    for answer in answers:
        if answer is not None:
            same = next((seen for seen in votes if is_correct(answer, seen, kind)), answer)
            votes[same] = votes.get(same, 0) + 1
    return max(votes, key=votes.__getitem__, default=None)


def agrees(samples: Sequence[Choice], label: str, rule: Rule) -> bool:
    """Whether any of the samples gives the label."""
    answers = (read_completion(sample.text, rule)[1] for sample in samples)
    return any(answer is not None and is_correct(answer, label, rule.kind) for answer in answers)


def annotate_question(
    question: Question, samples: Sequence[Choice], hinted: Sequence[Choice], rule: Rule, policy: Policy
) -> Annotated:
    """Filters the rationales of a question by whether their answer is its label.

    A rationale without readable answer is inconsistent. Of samples that were given the answer (hinted: Zelikman et al.
    2022, arXiv 2203.14465) those that arrive at it count, and only where no other sample does. Of identical rationales
    one is kept, with the largest weight: added up, they would make a question with one rationale count for more than
    one with several, between which training alternates.
    """
    read = [read_completion(sample.text, rule) for sample in samples]
    teacher_label = majority([answer for _, answer in read], rule.kind)
    label = teacher_label if question.label is None else question.label
    counts: Counter[str] = Counter()
    weights: dict[str, float] = {}

    def consider(rationale: str, weight: float | None, kept: str, dropped: str) -> None:
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

    other = {"drop": None, "keep": 1.0, "downweight": policy.inconsistent_weight}[policy.inconsistent]
    for rationale, answer in read:
        if is_label(answer):
            consider(rationale, 1.0, "consistent", "")
        else:
            consider(rationale, other, f"inconsistent_{policy.inconsistent}", "inconsistent_drop")
    if not any(is_label(answer) for _, answer in read):
        for rationale, answer in (read_completion(sample.text, rule) for sample in hinted):
            weight = policy.rationalized_weight if is_label(answer) else None
            consider(rationale, weight, "rationalized", "rationalized_drop")
    answers = tuple(answer for _, answer in read)
    return Annotated(question, label, teacher_label, tuple(weights.items()), answers, counts)

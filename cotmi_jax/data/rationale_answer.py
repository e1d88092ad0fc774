"""The answer that a rationale states: its text in the target of the rationale task, and the span of its tokens."""

import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from cotmi_jax.data.example import Example
from cotmi_jax.data.labels import is_correct
from cotmi_jax.data.tasks import ANSWER_MARK
from cotmi_jax.data.vocabulary import Vocabulary

RationaleAnswer = Literal["cut", "keep", "append"]
RATIONALE_ANSWERS: tuple[RationaleAnswer, ...] = ("cut", "keep", "append")
# In place of the start of a span: why a rationale has none.
NO_SPAN, CUT, OTHER_ANSWER = -1, -2, -3
_STATED = re.compile(rf"{re.escape(ANSWER_MARK)}:?\s*(\S(?:[^\n]*[^\s.])?)\.?\s*\Z")


class SpanCount(NamedTuple):
    """Rationales by what became of their answer; found: those that take part in a term on answers."""

    found: int
    no_span: int
    cut: int
    other: int

    def __str__(self) -> str:
        total = max(sum(self), 1)
        return (
            f"{self.found} of {sum(self)} rationales ({self.found / total:.1%}) state the label as their answer; of "
            f"the others, {self.no_span} state none, {self.cut} are cut before its end, {self.other} state another"
        )


class Stated(NamedTuple):
    """A rationale as it is trained on, and the characters text[start:end] of the answer in it; start = end: none."""

    text: str
    start: int
    end: int

    @property
    def answer(self) -> str:
        """The text of the answer, "" if there is none."""
        return self.text[self.start : self.end]


def state_answer(example: Example, how: RationaleAnswer, label: str) -> Stated:
    """The first rationale of an example with its answer, by config.data.rationale_answer.

    "cut" leaves the rationale as it is. "keep" appends the sentence in which the teacher stated its answer,
    `example.answer_text`. "append" appends "So the answer is X", where X is the teacher's label, written as `label`,
    the label that is trained on, if both have the same value: as equations, (6 * 7) and ( 6.0 * 7.0 ). A rationale that
    ends in "So the answer is X." already, as a user's may, gets nothing. No full stop follows an answer: vocabularies
    have pieces such as ").", with which the tokens of the answer would not be those of the label.
    """
    text = example.rationale.rstrip()
    if how == "cut" or not text:
        return Stated(example.rationale, 0, 0)
    if how == "keep" and example.answer_text and example.teacher_label:
        text = f"{text} {example.answer_text}"
        return Stated(text, len(text) - len(example.teacher_label), len(text))
    last = text.rfind(ANSWER_MARK)
    written = _STATED.match(text, last) if last >= 0 else None
    if written is not None:
        return Stated(text[: written.end(1)], *written.span(1))
    if how == "append" and example.teacher_label:
        answer = label if is_correct(example.teacher_label, label, example.kind) else example.teacher_label
        text = f"{text} {ANSWER_MARK} {answer}"
        return Stated(text, len(text) - len(answer), len(text))
    return Stated(example.rationale, 0, 0)


def count_spans(starts: np.ndarray) -> SpanCount:
    """Counts of what find_spans returns."""
    reasons = (int((starts == reason).sum()) for reason in (NO_SPAN, CUT, OTHER_ANSWER))
    return SpanCount(int((starts >= 0).sum()), *reasons)


def format_span_counts(counts: Mapping[str, SpanCount]) -> list[str]:
    """The counts of each split as one text, in a list; no text if there are none."""
    lines = [f"  {split}: {count}" for split, count in counts.items()]
    return ["\n".join(["answers of rationales, which mi.estimator consistency compares", *lines])] if lines else []


def find_spans(
    vocabulary: Vocabulary,
    stated: Sequence[Stated],
    targets: Sequence[str],
    target_ids: Sequence[Sequence[int]],
    label_ids: Sequence[Sequence[int]],
    limit: int,
) -> np.ndarray:
    """First token of the answer in the target of each rationale, int32, where its tokens are those of the label.

    The span is as long as the label. Else NO_SPAN: no answer is stated, or the tokens of the target do not begin anew
    at the answer; CUT: the target, or the label, is cut before its end; OTHER_ANSWER: it has other tokens than the
    label.

    targets: the texts of the targets, which hold those of `stated`. target_ids, label_ids: tokens of the targets and of
      the labels, without eos and not cut to limit, the maximum number of tokens of a target including eos.
    """
    starts = np.full(len(stated), NO_SPAN, np.int32)
    rows = [row for row, each in enumerate(stated) if each.answer and each.text in targets[row]]
    answers = vocabulary.encode([stated[row].answer for row in rows])
    befores = [
        targets[row][: targets[row].index(stated[row].text) + stated[row].start]  # all before the answer
        for row in rows
    ]
    # The space before an answer is part of its first token, or a token of its own, as in a vocabulary of bytes.
    for prefixes in (vocabulary.encode(befores), vocabulary.encode([before.rstrip() for before in befores])):
        for row, answer, prefix in zip(rows, answers, prefixes, strict=True):
            start, ids = len(prefix), list(target_ids[row])
            if starts[row] != NO_SPAN or ids[:start] != prefix or ids[start : start + len(answer)] != answer:
                continue
            if answer != list(label_ids[row]):
                starts[row] = OTHER_ANSWER
            elif start + len(answer) >= limit:
                starts[row] = CUT
            else:
                starts[row] = start
    return starts

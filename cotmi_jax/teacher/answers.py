"""The rules that split a completion into rationale and answer: those of the released sets, and general ones."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from cotmi_jax.data.example import LabelKind
from cotmi_jax.data.labels import evaluate_expression
from cotmi_jax.data.sources.released_sets import RELEASED, ParseCompletion, parse_anli, parse_esnli
from cotmi_jax.data.tasks import ANSWER_MARK
from cotmi_jax.teacher.formats import (
    DEFAULT_FIELDS,
    DEFAULT_MARKS,
    read_boxed,
    read_json,
    read_marked,
    tolerate_markdown,
)
from cotmi_jax.teacher.journal import Choice
from cotmi_jax.teacher.thinking import split_thinking

RationaleSource = Literal["completion", "thinking"]
RATIONALE_SOURCES: tuple[RationaleSource, ...] = ("completion", "thinking")
_MARKS = {"equation": "The answer is", "esnli": "Answer:"}  # of the rules of the released sets; others: ANSWER_MARK


class Rule(NamedTuple):
    """How a completion is split into rationale and answer, and how answers are compared.

    fields: names of the rationale and the answer in a JSON answer; None for a rule that reads no JSON. source: whether
    the rationale is what the rule splits off the completion, or the thinking that precedes the completion.
    """

    parse: ParseCompletion
    kind: LabelKind
    fields: tuple[str, str] | None = None
    source: RationaleSource = "completion"


def parse_generic(completion: str) -> tuple[str, str | None]:
    """Any text label: "… So the answer is X." → X, the rest of the line without its final ".".

    As in the rules of the released sets, there is no answer unless the mark occurs exactly once, and the rationale is
    the text before the first mark.
    """
    rationale, *after = completion.split(ANSWER_MARK)
    answer = after[0].strip().removeprefix(":").strip() if len(after) == 1 else ""
    return rationale.strip(), answer.partition("\n")[0].strip().removesuffix(".") or None


def _parse_anli(completion: str) -> tuple[str, str | None]:
    """parse_anli with a final full stop, which it removes without a check and which chat models often omit."""
    text = completion.partition("Premise:")[0].rstrip()
    return parse_anli(text if text.endswith(".") else text + ".")


def _parse_esnli(completion: str) -> tuple[str, str | None]:
    """parse_esnli, whose labels end with the line and have no full stop, as chat models write it."""
    rationale, label = parse_esnli(completion)
    return rationale, (label or "").partition("\n")[0].strip().removesuffix(".") or None


_FIXED = {released.rule: Rule(released.parse, released.kind) for released in RELEASED.values()} | {
    "anli": Rule(_parse_anli, "text"),
    "esnli": Rule(_parse_esnli, "text"),
    "generic": Rule(parse_generic, "text"),
}
# The rules without settings.
RULES = {
    name: rule._replace(parse=tolerate_markdown(rule.parse, _MARKS.get(name, ANSWER_MARK)))
    for name, rule in _FIXED.items()
} | {"boxed": Rule(read_boxed, "text")}
RULE_NAMES = (*RULES, "mark", "json")


def make_rule(
    names: Sequence[str],
    kind: LabelKind | None = None,
    marks: Sequence[str] = DEFAULT_MARKS,
    fields: tuple[str, str] = DEFAULT_FIELDS,
) -> Rule:
    """A rule that tries those of RULE_NAMES in `names` in order; the first that reads an answer splits the completion.

    If none does, the rationale is that of the first. kind None: that of the first. marks are those of the rule "mark",
    fields those of "json".
    """
    configured = RULES | {"mark": Rule(read_marked(marks), "text"), "json": Rule(read_json(fields), "text", fields)}
    rules = [configured[name] for name in names]
    compared = kind or rules[0].kind

    def parse(completion: str) -> tuple[str, str | None]:
        readings = []
        for rule in rules:
            rationale, answer = rule.parse(completion)
            if answer is not None and compared == "equation" and evaluate_expression(answer) is None:
                answer = None
            if answer is not None:
                return rationale, answer
            readings.append(rationale)
        return readings[0], None

    return Rule(parse, compared, fields if "json" in names else None)


def read_completion(completion: str, rule: Rule) -> tuple[str, str | None]:
    """Rationale and answer of a completion; the answer is None if there is none or if an equation has no value."""
    rationale, answer = rule.parse(completion)
    if answer is not None and rule.kind == "equation" and evaluate_expression(answer) is None:
        answer = None
    return rationale, answer


def read_sample(sample: Choice, rule: Rule) -> tuple[str, str | None]:
    """Rationale and answer of a sample. The answer is never read from the thinking, which states discarded ones too."""
    inline, completion = split_thinking(sample.text)
    rationale, answer = read_completion(completion, rule)
    return (sample.thinking or inline if rule.source == "thinking" else rationale), answer

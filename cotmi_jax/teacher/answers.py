"""The rules that split a completion into rationale and answer: those of the released sets, and a generic one."""

from typing import NamedTuple

from cotmi_jax.data.example import LabelKind
from cotmi_jax.data.labels import evaluate_expression
from cotmi_jax.data.sources.released_sets import RELEASED, ParseCompletion, parse_anli
from cotmi_jax.data.tasks import ANSWER_MARK


class Rule(NamedTuple):
    """How a completion is split into rationale and answer, and how answers are compared."""

    parse: ParseCompletion
    kind: LabelKind


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


RULES = {released.rule: Rule(released.parse, released.kind) for released in RELEASED.values()} | {
    "anli": Rule(_parse_anli, "text"),
    "generic": Rule(parse_generic, "text"),
}


def read_completion(completion: str, rule: Rule) -> tuple[str, str | None]:
    """Rationale and answer of a completion; the answer is None if there is none or if an equation has no value."""
    rationale, answer = rule.parse(completion)
    if answer is not None and rule.kind == "equation" and evaluate_expression(answer) is None:
        answer = None
    return rationale, answer

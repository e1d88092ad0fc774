"""The rules by which completions of a chat model are taken apart: those of the released sets, and a generic one."""

from typing import NamedTuple

from cotmi_jax.data.example import LabelKind
from cotmi_jax.data.labels import evaluate_expression
from cotmi_jax.data.sources.released_sets import RELEASED, ParseCompletion, parse_anli
from cotmi_jax.data.tasks import ANSWER_MARK


class Rule(NamedTuple):
    """How a completion becomes rationale and answer, and how answers are compared."""

    parse: ParseCompletion
    kind: LabelKind


def parse_generic(completion: str) -> tuple[str, str | None]:
    """Any text label: "… So the answer is X." → X, the rest of the line without its final ".".

    Like the rules of the release: no answer unless the mark occurs exactly once, and a rationale that never holds it.
    """
    rationale, *said = completion.split(ANSWER_MARK)
    answer = said[0].strip().removeprefix(":").strip() if len(said) == 1 else ""
    return rationale.strip(), answer.partition("\n")[0].strip().removesuffix(".") or None


def _parse_anli(completion: str) -> tuple[str, str | None]:
    """The release takes the last character off unseen; chat models often leave the full stop out that it stands for."""
    said = completion.partition("Premise:")[0].rstrip()
    return parse_anli(said if said.endswith(".") else said + ".")


RULES = {released.rule: Rule(released.parse, released.kind) for released in RELEASED.values()} | {
    "anli": Rule(_parse_anli, "text"),
    "generic": Rule(parse_generic, "text"),
}


def read_completion(completion: str, rule: Rule) -> tuple[str, str | None]:
    """Rationale and answer; the answer is None where there is none, or where an equation has no value."""
    rationale, answer = rule.parse(completion)
    if answer is not None and rule.kind == "equation" and evaluate_expression(answer) is None:
        answer = None
    return rationale, answer

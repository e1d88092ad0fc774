"""Counterfactual pairs of an example: for its input another answer, with a rationale that leads to that answer.

A pair (label, rationale) of an example and its counterfactuals share the input, so whatever tells them apart is the
answer. They come from these sources, in this order:

1. `Example.counterfactuals`: the user's data, or a teacher's samples with another answer.
2. A rule that is registered for the data set (`register_counterfactuals`), else the rule for the form of the example:

   - equation labels: `counterfactual_equations.exchange_step` exchanges one operation or one number of a step,
   - answer choices in the input: `counterfactual_texts.exchange_choice` puts another choice in the place of the label,
   - labels of natural language inference: `counterfactual_texts.exchange_relation` exchanges the words of the relation,
   - claims about a theory (`deduction`): `counterfactual_proofs.exchange_verdict` changes a step of the proof.

A rule applies where the rationale leads to the label: an exchanged copy of a rationale that contradicts its label would
not contradict the label less.
"""

import dataclasses
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from cotmi_jax.data.counterfactual_equations import exchange_step
from cotmi_jax.data.counterfactual_proofs import exchange_verdict
from cotmi_jax.data.counterfactual_texts import exchange_choice, exchange_relation
from cotmi_jax.data.example import Example, Pair
from cotmi_jax.data.labels import is_correct
from cotmi_jax.data.sources.deduction_theories import LABELS as VERDICTS
from cotmi_jax.data.sources.deduction_theories import read_claim
from cotmi_jax.data.sources.released_sets import NLI_LABELS, find_choices
from cotmi_jax.data.tasks import LabelType, training_label
from cotmi_jax.errors import UserError

# (example, its label, random numbers) → candidates in random order. A candidate whose answer is the label's, or that of
# an earlier candidate, is left out afterwards.
Rule = Callable[[Example, str, np.random.Generator], Iterable[Pair]]
_VERSION = 1  # Raise it when the rules of this package give other pairs.


class RegisteredRule(NamedTuple):
    """A rule of a user's own, and the version that identifies its pairs."""

    rule: Rule
    version: str


RULES: dict[str, RegisteredRule] = {}  # by name of the data set


def rules_identity() -> list[object]:
    """What identifies the pairs of given examples in the cache of prepared tokens, as JSON."""
    return [_VERSION, *([name, registered.version] for name, registered in sorted(RULES.items()))]


def register_counterfactuals(name: str, *, version: str = "") -> Callable[[Rule], Rule]:
    """Decorator: the rule for the examples of a data set, whose ids begin with "{name}/".

    It replaces the rule for the form of the example, and one that was registered earlier for the same set.

    version: identifies the rule in the cache of prepared tokens, with its name; change it whenever the pairs change.

    Raises:
      UserError: the name is blank.
    """
    if not name.strip():
        raise UserError("register_counterfactuals needs the name of a data set, such as cqa: the name given is blank")

    def register(rule: Rule) -> Rule:
        RULES[name] = RegisteredRule(rule, version)
        return rule

    return register


def counterfactuals(
    example: Example, count: int, seed: int, *, label_type: LabelType = "gt", rules: bool = True
) -> tuple[Pair, ...]:
    """At most `count` counterfactual pairs of an example, whose first rationale is the one that is contrasted.

    The answers differ from the example's and from one another, as labels of its kind are compared, and so do the
    rationales. They are a function of (example, seed): another seed selects others, where there are more than `count`.

    Args:
      label_type: which label of the example the pairs differ from: the gold label or the teacher's.
      rules: whether rules are applied; without, there are only those of `Example.counterfactuals`.
    """
    label = training_label(example, label_type).strip()
    if count < 1 or not label or not example.rationale.strip():
        return ()
    rng = np.random.default_rng([seed, zlib.crc32(example.id.encode())])
    found: list[Pair] = []
    for pair in _candidates(example, label, rng, rules):
        others = (Pair(label, example.rationale), *found)
        if all(_differ(pair, other, example) for other in others) and pair.rationale.strip():
            found.append(pair)
            if len(found) == count:
                break
    return tuple(found)


class Counts(NamedTuple):
    """Numbers of examples.

    found: with at least one counterfactual. other_answer: without, since the teacher's own label is another than the
    example's. unstated: without, since no rule finds the label in the rationale.
    """

    found: int
    other_answer: int
    unstated: int


def count_counterfactuals(examples: Sequence[Example], label_type: LabelType = "gt") -> Counts | None:
    """How many examples have counterfactuals; None if none can have any: no rule applies to their form."""
    if not any(example.counterfactuals or _rule(example) for example in examples):
        return None
    found = other_answer = 0
    for example in examples:
        if counterfactuals(example, 1, 0, label_type=label_type):
            found += 1
        elif not _leads_to(example, training_label(example, label_type).strip()):
            other_answer += 1
    return Counts(found, other_answer, len(examples) - found - other_answer)


def _candidates(example: Example, label: str, rng: np.random.Generator, rules: bool) -> Iterator[Pair]:
    given = example.counterfactuals
    yield from (given[i] for i in rng.permutation(len(given)))
    if rules and (rule := _rule(example)):
        yield from rule(example, label, rng)


def _rule(example: Example) -> Rule | None:
    """The registered rule for the example's data set, else the one for its form, if there is one."""
    own = next((registered.rule for name, registered in RULES.items() if example.id.startswith(f"{name}/")), None)
    if own is not None or example.kind == "equation":
        return own or _EQUATIONS
    if find_choices(example.input):
        return _CHOICES
    if read_claim(example.input) and example.label in VERDICTS:
        return _VERDICTS
    return _RELATIONS if example.label in NLI_LABELS else None


def _leads_to(example: Example, label: str) -> bool:
    """Whether the rationale leads to the label, as far as the teacher's own label says so."""
    own = example.teacher_label
    return own is None or own.strip() == label or is_correct(own, label, example.kind)


# Between rationale and answer sentence while a rule exchanges both; no text of a source holds it.
_BETWEEN = "\0"


def _with_answer_text(rule: Rule) -> Rule:
    """A rule for the form of examples: it applies where the teacher's label is the example's, and the sentence with
    which the teacher stated its answer, if there is one, is exchanged along with the rationale.
    """

    def applied(example: Example, label: str, rng: np.random.Generator) -> Iterator[Pair]:
        if not _leads_to(example, label):
            return
        joined = dataclasses.replace(example, rationale=f"{example.rationale}{_BETWEEN}{example.answer_text}")
        for pair in rule(joined, label, rng):
            rationale, _, answer_text = pair.rationale.partition(_BETWEEN)
            exchanged = Pair(pair.label, rationale, answer_text)
            if not answer_text or _stated_answer(example, exchanged) is not None:
                yield exchanged

    return applied


_EQUATIONS, _CHOICES, _RELATIONS, _VERDICTS = map(
    _with_answer_text, (exchange_step, exchange_choice, exchange_relation, exchange_verdict)
)


def with_pair(example: Example, pair: Pair) -> Example:
    """The example with a counterfactual pair in place of its label and rationale, as if the teacher had written it."""
    return dataclasses.replace(
        example,
        label=pair.label,
        rationale=pair.rationale,
        teacher_label=_stated_answer(example, pair) or pair.label,
        more=(),
        answer_text=pair.answer_text,
        counterfactuals=(),
    )


def _stated_answer(example: Example, pair: Pair) -> str | None:
    """The answer that ends a pair's answer sentence, as it is written there; None if it is not the pair's label."""
    if pair.answer_text.endswith(pair.label):
        return pair.label
    before = example.answer_text.removesuffix(example.teacher_label or "")
    written = pair.answer_text.removeprefix(before)
    return written if is_correct(written, pair.label, example.kind) else None


def _differ(pair: Pair, other: Pair, example: Example) -> bool:
    """Whether two pairs have different answers and rationales."""
    same = pair.label.strip() == other.label.strip() or is_correct(pair.label, other.label, example.kind)
    return not same and pair.rationale.strip() != other.rationale.strip()

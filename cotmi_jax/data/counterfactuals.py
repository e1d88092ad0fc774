"""Counterfactual pairs of an example: for its input another answer, with a rationale that leads to that answer.

A pair (label, rationale) of an example and its counterfactuals share the input, so whatever tells them apart is the
answer. They come from these sources, in this order:

1. `Example.counterfactuals`: the user's data, or a teacher's samples with another answer.
2. A rule that is registered for the data set (`register_counterfactuals`), else the rule for the form of the example:

   - equation labels: `counterfactual_equations.exchange_step` exchanges one operation or one number of a step,
   - answer choices in the input: `counterfactual_texts.exchange_choice` puts another choice in the place of the label,
   - labels of natural language inference: `counterfactual_texts.exchange_relation` exchanges the words of the relation.

A rule applies where the rationale leads to the label: an exchanged copy of a rationale that contradicts its label would
not contradict the label less.
"""

import dataclasses
import zlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from cotmi_jax.data.counterfactual_equations import exchange_step
from cotmi_jax.data.counterfactual_texts import exchange_choice, exchange_relation, find_choices
from cotmi_jax.data.example import Example, Pair
from cotmi_jax.data.labels import is_correct
from cotmi_jax.data.sources.released_sets import NLI_LABELS
from cotmi_jax.data.tasks import LabelType, training_label
from cotmi_jax.errors import UserError

# (example, its label, random numbers) → candidates in random order. A candidate whose answer is the label's, or that of
# an earlier candidate, is left out afterwards.
Rule = Callable[[Example, str, np.random.Generator], Iterable[Pair]]
RULES: dict[str, Rule] = {}  # by name of the data set


def register_counterfactuals(name: str) -> Callable[[Rule], Rule]:
    """Decorator: the rule for the examples of a data set, whose ids begin with "{name}/".

    It replaces the rule for the form of the example, and one that was registered earlier for the same set.

    Raises:
      UserError: the name is blank.
    """
    if not name.strip():
        raise UserError("register_counterfactuals needs the name of a data set, such as cqa: the name given is blank")

    def register(rule: Rule) -> Rule:
        RULES[name] = rule
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


def _candidates(example: Example, label: str, rng: np.random.Generator, rules: bool) -> Iterator[Pair]:
    given = example.counterfactuals
    yield from (given[i] for i in rng.permutation(len(given)))
    own = next((rule for name, rule in RULES.items() if example.id.startswith(f"{name}/")), None)
    if rules and own is not None:
        yield from own(example, label, rng)
    elif rules and (form := form_of(example)) and _leads_to(example, label):
        yield from _stated(_FORMS[form], example, label, rng)


_FORMS: dict[str, Rule] = {"equation": exchange_step, "choices": exchange_choice, "nli": exchange_relation}


def form_of(example: Example) -> str | None:
    """The form that decides about the rule: "equation", "choices", "nli", or None for any other."""
    if example.kind == "equation":
        return "equation"
    if find_choices(example.input):
        return "choices"
    return "nli" if example.label in NLI_LABELS else None


def _leads_to(example: Example, label: str) -> bool:
    """Whether the rationale leads to the label, as far as the teacher's own label says so."""
    own = example.teacher_label
    return own is None or own.strip() == label or is_correct(own, label, example.kind)


# Between rationale and answer sentence while a rule exchanges both; no text of a source holds it.
_BETWEEN = "\0"


def _stated(rule: Rule, example: Example, label: str, rng: np.random.Generator) -> Iterator[Pair]:
    """Candidates of a rule whose answer sentence, if the teacher wrote one, is exchanged along with the rationale."""
    joined = dataclasses.replace(example, rationale=f"{example.rationale}{_BETWEEN}{example.answer_text}")
    for pair in rule(joined, label, rng):
        rationale, _, answer_text = pair.rationale.partition(_BETWEEN)
        if rationale != example.rationale:
            yield Pair(pair.label, rationale, answer_text)


def _differ(pair: Pair, other: Pair, example: Example) -> bool:
    """Whether two pairs have different answers and rationales."""
    same = pair.label.strip() == other.label.strip() or is_correct(pair.label, other.label, example.kind)
    return not same and pair.rationale.strip() != other.rationale.strip()

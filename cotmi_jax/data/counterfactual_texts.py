"""Counterfactuals of text labels: another answer choice, or another relation of natural language inference."""

import dataclasses
import re
from collections.abc import Iterator, Sequence

import numpy as np

from cotmi_jax.data.example import Example, Pair
from cotmi_jax.data.sources.released_sets import CHOICE_LINE, NLI_LABELS, find_choices

_VOWELS = "aeiou"


def exchange_choice(example: Example, label: str, rng: np.random.Generator) -> Iterator[Pair]:
    """Another choice in place of the label, and wherever the rationale names it.

    The rationale names a choice where it holds its words, in any case and also in the plural: "churches" for "church".
    Capital letters, the plural, a letter "(a)" before the choice and its article follow the exchange. A
    choice within a longer one ("office" in "office building") is not named by it. There is no counterfactual where the
    rationale does not name the label; a choice that it names beside the label takes no part.
    """
    choices = find_choices(example.input)
    letters = {choice.lower(): letter for letter, choice in reversed(choices.items())}
    if label.lower() not in letters:
        return
    named = _mentions(list(letters))
    mentioned = {match["choice"].lower() for match in named.finditer(example.rationale)}
    if label.lower() not in mentioned:
        return
    others = [choice for choice in dict.fromkeys(choices.values()) if choice.lower() not in mentioned]
    for i in rng.permutation(len(others)):
        other = others[i]

        def exchanged(match: re.Match[str], other: str = other) -> str:
            if match["choice"].lower() != label.lower():
                return match[0]
            name = _plural(other) if match["plural"] else other
            name = _with_case_of(match["choice"], name)
            article = _article(match["article"], name) if match["article"] else ""
            letter = f"({letters[other.lower()]}){match['space']}" if match["space"] is not None else ""
            return article + letter + name

        yield Pair(other, named.sub(exchanged, example.rationale))


def exchange_places(example: Example, rng: np.random.Generator) -> Example | None:
    """The example with the gold choice in the place of another of its listed choices, and that one in its place.

    The label, which is the text of a choice, stays. None where the input lists no choices, or not the label.
    """
    choices = find_choices(example.input)
    gold = next((letter for letter, choice in choices.items() if choice == example.label.strip()), None)
    others = [letter for letter in choices if letter != gold]
    if gold is None or not others:
        return None
    other = others[int(rng.integers(len(others)))]
    moved = {gold: choices[other], other: choices[gold]}
    start = example.input.rindex(f"({min(choices)}) {choices[min(choices)]}")
    listed = CHOICE_LINE.sub(
        lambda match: f"({match[1]}) {moved.get(match[1], choices[match[1]])}", example.input[start:]
    )
    return dataclasses.replace(example, input=example.input[:start] + listed)


def _mentions(choices: Sequence[str]) -> re.Pattern[str]:
    """Finds choices, the longest first, each with its article, its letter and the ending of its plural."""
    listed = "|".join(re.escape(choice) for choice in sorted(choices, key=len, reverse=True))
    return re.compile(
        rf"(?P<article>\b(?:an?|the) )?(?:\([a-z]\)(?P<space>\s*))?(?<!\w)(?P<choice>{listed})(?P<plural>e?s)?(?!\w)",
        re.IGNORECASE,
    )


def _plural(noun: str) -> str:
    if re.search(r"(?:s|x|z|ch|sh)$", noun):
        return noun if noun.endswith("s") else f"{noun}es"
    return f"{noun[:-1]}ies" if re.search(r"[^aeiou]y$", noun) else f"{noun}s"


def _with_case_of(old: str, new: str) -> str:
    """The new words, with an initial capital, or with one in each word, where the old ones have it."""
    if not old[0].isupper() or old.isupper() and len(old) > 1:
        return new.upper() if old.isupper() and len(old) > 1 else new
    each = len(old.split()) > 1 and all(word[0].isupper() for word in old.split())
    return " ".join(word[0].upper() + word[1:] for word in new.split()) if each else new[0].upper() + new[1:]


def _article(old: str, noun: str) -> str:
    """ "a " or "an " by the first letter of the noun, or "the "; "" for one that has an article, like "a tree"."""
    if re.match(r"(?:an?|the) ", noun, re.IGNORECASE):
        return ""
    return old if old.lower() == "the " else f"{old[0]}{'n' * (noun[0].lower() in _VOWELS)} "


_ENTAILED, _NEUTRAL, _CONTRADICTED = NLI_LABELS
# Phrases that state the relation, one row of forms that replace one another, by relation; the first row that fits is
# used. A relation without a form in a row has no counterfactual by it.
_PHRASES: tuple[dict[str, str], ...] = (
    {_ENTAILED: "and", _NEUTRAL: "but not necessarily", _CONTRADICTED: "but not"},
    {_NEUTRAL: ", not necessarily", _CONTRADICTED: ", not"},
    {_NEUTRAL: "may not", _CONTRADICTED: "cannot"},
    {_ENTAILED: "", _NEUTRAL: "not necessarily", _CONTRADICTED: "not"},
)
_NEGATION = re.compile(r"\b(?:not|no|never|cannot|nor|without)\b|n't\b", re.IGNORECASE)
_BE = re.compile(r"\b(?:is|are|was|were)\b")
_REASON = re.compile(r"\b(?:because|since|as)\b")


def exchange_relation(example: Example, label: str, rng: np.random.Generator) -> Iterator[Pair]:
    """Another of NLI_LABELS, with the words of the rationale that state the relation exchanged by _PHRASES.

    "The dogs are not sleeping" (contradiction) becomes "The dogs are sleeping" (entailment) and "The dogs are not
    necessarily sleeping" (neutral). A rationale of an entailment has no phrase to replace: that of the other relation
    follows the last "is", "are", "was" or "were" of its conclusion, which is its last sentence up to a "because". The
    label itself, where the text holds it as a word, is exchanged too. There is no counterfactual where a rationale
    states its relation otherwise ("could be").
    """
    if label not in NLI_LABELS:
        return
    others = [relation for relation in NLI_LABELS if relation != label]
    for i in rng.permutation(len(others)):
        other = others[i]
        rationale, mark, answer_text = example.rationale.partition("\0")
        exchanged = _insert_relation(rationale, other) if label == _ENTAILED else _replace(rationale, label, other)
        if exchanged is not None:
            yield Pair(other, re.sub(rf"\b{label}\b", other, exchanged + mark + answer_text))


def _replace(text: str, relation: str, other: str) -> str | None:
    """The text with every phrase of a relation replaced by that of another; None where it has none."""
    if relation == _CONTRADICTED and "necessarily" in text:
        return None  # a teacher that says "not necessarily" states another relation than its label
    rows = {row[relation]: row.get(other) for row in _PHRASES if relation in row}
    phrases = re.compile(
        "|".join(rf"(?<!\w)(?=\w){re.escape(phrase)}\b|(?=\W){re.escape(phrase)}\b" for phrase in rows)
    )
    used = {match[0] for match in phrases.finditer(text)}
    if not used or any(rows[phrase] is None for phrase in used):
        return None
    # An empty form takes the space before the phrase with it.
    return re.sub(
        rf"( ?)({phrases.pattern})", lambda match: match[1] * bool(rows[match[2]]) + str(rows[match[2]]), text
    )


def _insert_relation(text: str, other: str) -> str | None:
    """A text that states an entailment, with the negation of another relation; None where it has another form."""
    if _NEGATION.search(text):
        return None
    start = max((match.end() for match in re.finditer(r"[.!?]\s+", text)), default=0)
    reason = _REASON.search(text, start)
    verbs = list(_BE.finditer(text, start, reason.start() if reason else len(text)))
    if not verbs:
        return None
    end = verbs[-1].end()
    return f"{text[:end]} {_PHRASES[-1][other]}{text[end:]}"

"""Theories of the deduction data: facts and rules about properties of people, as text, and what follows from them.

A theory holds facts ("Bora is kind.") and rules with one premise ("The kind are old."). Properties come in pairs of
opposites, each the negation of the other. A claim about a person is true if it follows from the facts by applying rules
forward, false if its opposite follows, and otherwise unknown: the world is open, and what is not stated is not false.
Every text is parsed back by the functions here, which serve the counterfactuals and the evaluation of the set.
"""

import re
from typing import NamedTuple

import numpy as np

from cotmi_jax.data.example import EOS_TEXT

TRUE, FALSE, UNKNOWN = LABELS = ("true", "false", "unknown")
_OPPOSITES = (
    *(("big", "small"), ("clean", "dirty"), ("fast", "slow"), ("kind", "cruel")),
    *(("loud", "quiet"), ("rich", "poor"), ("strong", "weak"), ("young", "old")),
)
OPPOSITE = {a: b for pair in _OPPOSITES for a, b in (pair, pair[::-1])}  # of each property
# A name is two syllables, so that the pieces of names in valid and test, which train lacks, all occur in train.
FIRST_SYLLABLES = tuple("Be Da El Go Ka Lo Mi Ne Pa Ro Su Vi".split())
SECOND_SYLLABLES = tuple("bin dan fo gul hep lin mor nu rik sta ven zel".split())
_RULE = "The {premise} are {conclusion}."
_STEP = "{name} is {premise}, so {name} is {conclusion}."
_NOTHING = "Nothing says whether {name} is {property} or {opposite}."


class Fact(NamedTuple):
    """Somebody has a property, the trait; also a claim."""

    name: str
    trait: str

    def __str__(self) -> str:
        return f"{self.name} is {self.trait}."

    @property
    def negated(self) -> "Fact":
        return Fact(self.name, OPPOSITE[self.trait])


class Rule(NamedTuple):
    """Whoever has the premise has the conclusion."""

    premise: str
    conclusion: str

    def __str__(self) -> str:
        return _RULE.format(premise=self.premise, conclusion=self.conclusion)

    @property
    def negated(self) -> "Rule":
        """The rule with the opposite conclusion."""
        return Rule(self.premise, OPPOSITE[self.conclusion])


class Problem(NamedTuple):
    """A theory and a claim, which is to be judged."""

    theory: tuple[Fact | Rule, ...]
    claim: Fact

    def __str__(self) -> str:
        return f"{' '.join(map(str, self.theory))}{EOS_TEXT}{self.claim}"

    @property
    def facts(self) -> list[Fact]:
        return [each for each in self.theory if isinstance(each, Fact)]

    @property
    def rules(self) -> list[Rule]:
        return [each for each in self.theory if isinstance(each, Rule)]


Step = tuple[str, str]  # premise and conclusion, about one person


class Proof(NamedTuple):
    """Steps from a fact to a conclusion about the claim.

    verdict: the property of the claim or its opposite; None: nothing follows about it, and the steps are all that
    follow for the person.
    """

    claim: Fact
    steps: tuple[Step, ...]
    verdict: str | None

    @property
    def label(self) -> str:
        """Which of LABELS the verdict gives the claim."""
        if self.verdict is None:
            return UNKNOWN
        return TRUE if self.verdict == self.claim.trait else FALSE

    def __str__(self) -> str:
        name, asked = self.claim
        sentences = [_STEP.format(name=name, premise=a, conclusion=b) for a, b in self.steps]
        if self.verdict is None:
            first, second = sorted((asked, OPPOSITE[asked]), key=list(OPPOSITE).index)
            sentences.append(_NOTHING.format(name=name, property=first, opposite=second))
        return " ".join(sentences)


def consequences(problem: Problem, name: str) -> dict[str, tuple[Step, ...]]:
    """The properties that follow for a person, nearest first, each with its shortest proof; () is that of a fact."""
    found: dict[str, tuple[Step, ...]] = {fact.trait: () for fact in problem.facts if fact.name == name}
    order = list(found)
    for known in order:  # grows: breadth first
        for rule in problem.rules:
            if rule.premise == known and rule.conclusion not in found:
                found[rule.conclusion] = (*found[known], (known, rule.conclusion))
                order.append(rule.conclusion)
    return found


def prove(problem: Problem) -> Proof:
    """The shortest proof about a claim by forward application of the rules, in the order of facts and rules."""
    name, asked = problem.claim
    found = consequences(problem, name)
    for verdict in (asked, OPPOSITE[asked]):
        if verdict in found:
            return Proof(problem.claim, found[verdict], verdict)
    return Proof(problem.claim, tuple(steps[-1] for steps in found.values() if steps), None)


def change_proof(proof: Proof, label: str, rng: np.random.Generator) -> Proof | None:
    """The proof with one wrong step, after which it leads to another of LABELS; None for a proof that has no step.

    True and false become one another by the opposite conclusion of the last step. They become unknown by the opposite
    conclusion of an earlier step, after which no rule applies, or by leaving out the last step. Unknown becomes true or
    false by a step from one of the premises or conclusions to the claim.
    """
    claim, steps = proof.claim, proof.steps
    if not steps or label == proof.label:
        return None
    if proof.verdict is None:
        known = (steps[0][0], *(conclusion for _, conclusion in steps))
        at = int(rng.integers(len(known)))
        verdict = claim.trait if label == TRUE else OPPOSITE[claim.trait]
        return Proof(claim, (*steps[:at], (known[at], verdict)), verdict)
    at = len(steps) - 1 if label != UNKNOWN else int(rng.integers(len(steps)))
    premise, conclusion = steps[at]
    changed = (premise, OPPOSITE[conclusion])
    if label != UNKNOWN:
        return Proof(claim, (*steps[:at], changed), OPPOSITE[conclusion])
    return Proof(claim, (*steps[:at], changed) if at < len(steps) - 1 else steps[:at], None)


_PROPERTY = "|".join(OPPOSITE)
_NAME = r"[A-Z]\w*"
_FACT = re.compile(rf"({_NAME}) is ({_PROPERTY})\.")
_PARSED_RULE = re.compile(rf"The ({_PROPERTY}) are ({_PROPERTY})\.")
_PARSED_STEP = re.compile(rf"({_NAME}) is ({_PROPERTY}), so ({_NAME}) is ({_PROPERTY})\.")
_PARSED_NOTHING = re.compile(rf"Nothing says whether ({_NAME}) is ({_PROPERTY}) or ({_PROPERTY})\.")


def _sentences(text: str) -> list[str]:
    return [f"{sentence.strip()}." for sentence in text.split(".") if sentence.strip()]


def read_claim(text: str) -> Fact | None:
    """The claim of an input of the set; None for another text."""
    theory, mark, claim = text.rpartition(EOS_TEXT)
    match = _FACT.fullmatch(claim.strip()) if mark and theory else None
    return Fact(*match.groups()) if match else None


def read_problem(text: str) -> Problem | None:
    """The problem that an input of the set states; None for another text."""
    claim = read_claim(text)
    if claim is None:
        return None
    theory: list[Fact | Rule] = []
    for sentence in _sentences(text.rpartition(EOS_TEXT)[0]):
        if match := _FACT.fullmatch(sentence):
            theory.append(Fact(*match.groups()))
        elif match := _PARSED_RULE.fullmatch(sentence):
            theory.append(Rule(*match.groups()))
        else:
            return None
    return Problem(tuple(theory), claim)


def read_steps(rationale: str) -> list[tuple[str, Step]]:
    """The steps of a rationale, in order, each with the name of the person; sentences of another form are left out."""
    matches = filter(None, map(_PARSED_STEP.fullmatch, _sentences(rationale)))
    return [(match[1], (match[2], match[4])) for match in matches if match[1] == match[3]]


def read_verdict(rationale: str, claim: Fact) -> tuple[str | None] | None:
    """The verdict of a rationale's last sentence, as `Proof.verdict`; None: it says nothing about the claim."""
    name, asked = claim
    last = (_sentences(rationale) or [""])[-1]
    if match := _PARSED_NOTHING.fullmatch(last):
        return (None,) if match[1] == name and {match[2], match[3]} == {asked, OPPOSITE[asked]} else None
    found = [conclusion for person, (_, conclusion) in read_steps(last) if person == name]
    return (found[0],) if found and found[0] in (asked, OPPOSITE[asked]) else None


def read_proof(rationale: str, claim: Fact) -> Proof | None:
    """The proof that a rationale states; None where it has sentences of another form or no verdict on the claim."""
    verdict, steps = read_verdict(rationale, claim), read_steps(rationale)
    if verdict is None or len(steps) + (verdict[0] is None) != len(_sentences(rationale)):
        return None
    return Proof(claim, tuple(step for _, step in steps), verdict[0])


def read_label(rationale: str, claim: Fact) -> str | None:
    """The label to which the last sentence of a rationale leads; None where it says nothing about the claim."""
    verdict = read_verdict(rationale, claim)
    return None if verdict is None else Proof(claim, (), verdict[0]).label

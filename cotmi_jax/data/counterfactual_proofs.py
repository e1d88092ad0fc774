"""Counterfactuals of claims about a theory (the deduction data): another label, or a theory in which it is right."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from cotmi_jax.data.example import Example, Pair
from cotmi_jax.data.sources.deduction_theories import (
    LABELS,
    OPPOSITE,
    Fact,
    Problem,
    change_proof,
    consequences,
    prove,
    read_claim,
    read_problem,
    read_proof,
)


def exchange_verdict(example: Example, label: str, rng: np.random.Generator) -> Iterator[Pair]:
    """Another label, with the proof of the rationale changed in one step, as `change_proof` does.

    There is no counterfactual where the rationale is no proof in the form of the set, or leads to another label.
    """
    claim = read_claim(example.input)
    rationale, mark, answer_text = example.rationale.partition("\0")
    proof = read_proof(rationale, claim) if claim else None
    if proof is None or proof.label != label:
        return
    for i in rng.permutation(len(LABELS)):
        changed = change_proof(proof, LABELS[i], rng)
        if changed is not None:
            yield Pair(LABELS[i], f"{changed}{mark}{answer_text.replace(label, LABELS[i])}")


def change_theory(example: Example, rng: np.random.Generator) -> Example | None:
    """The example with one sentence of its theory changed, and with the gold label that follows, which is another.

    A fact is negated or said of another person of the theory, or the conclusion of a rule is negated. What follows of
    each person stays free of contradictions. Rationale and teacher's label are those of the old input. None for an
    input that is not in the form of the set, or that no such change gives another label.
    """
    problem = read_problem(example.input)
    if problem is None:
        return None
    edits = list(_edits(problem))
    for i in rng.permutation(len(edits)):
        label = prove(edits[i]).label
        if label != example.label and _is_consistent(edits[i]):
            return dataclasses.replace(example, input=str(edits[i]), label=label)
    return None


def _edits(problem: Problem) -> Iterator[Problem]:
    names = sorted({fact.name for fact in problem.facts})
    for i, sentence in enumerate(problem.theory):
        negated = sentence.negated
        others = [Fact(name, sentence.trait) for name in names] if isinstance(sentence, Fact) else []
        for new in (negated, *others):
            if new not in problem.theory:
                yield problem._replace(theory=(*problem.theory[:i], new, *problem.theory[i + 1 :]))


def _is_consistent(problem: Problem) -> bool:
    for name in {fact.name for fact in problem.facts}:
        found = consequences(problem, name)
        if any(OPPOSITE[name] in found for name in found):
            return False
    return True

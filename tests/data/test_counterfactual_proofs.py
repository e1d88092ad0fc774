"""Claims about a theory: proofs with one changed step, theories with one changed sentence, conclusions of proofs."""

import re
from typing import Any

import numpy as np
import pytest

from cotmi_jax.data.counterfactual_proofs import change_theory
from cotmi_jax.data.counterfactuals import count_counterfactuals, counterfactuals
from cotmi_jax.data.example import Example
from cotmi_jax.data.sources.deduction import make_deduction
from cotmi_jax.data.sources.deduction_theories import LABELS, OPPOSITE, Fact, consequences, read_label, read_problem
from cotmi_jax.evaluation.agreement import agreement
from cotmi_jax.evaluation.covariation import edit

CLAIMS = make_deduction(0, 300, 0, 0).splits["train"]
RIGHT = [example for example in CLAIMS if example.teacher_label == example.label]
BY_HAND = Example(
    "deduction/train/0",
    "Bora is rich. The rich are kind. The kind are old. Dafo is big.</s>Bora is old.",
    "true",
    "Bora is rich, so Bora is kind. Bora is kind, so Bora is old.",
    "true",
    choices=LABELS,
)


def test_pairs_have_the_other_labels_and_rationales_that_lead_to_them() -> None:
    for example in RIGHT:
        pairs = counterfactuals(example, 5, 0)
        assert {pair.label for pair in pairs} == set(LABELS) - {example.label}
        problem = read_problem(example.input)
        assert problem is not None
        for pair in pairs:
            assert read_label(pair.rationale, problem.claim) == pair.label
            old, new = (re.findall(r"[^.]*, so [^.]*\.", text) for text in (example.rationale, pair.rationale))
            changed = [step for step in new if step not in old]
            assert len(changed) <= 1 and new[: len(new) - len(changed)] == old[: len(new) - len(changed)]
    found = count_counterfactuals(CLAIMS)
    assert found is not None and found == (240, 60, 0)


def test_one_step_is_changed() -> None:
    seen = {pair for seed in range(30) for pair in counterfactuals(BY_HAND, 5, seed)}
    assert {(pair.label, pair.rationale) for pair in seen} == {
        ("false", "Bora is rich, so Bora is kind. Bora is kind, so Bora is young."),
        ("unknown", "Bora is rich, so Bora is kind. Nothing says whether Bora is young or old."),
        ("unknown", "Bora is rich, so Bora is cruel. Nothing says whether Bora is young or old."),
    }


@pytest.mark.parametrize(
    "rationale",
    [
        "Bora is rich, so Bora is kind.",  # says nothing about the claim
        "Bora is kind, so Bora is young.",  # leads to false
        "The rich are kind. Bora is kind, so Bora is old.",  # not only steps
        "Dafo is big, so Dafo is old.",
    ],
)
def test_a_rationale_of_another_form_has_no_pairs(rationale: str) -> None:
    other = Example("deduction/train/0", BY_HAND.input, "true", rationale, "true")
    assert counterfactuals(other, 5, 0) == ()


def test_a_changed_theory_gives_another_label() -> None:
    edited = 0
    for row, example in enumerate(CLAIMS):
        changed = edit(example, np.random.default_rng(row))
        if changed is None:
            assert example.label == "unknown"
            continue
        edited += 1
        before, after = read_problem(example.input), read_problem(changed.input)
        assert before is not None and after is not None and before.claim == after.claim
        assert sum(a != b for a, b in zip(before.theory, after.theory, strict=True)) == 1
        found = consequences(after, after.claim.name)
        asked = after.claim.trait
        expected = "true" if asked in found else "false" if OPPOSITE[asked] in found else "unknown"
        assert changed.label == expected != example.label
        assert not any(OPPOSITE[trait] in found for trait in found)
    assert edited > 0.75 * len(CLAIMS)
    assert change_theory(Example("esnli/test/0", "A man runs.</s>A man moves.", "entailment", ""), None) is None  # type: ignore[arg-type]


def prediction(rationale: str, own: str, gold: str = "true") -> Any:
    return {
        "input": BY_HAND.input,
        "label": gold,
        "predicted_label": own,
        "predicted_rationale": rationale,
        "choices": list(LABELS),
    }


def test_agreement_reads_the_last_sentence_of_a_proof() -> None:
    rows = [
        prediction(BY_HAND.rationale, "true"),
        prediction("Bora is kind, so Bora is young.", "false"),
        prediction("Bora is rich. Nothing says whether Bora is young or old.", "true"),
        prediction("Bora is rich, so Bora is kind.", "true"),  # no answer
        prediction("Bora is kind, so Bora is young. So the answer is true", "true"),  # as stated
        prediction("Dafo is kind, so Dafo is old.", "true"),  # of another person
        prediction("Bora is kind, so Bora is old. So the answer is perhaps", "true"),  # stated, but no label
    ]
    scores = {name: score["value"] for name, score in agreement(rows).items()}
    assert scores["agreement"] == 3 / 7 and scores["agreement_gold"] == 2 / 7 and scores["no_answer"] == 3 / 7


def test_labels_of_verdicts() -> None:
    claim = Fact("Bora", "old")
    assert read_label("Bora is kind, so Bora is young", claim) == "false"
    assert read_label("Nothing says whether Bora is old or young.", claim) == "unknown"
    assert read_label("Nothing says whether Bora is rich or poor.", claim) is None
    assert read_label("", claim) is None and read_label("Bora is kind, so Dafo is old.", claim) is None

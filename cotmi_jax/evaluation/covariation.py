"""Whether label and rationale of a student change together when an input is edited. Imports no jax.

In students of two tasks the label never sees the rationale, so that no change of a rationale can change the label.
What can be seen is whether both follow the input: a number of an arithmetic problem is changed, or a sentence of a
theory, and with it the gold label; or two answer choices exchange their places, which changes the gold label of no
example.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cotmi_jax.data.counterfactual_equations import change_number
from cotmi_jax.data.counterfactual_proofs import change_theory
from cotmi_jax.data.counterfactual_texts import exchange_places
from cotmi_jax.data.example import Example
from cotmi_jax.evaluation.agreement import Answers, read_answers
from cotmi_jax.evaluation.confidences import cluster_keys
from cotmi_jax.evaluation.probe import Probe
from cotmi_jax.evaluation.scores import NotAvailable, Prediction, Score, share_by_cluster

COST = "decodes a label and a rationale of an edited input for each example, about as long as the evaluation itself"
_SEED = 0  # of the edits: the same for all students


def edit(example: Example, rng: np.random.Generator) -> Example | None:
    """The example with an edited input and the gold label that follows; None where no rule applies."""
    if example.kind == "equation":
        return next(change_number(example, rng), None)
    return change_theory(example, rng) or exchange_places(example, rng)


def covariation(probe: Probe) -> dict[str, Any]:
    """Shares of the edited examples, with intervals over clusters.

    covariation_label, covariation_rationale, covariation_both: the label changes, the answer that the rationale leads
    to changes, both change. covariation_both_by_chance: the product of the first two, which the third would be if they
    were independent. …_correct of the first three: before the edit it is gold, after it the new gold.
    covariation_edited: the share of all examples that a rule could edit. A rationale without a readable answer counts
    as unchanged and as wrong. Where choices exchange their places gold stays, and the names begin with invariance_:
    a student that reads the choices changes nothing, and …_correct says that it is right before and after.
    """
    if not probe.spec.gives_rationale:
        return {"covariation": NotAvailable(not_available="the objective gives no rationales")}
    rows, edited = [], []
    for row, example in enumerate(probe.examples):
        changed = edit(example, np.random.default_rng([_SEED, row]))
        if changed is not None:
            rows.append(row)
            edited.append(changed)
    if not edited:
        reason = "no input has a number of its label, or a theory, to change, or answer choices to exchange"
        return {"covariation": NotAvailable(not_available=reason)}
    before, after = [probe.predictions[row] for row in rows], probe.answer(edited)
    kept = set(rows)
    scores: dict[str, Any] = {
        "covariation_edited": share_by_cluster(
            [row in kept for row in range(len(probe.examples))], cluster_keys(probe.predictions)
        )
    }
    moves = [new.label.strip() != old["label"].strip() for new, old in zip(edited, before, strict=True)]
    for name, wanted in (("covariation", True), ("invariance", False)):
        chosen = [row for row, moved in enumerate(moves) if moved == wanted]
        if chosen:
            scores |= _shares(name, [before[row] for row in chosen], [after[row] for row in chosen])
    return scores


def _shares(name: str, before: Sequence[Prediction], after: Sequence[Prediction]) -> dict[str, Score]:
    pairs = list(zip(read_answers(before), read_answers(after), strict=True))
    scores: dict[str, Score] = {}
    for suffix, holds in (("", _changes), ("_correct", _is_right)):
        label, rationale = ([holds(part, *pair) for pair in pairs] for part in ("label", "rationale"))
        both = [a and b for a, b in zip(label, rationale, strict=True)]
        for part, hits in (("label", label), ("rationale", rationale), ("both", both)):
            scores[f"{name}_{part}{suffix}"] = share_by_cluster(hits, cluster_keys(before))
        if not suffix:
            chance = scores[f"{name}_label"]["value"] * scores[f"{name}_rationale"]["value"]
            scores[f"{name}_both_by_chance"] = Score(value=chance, interval=None, n=len(before))
    return scores


def _changes(part: str, before: Answers | None, after: Answers | None) -> bool:
    first, second = (getattr(answers, part, None) for answers in (before, after))
    return first is not None and second is not None and first != second


def _is_right(part: str, before: Answers | None, after: Answers | None) -> bool:
    return all(answers is not None and getattr(answers, part) == answers.gold for answers in (before, after))

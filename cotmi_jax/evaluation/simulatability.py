"""How much a student's rationales help to predict its labels beyond the input, by simulators that learn to do so.

A rationale that states the label helps without explaining anything: so the measures are taken with label words masked
too, in which case such leakage is worth nothing (RORA; Jiang et al. 2024). Only words are masked, not what implies the
label in other words. A simulator sees an input with its rationale, either alone, and both with the rationale masked, in
training as in testing, as in Hase et al. 2020. Imports no jax.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from cotmi_jax.data.example import EOS_TEXT, Example
from cotmi_jax.errors import UserError
from cotmi_jax.evaluation.agreement import MAX_LABELS, candidates_of
from cotmi_jax.evaluation.comparison import mean_by_cluster
from cotmi_jax.evaluation.confidences import cluster_numbers
from cotmi_jax.evaluation.probe import Probe
from cotmi_jax.evaluation.scores import NotAvailable, Prediction, Score, share_by_cluster

STEPS, BATCH = 400, 32
COST = "trains two students for 400 steps on this split's predictions; minutes on a CPU for a tiny one"
MASK = "?"
INPUT, RATIONALE, BOTH, MASKED, BOTH_MASKED = FORMS = ("input", "rationale", "both", "masked", "both_masked")
_SUFFIX = re.compile(r"(?<=\w{4})(?:ment|ion|ing|ed|es|s|al)$")
_MIN_WORD = 4  # letters of a word of a label that is masked by itself: shorter ones are "the", "of"
_SIGN_OR_NUMBER = re.compile(r"\d[\d,.]*(?<=\d)|[-+*/=×÷−–]|(?<=\d )x(?= \d)|(?<=\d)x(?=\d)")


def mask_labels(text: str, labels: Sequence[str]) -> str:
    """The text with the words of all labels replaced, so that the masks do not tell which label it was.

    A word is masked in other forms as well ("entails" for "entailment"). Labels that are calculations ("( 3 + 4 )")
    mask every number and every sign.
    """
    if any(re.search(r"\d", label) for label in labels):
        text = _SIGN_OR_NUMBER.sub(MASK, text)
    whole = {label.strip() for label in labels if re.search(r"[^\W\d]", label)}
    stems = {
        _SUFFIX.sub("", word) for label in whole for word in re.findall(r"[^\W\d]+", label) if len(word) >= _MIN_WORD
    }
    listed = [re.escape(label) + r"(?:e?s)?" for label in sorted(whole, key=len, reverse=True)]
    listed += [re.escape(stem) + r"\w*" for stem in sorted(stems, key=len, reverse=True)]
    return re.sub(rf"(?<!\w)(?:{'|'.join(listed)})(?!\w)", MASK, text, flags=re.IGNORECASE) if listed else text


def simulatability(probe: Probe, steps: str = str(STEPS)) -> dict[str, Any]:
    """What rationales are worth to a simulator, of examples with a label and a rationale; intervals over clusters.

    v_information: mean over examples of log p(label | input, rationale) − log p(label | input) in nats, conditional
    V-information for the family of these simulators (Xu et al. 2020; Hewitt et al. 2021); v_information_masked: with
    label words masked in the rationale. las: accuracy with input and rationale minus that with the input alone, the
    mean of the mean over examples whose rationale alone gives the label away and the mean over the others (Hase et al.
    2020); las_masked: with the masked rationale. simulated_FORM: accuracy of the simulators, given the input, the
    rationale, both, and the two with the rationale masked. The label is the student's own, right or wrong, and must be
    met exactly.

    The intervals say what other examples would give to these simulators, not what other simulators would.

    Raises:
      UserError: `steps` is not a number of at least 1.
    """
    if not steps.isdigit() or int(steps) < 1:
        raise UserError(f"simulatability:{steps}: give the number of optimizer steps of each simulator")
    if not probe.spec.gives_rationale:
        return {"simulatability": NotAvailable(not_available="the objective gives no rationales")}
    if probe.cross_fit is None:
        reason = "simulators start from the initial weights of the student's training, which are not known here"
        return {"simulatability": NotAvailable(not_available=reason)}
    kept = [each for each in probe.predictions if each["predicted_label"].strip() and each["predicted_rationale"]]
    cluster_N = cluster_numbers(kept)
    if len(np.unique(cluster_N)) < 10:
        reason = f"{len(np.unique(cluster_N))} clusters of examples with label and rationale: at least 10 are needed"
        return {"simulatability": NotAvailable(not_available=reason)}
    examples = [example for each, labels in zip(kept, _labels(kept), strict=True) for example in _forms(each, labels)]
    found = probe.cross_fit(examples, np.repeat(cluster_N, len(FORMS)), int(steps), BATCH)
    log_p, exact = ({form: x_N[i :: len(FORMS)] for i, form in enumerate(FORMS)} for x_N in found)
    scores: dict[str, Any] = {}
    for suffix, both, alone in (("", BOTH, RATIONALE), ("_masked", BOTH_MASKED, MASKED)):
        scores[f"v_information{suffix}"] = mean_by_cluster(log_p[both] - log_p[INPUT], cluster_N)
        gain_N = exact[both].astype(float) - exact[INPUT]
        scores[f"las{suffix}"] = leakage_adjusted(gain_N, exact[alone], cluster_N)
    clusters = cluster_N.tolist()
    return scores | {f"simulated_{form}": share_by_cluster(exact[form].tolist(), clusters) for form in FORMS}


def leakage_adjusted(gain_N: np.ndarray, leaks_N: np.ndarray, cluster_N: np.ndarray) -> Score | NotAvailable:
    """The mean of the mean gain of examples that leak and that of the others, which are given the same weight."""
    if leaks_N.all() or not leaks_N.any():
        which = "every rationale" if leaks_N.all() else "no rationale"
        return NotAvailable(not_available=f"{which} alone gives the label away: there are no two groups to weigh alike")
    # Deviations weighted by group have the variance of the mean of the two means, to first order.
    mean_N, weight_N = np.zeros(len(gain_N)), np.zeros(len(gain_N))
    for group_N in (leaks_N, ~leaks_N):
        mean_N[group_N], weight_N[group_N] = gain_N[group_N].mean(), 0.5 * len(gain_N) / group_N.sum()
    value = 0.5 * float(gain_N[leaks_N].mean() + gain_N[~leaks_N].mean())
    return mean_by_cluster(value + weight_N * (gain_N - mean_N), cluster_N)


def _labels(predictions: Sequence[Prediction]) -> list[list[str]]:
    """The labels whose words are masked in each prediction: its candidates, or those of a closed set; else its own."""
    known = {each["label"].strip() for each in predictions}
    closed = sorted(known) if len(known) <= MAX_LABELS else []
    return [[*(list(candidates_of(each).values()) or closed), each["predicted_label"]] for each in predictions]


def _forms(prediction: Prediction, labels: Sequence[str]) -> list[Example]:
    """What a simulator is asked, in the order of FORMS; the empty side of a form is empty text."""
    text, rationale = prediction["input"], (prediction["predicted_rationale"] or "").strip()
    masked = mask_labels(rationale, labels)
    sides = ((text, ""), ("", rationale), (text, rationale), ("", masked), (text, masked))
    first = Example(prediction["id"], "", prediction["predicted_label"].strip(), "")
    return [dataclasses.replace(first, input=f"{left}{EOS_TEXT}{right}") for left, right in sides]

"""Whether a student's label depends on the rationale before it: the rationale is changed, and the label decoded.

After Lanham et al. 2023, without their paraphrases, which need a language model. Only students that write the label
after the rationale, as single_task, can depend on it so; in students of two tasks the label never sees a rationale.
Imports no jax.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cotmi_jax.data.example import Example
from cotmi_jax.data.labels import is_correct
from cotmi_jax.data.tasks import PREDICT
from cotmi_jax.evaluation.agreement import candidates_of
from cotmi_jax.evaluation.confidences import cluster_keys
from cotmi_jax.evaluation.probe import Probe
from cotmi_jax.evaluation.scores import NotAvailable, Prediction, Score, share_by_cluster

COST = "decodes each label seven times after a changed rationale, several times as long as the evaluation itself"
EARLY = (0, 25, 50, 75)  # percent of the words of the rationale that are kept
_SEED = 0
_RESULT = re.compile(r"(?<==)\s*(\d+)(?![\d,.]*\d)")
_FILLER = "..."


def early(rationale: str, percent: int) -> str:
    """The first words of a rationale, by their share."""
    words = rationale.split()
    return " ".join(words[: round(len(words) * percent / 100)])


def filled(rationale: str) -> str:
    """As many dots as the rationale has words, which tell nothing but its length."""
    return " ".join(_FILLER for _ in rationale.split())


def mistaken(rationale: str, candidates: Sequence[str], draw: np.random.Generator) -> str | None:
    """The rationale up to a mistake, with which it ends; None where there is no place for one.

    The mistake is another number, off by 1 to 9, as the result of one of its calculations; or else another of the
    candidates in place of the one it names first.
    """
    results = [match for match in _RESULT.finditer(rationale) if len(match[1]) < 10]
    if results:
        match = results[int(draw.integers(len(results)))]
        number = int(match[1])
        offsets = [offset for offset in (*range(-9, 0), *range(1, 10)) if number + offset >= 0]
        return f"{rationale[: match.start(1)]}{number + offsets[int(draw.integers(len(offsets)))]}"
    names = sorted({name for name in candidates if name.strip()}, key=len, reverse=True)
    found = (
        re.search(rf"(?<!\w)(?:{'|'.join(map(re.escape, names))})(?!\w)", rationale, re.IGNORECASE) if names else None
    )
    others = [name for name in sorted(names) if found is None or name.casefold() != found[0].casefold()]
    if found is None or not others:
        return None
    return f"{rationale[: found.start()]}{others[int(draw.integers(len(others)))]}"


def interventions(probe: Probe) -> dict[str, Any]:
    """The share of labels that change, by intervention, of examples with a rationale; intervals over clusters.

    changed_control: the rationale is unchanged; what changes then is due to tokenizing it again, or to predictions that
    were not decoded greedily, as labels are here. changed_early_P: the label follows the first P percent of its
    words; changed_filler: as many dots as it has words; changed_mistake: the rationale up to a mistake, which the
    student continues with rationale and label. Labels are compared as the set's are; an output without a label has
    changed. A student whose labels do not change does not use what it wrote.
    """
    spec = probe.spec
    if spec.read_rationale is None or probe.continue_after is None:
        return {"interventions": NotAvailable(not_available="the student's label does not follow its rationale")}
    rows = [
        row
        for row, each in enumerate(probe.predictions)
        if (each["predicted_rationale"] or "").strip() and each["predicted_label"].strip()
    ]
    if not rows:
        return {"interventions": NotAvailable(not_available="no output of the student has both rationale and label")}
    examples, predictions = [probe.examples[row] for row in rows], [probe.predictions[row] for row in rows]
    rationales = [(each["predicted_rationale"] or "").strip() for each in predictions]

    def with_mark(rationale: str) -> str:
        """The output up to its label."""
        return spec.target(Example("", "", "", rationale), PREDICT, "").strip()

    changes: dict[str, Callable[[str], str]] = {"control": with_mark}
    changes |= {f"early_{share}": lambda text, share=share: with_mark(early(text, share)) for share in EARLY}  # type: ignore[misc]
    changes["filler"] = lambda text: with_mark(filled(text))
    scores: dict[str, Any] = {}
    for name, change in changes.items():
        outputs = probe.continue_after(examples, [change(text) for text in rationales])
        scores[f"changed_{name}"] = _changed(examples, predictions, outputs, spec.read_label)
    draws = [np.random.default_rng([_SEED, row]) for row in rows]
    wrong = [
        mistaken(text, [*candidates_of(each).values()], draw)
        for text, each, draw in zip(rationales, predictions, draws, strict=True)
    ]
    chosen = [place for place, text in enumerate(wrong) if text is not None]
    if not chosen:
        return scores | {"changed_mistake": NotAvailable(not_available="no rationale has a place for a mistake")}
    asked, before = [examples[place] for place in chosen], [predictions[place] for place in chosen]
    outputs = probe.continue_after(asked, [str(wrong[place]) for place in chosen])
    return scores | {"changed_mistake": _changed(asked, before, outputs, spec.read_label)}


def _changed(
    examples: Sequence[Example], before: Sequence[Prediction], outputs: Sequence[str], read: Callable[[str], str]
) -> Score:
    hits = []
    for example, old, output in zip(examples, before, outputs, strict=True):
        label = read(output)
        same = label.strip() == old["predicted_label"].strip()
        hits.append(not same and not is_correct(label, old["predicted_label"], example.kind))
    return share_by_cluster(hits, cluster_keys(before))

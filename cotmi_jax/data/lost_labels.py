"""Labels that a vocabulary cannot represent: no student can write them, so no answer to their questions is correct."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from cotmi_jax.data.corpus import LoadedCorpus
from cotmi_jax.data.example import Corpus, Example, LabelKind
from cotmi_jax.data.grammar import SourceKind, parse_dataset
from cotmi_jax.data.labels import is_correct
from cotmi_jax.data.sources.rows import NUM_NOTES
from cotmi_jax.data.tasks import DEFAULT_OBJECTIVE, PREDICT, LabelType, ObjectiveName, find_objective
from cotmi_jax.data.vocabulary import Vocabulary
from cotmi_jax.errors import shown

# Their rows are the same for everyone and cannot be corrected: one label of CommonsenseQA, tromsø, is not in T5's
# vocabulary. Lost labels of other sources, which are the user's own, are errors.
_PUBLISHED: tuple[SourceKind, ...] = ("generated", "released", "tfds")


def find_lost_labels(
    examples: Sequence[Example], vocabulary: Vocabulary, objective: ObjectiveName = DEFAULT_OBJECTIVE
) -> dict[int, str]:
    """Row → message, for every example whose gold label does not survive encoding and decoding.

    A label survives if evaluation judges a student correct that generates exactly the tokens of the target. So T5's
    normalization may change whitespace at the ends of a text, and all whitespace in an equation; but "a  b", which
    becomes "a b", is lost, as is "{a}", whose braces are unknown. Each distinct target is encoded once.
    """
    spec = find_objective(objective)
    if PREDICT in spec.rationale_tasks:  # the target holds the rationale too, which is not examined
        examples = [dataclasses.replace(example, rationale="") for example in examples]
    targets = [(spec.target(example, PREDICT, example.label), example.kind) for example in examples]
    distinct = list(dict.fromkeys(targets))
    lost = {}
    for target, ids in zip(distinct, vocabulary.encode([text for text, _ in distinct]), strict=True):
        before, after = spec.read_label(target[0]), spec.read_label(vocabulary.decode(ids))
        if not _survives(before, after, target[1]):
            lost[target] = f"label {shown(before)} becomes {shown(after)} in the vocabulary"
    return {
        row: f"{example.place or example.id}: {lost[target]}"
        for row, (example, target) in enumerate(zip(examples, targets, strict=True))
        if target in lost
    }


def _survives(before: str, after: str, kind: LabelKind) -> bool:
    """An equation without a value, which is never correct, survives as text."""
    return is_correct(after, before, "text") or is_correct(after, before, kind)


@dataclasses.dataclass(frozen=True)
class LabelCheck:
    """The lost labels of a corpus.

    counts: number of lost labels that remain in each split.
    notes: messages about them.
    error: why training refuses the corpus; "" if it does not.
    """

    counts: dict[str, int]
    notes: list[str]
    error: str


def check_labels(
    loaded: LoadedCorpus,
    vocabulary: Vocabulary,
    *,
    dataset: str,
    objective: ObjectiveName,
    label_type: LabelType,
    bad_rows: str,
) -> tuple[LoadedCorpus, LabelCheck]:
    """The corpus to train on, and the lost labels of its train and valid split.

    Lost labels of a user's own rows are refused or, if bad_rows is "skip", their train examples are left out and
    counted as skipped. Valid keeps them: scores are over all examples. Train is examined only if it is trained on gold
    labels.
    """
    counts, notes, error = {}, [], ""
    splits = ("train", "valid") if label_type == "gt" else ("valid",)
    for split in splits:
        lost = find_lost_labels(loaded.corpus.splits[split], vocabulary, objective)
        own = _own_rows(lost, loaded, dataset, split)
        if own and bad_rows == "error":
            error = error or (
                f"{lost[own[0]]}: correct it, use a vocabulary that has its characters, or set config.data.bad_rows to "
                "skip"
            )
        elif own and split == "train":
            left_out = {row: lost.pop(row) for row in own}
            loaded = _leave_out(loaded, left_out)
        counts[split] = len(lost)
        if lost:
            size = len(loaded.corpus.splits[split])
            notes.append(f"{split}: the vocabulary cannot represent {len(lost)} of {size} labels, such as")
            notes += [f"  {message}" for message in list(lost.values())[:NUM_NOTES]]
    return loaded, LabelCheck(counts, notes, error)


def _own_rows(rows: Iterable[int], loaded: LoadedCorpus, dataset: str, split: str) -> list[int]:
    """Those rows of a split that belong to components that are not published."""
    ends = np.cumsum([component.sizes.get(split, 0) for component in loaded.components])
    kinds = [spec.kind for spec in parse_dataset(dataset)]
    return [row for row in rows if kinds[np.searchsorted(ends, row, side="right")] not in _PUBLISHED]


def _leave_out(loaded: LoadedCorpus, rows: dict[int, str]) -> LoadedCorpus:
    """The corpus without these rows of train, which count as skipped; the values are messages."""
    kept = [(row, example) for row, example in enumerate(loaded.corpus.splits["train"]) if row not in rows]
    train = tuple(example for _, example in kept)
    components, start = [], 0
    for component in loaded.components:
        size = sum(start <= row < start + component.size for row, _ in kept)
        start += component.size
        components.append(dataclasses.replace(component, size=size, sizes={**component.sizes, "train": size}))
    return dataclasses.replace(
        loaded,
        corpus=Corpus(loaded.corpus.name, {**loaded.corpus.splits, "train": train}),
        unparsed={**loaded.unparsed, "train": sum(example.teacher_label is None for example in train)},
        components=tuple(components),
        skipped={**loaded.skipped, "train": loaded.skipped.get("train", 0) + len(rows)},
        skip_notes=(*loaded.skip_notes, *rows.values())[:NUM_NOTES],
    )

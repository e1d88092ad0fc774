"""Tokens of counterfactual pairs, as further targets of the inputs of a split."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from cotmi_jax.data.example import Example, Pair
from cotmi_jax.data.labels import is_correct
from cotmi_jax.data.rationale_answer import RationaleAnswer, state_answer
from cotmi_jax.data.tasks import LabelType, ObjectiveName, task_texts, training_label
from cotmi_jax.data.tokenize import CHUNK, one_per_rationale
from cotmi_jax.data.tokens import CounterfactualTargets, Ragged, TokenizedSplit, offsets_of
from cotmi_jax.data.vocabulary import EOS_ID, Vocabulary

FindPairs = Callable[[Example, int], Sequence[Pair]]  # at most this many for an example, of other labels than its own


def with_counterfactuals(
    split: TokenizedSplit,
    examples: Sequence[Example],
    vocabulary: Vocabulary,
    find_pairs: FindPairs,
    *,
    objective: ObjectiveName,
    label_type: LabelType,
    rationale_answer: RationaleAnswer,
    max_target_tokens: int,
    most: int,
) -> TokenizedSplit:
    """The split with the targets of at most `most` pairs for each rationale; examples: those that it was made from.

    There are none for a rationale of weight 0, and none for an example whose label in training is not the teacher's:
    its own rationale argues for another label. A pair is left out if a target of it is longer than max_target_tokens
    or has the tokens of another target of the same task of that rationale, such as the original one.
    """
    kept = [example for example, keep in zip(examples, split.kept, strict=True) if keep]
    counts, ids = [], {task: list[list[int]]() for task in split.tasks}
    for start in range(0, len(kept), CHUNK):
        texts: dict[str, list[str]] = {task: [] for task in split.tasks}
        found: list[int] = []
        rationale = int(split.rationale_offsets[start])
        for each in _expand(kept[start : start + CHUNK]):
            agrees = each.teacher_label is None or is_correct(
                each.teacher_label, training_label(each, label_type), each.kind
            )
            pairs = find_pairs(each, most) if agrees and split.weights[rationale + len(found)] > 0 else ()
            others = [_as_example(each, pair, rationale_answer) for pair in pairs[:most]]
            for task, listed in texts.items():
                listed += [text.target for text in task_texts(others, objective, task, "gt")]
            found.append(len(others))
        encoded = {task: [[*each, EOS_ID] for each in vocabulary.encode(listed)] for task, listed in texts.items()}
        place = 0
        for number, of_rationale in enumerate(found):
            chosen = _choose(split, rationale + number, encoded, range(place, place + of_rationale), max_target_tokens)
            for task, listed_ids in ids.items():
                listed_ids += [encoded[task][index] for index in chosen]
            counts.append(len(chosen))
            place += of_rationale
    targets = {task: Ragged.of(each) for task, each in ids.items()}
    offsets = offsets_of(np.array(counts, np.int64))
    return dataclasses.replace(split, counterfactuals=CounterfactualTargets(offsets, targets, most))


def _as_example(example: Example, pair: Pair, rationale_answer: RationaleAnswer) -> Example:
    """The example with the label and the rationale of a pair."""
    other = dataclasses.replace(
        example,
        label=pair.label,
        teacher_label=pair.label,
        rationale=pair.rationale,
        answer_text=pair.answer_text,
        counterfactuals=(),
    )
    return dataclasses.replace(other, rationale=state_answer(other, rationale_answer, pair.label).text)


def _expand(examples: Sequence[Example]) -> Iterator[Example]:
    for example in examples:
        yield from one_per_rationale(example)


def _choose(
    split: TokenizedSplit, rationale: int, encoded: dict[str, list[list[int]]], pairs: range, limit: int
) -> list[int]:
    """Those of the pairs whose targets are short enough and differ from all others of the rationale."""
    if not pairs:
        return []
    example = int(np.searchsorted(split.rationale_offsets, rationale, side="right")) - 1
    taken: dict[str, list[list[int]]] = {}
    for task, tokens in split.tasks.items():
        row = rationale if tokens.per_rationale else example
        taken[task] = [tokens.targets.flat[tokens.targets.offsets[row] : tokens.targets.offsets[row + 1]].tolist()]
    chosen = []
    for index in pairs:
        targets = {task: encoded[task][index] for task in taken}
        if all(len(ids) <= limit and ids not in taken[task] for task, ids in targets.items()):
            chosen.append(index)
            for task, ids in targets.items():
                taken[task].append(ids)
    return chosen

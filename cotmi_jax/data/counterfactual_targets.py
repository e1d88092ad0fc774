"""Tokens of counterfactual pairs, as further targets of the inputs of a split."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np

from cotmi_jax.data.counterfactuals import with_pair
from cotmi_jax.data.example import Example, Pair
from cotmi_jax.data.labels import is_correct
from cotmi_jax.data.rationale_answer import RationaleAnswer, state_answer
from cotmi_jax.data.tasks import LabelType, ObjectiveName, task_texts, training_label
from cotmi_jax.data.tokenize import one_per_rationale
from cotmi_jax.data.tokens import CounterfactualTargets, Ragged, TokenizedSplit, offsets_of
from cotmi_jax.data.vocabulary import EOS_ID, Vocabulary

FindPairs = Callable[[Example], Sequence[Pair]]  # of an example, whose labels are not its own


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
    """The split with the targets of the first `most` pairs of each rationale; examples: those that it was made from.

    There are none for a rationale of weight 0, and none for an example whose label in training is not the teacher's:
    its own rationale leads to another label. A pair is left out if a target of it is longer than max_target_tokens
    or has the tokens of another target of the same task of that rationale, such as the original one.
    """
    kept = [example for example, keep in zip(examples, split.kept, strict=True) if keep]
    texts: dict[str, list[str]] = {task: [] for task in split.tasks}
    found: list[int] = []
    for each in (copy for example in kept for copy in one_per_rationale(example)):
        label = training_label(each, label_type)
        agrees = each.teacher_label is None or is_correct(each.teacher_label, label, each.kind)
        pairs = find_pairs(each) if agrees and split.weights[len(found)] > 0 else ()
        others = [_as_example(each, pair, rationale_answer) for pair in pairs[:most]]
        for task, listed in texts.items():
            listed += [text.target for text in task_texts(others, objective, task, "gt")]
        found.append(len(others))
    encoded = {task: [[*ids, EOS_ID] for ids in vocabulary.encode(listed)] for task, listed in texts.items()}
    starts, owner = offsets_of(np.array(found, np.int64)), np.repeat(np.arange(split.size), split.rationale_counts)
    chosen = [
        _choose(_own_targets(split, rationale, int(owner[rationale])), encoded, range(start, stop), max_target_tokens)
        for rationale, (start, stop) in enumerate(itertools.pairwise(starts.tolist()))
    ]
    targets = {task: Ragged.of([ids[index] for each in chosen for index in each]) for task, ids in encoded.items()}
    offsets = offsets_of(np.fromiter(map(len, chosen), np.int64, len(chosen)))
    return dataclasses.replace(split, counterfactuals=CounterfactualTargets(offsets, targets, most))


def _as_example(example: Example, pair: Pair, rationale_answer: RationaleAnswer) -> Example:
    """The example with a pair, whose rationale states its answer as those of the split do."""
    other = with_pair(example, pair)
    return dataclasses.replace(other, rationale=state_answer(other, rationale_answer, pair.label).text)


def _own_targets(split: TokenizedSplit, rationale: int, example: int) -> dict[str, list[int]]:
    """The target of each task of an example with one of its rationales."""
    rows = {task: rationale if tokens.per_rationale else example for task, tokens in split.tasks.items()}
    return {task: split.tasks[task].targets.concatenated(np.array([row])).tolist() for task, row in rows.items()}


def _choose(own: dict[str, list[int]], encoded: dict[str, list[list[int]]], pairs: range, limit: int) -> list[int]:
    """Those of the pairs whose targets are short enough and differ from the example's own and from one another."""
    taken = {task: [ids] for task, ids in own.items()}
    chosen = []
    for index in pairs:
        targets = {task: encoded[task][index] for task in taken}
        if all(len(ids) <= limit and ids not in taken[task] for task, ids in targets.items()):
            chosen.append(index)
            for task, ids in targets.items():
                taken[task].append(ids)
    return chosen

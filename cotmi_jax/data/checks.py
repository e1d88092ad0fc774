"""What is wrong or absent in a corpus: labels, repeated inputs, overlap of splits, unknown tokens, and what is cut."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypedDict

from cotmi_jax.data.example import EOS_TEXT, Example
from cotmi_jax.data.lost_labels import find_lost_labels
from cotmi_jax.data.vocabulary import Vocabulary
from cotmi_jax.errors import one_line

CLOSED = 12  # a set with at most so many labels is closed: all are shown; of others the most frequent
SHOWN_LABELS = 5


class SplitChecks(TypedDict):
    """Counts of a split, in types of JSON.

    labels: the most frequent labels, all of a closed set. distinct_labels: how many there are.
    without_rationale: examples without a rationale.
    repeated_inputs: examples whose input an earlier one has. contradictory: those of them with another label.
    inputs_in_train, contexts_in_train, clusters_in_train: examples whose input, context or cluster is one of train;
      None for train.
    unknown, cut: unknown tokens, and texts longer than the limits, by column.
    lost_labels: labels that the vocabulary cannot represent.
    """

    labels: dict[str, int]
    distinct_labels: int
    without_rationale: int
    repeated_inputs: int
    contradictory: int
    inputs_in_train: int | None
    contexts_in_train: int | None
    clusters_in_train: int | None
    unknown: dict[str, int]
    cut: dict[str, int]
    lost_labels: int


def context_of(example: Example) -> str:
    """What related examples share: the text before the first `</s>` or line end, such as a premise or a story.

    The numbers of equation problems are left out: variants of one problem differ in them.
    """
    context = re.split(f"{re.escape(EOS_TEXT)}|\n", example.input, maxsplit=1)[0]
    return re.sub(r"[0-9]+", "#", context) if example.kind == "equation" else context


def check_splits(
    splits: Mapping[str, Sequence[Example]], vocabulary: Vocabulary, limits: Mapping[str, int], input_prefix: str
) -> dict[str, SplitChecks]:
    """The counts of every split. limits: maximum number of tokens of each column, including eos."""
    inputs = {example.input for example in splits.get("train", ())}
    contexts = {context_of(example) for example in splits.get("train", ())}
    clusters = {example.cluster or example.id for example in splits.get("train", ())}
    found = {}
    for name, examples in splits.items():
        earlier = _repeated(examples)
        labels = Counter(example.label for example in examples)
        held_out = name != "train" and "train" in splits
        unknown, cut = _tokens(examples, vocabulary, limits, input_prefix)
        found[name] = SplitChecks(
            labels=dict(labels.most_common(CLOSED if len(labels) <= CLOSED else SHOWN_LABELS)),
            distinct_labels=len(labels),
            without_rationale=sum(not example.rationale.strip() for example in examples),
            repeated_inputs=len(earlier),
            contradictory=sum(a != b for a, b in earlier),
            inputs_in_train=sum(example.input in inputs for example in examples) if held_out else None,
            contexts_in_train=sum(context_of(example) in contexts for example in examples) if held_out else None,
            clusters_in_train=sum(each.cluster in clusters for each in examples) if held_out else None,
            unknown=unknown,
            cut=cut,
            lost_labels=len(find_lost_labels(examples, vocabulary)),
        )
    return found


def _repeated(examples: Sequence[Example]) -> list[tuple[str, str]]:
    """First label and own label of every example whose input an earlier one has."""
    first: dict[str, str] = {}
    pairs = []
    for example in examples:
        if example.input in first:
            pairs.append((first[example.input], example.label))
        else:
            first[example.input] = example.label
    return pairs


def _tokens(
    examples: Sequence[Example], vocabulary: Vocabulary, limits: Mapping[str, int], input_prefix: str
) -> tuple[dict[str, int], dict[str, int]]:
    unknown, cut = {}, {}
    for column, limit in limits.items():
        prefix = input_prefix if column == "input" else ""
        encoded = vocabulary.encode([prefix + str(getattr(example, column)) for example in examples])
        unknown[column] = sum(ids.count(vocabulary.unk_id) for ids in encoded) if vocabulary.unk_id is not None else 0
        cut[column] = sum(len(ids) + 1 > limit for ids in encoded)
    return unknown, cut


def format_checks(checks: Mapping[str, SplitChecks]) -> str:
    """A table with a row for each count and a column for each split."""
    rows = [["", *checks]]
    for key, text in (
        ("without_rationale", "without a rationale"),
        ("repeated_inputs", "repeats an earlier input"),
        ("contradictory", "  with another label"),
        ("inputs_in_train", "input is in train"),
        ("contexts_in_train", "context is in train"),
        ("clusters_in_train", "cluster is in train"),
        ("lost_labels", "label not in the vocabulary"),
    ):
        counts = [dict(split)[key] for split in checks.values()]
        rows.append([text, *("-" if count is None else str(count) for count in counts)])
    for column in ("input", "label", "rationale"):
        rows.append([f"unknown tokens, {column}", *(str(split["unknown"][column]) for split in checks.values())])
        rows.append([f"longer than the limit, {column}", *(str(split["cut"][column]) for split in checks.values())])
    rows.append(["distinct labels", *(str(split["distinct_labels"]) for split in checks.values())])
    for label in dict.fromkeys(label for split in checks.values() for label in split["labels"]):
        # A dash: not among the most frequent of that split, whose number is not known here.
        rows.append([f"  {one_line(label, 40)}", *(str(split["labels"].get(label, "-")) for split in checks.values())])
    width = max(len(row[0]) for row in rows)
    return "\n".join(row[0].ljust(width) + "".join(cell.rjust(10) for cell in row[1:]) for row in rows)

"""Statistics of a corpus: sizes, lengths in tokens, accuracy of the teacher, and a few examples."""

import textwrap
from collections.abc import Callable, Sequence
from typing import TypedDict

import numpy as np

from cotmi_jax.data.corpus import LoadedCorpus
from cotmi_jax.data.counterfactuals import Counts, count_counterfactuals
from cotmi_jax.data.example import Example
from cotmi_jax.data.labels import is_correct

NUM_SAMPLES = 3
TERMINAL_WIDTH = 100
FIELDS = ("input", "label", "rationale")
SHOWN = ("id", *FIELDS, "teacher_label")


class Lengths(TypedDict):
    """Numbers of tokens over the examples of a split; p95 is the 95th percentile, interpolated linearly."""

    mean: float
    p95: float
    max: int


class SplitDescription(TypedDict):
    """Counts of a split; accuracies are over all its examples.

    teacher_exact, teacher_value, unparsable: None if no example has a teacher's label. teacher_value: also None unless
    labels are equations. counterfactuals: numbers of examples (`counterfactuals.Counts`); None if no rule applies.
    """

    examples: int
    tokens: dict[str, Lengths]
    teacher_exact: float | None
    teacher_value: float | None
    unparsable: int | None
    skipped: int
    counterfactuals: dict[str, int] | None


class ComponentDescription(TypedDict):
    """One data set of a mixture: its number of examples in train and its rate."""

    name: str
    train: int
    rate: float


class Description(TypedDict):
    """Statistics of a corpus, in types of JSON.

    components: the data sets of a mixture.
    skip_notes: place and reason of the first rows that were skipped.
    samples: the first examples of the first split.
    """

    name: str
    label_kind: str
    components: list[ComponentDescription]
    skip_notes: list[str]
    splits: dict[str, SplitDescription]
    samples: list[dict[str, str | None]]


def describe(
    loaded: LoadedCorpus,
    encode: Callable[[list[str]], list[list[int]]],
    input_prefix: str = "",
) -> Description:
    """Computes the statistics of every split of a corpus; no split may be empty.

    Args:
      loaded: the corpus.
      encode: texts → token ids; an end-of-sequence token that it appends is counted. It must encode `example.EOS_TEXT`.
      input_prefix: prepended to every input before its tokens are counted, such as "predict: ".
    """
    corpus = loaded.corpus
    by_value = corpus.label_kind == "equation"
    splits: dict[str, SplitDescription] = {}
    for split, examples in corpus.splits.items():
        inputs = [input_prefix + example.input for example in examples]
        taught = any(example.teacher_label is not None for example in examples)
        splits[split] = SplitDescription(
            examples=len(examples),
            tokens={
                "input": _lengths(encode(inputs)),
                "label": _lengths(encode([example.label for example in examples])),
                "rationale": _lengths(encode([example.rationale for example in examples])),
            },
            teacher_exact=_teacher_accuracy(examples, str.__eq__) if taught else None,
            teacher_value=_teacher_accuracy(examples, _equal_values) if taught and by_value else None,
            unparsable=loaded.unparsed[split] if taught else None,
            skipped=loaded.skipped.get(split, 0),
            counterfactuals=_plain(count_counterfactuals(examples)),
        )
    first = next(iter(corpus.splits.values()))
    samples = [{field: getattr(example, field) for field in SHOWN} for example in first[:NUM_SAMPLES]]
    return Description(
        name=corpus.name,
        label_kind=corpus.label_kind,
        components=[ComponentDescription(name=c.name, train=c.size, rate=c.rate) for c in loaded.components],
        skip_notes=list(loaded.skip_notes),
        splits=splits,
        samples=samples,
    )


def format_description(description: Description) -> str:
    """A table of the splits, and the samples, for a terminal of TERMINAL_WIDTH columns."""
    header = ["split", "examples", *FIELDS, "teacher", "unparsable"]
    by_value = any(split["teacher_value"] is not None for split in description["splits"].values())
    if by_value:
        header.insert(header.index("teacher") + 1, "by value")
    skipping = any(split["skipped"] for split in description["splits"].values())
    rows = [header + ["skipped"] * skipping]
    for name, split in description["splits"].items():
        lengths = [f"{n['mean']:.1f} / {n['p95']:.0f} / {n['max']}" for n in (split["tokens"][f] for f in FIELDS)]
        accuracies = [split["teacher_exact"], *([split["teacher_value"]] if by_value else [])]
        shown = ["-" if accuracy is None else f"{accuracy:.2%}" for accuracy in accuracies]
        counts = [split["unparsable"], *([split["skipped"]] if skipping else [])]
        absent = ["-" if count is None else str(count) for count in counts]
        rows.append([name, str(split["examples"]), *lengths, *shown, *absent])
    compared = "as text and by value" if by_value else "as text"
    notes = [
        f"{', '.join(FIELDS)}: tokens, as mean / 95th percentile / maximum",
        f"teacher: fraction of its labels equal to the gold label, {compared}",
    ]
    without = [name for name, split in description["splits"].items() if split["teacher_exact"] is None]
    if without:
        notes.append(f"no teacher labels in {', '.join(without)}: there is no teacher, or none of them can be read")
    notes += _counterfactual_lines(description)
    if skipping:
        notes += ["skipped: rows that cannot be used, such as", *(f"  {note}" for note in description["skip_notes"])]
    if len(description["components"]) > 1:
        notes += [f"{c['name']}: {c['train']} train, rate {c['rate']:g}" for c in description["components"]]
    title = f"{description['name']} ({description['label_kind']} labels)"
    return "\n".join([title, "", *_table(rows), "", *notes, *map(_format_sample, description["samples"])])


def _plain(counts: Counts | None) -> dict[str, int] | None:
    return None if counts is None else counts._asdict()


def _counterfactual_lines(description: Description) -> list[str]:
    """How many examples of each split have counterfactuals, and why others have none."""
    lines = []
    for name, split in description["splits"].items():
        counts, n = split["counterfactuals"], split["examples"]
        if counts is not None:
            lines.append(
                f"  {name}: {counts['found']} of {n} ({counts['found'] / n:.1%}); of the others the teacher answers "
                f"otherwise in {counts['other_answer']}"
            )
    return ["counterfactuals: examples with another answer whose rationale is given, or can be made", *lines] * (
        len(lines) > 0
    )


def _lengths(tokens: Sequence[Sequence[int]]) -> Lengths:
    lengths = np.array([len(ids) for ids in tokens])
    return Lengths(mean=float(lengths.mean()), p95=float(np.percentile(lengths, 95)), max=int(lengths.max()))


def _equal_values(a: str, b: str) -> bool:
    return is_correct(a, b, "equation")


def _teacher_accuracy(examples: Sequence[Example], equal: Callable[[str, str], bool]) -> float:
    """Fraction of examples whose teacher label is readable and equals the gold label."""
    correct = sum(e.teacher_label is not None and equal(e.teacher_label, e.label) for e in examples)
    return correct / len(examples)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table with columns as wide as their widest cell, the first left-aligned, the others right-aligned."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    padded = [[cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    return ["  ".join([row[0].ljust(widths[0]), *cells[1:]]) for row, cells in zip(rows, padded, strict=True)]


def _format_sample(sample: dict[str, str | None]) -> str:
    """An example, with its texts wrapped to the right of the field names."""
    lines = ["", str(sample["id"])]
    for field in SHOWN[1:]:
        text = sample[field]
        wrapped = ["(none that can be read)"] if text is None else [w for line in text.split("\n") for w in _wrap(line)]
        lines += [f"  {name:<14} {line}" for name, line in zip([field, *[""] * len(wrapped)], wrapped, strict=False)]
    return "\n".join(lines)


def _wrap(line: str) -> list[str]:
    return textwrap.wrap(line, width=TERMINAL_WIDTH - 17) or [""]

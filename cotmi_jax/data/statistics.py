"""What a corpus holds, counted: sizes, lengths in tokens, how often the teacher is right, and a few examples."""

import textwrap
from collections.abc import Callable, Sequence
from typing import TypedDict

import numpy as np

from cotmi_jax.data.corpus import LoadedCorpus
from cotmi_jax.data.example import Example

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
    """Counts of a split; accuracies are shares of all its examples, value is None where it is not defined."""

    examples: int
    tokens: dict[str, Lengths]
    teacher_exact: float
    teacher_value: float | None
    unparsable: int
    dropped: int
    skipped: int


class ComponentDescription(TypedDict):
    """One data set of a mixture: its examples in train and its share of the training stream."""

    name: str
    train: int
    rate: float


class Description(TypedDict):
    """All of it, ready for json.dumps; samples are the first examples of the first split, field by field.

    components: of a mixture, names with sizes of train and rates. skip_notes: where and why rows were skipped.
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
    equal_values: Callable[[str, str], bool] | None = None,
    input_prefix: str = "",
) -> Description:
    """Describes every split of a corpus; no split may be empty.

    Args:
      loaded: what to describe.
      encode: texts to token ids; counts include an end-of-sequence token exactly if it appends one. It has to know
        `example.EOS_TEXT`.
      equal_values: whether a teacher's equation and the gold one have the same value; only asked where labels are
        equations and the teacher's is readable, and False where it has no value: "(a few - 6)", "(6 + n)".
      input_prefix: put before every input before it is counted, such as the "predict: " a student reads.
    """
    corpus = loaded.corpus
    value_test = equal_values if corpus.label_kind == "equation" else None
    splits: dict[str, SplitDescription] = {}
    for split, examples in corpus.splits.items():
        inputs = [input_prefix + example.input for example in examples]
        splits[split] = SplitDescription(
            examples=len(examples),
            tokens={
                "input": _lengths(encode(inputs)),
                "label": _lengths(encode([example.label for example in examples])),
                "rationale": _lengths(encode([example.rationale for example in examples])),
            },
            teacher_exact=_teacher_accuracy(examples, str.__eq__),
            teacher_value=None if value_test is None else _teacher_accuracy(examples, value_test),
            unparsable=loaded.unparsed[split],
            dropped=loaded.dropped[split],
            skipped=loaded.skipped.get(split, 0),
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
    """A table of the splits and the sample examples, for a terminal about 100 columns wide."""
    header = ["split", "examples", *FIELDS, "teacher", "unparsable", "dropped"]
    by_value = any(split["teacher_value"] is not None for split in description["splits"].values())
    if by_value:
        header.insert(header.index("teacher") + 1, "by value")
    skipping = any(split["skipped"] for split in description["splits"].values())
    rows = [header + ["skipped"] * skipping]
    for name, split in description["splits"].items():
        lengths = [f"{n['mean']:.1f} / {n['p95']:.0f} / {n['max']}" for n in (split["tokens"][f] for f in FIELDS)]
        accuracies = [split["teacher_exact"], *([split["teacher_value"]] if by_value else [])]
        shown = ["-" if accuracy is None else f"{accuracy:.2%}" for accuracy in accuracies]
        counts = [split["unparsable"], split["dropped"], *([split["skipped"]] if skipping else [])]
        rows.append([name, str(split["examples"]), *lengths, *shown, *map(str, counts)])
    right = "as text and by value" if by_value else "as text"
    notes = [
        f"{', '.join(FIELDS)}: tokens, as mean / 95th percentile / maximum",
        f"teacher: share of its labels equal to the gold label, {right}",
    ]
    if skipping:
        notes += ["skipped: rows that cannot be used, such as", *(f"  {note}" for note in description["skip_notes"])]
    if len(description["components"]) > 1:
        notes += [f"{c['name']}: {c['train']} train, rate {c['rate']:g}" for c in description["components"]]
    title = f"{description['name']} ({description['label_kind']} labels)"
    return "\n".join([title, "", *_table(rows), "", *notes, *map(_format_sample, description["samples"])])


def _lengths(tokens: Sequence[Sequence[int]]) -> Lengths:
    lengths = np.array([len(ids) for ids in tokens])
    return Lengths(mean=float(lengths.mean()), p95=float(np.percentile(lengths, 95)), max=int(lengths.max()))


def _teacher_accuracy(examples: Sequence[Example], equal: Callable[[str, str], bool]) -> float:
    """Share of examples whose teacher label is readable and equals the gold label."""
    right = sum(e.teacher_label is not None and bool(equal(e.teacher_label, e.label)) for e in examples)
    return right / len(examples)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns padded to their widest cell, the first flush left and the others flush right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    padded = [[cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    return ["  ".join([row[0].ljust(widths[0]), *cells[1:]]) for row, cells in zip(rows, padded, strict=True)]


def _format_sample(sample: dict[str, str | None]) -> str:
    """An example, its texts wrapped to the right of their names."""
    lines = ["", str(sample["id"])]
    for field in SHOWN[1:]:
        text = sample[field]
        wrapped = ["(not readable)"] if text is None else [w for line in text.split("\n") for w in _wrap(line)]
        lines += [f"  {name:<14} {part}" for name, part in zip([field, *[""] * len(wrapped)], wrapped, strict=False)]
    return "\n".join(lines)


def _wrap(line: str) -> list[str]:
    return textwrap.wrap(line, width=TERMINAL_WIDTH - 17) or [""]

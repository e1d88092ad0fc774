"""What every source yields: annotated examples, grouped in splits."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

LabelKind = Literal["text", "equation"]
SPLITS = ("train", "valid", "test")
EOS_TEXT = "</s>"  # separates the sentences of an input; a vocabulary encodes it as the end-of-sequence id


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """One problem with its gold label and what the teacher made of it.

    id is "{data set}/{split}/{row}", row counted from 0 in the source file or the id that the row gives itself, so that
    a prediction can be traced back.
    teacher_label is None where there is no teacher, or its completion held no readable label.
    weight is that of the rationale in the loss, at least 0; at 0 the example teaches its label alone.
    more holds further rationales with their weights: training takes one after the other, epoch by epoch.
    kind says how the label is scored; place is "file:line" for messages.
    """

    id: str
    input: str
    label: str
    rationale: str
    teacher_label: str | None = None
    weight: float = 1.0
    more: tuple[tuple[str, float], ...] = ()
    kind: LabelKind = "text"
    place: str = dataclasses.field(default="", compare=False)

    @property
    def rationales(self) -> tuple[tuple[str, float], ...]:
        """Every rationale with its weight."""
        return ((self.rationale, self.weight), *self.more)


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A data set as read: its splits by name, how many bad rows of each were skipped, and what was wrong with some."""

    name: str
    splits: dict[str, tuple[Example, ...]]
    skipped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    skip_notes: tuple[str, ...] = ()

    @property
    def label_kind(self) -> str:
        """How labels are scored: text, equation, or mixed."""
        kinds = {example.kind for examples in self.splits.values() for example in examples}
        return kinds.pop() if len(kinds) == 1 else "mixed"

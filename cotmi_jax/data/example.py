"""What every source yields: annotated examples, grouped in splits."""

import dataclasses
from typing import Literal

LabelKind = Literal["text", "equation"]
SPLITS = ("train", "valid", "test")


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """One problem with its gold label and what the teacher made of it.

    id is "{data set}/{split}/{row}", row counted from 0 in the source file, so that a prediction can be traced back.
    teacher_label is None where the teacher's completion held no readable label.
    """

    id: str
    input: str
    label: str
    rationale: str
    teacher_label: str | None = None


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A data set as read: splits by name and how its labels are scored."""

    name: str
    label_kind: LabelKind
    splits: dict[str, tuple[Example, ...]]

"""What every source returns: annotated examples, by split."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

LabelKind = Literal["text", "equation"]
SPLITS = ("train", "valid", "test")
MAX_WEIGHT = 1e6  # of a rationale or token in the loss, where a file or the user states it
EOS_TEXT = "</s>"  # separates the sentences of an input; a vocabulary encodes it as the end-of-sequence id


class Span(NamedTuple):
    """The weight in the loss of the tokens of the characters text[start:end]."""

    start: int
    end: int
    weight: float


class Pair(NamedTuple):
    """A label, and the rationale that leads to it.

    answer_text: the sentence that states the label after the rationale, where the teacher wrote one; else "".
    """

    label: str
    rationale: str
    answer_text: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """One problem with its gold label and the teacher's rationale and label.

    id: "{data set}/{split}/{row}", where row is counted from 0 in the source file, or is the row's own id.
    teacher_label: None if there is no teacher, or the label in its completion cannot be read.
    weight: weight of the rationale in the loss, at least 0; at 0 only the label is trained.
    more: further rationales with their weights; training uses one rationale per epoch, in turn.
    kind: how the label is compared.
    place: "file:line" for messages.
    answer_text: the sentence that states the teacher's label after the rationale and ends with it, such as "So the
      answer is (d) a cork", where the teacher wrote one and the first rationale was cut before it; else "".
    counterfactuals: answers of the same input other than the label, each with a rationale that leads to it, from the
      user's data; `counterfactuals.counterfactuals` makes others.
    choices: the labels that the example can have, of which its own is one, where they are given; () if they are not,
      as for equations.
    token_weights: spans of each rationale, in the order of `rationales`, that have another weight than 1 in the loss of
      its tokens (config.data.token_weights); () if no rationale has any.
    cluster: a key that dependent examples have in common, such as hypotheses about one premise, in any split; "" for an
      example that is independent of all others.
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
    # Not in repr, which identifies the examples of registered sources: without these they keep their identity.
    answer_text: str = dataclasses.field(default="", repr=False)
    counterfactuals: tuple[Pair, ...] = dataclasses.field(default=(), repr=False)
    choices: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    cluster: str = dataclasses.field(default="", repr=False)
    token_weights: tuple[tuple[Span, ...], ...] = dataclasses.field(default=(), repr=False)

    @property
    def rationales(self) -> tuple[tuple[str, float], ...]:
        """Every rationale with its weight."""
        return ((self.rationale, self.weight), *self.more)

    @property
    def spans(self) -> tuple[tuple[Span, ...], ...]:
        """token_weights, with () for each rationale if there are none."""
        return self.token_weights or ((),) * len(self.rationales)


def is_weight(number: float) -> bool:
    """Whether a number can be a weight in the loss: from 0 to MAX_WEIGHT."""
    return 0.0 <= number <= MAX_WEIGHT


def with_factors(example: Example, factors: Sequence[float]) -> Example:
    """The example with the weight of each rationale multiplied; those of weight 0 are left out unless all are."""
    weights = [weight * factor for (_, weight), factor in zip(example.rationales, factors, strict=True)]
    kept = [index for index, weight in enumerate(weights) if weight > 0] or [0]
    first, *more = ((example.rationales[index][0], weights[index]) for index in kept)
    spans = tuple(example.spans[index] for index in kept)
    return dataclasses.replace(
        example,
        rationale=first[0],
        weight=first[1],
        more=tuple(more),
        answer_text=example.answer_text if kept[0] == 0 else "",
        token_weights=spans if any(spans) else (),
    )


def merge_rationales(example: Example) -> Example:
    """The example with identical rationales merged into one, whose weight holds their frequency.

    Rationales whose token weights differ are not identical.

    The weight is their sum, times distinct/all rationales: each rationale is then used in one of `distinct` epochs, not
    of `all`, and the mean weight of an epoch and the sum of the losses over the epochs have the same proportions.
    """
    weights: dict[tuple[str, tuple[Span, ...]], float] = {}
    for (text, weight), of_text in zip(example.rationales, example.spans, strict=True):
        weights[text, of_text] = weights.get((text, of_text), 0.0) + weight
    scale = len(weights) / len(example.rationales)
    (first, weight), *more = ((text, scale * weight) for (text, _), weight in weights.items())
    spans = tuple(each for _, each in weights)
    token_weights = spans if any(spans) else ()
    return dataclasses.replace(example, rationale=first, weight=weight, more=tuple(more), token_weights=token_weights)


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A data set as read. skipped: number of bad rows by split; skip_notes: place and reason of the first few."""

    name: str
    splits: dict[str, tuple[Example, ...]]
    skipped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    skip_notes: tuple[str, ...] = ()

    @property
    def label_kind(self) -> str:
        """How labels are compared: text, equation, or mixed."""
        kinds = {example.kind for examples in self.splits.values() for example in examples}
        return kinds.pop() if len(kinds) == 1 else "mixed"

"""Weights of the tokens of a rationale in its loss: from spans of characters that the data give, or by rule.

Weights belong to characters, so that data know no vocabulary: those of the spans and rules that hold a character are
multiplied, and the weight of a token is the mean over its characters, whitespace apart. Eos has weight 1.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from cotmi_jax.data.example import MAX_WEIGHT, Example, Span, is_weight
from cotmi_jax.data.vocabulary import Vocabulary
from cotmi_jax.errors import UserError, one_line, shown

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_FORM = "give given, numbers=W and answer=W, separated by commas, or nothing"


@dataclasses.dataclass(frozen=True)
class TokenWeights:
    """config.data.token_weights. given: spans of the data count. numbers, answer: factors of these characters."""

    given: bool = False
    numbers: float = 1.0
    answer: float = 1.0

    def of_characters(self, example: Example, answer: tuple[int, int]) -> np.ndarray:
        """The weight of each character of an example's first rationale; answer: start and end of its answer in it."""
        weights = np.ones(len(example.rationale))
        spans = [*example.token_weights[0]] if self.given and example.token_weights else []
        if self.numbers != 1.0:
            spans += [Span(*match.span(), self.numbers) for match in _NUMBER.finditer(example.rationale)]
        for start, end, weight in (*spans, (*answer, self.answer)):
            weights[start:end] *= weight
        return weights


def parse_token_weights(text: str) -> TokenWeights | None:
    """config.data.token_weights; None of "". UserError for an unknown rule, one given twice, or an invalid weight."""
    found: dict[str, float | bool] = {}
    for part in text.split(",") if text.strip() else ():
        name, equals, value = (each.strip() for each in part.partition("="))
        try:
            number = float(value) if equals else 0.0
        except ValueError:
            number = -1.0
        known = name == "given" and not equals or name in ("numbers", "answer") and equals and is_weight(number)
        if not known or name in found:
            raise UserError(
                f"config.data.token_weights: {one_line(part.strip())!r} is no rule, each at most once with a weight of "
                f"0 to {MAX_WEIGHT:g}: {_FORM}"
            )
        found[name] = number if equals else True
    return TokenWeights(**found) if found else None  # type: ignore[arg-type]


def parse_spans(given: object, text: str, place: str) -> tuple[Span, ...]:
    """The spans [start, end, weight] of a rationale, in order. UserError for anything else, or spans that overlap."""
    spans = []
    for item in given if isinstance(given, list) else [given]:
        numbers: list[Any] = item if isinstance(item, list) and len(item) == 3 else [None]
        if not all(type(each) is int for each in numbers[:2]) or type(numbers[-1]) not in (int, float):
            raise UserError(f"{place}: {shown(item)}; give a list of [start, end, weight], the first two whole numbers")
        start, end, weight = numbers
        if not 0 <= start < end <= len(text) or not is_weight(weight):
            raise UserError(
                f"{place}: {shown(item)}; give [start, end, weight] with 0 ≤ start < end ≤ {len(text)}, the number of "
                f"characters of the rationale, and a weight of 0 to {MAX_WEIGHT:g}"
            )
        spans.append(Span(start, end, float(weight)))
    spans.sort()
    for one, other in zip(spans, spans[1:], strict=False):
        if other.start < one.end:
            raise UserError(f"{place}: {shown([*one])} and {shown([*other])} overlap; give each character one weight")
    return tuple(spans)


def strip_spans(spans: Sequence[Span], text: str) -> tuple[Span, ...]:
    """The spans of a text as spans of text.strip()."""
    lead, length = len(text) - len(text.lstrip()), len(text.strip())
    moved = (Span(max(start - lead, 0), min(end - lead, length), weight) for start, end, weight in spans)
    return tuple(span for span in moved if span.start < span.end)


def weigh_tokens(
    rules: TokenWeights,
    examples: Sequence[Example],
    answers: Sequence[tuple[int, int]],
    targets: Sequence[str],
    vocabulary: Vocabulary,
) -> list[np.ndarray]:
    """The weight of each token of a target, without eos: those of its rationale; tokens outside it have weight 1.

    examples: one for each target, with its rationale alone. answers: characters of the answer in that rationale.

    Raises:
      UserError: a target does not contain its rationale.
    """
    found = []
    for example, answer, target, spans in zip(examples, answers, targets, vocabulary.spans(targets), strict=True):
        start = target.find(example.rationale)
        if start < 0:
            raise UserError(
                f"{example.place or example.id}: the objective's target does not contain the rationale as it is, which "
                "config.data.token_weights weighs: leave it empty"
            )
        weights = np.ones(len(target))
        weights[start : start + len(example.rationale)] = rules.of_characters(example, answer)
        found.append(_mean_over(spans, weights, target))
    return found


def _mean_over(spans: Sequence[tuple[int, int]], weights: np.ndarray, text: str) -> np.ndarray:
    """The mean weight of the characters [start, end) of each token, whitespace apart where there are others.

    A token without characters, as all bytes of a character but one are, has the weight of the next character.
    """
    if not len(spans) or (weights == 1.0).all():
        return np.ones(len(spans), np.float32)
    start, end = np.array(spans, np.int64).T
    end = np.minimum(np.maximum(end, start + 1), len(text))
    counts = np.array([not character.isspace() for character in text], float)
    sums, numbers, plain = (np.concatenate([[0.0], np.cumsum(x)]) for x in (weights * counts, counts, weights))
    number = numbers[end] - numbers[start]
    blank = (plain[end] - plain[start]) / np.maximum(end - start, 1)
    mean = np.where(number > 0, (sums[end] - sums[start]) / np.maximum(number, 1.0), blank)
    return np.where(end > start, mean, 1.0).astype(np.float32)

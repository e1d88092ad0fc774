"""The data sets that the package generates, by name, each with its own vocabulary."""

import pathlib
from typing import Protocol

from cotmi_jax.data.sources import arithmetic, deduction
from cotmi_jax.data.sources.base import Source


class MakeSource(Protocol):
    """Constructor of a source: number of train examples, version of the set."""

    def __call__(self, size: int, version: int) -> Source: ...


GENERATED: dict[str, MakeSource] = {
    "arithmetic": arithmetic.ArithmeticSource,
    "deduction": deduction.DeductionSource,
}
# SentencePiece models for students with random parameters; `train_vocabulary` writes them.
VOCABULARIES: dict[str, pathlib.Path] = {
    "arithmetic": arithmetic.VOCABULARY_PATH,
    "deduction": deduction.VOCABULARY_PATH,
}

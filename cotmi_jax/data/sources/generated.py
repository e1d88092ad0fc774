"""The data sets that the package generates, by name, each with its own vocabulary."""

import dataclasses
import pathlib
from collections.abc import Collection
from typing import Protocol

from cotmi_jax.data.example import SPLITS, Corpus
from cotmi_jax.data.sources import arithmetic, deduction
from cotmi_jax.data.sources.base import digest
from cotmi_jax.errors import UserError


class MakeCorpus(Protocol):
    """Makes a set: seed, number of train examples, version."""

    def __call__(self, seed: int, num_train: int, *, version: int) -> Corpus: ...


GENERATED: dict[str, MakeCorpus] = {"arithmetic": arithmetic.make_arithmetic, "deduction": deduction.make_deduction}
# SentencePiece models for students with random parameters; `train_vocabulary` writes them.
VOCABULARIES: dict[str, pathlib.Path] = {
    "arithmetic": arithmetic.VOCABULARY_PATH,
    "deduction": deduction.VOCABULARY_PATH,
}


@dataclasses.dataclass(frozen=True)
class GeneratedSource:
    """A set of GENERATED as runs use it, with a fixed seed, so that all runs have the same valid and test splits.

    size: number of train examples, at least 1. version: of the set, as for `make_arithmetic` and `make_deduction`.
    """

    name: str
    size: int
    version: int = 1

    def read(self, splits: Collection[str] = SPLITS) -> Corpus:
        if self.size < 1:
            raise UserError(f"size = {self.size}: give the number of train examples, at least 1")
        corpus = GENERATED[self.name](0, self.size if "train" in splits else 0, version=self.version)
        return Corpus(corpus.name, {split: corpus.splits[split] for split in SPLITS if split in splits})

    def fingerprint(self) -> str:
        return digest(self.name, self.size, self.version)

"""The interface of every source of examples."""

import hashlib
from collections.abc import Collection, Iterable
from typing import Protocol

from cotmi_jax.data.example import SPLITS, Corpus
from cotmi_jax.data.sources.rows import read_bytes
from cotmi_jax.files import Path


class Source(Protocol):
    """A data set, with the settings it is read with."""

    @property
    def name(self) -> str:
        """Prefix of every example's id; the sources of a mixture have different names."""

    def read(self, splits: Collection[str] = SPLITS) -> Corpus:
        """Those of `splits` that the data set has; the others are not read and need not exist.

        UserError if one cannot be read or used, or if train is asked for and there is none.
        """

    def fingerprint(self) -> str:
        """Hexadecimal digest that changes with anything the corpus depends on. Reads files, but parses none."""


def digest(*values: object) -> str:
    """Hexadecimal SHA-256 of the representations of numbers, texts, and tuples of them."""
    return hashlib.sha256(repr(values).encode()).hexdigest()


def cluster_key(source: str, shared: str) -> str:
    """The cluster of the examples of a source that have a text in common, such as a premise."""
    return f"{source}/{hashlib.sha256(shared.encode()).hexdigest()[:16]}"


def digest_files(files: Iterable[tuple[str, Path]]) -> str:
    """The same of files: of their names and contents."""
    return digest(*((name, hashlib.sha256(read_bytes(path)).hexdigest()) for name, path in files))

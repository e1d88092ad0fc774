"""The one interface of everything that examples can come from."""

import hashlib
from collections.abc import Iterable
from typing import Protocol

from cotmi_jax.data.example import Corpus
from cotmi_jax.data.sources.rows import read_bytes
from cotmi_jax.files import Path


class Source(Protocol):
    """A data set that can be read, with whatever settings it is read by already in it."""

    @property
    def name(self) -> str:
        """Begins the id of every example; no two sources of a mixture share it."""

    def read(self) -> Corpus:
        """The data set as it lies there; it has a train split. UserError for whatever is wrong with it."""

    def fingerprint(self) -> str:
        """Hexadecimal digest that changes with anything the corpus depends on. Reads files, but parses none."""


def digest(*parts: object) -> str:
    """Hexadecimal SHA-256 of the representations of numbers, texts, and tuples of them."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def digest_files(files: Iterable[tuple[str, Path]]) -> str:
    """The same of files by name: of what they are called and what they hold."""
    return digest(*((name, hashlib.sha256(read_bytes(path)).hexdigest()) for name, path in files))

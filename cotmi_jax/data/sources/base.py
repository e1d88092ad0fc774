"""The interface of every source of examples."""

import hashlib
from collections.abc import Collection, Iterable, Mapping
from typing import Protocol

from cotmi_jax.data.example import SPLITS, Corpus
from cotmi_jax.data.sources.rows import read_bytes
from cotmi_jax.errors import UserError
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


def check_generated(
    name: str, seed: int, sizes: Mapping[str, int], teacher_error_rate: float, version: int, versions: Iterable[int]
) -> None:
    """Raises UserError for arguments with which a generated set cannot be made. sizes: examples by split."""
    for key, value in {"seed": seed, **{f"num_{split}": size for split, size in sizes.items()}}.items():
        if value < 0:
            raise UserError(f"{key} = {value}: give a number of at least 0")
    if not 0 <= teacher_error_rate <= 1:
        raise UserError(f"teacher_error_rate = {teacher_error_rate}: give a fraction between 0 and 1")
    if version not in (known := tuple(versions)):
        raise UserError(f"version = {version}: {name} has the versions {', '.join(map(str, known))}")


def digest(*values: object) -> str:
    """Hexadecimal SHA-256 of the representations of numbers, texts, and tuples of them."""
    return hashlib.sha256(repr(values).encode()).hexdigest()


def cluster_key(source: str, shared: str) -> str:
    """The cluster of the examples of a source that have a text in common, such as a premise."""
    return f"{source}/{hashlib.sha256(shared.encode()).hexdigest()[:16]}"


def digest_files(files: Iterable[tuple[str, Path]]) -> str:
    """The same of files: of their names and contents."""
    return digest(*((name, hashlib.sha256(read_bytes(path)).hexdigest()) for name, path in files))

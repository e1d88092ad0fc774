"""A user's own files: JSON Lines, CSV, TSV and Parquet, with the fields that `row_format` names."""

import dataclasses
from collections.abc import Callable, Collection, Sequence

from cotmi_jax.data.example import SPLITS, Corpus
from cotmi_jax.data.sources.arrow_rows import read_parquet_rows
from cotmi_jax.data.sources.base import digest, digest_files
from cotmi_jax.data.sources.csv_rows import read_csv_rows
from cotmi_jax.data.sources.row_format import RowFormat
from cotmi_jax.data.sources.rows import BadRows, RawRow, is_present, read_raw_rows, shown_path
from cotmi_jax.files import Path

# The suffix of files is the name of the format.
READERS: dict[str, Callable[[Path, RowFormat], Sequence[RawRow]]] = {
    "jsonl": lambda path, rows: read_raw_rows(path),
    "csv": lambda path, rows: read_csv_rows(path, ",", rows),
    "tsv": lambda path, rows: read_csv_rows(path, "\t", rows),
    "parquet": read_parquet_rows,
}


@dataclasses.dataclass(frozen=True)
class FileSource:
    """A file, which is one split, or a folder with train.FORMAT and optionally valid.FORMAT and test.FORMAT.

    format: one of READERS.
    rows: the fields of the rows, and the policy for bad ones.
    """

    format: str
    path: Path
    rows: RowFormat = RowFormat()

    @property
    def name(self) -> str:
        """From the name of the file or folder alone, so that ids do not depend on where it is stored."""
        return f"{self.format}:{self.path.stem if self.path.suffix == f'.{self.format}' else self.path.name}"

    def files(self, splits: Collection[str] = SPLITS) -> dict[str, Path]:
        """The file of each of `splits`; that of train may not exist.

        A single file is the train split; where only test is asked for, it is the test split.
        """
        if not self.path.is_dir():
            only = "test" if set(splits) == {"test"} else "train"
            return {split: self.path for split in splits if split == only}
        files = {split: self.path / f"{split}.{self.format}" for split in SPLITS if split in splits}
        return {split: path for split, path in files.items() if split == "train" or is_present(path)}

    def fingerprint(self) -> str:
        return digest((self.name, *self.rows.key), digest_files(self.files().items()))

    def read(self, splits: Collection[str] = SPLITS) -> Corpus:
        """UserError for a file that cannot be read or has no usable row and, unless they are skipped, for bad rows."""
        bad = BadRows(self.rows.bad_rows)
        read = {
            split: self.rows.examples(self.name, split, READERS[self.format](path, self.rows), shown_path(path), bad)
            for split, path in self.files(splits).items()
        }
        return Corpus(self.name, read, bad.skipped, tuple(bad.notes))

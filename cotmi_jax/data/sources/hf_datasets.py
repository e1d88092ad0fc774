"""Reads data sets with the library `datasets` of Hugging Face: from its hub, or from a folder."""

import contextlib
import dataclasses
import importlib.util
import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cotmi_jax.data.example import SPLITS, Corpus
from cotmi_jax.data.sources.arrow_rows import BATCH, ArrowRow, arrow_rows, check_columns
from cotmi_jax.data.sources.base import digest, digest_files
from cotmi_jax.data.sources.row_format import RowFormat
from cotmi_jax.data.sources.rows import BadRows
from cotmi_jax.errors import UserError, one_line

# The names that their splits have on the hub.
HF_SPLITS = {"train": ("train",), "valid": ("validation", "valid", "val", "dev"), "test": ("test",)}
_SAVED = ("dataset_dict.json", "state.json")  # files of a folder that save_to_disk wrote: of several splits, of one


def is_folder(argument: str) -> bool:
    """Whether the argument of hf: is a folder, not a name on the hub, which at most one "/" divides."""
    return os.path.isdir(argument) or argument.startswith(("/", ".", "~")) or argument.count("/") > 1


@dataclasses.dataclass(frozen=True)
class HfSource:
    """A data set of Hugging Face's hub, or a folder.

    argument: NAME, or NAME:CONFIG where the data set has several; or a folder, which save_to_disk wrote or which holds
      files that `datasets` reads (CSV, JSON, Parquet, Arrow), of a split each.
    rows: the fields of the rows, and the policy for bad ones.
    """

    argument: str
    rows: RowFormat = RowFormat()

    @property
    def name(self) -> str:
        return f"hf:{Path(self.argument).name if is_folder(self.argument) else self.argument}"

    def fingerprint(self) -> str:
        """Digest of the Arrow files, into which `datasets` has converted the data."""
        files = [
            (f"{split}/{number}", Path(file["filename"]))
            for split, table in self._tables(SPLITS).items()
            for number, file in enumerate(table.cache_files)
        ]
        return digest((self.name, *self.rows.key), digest_files(files))

    def read(self, splits: Collection[str] = SPLITS) -> Corpus:
        """UserError for data that cannot be loaded or have no usable row and, unless they are skipped, for bad rows."""
        bad = BadRows(self.rows.bad_rows)
        read = {}
        for split, table in self._tables(splits).items():
            where = f"{one_line(self.name)} {one_line(str(table.split or split))}"
            read[split] = self.rows.examples(self.name, split, self._rows(table, where), where, bad)
        return Corpus(self.name, read, bad.skipped, tuple(bad.notes))

    def _tables(self, splits: Collection[str]) -> dict[str, Any]:
        """The `datasets.Dataset` of each of `splits` that there is."""
        loaded = self._load()
        if not isinstance(loaded, Mapping):  # a folder that holds one split
            only = "test" if set(splits) == {"test"} else "train"
            return {split: loaded for split in splits if split == only}
        found: dict[str, Any] = {}
        for split in SPLITS:
            names = [name for name in HF_SPLITS[split] if name in loaded]
            if len(names) > 1:
                raise UserError(
                    f"{one_line(self.name)}: has the splits {' and '.join(names)}, which would both be {split}"
                )
            if names and split in splits:
                found[split] = loaded[names[0]]
        if not found or ("train" in splits and "train" not in found):
            wanted = "train" if "train" in splits else " or ".join(split for split in SPLITS if split in splits)
            listed = one_line(", ".join(map(str, loaded)), 300)
            raise UserError(f"{one_line(self.name)}: has no {wanted} split, but {listed}; save one under that name")
        return found

    def _load(self) -> Any:
        if "://" in self.argument:
            raise UserError(f"{one_line(self.name)}: give a name on the hub, or a folder on disk")
        if importlib.util.find_spec("datasets") is None:
            raise UserError(
                f"{one_line(self.name)} needs the package datasets: pip install -e '.[hf]' (in the repository), or "
                "write the rows to JSON Lines, CSV or Parquet"
            )
        import datasets

        datasets.disable_progress_bars()
        # Its notices of repeated requests are printed twice, by a handler of its own and by the root logger's.
        logging.getLogger("huggingface_hub").setLevel(logging.getLogger().level)
        with self._user_errors():
            # Not in memory: the fingerprint is that of the files.
            if not is_folder(self.argument):
                name, _, config = self.argument.partition(":")
                return datasets.load_dataset(name, config or None, keep_in_memory=False)
            folder = os.path.abspath(self.argument)
            if any(os.path.exists(os.path.join(folder, file)) for file in _SAVED):
                return datasets.load_from_disk(folder, keep_in_memory=False)
            return datasets.load_dataset(folder, keep_in_memory=False)

    def _rows(self, table: Any, where: str) -> list[ArrowRow]:
        columns = check_columns(table.features.arrow_schema, self.rows, where)
        names: dict[str, Sequence[str]] = {
            column: table.features[column].names for column in columns if hasattr(table.features[column], "names")
        }
        rows: list[ArrowRow] = []
        with self._user_errors():
            for batch in table.select_columns(columns).with_format("arrow").iter(BATCH):
                rows += arrow_rows(batch, where, len(rows), names)
        return rows

    @contextlib.contextmanager
    def _user_errors(self) -> Iterator[None]:
        import datasets
        import pyarrow

        try:
            yield
        # ValueError: an unknown config, or a folder without data files. RuntimeError: a data set that is a program.
        except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError, pyarrow.ArrowException) as error:
            if isinstance(error, UserError):
                raise
            reason = one_line(str(error) or type(error).__name__, 300)
            raise UserError(
                f"{one_line(self.name)} cannot be loaded ({reason}); give a folder, or the name of a data set of the "
                "hub, as hf:NAME or hf:NAME:CONFIG"
            ) from error

"""Reads data sets that TensorFlow Datasets has prepared, from their files: nothing is downloaded or built here."""

import dataclasses
import hashlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cotmi_jax.data.example import SPLITS, Corpus, Example
from cotmi_jax.data.sources.base import digest
from cotmi_jax.data.sources.released_sets import RELEASED, TEACHERS
from cotmi_jax.data.sources.rows import BadRows, Row, check_choice
from cotmi_jax.data.sources.tfds_formats import FORMATS, LIKE, TFDS_SPLITS, dss_config
from cotmi_jax.errors import UserError

_BATCH = 1024  # rows read at a time
BUILDERS = Path(__file__).parents[1] / "builders"
# Metadata of a prepared set: sizes of its splits and shards, features, and digests that its builder recorded.
_METADATA = ("dataset_info.json", "features.json", "metadata.json")


@dataclasses.dataclass(frozen=True)
class TfdsSource:
    """esnli, cos_e, or anli/r1 to r3 with human rationales, or dss/NAME, from builders/dss, with a teacher's.

    argument: one of `tfds_formats.TFDS_SETS`.
    data_dir: folder or URL of prepared sets; None: $TFDS_DATA_DIR, else ~/tensorflow_datasets.
    teacher: whose completions are read; for dss/NAME only.
    bad_rows: "error", or "skip" to leave rows out that cannot be used, and count them.
    """

    argument: str
    data_dir: str | None = None
    teacher: str = "palm"
    bad_rows: str = "error"

    def __post_init__(self) -> None:
        check_choice("teacher", self.teacher, TEACHERS)

    @property
    def name(self) -> str:
        """For dss/NAME the name in the release, since examples and ids are the same."""
        return self.argument.removeprefix("dss/") if self._is_released else f"tfds:{self.argument}"

    @property
    def _is_released(self) -> bool:
        return self.argument.startswith("dss/")

    @property
    def _tfds_name(self) -> str:
        """Name and config of the prepared set; the anli of TensorFlow Datasets has no rationales."""
        if self.argument.startswith("anli/"):
            return self.argument.replace("anli", "anli_reasons")
        return f"dss/{dss_config(self.name, self.teacher)}" if self._is_released else self.argument

    def fingerprint(self) -> str:
        builder = self._builder()
        files = [builder.data_path / name for name in _METADATA]
        digests = [hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else "" for file in files]
        return digest(self.name, builder.info.full_name, *digests, self.bad_rows)

    def read(self, splits: Collection[str] = SPLITS) -> Corpus:
        """Those of `splits` that the set has; it must have train if that is one of them.

        Raises:
          UserError: the set is not prepared, is damaged, has no train split or, unless bad rows are skipped, has a row
            that cannot be used.
        """
        builder, bad = self._builder(), BadRows(self.bad_rows)
        present = [s for s, theirs in TFDS_SPLITS.items() if s in splits and theirs in builder.info.splits]
        if "train" in splits and "train" not in present:
            raise UserError(f"{builder.info.full_name} has no train split; prepare the set again")
        read = {split: self._read_split(builder, split, bad) for split in present}
        return Corpus(self.name, read, bad.skipped, tuple(bad.notes))

    def _builder(self) -> Any:
        import tensorflow as tf
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core import read_only_builder

        try:
            # Not tfds.builder: for a set that is not prepared it would fall back on code, and ask the network.
            return read_only_builder.builder_from_files(self._tfds_name, data_dir=self.data_dir)
        except tfds.core.DatasetNotFoundError as error:
            where = self.data_dir or "TensorFlow Datasets' folder"
            raise UserError(f"tfds:{self.argument} is not prepared in {where}: {self._command()}") from error
        except (OSError, tf.errors.OpError) as error:
            raise UserError(f"tfds_dir = {self.data_dir!r} cannot be read: {' '.join(str(error).split())}") from error

    def _command(self) -> str:
        """The command that prepares the set, for messages."""
        name, _, config = self._tfds_name.partition("/")
        options = [f"--config={config}"] * bool(config) + [f"--data_dir={self.data_dir}"] * bool(self.data_dir)
        options += ["--manual_dir=RELEASE"] * self._is_released
        own = BUILDERS / name
        return f"run python -m cotmi_jax.prepare {' '.join([str(own) if own.is_dir() else name, *options])}"

    def _read_split(self, builder: Any, split: str, bad: BadRows) -> tuple[Example, ...]:
        where = f"{builder.info.full_name} {TFDS_SPLITS[split]}"
        fields_of = FORMATS[self.argument.partition("/")[0]]
        like = RELEASED[self.name if self._is_released else LIKE[self.argument.partition("/")[0]]]
        examples: list[Example] = []
        seen: dict[str, str] = {}
        read = 0
        for read, row in enumerate(_rows(builder, split, where), start=1):
            place = f"{where} row {read - 1}"
            with bad.guard(split):
                fields = fields_of(_decoded(row, place), place)
                name = fields.id if self._is_released else f"{self.name}/{split}/{fields.id or read - 1}"
                if name in seen:
                    raise UserError(f"{place}: id {fields.id} is also that of {seen[name]}; prepare the set again")
                weighted = [(text, 1.0) for text in fields.rationales] or [("", 0.0)]
                (first, weight), *more = weighted
                example = Example(name, fields.input, fields.label, first, fields.teacher_label, weight, tuple(more))
                examples.append(dataclasses.replace(like.related(example, self.name), kind=like.kind, place=place))
                seen[name] = place
        bad.check_usable(len(examples), read, where)
        return tuple(examples)


def _rows(builder: Any, split: str, where: str) -> Iterator[Row]:
    """Rows in the order of the files, which is the same every time; texts are still bytes."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    one_by_one = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
    dataset = builder.as_dataset(split=TFDS_SPLITS[split], read_config=one_by_one)
    try:
        # In batches: tensorflow would take half a millisecond for every single row.
        for batch in tfds.as_numpy(dataset.ragged_batch(_BATCH)):
            columns = {
                field: values.tolist() if isinstance(values, np.ndarray) else values.to_list()
                for field, values in batch.items()
            }
            for values in zip(*columns.values(), strict=True):
                yield dict(zip(columns, values, strict=True))
    except tf.errors.OpError as error:
        reason = error.message.rpartition("}} ")[2].partition(" [Op:")[0]  # without the names of tensorflow's nodes
        raise UserError(f"{where}: cannot be read ({reason}); prepare the set again") from error


def _decoded(row: Row, place: str) -> Row:
    """The same row with texts in place of bytes."""

    def text(value: object) -> object:
        if isinstance(value, list):
            return [text(item) for item in value]
        return value.decode("utf-8") if isinstance(value, bytes) else value

    try:
        return {field: text(value) for field, value in row.items()}
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: not UTF-8 ({error.reason}); prepare the set again") from error

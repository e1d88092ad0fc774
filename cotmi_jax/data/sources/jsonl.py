"""A user's own data as JSON Lines: `input`, `label`, `rationale`, and optionally `weight`, `teacher_label` and `id`."""

import dataclasses
import sys
from collections.abc import Collection

from cotmi_jax.data.example import SPLITS, Corpus, Example, LabelKind
from cotmi_jax.data.sources.base import digest, digest_files
from cotmi_jax.data.sources.rows import BadRows, RawRow, Row, check_text, read_raw_rows, text_field
from cotmi_jax.errors import UserError
from cotmi_jax.files import Path


@dataclasses.dataclass(frozen=True)
class JsonlSource:
    """A file, which is one split, or a folder with train.jsonl and optionally valid.jsonl and test.jsonl.

    labels: the labels that a row may have; () for any.
    kind: how labels are compared.
    bad_rows: "error", or "skip" to leave rows out that cannot be used, and count them.
    """

    path: Path
    labels: tuple[str, ...] = ()
    kind: LabelKind = "text"
    bad_rows: str = "error"

    @property
    def name(self) -> str:
        """From the name of the file or folder alone, so that ids do not depend on where it is stored."""
        return f"jsonl:{self.path.stem if self.path.suffix == '.jsonl' else self.path.name}"

    def files(self, splits: Collection[str] = SPLITS) -> dict[str, Path]:
        """The file of each of `splits`; that of train may not exist.

        A single file is the train split; where only test is asked for, it is the test split.
        """
        if not self.path.is_dir():
            only = "test" if set(splits) == {"test"} else "train"
            return {split: self.path for split in splits if split == only}
        files = {split: self.path / f"{split}.jsonl" for split in SPLITS if split in splits}
        return {split: path for split, path in files.items() if split == "train" or path.exists()}

    def fingerprint(self) -> str:
        settings = (self.name, self.labels, self.kind, self.bad_rows)
        return digest(settings, digest_files(self.files().items()))

    def read(self, splits: Collection[str] = SPLITS) -> Corpus:
        """UserError for a file that cannot be read or has no usable row and, unless they are skipped, for bad rows."""
        bad = BadRows(self.bad_rows)
        read = {split: self._read_split(split, path, bad) for split, path in self.files(splits).items()}
        return Corpus(self.name, read, bad.skipped, tuple(bad.notes))

    def _read_split(self, split: str, path: Path, bad: BadRows) -> tuple[Example, ...]:
        raw_rows = read_raw_rows(path)
        places: dict[str, str] = {}
        examples = []
        for number, raw in enumerate(raw_rows):
            with bad.guard(split):
                row = raw.parse()
                row_id = _row_id(row, raw.place) or str(number)
                if row_id in places:
                    raise UserError(
                        f"{raw.place}: id {row_id} is also that of {places[row_id]}; give every row a unique id"
                    )
                example = self._example(f"{self.name}/{split}/{row_id}", row, raw)
                places[row_id] = raw.place
                examples.append(example)
        bad.check_usable(len(examples), len(raw_rows), str(path))
        return tuple(examples)

    def _example(self, name: str, row: Row, raw: RawRow) -> Example:
        place = raw.place
        text, label = (_non_blank(row, field, place) for field in ("input", "label"))
        if self.labels and label not in self.labels:
            raise UserError(f"{place}: label = {label!r:.80}; data.labels allows {', '.join(self.labels)}")
        teacher_label = None if row.get("teacher_label") is None else text_field(row, "teacher_label", place).strip()
        weighted = _rationales(row, place)
        first, *more = weighted or [("", 0.0)]
        return Example(name, text, label, first[0], teacher_label or None, first[1], tuple(more), self.kind, place)


def _non_blank(row: Row, field: str, place: str) -> str:
    value = text_field(row, field, place)
    if not value.strip():
        raise UserError(f"{place}: the {field} is empty; correct or remove the row")
    return value


def _row_id(row: Row, place: str) -> str:
    """The row's field `id`; "" where it has none."""
    value = row.get("id")
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | str) or not str(value).strip():
        raise UserError(f"{place}: id = {value!r:.50}; give a text or a whole number, or leave it out")
    return check_text(str(value), "id", place)


def _rationales(row: Row, place: str) -> list[tuple[str, float]]:
    """The rationales that are trained on: those that are not blank and whose weight is above 0."""
    given = row.get("rationale")
    texts: list[object] = given if isinstance(given, list) else [given]
    weight = row.get("weight", 1.0)
    weights: list[object] = weight if isinstance(weight, list) else [weight] * len(texts)
    if len(weights) != len(texts):
        raise UserError(f"{place}: {len(weights)} weights for {len(texts)} rationales; give one number, or as many")
    pairs = []
    for text, number in zip(texts, weights, strict=True):
        if not isinstance(text, str):
            raise UserError(f"{place}: rationale = {given!r:.80}; give a text or a list of texts")
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= sys.float_info.max:
            raise UserError(f"{place}: weight = {number!r:.50}; give a number of at least 0")
        pairs.append((check_text(text, "rationale", place).strip(), float(number)))
    return [(text, number) for text, number in pairs if text and number]

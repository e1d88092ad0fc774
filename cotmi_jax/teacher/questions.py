"""The questions of an annotation: from a user's JSON Lines file, or the gold rows of a released set."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from cotmi_jax.data.corpus import find_data_root
from cotmi_jax.data.example import LabelKind
from cotmi_jax.data.labels import evaluate_expression
from cotmi_jax.data.sources.base import cluster_key
from cotmi_jax.data.sources.released import find_release, gold_file
from cotmi_jax.data.sources.released_sets import RELEASED
from cotmi_jax.data.sources.row_format import BY_TYPE
from cotmi_jax.data.sources.rows import Row, read_rows, text_field
from cotmi_jax.errors import UserError


class Question(NamedTuple):
    """A question. label is the gold label, None if it is not known; place is "file:line" for messages.

    fields: choices and cluster of the row, where it has them, for the output.
    """

    id: str
    input: str
    label: str | None
    place: str
    fields: Mapping[str, object] = MappingProxyType({})


def load_questions(
    path: str | None, dataset: str | None, split: str, data_root: str | None, kind: LabelKind
) -> list[Question]:
    """The questions of the file at `path` or, if that is None, of a split of a released set."""
    if path is not None:
        file = Path(path).expanduser()
        if not file.is_file():
            raise UserError(f"--questions={path}: no such file")
        return read_questions(file, kind)
    assert dataset is not None  # the flags require exactly one of the two
    return read_released(data_root, dataset, split)


def read_questions(path: Path, kind: LabelKind) -> list[Question]:
    """Rows with `input`, optionally `label` (gold), `id`, `choices` and `cluster`; the id defaults to "{file name}/{row
    from 0}".

    Raises:
      UserError: with file and line: an invalid row, an id that occurs twice, a label that is not a text or, of the kind
        "equation", has no value.
    """
    questions = [_question(row, f"{path.stem}/{i}", place, kind) for i, (place, row) in enumerate(read_rows(path))]
    first: dict[str, str] = {}
    for question in questions:
        if question.id in first:
            raise UserError(f"{question.place}: id {question.id!r} is taken by {first[question.id]}; make ids unique")
        first[question.id] = question.place
    return _not_empty(questions, str(path))


def read_released(data_root: str | None, name: str, split: str) -> list[Question]:
    """The gold rows of a split of a released set. Raises UserError for an invalid row or a missing file."""
    root = find_data_root(data_root)
    path = gold_file(find_release(root, name), name, split)
    released, questions = RELEASED[name], []
    for number, (place, row) in enumerate(read_rows(path)):
        text, label = released.read_gold(row, place)
        choices = list(released.choices(text))
        fields = ({"choices": choices} if choices else {}) | {"cluster": cluster_key(name, released.shared(text))}
        questions.append(Question(f"{name}/{split}/{number}", text, label, place, fields))
    return _not_empty(questions, str(path))


def _question(row: Row, default_id: str, place: str, kind: LabelKind) -> Question:
    text = text_field(row, "input", place)
    if not text.strip():
        raise UserError(f"{place}: the input is empty; write the question or remove the row")
    identity = row.get("id", default_id)
    if isinstance(identity, bool) or not isinstance(identity, str | int) or not str(identity).strip():
        raise UserError(f"{place}: id = {identity!r:.50}; give a text or a whole number, or leave it out")
    fields = {name: row[name] for name in BY_TYPE if row.get(name) is not None}
    if row.get("label") is None:
        return Question(str(identity), text, None, place, fields)
    label = text_field(row, "label", place)
    if not label.strip():
        raise UserError(f"{place}: the label is empty; write the gold label or leave the field out")
    if kind == "equation" and evaluate_expression(label) is None:
        raise UserError(f"{place}: label {label!r:.50} has no value; write an expression such as ( 84.0 / 2.0 ) or 42")
    return Question(str(identity), text, label, place, fields)


def _not_empty(questions: Sequence[Question], where: str) -> list[Question]:
    if not questions:
        raise UserError(f"{where}: has no question; add rows with input")
    return list(questions)

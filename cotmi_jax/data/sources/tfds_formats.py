"""Reads input, label and human rationales from rows of TensorFlow Datasets. Imports no tensorflow."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from cotmi_jax.data.sources.released_sets import RELEASED, RELEASED_NAMES
from cotmi_jax.data.sources.rows import Row, text_field

TFDS_SETS = ("anli/r1", "anli/r2", "anli/r3", "cos_e", "esnli", *(f"dss/{name}" for name in RELEASED_NAMES))
LIKE = {"anli": "anli1", "cos_e": "cqa", "esnli": "esnli"}  # the released set with the same task
TFDS_SPLITS = {"train": "train", "valid": "validation", "test": "test"}


class Fields(NamedTuple):
    """The fields of an example; id is that of the row, "" if it has none."""

    id: str
    input: str
    label: str
    rationales: tuple[str, ...]
    teacher_label: str | None = None


def dss_config(name: str, teacher: str) -> str:
    """The config of the builder in builders/dss that holds a data set with a teacher's completions."""
    return name if teacher == "palm" else f"{name}_{teacher.replace('-', '_')}"


def esnli_fields(row: Row, place: str) -> Fields:
    """e-SNLI: three explanations in validation and test, one in train, where the other two fields are empty texts."""
    rationales = _non_blank(row, ("explanation_1", "explanation_2", "explanation_3"), place)
    return Fields("", *RELEASED[LIKE["esnli"]].read_gold(row, place), rationales)


def cos_e_fields(row: Row, place: str) -> Fields:
    """CoS-E: the abstractive explanation, which a person wrote in free text; the extractive one is ignored."""
    rationales = _non_blank(row, ("abstractive_explanation",), place)
    return Fields(text_field(row, "id", place), *RELEASED[LIKE["cos_e"]].read_gold(row, place), rationales)


def anli_fields(row: Row, place: str) -> Fields:
    """ANLI: the premise is the field `context`."""
    text, label = RELEASED[LIKE["anli"]].read_gold({**row, "premise": row.get("context")}, place)
    return Fields(text_field(row, "uid", place), text, label, _non_blank(row, ("reason",), place))


def dss_fields(row: Row, place: str) -> Fields:
    """The rows of builders/dss, whose fields are those of examples."""
    name, text, label, rationale, teacher = (
        text_field(row, field, place) for field in ("id", "input", "label", "rationale", "teacher_label")
    )
    return Fields(name, text, label, (rationale,), teacher if row["has_teacher_label"] else None)


FORMATS: dict[str, Callable[[Row, str], Fields]] = {
    "anli": anli_fields,
    "cos_e": cos_e_fields,
    "dss": dss_fields,
    "esnli": esnli_fields,
}


def _non_blank(row: Row, fields: Sequence[str], place: str) -> tuple[str, ...]:
    """The texts of those fields that are not blank, stripped, as a teacher's rationales are."""
    texts = (text_field(row, field, place).strip() for field in fields)
    return tuple(text for text in texts if text)

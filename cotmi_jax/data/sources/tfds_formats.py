"""What rows of the sets of TensorFlow Datasets say: input, label and human rationales. Imports no tensorflow."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from cotmi_jax.data.sources.released_sets import RELEASED, RELEASED_NAMES
from cotmi_jax.data.sources.rows import Row, text_field

TFDS_SETS = ("anli/r1", "anli/r2", "anli/r3", "cos_e", "esnli", *(f"dss/{name}" for name in RELEASED_NAMES))
TFDS_SPLITS = {"train": "train", "valid": "validation", "test": "test"}


class Fields(NamedTuple):
    """What an example is made of, with the id that the row gives itself ("": none)."""

    id: str
    input: str
    label: str
    rationales: tuple[str, ...]
    teacher_label: str | None = None


def dss_config(name: str, teacher: str) -> str:
    """The name of the config of the builder in builders/dss that holds a set with a teacher's completions."""
    return name if teacher == "palm" else f"{name}_{teacher.replace('-', '_')}"


def esnli_fields(row: Row, place: str) -> Fields:
    """e-SNLI: one explanation in train, three in validation and test, where TFDS fills up with empty texts."""
    said = _filled(row, ("explanation_1", "explanation_2", "explanation_3"), place)
    return Fields("", *RELEASED["esnli"].read_gold(row, place), said)


def cos_e_fields(row: Row, place: str) -> Fields:
    """CoS-E: of the two kinds of explanation the abstractive one, which a person wrote freely."""
    said = _filled(row, ("abstractive_explanation",), place)
    return Fields(text_field(row, "id", place), *RELEASED["cqa"].read_gold(row, place), said)


def anli_fields(row: Row, place: str) -> Fields:
    """ANLI: premises are called contexts."""
    text, label = RELEASED["anli1"].read_gold({**row, "premise": row.get("context")}, place)
    return Fields(text_field(row, "uid", place), text, label, _filled(row, ("reason",), place))


def dss_fields(row: Row, place: str) -> Fields:
    """The rows of builders/dss, which hold examples as they are."""
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


def _filled(row: Row, fields: Sequence[str], place: str) -> tuple[str, ...]:
    """The texts of fields that are not blank, stripped as a teacher's are."""
    texts = (text_field(row, field, place).strip() for field in fields)
    return tuple(text for text in texts if text)

"""How a user's own rows become examples: which fields they have, and what each may hold."""

import dataclasses
import sys
from collections.abc import Collection, Mapping, Sequence

from cotmi_jax.data.example import Example, LabelKind, Pair, Span
from cotmi_jax.data.labels import is_correct
from cotmi_jax.data.sources.rows import BadRows, RawRow, Row, check_text, text_field
from cotmi_jax.data.token_weights import parse_spans, strip_spans
from cotmi_jax.errors import UserError, one_line, shown

FIELDS = ("input", "label", "rationale", "weight", "teacher_label", "id", "choices", "cluster")
REQUIRED = ("input", "label")
# Fields of these names that hold anything else are not read, unless config.data.fields names them: earlier versions
# ignored them.
BY_TYPE = ("choices", "cluster")
_CHOICES_SEPARATOR = "|"  # in a cell of a table
COUNTERFACTUALS = "counterfactuals"  # a list of objects, which a table cannot hold
TOKEN_WEIGHTS = "token_weights"  # a list of lists, which a table cannot hold; read where config.data.token_weights asks


def parse_fields(text: str) -> dict[str, str]:
    """The mapping of config.data.fields, "input=question,label=answer": field → name of the column or key.

    Raises:
      UserError: an unknown field, one that is named twice, or no name after it.
    """
    mapping: dict[str, str] = {}
    for pair in filter(None, (pair.strip() for pair in text.split(","))):
        field, _, column = (part.strip() for part in pair.partition("="))
        known = (*FIELDS, COUNTERFACTUALS, TOKEN_WEIGHTS)
        if field not in known or not column or field in mapping:
            raise UserError(
                f"config.data.fields: {one_line(pair)!r} is not FIELD=COLUMN with one of {', '.join(known)}, each at "
                "most once: give, for example, input=question,label=answer"
            )
        mapping[field] = column
    return mapping


@dataclasses.dataclass(frozen=True)
class RowFormat:
    """What the rows of a user's own data hold.

    labels: the labels that a row may have; () for any.
    kind: how labels are compared.
    bad_rows: "error", or "skip" to leave rows out that cannot be used, and count them.
    fields: field → name of the column or key that holds it, where that is not the field's own name.
    token_weights: whether that field is read.
    """

    labels: tuple[str, ...] = ()
    kind: LabelKind = "text"
    bad_rows: str = "error"
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
    token_weights: bool = False

    @property
    def key(self) -> tuple[object, ...]:
        """For digests: everything that determines the examples of given rows."""
        mapped = (tuple(sorted(self.fields.items())),) if self.fields else ()
        # With "skip", rows without a rationale were bad rows in version 1.
        version = (2,) if self.bad_rows == "skip" else ()
        read = (TOKEN_WEIGHTS,) * self.token_weights
        return (self.labels, self.kind, self.bad_rows, *mapped, *version, *read)

    def column(self, field: str) -> str:
        """The name of the column or key that holds a field."""
        return self.fields.get(field, field)

    def columns(self, found: Sequence[str], where: str) -> list[str]:
        """The columns of a table that are read. UserError where one is missing or there twice, listing those found."""
        for field in (COUNTERFACTUALS, TOKEN_WEIGHTS):
            if field in self.fields:
                raise UserError(f"{where}: a table cannot hold {field}: write its rows as JSON Lines (jsonl:PATH)")
        named = [self.column(field) for field in FIELDS if field in self.fields or self.column(field) in found]
        for field in FIELDS:
            column, number = self.column(field), found.count(self.column(field))
            if number > 1 or (not number and (field in REQUIRED or field in self.fields)):
                listed = one_line(", ".join(found), 300) or "none"
                raise UserError(
                    f"{where}: {'two columns' if number else 'no column'} {one_line(column)!r} for the {field}; the "
                    f"columns are {listed}; name that of the {field} in config.data.fields ({field}=COLUMN)"
                )
        return [column for column in named if column in found]

    def examples(
        self, name: str, split: str, rows: Collection[RawRow], where: str, bad: BadRows
    ) -> tuple[Example, ...]:
        """The examples of a split. UserError, with its place, for a bad row unless `bad` skips it, and if none is good.

        name: that of the source, which begins every id.
        where: the file or table that holds the rows, for messages.
        """
        places: dict[str, str] = {}
        examples = []
        for number, raw in enumerate(rows):
            with bad.guard(split):
                row = raw.parse()
                row_id = self._id(row, raw.place) or str(number)
                if row_id in places:
                    other = places[row_id]
                    raise UserError(
                        f"{raw.place}: id {one_line(row_id)} is also that of {other}; give every row a unique id"
                    )
                example = self._example(f"{name}/{split}/{row_id}", row, raw)
                example = dataclasses.replace(example, cluster=self._cluster(row, name, raw.place))
                places[row_id] = raw.place
                examples.append(example)
        bad.check_usable(len(examples), len(rows), where)
        return tuple(examples)

    def _example(self, name: str, row: Row, raw: RawRow) -> Example:
        place = raw.place
        text, label = (self._non_blank(row, field, place) for field in REQUIRED)
        self._check_label(label, place)
        column = self.column("teacher_label")
        teacher_label = None if row.get(column) is None else text_field(row, column, place).strip()
        rationales = self._rationales(row, raw) or [("", 0.0, ())]
        first, *more = ((text, weight) for text, weight, _ in rationales)
        example = Example(name, text, label, first[0], teacher_label or None, first[1], tuple(more), self.kind, place)
        if any(spans for _, _, spans in rationales):
            example = dataclasses.replace(example, token_weights=tuple(spans for _, _, spans in rationales))
        example = dataclasses.replace(example, choices=self._choices(row, example, raw.is_table))
        return example if raw.is_table else dataclasses.replace(example, counterfactuals=self._pairs(row, example))

    def _choices(self, row: Row, example: Example, is_table: bool) -> tuple[str, ...]:
        """The row's choices, of which its label is one; without any, the labels that rows may have."""
        place, column = example.place, self.column("choices")
        given = row.get(column)
        if is_table and isinstance(given, str):
            given = given.split(_CHOICES_SEPARATOR)
        texts = [each for each in given if isinstance(each, str)] if isinstance(given, list) else []
        is_list = isinstance(given, list) and len(texts) == len(given)
        if given is None or not (is_list or "choices" in self.fields):
            return self.labels
        choices = [check_text(text, column, place).strip() for text in texts]
        if len(choices) < 2 or not is_list or not all(choices) or len(set(choices)) < len(choices):
            raise UserError(
                f"{place}: {one_line(column)} = {shown(given)}; give a list of at least 2 different texts, or rename it"
            )
        if example.label.strip() not in choices:
            raise UserError(
                f"{place}: label = {shown(example.label)}, {one_line(column)} = {shown(choices)}; give choices with "
                "the label, or name another field for them in config.data.fields (choices=FIELD)"
            )
        return tuple(choices)

    def _cluster(self, row: Row, source: str, place: str) -> str:
        """The key of the row's cluster, with the name of the source before it; "" where the row has none."""
        column = self.column("cluster")
        value = row.get(column)
        if isinstance(value, int | str) and not isinstance(value, bool):
            key = check_text(str(value), column, place).strip()
            return f"{source}/{key}" if key else ""
        if value is not None and "cluster" in self.fields:
            raise UserError(f"{place}: {one_line(column)} = {shown(value)}; give a text or a whole number")
        return ""

    def _pairs(self, row: Row, example: Example) -> tuple[Pair, ...]:
        """The row's counterfactuals, each with another answer than the row."""
        place, column = example.place, self.column(COUNTERFACTUALS)
        given = row.get(column)
        if given is None:
            return ()
        if not isinstance(given, list) or not all(isinstance(item, dict) for item in given):
            raise UserError(
                f'{place}: {one_line(column)} = {shown(given)}; give a list of objects {{"label": …, "rationale": …}}'
            )
        pairs = []
        for number, item in enumerate(given):
            where = f"{place}, {one_line(column)} {number}"
            label, rationale = (text_field(item, field, where) for field in ("label", "rationale"))
            if not rationale.strip() or not label.strip() or is_correct(label, example.label, self.kind):
                raise UserError(
                    f"{where}: label = {shown(label)}, rationale = {shown(rationale)}; give a rationale, and another "
                    f"answer than that of the row, {shown(example.label)}"
                )
            self._check_label(label, where)
            pairs.append(Pair(label, rationale.strip()))
        return tuple(pairs)

    def _check_label(self, label: str, place: str) -> None:
        if self.labels and label not in self.labels:
            allowed = one_line(", ".join(self.labels))
            raise UserError(f"{place}: label = {shown(label)}; data.labels allows {allowed}")

    def _non_blank(self, row: Row, field: str, place: str) -> str:
        value = text_field(row, self.column(field), place)
        if not value.strip():
            raise UserError(f"{place}: the {field} is empty; correct or remove the row")
        return value

    def _id(self, row: Row, place: str) -> str:
        """The row's field `id`; "" where it has none."""
        value = row.get(self.column("id"))
        if value is None:
            return ""
        if isinstance(value, bool) or not isinstance(value, int | str) or not str(value).strip():
            raise UserError(f"{place}: id = {shown(value)}; give a text or a whole number, or leave it out")
        return check_text(str(value), self.column("id"), place)

    def _rationales(self, row: Row, raw: RawRow) -> list[tuple[str, float, tuple[Span, ...]]]:
        """The rationales that are trained on, with weight and spans: those not blank and of a weight above 0."""
        place, column = raw.place, self.column("rationale")
        given = row.get(column)
        texts: list[object] = [] if given is None else given if isinstance(given, list) else [given]
        weight = row.get(self.column("weight"), 1.0)
        weights: list[object] = weight if isinstance(weight, list) else [weight] * len(texts)
        if len(weights) != len(texts):
            raise UserError(f"{place}: {len(weights)} weights for {len(texts)} rationales; give one number, or as many")
        found = []
        spans_of_texts = self._spans(row, raw, isinstance(given, list), len(texts))
        for text, value, spans in zip(texts, weights, spans_of_texts, strict=True):
            if not isinstance(text, str):
                raise UserError(f"{place}: {one_line(column)} = {shown(given)}; give a text or a list of texts")
            number = _number(value) if raw.is_table else value
            if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= sys.float_info.max:
                raise UserError(f"{place}: weight = {shown(value)}; give a number of at least 0")
            text = check_text(text, column, place)
            parsed = parse_spans(spans, text, f"{place}, {one_line(self.column(TOKEN_WEIGHTS))}") if spans else ()
            found.append((text.strip(), float(number), strip_spans(parsed, text)))
        return [each for each in found if each[0] and each[1]]

    def _spans(self, row: Row, raw: RawRow, is_list: bool, number: int) -> list[object]:
        """What the field token_weights holds for each of a row's rationales."""
        given = None if raw.is_table or not self.token_weights else row.get(self.column(TOKEN_WEIGHTS))
        if given is None:
            return [None] * number
        spans = given if is_list else [given]
        if not isinstance(spans, list) or len(spans) != number:
            raise UserError(
                f"{raw.place}: {one_line(self.column(TOKEN_WEIGHTS))} = {shown(given)} for {number} rationales; give a "
                "list of [start, end, weight], or a list of such lists, one for each of several rationales"
            )
        return spans


def _number(value: object) -> object:
    """The number that the cell of a table holds, which can be written as a text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value

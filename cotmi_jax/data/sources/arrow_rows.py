"""Reads rows of Arrow tables: of Parquet files here, and of Hugging Face's data sets."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from cotmi_jax.data.sources.row_format import BY_TYPE, FIELDS, RowFormat
from cotmi_jax.data.sources.rows import Row, read_bytes, shown_path
from cotmi_jax.errors import UserError, one_line
from cotmi_jax.files import Path

BATCH = 1024  # rows decoded at a time
# Limits of what a Parquet file may decode to, since a file of a kilobyte can hold 10⁹ equal rows.
_MAX_EXPANSION = 200  # bytes of memory for each byte of the file; texts compress less than tenfold
_MIN_BYTES = 1 << 28  # always allowed
_ROW_BYTES = 500  # memory of a row besides its texts


@dataclasses.dataclass(frozen=True, slots=True)
class ArrowRow:
    """A row that is not parsed yet. number: counted from 0; cells: name of the column → value, texts as bytes."""

    where: str
    number: int
    cells: Mapping[str, object]

    @property
    def place(self) -> str:
        return f"{self.where}: row {self.number}"

    @property
    def is_table(self) -> bool:
        return True

    def parse(self) -> Row:
        """The columns that hold a value; whole numbers become texts. UserError where a text is not UTF-8."""
        return {column: self._text(cell, column) for column, cell in self.cells.items() if cell is not None}

    def _text(self, cell: object, column: str) -> object:
        if isinstance(cell, list):
            return [self._text(item, column) for item in cell]
        if isinstance(cell, bytes):
            try:
                return cell.decode("utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{self.place}, column {one_line(column)}: not UTF-8 ({error.reason}); write texts as UTF-8"
                ) from error
        return str(cell) if isinstance(cell, int) and not isinstance(cell, bool) else cell


def read_parquet_rows(path: Path, rows: RowFormat) -> list[ArrowRow]:
    """Rows of a Parquet file, of the columns that are read.

    Raises:
      UserError: the file cannot be read or is damaged, a column is missing or holds no texts, or the rows need much
        more memory than the file.
    """
    import pyarrow
    from pyarrow import parquet

    content = read_bytes(path)
    where, size = shown_path(path), len(content)
    found: list[ArrowRow] = []
    try:
        with parquet.ParquetFile(pyarrow.BufferReader(content), page_checksum_verification=True) as file:
            columns = check_columns(file.schema_arrow, rows, where)
            needed = _ROW_BYTES * file.metadata.num_rows
            _check_expansion(needed, size, where)
            for batch in file.iter_batches(BATCH, columns=columns, use_threads=False):
                needed += batch.nbytes
                _check_expansion(needed, size, where)
                found += arrow_rows(batch, where, len(found))
    except (
        pyarrow.ArrowException,
        OSError,
        OverflowError,
        UnicodeDecodeError,
    ) as error:  # the last: of a column's name
        raise UserError(
            f"{where}: not a Parquet file that can be read ({one_line(str(error), 150)}); restore it from its source"
        ) from error
    return found


def _check_expansion(needed: int, size: int, where: str) -> None:
    """Raises UserError if rows need more memory than those of a file of that size, in bytes, can."""
    limit = max(_MIN_BYTES, _MAX_EXPANSION * size)
    if needed > limit:
        raise UserError(
            f"{where}: its rows need more than {limit >> 20} MiB of memory, the file has only {size} bytes; texts do "
            "not compress so well: get the file from its source"
        )


def check_columns(schema: Any, rows: RowFormat, where: str) -> list[str]:
    """The columns of an Arrow schema that are read. UserError where one is missing, or of a type without texts."""
    columns = rows.columns(schema.names, where)
    for field in FIELDS:
        column = rows.column(field)
        if column in columns and not _is_usable(schema.field(column).type, number=field == "weight"):
            if field in BY_TYPE and field not in rows.fields:
                columns.remove(column)
                continue
            raise UserError(
                f"{where}: column {one_line(column)!r} holds {one_line(str(schema.field(column).type))}, not "
                f"{'numbers' if field == 'weight' else 'texts'}; convert it, or name another for the {field} in "
                "config.data.fields"
            )
    return columns


def arrow_rows(batch: Any, where: str, first: int, names: Mapping[str, Sequence[str]] | None = None) -> list[ArrowRow]:
    """Rows of a RecordBatch or Table whose columns `check_columns` has checked.

    first: number of its first row.
    names: for columns of class numbers, the names of the classes; a number without a name gives no value.
    """
    columns = {column: _values(batch.column(column)) for column in batch.schema.names}
    for column, classes in (names or {}).items():
        columns[column] = [
            classes[value].encode() if value is not None and 0 <= value < len(classes) else None
            for value in columns[column]
        ]
    return [
        ArrowRow(where, first + i, dict(zip(columns, cells, strict=True)))
        for i, cells in enumerate(zip(*columns.values(), strict=True))
    ]


def _values(column: Any) -> list[Any]:
    """Python values of a column, texts as bytes: an array is not known to be valid UTF-8."""
    import pyarrow
    from pyarrow import types

    kind = column.type
    if types.is_dictionary(kind):
        return _values(column.cast(kind.value_type))
    if _is_text(kind):
        column = column.cast(pyarrow.large_binary())
    elif _is_list(kind) and _is_text(kind.value_type):
        column = column.cast(pyarrow.large_list(pyarrow.large_binary()))
    values: list[Any] = column.to_pylist()
    return values


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_list(kind) or types.is_large_list(kind))


def _is_usable(kind: Any, *, number: bool) -> bool:
    """Whether a column holds texts or whole numbers (or, of weights, any numbers), or lists of them."""
    from pyarrow import types

    if types.is_dictionary(kind) or _is_list(kind):
        kind = kind.value_type
    binary = types.is_binary(kind) or types.is_large_binary(kind)
    return bool(
        _is_text(kind)
        or binary
        or types.is_integer(kind)
        or types.is_null(kind)
        or (number and types.is_floating(kind))
    )

"""Reads rows of CSV and TSV files: a header with the names of the columns, quotes as in RFC 4180, UTF-8."""

import csv
import dataclasses
import io
from collections.abc import Iterator, Sequence

from cotmi_jax.data.sources.row_format import RowFormat
from cotmi_jax.data.sources.rows import BOM, Row, read_bytes, shown_path
from cotmi_jax.errors import UserError, one_line
from cotmi_jax.files import Path

# Errors after which the rest of the file cannot be divided into rows: the quote may have been opened anywhere before.
_UNCLOSED = ("unexpected end of data", "field larger than field limit")


@dataclasses.dataclass(frozen=True, slots=True)
class CsvRow:
    """A row that is not parsed yet: its cells, or why it has none.

    where: the file, for messages.
    line: where it begins, counted from 1.
    columns: names and positions of the columns that are read.
    width: number of columns of the file.
    """

    where: str
    line: int
    cells: Sequence[str] | str
    columns: Sequence[tuple[str, int]]
    width: int

    @property
    def place(self) -> str:
        return f"{self.where}:{self.line}"

    @property
    def is_table(self) -> bool:
        return True

    def parse(self) -> Row:
        """The columns that are read; those with an empty cell are left out, but for input and label.

        UserError where the row has another number of cells than the header, is not UTF-8, or has a misplaced quote.
        """
        if isinstance(self.cells, str):
            raise UserError(
                f"{self.place}: broken row ({self.cells}); enclose such a cell in quotes, and double its own"
            )
        if len(self.cells) != self.width:
            raise UserError(
                f"{self.place}: {len(self.cells)} cells, but the header has {self.width}; enclose cells that hold "
                "separators or line ends in quotes"
            )
        for cell in self.cells:
            if not cell.isascii() and any("\udc80" <= character <= "\udcff" for character in cell):
                raise UserError(f"{self.place}: not UTF-8; save the file as UTF-8")
        return {column: self.cells[i] for column, i in self.columns if self.cells[i]}


def read_csv_rows(path: Path, delimiter: str, rows: RowFormat) -> list[CsvRow]:
    r"""Rows of a file whose first row names the columns. Lines end at "\n" or "\r\n"; blank lines are left out.

    Raises:
      UserError: the file cannot be read, a column is missing, or a quote is not closed.
    """
    # Bytes that are not UTF-8 become surrogates, so that they spoil their own row only.
    where = shown_path(path)
    text = read_bytes(path).removeprefix(BOM).decode("utf-8", "surrogateescape")
    records = _records(text, delimiter, where)
    line, header = next(records, (1, ""))
    if isinstance(header, str):
        raise UserError(
            f"{where}:{line}: no header ({header or 'the file is empty'}); name the columns in the first row"
        )
    names = [name.strip() for name in header]
    columns = [(column, names.index(column)) for column in rows.columns(names, f"{where}:{line}")]
    return [CsvRow(where, start, cells, columns, len(names)) for start, cells in records]


def _records(text: str, delimiter: str, where: str) -> Iterator[tuple[int, list[str] | str]]:
    """Line and cells of every row, or why it has none."""
    reader = csv.reader(io.StringIO(text, newline="\n"), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        cells: list[str] | str
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            cells = one_line(str(error).partition(" - ")[0])
            if cells.startswith(_UNCLOSED):
                raise UserError(
                    f"{where}:{line}: a quote that is not closed, or a cell of more than {csv.field_size_limit():,} "
                    "characters; close it, or double the quotes inside of cells"
                ) from error
        if cells and not (isinstance(cells, list) and len(cells) == 1 and not cells[0].strip()):
            yield line, cells

"""Read a table of numbers from a text file: CSV or white space, with or without a line of column names.

Reads and refuses; what the columns mean, and how rows are split or scaled, is not decided here. Every error names the
file, the line and the cure, for a table that is half understood trains a model on shifted columns.
"""

import csv
import gzip
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["Table", "read_row_numbers", "read_table"]


@dataclass(frozen=True)
class Table:
    """The cells of a table as text, so that columns nobody asked for need not be numbers.

    Args:
        source: The file, as it is named in errors.
        names: One name per column; ``"0"``, ``"1"``, ... without a line of names.
        rows: Cells of each row, all of equal length.
        lines: Line number in the file of each row, from 1.
    """

    source: str
    names: tuple[str, ...]
    rows: list[list[str]]
    lines: list[int]

    def column_number(self, column: int | str, argument: str) -> int:
        """Return the position of a column given by name or by position (negative: from the end).

        Raises:
            ValueError: If there is no such column, or several of that name.
        """
        if isinstance(column, int) and not isinstance(column, bool):
            if -len(self.names) <= column < len(self.names):
                return column % len(self.names)
        elif self.names.count(str(column)) == 1:
            return self.names.index(str(column))
        raise ValueError(
            f"Expected `{argument}` to name one column of {self.source}, but got {column!r}; "
            f"its {len(self.names)} columns are {', '.join(self.names)}."
        )

    def numbers(self, columns: Sequence[int]) -> Tensor:
        """Return the given columns as numbers.

        Shape:
            ``(rows, len(columns))`` float64.

        Raises:
            ValueError: If a cell is empty, no number, NaN or infinite.
        """
        values = [
            [self._number(cells[column], line, column) for column in columns]
            for cells, line in zip(self.rows, self.lines, strict=True)
        ]
        return torch.tensor(values, dtype=torch.float64)

    def _number(self, cell: str, line: int, column: int) -> float:
        value = _parse(cell)
        if math.isfinite(value):
            return value
        raise ValueError(
            f"Expected a finite number in {self.source}, line {line}, column {column} ({self.names[column]!r}), but "
            f"got {cell!r}; fill or remove the row, leave the column out with `feature_columns`, or, if line {line} "
            "holds the column names, pass `header=True`."
        )


def read_table(file: Path, delimiter: str | None = None, header: bool | None = None) -> Table:
    """Read a text table, plain or compressed with gzip (a name that ends in ``.gz``). Empty lines are skipped.

    Args:
        file: The file.
        delimiter: One character, or ``" "`` for any white space. None: a comma, semicolon or tab if the first line has
            one (a tab between single words counts as white space), else white space.
        header: Whether the first line holds names. None: it does if none of its cells is a number.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no text, holds no rows, or has rows of different lengths.
    """
    source = str(file)
    if not file.is_file():
        found = "a folder" if file.is_dir() else "no such file"
        raise FileNotFoundError(
            f"Expected a table at {file.absolute()}, but there is {found}; correct `path`, or pass `root` for a folder "
            "with data.txt and index files."
        )
    try:
        raw = file.read_bytes()
        text = (gzip.decompress(raw) if source.endswith(".gz") else raw).decode("utf-8-sig")
    except (UnicodeDecodeError, OSError, EOFError) as error:
        raise ValueError(
            f"Expected {source} to be a text table in UTF-8, but got {error}; save it as CSV with that encoding."
        ) from error
    lines: list[int] = []
    rows: list[list[str]] = []
    for line, cells in _split(text, delimiter):
        if rows and len(cells) != len(rows[0]):
            raise ValueError(
                f"Expected {len(rows[0])} cells in {source}, line {line}, as in line {lines[0]}, but got "
                f"{len(cells)}; correct the line, or say which `delimiter` separates the cells."
            )
        lines.append(line)
        rows.append(cells)
    has_names = header if header is not None else bool(rows) and all(math.isnan(_parse(cell)) for cell in rows[0])
    names = tuple(rows[0]) if rows and has_names else tuple(str(i) for i in range(len(rows[0]) if rows else 0))
    first = int(has_names)
    if len(rows) <= first:
        raise ValueError(f"Expected {source} to hold rows of numbers, but got none; correct `path` or `root`.")
    return Table(source, names, rows[first:], lines[first:])


def read_row_numbers(file: Path) -> Tensor:
    """Read whole numbers from 0, one a line; also those written as floats (``3.0e+00``).

    Shape:
        ``(lines,)`` int64.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line holds no whole number of at least 0.
    """
    if not file.is_file():
        raise FileNotFoundError(f"Expected row or column numbers at {file}, but there is no such file.")
    numbers = []
    for line, cell in enumerate(file.read_text().splitlines(), start=1):
        if not cell.strip():
            continue
        value = _parse(cell)
        if not value.is_integer() or value < 0:
            raise ValueError(
                f"Expected a whole number of at least 0 in {file}, line {line}, but got {cell!r}; correct the line."
            )
        numbers.append(int(value))
    return torch.tensor(numbers, dtype=torch.long)


def _split(text: str, delimiter: str | None) -> Iterable[tuple[int, list[str]]]:
    lines = text.splitlines()
    delimiter = delimiter or _detect(next((line for line in lines if line.strip()), ""))
    if delimiter == " ":
        return ((number, line.split()) for number, line in enumerate(lines, start=1) if line.strip())
    # csv and not str.split: a quoted name or cell may hold the delimiter.
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
    return ((reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(map(str.strip, cells)))


def _detect(line: str) -> str:
    for delimiter in (",", ";"):
        if delimiter in line:
            return delimiter
    # Tables of numbers often mix tabs and blanks; only names of several words need the tab itself.
    return "\t" if "\t" in line.strip() and len(line.split()) != len(line.strip().split("\t")) else " "


def _parse(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan

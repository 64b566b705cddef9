"""Text tables: what is detected, and what is refused with file, line and cure."""

import gzip
from pathlib import Path

import pytest
import torch

from lightning_dropout.data.tables import read_row_numbers, read_table


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("1,2,3\n4,5,6\n", "012"),
        ("1;2;3\n\n4;5;6", "012"),
        (" 1.0 \t2 \t3 \n4   5\t6\t\n\n", "012"),
        ("a,b,c\n1,2,3\n4,5,6\n", "abc"),
        ('"a";"b";"c"\r\n1;2;3\r\n4;5;6\r\n', "abc"),
        ("\ufeffa, b, c\n1, 2, 3\n4, 5, 6\n", "abc"),
        ("a b c\n1 2 3\n4 5 6\n", "abc"),
    ],
    ids=["comma", "semicolon", "mixed blanks and tabs", "names", "quoted names", "byte order mark", "blank names"],
)
def test_detection(tmp_path: Path, text: str, names: str) -> None:
    file = tmp_path / "table.txt"
    file.write_bytes(text.encode())
    table = read_table(file)
    assert table.names == tuple(names)
    assert table.numbers([0, 1, 2]).tolist() == [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
    assert table.numbers([2, 0]).tolist() == [[3.0, 1.0], [6.0, 4.0]]


def test_tabs_between_names_of_several_words(tmp_path: Path) -> None:
    file = tmp_path / "table.tsv"
    file.write_text("wall area\theight\n1\t2\n")
    assert read_table(file).names == ("wall area", "height")


def test_compressed(tmp_path: Path) -> None:
    file = tmp_path / "table.csv.gz"
    file.write_bytes(gzip.compress(b"1,2\n3,4\n"))
    assert read_table(file).numbers([0, 1]).tolist() == [[1.0, 2.0], [3.0, 4.0]]
    file.write_bytes(b"1,2\n3,4\n")
    with pytest.raises(ValueError, match=r"table\.csv\.gz to be a text table"):
        read_table(file)


def test_header_and_delimiter_can_be_told(tmp_path: Path) -> None:
    file = tmp_path / "table.txt"
    file.write_text("2019|2020\n1|2\n")
    assert read_table(file, delimiter="|", header=True).names == ("2019", "2020")
    assert len(read_table(file, delimiter="|").rows) == 2
    file.write_text("1,5 2,5\n")
    assert read_table(file, delimiter=" ", header=False).rows == [["1,5", "2,5"]]


def test_a_data_row_with_a_bad_cell_is_not_taken_for_names(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_text("5.1,?\n3,4\n")
    table = read_table(file)
    assert len(table.rows) == 2
    with pytest.raises(ValueError, match=r"table\.csv, line 1, column 1 \('1'\), but got '\?'; .*`header=True`"):
        table.numbers([0, 1])


@pytest.mark.parametrize("cell", ["abc", "", "nan", "NA", "inf", "-inf", "1.2.3"])
def test_cells_that_are_no_finite_numbers(tmp_path: Path, cell: str) -> None:
    file = tmp_path / "table.csv"
    file.write_text(f"a,b,name\n1,2,x\n\n3,{cell},y\n")
    table = read_table(file)
    with pytest.raises(ValueError, match=rf"finite number in .*table\.csv, line 4, column 1 \('b'\), but got '{cell}'"):
        table.numbers([0, 1])
    assert table.numbers([0]).tolist() == [[1.0], [3.0]]  # a column that nobody asked for may hold anything


def test_ragged_rows(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_text("a,b\n1,2\n3,4,5\n")
    with pytest.raises(
        ValueError, match=r"Expected 2 cells in .*table\.csv, line 3, as in line 1, but got 3; .*delimiter"
    ):
        read_table(file)


def test_no_table(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.csv, but there is no such file; correct `path`"):
        read_table(tmp_path / "nothing.csv")
    with pytest.raises(FileNotFoundError, match="but there is a folder; correct `path`, or pass `root`"):
        read_table(tmp_path)
    for text in ("", "\n\n", "only,names\n"):
        file = tmp_path / "empty.csv"
        file.write_text(text)
        with pytest.raises(ValueError, match=r"empty\.csv to hold rows of numbers, but got none"):
            read_table(file)
    file.write_bytes(b"\xff\xfe\x00binary")
    with pytest.raises(ValueError, match="text table in UTF-8"):
        read_table(file)


def test_columns_by_name_and_position(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_text("a,b,b\n1,2,3\n")
    table = read_table(file)
    assert [table.column_number(column, "c") for column in (0, -1, "a")] == [0, 2, 0]
    for column in (3, -4, "z", "b", True):
        with pytest.raises(
            ValueError, match=rf"Expected `c` to name one column .*table\.csv, but got {column!r}; .*a, b, b"
        ):
            table.column_number(column, "c")


def test_row_numbers(tmp_path: Path) -> None:
    file = tmp_path / "index.txt"
    file.write_text("3\n1.0\n\n2.0e+00\n")
    assert read_row_numbers(file).equal(torch.tensor([3, 1, 2]))
    for cell in ("-1", "1.5", "x", "nan", "inf"):
        file.write_text(f"3\n{cell}\n")
        with pytest.raises(ValueError, match=rf"index\.txt, line 2, but got '{cell}'"):
            read_row_numbers(file)
    with pytest.raises(FileNotFoundError, match=r"missing\.txt"):
        read_row_numbers(tmp_path / "missing.txt")

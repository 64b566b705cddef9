"""Tables of numbers for regression: the user's own, the split sets of the UCI benchmarks, or an embedded one.

The embedded table is the diabetes study of B. Efron, T. Hastie, I. Johnstone and R. Tibshirani, "Least Angle
Regression", Annals of Statistics 32 (2004), 407-499: 442 patients, ten measurements, progression after one year.
"""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from lightning_dropout.data.arguments import check_count, check_fraction
from lightning_dropout.data.loaders import Rows, RowsDataModule
from lightning_dropout.data.splits import stratified_split
from lightning_dropout.data.tables import Table, read_row_numbers, read_table

__all__ = ["TabularDataModule"]


class TabularDataModule(RowsDataModule):
    """Regression of one column of a table on other columns.

    Features and target are standardised with mean and standard deviation of the *training* rows (a column that is
    constant there is only centred), so losses and predictions are in units of ``target_std``: multiply by
    ``target_std`` and add ``target_mean`` for the units of the file.

    One of three sources: a file (``path``); a folder in the layout of the UCI benchmark splits (``root``: ``data.txt``,
    ``index_features.txt``, ``index_target.txt``, ``index_train_<split>.txt``, ``index_test_<split>.txt``); or neither,
    which takes the embedded diabetes table (442 patients, 10 features). A file is split at random. A folder keeps its
    splits, and validates on the *last* rows of the given training rows, as the benchmark does.

    Args:
        path: CSV or white-space table, may end in ``.gz``.
        root: Folder with a table and index files; not together with ``path``.
        split: Which index files of ``root``, from 0 (the default there); only together with ``root``.
        feature_columns: Names or positions (from 0) of the features; None takes all columns but the target, or those in
            ``index_features.txt``.
        target_column: Name or position of the target; None takes the last column, or the one in ``index_target.txt``.
        delimiter: What separates cells: one character, or ``" "`` for any white space; None detects it.
        header: Whether the first line holds column names; None: if none of its cells is a number.
        val_fraction: Share of the rows that are not test rows, in [0, 1). 0 keeps none: all are trained on and nothing
            is validated, as for a final fit after a search.
        test_fraction: Share of all rows for the test, in (0, 1); ``root`` brings its own test rows and ignores it.
        batch_size: Rows per batch and process, at least 1.
        num_workers: Worker processes per loader, at least 0.
        pin_memory: Whether batches are put into page-locked memory.
        seed: Seed of the split, at least 0; independent of the seed of the training.
        gap_loader: Whether ``val_dataloader`` yields a second loader over training rows, for ``val/gap``.

    Shape:
        ``x``: ``(batch, num_features)`` float32; ``y``: ``(batch, 1)`` float32.

    Raises:
        FileNotFoundError: If the table or an index file does not exist.
        ValueError: If an argument is out of range, a column is unknown, a cell is no finite number or a row has
            another length than the first; in ``setup``, if a set is empty.

    Source:
        Embedded table: Efron, Hastie, Johnstone and Tibshirani (2004), "Least Angle Regression". Splits in ``root``:
        Gal and Ghahramani (2016), arXiv:1506.02142, after Hernandez-Lobato and Adams (2015).

    Example:
        >>> data = TabularDataModule(batch_size=32)
        >>> data.input_shape, data.target_name, data.feature_names[:3]
        ((10,), 'progression', ('age', 'sex', 'bmi'))
        >>> data.setup()
        >>> len(data.train_set), len(data.val_set), len(data.test_set)
        (318, 80, 44)
    """

    def __init__(
        self,
        path: str | Path | None = None,
        root: str | Path | None = None,
        split: int | None = None,
        feature_columns: Sequence[int | str] | None = None,
        target_column: int | str | None = None,
        delimiter: str | None = None,
        header: bool | None = None,
        val_fraction: float = 0.2,
        test_fraction: float = 0.1,
        batch_size: int = 64,
        num_workers: int = 0,
        pin_memory: bool = False,
        seed: int = 0,
        gap_loader: bool = True,
    ) -> None:
        super().__init__(batch_size, num_workers, pin_memory, seed, gap_loader)
        if path is not None and root is not None:
            raise ValueError(
                f"Expected `path` or `root`, but got both: {str(path)!r} and {str(root)!r}; leave one out."
            )
        if split is not None and root is None:
            raise ValueError(f"Expected `split` together with `root`, but got split={split} alone; pass `root` too.")
        if delimiter is not None and len(delimiter) != 1:
            raise ValueError(f"Expected `delimiter` to be one character, but got {delimiter!r}.")
        self.val_fraction = check_fraction(val_fraction, "val_fraction", allow_zero=True)
        self.test_fraction = check_fraction(test_fraction, "test_fraction")
        self.root = None if root is None else _folder(root)
        self.split = None if root is None else check_count(split or 0, "split", minimum=0)

        # A table is small and its width is the model's input, so it is read and split right here.
        table = self._read(path, delimiter, header)
        features, target = self._columns(table, feature_columns, target_column)
        self.feature_names = tuple(table.names[column] for column in features)
        self.target_name = table.names[target]
        self.num_features = len(features)
        self.num_targets = 1
        self.input_shape = (self.num_features,)
        inputs, targets = table.numbers(features), table.numbers([target])
        self._train_rows, self._val_rows, self._test_rows = self._split_rows(len(targets))

        self.feature_mean, self.feature_std = _location_and_scale(inputs[self._train_rows])
        target_mean, target_std = _location_and_scale(targets[self._train_rows])
        self.target_mean, self.target_std = float(target_mean), float(target_std)
        # Standardised in float64: a year or a postcode has few digits to spare in float32.
        self._inputs = ((inputs - self.feature_mean) / self.feature_std).float()
        self._targets = ((targets - target_mean) / target_std).float()

    @property
    def num_outputs(self) -> int:
        """Numbers that a model predicts per row; a head for the noise comes on top."""
        return self.num_targets

    def make_sets(self) -> tuple[Rows, Rows | None, Rows]:
        """Hand out the rows that were read at construction."""
        train, val, test = (
            Rows(self._inputs, self._targets, rows) for rows in (self._train_rows, self._val_rows, self._test_rows)
        )
        return train, val if self.val_fraction > 0 else None, test

    def cure_of_empty(self, name: str) -> str:
        """Name the argument or the index file that gives the set more rows."""
        if self.root is not None and name == "test":
            return f"put row numbers into {self.root / f'index_test_{self.split}.txt'}"
        cure = {
            "training": "lower `val_fraction`",
            "validation": "raise `val_fraction`",
            "test": "raise `test_fraction`",
        }[name]
        return f"{cure}, or use a table with more than {len(self._targets)} rows"

    def _read(self, path: str | Path | None, delimiter: str | None, header: bool | None) -> Table:
        if self.root is not None:
            return read_table(self.root / "data.txt", delimiter, header)
        if path is not None:
            return read_table(Path(path).expanduser(), delimiter, header)
        with resources.as_file(resources.files("lightning_dropout.data").joinpath("diabetes.csv.gz")) as file:
            return read_table(file)

    def _columns(
        self, table: Table, feature_columns: Sequence[int | str] | None, target_column: int | str | None
    ) -> tuple[list[int], int]:
        if target_column is None:
            target_column = self._one_listed_target()
        target = table.column_number(target_column, "target_column")
        if feature_columns is None:
            feature_columns = self._listed_features()
        if feature_columns is None:
            features = [column for column in range(len(table.names)) if column != target]
        else:
            features = [table.column_number(column, "feature_columns") for column in feature_columns]
        if not features or target in features or len(set(features)) < len(features):
            raise ValueError(
                f"Expected `feature_columns` to be different columns, at least one, without the target "
                f"{table.names[target]!r}, but got {[table.names[column] for column in features]} of {table.source}."
            )
        return features, target

    def _one_listed_target(self) -> int:
        file = None if self.root is None else self.root / "index_target.txt"
        if file is None or not file.exists():
            return -1
        columns = read_row_numbers(file).tolist()
        if len(columns) != 1:
            raise ValueError(f"Expected one column number in {file}, but got {columns}; pass `target_column`.")
        return int(columns[0])

    def _listed_features(self) -> list[int] | None:
        file = None if self.root is None else self.root / "index_features.txt"
        return None if file is None or not file.exists() else read_row_numbers(file).tolist()

    def _split_rows(self, total: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return training, validation and test rows."""
        if self.root is None:
            one_stratum = torch.zeros(total)
            test, rest = stratified_split(one_stratum, (self.test_fraction,), self.seed)
            val, train = stratified_split(one_stratum[rest], (self.val_fraction,), self.seed)
            return rest[train], rest[val], test
        train_file, test_file = (self.root / f"index_{name}_{self.split}.txt" for name in ("train", "test"))
        given, test = _listed_rows(train_file, total), _listed_rows(test_file, total)
        both = sorted(set(given.tolist()) & set(test.tolist()))
        if both:
            raise ValueError(
                f"Expected {train_file} and {test_file} to share no row, but both hold {both[:5]}; "
                "remove them from one, since a model must not be tested on rows that it was trained on."
            )
        count = int((1 - self.val_fraction) * len(given))  # rounded down, as in the benchmark's own code
        return given[:count], given[count:], test


def _listed_rows(file: Path, total: int) -> Tensor:
    rows = read_row_numbers(file)
    if len(rows) > 0 and int(rows.max()) >= total:
        raise ValueError(
            f"Expected row numbers below {total} (the rows of data.txt) in {file}, but got {int(rows.max())}; "
            "the files belong to different tables."
        )
    return rows


def _folder(root: str | Path) -> Path:
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"Expected `root` to be a folder with data.txt and index files, but {folder.absolute()} is none; "
            "correct `root`, or pass `path` for a single file."
        )
    return folder


def _location_and_scale(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation per column; 1 where a column is constant, and where there are no rows."""
    if len(rows) == 0:  # `setup` names the empty set
        return torch.zeros(rows.shape[1]), torch.ones(rows.shape[1])
    # Asked exactly: rounding gives a constant column a tiny standard deviation, and dividing by it makes huge inputs.
    constant = rows.min(dim=0).values == rows.max(dim=0).values
    return rows.mean(dim=0), torch.where(constant, 1.0, rows.std(dim=0, correction=0))

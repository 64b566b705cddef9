"""Tables for regression: scaled on the training rows only, split as told."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from lightning_dropout.data import TabularDataModule, tabular

ROWS = 50


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Columns a, b, constant, y; the rows grow, so that training rows differ from all rows."""
    generator = np.random.default_rng(0)
    values = np.column_stack(
        [np.arange(ROWS) ** 2, generator.normal(5, 2, ROWS), np.full(ROWS, 0.1), 100 + 3 * np.arange(ROWS)]
    )
    np.savetxt(tmp_path / "table.csv", values, delimiter=",", header="a,b,constant,y", comments="")
    return tmp_path / "table.csv"


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    """The layout of the UCI splits: target in column 1, column 3 unused, given rows in mixed order."""
    root = tmp_path / "uci"
    root.mkdir()
    values = np.random.default_rng(1).normal(size=(20, 4))
    np.savetxt(root / "data.txt", values, delimiter=" \t")
    np.savetxt(root / "index_features.txt", [0, 2], fmt="%d")
    np.savetxt(root / "index_target.txt", [1], fmt="%d")
    for split in (0, 1):
        order = np.random.default_rng(split).permutation(20)
        np.savetxt(root / f"index_train_{split}.txt", order[:17], fmt="%d")
        np.savetxt(root / f"index_test_{split}.txt", order[17:], fmt="%.18e")
    return root


def ready(*args: Any, **kwargs: Any) -> TabularDataModule:
    data = TabularDataModule(*args, **kwargs)
    data.setup()
    return data


def test_embedded_table_equals_the_original() -> None:
    original = pytest.importorskip("sklearn.datasets").load_diabetes(scaled=False)
    data = ready()
    assert data.feature_names == tuple(original.feature_names)
    assert data.input_shape == (10,)
    assert (data.num_features, data.num_targets, data.num_outputs) == (10, 1, 1)
    for rows in (data.train_set, data.val_set, data.test_set):
        x, y = (torch.stack(part) for part in zip(*rows, strict=True))
        assert x.dtype == y.dtype == torch.float32
        assert y.shape == (len(rows), 1)
        raw = x.double() * data.feature_std + data.feature_mean
        assert np.allclose(raw.numpy(), original.data[rows.rows], rtol=1e-5, atol=1e-4)
        raw_y = y[:, 0].double() * data.target_std + data.target_mean
        assert np.allclose(raw_y.numpy(), original.target[rows.rows], rtol=1e-5)


def check_standardised(module: ModuleType, table: Path) -> None:
    data = module.TabularDataModule(path=table)
    data.setup()
    raw = torch.from_numpy(np.loadtxt(table, delimiter=",", skiprows=1))
    train = raw[data.train_set.rows]
    assert data.target_mean == pytest.approx(train[:, 3].mean().item(), abs=1e-9)
    assert data.target_std == pytest.approx(train[:, 3].std(correction=0).item(), abs=1e-9)
    x, y = (torch.stack(part).double() for part in zip(*data.train_set, strict=True))
    for column in (x[:, 0], x[:, 1], y[:, 0]):
        assert abs(column.mean().item()) < 1e-6
        assert abs(column.std(correction=0).item() - 1) < 1e-6
    assert x[:, 2].abs().max() < 1e-12  # 0 but for the rounding of the mean
    test_x = torch.stack([x for x, _ in data.test_set]).double()
    expected = (raw[data.test_set.rows, 0] - train[:, 0].mean()) / train[:, 0].std(correction=0)
    assert torch.allclose(test_x[:, 0], expected, atol=1e-6)
    assert test_x[:, 2].abs().max() < 1e-12


def test_standardised_on_the_training_rows(table: Path) -> None:
    check_standardised(tabular, table)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("_location_and_scale(inputs[self._train_rows])", "_location_and_scale(inputs)"),
        ("_location_and_scale(targets[self._train_rows])", "_location_and_scale(targets)"),
        ("inputs[self._train_rows]", "inputs[torch.cat([self._train_rows, self._val_rows])]"),
        ("torch.where(constant, 1.0, rows.std(dim=0, correction=0))", "rows.std(dim=0, correction=0)"),
    ],
    ids=["features of all rows", "target of all rows", "validation rows too", "constant column divided"],
)
def test_planted_bugs_of_scaling(mutate: Callable[..., ModuleType], table: Path, old: str, new: str) -> None:
    with pytest.raises(AssertionError):
        check_standardised(mutate(tabular, (old, new)), table)


def test_random_split(table: Path) -> None:
    data = ready(path=table)
    assert [len(rows) for rows in (data.test_set, data.val_set, data.train_set)] == [5, 9, 36]
    rows = torch.cat([data.test_set.rows, data.val_set.rows, data.train_set.rows])
    assert rows.sort().values.equal(torch.arange(ROWS))
    torch.manual_seed(77)
    assert ready(path=str(table)).train_set.rows.equal(data.train_set.rows)
    assert not ready(path=table, seed=1).test_set.rows.equal(data.test_set.rows)
    assert ready(path=table, val_fraction=0.5).test_set.rows.equal(data.test_set.rows)


def test_columns(table: Path) -> None:
    by_name = TabularDataModule(path=table, feature_columns=["b", 0], target_column="y")
    assert (by_name.feature_names, by_name.target_name, by_name.input_shape) == (("b", "a"), "y", (2,))
    first = TabularDataModule(path=table, target_column=0)
    assert (first.feature_names, first.target_name) == (("b", "constant", "y"), "a")
    for columns in ([], ["a", "y"], ["a", 0]):
        with pytest.raises(ValueError, match="Expected `feature_columns` to be different columns"):
            TabularDataModule(path=table, feature_columns=columns)
    with pytest.raises(
        ValueError, match=r"Expected `target_column` to name one column .*but got 'z'; its 4 columns are a, b"
    ):
        TabularDataModule(path=table, target_column="z")


def check_benchmark(module: ModuleType, root: Path, split: int) -> None:
    data = module.TabularDataModule(root=root, split=split)
    data.setup()
    given = np.loadtxt(root / f"index_train_{split}.txt").astype(int)
    count = int(0.8 * len(given))
    assert data.train_set.rows.tolist() == given[:count].tolist()
    assert data.val_set.rows.tolist() == given[count:].tolist()
    assert data.test_set.rows.tolist() == np.loadtxt(root / f"index_test_{split}.txt").astype(int).tolist()
    raw = np.loadtxt(root / "data.txt")
    x, y = data.test_set[2]
    row = data.test_set.rows[2]
    expected = (raw[row, [0, 2]] - raw[given[:count]][:, [0, 2]].mean(0)) / raw[given[:count]][:, [0, 2]].std(0)
    assert np.allclose(x.numpy(), expected, atol=1e-5)
    assert y.item() * data.target_std + data.target_mean == pytest.approx(raw[row, 1], abs=1e-5)


@pytest.mark.parametrize("split", [0, 1])
def test_given_split_validates_on_the_last_training_rows(benchmark: Path, split: int) -> None:
    check_benchmark(tabular, benchmark, split)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("return given[:count], given[count:], test", "return given[-count:], given[:-count], test"),
        ("return None if file is None or not file.exists()", "return None if True"),
        ("return int(columns[0])", "return -1"),
    ],
    ids=["first rows validate", "feature file ignored", "target file ignored"],
)
def test_planted_bugs_of_given_splits(mutate: Callable[..., ModuleType], benchmark: Path, old: str, new: str) -> None:
    with pytest.raises((AssertionError, ValueError)):
        check_benchmark(mutate(tabular, (old, new)), benchmark, 0)


def test_given_split_without_validation_rows(benchmark: Path) -> None:
    data = ready(root=benchmark, val_fraction=0)
    assert len(data.train_set) == 17
    assert data.val_set is None
    assert data.gap_set is None
    assert data.val_dataloader() == []


def test_column_files_are_optional(benchmark: Path) -> None:
    (benchmark / "index_features.txt").unlink()
    (benchmark / "index_target.txt").unlink()
    data = TabularDataModule(root=benchmark)
    assert (data.feature_names, data.target_name, data.split) == (("0", "1", "2"), "3", 0)


def test_damaged_split_files(benchmark: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"index_train_7\.txt, but there is no such file"):
        TabularDataModule(root=benchmark, split=7)
    (benchmark / "index_target.txt").write_text("1\n3\n")
    with pytest.raises(ValueError, match=r"index_target\.txt, but got \[1, 3\]; pass `target_column`"):
        TabularDataModule(root=benchmark)
    (benchmark / "index_target.txt").write_text("1\n")
    test_file = benchmark / "index_test_0.txt"
    test_file.write_text("20\n")
    with pytest.raises(ValueError, match=r"row numbers below 20 .*index_test_0\.txt, but got 20"):
        TabularDataModule(root=benchmark)
    test_file.write_text((benchmark / "index_train_0.txt").read_text())
    with pytest.raises(ValueError, match="to share no row, but both hold"):
        TabularDataModule(root=benchmark)
    test_file.write_text("")
    with pytest.raises(ValueError, match=r"the test set .* got none; put row numbers into .*index_test_0\.txt"):
        ready(root=benchmark)


def test_missing_or_contradictory_sources(table: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"Expected a table at {tmp_path}/no\.csv, but there is no such file"):
        TabularDataModule(path=tmp_path / "no.csv")
    with pytest.raises(FileNotFoundError, match=rf"Expected `root` to be a folder .*{tmp_path}/none is none; correct"):
        TabularDataModule(root=tmp_path / "none")
    with pytest.raises(ValueError, match="Expected `path` or `root`, but got both"):
        TabularDataModule(path=table, root=tmp_path)
    with pytest.raises(ValueError, match="Expected `split` together with `root`"):
        TabularDataModule(path=table, split=0)
    with pytest.raises(ValueError, match="Expected `delimiter` to be one character"):
        TabularDataModule(path=table, delimiter="::")
    with pytest.raises(ValueError, match="`val_fraction`"):
        TabularDataModule(val_fraction=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"test_fraction": 0.001},
            "the test set .* none; raise `test_fraction`, or use a table with more than 50 rows",
        ),
        ({"val_fraction": 0.001}, "the validation set .* none; raise `val_fraction`"),
        ({"val_fraction": 0.999}, "the training set .* none; lower `val_fraction`"),
    ],
)
def test_empty_sets(table: Path, arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ready(path=table, **arguments)


def test_bad_cell_names_file_and_line(table: Path) -> None:
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines[:7], lines[7].replace(lines[7].split(",")[1], "n/a"), *lines[8:]]))
    with pytest.raises(ValueError, match=r"table\.csv, line 8, column 1 \('b'\), but got 'n/a'; .*`feature_columns`"):
        TabularDataModule(path=table)
    assert TabularDataModule(path=table, feature_columns=["a"]).input_shape == (1,)

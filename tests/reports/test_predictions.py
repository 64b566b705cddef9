"""Tables of predictions: the columns of each task, and files that read back as they were."""

import csv
import math
import sys
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_dropout.callbacks import MCDropout
from lightning_dropout.reports import prediction_table, write_table
from lightning_dropout.reports.predictions import check_format
from lightning_dropout.sampling import Task, mc_sample

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]


def batches(task: Task, width: int, sizes: tuple[int, ...] = (3, 2)) -> list[dict[str, Tensor]]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, width)).eval()
    predictions = [mc_sample(net, torch.randn(size, 4), num_samples=5, task=task) for size in sizes]
    return [{"prediction": p.mean, "mean": p.mean, "std": p.std} | p.uncertainties() for p in predictions]


@pytest.mark.parametrize(
    ("task", "width", "columns"),
    [
        (
            "multiclass",
            3,
            "class mean_0 mean_1 mean_2 std_0 std_1 std_2 entropy mutual_information",
        ),
        ("binary", 1, "mean std entropy mutual_information"),
        (  # labels do not exclude each other: no class is the greatest
            "multilabel",
            2,
            "mean_0 mean_1 std_0 std_1 entropy_0 entropy_1 mutual_information_0 mutual_information_1",
        ),
        ("regression", 1, "mean std"),
        ("gaussian", 2, "mean std aleatoric_variance epistemic_variance"),
        ("raw", 2, "mean_0 mean_1 std_0 std_1"),
    ],
)
def test_columns_of_each_task(task: Task, width: int, columns: str) -> None:
    table = prediction_table(batches(task, width))
    assert list(table) == ["sample", *columns.split()]
    assert {len(column) for column in table.values()} == {5}
    assert table["sample"] == [0, 1, 2, 3, 4]


def test_rows_are_those_of_the_batches_in_order() -> None:
    given = batches("multiclass", 3)
    table = prediction_table(given)
    mean = torch.cat([batch["mean"] for batch in given]).double()
    for index in range(3):
        assert table[f"mean_{index}"] == mean[:, index].tolist()
    assert table["class"] == mean.argmax(1).tolist()
    assert table["entropy"] == torch.cat([batch["entropy"] for batch in given]).double().tolist()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "Expected at least one batch of predictions, but got none; is the predict loader empty?"),
        (
            [torch.zeros(2, 3)],
            "Expected batches of predictions by name, but got Tensor; pass `return_uncertainty=True`",
        ),
        ([[{"mean": torch.zeros(2)}], []], "but got list; pass .* one loader at a time"),
        ([{"prediction": torch.zeros(2)}], "Expected batches of predictions by name"),
        ([{"mean": torch.zeros(2), "std": torch.zeros(3)}], r"Expected one row a sample, but got columns of \[2, 3\]"),
    ],
)
def test_what_is_no_table(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prediction_table(given)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_files_read_back_as_they_were(tmp_path: Path, ending: str) -> None:
    table = prediction_table(batches("multiclass", 3))
    path = write_table(table, tmp_path / f"predictions.{ending}")
    read = pandas.read_csv(path) if ending == "csv" else pandas.read_parquet(path)
    assert list(read.columns) == list(table)
    for name, column in table.items():
        assert read[name].tolist() == column  # to the last bit
    assert read["class"].dtype == read["sample"].dtype == "int64"


def test_a_csv_is_plain(tmp_path: Path) -> None:
    path = write_table({"sample": [0, 1], "std": [0.5, math.nan]}, str(tmp_path / "table.csv"))
    with path.open(newline="") as file:
        assert list(csv.reader(file)) == [["sample", "std"], ["0", "0.5"], ["1", "nan"]]


def test_columns_of_different_lengths_are_not_cut(tmp_path: Path) -> None:
    for ending in ("csv", "parquet"):
        with pytest.raises(ValueError, match=r"length|shorter|longer"):
            write_table({"a": [1.0], "b": [1.0, 2.0]}, tmp_path / f"table.{ending}")


def test_another_ending_is_refused_before_anything_is_predicted(tmp_path: Path) -> None:
    for name in ("table.txt", "table", "table.csv.gz"):
        with pytest.raises(ValueError, match=rf"Expected `output` to end in \.csv or \.parquet, but got '.*{name}'"):
            check_format(tmp_path / name)
    check_format("table.csv")


def test_parquet_without_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match="Parquet needs pyarrow: `pip install pyarrow`, or write CSV"):
        check_format("table.parquet")
    check_format("table.csv")


def test_what_a_trainer_predicts(tmp_path: Path) -> None:
    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))

        def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.net(batch[0]).argmax(1)  # type: ignore[no-any-return]

    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
        callbacks=[MCDropout(3, task="multiclass", return_uncertainty=True)],
    )
    loader = DataLoader(TensorDataset(torch.randn(5, 4)), batch_size=2)
    predicted = trainer.predict(Module(), loader)
    table = prediction_table(predicted)  # type: ignore[arg-type]
    assert len(table["sample"]) == 5
    assert table["class"] == torch.cat([batch["prediction"] for batch in predicted]).tolist()  # type: ignore[index, union-attr, arg-type]

"""scripts/evaluate.py: the numbers of a checkpoint, and a row for every sample."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

QUIET = ["trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "trainer.enable_model_summary=false"]
SHORT = [*QUIET, "trainer.max_epochs=1", "trainer.limit_train_batches=10", "logger=csv"]

Run = Callable[..., int]

pytestmark = pytest.mark.filterwarnings(
    # The evaluation has a folder of its own, which is the point.
    "ignore:The dirpath has changed",
    "ignore:The number of training batches",
)


@pytest.fixture
def checkpoint(run_script: Run, tmp_path: Path) -> Path:
    """Return the checkpoint of a short run."""
    assert run_script("train", "model=net", "callbacks/dropout=constant", *SHORT) == 0
    return tmp_path / "outputs" / "stamp" / "checkpoints" / "best.ckpt"


def test_test_repeats_the_numbers_of_the_run(run_script: Run, tmp_path: Path, checkpoint: Path) -> None:
    assert run_script("evaluate", f"ckpt_path={checkpoint}", "hydra.run.dir=again") == 0
    before = json.loads((tmp_path / "outputs" / "stamp" / "metrics.json").read_text())
    after = json.loads((tmp_path / "again" / "evaluation.json").read_text())
    assert {"test/mc/nll", "test/det/nll", "test/accuracy"} <= after.keys()
    assert after == pytest.approx({key: before[key] for key in after})


@pytest.mark.parametrize("output", ["predictions.csv", "predictions.parquet"])
def test_predict_writes_a_row_a_sample(run_script: Run, tmp_path: Path, checkpoint: Path, output: str) -> None:
    arguments = ["stage=predict", "num_samples=4", "rates=0.5", f"output={output}", "hydra.run.dir=rows"]
    assert run_script("evaluate", f"ckpt_path={checkpoint}", *arguments) == 0
    path = tmp_path / "rows" / output
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    else:
        rows = pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()
    assert len(rows) == 359
    means = [[row[f"mean_{index}"] for index in range(10)] for row in rows]
    assert all(sum(mean) == pytest.approx(1.0, abs=1e-5) for mean in means)
    assert all(mean.index(max(mean)) == row["class"] for mean, row in zip(means, rows, strict=True))
    assert all(0.0 <= row["mutual_information"] <= row["entropy"] for row in rows)
    assert any(row["std_0"] > 0 for row in rows)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ckpt_path=nowhere/best.ckpt"], ["ckpt_path=nowhere/best.ckpt", "outputs/<run>/checkpoints"]),
        ([], ["ckpt_path"]),
        (["ckpt_path=null"], ["ckpt_path=null", "outputs/<run>/checkpoints"]),
        (["ckpt_path=x", "stage=tset"], ["stage=tset", "test or predict"]),
    ],
)
def test_a_wrong_word_costs_one_line(
    run_script: Run, capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]
) -> None:
    assert run_script("evaluate", *arguments) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    for word in words:
        assert word in line


def test_a_run_without_passes_is_tested_and_not_predicted(
    run_script: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_script("train", "model=net", "callbacks/mc_dropout=none", *SHORT) == 0
    checkpoint = tmp_path / "outputs" / "stamp" / "checkpoints" / "best.ckpt"
    assert run_script("evaluate", f"ckpt_path={checkpoint}", "hydra.run.dir=again") == 0
    assert "test/accuracy" in json.loads((tmp_path / "again" / "evaluation.json").read_text())
    assert run_script("evaluate", f"ckpt_path={checkpoint}", "stage=predict") == 2
    assert "callbacks/mc_dropout=multiclass" in capsys.readouterr().err


def test_wrong_changes_of_a_run_are_named(
    run_script: Run, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_script("evaluate", f"ckpt_path={checkpoint}", "output=table.xlsx", "stage=predict") == 2
    assert ".csv or .parquet" in capsys.readouterr().err
    assert run_script("evaluate", f"ckpt_path={checkpoint}", "+run.data.bathc_size=3") == 2
    assert "bathc_size" in capsys.readouterr().err
    assert run_script("evaluate", f"ckpt_path={checkpoint}", "output=../table.csv", "stage=predict") == 2
    assert "output=../table.csv" in capsys.readouterr().err
    assert run_script("evaluate", f"ckpt_path={checkpoint}", "num_samples=0") == 2
    assert "num_samples=0" in capsys.readouterr().err

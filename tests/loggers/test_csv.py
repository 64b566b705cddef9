"""metrics.csv of a run that is killed and goes on: each row once, and nothing lost, whenever the kill comes."""

import csv
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger

from lightning_dropout.loggers import ResumableCSVLogger


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "csv" / "metrics.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]


def log(folder: Path, steps: range, kind: type[CSVLogger] = ResumableCSVLogger, **more: float) -> CSVLogger:
    logger = kind(folder, name="csv", version="")
    for step in steps:
        logger.log_metrics({"loss": step / 10, **more}, step=step)
    logger.save()
    return logger


def test_a_new_folder_gets_what_lightnings_logger_writes(tmp_path: Path) -> None:
    for kind in (CSVLogger, ResumableCSVLogger):
        log(tmp_path / kind.__name__, range(3), kind, rate=0.5)
    written = [
        (tmp_path / kind.__name__ / "csv" / "metrics.csv").read_bytes() for kind in (CSVLogger, ResumableCSVLogger)
    ]
    assert written[0] == written[1]


def test_a_resumed_run_holds_each_step_once(tmp_path: Path) -> None:
    log(tmp_path, range(6))
    log(tmp_path, range(4, 8), rate=0.5)  # from a checkpoint at step 4, with a column more
    rows = rows_of(tmp_path)
    assert [row["step"] for row in rows] == [str(step) for step in range(8)]
    assert [row["loss"] for row in rows] == [str(step / 10) for step in range(8)]
    assert [row.get("rate") for row in rows] == [None] * 4 + ["0.5"] * 4


@pytest.mark.filterwarnings("ignore:Experiment logs directory")
def test_lightnings_logger_fails_that(tmp_path: Path) -> None:
    log(tmp_path, range(6), CSVLogger)
    log(tmp_path, range(4, 8), CSVLogger)
    assert [row["step"] for row in rows_of(tmp_path)] == ["4", "5", "6", "7"]


def test_a_run_that_begins_again_keeps_the_first_one_beside_it(tmp_path: Path) -> None:
    log(tmp_path, range(6))
    first = (tmp_path / "csv" / "metrics.csv").read_bytes()
    for number in (1, 2):
        log(tmp_path, range(3))
        assert [row["step"] for row in rows_of(tmp_path)] == ["0", "1", "2"]
        kept = (tmp_path / "csv" / f"metrics.{number}.csv").read_bytes()
        assert (kept == first) == (number == 1)


def test_a_validation_that_is_repeated_keeps_the_training_row_of_its_step(tmp_path: Path) -> None:
    logger = log(tmp_path, range(5), ResumableCSVLogger)
    logger.log_metrics({"val/loss": 1.0, "epoch": 0}, step=4)
    logger.log_metrics({"loss": 9.0}, step=5)
    logger.save()
    resumed = ResumableCSVLogger(tmp_path, name="csv", version="")
    resumed.log_metrics({"val/loss": 2.0, "epoch": 0}, step=4)
    resumed.log_metrics({"val/gap": 3.0, "epoch": 0}, step=4)
    resumed.log_metrics({"loss": 0.5}, step=5)
    resumed.save()
    assert [(row["step"], row.get("loss"), row.get("val/loss")) for row in rows_of(tmp_path)] == [
        *((str(step), str(step / 10), None) for step in range(5)),
        ("4", None, "2.0"),
        ("4", None, None),
        ("5", "0.5", None),
    ]


def test_a_file_stays_until_something_is_logged(tmp_path: Path) -> None:
    log(tmp_path, range(3))
    log(tmp_path, range(0))
    assert len(rows_of(tmp_path)) == 3


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_row_that_was_cut_short_is_left_out(tmp_path: Path, cut: int) -> None:
    log(tmp_path, range(10, 13), rate=0.25)
    path = tmp_path / "csv" / "metrics.csv"
    path.write_bytes(path.read_bytes()[:-cut])
    log(tmp_path, range(13, 14), rate=0.25)
    rows = rows_of(tmp_path)
    assert rows[:2] == [{"loss": "1.0", "rate": "0.25", "step": "10"}, {"loss": "1.1", "rate": "0.25", "step": "11"}]
    assert rows[-1] == {"loss": "1.3", "rate": "0.25", "step": "13"}
    assert rows[2:-1] in ([], [{"loss": "1.2", "rate": "0.25", "step": "12"}])


@pytest.mark.parametrize("content", [b"", b"loss,st", b"loss,step\r\n"])
def test_a_file_without_rows_is_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv" / "metrics.csv").write_bytes(content)
    log(tmp_path, range(2))
    assert rows_of(tmp_path) == [{"loss": "0.0", "step": "0"}, {"loss": "0.1", "step": "1"}]


def test_no_moment_without_the_earlier_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log(tmp_path, range(6))

    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        log(tmp_path, range(6, 8))
    monkeypatch.undo()
    assert len(rows_of(tmp_path)) == 6
    log(tmp_path, range(6, 8))
    assert len(rows_of(tmp_path)) == 8
    assert [path.name for path in (tmp_path / "csv").iterdir()] == ["metrics.csv"]


def test_rows_are_on_disk_with_the_checkpoint(tmp_path: Path) -> None:
    logger = ResumableCSVLogger(tmp_path, name="csv", version="")
    logger.log_metrics({"loss": 0.5}, step=0)
    logger.after_save_checkpoint(None)
    assert len(rows_of(tmp_path)) == 1

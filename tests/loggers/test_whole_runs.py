"""Whole trainings with the real client: that nothing is lost on the way, and that no server can hold one up."""

from __future__ import annotations

import csv
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning
import pytest

from lightning_dropout import log_keys
from lightning_dropout.loggers import finish_wandb, wandb_logger
from lightning_dropout.loggers.fail_safe import SUMMARIES

pytestmark = pytest.mark.usefixtures("clean_wandb")

Value = tuple[int, str, float]
RUN = Path(__file__).parents[1] / "wandb_run.py"
LONGEST_DELAY = 30  # seconds


def values_of_csv(folder: Path) -> list[Value]:
    """Return step, key and value of all that Lightning's own CSV logger was given, in order."""
    with (folder / "csv" / "metrics.csv").open(newline="") as file:
        return [
            (int(row["step"]), key, float(value))
            for row in csv.DictReader(file)
            for key, value in row.items()
            if value and key not in ("step", "epoch")
        ]


def values_of_rows(rows: list[dict[str, Any]]) -> list[Value]:
    return [
        (row[log_keys.GLOBAL_STEP], key, value)
        for row in sorted(rows, key=lambda row: row["_step"])
        for key, value in row.items()
        if isinstance(value, int | float) and not key.startswith("_") and key not in (log_keys.GLOBAL_STEP, "epoch")
    ]


def lost(folder: Path, rows: list[dict[str, Any]]) -> list[Value]:
    """Return what the CSV has and ``rows`` have not."""
    arrived = {(step, key): value for step, key, value in values_of_rows(rows)}
    return [
        (step, key, value)
        for step, key, value in values_of_csv(folder)
        if arrived.get((step, key)) != pytest.approx(value, rel=1e-6)
    ]


def check_arrival(folder: Path, server: Any) -> str:
    """Check that one run arrived whole; return its id."""
    (run,) = server.runs
    run_id: str = run["name"]
    assert list(server.history) == [run_id]
    assert lost(folder, server.history[run_id]) == []
    last = {key: value for _, key, value in values_of_csv(folder)}
    for key, value in last.items():
        if key not in SUMMARIES:
            assert server.summary[run_id][key] == pytest.approx(value, rel=1e-6), key
    assert {"depth": 1, "seed": 0, "num_classes": 3}.items() <= server.config[run_id].items()
    for key in (log_keys.RATE_PLAN, log_keys.REPORT_RELIABILITY):
        (name,) = server.summary[run_id][key]["filenames"]
        assert server.uploads[name].startswith(b"\x89PNG")
    table = server.summary[run_id][log_keys.REPORT_SAMPLES]
    sent = json.loads(server.uploads[table["path"]])
    assert sent["columns"][:3] == ["sample", "predicted", "label"]
    assert len(sent["data"]) == 2
    assert log_keys.REPORT_SAMPLES.rpartition("/")[2] in server.artifacts[0]["artifactCollectionName"]
    assert server.exit_codes == {run_id: 0}
    return run_id


def test_a_training_arrives_whole(tmp_path: Path, server: Any, key: None, train_run: Callable[..., None]) -> None:
    train_run(tmp_path, wandb_logger(save_dir=tmp_path))
    run_id = check_arrival(tmp_path, server)
    losses = [value for _, key, value in values_of_csv(tmp_path) if key == log_keys.VAL_LOSS]
    assert server.summary[run_id][log_keys.VAL_LOSS] == {"min": pytest.approx(min(losses))}
    # a lost row, a changed value and a value at another step would be seen
    rows = server.history[run_id]
    (index,) = [index for index, row in enumerate(rows) if log_keys.comparison_key("test", "mc", "nll") in row]
    assert lost(tmp_path, rows[:index] + rows[index + 1 :]) != []
    assert lost(tmp_path, [*rows[:index], {**rows[index], log_keys.comparison_key("test", "mc", "nll"): 9.0}]) != []
    assert lost(tmp_path, [{**row, log_keys.GLOBAL_STEP: row[log_keys.GLOBAL_STEP] + 1} for row in rows]) != []


@pytest.mark.slow
def test_two_ranks_arrive_as_one_run(
    tmp_path: Path, server: Any, key: None, environment: Callable[[], dict[str, str]]
) -> None:
    result = subprocess.run(
        [sys.executable, str(RUN), str(tmp_path), "2"], env=environment(), capture_output=True, text=True, timeout=200
    )
    assert result.returncode == 0, result.stderr
    assert "2 processes" in result.stderr
    check_arrival(tmp_path, server)
    assert result.stdout.count("W&B: ") == 1


class Stop(lightning.Callback):
    """Ends the server after the first epoch."""

    def __init__(self, server: Any) -> None:
        self.server = server

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.server.stop()


@pytest.fixture
def delay(tmp_path: Path, train_run: Callable[..., None]) -> Callable[..., float]:
    """Train with a W&B that fails, into the folder ``run``; return how many seconds longer that takes than without."""

    def measure(*callbacks: lightning.Callback) -> float:
        start = time.perf_counter()
        train_run(tmp_path / "without", wandb_logger(save_dir=tmp_path, mode="disabled"))
        without = time.perf_counter() - start
        start = time.perf_counter()
        train_run(tmp_path / "run", wandb_logger(save_dir=tmp_path / "run"), callbacks=callbacks)
        return time.perf_counter() - start - without

    return measure


@pytest.fixture
def whole_on_disk(tmp_path: Path, read_run: Callable[[Path], dict[str, list[Any]]]) -> Iterator[None]:
    """Check at the end that W&B's own files hold everything, so that ``wandb sync`` can upload it."""
    yield
    folders = [path for path in (tmp_path / "run" / "wandb").glob("*run-*") if path.is_dir()]
    folder = max(folders, key=lambda path: path.name.startswith("offline"))  # where online failed, there are both
    assert lost(tmp_path / "run", [row["item"] for row in read_run(folder)["history"]]) == []


@pytest.mark.slow
@pytest.mark.usefixtures("whole_on_disk", "key")
class TestDelay:
    """With the default timeouts."""

    def test_a_server_that_dies(
        self, server: Any, delay: Callable[..., float], capfd: pytest.CaptureFixture[str]
    ) -> None:
        assert delay(Stop(server)) < LONGEST_DELAY
        assert server.history != {} or server.runs != []  # it was there
        table, end = [line for line in capfd.readouterr().err.splitlines() if line.startswith("W&B: ")]
        assert table == "W&B: a table could not be logged (TimeoutError: no answer within 5 s); the training goes on"
        assert "upload it with `wandb sync" in end

    def test_a_server_that_is_unreachable(
        self, delay: Callable[..., float], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
        assert delay() < LONGEST_DELAY
        assert "W&B: offline (" in capfd.readouterr().out

    def test_a_server_that_never_answers(self, server: Any, delay: Callable[..., float]) -> None:
        server.ignore = frozenset({"UpsertBucket"})
        assert delay() < LONGEST_DELAY


def test_the_last_test_is_what_the_table_of_runs_shows(tmp_path: Path, server: Any, key: None) -> None:
    logger = wandb_logger(save_dir=tmp_path)
    keys = [log_keys.comparison_key("test", "mc", "nll"), log_keys.VAL_GAP, *SUMMARIES]
    for step, value in enumerate((2.0, 1.0, 3.0, 2.5)):
        logger.log_metrics(dict.fromkeys(keys, value), step=step)
    finish_wandb()
    ((_, summary),) = server.summary.items()
    best = {"min": {"min": 1}, "max": {"max": 3}}
    assert [summary[key] for key in keys] == [2.5, 2.5, *(best[kind] for kind in SUMMARIES.values())]

"""The logger when W&B breaks while a training runs, and on ranks that must not talk to W&B."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_dropout.loggers import FailSafeWandbLogger, fail_safe, finish_wandb, wandb_logger

pytestmark = pytest.mark.usefixtures("clean_wandb")


KILLED = """
import subprocess, sys
from lightning_dropout.loggers import finish_wandb, wandb_logger

started = []


class Recorded(subprocess.Popen):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        started.append(self)


subprocess.Popen = Recorded
logger = wandb_logger(save_dir=sys.argv[1], mode="offline")
finish_wandb()
assert "wandb" not in sys.modules, "wandb was imported before a run needs it"
logger.log_metrics({"train/loss": 1.0}, step=0)
(core,) = [process for process in started if "wandb-core" in str(process.args)]
core.kill()  # as the kernel does when memory runs out
core.wait()
for step in range(1, 20):
    logger.log_metrics({"train/loss": 1.0}, step=step)
    logger.log_hyperparams({"step": step})
logger.finalize("success")
finish_wandb()
print("next run", file=sys.stderr)
following = wandb_logger(save_dir=sys.argv[1], mode="offline")
following.log_metrics({"train/loss": 0.5}, step=0)
assert following.version != logger.version
print(following.version)
finish_wandb()
"""


def test_death_of_the_background_process_stops_neither_this_run_nor_the_next(
    tmp_path: Path, read_run: Callable[[Path], dict[str, list[Any]]]
) -> None:
    # In a process of its own, because wandb forgets its handle of the killed process, and Python warns of that.
    result = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "out")], capture_output=True, text=True, timeout=100
    )
    assert result.returncode == 0, result.stderr
    before, after = result.stderr.split("next run\n")
    lines = before.splitlines()
    assert all(line.startswith("W&B: ") for line in lines)
    assert [line for line in lines if "metrics could not be logged" in line]
    assert len(lines) <= 3  # metrics, hyper-parameters, the end: each once
    assert after == ""
    (folder,) = (tmp_path / "out").glob(f"wandb/*-{result.stdout.split()[-1]}")
    assert [row["item"]["train/loss"] for row in read_run(folder)["history"]] == [0.5]


@pytest.mark.parametrize("broken", ["online", "offline", "disabled"])
def test_each_mode_that_fails_gives_way_to_the_next(
    broken: str,
    tmp_path: Path,
    server: Any,
    key: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import wandb

    order = ["online", "offline", "disabled"]
    failing = order[: order.index(broken) + 1]
    real = wandb.init

    def init(**arguments: Any) -> Any:
        if arguments["mode"] in failing:
            raise RuntimeError("planted\nsecond line")
        return real(**arguments)

    monkeypatch.setattr(wandb, "init", init)
    logger = wandb_logger(save_dir=tmp_path)
    logger.log_metrics({"train/loss": 1.0}, step=0)
    logger.log_hyperparams({"depth": 4}) if broken != "disabled" else None
    logger.finalize("success")
    assert logger.version is None or isinstance(logger.version, str)
    assert capsys.readouterr().err.splitlines() == [
        f"W&B: {mode} run failed to start (RuntimeError: planted); the training goes on" for mode in failing
    ]


def test_other_ranks_never_touch_wandb(
    tmp_path: Path, key: None, server: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import wandb
    from lightning.pytorch.utilities import rank_zero_only

    def never(*arguments: Any, **named: Any) -> None:
        raise AssertionError("called on rank 1")

    monkeypatch.setattr(rank_zero_only, "rank", 1)
    for name in ("login", "init", "setup", "termsetup"):
        monkeypatch.setattr(wandb, name, never)
    logger = wandb_logger(save_dir=tmp_path, id="abc")
    logger.experiment.log({"train/loss": 1.0})
    logger.log_metrics({"train/loss": 1.0}, step=0)
    logger.log_hyperparams({"depth": 4})
    logger.finalize("success")
    finish_wandb()
    assert logger.version == "abc"
    assert server.requests == 0
    assert capfd.readouterr() == ("", "")


def test_rank_is_asked_when_the_run_starts_not_when_the_logger_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first process of a second node learns its rank only when the trainer is built.
    from lightning.pytorch.utilities import rank_zero_only

    logger = wandb_logger(save_dir=tmp_path, mode="offline")
    monkeypatch.setattr(rank_zero_only, "rank", 8)
    logger.experiment.log({"train/loss": 1.0})
    assert logger._experiment is None


def test_settings_that_the_installed_wandb_lacks_are_left_out(tmp_path: Path) -> None:
    logger = FailSafeWandbLogger(
        mode="offline",
        save_dir=tmp_path,
        log_model=False,
        arguments={"project": "p", "name": None, "id": None},
        settings={"a_setting_of_the_future": 1, "console": "off"},
    )
    assert logger.experiment.offline
    finish_wandb()


def test_a_folder_that_cannot_be_made_does_not_stop_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    logger = wandb_logger(save_dir=tmp_path / "file" / "below", mode="offline")
    logger.log_metrics({"train/loss": 1.0}, step=0)
    folder = Path(logger.experiment.dir).parent
    assert folder.is_dir()
    assert f"`wandb leet {folder}`" in capsys.readouterr().out


def test_a_table_waits_for_a_silent_server_no_longer_than_is_said(
    tmp_path: Path,
    server: Any,
    key: None,
    read_run: Callable[[Path], dict[str, list[Any]]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(fail_safe, "_TABLE_TIMEOUT", 0.5)
    logger = wandb_logger(save_dir=tmp_path, finish_timeout=2.0)
    logger.log_metrics({"train/loss": 1.0}, step=0)
    server.ignore = frozenset({"Viewer", "ArtifactType"})
    start = time.perf_counter()
    for _ in range(2):  # said once
        logger.log_table("samples", columns=["label"], data=[[1]])
    assert time.perf_counter() - start < 10  # wandb alone: 20 s each
    assert capsys.readouterr().err == (
        "W&B: a table could not be logged (TimeoutError: no answer within 0.5 s); the training goes on\n"
    )
    logger.log_metrics({"train/loss": 0.5}, step=1)
    server.stop()
    finish_wandb()
    (folder,) = [path for path in (tmp_path / "wandb").glob("run-*") if path.is_dir()]
    rows = [row["item"] for row in read_run(folder)["history"]]
    assert [row["train/loss"] for row in rows if "train/loss" in row] == [1.0, 0.5]

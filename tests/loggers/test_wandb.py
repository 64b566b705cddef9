"""The factory: what it accepts, and the run that comes of it: with the real client, offline and against our server."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_dropout.loggers import FailSafeWandbLogger, finish_wandb, wandb_logger

pytestmark = [
    pytest.mark.usefixtures("clean_wandb"),
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    # Lightning 2.6 on torch 2.14
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning"),
]

OFFLINE_LINE = re.compile(r"W&B: offline \((.+)\)\. Look: `wandb leet (\S+)`\. Upload: `wandb sync (\S+)`\.\n")


class Line(lightning.LightningModule):
    """One weight, validated twice with a loss that first falls and then rises."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.validations = [3.0, 1.0, 2.0]

    def training_step(self, batch: Tensor) -> Tensor:
        loss = self.layer(batch).square().mean()
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Tensor) -> None:
        self.log("val/loss", self.validations[self.current_epoch])
        self.log("val/accuracy", 1 / self.validations[self.current_epoch])

    def test_step(self, batch: Tensor) -> None:
        self.log("test/mc/accuracy", 0.5)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(logger: FailSafeWandbLogger, folder: Path) -> lightning.Trainer:
    trainer = lightning.Trainer(
        max_epochs=3,
        logger=logger,
        accelerator="cpu",
        default_root_dir=folder,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
    )
    loader = DataLoader(torch.ones(2, 1))
    model = Line()
    trainer.fit(model, loader, loader)
    trainer.test(model, loader, verbose=False)
    return trainer


def folders(root: Path) -> list[Path]:
    return sorted(path for path in (root / "wandb").glob("*run-*") if path.is_dir())


def closed_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


class TestOffline:
    """No credentials, or told to stay offline."""

    def test_training_without_a_key_is_offline_at_once_without_network(
        self,
        tmp_path: Path,
        server: Any,
        environment: Callable[[], dict[str, str]],
        read_run: Callable[[Path], dict[str, list[Any]]],
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        before = environment()
        logger = wandb_logger(save_dir=tmp_path / "out", name="first", group="sweep", tags=["a", "b"], job_type="train")
        assert folders(tmp_path / "out") == []  # nothing starts before it is needed

        start = time.perf_counter()
        train(logger, tmp_path)
        finish_wandb()
        assert time.perf_counter() - start < 30

        out, err = capfd.readouterr()
        (folder,) = folders(tmp_path / "out")
        assert folder.name.startswith("offline-run-")
        ((reason, look, upload),) = OFFLINE_LINE.findall(out)
        assert "wandb login" in reason
        assert look == upload == str(folder)
        assert [line for line in (out + err).splitlines() if "W&B" in line or "wandb" in line] == [
            OFFLINE_LINE.search(out)[0].rstrip("\n")  # type: ignore[index]
        ]
        assert environment() == before
        assert "WANDB_MODE" not in os.environ
        assert server.requests == 0

        records = read_run(folder)
        (run,) = records["run"]
        assert (run["project"], run["display_name"], run["run_group"], run["tags"], run["job_type"]) == (
            "lightning-dropout",
            "first",
            "sweep",
            ["a", "b"],
            "train",
        )
        rows = [row["item"] for row in records["history"]]
        validated = [row for row in rows if "val/loss" in row]
        assert [(row["trainer/global_step"], row["val/loss"]) for row in validated] == [(1, 3.0), (3, 1.0), (5, 2.0)]
        assert [row["trainer/global_step"] for row in rows if "train/loss" in row] == list(range(6))
        summary: dict[str, Any] = {}
        for record in records["summary"]:
            summary.update(record["update"])
        assert summary["val/loss"] == {"min": 1.0}
        assert summary["val/accuracy"] == {"max": 1.0}
        assert summary["test/mc/accuracy"] == 0.5
        metrics = {record.get("name") or record.get("glob_name"): record for record in records["metric"]}
        for metric in ("*", "val/loss", "val/accuracy"):
            assert metrics[metric]["step_metric"] == "trainer/global_step"
        assert records["exit"] == [{"exit_code": 0}] or records["exit"][0]["exit_code"] == 0

    def test_a_run_tells_nothing_of_the_machine(
        self, tmp_path: Path, read_run: Callable[[Path], dict[str, list[Any]]]
    ) -> None:
        logger = wandb_logger(save_dir=tmp_path, mode="offline")
        logger.log_metrics({"train/loss": 1.0}, step=0)
        print("console line")
        finish_wandb()
        (folder,) = folders(tmp_path)
        records = read_run(folder)
        assert "host" not in records["run"][0]
        assert not {"git", "output", "output_raw", "environment"} & set(records)
        assert sorted(path.name for path in (folder / "files").iterdir()) == ["requirements.txt"]
        raw = next(folder.glob("*.wandb")).read_bytes()
        for secret in (socket.gethostname(), "console line", str(Path(sys.argv[0]).parent), str(Path.cwd())):
            if len(secret) > 3:  # a host called "vm" is found in any file
                assert secret.encode() not in raw

    def test_settings_win_over_ours(self, tmp_path: Path, read_run: Callable[[Path], dict[str, list[Any]]]) -> None:
        logger = wandb_logger(save_dir=tmp_path, mode="offline", settings={"host": "chosen"})
        logger.log_metrics({"train/loss": 1.0}, step=0)
        finish_wandb()
        assert read_run(folders(tmp_path)[0])["run"][0]["host"] == "chosen"

    def test_checkpoints_are_not_artifacts_offline(self, tmp_path: Path) -> None:
        logger = wandb_logger(save_dir=tmp_path, mode="offline", log_model=True)
        assert logger.experiment.offline
        assert logger._log_model is False

    @pytest.mark.parametrize("word", ["offline", "dryrun"])
    def test_wandb_mode_wins_over_a_key_and_over_the_argument(
        self,
        word: str,
        tmp_path: Path,
        server: Any,
        key: None,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setenv("WANDB_MODE", word)
        assert wandb_logger(save_dir=tmp_path, mode="online").experiment.offline
        assert f"offline (WANDB_MODE={word})" in capsys.readouterr().out
        assert os.environ["WANDB_MODE"] == word
        assert server.requests == 0

    @pytest.mark.parametrize("by", ["environment", "argument"])
    def test_disabled_writes_and_says_nothing(
        self, by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        if by == "environment":
            monkeypatch.setenv("WANDB_MODE", "disabled")
        logger = wandb_logger(save_dir=tmp_path / "out", mode="auto" if by == "environment" else "disabled")
        logger.log_metrics({"train/loss": 1.0}, step=0)
        logger.experiment.config.update({"a": 1})
        finish_wandb()
        assert folders(tmp_path / "out") == []
        assert capfd.readouterr() == ("", "")

    def test_two_loggers_in_one_process_are_two_runs(
        self, tmp_path: Path, read_run: Callable[[Path], dict[str, list[Any]]]
    ) -> None:
        ids = []
        for number in range(3):
            logger = wandb_logger(save_dir=tmp_path, mode="offline")
            logger.log_metrics({"number": float(number)}, step=0)
            ids.append(logger.version)
            if number == 0:
                finish_wandb()  # the third closes the second by itself
        finish_wandb()
        assert len(set(ids)) == 3
        for number, run_id in enumerate(ids):
            (folder,) = tmp_path.glob(f"wandb/*-{run_id}")
            records = read_run(folder)
            assert [row["item"]["number"] for row in records["history"]] == [number]
            assert records["exit"][0]["exit_code"] == 0


class TestResume:
    """A run that goes on in its folder is one run of W&B."""

    def test_the_last_run_of_the_folder_goes_on(self, tmp_path: Path) -> None:
        ids = []
        for resume in (None, "auto", None, "auto"):
            logger = wandb_logger(save_dir=tmp_path, mode="offline", resume=resume)
            logger.log_metrics({"number": 1.0}, step=0)
            ids.append(logger.version)
            finish_wandb()
            time.sleep(1.0)  # folders are named by the second
        assert ids[0] == ids[1]
        assert ids[2] == ids[3] != ids[0]

    def test_a_folder_without_a_run_begins_one(self, tmp_path: Path) -> None:
        assert wandb_logger(save_dir=tmp_path / "new", resume="auto").version is None

    def test_an_id_wins(self, tmp_path: Path) -> None:
        (tmp_path / "wandb" / "run-20260101_000000-earlier").mkdir(parents=True)
        (tmp_path / "wandb" / "offline-run-20260102_000000-later").mkdir()
        (tmp_path / "wandb" / "latest-run").mkdir()
        assert wandb_logger(save_dir=tmp_path, resume="auto").version == "later"
        assert wandb_logger(save_dir=tmp_path, resume="auto", id="mine").version == "mine"
        assert wandb_logger(save_dir=tmp_path).version is None


class TestOnline:
    """With a key: the server answers, is not there, or goes away."""

    def test_training_arrives_at_the_server(
        self, tmp_path: Path, server: Any, key: None, capfd: pytest.CaptureFixture[str]
    ) -> None:
        logger = wandb_logger(save_dir=tmp_path / "out", project="digits", name="first", group="sweep", tags=["a"])
        train(logger, tmp_path)
        logger.log_hyperparams({"depth": 4})
        finish_wandb()
        out, err = capfd.readouterr()
        (run,) = server.runs
        run_id = run["name"]
        assert (run["project"], run["displayName"], run["groupName"], run["tags"]) == (
            "digits",
            "first",
            "sweep",
            ["a"],
        )
        assert out == f"W&B: {server.url}/tester/digits/runs/{run_id}\n"
        assert [line for line in err.splitlines() if "W&B" in line or "wandb" in line] == []
        rows = sorted(server.history[run_id], key=lambda row: row["_step"])
        assert [row["val/loss"] for row in rows if "val/loss" in row] == [3, 1, 2]
        assert [row["trainer/global_step"] for row in rows if "train/loss" in row] == list(range(6))
        assert server.summary[run_id]["val/loss"] == {"min": 1}
        assert server.summary[run_id]["test/mc/accuracy"] == 0.5
        assert server.exit_codes == {run_id: 0}
        assert b"depth" in server.uploads["config.yaml"]
        # private: see the offline test; these would travel with an online run
        assert not run["host"]
        assert "/" not in (run["program"] or "")
        assert set(server.uploads) <= {"config.yaml", "requirements.txt", "wandb-summary.json"}

    def test_the_printed_command_uploads_an_offline_run(
        self, tmp_path: Path, server: Any, key: None, capsys: pytest.CaptureFixture[str]
    ) -> None:
        logger = wandb_logger(save_dir=tmp_path / "a folder", mode="offline", id="chosen")
        logger.log_metrics({"train/loss": 1.0}, step=0)
        finish_wandb()
        line = capsys.readouterr().out
        *_, upload = re.findall(r"`(wandb sync .*?)`", line)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        subprocess.run(
            upload,
            shell=True,
            check=True,
            env={**os.environ, "PATH": path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
        )
        assert [row["train/loss"] for row in server.history["chosen"]] == [1]

    def test_unreachable_server_falls_back_to_offline_within_the_timeout(
        self, tmp_path: Path, key: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("WANDB_BASE_URL", closed_port())
        logger = wandb_logger(save_dir=tmp_path, log_model="all", init_timeout=1.5)
        start = time.perf_counter()
        assert logger.experiment.offline
        assert time.perf_counter() - start < 20  # wandb alone: 100 s
        assert logger._log_model is False
        logger.log_metrics({"train/loss": 1.0}, step=0)
        finish_wandb()
        out, err = capsys.readouterr()
        assert OFFLINE_LINE.fullmatch(out)
        assert re.fullmatch(r"W&B: online run failed to start \(CommError: .*\); the training goes on\n", err)

    def test_server_that_dies_does_not_hold_the_end_up(
        self, tmp_path: Path, server: Any, key: None, capsys: pytest.CaptureFixture[str]
    ) -> None:
        logger = wandb_logger(save_dir=tmp_path, finish_timeout=1.0)
        logger.log_metrics({"train/loss": 1.0}, step=0)
        server.stop()
        logger.log_metrics({"train/loss": 0.5}, step=1)
        capsys.readouterr()
        start = time.perf_counter()
        finish_wandb()
        assert time.perf_counter() - start < 20  # wandb alone: for ever
        (folder,) = folders(tmp_path)
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert f"upload it with `wandb sync {folder}`" in err

    def test_online_without_a_key_asks_nothing(
        self, tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        import wandb

        asked = []
        real = wandb.login

        def login(*, prompt: bool = True, verify: bool = True) -> bool:
            asked.append(prompt)
            return real(prompt=prompt, verify=verify)

        monkeypatch.setattr(wandb, "login", login)
        assert wandb_logger(save_dir=tmp_path, mode="online").experiment.offline
        assert asked == [False]
        assert server.requests == 0
        out, err = capsys.readouterr()
        assert OFFLINE_LINE.fullmatch(out)
        assert err == "W&B: no online run (no API key; `wandb login` stores one); the training goes on\n"


class TestArguments:
    """What users write wrong is said at construction, in one line."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"mode": "of"}, "`mode` to be one of auto, online, offline, disabled, but got 'of'"),
            ({"project": "../up"}, "`project` to be a name of .*, but got '../up'"),
            ({"project": ".."}, "`project` to be a name"),
            ({"project": ""}, "`project` to be a name"),
            ({"project": None}, "`project` to be a name"),
            ({"id": "a/b"}, "`id` to be a name"),
            ({"resume": "must"}, "`resume` to be 'auto' or None, but got 'must'"),
            ({"init_timeout": 0}, "`init_timeout` to be a number of seconds above 0, but got 0"),
            ({"finish_timeout": float("inf")}, "`finish_timeout` to be a number of seconds above 0, but got inf"),
            ({"finish_timeout": float("nan")}, "`finish_timeout` to be a number"),
            ({"tags": "digits"}, "`tags` to be a list of strings .*, but got 'digits'"),
            ({"tags": ["x" * 65]}, "`tags` to be a list"),
            ({"tags": [""]}, "`tags` to be a list"),
            ({"log_model": "best"}, "`log_model` to be True, False or 'all', but got 'best'"),
            ({"settings": {"init_timout": 3}}, "`settings` to hold fields of wandb.Settings, but got `init_timout`"),
            ({"settings": {"console": "loud"}}, "`settings` to hold fields of wandb.Settings, but got `console"),
        ],
    )
    def test_wrong_ones_are_named(self, arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=f"Expected {message}") as caught:
            wandb_logger(**{"save_dir": tmp_path, **arguments})
        assert "\n" not in str(caught.value)

    def test_wrong_wandb_mode_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WANDB_MODE", "ofline")
        with pytest.raises(ValueError, match=r"`WANDB_MODE` to be online, .*, but got 'ofline'; unset it"):
            wandb_logger(save_dir=tmp_path)

    def test_empty_wandb_mode_is_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WANDB_MODE", "")
        assert wandb_logger(save_dir=tmp_path, mode="disabled").experiment.disabled

"""What wandb keeps per process: the end of a run, the login, the terminal."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lightning_dropout.loggers import finish_wandb, wandb_logger
from lightning_dropout.loggers.wandb_process import hushed, in_one_line, login_problem, say, within

pytestmark = pytest.mark.usefixtures("clean_wandb")


def raise_and_finish(error: BaseException) -> None:
    try:
        raise error
    finally:
        finish_wandb()


class TestFinish:
    """finish_wandb, in the places where it is called."""

    @pytest.mark.parametrize(
        ("error", "exit_code"), [(None, 0), (RuntimeError("planted"), 1), (KeyboardInterrupt(), 1), (SystemExit(0), 0)]
    )
    def test_exit_code_says_whether_training_failed(
        self,
        error: BaseException | None,
        exit_code: int,
        tmp_path: Path,
        read_run: Callable[[Path], dict[str, list[Any]]],
    ) -> None:
        logger = wandb_logger(save_dir=tmp_path, mode="offline")
        logger.log_metrics({"train/loss": 1.0}, step=0)
        folder = Path(logger.experiment.dir).parent
        if error is None:
            finish_wandb()
        else:
            with pytest.raises(type(error)):
                raise_and_finish(error)
        assert read_run(folder)["exit"][0]["exit_code"] == exit_code

    def test_without_a_run_it_does_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        finish_wandb()
        monkeypatch.delitem(sys.modules, "wandb")
        finish_wandb()
        assert "wandb" not in sys.modules

    def test_twice_is_once(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        logger = wandb_logger(save_dir=tmp_path, mode="offline")
        logger.log_metrics({"train/loss": 1.0}, step=0)
        capsys.readouterr()
        finish_wandb()
        finish_wandb()
        assert capsys.readouterr() == ("", "")
        logger.log_metrics({"train/loss": 1.0}, step=1)  # too late, and said so
        assert "metrics could not be logged" in capsys.readouterr().err

    def test_refused_uploads_are_said(
        self, tmp_path: Path, server: Any, key: None, capsys: pytest.CaptureFixture[str]
    ) -> None:
        logger = wandb_logger(save_dir=tmp_path)
        logger.log_metrics({"train/loss": 1.0}, step=0)
        server.refuse = 403
        capsys.readouterr()
        finish_wandb()
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert "upload it with `wandb sync " in err


class TestLogin:
    """login_problem, for each state of the machine."""

    def test_no_key(self) -> None:
        assert login_problem() == "no API key; `wandb login` stores one"

    def test_key(self, key: None, capfd: pytest.CaptureFixture[str]) -> None:
        assert login_problem() == ""
        assert capfd.readouterr() == ("", "")

    def test_malformed_key(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WANDB_API_KEY", "short")
        assert login_problem().startswith("AuthenticationError: ")

    def test_offline_by_command(self, tmp_path: Path, key: None) -> None:
        import wandb

        wandb.setup(wandb.Settings(mode="offline"))
        assert "`wandb online` undoes it" in login_problem()

    @pytest.mark.parametrize("api_key", [None, "k"])
    def test_wandb_before_prompt_could_be_switched_off(
        self, api_key: str | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import wandb

        def login(verify: bool = True) -> bool:
            raise AssertionError("would ask at a terminal")

        monkeypatch.setattr(wandb, "login", login)
        monkeypatch.setattr(wandb, "api", SimpleNamespace(api_key=api_key))
        assert (login_problem() == "") == (api_key is not None)

    def test_settings_are_given_back(self, key: None) -> None:
        import wandb

        assert wandb.setup().settings.silent is False
        login_problem()
        assert wandb.setup().settings.silent is False


class TestWithin:
    """within: what a call returns or raises, unless that takes too long."""

    def test_result_and_error_come_through(self) -> None:
        assert within(5, lambda: "answer") == "answer"
        assert within(5, lambda: None) is None
        with pytest.raises(ZeroDivisionError):
            within(5, lambda: 1 / 0)

    def test_what_takes_too_long_is_given_up(self) -> None:
        release = threading.Event()
        start = time.perf_counter()
        with pytest.raises(TimeoutError, match=r"no answer within 0\.05 s"):
            within(0.05, lambda: release.wait(20))
        assert time.perf_counter() - start < 5
        assert any(thread.daemon for thread in threading.enumerate())  # the end of the process does not wait for it
        release.set()


class TestTerminal:
    """What reaches stderr."""

    def test_hushed_collects_warnings_and_gives_the_terminal_back(self, capsys: pytest.CaptureFixture[str]) -> None:
        import wandb

        with hushed() as warnings:
            wandb.termlog("chatter")
            wandb.termwarn("careful")
            wandb.termerror("broken")
        assert [warning.split(" ")[-1] for warning in warnings] == ["careful", "broken"]
        assert capsys.readouterr().err == ""
        wandb.termlog("heard")
        assert "heard" in capsys.readouterr().err

    def test_lines_are_single(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert in_one_line(ValueError("first.\nsecond")) == "ValueError: first"
        assert in_one_line(TimeoutError()) == "TimeoutError"
        assert len(in_one_line("x" * 1000)) == 200
        say("hello")
        assert capsys.readouterr() == ("", "W&B: hello\n")

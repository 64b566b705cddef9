"""scripts/dashboard.py: the same as ``lightning-dropout dashboard``."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("wandb_workspaces", reason="needs the extra `dashboard`")


def test_it_takes_the_words_of_the_command(run_script: Callable[..., int], tmp_path: Path) -> None:
    assert run_script("dashboard", "entity=me", "project=digits", "val/loss=valid_loss") == 0  # WANDB_MODE=offline
    view = json.loads((tmp_path / "dashboard.json").read_text())
    assert (view["entity"], view["project"]) == ("me", "digits")
    assert "valid_loss" in json.dumps(view)


def test_a_wrong_word_costs_one_line(run_script: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_script("dashboard", "entity=me") == 2
    assert "`project`" in capsys.readouterr().err

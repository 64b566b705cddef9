"""Fixtures of the logger tests: a home without credentials, a W&B server of our own, a way to read runs back."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def _sibling(name: str) -> ModuleType:
    # --import-mode=importlib puts no test folder on sys.path
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


FakeWandbServer = _sibling("fake_wandb_server").FakeWandbServer


@pytest.fixture
def clean_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that has no W&B credentials, settings or open run, before and after; its environment must survive."""
    import wandb
    from lightning.pytorch.utilities import rank_zero_only

    home = tmp_path / "home"
    home.mkdir()
    for variable in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(variable)
    for variable in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(variable, str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setattr(rank_zero_only, "rank", 0, raising=False)
    monkeypatch.chdir(tmp_path)
    wandb.teardown()
    yield
    wandb.teardown()
    wandb.run = None


@pytest.fixture
def environment(clean_wandb: None) -> Callable[[], dict[str, str]]:
    """The environment without the address of wandb's own background process, which children of this one share."""
    return lambda: {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}


@pytest.fixture
def server(clean_wandb: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A W&B server on this machine that the client knows by its address; there is no key yet."""
    with FakeWandbServer() as running:
        monkeypatch.setenv("WANDB_BASE_URL", running.url)
        yield running


@pytest.fixture
def key(clean_wandb: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """An API key of the right form."""
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)


@pytest.fixture
def read_run() -> Callable[[Path], dict[str, list[Any]]]:
    """Read a run folder with wandb's own command: records by type, in order."""

    def read(folder: Path) -> dict[str, list[Any]]:
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
        output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
        records: dict[str, list[Any]] = {}
        for line in output.splitlines():
            record = json.loads(line)
            records.setdefault(record["type"], []).append(record[record["type"]])
        return records

    return read

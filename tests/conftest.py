"""Which release of Lightning is under test, and W&B without an account: a clean process, a server, reading runs back.

Under test is the installed release, or the older one that ``make test-releases`` names. An older release stands in a
folder of its own, in front on ``PYTHONPATH``; a folder that is not found would let the tests pass on the installed
release unseen, so the name is compared with what is really imported. Besides, each test starts with torch's own limit
of graphs, which schedulers raise for good.
"""

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

_WARNINGS_OF_OLD_RELEASES = {
    "2.4": [
        # 2.4 sets jsonargparse up through a function that jsonargparse renamed in 4.39, when its CLI is imported.
        r"ignore:\s*By default only one JsonargparseDeprecationWarning per type is shown:DeprecationWarning",
        r"ignore:\s*set_config_read_mode was deprecated in v4\.39\.0:DeprecationWarning",
    ]
}


def pytest_configure(config: pytest.Config) -> None:
    wanted = os.environ.get("LIGHTNING_RELEASE")
    if wanted is None:
        return
    import lightning
    import pytorch_lightning

    found = {"lightning": lightning.__version__, "pytorch_lightning": pytorch_lightning.__version__}
    if set(found.values()) != {wanted}:
        raise pytest.UsageError(f"Expected Lightning {wanted}, but got {found}; `make test-releases` sets PYTHONPATH.")
    # What the package says of every release with a known hole; this one is used on purpose.
    config.addinivalue_line("filterwarnings", rf"ignore:lightning {wanted} can run code from a checkpoint:UserWarning")
    for line in _WARNINGS_OF_OLD_RELEASES.get(wanted.rpartition(".")[0], []):
        config.addinivalue_line("filterwarnings", line)


def pytest_report_header() -> str | None:
    wanted = os.environ.get("LIGHTNING_RELEASE")
    return wanted and f"lightning and pytorch_lightning: {wanted}"


@pytest.fixture(autouse=True)
def _limit_of_graphs() -> Iterator[None]:
    config = sys.modules.get("torch._dynamo.config")  # not loaded for this
    limit = getattr(config, "recompile_limit", None)
    yield
    if config is not None:
        config.recompile_limit = limit


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
_faults = _sibling("faults")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    named = {test for fault in _faults.FAULTS for test in fault.tests}
    for item in items:
        if _faults.place_of(item.nodeid) in named:
            item.add_marker("fault")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    outcomes = [
        (report.nodeid, "failed" if state == "error" else state)
        for state in ("passed", "failed", "error", "skipped")
        for report in terminalreporter.stats.get(state, [])
        if isinstance(report, pytest.TestReport)
    ]
    for line in _faults.summary(outcomes) if outcomes else ():
        terminalreporter.write_line(line)


@pytest.fixture
def train_run(clean_wandb: None) -> Callable[..., None]:
    """``train(folder, logger)`` of wandb_run.py."""
    run: Callable[..., None] = _sibling("wandb_run").train
    return run


@pytest.fixture
def clean_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that has no W&B credentials, settings or open run, before and after; its environment must survive."""
    wandb = pytest.importorskip("wandb", reason="W&B is not installed")
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

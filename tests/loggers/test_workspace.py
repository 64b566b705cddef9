"""Saving a workspace: it arrives, or a line says why not, soon."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

import pytest

from lightning_dropout.loggers import save_workspace, workspace
from lightning_dropout.reports import dashboard_json, dashboard_panels, dashboard_workspace

pytest.importorskip("wandb_workspaces", reason="needs the extra `dashboard`")
pytestmark = pytest.mark.usefixtures("clean_wandb", "key")


def digits() -> Any:
    return dashboard_workspace(dashboard_panels(), entity="tester", project="digits")


def test_it_arrives_as_it_is(server: Any, capfd: pytest.CaptureFixture[str]) -> None:
    sent = digits()
    url = save_workspace(sent)
    (view,) = server.views
    assert (view["entityName"], view["projectName"], view["type"]) == ("tester", "digits", "project-view")
    assert json.loads(view["spec"]) == json.loads(dashboard_json(sent))["spec"]
    assert url == f"{server.url}/tester/digits?nw={view['name'].removeprefix('nw-').removesuffix('-v')}"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("status", [403, 404])
def test_a_refusal_is_one_line_at_once(server: Any, status: int) -> None:
    server.refuse = status
    start = time.perf_counter()
    with pytest.raises(
        RuntimeError, match=r"save the workspace in tester/digits, but got .*refused by the test"
    ) as error:
        save_workspace(digits())
    assert time.perf_counter() - start < 10
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("silent", ["Viewer", "UpsertView2"])
def test_a_server_that_falls_silent_is_given_up(server: Any, silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "_LONGEST", 1.0)
    server.ignore = frozenset({silent})
    start = time.perf_counter()
    with pytest.raises(RuntimeError, match="but got TimeoutError: no answer within 1 s; are the names right"):
        save_workspace(digits())
    assert 1 <= time.perf_counter() - start < 10


@pytest.mark.slow
def test_an_unreachable_server_costs_less_than_half_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
    start = time.perf_counter()
    with pytest.raises(RuntimeError, match="is the server there"):
        save_workspace(digits())
    assert time.perf_counter() - start < 30

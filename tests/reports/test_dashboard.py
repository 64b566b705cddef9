"""The dashboard: which panels there are, that real runs log what they show, and what W&B is told of them."""

from __future__ import annotations

import importlib
import json
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from lightning_dropout import log_keys
from lightning_dropout.reports import DashboardPanel, dashboard_json, dashboard_panels, dashboard_workspace

SECTIONS = ["Rates", "Fit", "Calibration", "Uncertainty", "Selective", "OOD", "Samples"]
MEDIA = {getattr(log_keys, name) for name in log_keys.__all__ if name.startswith("REPORT_")} | {log_keys.RATE_PLAN}


def keys_of(sections: Mapping[str, Sequence[DashboardPanel]], *kinds: str) -> set[str]:
    return {key for panels in sections.values() for panel in panels if panel.kind in kinds for key in panel.keys}


def missing(wanted: set[str], logged: set[str]) -> set[str]:
    """Return the keys, or beginnings of keys, of which nothing was logged."""
    return {
        key
        for key in wanted
        if not any(name.startswith(key[:-1]) if key.endswith("*") else name == key for name in logged)
    }


def panels_of(spec: Mapping[str, Any]) -> Iterator[tuple[str, set[str]]]:
    """Yield the view type and the names of each panel in what W&B is told."""
    for section in spec["section"]["panelBankConfig"]["sections"]:
        for panel in section["panels"]:
            config = panel["config"]
            if "metricRegex" in config:
                yield panel["viewType"], {config["metricRegex"]}
            elif panel["viewType"] == "Weave":
                yield "Weave", set(re.findall(r'"(?:val|key)": "(report/[^"]+)"', json.dumps(config)))
            else:
                yield panel["viewType"], {*config.get("metrics", []), *config.get("mediaKeys", [])}


class TestPanels:
    """Plain data, made of log_keys."""

    def test_sections(self) -> None:
        assert list(dashboard_panels()) == SECTIONS
        assert list(dashboard_panels("regression")) == [name for name in SECTIONS if name not in ("Selective", "OOD")]
        assert all(dashboard_panels().values())

    def test_every_report_is_on_a_panel_and_of_its_kind(self) -> None:
        both = [dashboard_panels(), dashboard_panels("regression")]
        assert set().union(*(keys_of(sections, "image", "table") for sections in both)) == MEDIA
        assert all(keys_of(sections, "table") == {log_keys.REPORT_SAMPLES} for sections in both)

    def test_names_replace_ours(self) -> None:
        names = {"val/loss": "valid.loss", "lr-*": "opt/lr*", "report/gap": "gap"}
        ours, theirs = dashboard_panels(), dashboard_panels(names=names)
        kinds = ("line", "bar", "image", "table")
        assert keys_of(theirs, *kinds) == {names.get(key, key) for key in keys_of(ours, *kinds)}
        assert "val/loss" not in keys_of(theirs, *kinds)

    def test_several_datasets(self) -> None:
        (auroc, *_) = dashboard_panels(datasets=["svhn", "cifar100"])["OOD"]
        assert len(auroc.keys) == 10
        assert "test/ood/auroc/entropy/svhn" in auroc.keys

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"task": "binary"}, "`task` to be one of classification, regression, but got 'binary'"),
            ({"names": {"val/los": "x"}}, "keys of the dashboard, but got 'val/los'; write one such as val/loss, "),
            ({"names": {"zzz": "x"}}, "but got 'zzz'; write one such as drop_path/"),
            ({"task": "regression", "names": {"val/accuracy": "x"}}, "but got 'val/accuracy'"),
            ({"names": {"val/loss": ""}}, "to give 'val/loss' a name, but got ''"),
            ({"datasets": ["a/b"]}, "`dataset` to be a name of .*, but got 'a/b'"),
        ],
    )
    def test_wrong_words(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            dashboard_panels(**arguments)


class TestWorkspace:
    """What wandb-workspaces makes of them."""

    @pytest.fixture(autouse=True)
    def _library(self) -> None:
        pytest.importorskip("wandb_workspaces", reason="needs the extra `dashboard`")

    @pytest.mark.parametrize("task", ["classification", "regression"])
    def test_every_panel_names_its_keys(self, task: Any) -> None:
        sections = dashboard_panels(task)
        told = json.loads(dashboard_json(dashboard_workspace(sections, entity="me", project="digits")))
        views = {"line": "Run History Line Plot", "bar": "Bar Chart", "image": "Media Browser", "table": "Weave"}
        expected = [
            (views[panel.kind], {f"^({key[:-1]}.*)$" if key.endswith("*") else key for key in panel.keys})
            for panels in sections.values()
            for panel in panels
        ]
        assert list(panels_of(told["spec"])) == expected
        assert (told["entity"], told["project"]) == ("me", "digits")

    def test_a_pattern_takes_what_begins_so_and_nothing_else(self) -> None:
        panel = DashboardPanel("line", "", ("dropout/*", "a.b", "c+/*"))
        told = json.loads(dashboard_json(dashboard_workspace({"All": [panel]}, entity="me", project="digits")))
        (((_, (pattern,)),)) = panels_of(told["spec"])
        names = ["dropout/mean", "dropout/a/b", "a.b", "c+/d", "dropout", "xdropout/mean", "axb", "a.bc", "cc/d"]
        assert [name for name in names if re.search(pattern, name)] == names[:4]

    @pytest.mark.parametrize(
        ("entity", "project"), [("", "p"), ("me", ""), ("me/you", "p"), ("me", "a?b"), ("a\nb", "p")]
    )
    def test_impossible_names(self, entity: str, project: str) -> None:
        with pytest.raises(
            ValueError, match=r"Expected `(entity|project)` to be a name .* the address that a run prints"
        ):
            dashboard_workspace({}, entity=entity, project=project)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(ImportError, match=r"pip install 'lightning-dropout\[dashboard\]'"):
        dashboard_workspace(dashboard_panels(), entity="me", project="digits")


def test_the_library_may_warn_when_it_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb_workspaces", reason="needs the extra `dashboard`")
    for name in [name for name in sys.modules if name.startswith("wandb_workspaces")]:
        monkeypatch.delitem(sys.modules, name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dashboard_workspace({}, entity="me", project="digits")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for name in [name for name in sys.modules if name.startswith("wandb_workspaces")]:
            monkeypatch.delitem(sys.modules, name)
        importlib.import_module("wandb_workspaces.workspaces")
    assert caught  # or the filter has done its time


def test_panels_show_what_a_run_logs(
    tmp_path: Path, train_run: Callable[..., None], read_run: Callable[[Path], dict[str, list[Any]]]
) -> None:
    from lightning_dropout.loggers import wandb_logger

    train_run(tmp_path, wandb_logger(save_dir=tmp_path, mode="offline"))
    (folder,) = tmp_path.glob("wandb/offline-run-*")
    # of an image or a table there are only its parts
    logged = {key.removesuffix("._type") for row in read_run(folder)["history"] for key in row["item"]}
    sections = dashboard_panels()
    assert missing(keys_of(sections, "line", "bar", "table"), logged) == set()
    # the data are no images
    assert missing(keys_of(sections, "image"), logged) == {log_keys.REPORT_MOST_UNCERTAIN}
    assert log_keys.GLOBAL_STEP in logged
    # a key that drifted is seen, on either side
    assert "val/los" in missing({"val/los", "drop/*"}, logged)
    assert missing(keys_of(sections, "line"), logged - {"val/gap"}) == {"val/gap"}

"""The W&B dashboard as code: which panels there are, as plain data made of ``log_keys``, and the workspace of them.

A literal key here is a mistake: what the callbacks log and what the panels name could drift apart. Nothing here talks
to a server, and only :func:`dashboard_workspace` needs wandb-workspaces.
"""

from __future__ import annotations

import difflib
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from lightning_dropout import log_keys
from lightning_dropout.log_keys import DET, MC, TEMPERATURE, comparison_key, ood_key

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

__all__ = ["DashboardPanel", "DashboardTask", "dashboard_json", "dashboard_panels", "dashboard_workspace"]

DashboardTask = Literal["classification", "regression"]
_TITLE = "Dropout"
_COLUMNS = 3


@dataclass(frozen=True)
class DashboardPanel:
    """One panel.

    Args:
        kind: ``"line"``: values over the run. ``"bar"``: the last value of each run. ``"image"``, ``"table"``: of one
            key.
        title: Stands above it.
        keys: What it shows; a key that ends in ``*`` stands for all that begin like it.
    """

    kind: Literal["line", "bar", "image", "table"]
    title: str
    keys: tuple[str, ...]


def dashboard_panels(
    task: DashboardTask = "classification",
    *,
    names: Mapping[str, str] | None = None,
    datasets: Sequence[str] = ("",),
) -> dict[str, tuple[DashboardPanel, ...]]:
    """Return the panels of each section: Rates, Fit, Calibration, Uncertainty, Selective, OOD, Samples.

    Args:
        task: Whose metrics they show; a regression has no Selective and no OOD.
        names: For a project whose metrics have other names, ours to theirs: ``{"val/loss": "valid_loss"}``.
        datasets: The out-of-distribution data sets, as in :func:`lightning_dropout.log_keys.ood_key`.

    Raises:
        ValueError: If `task` is none, `names` has a key that is on no panel or a name that is empty, or a data set has
            an impossible name.

    Example:
        >>> panels = dashboard_panels(names={"val/loss": "valid_loss"})
        >>> list(panels)
        ['Rates', 'Fit', 'Calibration', 'Uncertainty', 'Selective', 'OOD', 'Samples']
        >>> panels["Fit"][0]
        DashboardPanel(kind='line', title='Loss', keys=('train/loss', 'valid_loss'))
    """
    if task not in get_args(DashboardTask):
        raise ValueError(f"Expected `task` to be one of {', '.join(get_args(DashboardTask))}, but got {task!r}.")
    sections = _classification(datasets) if task == "classification" else _regression()
    renamed = dict(names or {})
    known = {key for panels in sections.values() for panel in panels for key in panel.keys}
    for ours, theirs in renamed.items():
        if ours not in known:
            near = difflib.get_close_matches(ours, sorted(known), cutoff=0.5) or sorted(known)
            raise ValueError(
                f"Expected `names` to rename keys of the dashboard, but got {ours!r}; write one such as "
                f"{', '.join(near[:3])}."
            )
        if not theirs:
            raise ValueError(f"Expected `names` to give {ours!r} a name, but got {theirs!r}; leave it out to keep it.")
    return {
        section: tuple(replace(panel, keys=tuple(renamed.get(key, key) for key in panel.keys)) for panel in panels)
        for section, panels in sections.items()
    }


def dashboard_workspace(sections: Mapping[str, Sequence[DashboardPanel]], *, entity: str, project: str) -> Workspace:
    """Return the panels as a workspace, whose ``save()`` sends it to W&B.

    Args:
        sections: As :func:`dashboard_panels` returns them.
        entity: Account or team.
        project: The project that the runs are logged to.

    Raises:
        ValueError: If `entity` or `project` is no name that W&B takes.
        ImportError: Without wandb-workspaces.

    Example:
        >>> workspace = dashboard_workspace(dashboard_panels(), entity="me", project="digits")
        >>> [len(section.panels) for section in workspace.sections]
        [5, 5, 4, 3, 4, 3, 2]
    """
    for argument, value in (("entity", entity), ("project", project)):
        if not value.strip() or not value.isprintable() or set(value) & set("/\\:;,#?%'"):
            raise ValueError(
                f"Expected `{argument}` to be a name without any of / \\ : ; , # ? % ', but got {value!r}; both stand "
                "in the address that a run prints: .../<entity>/<project>/runs/<id>."
            )
    workspaces, make = _library()
    workspace: Workspace = workspaces.Workspace(
        entity=entity,
        project=project,
        name=_TITLE,
        sections=[
            workspaces.Section(
                name=name,
                panels=[_panel(make, panel) for panel in panels],
                is_open=True,
                layout_settings=workspaces.SectionLayoutSettings(columns=_COLUMNS, rows=-(-len(panels) // _COLUMNS)),
            )
            for name, panels in sections.items()
        ],
        settings=workspaces.WorkspaceSettings(x_axis=log_keys.GLOBAL_STEP),
    )
    return workspace


def dashboard_json(workspace: Workspace) -> str:
    """Return what ``workspace.save()`` would send, without a server or a key.

    Example:
        >>> workspace = dashboard_workspace(dashboard_panels("regression"), entity="me", project="sinusoid")
        >>> spec = json.loads(dashboard_json(workspace))["spec"]
        >>> [section["name"] for section in spec["section"]["panelBankConfig"]["sections"]]
        ['Rates', 'Fit', 'Calibration', 'Uncertainty', 'Samples']
    """
    view = workspace._to_model()  # private, but `save` itself has no other use for it than to send it
    return json.dumps(view.model_dump(by_alias=True, exclude_none=True), indent=2)


def _library() -> tuple[Any, Any]:
    """Return the two modules that workspaces are made of: of sections and of panels."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # 0.4 speaks to an older pydantic when it is imported
            from wandb_workspaces import workspaces
            from wandb_workspaces.reports import v2
    except ModuleNotFoundError as error:
        raise ImportError(
            f"Expected wandb-workspaces to be installed, but got {error}; `pip install 'lightning-dropout[dashboard]'`."
        ) from error
    return workspaces, v2


def _panel(make: Any, panel: DashboardPanel) -> Any:
    match panel.kind:
        case "line" if any(key.endswith("*") for key in panel.keys):  # W&B heeds either names or a pattern
            return make.LinePlot(title=panel.title, x=log_keys.GLOBAL_STEP, metric_regex=_pattern(panel.keys))
        case "line":
            return make.LinePlot(title=panel.title, x=log_keys.GLOBAL_STEP, y=list(panel.keys))
        case "bar":
            return make.BarPlot(title=panel.title, metrics=list(panel.keys))
        case "image":
            return make.MediaBrowser(title=panel.title, media_keys=list(panel.keys), num_columns=1)
        case "table":
            (key,) = panel.keys
            return make.WeavePanelSummaryTable(table_name=key)


def _pattern(keys: Sequence[str]) -> str:
    """Return a regular expression for ``keys``, of what RE2 and JavaScript both read."""
    starts = (re.sub(r"([][.^$+?{}()|\\*])", r"\\\1", key.removesuffix("*")) for key in keys)
    ends = (".*" if key.endswith("*") else "" for key in keys)
    return f"^({'|'.join(map(str.__add__, starts, ends))})$"


def _classification(datasets: Sequence[str]) -> dict[str, tuple[DashboardPanel, ...]]:
    ood_scores = (
        *(log_keys.DET_MAX_PROBABILITY, log_keys.DET_ENTROPY),
        *(log_keys.MAX_PROBABILITY, log_keys.ENTROPY, log_keys.MUTUAL_INFORMATION),
    )

    def ood(title: str, metric: str) -> DashboardPanel:
        keys = tuple(ood_key("test", metric, score, dataset) for dataset in datasets for score in ood_scores)
        return DashboardPanel("bar", title, keys)

    return {
        "Rates": _rates(),
        "Fit": (
            *_fit(),
            DashboardPanel("line", "Accuracy", (log_keys.TRAIN_ACCURACY, log_keys.VAL_ACCURACY)),
            _bar("Test accuracy", log_keys.ACCURACY, DET, TEMPERATURE, MC),
            _image("Training and validation", log_keys.REPORT_GAP),
        ),
        "Calibration": (
            _bar("Expected calibration error", log_keys.ECE, DET, TEMPERATURE, MC),
            _bar("Negative log-likelihood", log_keys.NLL, DET, TEMPERATURE, MC),
            _bar("Brier score", log_keys.BRIER, DET, TEMPERATURE, MC),
            _image("Reliability without and with MC", log_keys.REPORT_RELIABILITY),
        ),
        "Uncertainty": (
            _bar("Mean entropy (nats)", log_keys.ENTROPY, DET, MC),
            _bar("Mean mutual information (nats)", log_keys.MUTUAL_INFORMATION, MC),
            _image("Entropy of right and wrong", log_keys.REPORT_ENTROPY),
        ),
        "Selective": (
            _bar("AURC", log_keys.AURC, DET, TEMPERATURE, MC),
            _bar("AUGRC", log_keys.AUGRC, DET, TEMPERATURE, MC),
            _bar("Accuracy at 90 % coverage", log_keys.ACCURACY_AT_90, DET, TEMPERATURE, MC),
            _image("Risk and coverage", log_keys.REPORT_RISK_COVERAGE),
        ),
        "OOD": (
            ood("AUROC", log_keys.AUROC),
            ood("False positives at 95 % recall", log_keys.FPR95),
            _image("Entropy in and out of distribution", log_keys.REPORT_OOD_ENTROPY),
        ),
        "Samples": _samples(),
    }


def _regression() -> dict[str, tuple[DashboardPanel, ...]]:
    return {
        "Rates": _rates(),
        "Fit": (
            *_fit(),
            DashboardPanel("line", "RMSE", (log_keys.VAL_RMSE,)),
            _bar("Test RMSE", log_keys.RMSE, DET, MC),
            _bar("Test mean absolute error", log_keys.MAE, DET, MC),
            _image("Training and validation", log_keys.REPORT_GAP),
        ),
        "Calibration": (
            _bar("Negative log-likelihood", log_keys.NLL, DET, MC),
            _image("Calibration of intervals", log_keys.REPORT_INTERVAL_CALIBRATION),
        ),
        "Uncertainty": (
            _bar("Mean spread of the passes", log_keys.STD, MC),
            _bar("Mean aleatoric variance", log_keys.ALEATORIC_VARIANCE, DET, MC),
            _bar("Mean epistemic variance", log_keys.EPISTEMIC_VARIANCE, MC),
            _image("Prediction and its band", log_keys.REPORT_REGRESSION_BAND),
        ),
        "Samples": _samples(),
    }


def _rates() -> tuple[DashboardPanel, ...]:
    return (
        DashboardPanel("line", "Dropout rate", (f"{log_keys.DROPOUT}/*",)),
        DashboardPanel("line", "Stochastic-depth rate", (f"{log_keys.DROP_PATH}/*",)),
        DashboardPanel("line", "Learning rate", (f"{log_keys.LEARNING_RATE}*",)),
        _image("Rates as planned", log_keys.RATE_PLAN),
        _image("Rates as they were", log_keys.REPORT_RATES),
    )


def _fit() -> tuple[DashboardPanel, ...]:
    return (
        DashboardPanel("line", "Loss", (log_keys.TRAIN_LOSS, log_keys.VAL_LOSS)),
        DashboardPanel("line", "Generalisation gap", (log_keys.VAL_GAP,)),
    )


def _samples() -> tuple[DashboardPanel, ...]:
    return (
        _image("Most uncertain", log_keys.REPORT_MOST_UNCERTAIN),
        DashboardPanel("table", "Most uncertain samples", (log_keys.REPORT_SAMPLES,)),
    )


def _bar(title: str, metric: str, *sides: str) -> DashboardPanel:
    """Return the panel that compares a test metric of these sides."""
    return DashboardPanel("bar", title, tuple(comparison_key("test", side, metric) for side in sides))


def _image(title: str, key: str) -> DashboardPanel:
    return DashboardPanel("image", title, (key,))

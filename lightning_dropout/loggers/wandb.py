"""The factory of the W&B logger: what it is called in a config, its defaults, and the check of what users wrote.

May not start a run, log in or print: the logger does that when the trainer first needs it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lightning_dropout.loggers.fail_safe import FailSafeWandbLogger
from lightning_dropout.loggers.wandb_process import in_one_line, last_run, mode_of_environment

__all__ = ["wandb_logger"]

# Nothing leaves the machine that was not logged: no code, git state, host name, command line or console output.
# `quiet`, not `silent`: a failing upload is still reported while it happens.
PRIVATE_AND_QUIET: Mapping[str, Any] = {
    "save_code": False,
    "disable_code": True,
    "disable_git": True,
    "x_disable_meta": True,
    "host": "",
    "console": "off",
    "quiet": True,
}


def wandb_logger(
    *,
    save_dir: str | os.PathLike[str],
    project: str = "lightning-dropout",
    name: str | None = None,
    group: str | None = None,
    mode: Literal["auto", "online", "offline", "disabled"] = "auto",
    tags: Sequence[str] = (),
    entity: str | None = None,
    job_type: str | None = None,
    notes: str | None = None,
    id: str | None = None,
    resume: Literal["auto"] | None = None,
    log_model: Literal["all"] | bool = False,
    init_timeout: float = 20.0,
    finish_timeout: float = 20.0,
    settings: Mapping[str, Any] | None = None,
) -> FailSafeWandbLogger:
    """Return a Lightning logger for W&B that goes online if it can, offline if not, and never stops the training.

    The run starts when the trainer first needs it, on rank zero only. Online, its address is printed. Offline, one line
    says why, and how to look at the run (``wandb leet``) and upload it later (``wandb sync``). Code, git state, host
    name, command line and console output are not recorded. Call :func:`finish_wandb` when all is done; a run that is
    still open when the next one starts is closed first.

    Args:
        save_dir: Folder that gets the ``wandb/`` folder; made if missing.
        project: Name of the project; Lightning's default folder for checkpoints is ``save_dir/project/<run id>``.
        name: Display name of the run; W&B invents one by default.
        group: Runs with one group are shown together: the seeds or jobs of a sweep (not the ranks of one run).
        mode: ``auto`` is online if there is an API key, else offline; never a question at the terminal. The environment
            variable ``WANDB_MODE`` wins over this argument, whatever it says.
        tags: Labels of 1 to 64 characters.
        entity: Account or team.
        job_type: Such as ``train`` or ``evaluate``.
        notes: Free text.
        id: Resume this run (online), or give the run this id.
        resume: ``auto`` goes on with the run that was the last to log into ``save_dir``, if there is one.
        log_model: Upload checkpoints, as in Lightning: ``True`` at the end, ``"all"`` each at once. Ignored offline.
        init_timeout: Seconds to wait for the server before going offline, above 0.
        finish_timeout: Seconds to wait for the uploads at the end, above 0.
        settings: Fields of ``wandb.Settings`` that win over ours, such as ``{"x_disable_meta": False}``.

    Raises:
        ValueError: If an argument, or ``WANDB_MODE``, is none that W&B accepts. A missing key, an unreachable server or
            a broken wandb raise nothing.

    Example:
        >>> logger = wandb_logger(save_dir="outputs", mode="disabled", tags=["digits"])
        >>> logger.name  # nothing has started yet
        'lightning-dropout'
    """
    if mode not in ("auto", "online", "offline", "disabled"):
        raise ValueError(f"Expected `mode` to be one of auto, online, offline, disabled, but got {mode!r}.")
    mode_of_environment()
    for argument, value in (("project", project), ("id", id)):
        _check_name(argument, value)
    for argument, seconds in (("init_timeout", init_timeout), ("finish_timeout", finish_timeout)):
        # wandb reads 0 as "wait for ever"
        if isinstance(seconds, bool) or not (isinstance(seconds, (int, float)) and 0 < seconds < math.inf):
            raise ValueError(f"Expected `{argument}` to be a number of seconds above 0, but got {seconds!r}.")
    if isinstance(tags, str) or not all(isinstance(tag, str) and 1 <= len(tag) <= 64 for tag in tags):
        raise ValueError(f"Expected `tags` to be a list of strings of 1 to 64 characters, but got {tags!r}.")
    if log_model not in (True, False, "all"):
        raise ValueError(f"Expected `log_model` to be True, False or 'all', but got {log_model!r}.")
    if resume not in (None, "auto"):
        raise ValueError(
            f"Expected `resume` to be 'auto' or None, but got {resume!r}; for a run of your choice pass `id`."
        )
    if settings:
        _check_settings(settings)
    return FailSafeWandbLogger(
        mode=mode,
        save_dir=save_dir,
        log_model=log_model,
        arguments={
            "project": project,
            "name": name,
            "group": group,
            "tags": tuple(tags),
            "entity": entity,
            "job_type": job_type,
            "notes": notes,
            "id": id or (last_run(save_dir) if resume else None),
        },
        settings={
            **PRIVATE_AND_QUIET,
            "init_timeout": float(init_timeout),
            "finish_timeout": float(finish_timeout),
            "finish_timeout_raises": True,
            **(settings or {}),
        },
    )


def _check_name(argument: str, value: str | None) -> None:
    # Lightning makes folders save_dir/project/id: neither may lead out of there. W&B refuses the same characters.
    if value is None and argument == "id":
        return
    if (
        not isinstance(value, str)
        or not 1 <= len(value) <= 128
        or value in (".", "..")
        or set(value) & set("/\\:;,#?%'")
        or not value.isprintable()
    ):
        raise ValueError(
            f"Expected `{argument}` to be a name of 1 to 128 characters without any of / \\ : ; , # ? % ', "
            f"but got {value!r}."
        )


def _check_settings(settings: Mapping[str, Any]) -> None:
    import wandb

    try:
        wandb.Settings(**settings)
    except ValueError as error:
        first = error.errors()[0] if hasattr(error, "errors") else {"loc": (), "msg": in_one_line(error)}
        field = ".".join(str(part) for part in first["loc"]) or "settings"
        raise ValueError(
            f"Expected `settings` to hold fields of wandb.Settings, but got `{field}`: {first['msg']}."
        ) from None

"""Lightning's W&B logger without its ways to stop a training: what fails is said in one line and left behind.

May not check what users wrote (the factory does), nor call ``run.log(step=...)``: Lightning's own
``trainer/global_step`` is the x-axis, and W&B drops what arrives out of order.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger

from lightning_dropout.log_keys import GLOBAL_STEP, VAL_ACCURACY, VAL_LOSS, VAL_RMSE
from lightning_dropout.loggers.wandb_process import (
    finish_wandb,
    hushed,
    in_one_line,
    login_problem,
    mode_of_environment,
    run_folder,
    say,
    within,
)

__all__ = ["FailSafeWandbLogger"]

Mode = Literal["auto", "online", "offline", "disabled"]
RunMode = Literal["online", "shared", "offline", "disabled"]

# What the table of runs shows, and is sorted by, of a metric: its best value. Of all others, such as the gap and what a
# test logs, it is the last one.
SUMMARIES = {VAL_LOSS: "min", VAL_ACCURACY: "max", VAL_RMSE: "min"}

_TABLE_TIMEOUT = 5.0  # seconds; a server that is there answers in one

# What is tried next when a run of that mode cannot be started.
FALLBACKS: Mapping[RunMode, Sequence[RunMode]] = {
    "online": ["offline", "disabled"],
    "shared": ["offline", "disabled"],
    "offline": ["disabled"],
    "disabled": [],
}


class FailSafeWandbLogger(WandbLogger):
    """Lightning's W&B logger, except that a failure of W&B is one line on stderr, never an exception.

    Built by :func:`wandb_logger`, which checks the arguments and describes them. After training starts, an error while
    metrics, hyper-parameters or checkpoints are sent is reported once and the training goes on.

    Args:
        mode: As in :func:`wandb_logger`.
        save_dir: Folder that gets the ``wandb/`` folder.
        log_model: As in :func:`wandb_logger`.
        arguments: Of ``wandb.init``; must hold ``project``, ``name`` and ``id``.
        settings: Fields of ``wandb.Settings``; those that the installed wandb lacks are left out.
    """

    def __init__(
        self,
        *,
        mode: Mode,
        save_dir: str | os.PathLike[str],
        log_model: Literal["all"] | bool,
        arguments: Mapping[str, Any],
        settings: Mapping[str, Any],
    ) -> None:
        super().__init__(
            project=arguments["project"],
            name=arguments["name"],
            id=arguments["id"],
            save_dir=os.fspath(save_dir),
            log_model=log_model,
        )
        self._mode: Mode = mode
        self._arguments = dict(arguments)
        self._settings = dict(settings)
        self._reported: set[str] = set()

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The ``wandb.Run``, started at the first use; on ranks other than zero a stand-in that ignores everything."""
        if self._experiment is None:
            if getattr(self, "_attach_id", None) is not None:  # unpickled in a spawned process: join the run there is
                return super().experiment
            self._experiment = self._start()
        return self._experiment

    @property
    def version(self) -> str | None:
        """The id of the run, or the one asked for while no run has started."""
        run_id = getattr(self._experiment, "id", None)
        return run_id if isinstance(run_id, str) else self._id  # a stand-in answers every name with a function

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Send the metrics, at Lightning's global step."""
        send = functools.partial(super().log_metrics, metrics, step)
        if any(type(value).__name__ == "Table" for value in metrics.values()):
            # Of tables alone W&B asks the server first, and would wait 20 s for one that is gone.
            self._or_say("a table", lambda: within(_TABLE_TIMEOUT, send))
        else:
            self._or_say("metrics", send)

    def log_hyperparams(self, params: Any) -> None:
        """Send hyper-parameters into the run's config."""
        self._or_say("hyper-parameters", lambda: super(FailSafeWandbLogger, self).log_hyperparams(params))

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Send a checkpoint, if `log_model` says so."""
        self._or_say(
            "a checkpoint", lambda: super(FailSafeWandbLogger, self).after_save_checkpoint(checkpoint_callback)
        )

    def finalize(self, status: str) -> None:
        """Send what is left at the end of fit or test; the run stays open until :func:`finish_wandb`."""
        self._or_say("checkpoints", lambda: super(FailSafeWandbLogger, self).finalize(status))

    def _or_say(self, what: str, send: Callable[[], None]) -> None:
        try:
            send()
        except Exception as error:
            line = f"{what} could not be logged ({in_one_line(error)}); the training goes on"
            if line not in self._reported:
                self._reported.add(line)
                say(line)

    def _start(self) -> Any:
        finish_wandb(0)  # while a run is open, wandb.login says no and wandb.init hands out that run
        mode, reason = self._mode_and_reason()
        for attempt in (mode, *FALLBACKS[mode]):
            try:
                run = self._init(attempt)
            except Exception as error:
                reason = in_one_line(error)
                say(f"{attempt} run failed to start ({reason}); the training goes on")
                continue
            if attempt == "offline":
                self._log_model = False  # artifacts wait for a server
                folder = run_folder(run)
                print(
                    f"W&B: offline ({reason}). Look: `wandb leet {folder}`. Upload: `wandb sync {folder}`.", flush=True
                )
            elif attempt != "disabled":
                print(f"W&B: {run.url}", flush=True)
            return run
        return DummyLogger().experiment  # wandb is broken: not even its own stand-in could be had

    def _mode_and_reason(self) -> tuple[RunMode, str]:
        mode: Mode | Literal["shared"]
        if forced := mode_of_environment():
            mode, reason = forced, f"WANDB_MODE={os.environ['WANDB_MODE']}"
        else:
            mode, reason = self._mode, f"mode={self._mode}"
        if mode == "offline" or mode == "disabled":
            return mode, reason
        # Asked for `online` too: without a key, wandb.init would ask for one at the terminal.
        problem = login_problem()
        if not problem:
            return ("online" if mode == "auto" else mode), ""
        if mode != "auto":
            say(f"no {mode} run ({problem}); the training goes on")
        return "offline", problem

    def _init(self, mode: RunMode) -> Any:
        import wandb

        with contextlib.suppress(OSError):  # wandb then takes a temporary folder, and the line names it
            Path(self.save_dir or ".").mkdir(parents=True, exist_ok=True)
        known = wandb.Settings.model_fields
        settings = {
            "program": Path(sys.argv[0]).name or None,  # the whole path would tell the user's name
            "reinit": "finish_previous",
            **self._settings,
        }
        with hushed() as warnings:
            run = wandb.init(
                mode=mode,
                dir=self.save_dir,
                resume="allow" if self._arguments["id"] and mode == "online" else None,
                settings=wandb.Settings(**{field: value for field, value in settings.items() if field in known}),
                **self._arguments,
            )
        for warning in warnings:
            say(in_one_line(warning))
        # As Lightning's own logger does; a metric with a summary needs its axis once more.
        axis: dict[str, Any] = {"step_metric": GLOBAL_STEP, "step_sync": True}
        run.define_metric(GLOBAL_STEP)
        run.define_metric("*", **axis)
        for metric, summary in SUMMARIES.items():
            run.define_metric(metric, summary=summary, **axis)
        return run

"""Whether a resumed run is the run that it goes on with: what differs is said, or refused, before the first step.

Looks and compares; it changes neither the trainer nor the checkpoint's weights. That weights fit the model is
Lightning's own check.
"""

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from packaging.version import Version

from lightning_dropout.callbacks.any_callback import AnyCallback
from lightning_dropout.callbacks.mc_dropout import MCDropout
from lightning_dropout.callbacks.rate_scheduler import RateScheduler

__all__ = ["ResumeCheck"]

_RUN = "lightning_dropout_run"  # in a checkpoint; not as the state of a callback, which is written without the trainer
_PACKAGE = "lightning-dropout"


class ResumeCheck(AnyCallback):
    """Keep in each checkpoint what a run was like, and compare when a fit goes on from it.

    Training: at its start one line tells which number of processes, batch size, schedules and number of passes are
    others than those of the run that wrote the checkpoint. All of that may be wanted; none of it should happen unseen.
    Evaluation: nothing.

    Args:
        strict: Whether to refuse to go on instead of warning.

    Raises:
        RuntimeError: When a fit resumes from a checkpoint that a newer version of this package has written; with
            ``strict`` if anything differs.

    Example:
        >>> ResumeCheck(strict=True).strict
        True
    """

    def __init__(self, strict: bool = False) -> None:
        super().__init__()
        self.strict = strict
        self._before: dict[str, str] = {}  # of the run that wrote the checkpoint

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint[_RUN] = {"version": _installed(), "facts": _facts(trainer)}

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != "fit" or _RUN not in checkpoint:
            return
        stored = checkpoint[_RUN]
        written, installed = stored["version"], _installed()
        if written and installed and Version(written).release > Version(installed).release:
            raise RuntimeError(
                f"Expected `ckpt_path` to be a checkpoint of {_PACKAGE} {installed} or older, but got one of "
                f"{written}, which may mean something else; upgrade, or train anew."
            )
        self._before = stored["facts"]

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        before, self._before = self._before, {}
        now = _facts(trainer)
        others = [
            f"{name} {now[name]} instead of {before[name]}" for name in now if before.get(name, now[name]) != now[name]
        ]
        if others and self.strict:
            raise RuntimeError(
                f"Expected `ckpt_path` to be of a run like this one, but got {'; '.join(others)}; resume with what the "
                "checkpoint was written with, or pass strict=False."
            )
        if others:
            rank_zero_warn(
                f"ResumeCheck: goes on with {'; '.join(others)}, so it is not what the first run would have been."
            )


def _installed() -> str | None:
    try:
        return version(_PACKAGE)
    except PackageNotFoundError:  # a copy of the folder
        return None


def _facts(trainer: Any) -> dict[str, str]:
    facts = {
        "processes": trainer.world_size,
        "batch size": getattr(trainer.train_dataloader, "batch_size", None),
    }
    for callback in trainer.callbacks:
        if isinstance(callback, MCDropout):
            facts[f"{'/'.join(callback.stages)} num_samples"] = callback.num_samples
        if isinstance(callback, RateScheduler):
            facts[callback.state_key] = callback.plan
    return {name: str(fact) for name, fact in facts.items() if fact is not None}

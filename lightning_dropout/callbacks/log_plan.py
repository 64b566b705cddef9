"""Show the rates of a run before its first batch, in every logger that takes images."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from lightning_dropout.callbacks.log_figure import log_figure
from lightning_dropout.clock import RunLength
from lightning_dropout.log_keys import RATE_PLAN
from lightning_dropout.reports.rates import RateCurve, draw_rates, on_one_axis

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Planned", "log_plan"]


class Planned(Protocol):
    """What can tell its rates in advance: a rate scheduler from the start of a fit on."""

    @property
    def run_length(self) -> RunLength:
        """How long the run is."""

    def curves(self) -> Sequence[RateCurve]:
        """Return the rates of each group over the run."""


def log_plan(trainer: Any, schedulers: Sequence[Planned]) -> None:
    """Draw what ``schedulers`` will do and send it to W&B, TensorBoard and whatever else takes images.

    Args:
        trainer: Of either Lightning package, in a fit.
        schedulers: All of the trainer.

    Example:
        >>> log_plan(type("Trainer", (), {"is_global_zero": True, "loggers": []}), [])
    """
    log_figure(trainer, RATE_PLAN, lambda: _drawn(schedulers))


def _drawn(schedulers: Sequence[Planned]) -> "Figure":
    curves, length = on_one_axis([(scheduler.curves(), scheduler.run_length) for scheduler in schedulers])
    return draw_rates(curves, steps=length.steps, epochs=length.epochs)

"""Show the rates of a run before its first batch, in every logger that takes images.

By duck typing, since loggers are anybody's; what one of them raises is said in one line and never stops a run.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from lightning.pytorch.utilities import rank_zero_info

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

    Nothing is drawn where no logger takes one. On rank zero only.

    Args:
        trainer: Of either Lightning package, in a fit.
        schedulers: All of the trainer.

    Example:
        >>> log_plan(type("Trainer", (), {"is_global_zero": True, "loggers": []}), [])
    """
    figure: Figure | None = None
    for logger in trainer.loggers if trainer.is_global_zero else ():
        try:
            send = _sender(logger)
            if send is not None:
                figure = figure or _drawn(schedulers)
                send(figure, trainer.global_step)
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            rank_zero_info(
                f"{type(logger).__name__}: {RATE_PLAN} could not be logged ({reason}); the training goes on."
            )


def _drawn(schedulers: Sequence[Planned]) -> "Figure":
    curves, length = on_one_axis([(scheduler.curves(), scheduler.run_length) for scheduler in schedulers])
    return draw_rates(curves, steps=length.steps, epochs=length.epochs)


def _sender(logger: Any) -> Callable[["Figure", int], None] | None:
    """Return how ``logger`` takes a figure at a step; ``None`` where it takes none.

    The classes are asked, since the stand-ins of Lightning (under ``fast_dev_run``, say) answer every name.
    """
    if hasattr(type(logger), "log_image"):
        return lambda figure, step: logger.log_image(key=RATE_PLAN, images=[figure], step=step)
    experiment: Any = getattr(logger, "experiment", None)
    if hasattr(type(experiment), "add_figure"):
        return lambda figure, step: experiment.add_figure(RATE_PLAN, figure, global_step=step)
    return None

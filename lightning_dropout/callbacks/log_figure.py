"""Show a figure in every logger that takes images, a table in every one that takes tables.

By duck typing, since loggers are anybody's; what one of them raises is said in one line and never stops a run.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities import rank_zero_info

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["log_figure", "log_table"]


def log_figure(trainer: Any, key: str, draw: Callable[[], "Figure"]) -> None:
    """Send a figure to W&B, TensorBoard and whatever else takes images.

    Nothing is drawn where no logger takes one. On rank zero only.

    Args:
        trainer: Of either Lightning package.
        key: The name of the image.
        draw: Called once, if a logger takes images.

    Example:
        >>> log_figure(type("Trainer", (), {"is_global_zero": True, "loggers": []}), "report/gap", lambda: None)
    """
    figure: Figure | None = None
    for logger in trainer.loggers if trainer.is_global_zero else ():
        try:
            send = _sender(logger, key)
            if send is not None:
                figure = figure or draw()
                send(figure, trainer.global_step)
        except Exception as error:
            _say(logger, key, error)


def log_table(trainer: Any, key: str, columns: Mapping[str, Sequence[Any]]) -> None:
    """Send a table to W&B and whatever else takes one. On rank zero only.

    Args:
        trainer: Of either Lightning package.
        key: The name of the table.
        columns: Equally long columns by name.

    Example:
        >>> log_table(type("Trainer", (), {"is_global_zero": True, "loggers": []}), "report/table", {"label": [1]})
    """
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    for logger in trainer.loggers if trainer.is_global_zero else ():
        try:
            if hasattr(type(logger), "log_table"):
                logger.log_table(key=key, columns=list(columns), data=rows)
        except Exception as error:
            _say(logger, key, error)


def _say(logger: Any, key: str, error: Exception) -> None:
    reason = " ".join(str(error).split()) or type(error).__name__
    rank_zero_info(f"{type(logger).__name__}: {key} could not be logged ({reason}); the run goes on.")


def _sender(logger: Any, key: str) -> Callable[["Figure", int], None] | None:
    """Return how ``logger`` takes a figure at a step; ``None`` where it takes none.

    The classes are asked, since the stand-ins of Lightning (under ``fast_dev_run``, say) answer every name.
    """
    if hasattr(type(logger), "log_image"):
        return lambda figure, step: logger.log_image(key=key, images=[figure], step=step)
    experiment: Any = getattr(logger, "experiment", None)
    if hasattr(type(experiment), "add_figure"):
        return lambda figure, step: experiment.add_figure(key, figure, global_step=step)
    return None

"""What the schedulers of a trainer will do with the rates, asked before it trains anything.

The answer is their own: a fit is started, and left before its first batch. What the trainer, the model and the
schedulers were before, they are afterwards.
"""

import copy
from typing import Any

from lightning_dropout.callbacks.any_callback import AnyCallback
from lightning_dropout.callbacks.rate_scheduler import RateScheduler, schedulers_of
from lightning_dropout.clock import RunLength
from lightning_dropout.randomness import isolated_randomness
from lightning_dropout.reports.rates import RateCurve, on_one_axis

__all__ = ["plan"]


def plan(trainer: Any, module: Any, data: Any = None) -> tuple[list[RateCurve], RunLength]:
    """Return the rates of every group over the run that ``trainer.fit(module, data)`` would be.

    Nothing is trained. Only the schedulers among the callbacks take part, with what says how many batches make a step:
    no other one writes, prints or hears of an exception, and no logger starts.

    Args:
        trainer: Of either Lightning package, with schedulers among its callbacks.
        module: Its LightningModule.
        data: A data module or training loader; as in ``fit``, the module's own by default.

    Returns:
        The curves and the length that their fractions are of, for ``draw_rates``.

    Raises:
        ValueError: If there is no scheduler, if the trainer would train nothing, or as the schedulers do at the start
            of a fit: if no site matches, for instance, or the run has no known length.

    Example:
        ::

            curves, length = plan(trainer, module, data)
            draw_rates(curves, steps=length.steps, epochs=length.epochs).savefig("rates.png")
    """
    callbacks, loggers, sanity_steps = trainer.callbacks, trainer.loggers, trainer.num_sanity_val_steps
    # Copies, since a scheduler remembers the rates of its last fit, for a test to come.
    trainer.callbacks = [copy.deepcopy(callback) for callback in callbacks if _takes_part(callback)] + [_Leave()]
    trainer.loggers, trainer.num_sanity_val_steps = [], 0
    try:
        with isolated_randomness(module):
            trainer.fit(module, data)
    except _PlannedError as planned:
        return planned.curves, planned.length
    finally:
        trainer.callbacks, trainer.loggers, trainer.num_sanity_val_steps = callbacks, loggers, sanity_steps
    raise ValueError(
        f"Expected `trainer` to train at least one batch, but got max_epochs={trainer.max_epochs}, "
        f"max_steps={trainer.max_steps} and limit_train_batches={trainer.limit_train_batches}; raise what is 0."
    )


class _PlannedError(Exception):
    """The way out of a fit, with what was asked for; no error at all."""

    def __init__(self, curves: list[RateCurve], length: RunLength) -> None:
        super().__init__()
        self.curves = curves
        self.length = length


class _Leave(AnyCallback):
    """Leave the fit before its first batch: late enough that a module's own schedulers have started too."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        schedulers = schedulers_of(trainer)
        if not schedulers:
            raise ValueError(
                "Expected `trainer` to have a DropoutScheduler or a StochasticDepthScheduler among its callbacks, but "
                "got none; add one (in a config: callbacks/dropout=linear)."
            )
        raise _PlannedError(*on_one_axis([(scheduler.curves(), scheduler.run_length) for scheduler in schedulers]))


def _takes_part(callback: Any) -> bool:
    return isinstance(callback, RateScheduler) or hasattr(callback, "scheduling")  # the latter is read by the clock

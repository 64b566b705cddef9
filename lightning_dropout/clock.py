"""The clock: a trainer's counters and durations such as ``"10ep"`` to progress in [0, 1].

The one place where units of time convert. It reads a trainer (``lightning`` or ``pytorch_lightning``, by attribute,
never by class) and changes nothing; it keeps no counter, so progress after a resume is what it would have been.
"""

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Clock", "Duration", "RunLength", "parse_duration"]

_DURATION = re.compile(r"(?P<amount>\d+(?:\.\d+)?)(?P<unit>ep|step)")
_SPELLINGS = 'epochs ("10ep"), optimizer steps ("500step") or a fraction of the run (0.3)'


@dataclass(frozen=True)
class Duration:
    """A point of the run with its unit.

    Args:
        amount: How many units, at least 0.
        unit: ``"ep"``, ``"step"`` or ``"run"`` (fraction of the run).
    """

    amount: float
    unit: Literal["ep", "step", "run"]

    def fraction(self, length: "RunLength") -> float:
        """Return the point as a fraction of a run of known ``length``."""
        if self.unit == "run":
            return self.amount
        if self.unit == "step":
            return self.amount / length.steps
        if length.epochs is None:
            raise ValueError(
                f'Expected a duration in steps or as a fraction, but got "{self.amount:g}ep" in a run whose epochs '
                'have no known length; write e.g. "500step".'
            )
        return self.amount / length.epochs


def parse_duration(value: str | float, name: str) -> Duration:
    """Read ``"10ep"``, ``"500step"`` or a fraction of the run such as ``0.3``.

    Args:
        value: The duration. A bare number is a fraction in [0, 1], never a count.
        name: The argument it came from; stands in the message.

    Raises:
        ValueError: If it is none of these.

    Example:
        >>> parse_duration("10ep", "begin")
        Duration(amount=10.0, unit='ep')
        >>> parse_duration(10, "begin")
        Traceback (most recent call last):
        ...
        ValueError: Expected `begin` to be epochs ("10ep"), optimizer steps ("500step") or a fraction of the run (0.3), but got 10.
    """  # noqa: E501 (the message is one line)
    if isinstance(value, str) and (match := _DURATION.fullmatch(value.strip())):
        amount = float(match["amount"])
        if match["unit"] == "ep":
            return Duration(amount, "ep")
        if amount.is_integer():
            return Duration(amount, "step")
    elif isinstance(value, int | float) and not isinstance(value, bool) and 0.0 <= value <= 1.0:
        return Duration(float(value), "run")
    raise ValueError(f"Expected `{name}` to be {_SPELLINGS}, but got {value!r}.")


@dataclass(frozen=True)
class RunLength:
    """How long a run is.

    Args:
        steps: Optimizer steps (batches under manual optimization), above 0.
        epochs: Epochs, or ``None`` where an epoch has no known number of steps.
    """

    steps: float
    epochs: float | None


@dataclass(frozen=True)
class Clock:
    """Progress of a trainer's run: what a schedule is asked with.

    ``unit="step"``: optimizer steps already done / total steps, so a rate holds still while gradients accumulate.
    ``unit="epoch"``: epochs done / total epochs, constant within one. Under manual optimization batches stand in for
    steps, since nobody can know how many steps a user's code takes. The result is 0 before the first step, (N - 1) / N
    before the last and clamped to 1 beyond the end (more steps than estimated, as under weight averaging).

    Args:
        unit: How often progress moves.
        begin: Where progress 0 lies; ``None`` is the start of the run.
        end: Where progress 1 lies; ``None`` is the end of the run.
        total: Length of the run, ``"500step"`` or ``"20ep"``; needed where the trainer cannot know it.

    Raises:
        ValueError: At construction for a bad duration; from :meth:`measure` for a run of unknown length.

    Example:
        >>> Clock(unit="epoch", end="8ep").window(RunLength(steps=100, epochs=10), 0.4)
        0.5
    """

    unit: Literal["step", "epoch"] = "step"
    begin: str | float | None = None
    end: str | float | None = None
    total: str | None = None

    def __post_init__(self) -> None:
        if self.unit not in ("step", "epoch"):
            raise ValueError(f'Expected `unit` to be "step" or "epoch", but got {self.unit!r}.')
        begin = parse_duration(0.0 if self.begin is None else self.begin, "begin")
        end = parse_duration(1.0 if self.end is None else self.end, "end")
        if begin.unit == end.unit and begin.amount >= end.amount:
            raise ValueError(f"Expected `begin` to lie before `end`, but got {self.begin!r} and {self.end!r}.")
        if self.total is not None:
            total = parse_duration(self.total, "total")
            if total.unit == "run" or total.amount == 0:
                raise ValueError(f'Expected `total` to be e.g. "500step" or "20ep", but got {self.total!r}.')

    def measure(self, trainer: Any) -> RunLength:
        """Return the length of ``trainer``'s fit; every rank must call it, as it may load the training data.

        Raises:
            ValueError: If the length is not known and ``total`` does not say it.
        """
        steps = _total_steps(trainer)  # first: it loads the data that `num_training_batches` counts
        per_epoch = _steps_per_epoch(trainer)
        if self.total is not None:
            total = parse_duration(self.total, "total")
            if total.unit == "step":
                return RunLength(total.amount, None if per_epoch is None else total.amount / per_epoch)
            if per_epoch is not None:
                return RunLength(total.amount * per_epoch, total.amount)
            if self.unit == "epoch":
                return RunLength(math.inf, total.amount)  # steps are never asked for
            raise ValueError(
                f'Expected `total` in steps, but got "{self.total}" and a training loader without a length; '
                'write e.g. `total="5000step"`.'
            )
        if self.unit == "epoch" and not math.isfinite(steps) and (trainer.max_epochs or -1) > 0:
            return RunLength(math.inf, float(trainer.max_epochs))
        if not math.isfinite(steps):
            raise ValueError(
                f"Expected a run of known length, but got max_epochs={trainer.max_epochs}, max_steps="
                f"{trainer.max_steps} and {trainer.num_training_batches} training batches; "
                'pass `total="5000step"` (or "20ep") to the scheduler, or set `max_steps` on the trainer.'
            )
        return RunLength(steps, None if per_epoch is None else steps / per_epoch)

    def progress(self, trainer: Any, length: RunLength) -> float:
        """Return where ``trainer`` stands in the window ``begin`` ... ``end``, in [0, 1].

        Valid from ``on_train_batch_start`` on: there, and after a resume, the counters are those of the batch to come.
        """
        if self.unit == "epoch":
            # With `max_steps` the last epoch may be cut short: epochs are then counted in fractions.
            done = trainer.current_epoch / (length.epochs or math.inf)
        else:
            done = _steps_done(trainer) / length.steps
        return self.window(length, done)

    def window(self, length: RunLength, done: float) -> float:
        """Map the fraction ``done`` of the run to the window ``begin`` ... ``end``, clamped to [0, 1]."""
        begin = 0.0 if self.begin is None else parse_duration(self.begin, "begin").fraction(length)
        end = 1.0 if self.end is None else parse_duration(self.end, "end").fraction(length)
        if begin >= end:
            raise ValueError(
                f"Expected `begin` to lie before `end`, but got {self.begin!r} and {self.end!r} in a run of "
                f"{length.steps:g} steps."
            )
        return min(1.0, max(0.0, (done - begin) / (end - begin)))


def _steps_done(trainer: Any) -> int:
    if trainer.lightning_module.automatic_optimization:
        return int(trainer.global_step)
    return max(0, int(trainer.fit_loop.total_batch_idx))  # -1 before the first batch


def _total_steps(trainer: Any) -> float:
    """Optimizer steps of the whole fit; infinity where nobody knows."""
    steps = trainer.estimated_stepping_batches
    if not trainer.lightning_module.automatic_optimization:
        batches, epochs = trainer.num_training_batches, trainer.max_epochs
        return float(batches * epochs) if epochs is not None and epochs > 0 else math.inf
    return float(steps) if steps > 0 else math.inf  # an iterable loader without length gives -1


def _steps_per_epoch(trainer: Any) -> float | None:
    batches = trainer.num_training_batches
    if not math.isfinite(batches) or batches <= 0:
        return None
    if not trainer.lightning_module.automatic_optimization:
        return float(batches)
    return float(math.ceil(batches / trainer.accumulate_grad_batches))

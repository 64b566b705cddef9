"""The clock: a trainer's counters and durations such as ``"10ep"`` to progress in [0, 1].

The one place where units of time convert. It reads a trainer (``lightning`` or ``pytorch_lightning``, by attribute,
never by class) and changes nothing; it keeps no counter, so progress after a resume is what it would have been. It
counts in fractions, not floats, so that a boundary falls on the very step that the user wrote.
"""

import math
import numbers
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, Literal

__all__ = ["Clock", "Duration", "RunLength", "UnknownLengthError", "parse_duration"]

_DURATION = re.compile(r"(?P<amount>\d+(?:\.\d+)?)(?P<unit>ep|step)")
_SPELLINGS = 'epochs ("10ep"), optimizer steps ("500step") or a fraction of the run (0.3)'


class UnknownLengthError(ValueError):
    """Nobody knows how long the run will be."""


@dataclass(frozen=True)
class RunLength:
    """How long a run is.

    Args:
        steps: Optimizer steps (batches under manual optimization), or ``None`` where nobody knows.
        epochs: Epochs, or ``None`` where an epoch has no known number of steps.
    """

    steps: Fraction | None
    epochs: Fraction | None


@dataclass(frozen=True)
class Duration:
    """A point of the run with its unit.

    Args:
        amount: How many units, at least 0.
        unit: ``"ep"``, ``"step"`` or ``"run"`` (fraction of the run).
    """

    amount: Fraction
    unit: Literal["ep", "step", "run"]

    def fraction(self, length: RunLength) -> Fraction:
        """Return the point as a fraction of a run of ``length``.

        Raises:
            ValueError: If the length in this unit is not known.
        """
        if self.unit == "run":
            return self.amount
        whole, other = (length.steps, '"20ep"') if self.unit == "step" else (length.epochs, '"500step"')
        if whole is None:
            raise ValueError(
                f'Expected another unit, but got "{float(self.amount):g}{self.unit}" in a run whose length in that '
                f"unit is not known; write e.g. {other}, or a fraction of the run such as 0.3."
            )
        return self.amount / whole


def parse_duration(value: str | float, name: str) -> Duration:
    """Read ``"10ep"``, ``"500step"`` or a fraction of the run such as ``0.3``.

    Args:
        value: The duration. A bare number is a fraction in [0, 1], never a count.
        name: The argument it came from; stands in the message.

    Raises:
        ValueError: If it is none of these.

    Example:
        >>> parse_duration("10ep", "begin")
        Duration(amount=Fraction(10, 1), unit='ep')
        >>> parse_duration(10, "begin")
        Traceback (most recent call last):
        ...
        ValueError: Expected `begin` to be epochs ("10ep"), optimizer steps ("500step") or a fraction of the run (0.3), but got 10.
    """  # noqa: E501 (the message is one line)
    if isinstance(value, str) and (match := _DURATION.fullmatch(value.strip())):
        amount = Fraction(match["amount"])
        if match["unit"] == "ep":
            return Duration(amount, "ep")
        if amount.denominator == 1:
            return Duration(amount, "step")
    elif isinstance(value, numbers.Real) and not isinstance(value, bool) and 0.0 <= float(value) <= 1.0:
        return Duration(Fraction(str(value)), "run")  # by its digits: 0.1 is a tenth
    spellings = 'epochs ("10ep") or optimizer steps ("500step")' if name == "total" else _SPELLINGS
    raise ValueError(f"Expected `{name}` to be {spellings}, but got {value!r}.")


@dataclass(frozen=True)
class Clock:
    """Progress of a trainer's run: what a schedule is asked with.

    ``unit="step"``: optimizer steps already done / total steps, so a rate holds still while gradients accumulate.
    ``unit="epoch"``: epochs done / total epochs, constant within one. Under manual optimization batches stand in for
    steps, since nobody can know how many steps a user's code takes. The result is 0 before the first step, (N - 1) / N
    before the last and clamped to 1 beyond the end (more steps than foreseen, as under weight averaging).

    Args:
        unit: How often progress moves.
        begin: Where progress 0 lies; ``None`` is the start of the run.
        end: Where progress 1 lies; ``None`` is the end of the run.
        total: Length of the run, ``"500step"`` or ``"20ep"``; needed where the trainer cannot know it.

    Raises:
        ValueError: At construction for a bad duration; from :meth:`measure` for a run that is over before ``begin``, or
            (as :class:`UnknownLengthError`) of unknown length.

    Example:
        >>> Clock(unit="epoch", end="8ep").window(RunLength(steps=None, epochs=Fraction(10)), Fraction(4, 10))
        0.5
    """

    unit: Literal["step", "epoch"] = "step"
    begin: str | float | None = None
    end: str | float | None = None
    total: str | None = None

    def __post_init__(self) -> None:
        if self.unit not in ("step", "epoch"):
            raise ValueError(f'Expected `unit` to be "step" or "epoch", but got {self.unit!r}.')
        begin, end = self._begin, self._end
        if begin.unit == end.unit and begin.amount >= end.amount:
            raise ValueError(f"Expected `begin` to lie before `end`, but got {self.begin!r} and {self.end!r}.")
        if self.total is not None:
            total = parse_duration(self.total, "total")
            if total.unit == "run" or total.amount == 0:
                raise ValueError(f'Expected `total` to be e.g. "500step" or "20ep", but got {self.total!r}.')

    @cached_property  # asked at every step
    def _begin(self) -> Duration:
        return parse_duration(0 if self.begin is None else self.begin, "begin")

    @cached_property
    def _end(self) -> Duration:
        return parse_duration(1 if self.end is None else self.end, "end")

    def measure(self, trainer: Any) -> RunLength:
        """Return the length of ``trainer``'s fit; every rank must call it, as it may load the training data.

        Raises:
            ValueError: If the length is not known and ``total`` does not say it, or if the window begins after the run.
        """
        if trainer.train_dataloader is None:
            trainer.fit_loop.setup_data()  # before that nobody knows the number of batches
        if 0 in (trainer.max_epochs, trainer.max_steps, trainer.limit_train_batches, trainer.num_training_batches):
            return RunLength(Fraction(0), Fraction(0))  # nothing will run, so nobody will ask
        length = self._length(trainer)
        if (length.steps if self.unit == "step" else length.epochs) is None:
            raise UnknownLengthError(self._unknown_length(trainer))
        begin, end = self._begin.fraction(length), self._end.fraction(length)
        if (begin >= end or begin >= 1) and not trainer.fast_dev_run:  # that tries settings made for a longer run
            steps = "" if length.steps is None else f" of {float(length.steps):g} steps"
            raise ValueError(
                f"Expected `begin` to lie before `end` and within the run, but got {self.begin!r} and {self.end!r} in "
                f"a run{steps}; move the window, or train for longer."
            )
        return length

    def progress(self, trainer: Any, length: RunLength) -> float:
        """Return where ``trainer`` stands in the window ``begin`` ... ``end``, in [0, 1].

        Valid from ``on_train_batch_start`` on: there, and after a resume, the counters are those of the batch to come.
        """
        return self._at(length, _steps_done(trainer) if self.unit == "step" else int(trainer.current_epoch))

    def window(self, length: RunLength, done: Fraction) -> float:
        """Map the fraction ``done`` of the run to the window ``begin`` ... ``end``, clamped to [0, 1]."""
        return self._at(length, done * self._whole(length))

    def course(self, length: RunLength, points: int = 512) -> list[tuple[float, float]]:
        """Return (fraction of the run, progress) over the whole run: what holds from there on, and at last its end.

        Nothing for a run of no steps.

        Args:
            length: Of the run.
            points: How many at most, but for the last; a shorter run gives one for each step or epoch.

        Example:
            >>> Clock(unit="epoch", end="1ep").course(RunLength(steps=None, epochs=Fraction(2)))
            [(0.0, 0.0), (0.5, 1.0), (1.0, 1.0)]
        """
        whole = length.steps if self.unit == "step" else length.epochs
        if whole is None:  # a constant needs no length
            return [(0.0, 0.0), (1.0, 1.0)]
        if whole == 0:
            return []
        last = math.ceil(whole) - 1
        count = min(points, last + 1)
        done = [i * last // max(count - 1, 1) for i in range(count)]
        return [
            *((float(each / whole), self._at(length, each)) for each in done),
            (1.0, self.window(length, Fraction(1))),
        ]

    def _at(self, length: RunLength, done: int | Fraction) -> float:
        """Return the progress after ``done`` units of the run."""
        memo = self.__dict__.get("_memo")  # asked at every step, and arithmetic with fractions is slow
        if memo is None or memo[0] is not length:
            memo = self.__dict__["_memo"] = length, *self._solve(length)
        _, scale, start, span = memo
        moved = done * scale - start
        return 0.0 if moved <= 0 else 1.0 if moved >= span else float(moved / span)

    def _solve(self, length: RunLength) -> tuple[int, int, int]:
        """Return whole numbers with which progress is ``(done * scale - start) / span``, rounded once."""
        whole = self._whole(length)
        begin, end = self._begin.fraction(length) * whole, self._end.fraction(length) * whole
        scale = math.lcm(begin.denominator, end.denominator)
        return scale, int(begin * scale), int((end - begin) * scale)

    def _whole(self, length: RunLength) -> Fraction:
        # With `max_steps` the last epoch may be cut short: the whole is then no whole number of epochs.
        whole = length.steps if self.unit == "step" else length.epochs
        assert whole is not None  # noqa: S101  (measure has refused it)
        return whole

    def _length(self, trainer: Any) -> RunLength:
        per_epoch = _steps_per_epoch(trainer)
        if self.total is None:
            return _planned_length(trainer, per_epoch)
        total = parse_duration(self.total, "total")
        if total.unit == "step":
            return RunLength(total.amount, None if per_epoch is None else total.amount / per_epoch)
        return RunLength(None if per_epoch is None else total.amount * per_epoch, total.amount)

    def _unknown_length(self, trainer: Any) -> str:
        wanted = 'total="5000step"' if self.unit == "step" else 'total="20ep"'
        if self.total is not None:
            return (
                f'Expected `total` in {self.unit}s, but got "{self.total}" and epochs without a known number of steps; '
                f"pass e.g. `{wanted}` to the scheduler."
            )
        count = "" if trainer.lightning_module.automatic_optimization else ", counted in batches (manual optimization)"
        return (
            f"Expected a run of known length, but got max_epochs={trainer.max_epochs}, max_steps={trainer.max_steps} "
            f"and {trainer.num_training_batches} training batches; pass e.g. `{wanted}` to the scheduler{count}."
        )


def _steps_done(trainer: Any) -> int:
    if trainer.lightning_module.automatic_optimization:
        return int(trainer.global_step)
    return max(0, int(trainer.fit_loop.total_batch_idx))  # -1 before the first batch


def _planned_length(trainer: Any, per_epoch: Fraction | None) -> RunLength:
    """Return the length that the trainer's own arguments give; whichever limit comes first ends the run."""
    max_epochs = None if trainer.max_epochs in (None, -1) else Fraction(trainer.max_epochs)
    max_steps = None if trainer.max_steps == -1 else Fraction(trainer.max_steps)
    if max_steps is not None and not trainer.lightning_module.automatic_optimization:
        # The limit counts the steps of all optimizers: nobody knows how many batches that makes.
        per_epoch, max_steps = per_epoch if trainer.fast_dev_run else None, None
        max_epochs = max_epochs if trainer.fast_dev_run else None
    if per_epoch is None:
        return RunLength(max_steps, max_epochs if max_steps is None else None)
    limits = [] if max_epochs is None else [max_epochs * per_epoch]
    steps = min([*limits, *([] if max_steps is None else [max_steps])], default=None)
    return RunLength(steps, None if steps is None else steps / per_epoch)


def _steps_per_epoch(trainer: Any) -> Fraction | None:
    """Return the optimizer steps of an epoch; ``None`` where the loader has no length or accumulation changes."""
    batches = trainer.num_training_batches
    schedules = [getattr(callback, "scheduling", None) for callback in trainer.callbacks]
    factors = {factor for schedule in schedules if isinstance(schedule, dict) for factor in schedule.values()}
    if not math.isfinite(batches) or len(factors) > 1:
        return None
    if not trainer.lightning_module.automatic_optimization:
        return Fraction(batches)
    return Fraction(math.ceil(batches / max(factors, default=trainer.accumulate_grad_batches)))

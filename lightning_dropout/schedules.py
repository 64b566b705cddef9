"""Schedules: what value at what progress. Pure, stateless maths.

``progress`` is the fraction of the run already taken: 0.0 before the first optimizer step, (N - 1) / N before the last
of N. Units (epochs, steps) are converted in ``clock.py`` and nowhere else; this room knows no torch, no trainer and
keeps no counter, so a resumed run continues exactly. Under ``rate=`` of a scheduler the values are probabilities,
under ``scale=`` they are factors of the rates that the model was built with.
"""

import math
import numbers
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Literal

__all__ = ["Constant", "Cosine", "Early", "Late", "Linear", "Schedule"]

_SAMPLES = 256  # progress values at which a schedule is tried before a run depends on it


class Schedule(ABC):
    """A value for every progress in [0, 1].

    Subclass it as a frozen dataclass with plain-typed fields (LightningCLI and Hydra build it from YAML, checkpoints
    stay loadable) and write the formula into ``__call__``. Construction samples the whole range once, so a schedule
    that would fail in the last epoch fails before the first. Checks of your own go into ``__post_init__``, before
    ``super().__post_init__()``.

    Raises:
        ValueError: At construction, if a field declared as ``float`` is no number, or if some value is not a finite
            number of at least 0.

    Example:
        >>> @dataclass(frozen=True)
        ... class Square(Schedule):
        ...     peak: float
        ...
        ...     def __call__(self, progress: float) -> float:
        ...         return self.peak * progress**2
        >>> Square(0.5)(0.5)
        0.125
    """

    @abstractmethod
    def __call__(self, progress: float) -> float:
        """Return the value at ``progress`` in [0, 1]."""

    def __post_init__(self) -> None:
        """Check the fields, then sample the schedule once over the whole run."""
        _check_numbers(self)
        self.samples()

    def samples(self) -> list[tuple[float, float]]:
        """Return (progress, value) at evenly spaced points of the run, both endpoints included.

        Raises:
            ValueError: If some value is not a finite number of at least 0.
        """
        samples = []
        for step in range(_SAMPLES + 1):
            progress = step / _SAMPLES
            value: object = self(progress)  # a subclass may return anything
            number = float(value) if isinstance(value, numbers.Real) else math.nan
            if not (math.isfinite(number) and number >= 0.0):
                raise ValueError(
                    f"Expected `{self!r}` to give finite values of at least 0, but got {value!r} at progress "
                    f"{progress:g}; check its arguments."
                )
            samples.append((progress, number))
        return samples


def _check_numbers(schedule: Schedule) -> None:
    """Raise for a field that is declared as a number and is none, by name, before a formula trips over it."""
    for field in fields(schedule):  # type: ignore[arg-type]  # subclasses are dataclasses
        value = getattr(schedule, field.name)
        if field.type in (float, "float") and (isinstance(value, bool) or not isinstance(value, numbers.Real)):
            raise ValueError(
                f"Expected `{field.name}` of {type(schedule).__name__} to be a number, but got {value!r}; "
                "schedules take plain numbers."
            )


@dataclass(frozen=True)
class Constant(Schedule):
    """The same value for the whole run: ``value``.

    Args:
        value: At least 0; a probability under ``rate=``, a factor under ``scale=``.

    Example:
        >>> Constant(0.1)(0.7)
        0.1
    """

    value: float

    def __call__(self, progress: float) -> float:
        return float(self.value)


@dataclass(frozen=True)
class Linear(Schedule):
    """A straight line: ``(1 - progress) * start + progress * end``; ``start`` at 0, ``end`` at 1, both exact.

    Args:
        start: Value at progress 0, at least 0.
        end: Value at progress 1, at least 0.

    Example:
        >>> line = Linear(0.0, 0.4)
        >>> [line(progress) for progress in (0.0, 0.5, 1.0)]
        [0.0, 0.2, 0.4]
    """

    start: float
    end: float

    def __call__(self, progress: float) -> float:
        return float((1.0 - progress) * self.start + progress * self.end)


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine: ``start + (end - start) * (1 - cos(pi * progress)) / 2``; flat at both ends.

    ``start`` at progress 0, ``end`` at 1, their mean at 1/2.

    Args:
        start: Value at progress 0, at least 0.
        end: Value at progress 1, at least 0.

    Source:
        The annealing curve of Loshchilov & Hutter (2017), arXiv:1608.03983, eq. 5, applied to a dropout rate.

    Example:
        >>> curve = Cosine(0.5, 0.0)
        >>> [round(curve(progress), 3) for progress in (0.0, 0.25, 0.5, 1.0)]
        [0.5, 0.427, 0.25, 0.0]
    """

    start: float
    end: float

    def __call__(self, progress: float) -> float:
        weight = (1.0 - math.cos(math.pi * progress)) / 2.0
        return float((1.0 - weight) * self.start + weight * self.end)


@dataclass(frozen=True)
class Early(Schedule):
    """Drop early, then stop: against underfitting.

    ``shape="linear"``: ``peak * max(0, 1 - progress / until)``. ``shape="constant"``: ``peak`` while
    ``progress < until``. Both are 0 from ``until`` on: Monte-Carlo dropout afterwards samples nothing unless it is
    given rates of its own.

    Args:
        peak: Value at progress 0, at least 0.
        until: Progress from which the value is 0, in (0, 1].
        shape: How it falls.

    Raises:
        ValueError: If ``until`` or ``shape`` is out of range.

    Source:
        Liu et al. (2023), "Dropout Reduces Underfitting", arXiv:2303.01500, section 4.

    Example:
        >>> early = Early(0.5, until=0.5)
        >>> [early(progress) for progress in (0.0, 0.25, 0.5, 1.0)]
        [0.5, 0.25, 0.0, 0.0]
        >>> Early(0.5, until=0.5, shape="constant")(0.49)
        0.5
    """

    peak: float
    until: float
    shape: Literal["linear", "constant"] = "linear"

    def __post_init__(self) -> None:
        _check_numbers(self)
        if not 0.0 < self.until <= 1.0:
            raise ValueError(
                f"Expected `until` to be a fraction of the run in (0, 1], but got {self.until}; "
                'epochs belong on the callback, e.g. `end="50ep"`.'
            )
        if self.shape not in ("linear", "constant"):
            raise ValueError(f'Expected `shape` to be "linear" or "constant", but got {self.shape!r}.')
        super().__post_init__()

    def __call__(self, progress: float) -> float:
        if progress >= self.until:
            return 0.0
        return float(self.peak * (1.0 - progress / self.until if self.shape == "linear" else 1.0))


@dataclass(frozen=True)
class Late(Schedule):
    """Start dropping late: against overfitting. 0 while ``progress < begin``, then ``peak``.

    Args:
        peak: Value from ``begin`` on, at least 0.
        begin: Progress at which dropping starts, in [0, 1).

    Raises:
        ValueError: If ``begin`` is out of range.

    Source:
        Liu et al. (2023), "Dropout Reduces Underfitting", arXiv:2303.01500, section 4.

    Example:
        >>> late = Late(0.4, begin=0.25)
        >>> [late(progress) for progress in (0.0, 0.24, 0.25, 1.0)]
        [0.0, 0.0, 0.4, 0.4]
    """

    peak: float
    begin: float

    def __post_init__(self) -> None:
        _check_numbers(self)
        if not 0.0 <= self.begin < 1.0:
            raise ValueError(
                f"Expected `begin` to be a fraction of the run in [0, 1), but got {self.begin}; "
                'epochs belong on the callback, e.g. `begin="50ep"`.'
            )
        super().__post_init__()

    def __call__(self, progress: float) -> float:
        return float(self.peak) if progress >= self.begin else 0.0

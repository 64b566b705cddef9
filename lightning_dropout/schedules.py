"""Schedules: what value at what progress. Pure, stateless maths.

``progress`` is the fraction of the run already taken: 0.0 before the first optimizer step, (N - 1) / N before the last
of N. Units (epochs, steps) are converted in ``clock.py`` and nowhere else; this room knows no torch, no trainer and
keeps no counter, so a resumed run continues exactly. Under ``rate=`` of a scheduler the values are probabilities,
under ``scale=`` they are factors of the rates that the model was built with.
"""

import math
import numbers
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, Union, cast, get_args, get_origin

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "Constant",
    "Cosine",
    "Curriculum",
    "Cyclic",
    "Early",
    "Exponential",
    "Late",
    "Linear",
    "Piecewise",
    "Schedule",
]

_SAMPLES = 256  # progress values at which a schedule is tried before a run depends on it
_DENOMINATOR = 2**26  # up to here no two fractions in [0, 1] round to one float


class Schedule(ABC):
    """A value for every progress in [0, 1].

    Subclass it as a frozen dataclass with plain-typed fields (LightningCLI and Hydra build it from YAML, checkpoints
    stay loadable) and write the formula into ``__call__``. Construction samples the whole range once, so a schedule
    that would fail in the last epoch fails before the first. Checks of your own go into ``__post_init__``, before
    ``super().__post_init__()``.

    Raises:
        ValueError: At construction, if a field declared as ``float`` is no number or NaN, if one declared as
            ``Literal`` is none of its words, or if some value is not a finite number of at least 0.

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
        _check_fields(self)
        self.samples()

    def samples(self) -> list[tuple[float, float]]:
        """Return (progress, value) over the run, both endpoints included.

        Evenly spaced; in addition the stretches of a :class:`Piecewise` and the cycles of a :class:`Cyclic`, each for
        itself.

        Raises:
            ValueError: If some value is not a finite number of at least 0.
        """
        samples = []
        for progress in sorted(self._tried()):
            try:
                value: object = self(progress)  # a subclass may return anything
            except Exception as error:
                raise ValueError(
                    f"Expected `{self!r}` to have a value at progress {progress:g}, but got {type(error).__name__}: "
                    f"{error}; it is asked from 0 to 1, both included."
                ) from error
            number = float(value) if isinstance(value, numbers.Real) else math.nan
            if not (math.isfinite(number) and number >= 0.0):
                raise ValueError(
                    f"Expected `{self!r}` to give finite values of at least 0, but got {value!r} at progress "
                    f"{progress:g}; check its arguments."
                )
            samples.append((progress, number))
        return samples

    def plot(self, ax: "Axes | None" = None) -> "tuple[Figure, Axes]":
        """Draw the value over the run.

        Args:
            ax: The matplotlib axes to draw on; default new ones, of a figure that no window and no ``pyplot`` knows.

        Returns:
            The figure and its axes, as torchmetrics' ``plot`` does; show it in a notebook, or ``figure.savefig(...)``.

        Example:
            >>> figure, axes = Late(0.4, begin=0.25).plot()
            >>> axes.get_xlabel(), axes.get_ylabel()
            ('fraction of the run', 'value')
        """
        from matplotlib.figure import Figure

        axes = Figure(layout="constrained").add_subplot() if ax is None else ax
        axes.plot(*zip(*self.samples(), strict=True), label=repr(self))
        axes.update_datalim([(0.0, 0.0)])  # with 0 in sight, a small change does not look like a large one
        axes.set(xlabel="fraction of the run", ylabel="value")
        axes.set_title(repr(self), wrap=True)
        return cast("Figure", axes.figure), axes

    def _tried(self) -> set[float]:
        """Return the progress values at which the schedule is sampled."""
        return {step / _SAMPLES for step in range(_SAMPLES + 1)}


def _check_fields(schedule: Schedule) -> None:
    """Raise for a field that is not what it is declared as, by name, before a formula trips over it."""
    for field in fields(schedule):  # type: ignore[arg-type]  # subclasses are dataclasses
        value = getattr(schedule, field.name)
        choices = get_args(field.type) if get_origin(field.type) is Literal else ()
        if choices and value not in choices:
            words = " or ".join(f'"{choice}"' for choice in choices)
            raise ValueError(f"Expected `{field.name}` to be {words}, but got {value!r}.")
        if field.type in (float, "float") and not (_is_number(value) and value == value):
            raise ValueError(
                f"Expected `{field.name}` of {type(schedule).__name__} to be a number, but got {value!r}; "
                "schedules take plain numbers."
            )


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


@lru_cache(maxsize=1024)
def _exact(number: float) -> Fraction:
    """Return the fraction that ``number`` was rounded from: a tenth for 0.1, a third for 1 / 3.

    Progress is the float of a fraction k / N. What is computed from it in floats misses, by a rounding, the step at
    which a stretch within a stretch begins: 0.6 is a fifth into the second half of a run, but (0.6 - 0.5) / 0.5 < 0.2.
    """
    simple = Fraction(number).limit_denominator(_DENOMINATOR)
    return simple if float(simple) == number else Fraction(number)


def _between(start: float, end: float, weight: float) -> float:
    """Return the point at the share ``weight`` of the way from ``start`` to ``end``, both exact."""
    return float((1.0 - weight) * start + weight * end)


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
        return _between(self.start, self.end, progress)


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
        return _between(self.start, self.end, (1.0 - math.cos(math.pi * progress)) / 2.0)


@dataclass(frozen=True)
class Exponential(Schedule):
    """An exponential approach: ``start + (end - start) * (1 - exp(-gamma * progress)) / (1 - exp(-gamma))``.

    ``start`` at progress 0, ``end`` at 1, both exact, and monotone between them.

    Args:
        start: Value at progress 0, at least 0.
        end: Value at progress 1, at least 0.
        gamma: How bent the curve is, in time constants per run: above 0 it starts fast and levels off, below 0 it
            starts slowly; towards 0 it becomes a straight line.

    Raises:
        ValueError: If ``gamma`` is 0 or not finite.

    Source:
        The curve of Morerio et al. (2017), arXiv:1703.06229, stretched so that it reaches its end within the run;
        :class:`Curriculum` is the paper's own.

    Example:
        >>> curve = Exponential(0.0, 0.4)
        >>> [round(curve(progress), 3) for progress in (0.0, 0.25, 0.5, 1.0)]
        [0.0, 0.287, 0.37, 0.4]
    """

    start: float
    end: float
    gamma: float = 5.0

    def __post_init__(self) -> None:
        _check_fields(self)
        if self.gamma == 0 or math.isinf(self.gamma):
            raise ValueError(
                f"Expected `gamma` to be finite and not 0, but got {self.gamma}; for a straight line use `Linear`."
            )
        super().__post_init__()

    def __call__(self, progress: float) -> float:
        steepness = abs(self.gamma)
        weight = math.expm1(-steepness * progress) / math.expm1(-steepness)
        if self.gamma < 0:  # the same curve backwards; exp(-gamma) itself would overflow
            weight *= math.exp(-steepness * (1.0 - progress))
        return _between(self.start, self.end, weight)


@dataclass(frozen=True)
class Curriculum(Schedule):
    """Curriculum dropout, from easy to hard: ``peak * (1 - exp(-gamma * progress))``.

    0 at progress 0, ``peak * (1 - exp(-gamma))`` at 1: with the default gamma that is ``peak`` but for 0.005 %.

    Args:
        peak: Value that it approaches, at least 0.
        gamma: Time constants per run, above 0: the paper's gamma times its number of gradient updates T, so that the
            default is the 10 / T that the paper suggests.

    Raises:
        ValueError: If ``gamma`` is not above 0 and finite.

    Source:
        Morerio et al. (2017), "Curriculum Dropout", arXiv:1703.06229, section 3. There ``theta`` is the probability of
        *keeping*: ``theta(t) = (1 - theta_bar) * exp(-gamma * t) + theta_bar`` with ``theta_bar = 1 - peak``.

    Example:
        >>> curriculum = Curriculum(0.5)
        >>> [round(curriculum(progress), 3) for progress in (0.0, 0.1, 0.5, 1.0)]
        [0.0, 0.316, 0.497, 0.5]
    """

    peak: float
    gamma: float = 10.0

    def __post_init__(self) -> None:
        _check_fields(self)
        if not 0.0 < self.gamma < math.inf:
            raise ValueError(
                f"Expected `gamma` to be above 0 and finite, but got {self.gamma}; for a slow start use "
                "`Exponential` with a negative one."
            )
        super().__post_init__()

    def __call__(self, progress: float) -> float:
        return float(-self.peak * math.expm1(-self.gamma * progress))


@dataclass(frozen=True)
class Cyclic(Schedule):
    """Again and again from ``start`` to ``end`` and back, in ``cycles`` equal cycles.

    With ``u`` from 0 to 1 within each cycle, the value is ``start + (end - start) * w(u)``. ``shape="triangular"``:
    ``w = 1 - abs(2 * u - 1)``, up and down in straight lines. ``"cosine"``: ``w = (1 - cos(2 * pi * u)) / 2``, the
    same smoothly. Both are ``start`` at progress 0 and 1, ``end`` in the middle of each cycle. ``"sawtooth"``:
    ``w = u``, a straight line and a jump back; ``start`` at progress 0, ``end`` at 1.

    Args:
        start: Value at the start of each cycle, at least 0.
        end: Value in the middle of each cycle (sawtooth: towards its end), at least 0.
        cycles: How many, a whole number of at least 1.
        shape: The way to ``end`` and back.

    Raises:
        ValueError: If ``cycles`` or ``shape`` is out of range.

    Source:
        The triangular policy of Smith (2017), "Cyclical Learning Rates for Training Neural Networks",
        arXiv:1506.01186, section 3, applied to a dropout rate.

    Example:
        >>> wave = Cyclic(0.0, 0.4, cycles=2)
        >>> [wave(progress) for progress in (0.0, 0.125, 0.25, 0.5, 0.75, 1.0)]
        [0.0, 0.2, 0.4, 0.0, 0.4, 0.0]
        >>> saw = Cyclic(0.0, 0.4, cycles=2, shape="sawtooth")
        >>> [saw(progress) for progress in (0.0, 0.25, 0.5, 0.75, 1.0)]
        [0.0, 0.2, 0.0, 0.2, 0.4]
    """

    start: float
    end: float
    cycles: int
    shape: Literal["triangular", "cosine", "sawtooth"] = "triangular"

    def __post_init__(self) -> None:
        if not (isinstance(self.cycles, numbers.Integral) and _is_number(self.cycles) and self.cycles >= 1):
            raise ValueError(
                f"Expected `cycles` to be a whole number of at least 1, but got {self.cycles!r}; e.g. `cycles=4`."
            )
        super().__post_init__()

    def __call__(self, progress: float) -> float:
        phase = float(_exact(float(progress)) * self.cycles % 1)
        if self.shape == "triangular":
            weight = 1.0 - abs(2.0 * phase - 1.0)
        elif self.shape == "cosine":
            weight = (1.0 - math.cos(2.0 * math.pi * phase)) / 2.0
        else:
            weight = 1.0 if progress >= 1.0 else phase
        return _between(self.start, self.end, weight)

    def _tried(self) -> set[float]:
        # Even spacing may meet every cycle at the same phase. Of very many cycles some will do: all are alike.
        some = range(0, self.cycles, math.ceil(self.cycles / _SAMPLES))
        before = {math.nextafter(cycle / self.cycles, 0.0) for cycle in some}
        return super()._tried() | before | {(cycle + part / 8) / self.cycles for cycle in some for part in range(8)}


@dataclass(frozen=True)
class Piecewise(Schedule):
    """Several schedules, one after the other.

    From each boundary on (``progress >= boundary``) the next schedule holds; each sees a progress of its own, 0 at the
    start of its stretch and 1 at its end: ``schedules[i]((progress - b[i]) / (b[i + 1] - b[i]))`` where
    ``b = (0, *boundaries, 1)``. The first schedule's ``start`` at progress 0, the last one's ``end`` at 1. Neighbours
    need not meet: the value may jump. A part may be a ``Piecewise`` itself.

    Args:
        schedules: The schedules in their order; a number stands for a :class:`Constant`.
        boundaries: Where the second and every further one begins: fractions of the run in (0, 1), one fewer than
            schedules, each above the one before.

    Raises:
        ValueError: If they are not that.

    Example:
        >>> warm_up_and_hold = Piecewise([Linear(0.0, 0.2), 0.2, 0.0], boundaries=[0.5, 0.9])
        >>> [warm_up_and_hold(progress) for progress in (0.0, 0.25, 0.5, 0.8, 0.9, 1.0)]
        [0.0, 0.1, 0.2, 0.2, 0.0, 0.0]
    """

    schedules: Sequence[Union[float, Schedule]]  # noqa: UP007  (jsonargparse reads it)
    boundaries: Sequence[float]

    def __post_init__(self) -> None:
        for name, cure in (("schedules", "[Linear(0.0, 0.2), 0.2]"), ("boundaries", "[0.5]")):
            value = getattr(self, name)
            if isinstance(value, str) or not isinstance(value, Sequence):
                raise ValueError(f"Expected `{name}` to be a list, but got {value!r}; e.g. `{name}={cure}`.")
        for part in self.schedules:
            if not (isinstance(part, Schedule) or _is_number(part)):
                raise ValueError(
                    f"Expected `schedules` to hold schedules and numbers, but got {part!r}; "
                    "e.g. `[Linear(0.0, 0.2), 0.2]` (where Hydra instantiates it: with `_convert_: all`)."
                )
        if len(self.boundaries) != len(self.schedules) - 1:
            raise ValueError(
                f"Expected one of `boundaries` between every two of `schedules`, but got {len(self.boundaries)} for "
                f"{len(self.schedules)} schedules; the start and the end of the run are no boundaries."
            )
        for before, boundary in zip((0.0, *self.boundaries), self.boundaries, strict=False):
            if not (_is_number(boundary) and before < boundary < 1.0):
                raise ValueError(
                    "Expected `boundaries` to be fractions of the run in (0, 1), each above the one before, but got "
                    f'{boundary!r} in {[*self.boundaries]}; epochs belong on the callback, e.g. `begin="50ep"`.'
                )
        parts = tuple(part if isinstance(part, Schedule) else Constant(float(part)) for part in self.schedules)
        object.__setattr__(self, "schedules", parts)  # tuples: hashable, and one value however it was written
        object.__setattr__(self, "boundaries", tuple(float(boundary) for boundary in self.boundaries))
        super().__post_init__()

    def __call__(self, progress: float) -> float:
        index = bisect_right(self.boundaries, progress)
        begin, end = self._stretch(index)
        return self._part(index)(float((_exact(float(progress)) - begin) / (end - begin)))

    def _part(self, index: int) -> Schedule:
        return cast("Schedule", self.schedules[index])  # a number no longer, since construction

    def _stretch(self, index: int) -> tuple[Fraction, Fraction]:
        edges = (0.0, *self.boundaries, 1.0)
        return _exact(edges[index]), _exact(edges[index + 1])

    def _tried(self) -> set[float]:
        found = super()._tried()
        for index in range(len(self.schedules)):
            begin, end = self._stretch(index)
            later = float(end)
            # Backwards, so that what two neighbours are rounded to stays apart: a jump, and what lies just before it.
            for own, _ in reversed(self._part(index).samples()):
                later = min(float(begin + _exact(own) * (end - begin)), math.nextafter(later, 0.0))
                found.add(later)
        return found


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
        Liu et al. (2023), "Dropout Reduces Underfitting", arXiv:2303.01500, section 4. Their straight line is 0 at the
        last of the n steps before the end already, ours at the first after it: they differ by at most ``peak / n``.

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
        _check_fields(self)
        if not 0.0 < self.until <= 1.0:
            raise ValueError(
                f"Expected `until` to be a fraction of the run in (0, 1], but got {self.until}; "
                'epochs belong on the callback, e.g. `end="50ep"`.'
            )
        super().__post_init__()

    def __call__(self, progress: float) -> float:
        if progress >= self.until:
            return 0.0
        return float(self.peak * (1.0 - progress / self.until if self.shape == "linear" else 1.0))


@dataclass(frozen=True)
class Late(Schedule):
    """Start dropping late: against overfitting.

    0 while ``progress < begin``. From then on, ``shape="constant"``: ``peak``; ``shape="linear"``:
    ``peak * (progress - begin) / (1 - begin)``. Both are ``peak`` at progress 1.

    Args:
        peak: Value at progress 1, at least 0.
        begin: Progress at which dropping starts, in [0, 1).
        shape: How it rises: at once, or in a straight line until the end of the run.

    Raises:
        ValueError: If ``begin`` or ``shape`` is out of range.

    Source:
        Liu et al. (2023), "Dropout Reduces Underfitting", arXiv:2303.01500, section 4; the linear form is ours, the
        counterpart of :class:`Early`'s.

    Example:
        >>> late = Late(0.4, begin=0.25)
        >>> [late(progress) for progress in (0.0, 0.24, 0.25, 1.0)]
        [0.0, 0.0, 0.4, 0.4]
        >>> Late(0.4, begin=0.5, shape="linear")(0.75)
        0.2
    """

    peak: float
    begin: float
    shape: Literal["constant", "linear"] = "constant"

    def __post_init__(self) -> None:
        _check_fields(self)
        if not 0.0 <= self.begin < 1.0:
            raise ValueError(
                f"Expected `begin` to be a fraction of the run in [0, 1), but got {self.begin}; "
                'epochs belong on the callback, e.g. `begin="50ep"`.'
            )
        super().__post_init__()

    def __call__(self, progress: float) -> float:
        if progress < self.begin:
            return 0.0
        return float(self.peak * ((progress - self.begin) / (1.0 - self.begin) if self.shape == "linear" else 1.0))

"""The schedules: their formulas walked over whole runs, their endpoints, and what they refuse."""

import dataclasses
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from lightning_dropout.schedules import Constant, Cosine, Early, Late, Linear, Schedule

Formula = Callable[[float], float]

# Every schedule beside its closed form, written in another way than the source writes it.
CLOSED_FORMS: dict[str, tuple[Schedule, Formula]] = {
    "constant": (Constant(0.3), lambda t: 0.3),
    "linear up": (Linear(0.0, 0.4), lambda t: 0.4 * t),
    "linear down": (Linear(0.9, 0.2), lambda t: 0.9 - 0.7 * t),
    "cosine up": (Cosine(0.1, 0.5), lambda t: 0.1 + 0.4 * math.sin(math.pi * t / 2) ** 2),
    "cosine down": (Cosine(1.0, 0.0), lambda t: math.cos(math.pi * t / 2) ** 2),
    "early": (Early(0.5, until=0.4), lambda t: 0.5 * (0.4 - t) / 0.4 if t < 0.4 else 0.0),
    "early, whole run": (Early(0.5, until=1.0), lambda t: 0.5 * (1.0 - t)),
    "early constant": (Early(0.5, until=0.4, shape="constant"), lambda t: 0.5 if t < 0.4 else 0.0),
    "late": (Late(0.25, begin=0.6), lambda t: 0.0 if t < 0.6 else 0.25),
    "late, whole run": (Late(0.25, begin=0.0), lambda t: 0.25),
}
RUN_LENGTHS = (1, 2, 7, 10, 1000)


def walk(schedule: Formula, formula: Formula) -> None:
    """Assert that ``schedule`` follows ``formula`` before every step of runs of several lengths, and at their end."""
    for total in RUN_LENGTHS:
        for step in range(total + 1):
            progress = step / total
            assert schedule(progress) == pytest.approx(formula(progress), abs=1e-15), f"step {step} of {total}"


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_whole_runs_follow_the_closed_form(name: str) -> None:
    walk(*CLOSED_FORMS[name])


# What a wrong implementation would do. Each is asked in place of the schedule it imitates.
MUTANTS: dict[str, tuple[str, Formula]] = {
    "ends reversed": ("linear up", lambda t: 0.4 * (1 - t)),
    "never reaches its end": ("linear down", lambda t: Linear(0.9, 0.2)(min(t, 0.999))),
    "a straight line": ("cosine up", lambda t: Linear(0.1, 0.5)(t)),
    "a whole wave": ("cosine down", lambda t: (1 + math.cos(2 * math.pi * t)) / 2),
    "not stretched to until": ("early", lambda t: 0.5 * (1 - t) if t < 0.4 else 0.0),
    "one step too long": ("early constant", lambda t: 0.5 if t <= 0.4 else 0.0),
    "one step too late": ("late", lambda t: 0.25 if t > 0.6 else 0.0),
}


@pytest.mark.parametrize("bug", MUTANTS)
def test_every_planted_bug_is_killed(bug: str) -> None:
    name, wrong = MUTANTS[bug]
    with pytest.raises(AssertionError, match=r"step \d+ of \d+"):
        walk(wrong, CLOSED_FORMS[name][1])


@pytest.mark.parametrize(
    ("schedule", "first", "last"),
    [
        (Constant(0.1), 0.1, 0.1),
        (Linear(0.1, 0.7), 0.1, 0.7),
        (Linear(0.7, 0.1), 0.7, 0.1),
        (Cosine(0.1, 0.7), 0.1, 0.7),
        (Cosine(0.7, 0.1), 0.7, 0.1),
        (Early(0.7, until=1.0), 0.7, 0.0),
        (Early(0.7, until=0.1), 0.7, 0.0),
        (Early(0.7, until=1.0, shape="constant"), 0.7, 0.0),
        (Late(0.7, begin=0.1), 0.0, 0.7),
        (Late(0.7, begin=0.0), 0.7, 0.7),
    ],
    ids=repr,
)
def test_endpoints_are_exact(schedule: Schedule, first: float, last: float) -> None:
    assert schedule(0.0) == first
    assert schedule(1.0) == last


def test_interior_points_are_exact() -> None:
    assert Linear(0.0, 0.4)(0.5) == 0.2
    assert Linear(1.0, 3.0)(0.25) == 1.5
    assert Cosine(0.0, 1.0)(0.5) == pytest.approx(0.5, abs=1e-16)
    assert Early(0.5, until=0.5)(0.25) == 0.25
    assert Early(0.8, until=0.5, shape="constant")(math.nextafter(0.5, 0.0)) == 0.8
    assert Early(0.8, until=0.5, shape="constant")(0.5) == 0.0
    assert Late(0.8, begin=0.5)(math.nextafter(0.5, 0.0)) == 0.0
    assert Late(0.8, begin=0.5)(0.5) == 0.8


@pytest.mark.parametrize("value", [1e-3, 0.1, 0.3, 0.7, 1.0])
def test_no_rounding_pushes_a_flat_line_beyond_a_probability(value: float) -> None:
    for schedule in (Linear(value, value), Cosine(value, value), Linear(value, 1.0), Cosine(value, 1.0)):
        assert all(sample <= 1.0 for _, sample in schedule.samples())


def test_samples_cover_the_run_with_both_endpoints() -> None:
    samples = Linear(0.0, 1.0).samples()
    assert samples[0] == (0.0, 0.0)
    assert samples[-1] == (1.0, 1.0)
    assert len(samples) > 100
    assert [progress for progress, _ in samples] == sorted({progress for progress, _ in samples})


# Plain values.


@pytest.mark.parametrize("number", [np.float64, np.float32, np.float16, int], ids=lambda kind: kind.__name__)
def test_values_are_python_floats_whatever_the_arguments(number: Any) -> None:
    one, zero = number(1), number(0)
    schedules = [
        Constant(one),
        Linear(zero, one),
        Cosine(zero, one),
        Early(one, until=one),
        Early(one, until=one, shape="constant"),
        Late(one, begin=zero),
    ]
    for schedule in schedules:
        for progress in (0.0, 0.5, 1.0, np.float64(0.5), np.float32(0.5), 0, 1):
            assert type(schedule(progress)) is float, schedule
        assert all(type(number) is float for sample in schedule.samples() for number in sample)


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_schedules_are_frozen_plain_and_picklable(name: str) -> None:
    schedule = CLOSED_FORMS[name][0]
    for field in dataclasses.fields(schedule):  # type: ignore[arg-type]
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(schedule, field.name, 0.5)
    copy = pickle.loads(pickle.dumps(schedule))
    assert copy == schedule
    assert hash(copy) == hash(schedule)
    assert [copy(t) for t in (0.0, 0.3, 1.0)] == [schedule(t) for t in (0.0, 0.3, 1.0)]
    assert eval(repr(schedule)) == schedule


# Bad input.


@pytest.mark.parametrize("value", ["abc", "0.5", None, True, [0.5], np.array([0.5]), 1j], ids=repr)
def test_what_is_no_number_is_refused_by_name(value: Any) -> None:
    for build, field in [
        (lambda: Constant(value), "value"),
        (lambda: Linear(value, 0.1), "start"),
        (lambda: Linear(0.1, value), "end"),
        (lambda: Cosine(value, 0.1), "start"),
        (lambda: Cosine(0.1, value), "end"),
        (lambda: Early(value, until=0.5), "peak"),
        (lambda: Early(0.1, until=value), "until"),
        (lambda: Late(value, begin=0.5), "peak"),
        (lambda: Late(0.1, begin=value), "begin"),
    ]:
        with pytest.raises(ValueError, match=rf"^Expected `{field}` of \w+ to be a number, but got "):
            build()


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, -math.inf])
def test_values_that_no_rate_has_are_refused(value: float) -> None:
    for build in [
        lambda: Constant(value),
        lambda: Linear(value, 0.1),
        lambda: Linear(0.1, value),
        lambda: Cosine(value, 0.1),
        lambda: Cosine(0.1, value),
        lambda: Early(value, until=0.5),
        lambda: Early(value, until=0.5, shape="constant"),
        lambda: Late(value, begin=0.9),
    ]:
        with pytest.raises(ValueError, match=r"^Expected `\w+\(.*\)` to give finite values of at least 0, but got "):
            build()


@pytest.mark.parametrize("until", [0.0, -0.1, 1.1, 50, math.nan])
def test_early_refuses_an_end_outside_the_run(until: float) -> None:
    with pytest.raises(ValueError, match=r'`until` .* in \(0, 1\], but got .*; epochs belong on the callback.*"50ep"'):
        Early(0.5, until=until)


@pytest.mark.parametrize("begin", [1.0, -0.1, 50, math.nan])
def test_late_refuses_a_begin_outside_the_run(begin: float) -> None:
    with pytest.raises(ValueError, match=r'`begin` .* in \[0, 1\), but got .*; epochs belong on the callback.*"50ep"'):
        Late(0.5, begin=begin)


def test_early_refuses_an_unknown_shape() -> None:
    with pytest.raises(ValueError, match=r'`shape` to be "linear" or "constant", but got \'cosine\''):
        Early(0.5, until=0.5, shape="cosine")  # type: ignore[arg-type]


def test_factors_above_1_are_welcome() -> None:
    assert Linear(0.0, 2.0)(1.0) == 2.0


# Schedules that users write.


@dataclass(frozen=True)
class Line(Schedule):
    """May leave the allowed values in the middle of a run."""

    slope: float
    offset: float = 0.0

    def __call__(self, progress: float) -> float:
        return self.offset + self.slope * progress


@dataclass(frozen=True)
class Returning(Schedule):
    """Gives whatever it was built with, late in the run."""

    value: Any

    def __call__(self, progress: float) -> float:
        return self.value if progress > 0.9 else 0.0


def test_a_schedule_of_ones_own_is_checked_over_the_whole_run() -> None:
    assert Line(1.0)(0.5) == 0.5
    with pytest.raises(ValueError, match=r"Line\(slope=-1.0.* but got -0.00\d* at progress 0\.50"):
        Line(-1.0, offset=0.5)
    with pytest.raises(ValueError, match="Expected `slope` of Line to be a number, but got 'steep'"):
        Line("steep")  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [math.nan, math.inf, -1e-9, "0.5", None, np.array([0.5])], ids=repr)
def test_a_schedule_that_would_fail_late_fails_at_once(value: Any) -> None:
    with pytest.raises(ValueError, match=r"Expected `Returning\(.* but got .* at progress 0.90"):
        Returning(value)
    assert Returning(np.float64(0.5)).samples()[-1] == (1.0, 0.5)


def test_a_schedule_that_skips_the_checks_is_caught_when_it_is_sampled() -> None:
    class Plain(Schedule):
        def __call__(self, progress: float) -> float:
            return -1.0

    schedule = Plain()  # no dataclass, so nothing was checked yet
    with pytest.raises(ValueError, match=r"finite values of at least 0, but got -1\.0"):
        schedule.samples()


def test_a_schedule_without_a_formula_cannot_be_built() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Schedule()  # type: ignore[abstract]

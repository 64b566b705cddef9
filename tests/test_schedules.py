"""The schedules: their formulas walked over whole runs, their endpoints, and what they refuse."""

import dataclasses
import math
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import jsonargparse
import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from lightning_dropout.callbacks import DropoutScheduler
from lightning_dropout.schedules import (
    Constant,
    Cosine,
    Curriculum,
    Cyclic,
    Early,
    Exponential,
    Late,
    Linear,
    Piecewise,
    Schedule,
)

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
    "late linear": (Late(0.25, begin=0.6, shape="linear"), lambda t: max(0.0, 0.25 * (t - 0.6) / 0.4)),
    "exponential": (
        Exponential(0.1, 0.5, gamma=4.0),
        lambda t: 0.1 + 0.4 * (math.exp(4) - math.exp(4 - 4 * t)) / (math.exp(4) - 1),
    ),
    "exponential down": (Exponential(0.9, 0.2), lambda t: 0.2 + 0.7 * (math.exp(5 - 5 * t) - 1) / (math.exp(5) - 1)),
    "exponential, slow start": (
        Exponential(0.0, 0.5, gamma=-3.0),
        lambda t: 0.5 * (math.exp(3 * t) - 1) / (math.exp(3) - 1),
    ),
    "curriculum": (Curriculum(0.6, gamma=8.0), lambda t: 1 - (0.6 * math.exp(-8 * t) + 0.4)),
    "cyclic": (Cyclic(0.1, 0.5, cycles=4), lambda t: 0.1 + 0.8 * abs(4 * t - round(4 * t))),
    "cyclic cosine": (Cyclic(0.5, 0.0, cycles=2, shape="cosine"), lambda t: 0.5 * math.cos(2 * math.pi * t) ** 2),
    "cyclic sawtooth": (
        Cyclic(0.2, 0.6, cycles=4, shape="sawtooth"),
        lambda t: 0.2 + 0.4 * (4 * t - min(3, math.floor(4 * t))),
    ),
    "piecewise": (
        Piecewise([Linear(0.0, 0.4), 0.1, Cosine(0.3, 0.0)], boundaries=[0.2, 0.5]),
        lambda t: 2 * t if t < 0.2 else 0.1 if t < 0.5 else 0.3 * math.cos(math.pi * (t - 0.5)) ** 2,
    ),
    "piecewise in piecewise": (
        Piecewise([0.3, Piecewise([0.1, 0.2], boundaries=[0.2])], boundaries=[0.5]),
        lambda t: 0.3 if t < 0.5 else 0.1 if t < 0.6 else 0.2,
    ),
    "late in piecewise": (
        Piecewise([Late(0.2, begin=0.25), Late(0.4, begin=1 / 3)], boundaries=[0.4]),
        lambda t: 0.0 if t < 0.1 else 0.2 if t < 0.4 else 0.0 if t < 0.6 else 0.4,
    ),
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
    "not from 0 on": ("late linear", lambda t: 0.25 * t if t >= 0.6 else 0.0),
    "not stretched to its end": ("exponential", lambda t: 0.1 + 0.4 * (1 - math.exp(-4 * t))),
    "sign of gamma lost": ("exponential, slow start", Exponential(0.0, 0.5, gamma=3.0)),
    "probability of keeping": ("curriculum", lambda t: 0.6 * math.exp(-8 * t) + 0.4),
    "stretched to its end": ("curriculum", Exponential(0.0, 0.6, gamma=8.0)),
    "half as many cycles": ("cyclic", Cyclic(0.1, 0.5, cycles=2)),
    "never comes back": ("cyclic cosine", lambda t: Cosine(0.5, 0.0)(2 * t % 1)),
    "ends where it starts": ("cyclic sawtooth", lambda t: 0.2 + 0.4 * (4 * t % 1)),
    "parts see the whole run": (
        "piecewise",
        lambda t: 0.4 * t if t < 0.2 else 0.1 if t < 0.5 else Cosine(0.3, 0.0)(t),
    ),
    "boundary one step too late": (
        "piecewise",
        lambda t: 2 * t if t <= 0.2 else 0.1 if t <= 0.5 else Cosine(0.3, 0.0)(2 * (t - 0.5)),
    ),
    "own progress in floats": (
        "piecewise in piecewise",
        lambda t: 0.3 if t < 0.5 else 0.1 if (t - 0.5) / 0.5 < 0.2 else 0.2,
    ),
    "own progress in floats, late": (
        "late in piecewise",
        lambda t: 0.0 if t < 0.1 else 0.2 if t < 0.4 else 0.0 if (t - 0.4) / (1 - 0.4) < 1 / 3 else 0.4,
    ),
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
        (Late(0.7, begin=0.1, shape="linear"), 0.0, 0.7),
        (Late(0.7, begin=0.0, shape="linear"), 0.0, 0.7),
        (Exponential(0.1, 0.7), 0.1, 0.7),
        (Exponential(0.7, 0.1, gamma=-5.0), 0.7, 0.1),
        (Curriculum(0.7), 0.0, pytest.approx(0.7 * (1 - math.exp(-10)), rel=1e-15)),
        (Curriculum(0.7, gamma=1.0), 0.0, pytest.approx(0.7 * (1 - math.exp(-1)), rel=1e-15)),
        (Cyclic(0.1, 0.7, cycles=1), 0.1, 0.1),
        (Cyclic(0.1, 0.7, cycles=49), 0.1, 0.1),
        (Cyclic(0.1, 0.7, cycles=49, shape="cosine"), 0.1, 0.1),
        (Cyclic(0.1, 0.7, cycles=49, shape="sawtooth"), 0.1, 0.7),
        (Piecewise([Linear(0.1, 0.3), Cosine(0.3, 0.7)], boundaries=[1 / 3]), 0.1, 0.7),
        (Piecewise([0.1], boundaries=[]), 0.1, 0.1),
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
    for build in (Linear, Cosine, Exponential, lambda start, end: Cyclic(start, end, cycles=7)):
        for schedule in (build(value, value), build(value, 1.0), build(1.0, value)):
            assert all(sample <= 1.0 for _, sample in schedule.samples())


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_samples_cover_the_run_with_both_endpoints(name: str) -> None:
    schedule = CLOSED_FORMS[name][0]
    samples = schedule.samples()
    assert samples[0] == (0.0, schedule(0.0))
    assert samples[-1] == (1.0, schedule(1.0))
    assert len(samples) > 100
    assert [progress for progress, _ in samples] == sorted({progress for progress, _ in samples})
    assert all(schedule(progress) == value for progress, value in samples)


# Against the papers.


def walk_against_reference(schedule: Formula, peak: float, cutoff: int, epochs: int, steps_per_epoch: int) -> None:
    """Assert that ``schedule`` is the early linear curve of Liu et al.: ``linspace(peak, 0)`` until the cutoff, then 0.

    Their last step before the cutoff has rate 0, ours the rate one step above 0: they may differ by one step's share.
    """
    steps = cutoff * steps_per_epoch
    total = epochs * steps_per_epoch
    reference = [*np.linspace(peak, 0.0, steps), *np.zeros(total - steps)]
    for step, theirs in enumerate(reference):
        assert abs(schedule(step / total) - theirs) <= peak / (steps - 1), f"step {step} of {total}"


RUNS = [(1, 2, 7), (1, 3, 10), (20, 300, 4), (50, 50, 3), (7, 10, 123)]  # cutoff in epochs, epochs, steps per epoch


@pytest.mark.parametrize(("cutoff", "epochs", "steps_per_epoch"), RUNS)
def test_early_linear_differs_from_the_paper_by_less_than_a_step(
    cutoff: int, epochs: int, steps_per_epoch: int
) -> None:
    run = (0.5, cutoff, epochs, steps_per_epoch)
    early = Early(0.5, until=cutoff / epochs)
    walk_against_reference(early, *run)
    steps, total = cutoff * steps_per_epoch, epochs * steps_per_epoch
    assert early((steps - 1) / total) == pytest.approx(0.5 / steps)  # where theirs is 0: the bound is nearly reached
    wrong: list[Formula] = [
        Early(0.5, until=cutoff / epochs / 2),
        lambda t: early(max(0.0, t - 2 / total)),
        Early(0.5, until=cutoff / epochs, shape="constant"),
    ]
    if cutoff < epochs:
        wrong.append(Early(0.5, until=1.0))
    for schedule in wrong:
        with pytest.raises(AssertionError, match=r"step \d+ of \d+"):
            walk_against_reference(schedule, *run)


@pytest.mark.parametrize(("cutoff", "epochs", "steps_per_epoch"), RUNS[:3] + RUNS[4:])
def test_early_constant_and_late_are_the_curves_of_the_paper(cutoff: int, epochs: int, steps_per_epoch: int) -> None:
    before, total = cutoff * steps_per_epoch, epochs * steps_per_epoch
    early = Early(0.5, until=cutoff / epochs, shape="constant")
    late = Late(0.5, begin=cutoff / epochs)
    assert [early(step / total) for step in range(total)] == [*np.full(before, 0.5), *np.zeros(total - before)]
    assert [late(step / total) for step in range(total)] == [*np.zeros(before), *np.full(total - before, 0.5)]


def walk_against_morerio(schedule: Formula, peak: float, gamma: float) -> None:
    """Assert that ``schedule`` drops what the paper does not keep after each of T gradient updates."""
    keep = 1.0 - peak
    for updates in (1, 7, 100, 5000):
        for t in range(updates + 1):
            theta = (1.0 - keep) * math.exp(-gamma / updates * t) + keep
            assert schedule(t / updates) == pytest.approx(1.0 - theta, abs=1e-14), f"step {t} of {updates}"


@pytest.mark.parametrize(("peak", "gamma"), [(0.5, 10.0), (0.2, 10.0), (0.9, 2.5)])
def test_curriculum_is_the_one_of_the_paper(peak: float, gamma: float) -> None:
    walk_against_morerio(Curriculum(peak, gamma), peak, gamma)
    for wrong in (Curriculum(1.0 - peak + 0.01, gamma), Exponential(0.0, peak, gamma), Curriculum(peak, gamma * 1.01)):
        with pytest.raises(AssertionError, match=r"step \d+ of \d+"):
            walk_against_morerio(wrong, peak, gamma)
    assert Curriculum(peak) == Curriculum(peak, 10.0), "the paper's 10 / T"


# Exponential: any gamma.


@pytest.mark.parametrize("gamma", [1e-12, 1e-3, 1.0, 40.0, 1e3, 1e308])
def test_exponential_holds_for_every_gamma(gamma: float) -> None:
    for sign in (1.0, -1.0):
        for first, last in ((0.0, 0.7), (0.7, 0.0)):
            curve = Exponential(first, last, gamma=sign * gamma)
            values = [value for _, value in curve.samples()]
            assert (values[0], values[-1]) == (first, last)
            assert values == sorted(values, reverse=first > last)
    forwards, backwards = Exponential(0.1, 0.7, gamma), Exponential(0.7, 0.1, -gamma)
    for progress, value in forwards.samples():
        assert backwards(1.0 - progress) == pytest.approx(value, abs=1e-15)


def test_exponential_becomes_a_straight_line_for_a_small_gamma() -> None:
    for progress, value in Exponential(0.1, 0.7, gamma=1e-14).samples():
        assert value == pytest.approx(Linear(0.1, 0.7)(progress), abs=1e-14)


def test_the_formula_as_it_is_written_does_not_hold_for_every_gamma() -> None:
    def naive(progress: float, gamma: float) -> float:
        return (1 - math.exp(-gamma * progress)) / (1 - math.exp(-gamma))

    with pytest.raises(OverflowError):
        naive(0.5, -1e3)
    assert abs(naive(0.3, 1e-15) - 0.3) > 0.01


# Boundaries: on the very step that the user wrote.


@pytest.mark.parametrize("total", [3, 10, 49])
def test_every_boundary_falls_on_its_step(total: int) -> None:
    stairs = Piecewise([Linear(k, k + 0.5) for k in range(total)], [k / total for k in range(1, total)])
    for k in range(1, total):
        assert stairs(k / total) == k, "the next schedule, at its progress 0"
        assert stairs(math.nextafter(k / total, 0.0)) == pytest.approx(k - 0.5)
    if total == 49:
        assert any(math.floor(k / total * total) != k for k in range(total)), "a count in floats would be wrong"


@pytest.mark.parametrize(("total", "begin", "end"), [(10, 5, 10), (10, 2, 7), (12, 3, 8), (100, 10, 70)])
def test_every_boundary_within_a_stretch_falls_on_its_step(total: int, begin: int, end: int) -> None:
    count = min(end - begin, 16)
    own = [k / (end - begin) for k in range(1, count)]
    inner = Piecewise([Linear(k, k + 0.5) for k in range(count)], own)
    edges = [edge / total for edge in (begin, end) if edge < total]
    parts: list[float | Schedule] = [100.0, inner, 100.0]
    outer = Piecewise(parts[: len(edges) + 1], edges)
    for k in range(count):
        assert outer((begin + k) / total) == k
    naive = [((begin + k) / total - begin / total) / (end / total - begin / total) for k in range(1, count)]
    assert any(rounded < boundary for rounded, boundary in zip(naive, own, strict=True)), "floats would be late"


@pytest.mark.parametrize("cycles", [3, 10, 49])
def test_every_cycle_begins_and_turns_on_its_step(cycles: int) -> None:
    saw = Cyclic(0.1, 0.7, cycles, shape="sawtooth")
    waves = [Cyclic(0.1, 0.7, cycles), Cyclic(0.1, 0.7, cycles, shape="cosine")]
    for steps_per_cycle in (1, 2, 30):
        total = cycles * steps_per_cycle
        for cycle in range(cycles):
            assert saw(cycle * steps_per_cycle / total) == 0.1
            assert [wave(cycle * steps_per_cycle / total) for wave in waves] == [0.1, 0.1]
            if steps_per_cycle > 1:
                assert [wave((cycle + 0.5) * steps_per_cycle / total) for wave in waves] == [0.7, 0.7]
    if cycles == 49:
        assert any(k / cycles * cycles % 1 for k in range(cycles)), "floats would be late"


class Witness(Schedule):
    """Remembers with what it was asked."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def __call__(self, progress: float) -> float:
        self.seen.append(progress)
        return 0.0


def test_the_progress_of_a_part_never_leaves_the_run() -> None:
    generator = random.Random(0)
    for _ in range(10):
        boundaries = sorted(generator.random() for _ in range(2))
        parts = [Witness() for _ in range(3)]
        schedule = Piecewise(parts, boundaries)
        for edge in boundaries:
            for progress in (edge, math.nextafter(edge, 0.0), math.nextafter(edge, 1.0)):
                schedule(progress)
        for progress in (generator.random() for _ in range(100)):
            schedule(progress)
        for part in parts:
            assert min(part.seen) == 0.0
            assert max(part.seen) == 1.0
            assert all(type(progress) is float for progress in part.seen)


def test_numbers_that_are_no_simple_fractions_are_taken_as_they_are() -> None:
    before, after = math.nextafter(0.3, 0.0), math.nextafter(0.3, 1.0)
    schedule = Piecewise([0.1, Linear(0.2, 1.0)], [after])
    assert schedule(0.3) == 0.1
    assert schedule(after) == 0.2
    line = Piecewise([Linear(0.0, 1.0), 0.0], [0.6])
    assert line(before) < line(0.3) < line(after)
    assert line(math.pi / 6) == pytest.approx(math.pi / 3.6, abs=1e-15)
    assert Cyclic(0.0, 1.0, cycles=2)(Fraction(1, 8)) == 0.5  # type: ignore[arg-type]


# Sampling finds what lies in a short stretch.


def naive_peak(schedule: Schedule) -> float:
    return max(schedule(step / 256) for step in range(257))


@pytest.mark.parametrize(
    ("schedule", "peak"),
    [
        (Piecewise([0.1, 1.2, 0.1], [0.501, 0.502]), 1.2),
        (Piecewise([0.1, Linear(0.5, 1.2), 0.1], [0.501, 0.502]), 1.2),
        (Piecewise([Linear(0.0, 1.001), 0.1], [0.3]), 1.001),
        (Piecewise([0.1, Piecewise([Linear(0.0, 1.001), 0.1], [0.3])], [0.7]), 1.001),
        (Piecewise([0.1, Cyclic(0.0, 1.2, cycles=20), 0.1], [0.501, 0.502]), 1.2),
        (Cyclic(0.0, 1.2, cycles=256), 1.2),
        (Cyclic(0.0, 1.2, cycles=256 * 4000, shape="cosine"), 1.2),
    ],
    ids=repr,
)
def test_samples_find_a_peak_that_even_spacing_misses(schedule: Schedule, peak: float) -> None:
    assert max(value for _, value in schedule.samples()) == pytest.approx(peak, abs=1e-12)
    assert naive_peak(schedule) < peak - 1e-4
    with pytest.raises(ValueError, match=r"^Expected `rate` to give probabilities in \[0, 1\], but got 1\."):
        DropoutScheduler(rate=schedule)


class Unchecked(Schedule):
    """Is no dataclass, so nothing has checked it, and fails in its middle only."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        return "Unchecked()"

    def __call__(self, progress: float) -> float:
        return self.value if 0.4 < progress < 0.41 else 0.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.1, None])
def test_a_part_that_would_fail_late_fails_at_once(value: Any) -> None:
    for build in (lambda part: part, lambda part: Piecewise([0.1, part], [0.9])):
        with pytest.raises(ValueError, match="finite values of at least 0, but got"):
            Piecewise([0.1, build(Unchecked(value)), 0.1], [0.501, 0.502])


# Piecewise as a value.


def test_a_piecewise_is_one_value_however_it_was_written() -> None:
    schedule = Piecewise((Constant(0.1), Linear(0.1, 0.5), Constant(0.0)), (0.25, 0.75))
    third: Any = np.int64(0)
    edge: Any = np.float32(0.75)
    twins = [
        Piecewise([0.1, Linear(0.1, 0.5), 0], [0.25, 0.75]),
        Piecewise([np.float64(0.1), Linear(0.1, 0.5), third], [np.float64(0.25), edge]),
        Piecewise([0.1, Linear(0.1, 0.5), 0.0], OmegaConf.create([0.25, 0.75])),
        dataclasses.replace(schedule),
    ]
    for twin in twins:
        assert twin == schedule
        assert hash(twin) == hash(schedule)
        assert repr(twin) == repr(schedule)
        assert isinstance(twin.schedules, tuple)
        assert isinstance(twin.boundaries, tuple)
    assert Piecewise(OmegaConf.create([0.1, 0.2]), [0.5]) == Piecewise([0.1, 0.2], [0.5])
    assert Piecewise([0.1, 0.2], [0.5]) != Piecewise([0.1, 0.2], [0.4])


NESTED = """
callback:
  rate:
    class_path: lightning_dropout.schedules.Piecewise
    init_args:
      schedules:
        - class_path: lightning_dropout.schedules.Linear
          init_args: {start: 0, end: 0.2}
        - 0.2
        - class_path: lightning_dropout.Piecewise
          init_args:
            schedules:
              - class_path: lightning_dropout.Cyclic
                init_args: {start: 0.2, end: 0, cycles: 3, shape: cosine}
              - 0
            boundaries: [0.5]
      boundaries: [0.1, 0.6]
"""


def test_the_command_line_of_lightning_builds_nested_schedules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # the name that older versions know, too
    config = tmp_path / "config.yaml"
    config.write_text(NESTED)
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(DropoutScheduler, "callback")
    built = parser.instantiate_classes(parser.parse_args([f"--config={config}"]))
    waves = Piecewise([Cyclic(0.2, 0.0, 3, shape="cosine"), 0.0], boundaries=[0.5])
    expected = Piecewise([Linear(0.0, 0.2), 0.2, waves], boundaries=[0.1, 0.6])
    assert [each.schedule for each in built.callback._plan] == [expected]


# Figures.


def line_of(schedule: Schedule) -> tuple[list[float], list[float]]:
    _, axes = schedule.plot()
    (line,) = axes.lines
    return np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist()


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_the_figure_shows_the_schedule(name: str) -> None:
    schedule = CLOSED_FORMS[name][0]
    figure, axes = schedule.plot()
    assert isinstance(figure, Figure)
    assert figure.axes == [axes]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("fraction of the run", "value")
    assert axes.get_title() == repr(schedule)
    xs, ys = line_of(schedule)
    assert (xs[0], xs[-1]) == (0.0, 1.0)
    assert ys == [schedule(x) for x in xs]
    assert axes.get_ylim()[0] <= 0.0, "no cut axis"


@pytest.mark.parametrize(
    ("schedule", "count", "width"),
    [
        (Late(0.4, begin=0.3), 1, 1 / 256),
        (Early(0.4, until=0.7, shape="constant"), 1, 1 / 256),
        (Piecewise([0.1, 0.3, 0.1], [0.3, 0.301]), 2, 1e-15),
        (Piecewise([0.1, Piecewise([0.3, 0.1], [0.3]), 0.3], [0.3, 0.6]), 3, 1e-15),
        (Cyclic(0.1, 0.4, cycles=9, shape="sawtooth"), 8, 1e-15),
    ],
    ids=repr,
)
def test_a_jump_is_drawn_as_a_jump(schedule: Schedule, count: int, width: float) -> None:
    xs, ys = line_of(schedule)
    jumps = [xs[i + 1] - xs[i] for i in range(len(xs) - 1) if abs(ys[i + 1] - ys[i]) > 0.15]
    assert len(jumps) == count
    assert max(jumps) <= width, "not as a slope"


def test_very_many_cycles_are_drawn_over_the_whole_run() -> None:
    xs, ys = line_of(Cyclic(0.1, 0.4, cycles=256 * 40))
    assert len(xs) < 3000
    for tenth in range(10):
        values = [y for x, y in zip(xs, ys, strict=True) if tenth <= 10 * x < tenth + 1]
        assert (min(values), max(values)) == (0.1, 0.4)


def test_a_figure_is_drawn_on_given_axes_and_changes_nothing_else(tmp_path: Path) -> None:
    figure = Figure()
    left, right = figure.subplots(1, 2)
    settings = dict(mpl.rcParams)
    assert Constant(0.1).plot(right) == (figure, right)
    assert Linear(0.0, 0.7).plot(ax=right) == (figure, right)
    assert not left.lines
    assert [line.get_label() for line in right.lines] == ["Constant(value=0.1)", "Linear(start=0.0, end=0.7)"]
    assert right.get_ylim()[1] >= 0.7, "both fit"
    figure.savefig(tmp_path / "both.png")
    assert (tmp_path / "both.png").stat().st_size > 1000
    assert dict(mpl.rcParams) == settings


def test_schedules_load_nothing_heavy_and_draw_without_pyplot() -> None:
    code = """
import sys
from lightning_dropout.schedules import Linear, Piecewise
schedule = Piecewise([Linear(0, 1), 0.5], [0.5])
print([m for m in ("torch", "lightning", "matplotlib", "numpy") if m in sys.modules])
schedule.plot()
print([m for m in ("torch", "lightning", "matplotlib.pyplot") if m in sys.modules])
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["[]", "[]"]


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
        Late(one, begin=zero, shape="linear"),
        Exponential(zero, one, gamma=one),
        Exponential(zero, one, gamma=-one),
        Curriculum(one, gamma=one),
        Cyclic(zero, one, cycles=2),
        Cyclic(zero, one, cycles=np.int64(2), shape="cosine"),  # type: ignore[arg-type]
        Cyclic(zero, one, cycles=2, shape="sawtooth"),
        Piecewise([one, Linear(zero, one)], boundaries=[one / 2]),
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


@pytest.mark.parametrize("value", ["abc", "0.5", None, True, math.nan, [0.5], np.array([0.5]), 1j], ids=repr)
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
        (lambda: Exponential(value, 0.1), "start"),
        (lambda: Exponential(0.1, value), "end"),
        (lambda: Exponential(0.1, 0.2, gamma=value), "gamma"),
        (lambda: Curriculum(value), "peak"),
        (lambda: Curriculum(0.1, gamma=value), "gamma"),
        (lambda: Cyclic(value, 0.1, cycles=1), "start"),
        (lambda: Cyclic(0.1, value, cycles=1), "end"),
    ]:
        with pytest.raises(ValueError, match=rf"^Expected `{field}` of \w+ to be a number, but got "):
            build()


@pytest.mark.parametrize("value", [-0.1, math.inf, -math.inf])
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
        lambda: Late(value, begin=0.9, shape="linear"),
        lambda: Exponential(value, 0.1),
        lambda: Exponential(0.1, value),
        lambda: Curriculum(value),
        lambda: Cyclic(value, 0.1, cycles=300),
        lambda: Cyclic(0.1, value, cycles=300),
        lambda: Cyclic(0.1, value, cycles=300, shape="sawtooth"),
    ]:
        with pytest.raises(ValueError, match=r"^Expected `\w+\(.*\)` to give finite values of at least 0, but got "):
            build()


@pytest.mark.parametrize("until", [0.0, -0.1, 1.1, 50])
def test_early_refuses_an_end_outside_the_run(until: float) -> None:
    with pytest.raises(ValueError, match=r'`until` .* in \(0, 1\], but got .*; epochs belong on the callback.*"50ep"'):
        Early(0.5, until=until)


@pytest.mark.parametrize("begin", [1.0, -0.1, 50])
def test_late_refuses_a_begin_outside_the_run(begin: float) -> None:
    with pytest.raises(ValueError, match=r'`begin` .* in \[0, 1\), but got .*; epochs belong on the callback.*"50ep"'):
        Late(0.5, begin=begin)


@pytest.mark.parametrize("shape", ["square", "", None, 1, True])
def test_an_unknown_shape_is_refused(shape: Any) -> None:
    with pytest.raises(ValueError, match=r'`shape` to be "linear" or "constant", but got '):
        Early(0.5, until=0.5, shape=shape)
    with pytest.raises(ValueError, match=r'`shape` to be "constant" or "linear", but got '):
        Late(0.5, begin=0.5, shape=shape)
    with pytest.raises(ValueError, match=r'`shape` to be "triangular" or "cosine" or "sawtooth", but got '):
        Cyclic(0.5, 0.0, cycles=2, shape=shape)


@pytest.mark.parametrize("gamma", [0, 0.0, math.inf, -math.inf])
def test_a_gamma_that_bends_nothing_is_refused(gamma: float) -> None:
    with pytest.raises(
        ValueError, match=r"`gamma` to be finite and not 0, but got .*; for a straight line use `Linear`"
    ):
        Exponential(0.0, 0.5, gamma=gamma)


@pytest.mark.parametrize("gamma", [0, -1.0, math.inf, -math.inf])
def test_a_curriculum_that_never_gets_harder_is_refused(gamma: float) -> None:
    with pytest.raises(ValueError, match=r"`gamma` to be above 0 and finite, but got .*`Exponential`"):
        Curriculum(0.5, gamma=gamma)


@pytest.mark.parametrize("cycles", [0, -1, 2.0, 2.5, True, "2", None, math.nan])
def test_a_number_of_cycles_that_is_no_whole_number_is_refused(cycles: Any) -> None:
    with pytest.raises(ValueError, match=r"`cycles` to be a whole number of at least 1, but got .*`cycles=4`"):
        Cyclic(0.0, 0.5, cycles=cycles)


@pytest.mark.parametrize(
    ("schedules", "boundaries", "message"),
    [
        ("0.1", [], r"`schedules` to be a list, but got '0.1'; e.g. `schedules=\[Linear"),
        (Constant(0.1), [], r"`schedules` to be a list, but got Constant\(value=0.1\)"),
        ({0.1, 0.2}, [0.5], "`schedules` to be a list, but got {"),
        ([0.1, 0.2], 0.5, r"`boundaries` to be a list, but got 0.5; e.g. `boundaries=\[0.5\]`"),
        ([0.1, 0.2], "5", "`boundaries` to be a list, but got '5'"),
        ([0.1, "0.2"], [0.5], "`schedules` to hold schedules and numbers, but got '0.2'"),
        ([0.1, True], [0.5], "`schedules` to hold schedules and numbers, but got True"),
        ([0.1, None], [0.5], "`schedules` to hold schedules and numbers, but got None"),
        ([0.1, Linear], [0.5], "`schedules` to hold schedules and numbers, but got <class"),
        ([{"start": 0.1, "end": 0.2}], [], "`schedules` to hold schedules and numbers, but got {.*`_convert_: all`"),
        ([0.1, math.nan], [0.5], "`value` of Constant to be a number, but got nan"),
        ([0.1, -0.1], [0.5], "to give finite values of at least 0, but got -0.1"),
        ([], [], "one of `boundaries` between every two of `schedules`, but got 0 for 0 schedules"),
        ([0.1, 0.2, 0.3], [0.5], "`boundaries` between every two of `schedules`, but got 1 for 3 schedules"),
        ([0.1], [0.5], "`boundaries` between every two of `schedules`, but got 1 for 1 schedules"),
        ([0.1, 0.2], [0, 0.5, 1], "but got 3 for 2 schedules; the start and the end of the run are no boundaries"),
        ([0.1, 0.2], [0.0], r"fractions of the run in \(0, 1\), each above the one before, but got 0.0 in \[0.0\]"),
        ([0.1, 0.2], [1.0], r"`boundaries` .* but got 1.0 in \[1.0\]"),
        ([0.1, 0.2], [50], r'`boundaries` .* but got 50 in \[50\]; epochs belong on the callback.*"50ep"'),
        ([0.1, 0.2], [math.nan], r"`boundaries` .* but got nan"),
        ([0.1, 0.2], [True], r"`boundaries` .* but got True"),
        ([0.1, 0.2], ["0.5"], r"`boundaries` .* but got '0.5'"),
        ([0.1, 0.2, 0.3], [0.5, 0.5], r"`boundaries` .* but got 0.5 in \[0.5, 0.5\]"),
        ([0.1, 0.2, 0.3], [0.7, 0.5], r"`boundaries` .* but got 0.5 in \[0.7, 0.5\]"),
    ],
)
def test_what_is_no_sequence_of_schedules_is_refused(schedules: Any, boundaries: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^Expected .*{message}"):
        Piecewise(schedules, boundaries)


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


def test_a_schedule_that_raises_says_where() -> None:
    @dataclass(frozen=True)
    class Hyperbola(Schedule):
        def __call__(self, progress: float) -> float:
            return 0.1 / (1.0 - progress)

    with pytest.raises(ValueError, match="to have a value at progress 1, but got ZeroDivisionError: "):
        Hyperbola()

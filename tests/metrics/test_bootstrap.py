"""The interval is that of scipy, holds the truth as often as it says, and is narrow because samples are paired."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from lightning_dropout.metrics.bootstrap import Difference, paired_bootstrap


def normal(size: int, seed: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def test_it_is_what_scipy_finds() -> None:
    values, others = normal(300, 0).exp(), normal(300, 1).exp() - 0.2
    found = paired_bootstrap(values, others, num_resamples=20_000)
    expected = stats.bootstrap(
        ((values - others).numpy(),), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    width = float(expected.high - expected.low)
    assert found.mean == pytest.approx(float((values - others).double().mean()))
    assert found.low == pytest.approx(float(expected.low), abs=0.03 * width)
    assert found.high == pytest.approx(float(expected.high), abs=0.03 * width)


def coverage(interval: Any) -> float:
    """Return how often an interval holds the difference 0.5 of pairs that have much in common."""
    hits = 0
    for seed in range(300):
        common = 5 * normal(80, seed)
        values, others = common + 0.5 + normal(80, 1000 + seed), common + normal(80, 2000 + seed)
        low, high = interval(values, others)
        hits += low < 0.5 < high
    return hits / 300


def unpaired(values: torch.Tensor, others: torch.Tensor) -> tuple[float, float]:
    shuffled = others[torch.randperm(len(others), generator=torch.Generator().manual_seed(0))]
    return paired_bootstrap(values, shuffled, num_resamples=300)[1:]


def too_narrow(values: torch.Tensor, others: torch.Tensor) -> tuple[float, float]:
    return paired_bootstrap(values, others, num_resamples=300, confidence=0.8)[1:]


def test_it_holds_the_truth_as_often_as_it_says() -> None:
    def holds(interval: Any) -> bool:
        return abs(coverage(interval) - 0.95) < 0.035  # 2.8 standard deviations of 300 trials

    assert holds(lambda values, others: paired_bootstrap(values, others)[1:])
    assert not holds(unpaired)
    assert not holds(too_narrow)


def test_large_samples_come_in_parts_and_in_the_same_law() -> None:
    values = normal(600_000, 0)
    found = paired_bootstrap(values, torch.zeros_like(values), num_resamples=20)
    assert found.low < found.mean < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 / math.sqrt(600_000), rel=0.5)


def test_the_seed_repeats_it_and_no_generator_moves() -> None:
    state = torch.get_rng_state()
    first = paired_bootstrap(normal(50, 0), normal(50, 1))
    assert first == paired_bootstrap(normal(50, 0), normal(50, 1))
    assert first != paired_bootstrap(normal(50, 0), normal(50, 1), seed=1)
    torch.rand(1)
    torch.set_rng_state(state)
    paired_bootstrap(normal(50, 0), normal(50, 1))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("low", "high", "sign"), [(0.1, 0.2, 1), (-0.2, -0.1, -1), (-0.1, 0.1, 0), (0.0, 0.1, 0), (math.nan, math.nan, 0)]
)
def test_sign(low: float, high: float, sign: int) -> None:
    assert Difference(0.0, low, high).sign == sign


@pytest.mark.parametrize("values", [torch.zeros(0), torch.tensor([1.0, math.nan]), torch.tensor([1.0, math.inf])])
def test_nothing_to_resample_is_nan(values: torch.Tensor) -> None:
    assert all(map(math.isnan, paired_bootstrap(values, torch.zeros_like(values))))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3), torch.zeros(4)), r"the shapes \(3,\) and \(4,\)"),
        ((torch.zeros(3, 1), torch.zeros(3, 1)), r"one score a sample, but got the shapes \(3, 1\)"),
    ],
)
def test_shapes_are_checked(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paired_bootstrap(*arguments)


@pytest.mark.parametrize(
    ("name", "value"), [("num_resamples", 0), ("num_resamples", 2.0), ("confidence", 1.0), ("confidence", 0.0)]
)
def test_arguments_are_checked(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"`{name}`.*but got {value}"):
        paired_bootstrap(torch.zeros(2), torch.zeros(2), **{name: value})


def test_many_samples_have_the_interval_that_resampling_would_give(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.rand(3000, generator=torch.Generator().manual_seed(0)) ** 3
    drawn = paired_bootstrap(values, torch.zeros(3000))
    monkeypatch.setattr("lightning_dropout.metrics.bootstrap._MOST_DRAWN", 2000)
    known = paired_bootstrap(values, torch.zeros(3000))
    assert known.mean == drawn.mean
    assert known != drawn
    assert known[1:] == pytest.approx(drawn[1:], rel=0.01)

"""Coverage, width and calibration of quantiles against scipy, and on predictions whose calibration is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from lightning_dropout.metrics import (
    IntervalCoverage,
    IntervalWidth,
    QuantileCalibrationError,
    gaussian_quantiles,
)
from lightning_dropout.sampling.prediction import MCPrediction

LEVELS = QuantileCalibrationError().levels


def value(metric: Any, *inputs: Any) -> float:
    metric.update(*(torch.as_tensor(values) for values in inputs))
    return metric.compute().item()


def standard_normal(n: int = 100_000) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class OpenEnds(IntervalCoverage):
    """Planted bug: the ends do not belong to the interval."""

    def update(self, lower: Tensor, upper: Tensor, target: Tensor) -> None:
        self._take((lower < target) & (target < upper))


class StrictlyBelow(QuantileCalibrationError):  # noqa: N818  (no exception)
    """Planted bug: a target at the quantile does not count."""

    def update(self, quantiles: Tensor, target: Tensor) -> None:
        self.below += (target < quantiles).double().flatten(1).sum(1)
        self.count += target.numel()


class TestIntervals:
    """How often and how wide."""

    @pytest.mark.parametrize("level", [0.5, 0.9])
    def test_true_intervals_cover_as_promised(self, level: float) -> None:
        target = standard_normal()
        lower, upper = (torch.full_like(target, norm.ppf(q)) for q in ((1 - level) / 2, (1 + level) / 2))
        # five standard errors of a share
        assert value(IntervalCoverage(), lower, upper, target) == pytest.approx(level, abs=5 * 0.5 / math.sqrt(100_000))
        assert value(IntervalWidth(), lower, upper) == pytest.approx(2 * norm.ppf((1 + level) / 2))

    def test_ends_belong_to_the_interval(self) -> None:
        ends = [0.0, 0.0], [1.0, 1.0], [0.0, 1.0]
        assert value(IntervalCoverage(), *ends) == 1
        assert value(OpenEnds(), *ends) == 0

    def test_unbounded_intervals_cover_all(self) -> None:
        assert value(IntervalCoverage(), [-math.inf], [math.inf], [3.0]) == 1
        assert value(IntervalWidth(), [-math.inf], [math.inf]) == math.inf

    @pytest.mark.parametrize("place", [0, 1, 2])
    def test_a_nan_anywhere_is_no_miss(self, place: int) -> None:
        inputs = [torch.zeros(2), torch.ones(2), torch.zeros(2)]
        inputs[place][1] = math.nan
        assert math.isnan(value(IntervalCoverage(), *inputs))

    def test_both_in_a_collection(self) -> None:
        both = MetricCollection([IntervalCoverage(), IntervalWidth()])
        both.update(lower=torch.zeros(2), upper=torch.ones(2), target=torch.tensor([0.5, 2.0]))
        assert both.compute() == {"IntervalCoverage": 0.5, "IntervalWidth": 1.0}

    @pytest.mark.parametrize("metric", [IntervalCoverage, IntervalWidth])
    def test_ends_in_the_wrong_order(self, metric: Any) -> None:
        inputs = [torch.tensor([0.0, 2.0]), torch.tensor([1.0, -1.0]), torch.zeros(2)]
        with pytest.raises(ValueError, match="at or below the upper ones, but got 2 above -1; pass them in this order"):
            metric().update(*inputs[: 3 if metric is IntervalCoverage else 2])


class TestQuantiles:
    """Levels against shares."""

    def test_gaussian_quantiles_equal_scipy(self) -> None:
        mean, variance = torch.randn(3, 2), torch.rand(3, 2)
        ours = gaussian_quantiles(mean, variance, LEVELS)
        expected = norm.ppf(np.array(LEVELS)[:, None, None], mean.double(), variance.double().sqrt())
        np.testing.assert_allclose(ours, expected, rtol=1e-10)

    def test_true_quantiles_are_calibrated(self) -> None:
        target = standard_normal()
        quantiles = gaussian_quantiles(torch.zeros_like(target), torch.ones_like(target), LEVELS)
        assert value(QuantileCalibrationError(), quantiles, target) < 5 * 0.5 / math.sqrt(len(target))

    @pytest.mark.parametrize(("shift", "scale"), [(0.5, 1.0), (0.0, 0.5), (0.0, 2.0), (-1.0, 3.0)])
    def test_wrong_ones_are_off_by_the_closed_form(self, shift: float, scale: float) -> None:
        target = standard_normal()
        quantiles = gaussian_quantiles(torch.full_like(target, shift), torch.full_like(target, scale**2), LEVELS)
        levels = np.array(LEVELS)
        expected = np.abs(norm.cdf(shift + scale * norm.ppf(levels)) - levels).mean()
        assert value(QuantileCalibrationError(), quantiles, target) == pytest.approx(expected, abs=0.005)

    def test_table_explains_the_number(self) -> None:
        generator = np.random.default_rng(0)
        quantiles, target = np.sort(generator.normal(size=(3, 50, 2)), axis=0), generator.normal(size=(50, 2))
        metric = QuantileCalibrationError(levels=[0.2, 0.5, 0.7])
        number = value(metric, quantiles, target)
        expected = (target <= quantiles).mean((1, 2))
        table = metric.table()
        np.testing.assert_allclose(table.observed, expected, rtol=1e-6)
        np.testing.assert_allclose(table.level, [0.2, 0.5, 0.7], rtol=1e-6)
        assert number == pytest.approx(np.abs(expected - [0.2, 0.5, 0.7]).mean(), rel=1e-6)

    def test_a_target_at_the_quantile_is_not_above_it(self) -> None:
        on_it = torch.tensor([[1.0], [2.0]]), torch.tensor([1.0])
        assert value(QuantileCalibrationError([0.25, 0.9]), *on_it) == pytest.approx((0.75 + 0.1) / 2)
        assert value(StrictlyBelow([0.25, 0.9]), *on_it) == pytest.approx((0.25 + 0.1) / 2)

    def test_takes_the_quantiles_of_a_prediction(self) -> None:
        passes = torch.randn(50, 8, 1, generator=torch.Generator().manual_seed(0))
        prediction = MCPrediction("regression", 50, passes.mean(0), passes.var(0), passes.mean(0), samples=passes)
        middle = passes.median(0).values
        metric = QuantileCalibrationError([0.25, 0.75])
        assert value(metric, prediction.quantile(metric.levels), middle) == pytest.approx(0.25)

    def test_table_is_of_all_ranks(self, as_ranks: Callable[[list[Metric]], list[Metric]]) -> None:
        ranks = [QuantileCalibrationError([0.5]), QuantileCalibrationError([0.5])]
        ranks[0].update(torch.zeros(1, 3), torch.tensor([-1.0, -1.0, 1.0]))
        ranks[1].update(torch.zeros(1, 1), torch.tensor([1.0]))
        for rank in as_ranks([*ranks]):
            assert isinstance(rank, QuantileCalibrationError)
            assert rank.table().observed == 0.5

    @pytest.mark.parametrize("levels", [[], [0.0, 0.5], [0.5, 1.0], [0.9, 0.1], [0.5, 0.5], [math.nan]])
    def test_levels_out_of_range(self, levels: list[float]) -> None:
        with pytest.raises(ValueError, match=r"Expected `levels` to rise strictly within \(0, 1\), but got"):
            QuantileCalibrationError(levels)

    def test_wrong_inputs_are_named(self) -> None:
        metric = QuantileCalibrationError([0.1, 0.9])
        with pytest.raises(ValueError, match=r"Expected `quantiles` to have the shape \(2, 5\), .* but got \(5, 2\)"):
            metric.update(torch.zeros(5, 2), torch.zeros(5))
        with pytest.raises(ValueError, match="sort quantiles that cross"):
            metric.update(torch.tensor([[1.0], [0.0]]), torch.zeros(1))

"""Whether predicted intervals and quantiles hold what they promise, and how wide they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_dropout.metrics.exact_metric import ExactMetric, SampleMean, check_shapes
from lightning_dropout.sampling.moments import wide

__all__ = ["IntervalCoverage", "IntervalWidth", "QuantileCalibration", "QuantileCalibrationError", "gaussian_quantiles"]

_LEVELS = tuple(step / 20 for step in range(1, 20))


def gaussian_quantiles(mean: Tensor, variance: Tensor, levels: Sequence[float]) -> Tensor:
    """Return the quantiles ``mean + z(level) * sqrt(variance)`` of Gaussians; ``z`` inverts the normal distribution.

    Args:
        mean: Of each Gaussian, in the target's units.
        variance: Of each Gaussian, in squared units, at least 0.
        levels: Probabilities in (0, 1), such as 0.05 and 0.95 for the ends of a 90 % interval.

    Shape:
        ``mean``, ``variance``: ``(N, ...)``; the result ``(len(levels), N, ...)``, float64.

    Example:
        >>> gaussian_quantiles(torch.tensor([10.0]), torch.tensor([4.0]), [0.025, 0.5, 0.975]).flatten()
        tensor([ 6.0801, 10.0000, 13.9199], dtype=torch.float64)
    """
    check_shapes(mean=mean, variance=variance)
    mean = wide(mean)
    scores = torch.special.ndtri(torch.tensor(levels, dtype=mean.dtype, device=mean.device))
    quantiles: Tensor = mean + scores.reshape(-1, *[1] * mean.ndim) * wide(variance).sqrt()
    return quantiles


class IntervalCoverage(SampleMean):
    """Share of the targets that lie in their interval, both ends included; of a 90 % interval it should be 0.9.

    Averaged over samples and outputs. A NaN among the values makes the result NaN.

    Args:
        kwargs: Of ``torchmetrics.Metric``.

    Shape:
        ``update(lower, upper, target)``: all ``(N, ...)``. The result is a scalar.

    Raises:
        ValueError: By ``update``, if shapes differ, or if a lower end lies above the upper one in the first batch.

    Example:
        >>> metric = IntervalCoverage()
        >>> metric.update(torch.tensor([0.0, 0.0]), torch.tensor([1.0, 1.0]), torch.tensor([1.0, 2.0]))
        >>> metric.compute()
        tensor(0.5000)
    """

    higher_is_better = None
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def update(self, lower: Tensor, upper: Tensor, target: Tensor) -> None:
        """Take in a batch."""
        check_shapes(lower=lower, upper=upper, target=target)
        self._check_first(_check_order, lower, upper)
        unknown = lower.isnan() | upper.isnan() | target.isnan()  # a comparison with NaN is only false
        self._take(wide((lower <= target) & (target <= upper)).masked_fill(unknown, torch.nan))


class IntervalWidth(SampleMean):
    """Mean width of intervals, in the target's units; lower is better at equal coverage.

    Averaged over samples and outputs. A NaN among the values makes the result NaN. In a ``MetricCollection`` beside
    :class:`IntervalCoverage`, call ``update(lower=..., upper=..., target=...)``: each takes what it needs.

    Args:
        kwargs: Of ``torchmetrics.Metric``.

    Shape:
        ``update(lower, upper)``: both ``(N, ...)``. The result is a scalar.

    Raises:
        ValueError: By ``update``, if shapes differ, or if a lower end lies above the upper one in the first batch.

    Example:
        >>> metric = IntervalWidth()
        >>> metric.update(torch.tensor([0.0, -1.0]), torch.tensor([1.0, 4.0]))
        >>> metric.compute()
        tensor(3.)
    """

    higher_is_better = False
    plot_lower_bound = 0.0

    def update(self, lower: Tensor, upper: Tensor) -> None:
        """Take in a batch."""
        check_shapes(lower=lower, upper=upper)
        self._check_first(_check_order, lower, upper)
        self._take(wide(upper) - wide(lower))


@dataclass(frozen=True)
class QuantileCalibration:
    """The table behind a calibration plot of quantiles, each field of shape ``(levels,)``."""

    level: Tensor
    """Nominal probability."""
    observed: Tensor
    """Share of the targets at or below the predicted quantile of this level."""


class QuantileCalibrationError(ExactMetric):
    """Distance between the levels of predicted quantiles and the shares of targets below them; 0 is calibrated.

    With ``observed_q`` the share of targets at or below the predicted quantile of level q, it is the mean of
    ``|observed_q - q|`` over the levels, at most 1. Averaged over samples and outputs first: it says that quantiles are
    right on the whole, not for each input. A NaN among the values makes the result NaN.

    Args:
        levels: Nominal probabilities in (0, 1), rising; default 0.05, 0.1, ..., 0.95.
        kwargs: Of ``torchmetrics.Metric``.

    Shape:
        ``update(quantiles, target)``: ``(len(levels), N, ...)`` and ``(N, ...)``, such as :func:`gaussian_quantiles` of
        a mean and variance, or ``MCPrediction.quantile`` of passes. The result is a scalar.

    Raises:
        ValueError: If ``levels`` are none; by ``update``, if shapes do not fit, or if quantiles fall with their level
            in the first batch.

    Source:
        Kuleshov, Fenner & Ermon, "Accurate Uncertainties for Deep Learning Using Calibrated Regression" (2018),
        arXiv:1807.00263; there with squared distances.

    Example:
        >>> metric = QuantileCalibrationError(levels=(0.25, 0.75))
        >>> metric.update(torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([0.5, 2.0]))
        >>> metric.compute()  # (|0 - 0.25| + |0.5 - 0.75|) / 2
        tensor(0.2500)
        >>> metric.table().observed
        tensor([0.0000, 0.5000])
    """

    higher_is_better = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    below: Tensor
    count: Tensor

    def __init__(self, levels: Sequence[float] = _LEVELS, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        levels = tuple(levels)
        rising = all(low < high for low, high in zip((0, *levels), (*levels, 1), strict=True))
        if not levels or not rising:
            raise ValueError(f"Expected `levels` to rise strictly within (0, 1), but got {levels}; e.g. (0.1, 0.9).")
        self.levels = levels
        self._add_sum("below", len(levels))
        self._add_sum("count")

    def update(self, quantiles: Tensor, target: Tensor) -> None:
        """Take in a batch."""
        wanted = (len(self.levels), *target.shape)
        if quantiles.shape != wanted:
            raise ValueError(
                f"Expected `quantiles` to have the shape {wanted}, one quantile for each of `levels` before the "
                f"shape of `target`, but got {tuple(quantiles.shape)}."
            )
        self._check_first(_check_order, quantiles[:-1], quantiles[1:])
        unknown = quantiles.isnan() | target.isnan()  # a comparison with NaN is only false
        self.below += wide(target <= quantiles).masked_fill(unknown, torch.nan).flatten(1).sum(1)
        self.count += target.numel()

    def compute(self) -> Tensor:
        """Return the error of all samples so far, float32; NaN if there was none."""
        return (self.below / self.count - self._levels()).abs().mean().float()

    def table(self) -> QuantileCalibration:
        """Return the table behind the number, over all ranks: call it on every rank, as ``compute``."""
        with self._over_ranks():
            return QuantileCalibration(level=self._levels().float(), observed=(self.below / self.count).float())

    def _levels(self) -> Tensor:
        return torch.tensor(self.levels, dtype=self.below.dtype, device=self.below.device)


def _check_order(lower: Tensor, upper: Tensor) -> None:
    crossed = (lower > upper).nonzero()
    if len(crossed):
        place = tuple(crossed[0].tolist())
        raise ValueError(
            f"Expected lower ends at or below the upper ones, but got {lower[place].item():.4g} above "
            f"{upper[place].item():.4g}; pass them in this order, and sort quantiles that cross."
        )

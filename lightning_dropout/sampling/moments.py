"""Streaming moments: mean, variance and log-mean-exp of passes that are seen one by one.

Memory does not grow with the number of passes. Everything accumulates in float64 where the device has it: the naive
E[x²] - E[x]² gives negative variances in half precision.
"""

import math

import torch
from torch import Tensor

__all__ = ["LogMeanExp", "Moments", "entropy", "wide"]


def entropy(probabilities: Tensor, dim: int) -> Tensor:
    """Return the Shannon entropy ``-sum p ln p`` over ``dim`` in nats; ``0 ln 0`` is 0.

    Example:
        >>> entropy(torch.tensor([[0.5, 0.5], [1.0, 0.0]]), dim=1)
        tensor([0.6931, 0.0000])
    """
    terms: Tensor = torch.special.entr(probabilities)
    return terms.sum(dim)


def wide(values: Tensor) -> Tensor:
    """Return ``values`` in float64, or float32 on a device without it."""
    return values.to(torch.float32 if values.device.type == "mps" else torch.float64)


class Moments:
    """Running mean and sum of squared deviations of equally shaped tensors.

    Source:
        Welford (1962), "Note on a method for calculating corrected sums of squares and products".

    Example:
        >>> moments = Moments()
        >>> for value in (1.0, 2.0, 6.0):
        ...     moments.update(torch.tensor(value))
        >>> moments.mean.item(), moments.variance().item()
        (3.0, 7.0)
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(())
        self._squares = torch.zeros(())

    def update(self, values: Tensor) -> None:
        """Take in one more tensor."""
        values = wide(values)
        self.count += 1
        if self.count == 1:
            self.mean, self._squares = values.clone(), torch.zeros_like(values)
            return
        deviation = values - self.mean
        self.mean.add_(deviation, alpha=1 / self.count)
        # (x - mean before) (x - mean after), from one of them: the second is this part of the first.
        self._squares.addcmul_(deviation, deviation, value=(self.count - 1) / self.count)

    def variance(self) -> Tensor:
        """Return the unbiased variance (correction 1); NaN from a single tensor, for which it is not defined."""
        if self.count < 2:
            return torch.full_like(self.mean, math.nan)
        return (self._squares / (self.count - 1)).masked_fill_(~self.mean.isfinite(), math.nan)


class LogMeanExp:
    """Running ``ln(mean(exp(x)))``: the logarithm of a mean probability, exact where the probability underflows.

    Args:
        mean: Mean of the ``count`` probabilities that came before, if there were some.
        count: How many they were.

    Example:
        >>> running = LogMeanExp()
        >>> for value in (-1000.0, -1000.0):
        ...     running.update(torch.tensor(value))
        >>> running.value().item()
        -1000.0
    """

    def __init__(self, mean: Tensor | None = None, count: int = 0) -> None:
        self.count = count
        self._log_sum = torch.zeros(()) if mean is None else mean.log() + math.log(count)

    def update(self, logs: Tensor) -> None:
        """Take in one more tensor of logarithms."""
        logs = wide(logs)
        self._log_sum = logs if self.count == 0 else torch.logaddexp(self._log_sum, logs)
        self.count += 1

    def value(self) -> Tensor:
        """Return the logarithm of the mean."""
        return self._log_sum - math.log(self.count)

"""How sure a difference of two means is, of one and the same samples: the paired bootstrap. Pure functions."""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_dropout.metrics.intervals import gaussian_quantiles

__all__ = ["Difference", "paired_bootstrap"]

_MOST_DRAWN = 100_000  # samples; 2000 resamples of a million take minutes
_INDICES = 2**22  # drawn at a time: 32 MiB


class Difference(NamedTuple):
    """A difference of means and its percentile interval.

    Args:
        mean: The difference.
        low: Lower end.
        high: Upper end.
    """

    mean: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """1 or -1 if the interval lies on one side of 0, else 0: the samples do not tell."""
        return int(self.low > 0.0) - int(self.high < 0.0)


def paired_bootstrap(
    values: Tensor, others: Tensor, *, num_resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> Difference:
    """Return ``mean(values - others)`` with a bootstrap interval; both are scores of the same samples.

    Samples are drawn anew, with replacement and in pairs, so what makes a sample hard for both ways cancels. The
    interval says what other test samples could have given, not what another training would have. Of more than 100,000
    samples it is the normal interval, to which the other one converges.

    Args:
        values: Score of each sample, such as its NLL.
        others: Scores of the same samples, by another way.
        num_resamples: How many times, at least 1.
        confidence: Share of the resamples that the interval holds, in (0, 1).
        seed: The interval repeats with it; no generator of the process is touched.

    Shape:
        Both ``(N,)``.

    Returns:
        The difference; all NaN if there is no sample or a value is not finite.

    Raises:
        ValueError: If the shapes differ, or an argument is out of range.

    Source:
        Efron & Tibshirani, "An Introduction to the Bootstrap" (1993), section 13.3.

    Example:
        >>> paired_bootstrap(torch.tensor([3.0, 4.0, 5.0]), torch.tensor([1.0, 2.0, 3.0]))
        Difference(mean=2.0, low=2.0, high=2.0)
    """
    if values.ndim != 1 or values.shape != others.shape:
        raise ValueError(
            f"Expected `values` and `others` to have one score a sample, but got the shapes {tuple(values.shape)} and "
            f"{tuple(others.shape)}; score the same samples in the same order."
        )
    if isinstance(num_resamples, bool) or not isinstance(num_resamples, int) or num_resamples < 1:
        raise ValueError(f"Expected `num_resamples` to be an integer of at least 1, but got {num_resamples!r}.")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"Expected `confidence` to lie in (0, 1), but got {confidence!r}.")
    differences = values.detach().cpu().double() - others.detach().cpu().double()
    if len(differences) == 0 or not bool(differences.isfinite().all()):
        return Difference(torch.nan, torch.nan, torch.nan)
    mean = differences.mean().item()
    tails = [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0]
    if len(differences) > _MOST_DRAWN:  # means of so many are normal, and their spread is known
        low, high = gaussian_quantiles(differences.mean(), differences.var() / len(differences), tails).tolist()
        return Difference(mean, low, high)
    generator = torch.Generator().manual_seed(seed)
    means: list[Tensor] = []
    rows = max(1, _INDICES // len(differences))
    for begin in range(0, num_resamples, rows):
        shape = min(rows, num_resamples - begin), len(differences)
        means.append(differences[torch.randint(len(differences), shape, generator=generator)].mean(1))
    low, high = torch.cat(means).quantile(torch.tensor(tails, dtype=torch.float64)).tolist()
    return Difference(mean, low, high)

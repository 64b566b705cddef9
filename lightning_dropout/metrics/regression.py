"""Scores of predicted Gaussians: how likely they make the targets, alone or mixed over passes, and how narrow they are.

The CRPS of passes is ``torchmetrics.regression.ContinuousRankedProbabilityScore``.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_dropout.metrics.exact_metric import SampleMean, check_shapes
from lightning_dropout.sampling.moments import wide

__all__ = ["GaussianNLL", "MixtureNLL", "Sharpness", "gaussian_nll", "mixture_nll"]

_LEAST_VARIANCE = 1e-30  # torch's own floor of 1e-6 is no small number in small units


def gaussian_nll(mean: Tensor, variance: Tensor, target: Tensor) -> Tensor:
    """Return ``(ln(2 pi variance) + (target - mean)**2 / variance) / 2`` of each element, in nats.

    Args:
        mean: Of the predicted Gaussian, in the target's units.
        variance: Its variance, in squared units, at least 0; raised to 1e-30 where it is less, as where an exponential
            has underflown.
        target: What was observed.

    Shape:
        All ``(N, ...)``, and so is the result, float64.

    Raises:
        ValueError: If shapes differ or a variance is negative.

    Example:
        >>> gaussian_nll(torch.tensor([0.0]), torch.tensor([4.0]), torch.tensor([2.0]))  # (ln(8 pi) + 1) / 2
        tensor([2.1121], dtype=torch.float64)
    """
    check_shapes(mean=mean, variance=variance, target=target)
    _check_variance(variance)
    return F.gaussian_nll_loss(
        wide(mean), wide(target), wide(variance), full=True, reduction="none", eps=_LEAST_VARIANCE
    )


def mixture_nll(means: Tensor, variances: Tensor, target: Tensor) -> Tensor:
    """Return ``-ln(1/T sum_t N(target; means[t], variances[t]))`` of each element, in nats.

    Args:
        means: Of the Gaussians that T passes predict, in the target's units.
        variances: Their variances, at least 0; a constant noise is one number for all: ``noise.expand_as(means)``.
        target: What was observed.

    Shape:
        ``means``, ``variances``: ``(T, N, ...)``; ``target`` and the result ``(N, ...)``, float64. Every element is a
        sample of its own: outputs are taken as independent.

    Raises:
        ValueError: If shapes do not fit or a variance is negative.

    Source:
        Gal & Ghahramani, "Dropout as a Bayesian Approximation" (2016), arXiv:1506.02142.

    Example:
        >>> means = torch.tensor([[0.0], [100.0]])  # two passes of one sample, of which one is far off
        >>> mixture_nll(means, torch.ones(2, 1), torch.tensor([0.0]))  # ln(2 pi) / 2 + ln(2)
        tensor([1.6121], dtype=torch.float64)
    """
    if means.ndim == 0 or len(means) == 0 or means.shape[1:] != target.shape:
        raise ValueError(
            f"Expected `means` to have the shape (T, *{tuple(target.shape)}) with T >= 1 passes in dimension 0 before "
            f"that of `target`, but got {tuple(means.shape)}; a single Gaussian is scored by `GaussianNLL`."
        )
    check_shapes(means=means, variances=variances)
    return math.log(len(means)) - torch.logsumexp(-gaussian_nll(means, variances, target.expand_as(means)), 0)


class GaussianNLL(SampleMean):
    """Mean of ``-ln N(target; mean, variance)`` in nats; a proper score, lower is better.

    Per element ``(ln(2 pi variance) + (target - mean)**2 / variance) / 2``, averaged over samples and outputs. It has
    the target's units in it: in other units it is shifted by the log of their ratio. Variances below 1e-30 count as
    1e-30. A NaN among the values makes the result NaN.

    Args:
        kwargs: Of ``torchmetrics.Metric``.

    Shape:
        ``update(mean, variance, target)``: all ``(N, ...)``. The result is a scalar.

    Raises:
        ValueError: By ``update``, if shapes differ or a variance is negative.

    Example:
        >>> metric = GaussianNLL()
        >>> metric.update(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0]), torch.tensor([0.0, 3.0]))
        >>> metric.compute()  # (ln(2 pi) + (0 + 4) / 2) / 2
        tensor(1.9189)
    """

    higher_is_better = False

    def update(self, mean: Tensor, variance: Tensor, target: Tensor) -> None:
        """Take in a batch."""
        self._take(gaussian_nll(mean, variance, target))


class MixtureNLL(SampleMean):
    """Mean of ``-ln`` of the mixture of the Gaussians that T passes predict, in nats; a proper score, lower is better.

    Per element ``-ln(1/T sum_t N(target; means[t], variances[t]))``, averaged over samples and outputs: exact also
    where every density underflows. :class:`GaussianNLL` of the mixture's mean and variance would score its Gaussian
    approximation. A NaN among the values makes the result NaN.

    Args:
        kwargs: Of ``torchmetrics.Metric``.

    Shape:
        ``update(means, variances, target)``: the first two ``(T, N, ...)``, targets ``(N, ...)``. The result is a
        scalar.

    Raises:
        ValueError: By ``update``, if shapes do not fit or a variance is negative.

    Source:
        Gal & Ghahramani, "Dropout as a Bayesian Approximation" (2016), arXiv:1506.02142.

    Example:
        >>> metric = MixtureNLL()
        >>> metric.update(torch.tensor([[0.0], [2.0]]), torch.ones(2, 1), torch.tensor([1.0]))
        >>> metric.compute()  # both passes are one off: (ln(2 pi) + 1) / 2
        tensor(1.4189)
    """

    higher_is_better = False

    def update(self, means: Tensor, variances: Tensor, target: Tensor) -> None:
        """Take in a batch."""
        self._take(mixture_nll(means, variances, target))


class Sharpness(SampleMean):
    """Root of the mean predicted variance, in the target's units: how narrow predictions are, right or not.

    Lower is better among predictions that are equally calibrated, and says nothing without. A NaN among the variances
    makes the result NaN.

    Args:
        kwargs: Of ``torchmetrics.Metric``.

    Shape:
        ``update(variance)``: ``(N, ...)``. The result is a scalar.

    Raises:
        ValueError: By ``update``, if a variance is negative.

    Source:
        Kuleshov, Fenner & Ermon, "Accurate Uncertainties for Deep Learning Using Calibrated Regression" (2018),
        arXiv:1807.00263, which takes the mean variance without the root.

    Example:
        >>> metric = Sharpness()
        >>> metric.update(torch.tensor([1.0, 7.0]))
        >>> metric.compute()
        tensor(2.)
    """

    higher_is_better = False
    plot_lower_bound = 0.0

    def update(self, variance: Tensor) -> None:
        """Take in a batch."""
        _check_variance(variance)
        self._take(variance)

    def compute(self) -> Tensor:
        """Return the root of the mean over all samples so far, float32; NaN if there was none."""
        return (self.total / self.count).sqrt().float()


def _check_variance(variance: Tensor) -> None:
    if (variance < 0).any():
        raise ValueError(
            f"Expected variances of at least 0, but got {variance.nan_to_num(0.0).min().item():.4g}; take the "
            "exponential of log-variances first."
        )

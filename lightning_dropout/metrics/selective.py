"""Selective prediction: how much better a model gets when it may decline what it is unsure of.

The risk–coverage curve is a pure function of confidences and losses; the metrics are numbers read off it.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_dropout.metrics.ranked_metric import RankedMetric
from lightning_dropout.sampling.moments import wide

__all__ = ["AUGRC", "AURC", "AccuracyAtCoverage", "RiskCoverage", "risk_coverage"]


@dataclass(frozen=True)
class RiskCoverage:
    """The risk–coverage curve of N samples, each field of shape ``(N,)``: the k-th point accepts the k surest."""

    coverage: Tensor
    """Share of the samples that are accepted: ``k / N`` for k from 1 to N."""
    risk: Tensor
    """Mean loss of the accepted samples (selective risk)."""

    @property
    def generalized_risk(self) -> Tensor:
        """Loss of the accepted samples, as a share of all: how often a failure is accepted, ``coverage * risk``."""
        return self.coverage * self.risk


def risk_coverage(confidence: Tensor, loss: Tensor) -> RiskCoverage:
    """Return the mean loss of the k surest samples for every k.

    Samples of one confidence are in no order, so every order of them is taken to be equally likely, and the expected
    curve is returned. It depends on no order of the samples, and is what breaking ties at random costs on average.
    (Sorting alone would let the data set's order decide; accepting only whole groups of ties would leave no point
    between them, where saturated softmaxes tie in masses.)

    Args:
        confidence: Higher is surer; of any range. A NaN has no rank: all risks are NaN.
        loss: What accepting the sample costs: 1 for a wrong prediction and 0 for a right one, or any real number.

    Shape:
        Both ``(N,)``; so are the fields of the result, float64.

    Source:
        El-Yaniv & Wiener, "On the Foundations of Noise-free Selective Classification" (2010).

    Example:
        >>> curve = risk_coverage(torch.tensor([0.9, 0.5, 0.5, 0.1]), torch.tensor([0.0, 1.0, 0.0, 1.0]))
        >>> curve.coverage
        tensor([0.2500, 0.5000, 0.7500, 1.0000], dtype=torch.float64)
        >>> curve.risk  # of the tied two, either may come first
        tensor([0.0000, 0.2500, 0.3333, 0.5000], dtype=torch.float64)
    """
    confidence, order = wide(confidence).sort(descending=True)
    loss = wide(loss)[order]
    _, group, size = confidence.unique_consecutive(return_inverse=True, return_counts=True)  # type: ignore[no-untyped-call]
    # The expected loss at each place of a group of ties is the group's mean.
    means = torch.zeros_like(size, dtype=loss.dtype).index_add_(0, group, loss) / size
    accepted = torch.arange(1, len(loss) + 1, dtype=loss.dtype, device=loss.device)
    risk = means[group].cumsum(0) / accepted
    return RiskCoverage(coverage=accepted / len(loss), risk=risk.masked_fill(confidence.isnan().any(), torch.nan))


class _SelectiveMetric(RankedMetric):
    """Base of the numbers read off the risk–coverage curve of right and wrong predictions."""

    def update(self, confidence: Tensor, right: Tensor) -> None:
        """Take in a batch."""
        self._take(confidence=confidence, right=right)

    def curve(self) -> RiskCoverage:
        """Return the curve behind the number, over all ranks: call it on every rank, as ``compute``."""
        with self._over_ranks():
            return self._curve(self._kept("scores"), self._kept("flags"))

    @staticmethod
    def _curve(confidence: Tensor, right: Tensor) -> RiskCoverage:
        return risk_coverage(confidence, ~right)


class AURC(_SelectiveMetric):
    """Area under the risk–coverage curve; lower is better.

    ``1 / N * sum_k risk_k``, with ``risk_k`` the share of wrong predictions among the k surest of N samples: the mean
    error rate over all coverages. It is 0 if all predictions are right, 1 if all are wrong, and at random confidences
    the error rate. Ties count as in :func:`risk_coverage`. The few surest samples weigh most: see :class:`AUGRC`.

    Nine bytes are kept per sample. The result is NaN, with a warning that says why, if a confidence is NaN or there
    are no samples.

    Args:
        kwargs: Of ``torchmetrics.Metric``.

    Shape:
        ``update(confidence, right)``: both ``(N, ...)``, confidences of any range, higher is surer (of an entropy or
        another uncertainty pass the negative); right is 1, or True, where the prediction was. The result is a scalar.

    Raises:
        ValueError: By ``update``, if shapes differ, or if ``right`` is no yes or no in the first batch.

    Source:
        Geifman, Uziel & El-Yaniv, "Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers" (2019),
        arXiv:1805.08206.

    Example:
        >>> metric = AURC()
        >>> metric.update(torch.tensor([0.9, 0.8, 0.6]), torch.tensor([1, 0, 1]))
        >>> metric.compute()  # (0 + 1/2 + 1/3) / 3
        tensor(0.2778)
        >>> metric.curve().risk
        tensor([0.0000, 0.5000, 0.3333], dtype=torch.float64)
    """

    higher_is_better = False

    def _value(self, scores: Tensor, flags: Tensor) -> Tensor:
        return self._curve(scores, flags).risk.mean()


class AUGRC(_SelectiveMetric):
    """Area under the generalised risk–coverage curve: the mean rate of failures that nobody saw; lower is better.

    The generalised risk at a threshold t is ``P(wrong and confidence >= t)``, a share of all samples rather than of the
    accepted ones, and AUGRC its integral over the coverage ``P(confidence >= t)``. With ``acc`` the accuracy and
    ``AUROC`` that of the confidence for telling right from wrong predictions (ties count half), it is exactly ::

        (1 - AUROC) * acc * (1 - acc) + (1 - acc)**2 / 2

    So it lies in [0, 1/2]: 0 if all predictions are right, 1/2 if all are wrong, where an AUROC is not even defined;
    and every sample weighs the same, unlike in :class:`AURC`, in which the surest weigh most.

    Nine bytes are kept per sample. The result is NaN, with a warning that says why, if a confidence is NaN or there
    are no samples.

    Args:
        kwargs: Of ``torchmetrics.Metric``.

    Shape:
        ``update(confidence, right)``: both ``(N, ...)``, confidences of any range, higher is surer (of an entropy or
        another uncertainty pass the negative); right is 1, or True, where the prediction was. The result is a scalar.

    Raises:
        ValueError: By ``update``, if shapes differ, or if ``right`` is no yes or no in the first batch.

    Source:
        Traub et al., "Overcoming Common Flaws in the Evaluation of Selective Classification Systems" (2024),
        arXiv:2407.01032.

    Example:
        >>> metric = AUGRC()
        >>> metric.update(torch.tensor([0.9, 0.8, 0.6]), torch.tensor([1, 0, 1]))
        >>> metric.compute()  # 1/2 * 2/3 * 1/3 + (1/3)² / 2
        tensor(0.1667)
    """

    higher_is_better = False
    plot_upper_bound = 0.5

    def _value(self, scores: Tensor, flags: Tensor) -> Tensor:
        # Trapezoids from (0, 0): the generalised risk is linear between two thresholds.
        return torch.trapezoid(F.pad(self._curve(scores, flags).generalized_risk, (1, 0)), dx=1 / len(scores))


class AccuracyAtCoverage(_SelectiveMetric):
    """Share of right predictions among the surest samples; higher is better.

    Accepted are the ``ceil(coverage * N)`` surest of N samples, so at least the coverage asked for. Ties count as in
    :func:`risk_coverage`.

    Nine bytes are kept per sample. The result is NaN, with a warning that says why, if a confidence is NaN or there
    are no samples.

    Args:
        coverage: Share of the samples to accept, in (0, 1].
        kwargs: Of ``torchmetrics.Metric``.

    Shape:
        ``update(confidence, right)``: both ``(N, ...)``, confidences of any range, higher is surer (of an entropy or
        another uncertainty pass the negative); right is 1, or True, where the prediction was. The result is a scalar.

    Raises:
        ValueError: If ``coverage`` is out of range; by ``update``, if shapes differ, or if ``right`` is no yes or no
            in the first batch.

    Example:
        >>> metric = AccuracyAtCoverage(coverage=0.5)
        >>> metric.update(torch.tensor([0.9, 0.2, 0.6, 0.3]), torch.tensor([1, 0, 1, 0]))
        >>> metric.compute()
        tensor(1.)
    """

    higher_is_better = True

    def __init__(self, coverage: float = 0.9, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 < coverage <= 1:
            raise ValueError(f"Expected `coverage` to lie in (0, 1], but got {coverage!r}; 0.9 accepts 90 %.")
        self.coverage = coverage

    def _value(self, scores: Tensor, flags: Tensor) -> Tensor:
        accepted = max(1, math.ceil(round(self.coverage * len(scores), 6)))  # 0.07 * 100 is 7.000000000000001
        return 1 - self._curve(scores, flags).risk[accepted - 1]

"""How well a score tells inputs of another distribution from those of the training data.

Both numbers depend on nothing but the order of the scores, whatever their range. ``torchmetrics.BinaryAUROC`` does not
serve here: it squashes each batch whose scores leave [0, 1], as those of an entropy do, by a sigmoid and other batches
not, which puts them in a wrong order, and is 0 without samples of one side.
"""

import torch
from torch import Tensor

from lightning_dropout.metrics.ranked_metric import RankedMetric
from lightning_dropout.sampling.moments import wide

__all__ = ["FPR95", "OODAUROC", "fpr95", "ood_auroc"]


def ood_auroc(scores: Tensor, is_ood: Tensor) -> Tensor:
    """Return the probability that an out-of-distribution sample scores higher than another one; a tie counts half.

    Args:
        scores: Higher means more out-of-distribution; of any range, without NaN.
        is_ood: Which samples are out-of-distribution, boolean.

    Shape:
        Both ``(N,)``; the result is a scalar, float64; NaN if a side is empty.

    Source:
        Mann & Whitney, "On a Test of Whether one of Two Random Variables is Stochastically Larger than the Other"
        (1947).

    Example:
        >>> ood_auroc(torch.tensor([1.0, 2.0, 2.0, 7.0]), torch.tensor([False, False, True, True]))  # a tie in 4 pairs
        tensor(0.8750, dtype=torch.float64)
    """
    inside, outside = (wide(scores[side]).sort().values for side in (~is_ood, is_ood))
    below, upto = (torch.searchsorted(inside, outside, right=right).sum() for right in (False, True))
    return wide(below + upto) / (2 * len(inside) * len(outside))


def fpr95(scores: Tensor, is_ood: Tensor) -> Tensor:
    """Return which share of out-of-distribution samples passes where 95 % of the others do.

    Positive is in-distribution. The threshold is the lowest score up to which at least 95 % of the in-distribution
    samples lie; samples that tie with it pass, on both sides.

    Args:
        scores: Higher means more out-of-distribution; of any range, without NaN.
        is_ood: Which samples are out-of-distribution, boolean.

    Shape:
        Both ``(N,)``; the result is a scalar, float64; NaN if a side is empty.

    Example:
        >>> fpr95(torch.tensor([1.0, 2.0, 2.0, 7.0]), torch.tensor([False, False, True, True]))
        tensor(0.5000, dtype=torch.float64)
    """
    inside, outside = scores[~is_ood], scores[is_ood]
    if len(inside) == 0:
        return wide(inside).mean()
    passing = -(-19 * len(inside) // 20)  # 95 %, rounded up, in integers
    return wide(outside <= inside.kthvalue(passing).values).mean()


class _OODMetric(RankedMetric):
    """Base of the numbers that compare the scores of two sides."""

    def update(self, scores: Tensor, is_ood: Tensor) -> None:
        """Take in a batch."""
        self._take(scores=scores, is_ood=is_ood)

    def _why_undefined(self, scores: Tensor, flags: Tensor) -> str | None:
        reason = super()._why_undefined(scores, flags)
        if reason is None and bool(flags.all()):
            reason = f"none of {len(flags)} samples is in-distribution"
        if reason is None and not bool(flags.any()):
            reason = f"none of {len(flags)} samples is out-of-distribution"
        return reason


class FPR95(_OODMetric):
    """False-positive rate at 95 % true-positive rate, positive being in-distribution; lower is better.

    The share of out-of-distribution samples that pass for ordinary ones at the threshold at which at least 95 % of the
    in-distribution samples pass: of their N scores the ``ceil(0.95 * N)``-th from below. Samples that tie with it pass,
    so that at one constant score all do. (Some take the threshold nearest to 95 % instead, which may let fewer pass.)

    Nine bytes are kept per sample. The result is NaN, with a warning that says why, if a side is empty or a score NaN.

    Args:
        kwargs: Of ``torchmetrics.Metric``.

    Shape:
        ``update(scores, is_ood)``: both ``(N, ...)``, scores of any range, higher means more out-of-distribution
        (entropy, mutual information; of the highest probability pass the negative); is_ood is 1, or True, for samples
        of another distribution. The result is a scalar.

    Raises:
        ValueError: By ``update``, if shapes differ, or if ``is_ood`` is no yes or no in the first batch.

    Source:
        Liang, Li & Srikant, "Enhancing The Reliability of Out-of-distribution Image Detection in Neural Networks"
        (2018), arXiv:1706.02690; the setting as in Hendrycks & Gimpel (2017), arXiv:1610.02136.

    Example:
        >>> metric = FPR95()
        >>> metric.update(torch.tensor([0.1, 0.3, 2.0]), torch.tensor([0, 0, 0]))
        >>> metric.update(torch.tensor([1.5, 6.0]), torch.tensor([1, 1]))
        >>> metric.compute()  # up to 2.0 all three pass, and so does 1.5
        tensor(0.5000)
    """

    higher_is_better = False

    def _value(self, scores: Tensor, flags: Tensor) -> Tensor:
        return fpr95(scores, flags)


class OODAUROC(_OODMetric):
    """Area under the ROC curve of telling out-of-distribution samples by their scores; higher is better.

    The probability that an out-of-distribution sample scores higher than an in-distribution one, ties counting half: a
    guess has 1/2. Beside :class:`FPR95` in a ``torchmetrics.MetricCollection``, both share what they keep.

    Nine bytes are kept per sample. The result is NaN, with a warning that says why, if a side is empty or a score NaN.

    Args:
        kwargs: Of ``torchmetrics.Metric``.

    Shape:
        ``update(scores, is_ood)``: both ``(N, ...)``, scores of any range, higher means more out-of-distribution
        (entropy, mutual information; of the highest probability pass the negative); is_ood is 1, or True, for samples
        of another distribution. The result is a scalar.

    Raises:
        ValueError: By ``update``, if shapes differ, or if ``is_ood`` is no yes or no in the first batch.

    Source:
        Hendrycks & Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples in Neural Networks"
        (2017), arXiv:1610.02136.

    Example:
        >>> metric = OODAUROC()
        >>> metric.update(torch.tensor([0.1, 0.3, 2.0]), torch.tensor([0, 0, 0]))
        >>> metric.update(torch.tensor([1.5, 6.0]), torch.tensor([1, 1]))
        >>> metric.compute()  # five of six pairs
        tensor(0.8333)
    """

    higher_is_better = True

    def _value(self, scores: Tensor, flags: Tensor) -> Tensor:
        return ood_auroc(scores, flags)

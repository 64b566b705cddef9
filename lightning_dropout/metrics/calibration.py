"""The expected calibration error in O(bins) memory, and the table behind a reliability diagram."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lightning_dropout.metrics.probability_metric import ClassificationTask, ProbabilityMetric

__all__ = ["CalibrationBins", "CalibrationError"]

Norm = Literal["l1", "l2", "max"]


@dataclass(frozen=True)
class CalibrationBins:
    """The rows of a reliability diagram, each field of shape ``(n_bins,)``."""

    lower: Tensor
    """Left edge; belongs to the bin."""
    upper: Tensor
    """Right edge; belongs to the next bin, that of the last bin (1.0) to the last."""
    count: Tensor
    """Number of samples."""
    confidence: Tensor
    """Mean predicted probability; NaN where the bin is empty."""
    accuracy: Tensor
    """Share of samples that came out as predicted; NaN where the bin is empty."""


class CalibrationError(ProbabilityMetric):
    """Distance between how sure predictions are and how often they are right; 0 is calibrated.

    Multiclass: the confidence is the highest probability of a sample, right is whether that class is the target.
    Binary: the confidence is the probability of "yes", right is whether the target is 1 (so it need not exceed 0.5).
    Multilabel: as binary, all labels in one set of bins.

    With B bins of width 1/B, ``n_b`` of N samples in bin b, their mean confidence ``conf_b`` and share of right ones
    ``acc_b``: ``l1`` (ECE) is ``sum_b n_b / N * |acc_b - conf_b|``, ``l2`` the root of ``sum_b n_b / N * (acc_b -
    conf_b)**2``, ``max`` (MCE) the largest ``|acc_b - conf_b|`` of the bins that hold samples.

    Bin b is ``[b / B, (b + 1) / B)``, edges rounded to the dtype of the input, and the last one is closed: a confidence
    of exactly 1.0, common with saturated softmaxes, lies in it. Three sums per bin are kept, not the samples. A NaN
    among the probabilities goes to the last bin and makes the result NaN.

    Args:
        task: What the probabilities are of.
        n_bins: Number of bins, at least 1.
        norm: How the gaps of the bins become one number.
        kwargs: Of ``torchmetrics.Metric``.

    Shape:
        ``multiclass``: probabilities ``(N, C, ...)``, integer targets ``(N, ...)``. Else both ``(N, ...)``, targets 0
        or 1. The result is a scalar.

    Raises:
        ValueError: If ``n_bins`` or ``norm`` is none of those; by ``update``, if shapes do not fit, or if the first
            batch holds no probabilities or wrong targets.

    Source:
        Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian Binning" (2015); Guo et al., "On
        Calibration of Modern Neural Networks" (2017), arXiv:1706.04599, equations 3 to 5.

    Example:
        >>> metric = CalibrationError(task="multiclass", n_bins=2)
        >>> metric.update(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.7, 0.3]]), torch.tensor([0, 1, 0]))
        >>> metric.compute()  # mean confidence 2.6 / 3, two of three right
        tensor(0.2000)
        >>> metric.bins().count
        tensor([0, 3])
    """

    plot_upper_bound = 1.0
    counts: Tensor
    confidence_sums: Tensor
    accuracy_sums: Tensor

    def __init__(self, *, task: ClassificationTask, n_bins: int = 15, norm: Norm = "l1", **kwargs: Any) -> None:
        super().__init__(task=task, **kwargs)
        if isinstance(n_bins, bool) or not isinstance(n_bins, int) or n_bins < 1:
            raise ValueError(f"Expected `n_bins` to be an integer of at least 1, but got {n_bins!r}.")
        if norm not in get_args(Norm):
            raise ValueError(f"Expected `norm` to be one of l1, l2, max, but got {norm!r}.")
        self.n_bins = n_bins
        self.norm: Norm = norm
        for name in ("counts", "confidence_sums", "accuracy_sums"):
            self._add_sum(name, n_bins)

    def update(self, probabilities: Tensor, target: Tensor) -> None:
        """Take in a batch."""
        probabilities, target = self._rows(probabilities, target)
        if self.task == "multiclass":
            confidence, predicted = probabilities.max(1)
            right = predicted == target
        else:
            confidence, right = probabilities, target
        precise = self._precise(confidence)
        inner_edges = self._edges(precise)[1:-1].to(confidence)  # rounded like the confidences they are compared with
        confidence = confidence.to(precise)
        # without the outer edges, 1.0 needs no special case; NaN sorts above all edges
        bins = torch.bucketize(confidence, inner_edges.to(precise), right=True)
        self.counts.index_add_(0, bins, torch.ones_like(confidence))
        self.confidence_sums.index_add_(0, bins, confidence)
        self.accuracy_sums.index_add_(0, bins, right.to(precise))

    def compute(self) -> Tensor:
        """Return the error of all samples so far, float32; NaN if there was none."""
        filled = self.counts > 0
        gaps = (self.accuracy_sums - self.confidence_sums).abs()[filled] / self.counts[filled]
        if len(gaps) == 0:
            return torch.full((), torch.nan, device=gaps.device)
        shares = self.counts[filled] / self.counts.sum()
        if self.norm == "l1":
            error = (shares * gaps).sum()
        elif self.norm == "l2":
            error = (shares * gaps.square()).sum().sqrt()
        else:
            error = gaps.max()
        return error.float()

    def bins(self) -> CalibrationBins:
        """Return the table behind the number, over all ranks: call it on every rank, as ``compute``."""
        with self.sync_context(
            dist_sync_fn=self.dist_sync_fn, process_group=self.process_group, should_sync=not self._is_synced
        ):
            edges = self._edges(self.counts.dtype).float()
            return CalibrationBins(
                lower=edges[:-1],
                upper=edges[1:],
                count=self.counts.long(),
                confidence=(self.confidence_sums / self.counts).float(),
                accuracy=(self.accuracy_sums / self.counts).float(),
            )

    def _edges(self, dtype: torch.dtype) -> Tensor:
        return torch.linspace(0, 1, self.n_bins + 1, dtype=dtype, device=self.counts.device)

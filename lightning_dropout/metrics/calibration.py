"""The expected calibration error, over all classes or by class, and the table behind a reliability diagram."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lightning_dropout.metrics.probability_metric import ClassificationTask, ProbabilityMetric

__all__ = ["CalibrationBins", "CalibrationError"]

Norm = Literal["l1", "l2", "max"]
Binning = Literal["equal_width", "equal_mass"]

_AT_ONCE = 2**19  # confidences: what is derived from them takes four times their memory, of many classes gigabytes


@dataclass(frozen=True)
class CalibrationBins:
    """The rows of a reliability diagram, each field of shape ``(n_bins,)``, by class ``(num_classes, n_bins)``."""

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

    Equal width: bin b is ``[b / B, (b + 1) / B)``, edges rounded to the dtype of the input, and the last one is closed:
    a confidence of exactly 1.0, common with saturated softmaxes, lies in it. Three sums per bin are kept, not the
    samples. A NaN among the probabilities goes to the last bin and makes the result NaN.

    Equal mass (adaptive): each bin holds N/B of the confidences, rounded, in rising order; its left edge is its lowest
    one. Those that tie stay together, in the bin above the edge that they are, so bins may be of unequal size or empty,
    as they are with fewer samples than bins. Confidences crowd near 1, where equal widths put nearly all in one bin.
    Every confidence is kept, in 9 bytes.

    Classwise: the error of the probability of each class, as a binary one (right is whether the target is this class),
    averaged over the classes with equal weight. All probabilities count, not only the highest. Three sums per class and
    bin are kept; with ``equal_mass``, 9 bytes per sample and class (50,000 samples of 1,000 classes: 450 MB).

    Args:
        task: What the probabilities are of.
        n_bins: Number of bins, at least 1.
        norm: How the gaps of the bins become one number.
        binning: Where the bins lie.
        classwise: Whether each class (multilabel: label) has bins of its own; not for ``binary``, which has one.
        num_classes: How many classes there are, for ``classwise`` only.
        kwargs: Of ``torchmetrics.Metric``.

    Shape:
        ``multiclass``: probabilities ``(N, C, ...)``, integer targets ``(N, ...)``. Else both ``(N, ...)``, targets 0
        or 1. The result is a scalar.

    Raises:
        ValueError: If an argument is none of those, or ``num_classes`` does not go with ``classwise``; by ``update``,
            if shapes do not fit, or if the first batch holds no probabilities or wrong targets.

    Source:
        Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian Binning" (2015); Guo et al., "On
        Calibration of Modern Neural Networks" (2017), arXiv:1706.04599, equations 3 to 5. Equal mass: Nixon et al.,
        "Measuring Calibration in Deep Learning" (2019), arXiv:1904.01685. Classwise: Kull et al., "Beyond temperature
        scaling" (2019), arXiv:1910.12656.

    Example:
        >>> metric = CalibrationError(task="multiclass", n_bins=2)
        >>> metric.update(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.7, 0.3]]), torch.tensor([0, 1, 0]))
        >>> metric.compute()  # mean confidence 2.6 / 3, two of three right
        tensor(0.2000)
        >>> metric.bins().count
        tensor([0, 3])
        >>> metric = CalibrationError(task="multiclass", n_bins=2, classwise=True, num_classes=2)
        >>> metric.update(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.7, 0.3]]), torch.tensor([0, 1, 0]))
        >>> metric.bins().accuracy
        tensor([[   nan, 0.6667],
                [0.3333,    nan]])
    """

    plot_upper_bound = 1.0
    counts: Tensor
    confidence_sums: Tensor
    accuracy_sums: Tensor

    def __init__(
        self,
        *,
        task: ClassificationTask,
        n_bins: int = 15,
        norm: Norm = "l1",
        binning: Binning = "equal_width",
        classwise: bool = False,
        num_classes: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(task=task, **kwargs)
        if isinstance(n_bins, bool) or not isinstance(n_bins, int) or n_bins < 1:
            raise ValueError(f"Expected `n_bins` to be an integer of at least 1, but got {n_bins!r}.")
        if norm not in get_args(Norm):
            raise ValueError(f"Expected `norm` to be one of l1, l2, max, but got {norm!r}.")
        if binning not in get_args(Binning):
            raise ValueError(f"Expected `binning` to be one of equal_width, equal_mass, but got {binning!r}.")
        if classwise and task == "binary":
            raise ValueError('Expected `classwise` with several classes, but got task="binary"; leave it out.')
        if classwise != (num_classes is not None):
            raise ValueError(
                f"Expected `num_classes` with classwise=True and not else, but got {num_classes!r} with {classwise}."
            )
        self.n_bins = n_bins
        self.norm: Norm = norm
        self.binning: Binning = binning
        self.num_classes = num_classes
        if binning == "equal_mass":
            self._add_kept("confidences")
            self._add_kept("right", torch.bool)
        else:
            shape = (n_bins,) if num_classes is None else (num_classes, n_bins)
            for name in ("counts", "confidence_sums", "accuracy_sums"):
                self._add_sum(name, *shape)

    def update(self, probabilities: Tensor, target: Tensor) -> None:
        """Take in a batch."""
        confidence, right = self._events(probabilities, target)
        if self.binning == "equal_mass":
            self._keep("confidences", confidence)
            self._keep("right", right)
            return
        precise = self._precise(confidence)
        inner_edges = self._edges(precise)[1:-1].to(confidence)  # rounded like the confidences they are compared with
        sums = self.counts, self.confidence_sums, self.accuracy_sums
        _add_to_bins(sums, confidence, right, inner_edges.to(precise))

    def compute(self) -> Tensor:
        """Return the error of all samples so far, float32; NaN if there was none."""
        counts, confidence_sums, accuracy_sums, _ = self._table()
        if not counts.any():
            return torch.full((), torch.nan, device=counts.device)
        gaps = ((accuracy_sums - confidence_sums).abs() / counts).masked_fill(counts == 0, 0.0)
        shares = counts / counts.sum(-1, keepdim=True)
        if self.norm == "l1":
            error = (shares * gaps).sum(-1)
        elif self.norm == "l2":
            error = (shares * gaps.square()).sum(-1).sqrt()
        else:
            error = gaps.amax(-1)
        return error.mean().float()  # over the classes, where there are some

    def bins(self) -> CalibrationBins:
        """Return the table behind the number, over all ranks: call it on every rank, as ``compute``."""
        with self._over_ranks():
            counts, confidence_sums, accuracy_sums, edges = self._table()
            edges = edges.float().expand(*counts.shape[:-1], -1)
            return CalibrationBins(
                lower=edges[..., :-1],
                upper=edges[..., 1:],
                count=counts.long(),
                confidence=(confidence_sums / counts).float(),
                accuracy=(accuracy_sums / counts).float(),
            )

    def _events(self, probabilities: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return confidences and whether they were right, ``(rows,)``; by class ``(rows, num_classes)``."""
        rows, targets = self._rows(probabilities, target)
        if self.num_classes is None:
            if self.task == "multiclass":
                confidence, predicted = rows.max(1)
                return confidence, predicted == targets
            return rows, targets
        if probabilities.ndim < 2 or probabilities.shape[1] != self.num_classes:
            raise ValueError(
                f"Expected `probabilities` of num_classes={self.num_classes} in dimension 1, but got the shape "
                f"{tuple(probabilities.shape)}."
            )
        if self.task == "multiclass":
            return rows, torch.zeros_like(rows, dtype=torch.bool).scatter_(1, targets[:, None], True)
        by_label = (values.movedim(1, -1).reshape(-1, self.num_classes) for values in (probabilities, target))
        return next(by_label), next(by_label)

    def _table(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return counts, sums of confidences and of right ones, and edges of the bins in the last dimension."""
        if self.binning == "equal_width":
            return self.counts, self.confidence_sums, self.accuracy_sums, self._edges(self.counts.dtype)
        columns = self.num_classes or 1
        confidences, right = (self._kept(name).view(-1, columns) for name in ("confidences", "right"))
        tables = [_equal_mass(confidences[:, c], right[:, c], self.n_bins) for c in range(columns)]
        counts, confidence_sums, accuracy_sums, edges = (torch.stack(rows) for rows in zip(*tables, strict=True))
        if self.num_classes is None:
            return counts[0], confidence_sums[0], accuracy_sums[0], edges[0]
        return counts, confidence_sums, accuracy_sums, edges

    def _edges(self, dtype: torch.dtype) -> Tensor:
        return torch.linspace(0, 1, self.n_bins + 1, dtype=dtype, device=self.device)


def _add_to_bins(sums: Sequence[Tensor], confidence: Tensor, right: Tensor, inner_edges: Tensor) -> None:
    """Add ones, confidences and right ones to the three ``sums``, (B,) or by column of ``confidence`` (C, B)."""
    columns = math.prod(confidence.shape[1:])
    first_bins = torch.arange(columns, device=confidence.device) * sums[0].shape[-1]
    step = max(1, _AT_ONCE // columns)
    for part, of_part in zip(torch.split(confidence, step), torch.split(right, step), strict=True):
        values = part.to(inner_edges).reshape(-1, columns).contiguous()  # else bucketize warns
        # without the outer edges, 1.0 needs no special case; NaN sorts above all edges
        bins = torch.bucketize(values, inner_edges, right=True).add_(first_bins).view(-1)
        ones = values.new_ones(()).expand(len(bins))
        for total, summands in zip(sums, (ones, values.view(-1), of_part.reshape(-1).to(values)), strict=True):
            total.view(-1).index_add_(0, bins, summands)


def _equal_mass(confidence: Tensor, right: Tensor, n_bins: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the three sums and the edges of bins that hold as many of the confidences each as ties allow."""
    confidence, order = confidence.sort()  # NaN comes last
    edges = _equal_mass_edges(confidence[: len(confidence) - int(confidence.isnan().sum())], n_bins)
    sums = confidence.new_zeros(3, n_bins)
    _add_to_bins(sums.unbind(), confidence, right[order], edges[1:-1])
    counts, confidence_sums, accuracy_sums = sums.unbind()
    return counts, confidence_sums, accuracy_sums, edges


def _equal_mass_edges(ordered: Tensor, n_bins: int) -> Tensor:
    """Return 0, the confidences with which each further Bth of the samples begins, and 1."""
    first = torch.arange(1, n_bins, device=ordered.device) * len(ordered) // n_bins
    inner = ordered[first] if len(ordered) else ordered.new_full(first.shape, torch.nan)
    return torch.cat([inner.new_zeros(1), inner, inner.new_ones(1)])

"""The negative log-likelihood of predicted probabilities, or of their logarithms where nothing may be rounded."""

from typing import Any

import torch
from torch import Tensor

from lightning_dropout.metrics.exact_metric import SampleMean
from lightning_dropout.metrics.probability_metric import ClassificationTask, ProbabilityMetric

__all__ = ["NegativeLogLikelihood"]


class NegativeLogLikelihood(ProbabilityMetric, SampleMean):
    """Mean of ``-log p(what happened)`` in nats; a proper score, lower is better.

    Multiclass: ``mean_n -log p[n, y[n]]``; a uniform guess scores ``log C``. Binary: ``mean_n`` of ``-log p[n]`` where
    ``y`` is 1 and of ``-log(1 - p[n])`` where it is 0. Multilabel: the binary value, averaged over samples and labels.

    Nothing is clipped: a probability of 0 for what happened scores infinity, however rare it is, and the mean is then
    infinite. Probabilities in float32 reach 0 below 1e-45 and are 1 above 1 - 6e-8; with ``log_input=True`` the metric
    takes logarithms (``log_softmax``, ``logsigmoid``, the log-mean of stochastic passes), in which both stay finite.
    Every sample weighs the same, whatever its batch. A NaN among the probabilities makes the result NaN.

    Args:
        task: What the probabilities are of.
        log_input: Whether ``update`` receives natural logarithms of probabilities (for binary and multilabel: of
            "yes").
        kwargs: Of ``torchmetrics.Metric``.

    Shape:
        ``multiclass``: probabilities ``(N, C, ...)``, integer targets ``(N, ...)``. Else both ``(N, ...)``, targets 0
        or 1. The result is a scalar.

    Raises:
        ValueError: By ``update``, if shapes do not fit, or if the first batch holds no (log-)probabilities or wrong
            targets.

    Example:
        >>> metric = NegativeLogLikelihood(task="multiclass")
        >>> metric.update(torch.tensor([[0.5, 0.5], [0.25, 0.75]]), torch.tensor([0, 0]))
        >>> metric.compute()  # (log 2 + log 4) / 2
        tensor(1.0397)
        >>> metric = NegativeLogLikelihood(task="multiclass", log_input=True)
        >>> metric.update(torch.tensor([[200.0, 0.0]]).log_softmax(1), torch.tensor([1]))
        >>> metric.compute()  # the probability, 1e-87, is 0 in float32
        tensor(200.)
    """

    def __init__(self, *, task: ClassificationTask, log_input: bool = False, **kwargs: Any) -> None:
        super().__init__(task=task, **kwargs)
        self.log_input = log_input

    def update(self, probabilities: Tensor, target: Tensor) -> None:
        """Take in a batch."""
        probabilities, target = self._rows(probabilities, target)
        probabilities = probabilities.to(self._precise(probabilities))
        if self.task == "multiclass":
            of_target = probabilities.gather(1, target[:, None])[:, 0]
            logs = of_target if self.log_input else of_target.log()
            # a row that is NaN anywhere is NaN, also where its target's entry is not
            logs = logs.masked_fill(probabilities.isnan().any(1), torch.nan)
        else:
            yes = probabilities if self.log_input else probabilities.log()
            of_no = -probabilities.expm1() if self.log_input else 1 - probabilities
            # chosen, not weighted: 0 * log(0) would be NaN. Means may exceed 1 by a rounding error, hence the clamp.
            logs = torch.where(target == 1, yes, of_no.clamp(min=0).log())
        self._take(-logs)

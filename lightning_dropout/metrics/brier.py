"""The Brier score: squared distance between predicted probabilities and what happened."""

from torch import Tensor

from lightning_dropout.metrics.exact_metric import SampleMean
from lightning_dropout.metrics.probability_metric import ProbabilityMetric

__all__ = ["BrierScore"]


class BrierScore(ProbabilityMetric, SampleMean):
    """Mean squared error of predicted probabilities; a proper score, lower is better.

    Multiclass: ``mean_n sum_c (p[n, c] - [c == y[n]])**2``, in [0, 2]: summed over classes, as Brier wrote it; a
    uniform guess scores ``1 - 1 / C``. Binary: ``mean_n (p[n] - y[n])**2``, in [0, 1]: half the value that the same
    prediction scores as two classes. Multilabel: the binary score, averaged over samples and labels.

    Every sample weighs the same, whatever its batch. A NaN among the probabilities makes the score NaN.

    Args:
        task: What the probabilities are of; no default, since the formula depends on it.
        kwargs: Of ``torchmetrics.Metric``.

    Shape:
        ``multiclass``: probabilities ``(N, C, ...)``, integer targets ``(N, ...)``. Else both ``(N, ...)``, targets 0
        or 1. The result is a scalar.

    Raises:
        ValueError: By ``update``, if shapes do not fit, or if the first batch holds no probabilities or wrong targets.

    Source:
        Brier, "Verification of forecasts expressed in terms of probability" (1950), equation 2.

    Example:
        >>> import torch
        >>> metric = BrierScore(task="multiclass")
        >>> metric.update(torch.tensor([[0.8, 0.2, 0.0], [0.5, 0.25, 0.25]]), torch.tensor([0, 2]))
        >>> metric.compute()  # (0.2² + 0.2² + 0² + 0.5² + 0.25² + 0.75²) / 2
        tensor(0.4775)
    """

    def update(self, probabilities: Tensor, target: Tensor) -> None:
        """Take in a batch."""
        probabilities, target = self._rows(probabilities, target)
        probabilities = probabilities.to(self._precise(probabilities))
        if self.task == "multiclass":
            # sum_c (p_c - [c == y])² = sum_(c != y) p_c² + (1 - p_y)², without a one-hot copy
            of_target = probabilities.gather(1, target[:, None])
            scores = probabilities.scatter(1, target[:, None], 1 - of_target).square().sum(1)
        else:
            scores = (probabilities - target).square()
        self._take(scores)

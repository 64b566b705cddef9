"""How unsure predictions are, in nats: entropy of one distribution, mutual information of several passes."""

import torch
from torch import Tensor

from lightning_dropout.metrics.exact_metric import SampleMean
from lightning_dropout.metrics.probability_metric import ClassificationTask, ProbabilityMetric
from lightning_dropout.sampling.moments import entropy, wide

__all__ = ["MutualInformation", "PredictiveEntropy", "mutual_information", "predictive_entropy"]


def predictive_entropy(probabilities: Tensor, task: ClassificationTask) -> Tensor:
    """Return the entropy ``-sum_c p[c] ln p[c]`` of each prediction in nats.

    Args:
        probabilities: Of C classes, or for ``binary`` and ``multilabel`` of "yes", which with "no" makes two.
        task: What the probabilities are of.

    Shape:
        ``multiclass``: ``(N, C, ...)`` to ``(N, ...)``, in [0, ln C]. Else the shape is kept, in [0, ln 2]. Float64.

    Source:
        Shannon, "A Mathematical Theory of Communication" (1948).

    Example:
        >>> predictive_entropy(torch.tensor([[0.5, 0.5], [1.0, 0.0]]), "multiclass")
        tensor([0.6931, 0.0000], dtype=torch.float64)
    """
    probabilities = wide(probabilities).clamp(0, 1)  # means may leave it by a rounding error, and ln(-1e-9) is NaN
    if task == "multiclass":
        return entropy(probabilities, 1)
    return entropy(torch.stack([probabilities, 1 - probabilities]), 0)


def mutual_information(samples: Tensor, task: ClassificationTask) -> Tensor:
    """Return the entropy of the mean prediction minus the mean entropy of the passes, in nats, at least 0.

    Args:
        samples: Probabilities of T passes.
        task: What the probabilities are of.

    Shape:
        ``multiclass``: ``(T, N, C, ...)`` to ``(N, ...)``. Else ``(T, N, ...)`` to ``(N, ...)``. Float64.

    Source:
        Houlsby et al., "Bayesian Active Learning for Classification and Preference Learning" (2011), arXiv:1112.5745.

    Example:
        >>> agreed = torch.tensor([[0.5, 0.5], [0.5, 0.5]])
        >>> opposed = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> mutual_information(torch.stack([agreed, opposed], dim=1), "multiclass")  # both means are (1/2, 1/2)
        tensor([0.0000, 0.6931], dtype=torch.float64)
    """
    mean = samples.mean(0, dtype=wide(samples[:0]).dtype)
    expected = sum(predictive_entropy(one, task) for one in samples) / len(samples)  # pass by pass, for memory's sake
    return (predictive_entropy(mean, task) - expected).clamp_min(0.0)  # rounding can leave -1e-17


class PredictiveEntropy(ProbabilityMetric, SampleMean):
    """Mean entropy of predictions in nats: total uncertainty.

    Of a sample, ``-sum_c p[c] ln p[c]``; binary and multilabel: that of "yes" and "no", averaged over samples and
    labels. A prediction of T passes is their mean, of which this is the entropy. Every sample weighs the same, whatever
    its batch. A NaN among the probabilities makes the result NaN.

    Args:
        task: What the probabilities are of.
        kwargs: Of ``torchmetrics.Metric``.

    Shape:
        ``update(probabilities)``: ``(N, C, ...)`` for ``multiclass``, else ``(N, ...)``. The result is a scalar.

    Raises:
        ValueError: By ``update``, if shapes do not fit, or if the first batch holds no probabilities.

    Source:
        Gal & Ghahramani, "Dropout as a Bayesian Approximation" (2016), arXiv:1506.02142.

    Example:
        >>> metric = PredictiveEntropy(task="multiclass")
        >>> metric.update(torch.tensor([[0.5, 0.5], [1.0, 0.0]]))
        >>> metric.compute()  # ln(2) / 2
        tensor(0.3466)
    """

    higher_is_better = None

    def update(self, probabilities: Tensor) -> None:
        """Take in a batch."""
        self._check_shape(probabilities)
        self._check_first(self._check_probabilities, probabilities)
        self._take(predictive_entropy(probabilities, self.task))


class MutualInformation(ProbabilityMetric, SampleMean):
    """Mean mutual information of predictions and masks in nats: how far the passes disagree (epistemic uncertainty).

    Of a sample, the entropy of the mean of T passes minus the mean entropy of the passes: 0 where all agree, at most
    ``ln C``, and 0 from a single pass. Binary and multilabel: of "yes" and "no", averaged over samples and labels.
    Every sample weighs the same, whatever its batch. A NaN among the probabilities makes the result NaN.

    Args:
        task: What the probabilities are of.
        kwargs: Of ``torchmetrics.Metric``.

    Shape:
        ``update(samples)``: the probabilities of T passes, ``(T, N, C, ...)`` for ``multiclass``, else ``(T, N, ...)``.
        The result is a scalar.

    Raises:
        ValueError: By ``update``, if shapes do not fit, or if the first batch holds no probabilities.

    Source:
        Houlsby et al., "Bayesian Active Learning for Classification and Preference Learning" (2011), arXiv:1112.5745.

    Example:
        >>> metric = MutualInformation(task="binary")
        >>> metric.update(torch.tensor([[0.5, 1.0], [0.5, 0.0]]))  # two passes of two samples
        >>> metric.compute()  # (0 + ln(2)) / 2
        tensor(0.3466)
    """

    higher_is_better = None

    def update(self, samples: Tensor) -> None:
        """Take in a batch."""
        least = 3 if self.task == "multiclass" else 2
        if samples.ndim < least or len(samples) == 0:
            wanted = "(T, N, C, ...)" if self.task == "multiclass" else "(T, N, ...)"
            raise ValueError(
                f"Expected `samples` to have the shape {wanted} with T >= 1 passes in dimension 0, but got "
                f"{tuple(samples.shape)}; pass the probabilities of every pass, not their mean."
            )
        each = samples.flatten(0, 1)
        self._check_shape(each)
        self._check_first(self._check_probabilities, each)
        self._take(mutual_information(samples, self.task))

"""Which numbers describe a predictive distribution of each task: what ``test/mc/*`` and ``test/det/*`` consist of.

A bundle of metrics, fed with predictions of one or of many passes alike, so that both sides are judged by the same
rules. The metrics themselves live beside this file and in torchmetrics.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanAbsoluteError, MeanMetric, MeanSquaredError, Metric

from lightning_dropout.metrics.brier import BrierScore
from lightning_dropout.metrics.calibration import CalibrationError
from lightning_dropout.metrics.nll import NegativeLogLikelihood
from lightning_dropout.metrics.probability_metric import ClassificationTask
from lightning_dropout.sampling.prediction import MCPrediction, Task

__all__ = ["PredictiveMetrics"]

_CLASSES: tuple[Task, ...] = ("multiclass", "probabilities")
_BITS: tuple[Task, ...] = ("binary", "multilabel")


class PredictiveMetrics:
    """Accuracy, likelihood, calibration and uncertainty of a stream of :class:`MCPrediction`.

    Keys: ``accuracy``, ``nll``, ``brier``, ``ece`` for classes; the same without ``ece`` for multilabel; ``rmse``,
    ``mae`` for regression; also ``nll`` for ``gaussian``. Those need labels. Without: ``entropy`` and
    ``mutual_information`` for classes, ``aleatoric_variance`` and ``epistemic_variance`` for ``gaussian``, ``std`` for
    ``regression`` and ``raw``. What several passes are needed for is left out where there was one.

    Args:
        task: What the predictions are of.
        class_dim: The dimension of the classes.

    Example:
        >>> from lightning_dropout.sampling.prediction import Statistics
        >>> statistics = Statistics("multiclass", class_dim=1)
        >>> logits = torch.tensor([[4.0, 0.0], [0.0, 1.0]])
        >>> statistics.update(logits)
        >>> metrics = PredictiveMetrics("multiclass")
        >>> metrics.update(statistics.result(logits), torch.tensor([0, 0]))
        >>> metrics.compute()["accuracy"]
        tensor(0.5000)
    """

    def __init__(self, task: Task, class_dim: int = 1) -> None:
        self.task = task
        self.class_dim = class_dim
        self._device = torch.device("cpu")
        self._metrics: dict[str, Metric] = {}
        if task in _CLASSES or task in _BITS:
            kind = cast(ClassificationTask, "multiclass" if task in _CLASSES else task)
            self._metrics = {
                "accuracy": MeanMetric(),
                "nll": NegativeLogLikelihood(task=kind, log_input=task in _CLASSES),
                "brier": BrierScore(task=kind),
            }
            if task != "multilabel":
                self._metrics["ece"] = CalibrationError(task=kind)
        elif task in ("regression", "gaussian"):
            self._metrics = {"rmse": MeanSquaredError(squared=False), "mae": MeanAbsoluteError()}
            if task == "gaussian":
                self._metrics["nll"] = MeanMetric()

    def to(self, device: torch.device) -> "PredictiveMetrics":
        """Move the sums to ``device`` and return this bundle."""
        self._device = device
        self._metrics = {name: metric.to(device) for name, metric in self._metrics.items()}
        return self

    @staticmethod
    def fits(prediction: MCPrediction, labels: Tensor, class_dim: int = 1) -> bool:
        """Tell whether ``labels`` have the shape and type of targets for ``prediction``."""
        mean = prediction.mean
        if prediction.task in _CLASSES:
            shape = list(mean.shape)
            classes = shape.pop(class_dim)
            in_range = not labels.is_floating_point() and bool(((labels >= 0) & (labels < classes)).all())
            return list(labels.shape) == shape and in_range
        if prediction.task in _BITS:
            return labels.numel() == mean.numel() and bool(((labels == 0) | (labels == 1)).all())
        return labels.numel() == mean.numel() and labels.shape[:1] == mean.shape[:1]

    def update(self, prediction: MCPrediction, labels: Tensor | None) -> None:
        """Take in one batch; ``labels=None`` updates what needs none."""
        for name, values in self._uncertainties(prediction).items():
            if name not in self._metrics:
                self._metrics[name] = MeanMetric().to(self._device)
            self._metrics[name].update(values)
        if labels is not None:
            for name, arguments in self._arguments(prediction, labels).items():
                self._metrics[name].update(*arguments)

    def compute(self) -> dict[str, Tensor]:
        """Return every metric that has seen data, synchronised over the ranks."""
        return {name: metric.compute() for name, metric in self._metrics.items() if metric.update_called}

    def _uncertainties(self, prediction: MCPrediction) -> dict[str, Tensor]:
        many = prediction.num_samples > 1
        if self.task in ("regression", "raw"):
            return {"std": prediction.std} if many else {}
        single_pass = ("entropy", "aleatoric_variance")
        return {name: value for name, value in prediction.uncertainties().items() if many or name in single_pass}

    def _arguments(self, prediction: MCPrediction, labels: Tensor) -> dict[str, tuple[Tensor, ...]]:
        mean = prediction.mean
        if self.task in _CLASSES:
            mean = mean.movedim(self.class_dim, 1)
            logs = mean.log() if self.task == "probabilities" else self._logs(prediction)
            right = (mean.argmax(1) == labels).float()
            return {"accuracy": (right,), "nll": (logs, labels), "brier": (mean, labels), "ece": (mean, labels)}
        labels = labels.view_as(mean)
        if self.task in _BITS:
            if self.task == "binary":
                mean, labels = mean.flatten(), labels.flatten()
            labels = labels.long()
            right = ((mean > 0.5).long() == labels).float()
            scores = {"accuracy": (right,), "nll": (mean, labels), "brier": (mean, labels)}
            return scores if self.task == "multilabel" else {**scores, "ece": (mean, labels)}
        errors: dict[str, tuple[Tensor, ...]] = {"rmse": (mean, labels), "mae": (mean, labels)}
        if self.task != "gaussian":
            return errors
        nll = F.gaussian_nll_loss(mean, labels, prediction.total_variance, full=True, reduction="none")
        return {**errors, "nll": (nll,)}

    def _logs(self, prediction: MCPrediction) -> Tensor:
        assert isinstance(prediction.predictive, Tensor)  # noqa: S101  (a pair only for "gaussian")
        return prediction.predictive.movedim(self.class_dim, 1)

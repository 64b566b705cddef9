"""Which numbers describe a predictive distribution of each task: what ``test/mc/*`` and ``test/det/*`` consist of.

A bundle of metrics, fed with predictions of one or of many passes alike, so that both sides are judged by the same
rules. The metrics themselves live beside this file and in torchmetrics.
"""

import math
import warnings
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanAbsoluteError, MeanMetric, MeanSquaredError, Metric, SumMetric

from lightning_dropout import log_keys
from lightning_dropout.metrics.brier import BrierScore
from lightning_dropout.metrics.calibration import CalibrationError
from lightning_dropout.metrics.nll import NegativeLogLikelihood
from lightning_dropout.metrics.probability_metric import ClassificationTask
from lightning_dropout.metrics.regression import gaussian_nll
from lightning_dropout.metrics.selective import AUGRC, AURC, AccuracyAtCoverage
from lightning_dropout.sampling.losses import IGNORED
from lightning_dropout.sampling.moments import wide
from lightning_dropout.sampling.prediction import MCPrediction, Task

__all__ = ["PredictiveMetrics"]

_CLASSES: tuple[Task, ...] = ("multiclass", "probabilities")
_BITS: tuple[Task, ...] = ("binary", "multilabel")
# Of a prediction, by task: what a single pass has, and what several are needed for.
_UNCERTAINTIES: dict[Task, tuple[list[str], list[str]]] = {
    **dict.fromkeys((*_CLASSES, *_BITS), (["entropy"], ["mutual_information"])),
    "gaussian": (["aleatoric_variance"], ["epistemic_variance"]),
    **dict.fromkeys(("regression", "raw"), ([], ["std"])),
}
_SELECTIVE = (log_keys.AURC, log_keys.AUGRC, log_keys.ACCURACY_AT_90)


class PredictiveMetrics:
    """Accuracy, likelihood, calibration and uncertainty of a stream of :class:`MCPrediction`.

    Keys: ``accuracy``, ``nll``, ``brier``, ``ece`` for classes; the same without ``ece`` for multilabel; ``rmse``,
    ``mae`` for regression; also ``nll`` for ``gaussian``. Where a sample has one class, also ``aurc``, ``augrc`` and
    ``accuracy_at_90`` by the probability of the predicted class, for which 27 bytes a sample are kept. Those need
    labels, and are left out where a batch had none or all labels were -100. As in torch's losses, samples, pixels or
    tokens of this label count in no score of ``multiclass`` and ``probabilities``; in the uncertainties they do.
    Without: ``entropy`` and ``mutual_information`` for classes, ``aleatoric_variance`` and ``epistemic_variance`` for
    ``gaussian``, ``std`` for ``regression`` and ``raw``. A NaN among the values makes the result NaN.

    Args:
        task: What the predictions are of.
        class_dim: The dimension of the classes.
        spread: Whether the predictions are of several passes; what these are needed for is left out otherwise.

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

    def __init__(self, task: Task, class_dim: int = 1, *, spread: bool = True) -> None:
        self.task = task
        self.class_dim = class_dim
        # Metrics, so that all ranks leave out the same.
        self._labelled = _mean()  # share of the batches with labels
        self._counted = SumMetric()  # labels that are not ignored
        self._ranked = SumMetric()  # those among them that are the only one of their sample
        single, several = _UNCERTAINTIES[task]
        self._uncertainties: dict[str, Metric] = {name: _mean() for name in (single + several if spread else single)}
        self._scores: dict[str, Metric] = {}  # those that need labels
        if task in _CLASSES or task in _BITS:
            kind = cast(ClassificationTask, "multiclass" if task in _CLASSES else task)
            self._scores = {
                "accuracy": _mean(),
                "nll": NegativeLogLikelihood(task=kind, log_input=True),
                "brier": BrierScore(task=kind),
            }
            if task != "multilabel":
                self._scores["ece"] = CalibrationError(task=kind)
                self._scores |= {
                    log_keys.AURC: AURC(),
                    log_keys.AUGRC: AUGRC(),
                    log_keys.ACCURACY_AT_90: AccuracyAtCoverage(0.9),
                }
        elif task in ("regression", "gaussian"):
            self._scores = {"rmse": MeanSquaredError(squared=False), "mae": MeanAbsoluteError()}
            if task == "gaussian":
                self._scores["nll"] = _mean()

    def to(self, device: torch.device) -> "PredictiveMetrics":
        """Move the sums to ``device`` and return this bundle."""
        for metric in (
            self._labelled,
            self._counted,
            self._ranked,
            *self._scores.values(),
            *self._uncertainties.values(),
        ):
            metric.to(device)
        return self

    @staticmethod
    def fits(prediction: MCPrediction, labels: Tensor, class_dim: int = 1) -> bool:
        """Tell whether ``labels`` have the shape and type of targets for ``prediction``; see :meth:`check`."""
        mean = prediction.mean
        if prediction.task in _CLASSES:
            shape = list(mean.shape)
            del shape[class_dim]
            return list(labels.shape) == shape and not labels.is_floating_point()
        if prediction.task in _BITS:
            return labels.numel() == mean.numel()
        return labels.numel() == mean.numel() and labels.shape[:1] == mean.shape[:1]

    @staticmethod
    def check(prediction: MCPrediction, labels: Tensor, class_dim: int = 1) -> None:
        """Raise for values among ``labels``, which fit, that are no targets for ``prediction``.

        Raises:
            ValueError: If a label is no class and not -100, or for ``binary`` and ``multilabel`` neither 0 nor 1.
        """
        if prediction.task in _CLASSES:
            classes, labels = prediction.mean.shape[class_dim], labels.long()  # in uint8, -100 would be 156
            wrong = labels[((labels < 0) | (labels >= classes)) & (labels != IGNORED)]
            allowed = f"from 0 to {classes - 1} for {classes} classes, or {IGNORED} for what is to be left out"
        elif prediction.task in _BITS:
            wrong = labels[(labels != 0) & (labels != 1)]
            allowed = f'of 0 or 1 for task="{prediction.task}"'
        else:
            return
        if wrong.numel():
            raise ValueError(
                f"Expected labels {allowed}, but got {wrong[0].item()}; pass `labels=` the place in the batch where "
                "such labels are, or `labels=None` if batches have none."
            )

    def update(self, prediction: MCPrediction, labels: Tensor | None) -> None:
        """Take in one batch; ``labels=None`` updates what needs none, and so do labels that all are -100."""
        for name, metric in self._uncertainties.items():
            value = getattr(prediction, name)
            metric.update(value.mean(), weight=value.numel())
        self._labelled.update(float(labels is not None))
        if labels is not None:
            counted = int((labels.long() != IGNORED).sum()) if self.task in _CLASSES else labels.numel()
            self._counted.update(counted)
            if counted:
                arguments = self._arguments(prediction, labels)
                self._ranked.update(counted if log_keys.AURC in arguments else 0)
                for name, given in arguments.items():
                    self._scores[name].update(*given)

    def compute(self) -> dict[str, Tensor]:
        """Return every metric that has seen all data, synchronised over the ranks: call it on every rank.

        A rank without data takes part; without data anywhere there is no metric.
        """
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The ``compute`` method of metric")  # before an update: such a rank
            warnings.filterwarnings("ignore", "`A.*` is NaN, since")  # said of the outputs already
            labelled, counted, ranked = self._labelled.compute(), self._counted.compute(), self._ranked.compute()
            if labelled.isnan():
                return {}
            scores = self._scores if bool((labelled == 1) & (counted > 0)) else {}
            if bool(ranked != counted):
                scores = {name: metric for name, metric in scores.items() if name not in _SELECTIVE}
            return {name: metric.compute() for name, metric in {**scores, **self._uncertainties}.items()}

    def _arguments(self, prediction: MCPrediction, labels: Tensor) -> dict[str, tuple[Tensor, ...]]:
        scores: dict[str, tuple[Tensor, ...]]
        mean = prediction.mean
        if self.task in _CLASSES:
            if self.task == "probabilities":  # those of half precision sum to 1 only roughly
                mean = mean / mean.sum(self.class_dim, keepdim=True)
            logs = mean.log() if self.task == "probabilities" else prediction.logits
            labels = labels.long()  # in eight bits a class may look like another
            kept = labels != IGNORED
            mean, logs = (values.movedim(self.class_dim, -1)[kept] for values in (mean, logs))
            labels = labels[kept]
            confidence, predicted = mean.max(1)
            right = (predicted == labels).float()
            scores = {
                "accuracy": _weighted(right),
                "nll": (logs, labels),
                "brier": (mean, labels),
                "ece": (mean, labels),
            }
            single = prediction.mean.ndim == 2
            return {**scores, **dict.fromkeys(_SELECTIVE if single else (), (confidence, right))}
        labels = labels.reshape(mean.shape)
        if self.task in _BITS:
            logs = F.logsigmoid(wide(prediction.logits))  # a sigmoid is 1 in float32 from 17 on
            if self.task == "binary":
                mean, labels, logs = mean.flatten(), labels.flatten(), logs.flatten()
            labels = labels.long()
            right = ((mean > 0.5).long() == labels).float()
            scores = {"nll": (logs, labels), "brier": (mean, labels)}
            scores["accuracy"] = _weighted(right)
            if self.task == "multilabel":
                return scores
            single = len(mean) == len(prediction.mean)
            confidence = torch.maximum(mean, 1.0 - mean)
            return {**scores, "ece": (mean, labels), **dict.fromkeys(_SELECTIVE if single else (), (confidence, right))}
        errors: dict[str, tuple[Tensor, ...]] = {"rmse": (mean, labels), "mae": (mean, labels)}
        if self.task != "gaussian":
            return errors
        return {**errors, "nll": _weighted(gaussian_nll(mean, prediction.total_variance, labels))}


def _mean() -> MeanMetric:
    """Return a mean that a NaN makes NaN: by default it would be left out, with a warning."""
    return MeanMetric(nan_strategy=math.nan)


def _weighted(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of a batch and its weight."""
    return values.mean(), torch.tensor(values.numel(), device=values.device)

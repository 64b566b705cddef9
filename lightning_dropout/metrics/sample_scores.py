"""What a prediction says of each sample, in numbers: the rows that figures, curves and paired comparisons are made of.

Pure functions of predictions. Where a sample has one answer only: none of pixels, tokens or several labels, of which
there are too many to keep.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_dropout.metrics.regression import gaussian_nll
from lightning_dropout.sampling.losses import IGNORED
from lightning_dropout.sampling.moments import wide
from lightning_dropout.sampling.prediction import MCPrediction

__all__ = ["sample_scores"]


def sample_scores(prediction: MCPrediction, labels: Tensor | None = None, class_dim: int = 1) -> dict[str, Tensor]:
    """Return one number a sample of each score that the task defines.

    Args:
        prediction: Of one or of many passes.
        labels: Their targets, which fit; None if there are none. Classes of -100 make the scores that need labels NaN.
        class_dim: The dimension of the classes.

    Returns:
        By name, on the CPU, in float32 (whole numbers in int64). Classes and binary: ``predicted``, ``confidence`` (the
        probability of the predicted class; for binary also ``probability``, that of "yes"), ``entropy`` in nats,
        ``mutual_information`` if there are several passes; with labels ``label``, ``right`` (1 or 0), ``nll`` in nats
        and ``brier``. Regression: ``mean`` and ``std`` (of several passes; for ``gaussian`` that of the mixture, and
        ``epistemic_std``); with labels ``label``, ``error`` and, for ``gaussian``, ``nll``. Nothing where a sample has
        several answers.

    Shape:
        Each ``(batch,)``.

    Example:
        >>> from lightning_dropout.sampling.prediction import Statistics
        >>> statistics, logits = Statistics("multiclass", 1), torch.tensor([[0.0, 2.0], [1.0, 0.0]])
        >>> statistics.update(logits)
        >>> scores = sample_scores(statistics.result(logits), torch.tensor([1, 1]))
        >>> scores["predicted"].tolist(), scores["right"].tolist(), scores["confidence"]
        ([1, 0], [1.0, 0.0], tensor([0.8808, 0.7311]))
    """
    mean = prediction.mean
    if prediction.task in ("multiclass", "probabilities") and mean.ndim == 2 and class_dim in (1, -1):
        scores = _of_classes(prediction, labels)
    elif prediction.task == "binary" and mean.numel() == len(mean):
        scores = _of_yes(prediction, labels)
    elif prediction.task in ("regression", "gaussian") and mean.numel() == len(mean):
        scores = _of_values(prediction, labels)
    else:
        return {}
    return {name: _kept(values) for name, values in scores.items()}


def _kept(values: Tensor) -> Tensor:
    """Return a flat copy on the CPU: the labels of a batch are its loader's, which may fill it again."""
    dtype = torch.float32 if values.is_floating_point() else torch.int64
    return values.detach().to("cpu", dtype, copy=True).reshape(-1)


def _of_classes(prediction: MCPrediction, labels: Tensor | None) -> dict[str, Tensor]:
    mean = wide(prediction.mean)
    mean = mean / mean.sum(1, keepdim=True)  # those of half precision sum to 1 only roughly
    confidence, predicted = mean.max(1)
    scores = {"predicted": predicted, "confidence": confidence, **_entropies(prediction)}
    if labels is None:
        return scores
    logs = mean.log() if prediction.task == "probabilities" else wide(prediction.logits)
    label = labels.long()
    counted = label != IGNORED
    place = label.clamp_min(0)[:, None]
    of_label = mean.gather(1, place)
    brier = mean.scatter(1, place, 1.0 - of_label).square().sum(1)
    return {
        **scores,
        "label": label,
        "right": _where(counted, (predicted == label).to(mean.dtype)),
        "nll": _where(counted, -logs.gather(1, place)[:, 0]),
        "brier": _where(counted, brier),
    }


def _of_yes(prediction: MCPrediction, labels: Tensor | None) -> dict[str, Tensor]:
    mean = wide(prediction.mean).flatten()
    predicted = (mean > 0.5).long()
    confidence = torch.maximum(mean, 1.0 - mean)
    scores = {"predicted": predicted, "confidence": confidence, "probability": mean, **_entropies(prediction)}
    if labels is None:
        return scores
    label = labels.flatten().long()
    logits = wide(prediction.logits).flatten()
    return {
        **scores,
        "label": label,
        "right": (predicted == label).to(mean.dtype),
        "nll": F.binary_cross_entropy_with_logits(logits, label.to(logits), reduction="none"),
        "brier": (mean - label).square(),
    }


def _entropies(prediction: MCPrediction) -> dict[str, Tensor]:
    several = prediction.num_samples > 1
    return {"entropy": prediction.entropy} | ({"mutual_information": prediction.mutual_information} if several else {})


def _of_values(prediction: MCPrediction, labels: Tensor | None) -> dict[str, Tensor]:
    mean = wide(prediction.mean).flatten()
    scores = {"mean": mean}
    if prediction.task == "gaussian":
        variance = wide(prediction.total_variance).flatten()
        scores |= {"std": variance.sqrt(), "epistemic_std": wide(prediction.epistemic_variance).sqrt()}
    elif prediction.num_samples > 1:
        scores["std"] = prediction.std
    if labels is None:
        return scores
    label = wide(labels).flatten()
    scores |= {"label": label, "error": mean - label}
    if prediction.task == "gaussian":
        scores["nll"] = gaussian_nll(mean, variance, label)
    return scores


def _where(counted: Tensor, values: Tensor) -> Tensor:
    return torch.where(counted, values, torch.nan)

"""Which loss a model has computed: found again from its value, so that it can be computed for the mean prediction.

Only losses that need nothing but predictions and labels, in the form in which libraries compute them by default.
Nothing here averages, and nothing is guessed: a candidate counts if it gives the very number that the model gave.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_dropout.sampling.prediction import Outputs, Task

__all__ = ["IGNORED", "Loss", "find_loss"]

Loss = Callable[[Any], Tensor]
_Criterion = Callable[[Tensor, Tensor, int, str], Tensor | None]

IGNORED = -100  # the label that torch's cross entropy, and every library on top, leaves out


def find_loss(own: Tensor, values: Outputs, labels: Iterable[Tensor], task: Task, class_dim: int) -> Loss | None:
    """Return the function of a prediction that gives ``own`` for ``values``, or ``None`` if no candidate does.

    Candidates are cross entropy, cross entropy of the next tokens, binary cross entropy of logits and squared error:
    their mean, their sum, and one value for each label. The best fit wins.

    Args:
        own: A loss that the model has computed; it may be one number or a tensor.
        values: The predictions that it was computed from, in the form of the model's output.
        labels: Tensors among which the labels may be.
        task: What ``values`` are.
        class_dim: The dimension of the classes.

    Example:
        >>> logits, labels = torch.tensor([[2.0, 0.0]]), torch.tensor([0])
        >>> find_loss(torch.tensor(7.0), logits, [labels], "multiclass", 1) is None
        True
        >>> loss = find_loss(F.cross_entropy(logits, labels), logits, [torch.ones(3), labels], "multiclass", 1)
        >>> loss(torch.zeros(1, 2))
        tensor(0.6931)
    """
    if not isinstance(values, Tensor):
        return None
    precision = torch.finfo(own.dtype).eps
    smallest, best = math.inf, None
    labels = [tensor for tensor in labels if tensor.device == values.device]
    # Libraries compute losses of half precision either there or in single precision.
    for form in (values.to(torch.promote_types(values.dtype, torch.float32)), values):
        for choice in itertools.product(labels, _CRITERIA, ("mean", "sum", "none")):
            candidate = functools.partial(_loss, *choice, own.shape, task, class_dim)
            value = candidate(form)
            if value is None:
                continue
            fits = torch.isclose(value.to(own.dtype), own, max(1e-5, 2 * precision), precision, equal_nan=True)
            error = (value - own).abs().nan_to_num(0.0).max().item()
            if fits.all() and error < smallest:  # in half precision several fit
                smallest, best = error, candidate
    return cast(Loss | None, best)


def _loss(
    labels: Tensor,
    criterion: _Criterion,
    reduction: str,
    shape: torch.Size,
    task: Task,
    class_dim: int,
    values: Tensor,
) -> Tensor | None:
    """Return the loss of ``values`` in ``shape``; ``None`` if they do not go together."""
    loss = criterion(values.log() if task == "probabilities" else values, labels, class_dim, reduction)
    return None if loss is None or loss.numel() != shape.numel() else loss.reshape(shape)


def _cross_entropy(scores: Tensor, labels: Tensor, class_dim: int, reduction: str) -> Tensor | None:
    if labels.is_floating_point() or not -scores.ndim <= class_dim < scores.ndim:
        return None
    return _of_classes(scores.movedim(class_dim, -1), labels, reduction)


def _next_token_cross_entropy(scores: Tensor, labels: Tensor, class_dim: int, reduction: str) -> Tensor | None:
    if labels.is_floating_point() or scores.ndim != 3 or not -3 <= class_dim < 3:
        return None
    scores = scores.movedim(class_dim, -1)
    if labels.shape != scores.shape[:-1]:
        return None
    return _of_classes(scores[:, :-1], labels[:, 1:], reduction)


def _of_classes(scores: Tensor, labels: Tensor, reduction: str) -> Tensor | None:
    scores, labels = scores.reshape(-1, scores.shape[-1]), labels.flatten().long()
    in_range = (labels == IGNORED) | ((labels >= 0) & (labels < scores.shape[1]))
    if len(labels) != len(scores) or scores.shape[1] < 2 or not in_range.all():  # a GPU would not survive the last
        return None
    return F.cross_entropy(scores, labels, ignore_index=IGNORED, reduction=reduction)


def _binary_cross_entropy(scores: Tensor, labels: Tensor, class_dim: int, reduction: str) -> Tensor | None:
    targets = _of_scores(labels, scores)
    return None if targets is None else F.binary_cross_entropy_with_logits(scores, targets, reduction=reduction)


def _squared_error(scores: Tensor, labels: Tensor, class_dim: int, reduction: str) -> Tensor | None:
    targets = _of_scores(labels, scores)
    return None if targets is None else F.mse_loss(scores, targets, reduction=reduction)


def _of_scores(labels: Tensor, scores: Tensor) -> Tensor | None:
    """Return one floating label for each score."""
    if labels.numel() != scores.numel():
        return None
    single = torch.promote_types(scores.dtype, torch.float32)
    return labels.reshape(scores.shape).to(labels.dtype if labels.is_floating_point() else single)


_CRITERIA: tuple[_Criterion, ...] = (_cross_entropy, _next_token_cross_entropy, _binary_cross_entropy, _squared_error)

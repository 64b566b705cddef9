"""Temperature scaling: the one number by which logits are divided so that their probabilities are calibrated.

The baseline that stochastic passes have to beat. Pure functions of logits and targets; where these come from, and what
the scaled logits are compared with, is decided elsewhere.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_dropout.metrics.probability_metric import ClassificationTask
from lightning_dropout.sampling.moments import wide

__all__ = ["TEMPERATURES", "fit_temperature"]

TEMPERATURES = (0.05, 100.0)  # searched; beyond, a few samples more would give another one altogether
_PRECISION = 1e-5  # relative
_MOST_STEPS = 100  # halving alone, from the whole range to that precision, takes 20


def fit_temperature(
    logits: Tensor,
    target: Tensor,
    *,
    task: ClassificationTask,
    summed: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> float:
    """Return the temperature T that makes the targets most likely: the minimum over T of the NLL of ``logits / T``.

    The NLL is convex in ``1 / T``, so there is one minimum, found by Newton's method between bounds. Above 1 the logits
    were too sure, below 1 not sure enough. It changes no ranking of the classes, so no accuracy either. Fit it on
    samples that the model was not trained on.

    Args:
        logits: What the model gave. A logit of -inf is a class that is ruled out. Samples with other values that are
            not finite, or whose target is ruled out, are left out.
        target: Integer classes, or for binary and multilabel 0 and 1.
        task: What the logits are of.
        summed: Sums a tensor of three numbers over the processes that hold parts of the samples.

    Shape:
        ``multiclass``: logits ``(N, C)``, targets ``(N,)``. Else both ``(N, ...)``.

    Returns:
        A number between 0.05 and 100; NaN if there is none: without a sample, without an error among the samples (then
        surer is always better) or with nothing else, or where the logits are equal for all classes.

    Raises:
        ValueError: If shapes do not fit.

    Source:
        Guo et al., "On Calibration of Modern Neural Networks" (2017), arXiv:1706.04599, section 4.2.

    Example:
        >>> logits = torch.tensor([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [4.0, 0.0]])
        >>> round(fit_temperature(logits, torch.tensor([0, 0, 0, 1]), task="multiclass"), 4)  # 4 / log(3)
        3.641
    """
    expected = logits.shape[:1] if task == "multiclass" and logits.ndim == 2 else logits.shape
    if target.shape != expected:
        raise ValueError(
            f"Expected `target` to have the shape {tuple(expected)} for `logits` {tuple(logits.shape)} and "
            f'task="{task}", but got {tuple(target.shape)}.'
        )
    logits, target = logits.detach(), target.detach().long()
    if task != "multiclass":  # as two classes, "no" with a logit of 0
        logits, target = logits.reshape(-1), target.reshape(-1)
        logits = torch.stack([torch.zeros_like(logits), logits], dim=1)
    logits = wide(logits)
    of_target = logits.gather(1, target[:, None])
    usable = (logits.isfinite() | logits.isneginf()).all(1) & of_target[:, 0].isfinite()
    # Only differences from the target matter; and where a class is ruled out, 0 * inf is never met.
    gaps = logits[usable] - of_target[usable]
    ruled_out = gaps.isneginf()
    finite = gaps.masked_fill(ruled_out, 0.0)

    def slopes(inverse: float) -> tuple[float, float, float]:
        """Return the first two derivatives of the summed NLL with respect to 1 / T, and the number of samples."""
        probabilities = (gaps * inverse).softmax(1)
        first = (probabilities * finite).sum(1)
        second = (probabilities * (finite - first[:, None]).square()).masked_fill(ruled_out, 0.0).sum(1)
        sums: Any = torch.stack([first.sum(), second.sum(), first.new_tensor(float(len(first)))])
        slope, curvature, count = summed(sums).tolist()
        return slope, curvature, count

    return _root(slopes)


def _root(slopes: Callable[[float], tuple[float, float, float]]) -> float:
    """Return 1 / x where the first slope, which grows with x, crosses 0."""
    lowest, highest = 1.0 / TEMPERATURES[1], 1.0 / TEMPERATURES[0]
    inverse = 1.0
    for _ in range(_MOST_STEPS):
        slope, curvature, count = slopes(inverse)
        if count == 0 or (slope == 0.0 and curvature == 0.0):
            return math.nan
        if slope > 0.0:
            highest = inverse
        else:
            lowest = inverse
        step = inverse - slope / curvature if curvature > 0.0 else math.inf
        # Far from the root the curve may be nearly straight, and Newton's step then leaves the bounds.
        following = step if lowest < step < highest else math.sqrt(lowest * highest)
        if abs(following - inverse) <= _PRECISION * inverse:
            break
        inverse = following
    else:  # steps of 1 / margin, up a slope without an end: all samples are right, and surely so
        return math.nan
    temperature = 1.0 / following
    inside = TEMPERATURES[0] * (1.0 + 10 * _PRECISION) < temperature < TEMPERATURES[1] * (1.0 - 10 * _PRECISION)
    return temperature if inside else math.nan

"""What the metrics of predicted probabilities share: the words for tasks and the check of inputs.

No formula of a metric stands here.
"""

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lightning_dropout.metrics.exact_metric import ExactMetric

__all__ = ["ClassificationTask", "ProbabilityMetric"]

ClassificationTask = Literal["binary", "multiclass", "multilabel"]


class ProbabilityMetric(ExactMetric):
    """Base of the metrics that take probabilities and targets; subclasses add sums, ``update`` and ``compute``.

    The values of the first non-empty batch are checked (one pass over it, one wait for the device), the shapes of all.

    Args:
        task: ``multiclass``: probabilities of C classes that exclude each other. ``binary``, ``multilabel``:
            probabilities of "yes", each on its own.
        kwargs: Of ``torchmetrics.Metric``, such as ``sync_on_compute``.

    Shape:
        ``multiclass``: probabilities ``(N, C, ...)``, integer targets ``(N, ...)``. Else both ``(N, ...)``, targets 0
        or 1.

    Raises:
        ValueError: If ``task`` is unknown; by ``update``, if the inputs are not what ``task`` says.
    """

    higher_is_better: bool | None = False
    plot_lower_bound = 0.0
    log_input = False  # whether `update` receives natural logarithms of probabilities

    def __init__(self, *, task: ClassificationTask, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if task not in get_args(ClassificationTask):
            raise ValueError(f"Expected `task` to be one of binary, multiclass, multilabel, but got {task!r}.")
        self.task: ClassificationTask = task

    def _rows(self, probabilities: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return checked inputs as ``(rows, C)`` and ``(rows,)``; both as ``(rows,)`` where there are no classes."""
        self._check_shapes(probabilities, target)
        self._check_first(self._check_values, probabilities, target)
        if self.task == "multiclass":
            probabilities = probabilities.movedim(1, -1).reshape(-1, probabilities.shape[1])
        else:
            probabilities = probabilities.reshape(-1)
        return probabilities, target.reshape(-1).long()

    def _check_shapes(self, probabilities: Tensor, target: Tensor) -> None:
        self._check_shape(probabilities)
        shape = list(probabilities.shape)
        if self.task == "multiclass":
            if target.is_floating_point():
                raise ValueError(f"Expected `target` to be integer class indices, but got {target.dtype}.")
            del shape[1]
        if list(target.shape) != shape:
            raise ValueError(
                f"Expected `target` to have the shape {tuple(shape)} for `probabilities` {tuple(probabilities.shape)} "
                f'and task="{self.task}", but got {tuple(target.shape)}.'
            )

    def _check_shape(self, probabilities: Tensor) -> None:
        if not probabilities.is_floating_point():
            raise ValueError(f"Expected `probabilities` to be of a floating dtype, but got {probabilities.dtype}.")
        shape = tuple(probabilities.shape)
        if self.task == "multiclass" and (len(shape) < 2 or shape[1] < 2):
            raise ValueError(
                f"Expected `probabilities` to have the shape (N, C, ...) with C >= 2 classes, but got "
                f'{shape}; one probability per sample is `task="binary"`.'
            )

    def _check_values(self, probabilities: Tensor, target: Tensor) -> None:
        self._check_probabilities(probabilities)
        highest = probabilities.shape[1] - 1 if self.task == "multiclass" else 1
        whole = target.long()  # 256 classes and more are too many for the comparison of eight bits
        outside = target[(whole < 0) | (whole > highest) | (target != whole)]
        if outside.numel():
            raise ValueError(
                f'Expected `target` to be integers from 0 to {highest} for task="{self.task}", '
                f"but got {outside[0].item()}."
            )

    def _check_probabilities(self, probabilities: Tensor) -> None:
        # NaN is no wrong input: it comes out again. So every test asks for what is wrong, which NaN is never.
        eps = torch.finfo(probabilities.dtype).eps
        slack = max(1e-4, 4 * eps)
        # Of a sum, wide enough for values that all were rounded the same way, also if they were bf16 once and then cast
        # up. Logarithms lose more: an absolute error there is a relative one here.
        of_sum = max(0.05, 16 * eps) if self.log_input else max(0.01, 4 * eps)
        softmax = "softmax" if self.task == "multiclass" else "sigmoid"
        values = probabilities.detach().to(self._precise(probabilities))
        if self.log_input:
            if (values > slack).any():
                raise ValueError(
                    f"Expected `probabilities` to be logarithms, at most 0 (log_input=True), but got "
                    f"{values.nan_to_num(0.0).max().item():.4g}; take log_{softmax} of logits, or log_input=False."
                )
            values = values.exp()
        elif ((values < -slack) | (values > 1 + slack)).any():
            known = values.nan_to_num(0.5)
            raise ValueError(
                f"Expected `probabilities` to lie in [0, 1], but got values from {known.min().item():.4g} to "
                f"{known.max().item():.4g}; take the {softmax} of logits first."
            )
        if self.task == "multiclass":
            sums = values.sum(1)
            wrong = sums[(sums - 1).abs() > of_sum]
            if wrong.numel():
                log = "log_" if self.log_input else ""
                raise ValueError(
                    f"Expected `probabilities` to sum to 1 over dimension 1, but got a sum of {wrong[0].item():.4g}; "
                    f"take the {log}softmax of logits over dimension 1 first."
                )

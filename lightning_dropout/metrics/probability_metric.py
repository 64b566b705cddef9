"""What the metrics of predicted probabilities share: the words for tasks, the check of inputs, exact sums.

No formula of a metric stands here. Every state is a sum over samples, so that batches, ranks and merged metrics give
one result whatever their sizes and order.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torchmetrics import Metric

__all__ = ["ClassificationTask", "ProbabilityMetric"]

ClassificationTask = Literal["binary", "multiclass", "multilabel"]


class ProbabilityMetric(Metric):
    """Base of the metrics that take probabilities and targets; subclasses add sums, ``update`` and ``compute``.

    The values of the first non-empty batch are checked (one pass over it, one wait for the device), the shapes of all.

    Args:
        task: ``multiclass``: probabilities of C classes that exclude each other. ``binary``, ``multilabel``:
            probabilities of "yes", each on its own.
        log_input: Whether ``update`` receives natural logarithms of probabilities.
        kwargs: Of ``torchmetrics.Metric``, such as ``sync_on_compute``.

    Shape:
        ``multiclass``: probabilities ``(N, C, ...)``, integer targets ``(N, ...)``. Else both ``(N, ...)``, targets 0
        or 1.

    Raises:
        ValueError: If ``task`` is unknown; by ``update``, if the inputs are not what ``task`` says.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    plot_lower_bound = 0.0

    def __init__(self, *, task: ClassificationTask, log_input: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if task not in get_args(ClassificationTask):
            raise ValueError(f"Expected `task` to be one of binary, multiclass, multilabel, but got {task!r}.")
        self.task: ClassificationTask = task
        self.log_input = log_input
        self._values_checked = False

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot the value, or the list of values ``val``, as every torchmetrics metric does.

        Args:
            val: One result or a list of results; default the present one.
            ax: The matplotlib axes to draw on; default new ones.

        Returns:
            The figure and its axes.
        """
        return self._plot(val, ax)

    def _add_sum(self, name: str, size: int | None = None) -> None:
        shape = () if size is None else (size,)
        self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> nn.Module:
        # Sums follow the module to its device, but keep their precision where it goes to bf16 or fp16
        # (`precision="bf16-true"`), in which a count by ones would stop at 256.
        def move(tensor: Tensor) -> Tensor:
            try:
                moved = fn(tensor)
            except TypeError:  # a device without float64 (MPS)
                return fn(tensor.float())
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, exclude_state)

    def _rows(self, probabilities: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return checked inputs as ``(rows, C)`` and ``(rows,)``; both as ``(rows,)`` where there are no classes."""
        self._check_shapes(probabilities, target)
        if not self._values_checked and target.numel() > 0:
            self._check_values(probabilities, target)
            self._values_checked = True
        if self.task == "multiclass":
            probabilities = probabilities.movedim(1, -1).reshape(-1, probabilities.shape[1])
        else:
            probabilities = probabilities.reshape(-1)
        return probabilities, target.reshape(-1).long()

    def _check_shapes(self, probabilities: Tensor, target: Tensor) -> None:
        if not probabilities.is_floating_point():
            raise ValueError(f"Expected `probabilities` to be of a floating dtype, but got {probabilities.dtype}.")
        shape = list(probabilities.shape)
        if self.task == "multiclass":
            if len(shape) < 2 or shape[1] < 2:
                raise ValueError(
                    f"Expected `probabilities` to have the shape (N, C, ...) with C >= 2 classes, but got "
                    f'{tuple(shape)}; one probability per sample is `task="binary"`.'
                )
            if target.is_floating_point():
                raise ValueError(f"Expected `target` to be integer class indices, but got {target.dtype}.")
            del shape[1]
        if list(target.shape) != shape:
            raise ValueError(
                f"Expected `target` to have the shape {tuple(shape)} for `probabilities` {tuple(probabilities.shape)} "
                f'and task="{self.task}", but got {tuple(target.shape)}.'
            )

    def _check_values(self, probabilities: Tensor, target: Tensor) -> None:
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
        highest = probabilities.shape[1] - 1 if self.task == "multiclass" else 1
        whole = target.long()  # 256 classes and more are too many for the comparison of eight bits
        outside = target[(whole < 0) | (whole > highest) | (target != whole)]
        if outside.numel():
            raise ValueError(
                f'Expected `target` to be integers from 0 to {highest} for task="{self.task}", '
                f"but got {outside[0].item()}."
            )

    @staticmethod
    def _precise(tensor: Tensor) -> torch.dtype:
        return torch.float32 if tensor.device.type == "mps" else torch.float64

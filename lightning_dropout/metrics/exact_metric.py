"""What every metric of this room shares: exact sums, samples that are kept whole, one result however they are split.

No formula of a metric stands here. A state is a sum over samples or the samples themselves, so that batches, ranks and
merged metrics give one result whatever their sizes and order.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat, rank_zero_warn

from lightning_dropout.sampling.moments import wide

__all__ = ["ExactMetric", "SampleMean", "check_shapes"]


class ExactMetric(Metric):
    """Base of all metrics: states in float64 that keep their precision, and a plot of the result.

    Args:
        kwargs: Of ``torchmetrics.Metric``, such as ``sync_on_compute``.
    """

    is_differentiable = False
    full_state_update = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._values_checked = False
        self._kept_dtypes: dict[str, torch.dtype] = {}

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot the value, or the list of values ``val``, as every torchmetrics metric does.

        Args:
            val: One result or a list of results; default the present one.
            ax: The matplotlib axes to draw on; default new ones.

        Returns:
            The figure and its axes.
        """
        return self._plot(val, ax)

    def _add_sum(self, name: str, *shape: int) -> None:
        self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def _add_kept(self, name: str, dtype: torch.dtype = torch.float64) -> None:
        self._kept_dtypes[name] = dtype
        self.add_state(name, [], dist_reduce_fx="cat")

    def _keep(self, name: str, values: Tensor) -> None:
        """Keep a flat copy, which the user's next write cannot reach."""
        dtype = self._precise(values) if self._kept_dtypes[name] == torch.float64 else self._kept_dtypes[name]
        getattr(self, name).append(values.detach().reshape(-1).to(dtype, copy=True))

    def _kept(self, name: str) -> Tensor:
        """Return all that was kept: of this rank, or of all of them while they are in sync."""
        values = getattr(self, name)
        return self._nothing(name) if isinstance(values, list) and not values else dim_zero_cat(values)

    def _nothing(self, name: str) -> Tensor:
        empty = torch.empty(0, dtype=torch.bool, device=self.device)
        dtype = self._kept_dtypes[name]
        return empty.to(self._precise(empty) if dtype == torch.float64 else dtype)

    def _sync_dist(self, *args: Any, **kwargs: Any) -> None:
        # Of a rank without data, torchmetrics would gather a float32 list, which the others' float64 does not fit.
        for name in self._kept_dtypes:
            setattr(self, name, [self._kept(name)])
        super()._sync_dist(*args, **kwargs)

    def _over_ranks(self) -> AbstractContextManager[None]:
        """Hold the states of all ranks for a while: to be entered on every rank, as ``compute`` does by itself."""
        context: AbstractContextManager[None] = self.sync_context(
            dist_sync_fn=self.dist_sync_fn, process_group=self.process_group, should_sync=not self._is_synced
        )
        return context

    def _check_first(self, check: Callable[..., None], *values: Tensor) -> None:
        """Run ``check`` on the first non-empty batch: it waits for the device."""
        if not self._values_checked and values[0].numel() > 0:
            check(*values)
            self._values_checked = True

    def _undefined(self, reason: str) -> Tensor:
        rank_zero_warn(f"`{type(self).__name__}` is NaN, since {reason}.", UserWarning)
        return torch.full((), torch.nan, device=self.device)

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

    @staticmethod
    def _precise(tensor: Tensor) -> torch.dtype:
        return torch.float32 if tensor.device.type == "mps" else torch.float64


class SampleMean(ExactMetric):
    """Base of the metrics that are the mean of one value per sample, which ``update`` hands to ``_take``."""

    total: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._add_sum("total")
        self._add_sum("count")

    def compute(self) -> Tensor:
        """Return the mean over all samples so far, float32; NaN if there was none."""
        return (self.total / self.count).float()

    def _take(self, values: Tensor) -> None:
        self.total += wide(values).sum()
        self.count += values.numel()


def check_shapes(**values: Tensor) -> None:
    """Raise unless all have the shape of the first."""
    (first, of_first), *others = values.items()
    for name, of_other in others:
        if of_other.shape != of_first.shape:
            raise ValueError(
                f"Expected `{name}` to have the shape {tuple(of_first.shape)} of `{first}`, but got "
                f"{tuple(of_other.shape)}; shapes are not broadcast."
            )

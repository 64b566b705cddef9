"""What is logged beside the module's own metrics: the passes (``mc``) and the plain forward (``det``), per loader.

All metrics exist on every rank for every loader from the start, and which keys come out follows from sums over the
ranks: a rank that got no batch of a loader, or none with labels, takes part in every exchange.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_dropout.callbacks.batch_labels import labels_of
from lightning_dropout.metrics.predictive import PredictiveMetrics
from lightning_dropout.sampling.prediction import MCPrediction, Task

__all__ = ["Comparison"]


class Comparison:
    """Metrics of one stage.

    Args:
        task: What the predictions are of.
        class_dim: The dimension of the classes.
        passes: Number of passes by side: ``{"mc": 30, "det": 1}``.
        labels: Where a batch holds its labels, as in :func:`labels_of`; ``None``: nowhere.
        num_loaders: Number of data loaders, on every rank the same.
        device: Where the sums live.
    """

    def __init__(
        self,
        task: Task,
        class_dim: int,
        *,
        passes: Mapping[str, int],
        labels: str | Callable[[Any], Any] | None,
        num_loaders: int,
        device: torch.device,
    ) -> None:
        self.task, self.class_dim, self.where = task, class_dim, labels
        self._metrics = [
            {side: PredictiveMetrics(task, class_dim, spread=count > 1).to(device) for side, count in passes.items()}
            for _ in range(num_loaders)
        ]

    def update(self, dataloader_idx: int, predictions: Mapping[str, MCPrediction], labels: Tensor | None) -> None:
        """Take in one call of the module; without labels, what needs none."""
        for side, prediction in predictions.items():
            self._metrics[dataloader_idx][side].update(prediction, labels)

    def compute(self) -> Iterator[tuple[int, str, str, Tensor]]:
        """Yield loader, side, name and value of every metric that has seen all data; call it on every rank."""
        for dataloader_idx, sides in enumerate(self._metrics):
            for side, metrics in sides.items():
                for name, value in metrics.compute().items():
                    yield dataloader_idx, side, name, value

    def labels(self, batch: Any, prediction: MCPrediction) -> Tensor | None:
        """Return the labels of ``batch``, or ``None`` if a guess finds nothing that fits ``prediction``.

        Raises:
            ValueError: If the user's own path or function leads to something else, or a label has an impossible value.
        """
        if self.task == "raw" or self.where is None:
            return None
        found = labels_of(batch, self.where)
        if isinstance(found, Tensor) and PredictiveMetrics.fits(prediction, found, self.class_dim):
            PredictiveMetrics.check(prediction, found, self.class_dim)
            return found
        if self.where != "auto":
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f'Expected `labels` to lead to the targets of task="{self.task}", but got {shape} for predictions of '
                f'shape {tuple(prediction.mean.shape)}; pass a path such as "1" or a function of the batch.'
            )
        return None

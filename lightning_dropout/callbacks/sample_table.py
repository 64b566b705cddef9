"""The scores of all samples of a test, by loader and side, as they come in and over all ranks. Draws nothing."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_dropout import log_keys
from lightning_dropout.callbacks.batch_labels import inputs_of
from lightning_dropout.metrics.sample_scores import sample_scores
from lightning_dropout.sampling.prediction import MCPrediction

__all__ = ["SampleScores"]

Columns = dict[str, Tensor]


class SampleScores:
    """Rows of numbers, one for each sample; a few dozen bytes each.

    Args:
        class_dim: The dimension of the classes.

    Example:
        >>> SampleScores(class_dim=1).columns(0, "mc")
        {}
    """

    def __init__(self, class_dim: int) -> None:
        self.class_dim = class_dim
        self._batches: dict[tuple[int, str], list[Columns]] = defaultdict(list)
        self.error: Exception | None = None
        """Why rows are missing: whoever adds them sets it."""

    def add(
        self, dataloader_idx: int, batch: Any, sides: Mapping[str, MCPrediction], labels: Tensor | None
    ) -> dict[str, Columns]:
        """Take in a batch; return its scores."""
        found = {side: sample_scores(prediction, labels, self.class_dim) for side, prediction in sides.items()}
        for side, columns in found.items():
            if columns:
                inputs = _single_input(batch, len(next(iter(columns.values()))))
                if inputs is not None and side == log_keys.MC and "mean" in columns:
                    columns["input"] = inputs
                self._batches[dataloader_idx, side].append(columns)
        return found

    def columns(self, dataloader_idx: int, side: str) -> Columns:
        """Return the columns that every batch has; none if there were no scores."""
        batches = self._batches.get((dataloader_idx, side), [])
        names = [name for name in batches[0] if all(name in batch for batch in batches)] if batches else []
        return {name: torch.cat([batch[name] for batch in batches]) for name in names}

    def over_ranks(self, trainer: Any) -> "SampleScores":
        """Return the rows of all ranks, one rank after the other; every rank calls it.

        Raises:
            RuntimeError: If rows are missing, on whichever rank: some of the samples would be taken for all.
        """
        own = None if self.error is None else f"{type(self.error).__name__}: {self.error}", dict(self._batches)
        ranks: list[Any] = [own] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(ranks, own)
        if errors := [error for error, _ in ranks if error is not None]:
            raise RuntimeError(errors[0])
        joined = SampleScores(self.class_dim)
        for _, rank in ranks:
            for place, batches in rank.items():
                joined._batches[place] += batches
        return joined


def _single_input(batch: Any, rows: int) -> Tensor | None:
    """Return the input of each sample, if that is one number."""
    x = inputs_of(batch)
    if not (isinstance(x, Tensor) and x.numel() == rows):
        return None
    return x.detach().to("cpu", torch.float32, copy=True).reshape(-1)  # of a batch that a loader may fill again

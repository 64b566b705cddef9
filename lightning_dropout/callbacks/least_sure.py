"""The samples of a test that the model is least sure of: a few of them, with their images if they are images.

They are the user's data, so they are kept only where that was asked for.
"""

import heapq
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from lightning_dropout.callbacks.batch_labels import inputs_of
from lightning_dropout.reports.sample_sheet import SampleTable

__all__ = ["LeastSure"]


class _Row(NamedTuple):
    entropy: float  # -1 for NaN, which nothing can be said of
    place: int  # of the sample in its data set, negative: of two alike the first
    scores: dict[str, Tensor]
    image: Tensor | None


class LeastSure:
    """Those of the highest entropy among all samples that were added.

    Args:
        number: How many are kept, at least 0.

    Example:
        >>> import torch
        >>> kept = LeastSure(1)
        >>> scores = {"predicted": torch.tensor([0, 1]), "confidence": torch.tensor([0.9, 0.6])}
        >>> kept.add(None, {**scores, "entropy": torch.tensor([0.3, 0.7])})
        >>> kept.table().sample, kept.table().predicted
        ((1,), (1,))
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self._heap: list[_Row] = []  # the surest of them first
        self._seen = 0

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, batch: Any, scores: Mapping[str, Tensor]) -> None:
        """Take in the scores of a batch, as ``metrics.sample_scores`` gives them."""
        entropies = scores["entropy"].tolist()
        x = inputs_of(batch)
        images = x if isinstance(x, Tensor) and x.ndim == 4 and len(x) == len(entropies) else None
        for row, entropy in enumerate(entropies):
            rank = entropy if math.isfinite(entropy) else -1.0, -self._seen - row
            full = len(self._heap) >= self.number
            if self.number and (not full or rank > self._heap[0][:2]):
                # A copy: a view would keep the whole batch.
                image = None if images is None else images[row].detach().to("cpu", copy=True)
                entry = _Row(*rank, {name: column[row] for name, column in scores.items()}, image)
                (heapq.heapreplace if full else heapq.heappush)(self._heap, entry)
        self._seen += len(entropies)

    def images(self) -> list[Tensor]:
        """Return the images, those of the least sure sample first; none if one of the samples is no image."""
        rows = self._rows()
        images = [row.image for row in rows if row.image is not None]
        return images if len(images) == len(rows) else []

    def table(self) -> SampleTable:
        """Return what is said of the samples, in the same order."""
        rows = self._rows()
        return SampleTable(
            sample=tuple(-row.place for row in rows),
            predicted=tuple(int(row.scores["predicted"]) for row in rows),
            label=tuple(int(row.scores["label"]) if "label" in row.scores else None for row in rows),
            probability=tuple(float(row.scores["confidence"]) for row in rows),
            entropy=tuple(float(row.scores["entropy"]) for row in rows),
            mutual_information=tuple(float(row.scores.get("mutual_information", math.nan)) for row in rows),
        )

    def _rows(self) -> list[_Row]:
        return sorted(self._heap, key=lambda row: row[:2], reverse=True)

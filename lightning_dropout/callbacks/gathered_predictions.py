"""What ``trainer.predict`` returned on several ranks, put together in the order of the data set.

Lightning gives every rank the list of its own batches, and the samples of a rank are every second or third of all.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_dropout.sampling.structures import filled, leaves_of

__all__ = ["gather_predictions"]


def gather_predictions(trainer: Any, predictions: Sequence[Any] | None) -> Any:
    """Return the predictions of all ranks in the order of the data set, each sample once; every rank calls it.

    On one process it joins the batches.

    Args:
        trainer: It has run ``predict``, and nothing since.
        predictions: What that returned, on this rank: batches of tensors, or of tuples, lists, dictionaries or
            dataclasses of tensors. What is no tensor must be the same in all batches.

    Returns:
        What a single batch of all samples would be, on the CPU, on all ranks; a list of them if there are several
        loaders.

    Shape:
        Every tensor ``(batch, ...)`` to ``(samples, ...)``.

    Raises:
        ValueError: If there are no predictions, if a tensor does not have one row a sample, or if the loader is of a
            kind in which samples have no numbers (an iterable data set).

    Example:
        >>> import lightning.pytorch as pl
        >>> class Double(pl.LightningModule):
        ...     def predict_step(self, batch, batch_idx):
        ...         return {"double": 2 * batch}
        >>> trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
        >>> loader = torch.utils.data.DataLoader([1, 2, 3, 4, 5], batch_size=2)
        >>> gather_predictions(trainer, trainer.predict(Double(), loader))
        {'double': tensor([ 2,  4,  6,  8, 10])}
    """
    loaders = tree_leaves(trainer.predict_dataloaders)
    by_loader = [predictions] if len(loaders) == 1 else predictions or [None] * len(loaders)
    joined = [_gather(trainer, loader, batches or []) for loader, batches in zip(loaders, by_loader, strict=True)]
    return joined[0] if len(loaders) == 1 else joined


def _gather(trainer: Any, loader: Any, batches: Sequence[Any]) -> Any:
    seen = getattr(getattr(loader, "batch_sampler", None), "seen_batch_indices", None)  # Lightning's note
    if seen is None:
        raise ValueError(
            f"Expected a predict loader whose samples have numbers, but got {type(loader).__name__} over "
            f"{type(getattr(loader, 'dataset', None)).__name__}; use a map-style data set and automatic batching."
        )
    own = seen[: len(batches)], [_on_cpu(batch) for batch in batches]
    ranks: list[Any] = [own] * trainer.world_size
    if trainer.world_size > 1:
        torch.distributed.all_gather_object(ranks, own)
    numbers = [samples for rank, _ in ranks for samples in rank]
    return _joined(numbers, [batch for _, rank in ranks for batch in rank])


def _on_cpu(batch: Any) -> Any:
    leaves = leaves_of(batch).items()
    return filled(batch, {path: leaf.cpu() if isinstance(leaf, Tensor) else leaf for path, leaf in leaves})


def _joined(numbers: Sequence[Sequence[int]], batches: Sequence[Any]) -> Any:
    """Return all batches as one, sorted by the numbers of their samples; of repeated samples the first."""
    if not batches:
        raise ValueError(
            "Expected predictions, but got none; is the predict loader empty, or `return_predictions=False`?"
        )
    places: dict[int, int] = {}
    for place, number in enumerate(number for samples in numbers for number in samples):
        places.setdefault(number, place)
    order = torch.tensor([places[number] for number in sorted(places)])
    columns = [leaves_of(batch) for batch in batches]
    values = {}
    for path, first in columns[0].items():
        found = [column.get(path) for column in columns]
        if isinstance(first, Tensor):
            for samples, leaf in zip(numbers, found, strict=True):
                if not isinstance(leaf, Tensor) or leaf.shape[:1] != (len(samples),):
                    shape = tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__
                    raise ValueError(
                        f"Expected predictions of one row a sample, but got {shape} at {path or 'the top'!r} of a "
                        f"batch of {len(samples)} samples; return tensors (batch, ...) from `predict_step`."
                    )
            values[path] = torch.cat(found)[order]  # type: ignore[arg-type]
        elif any(leaf != first for leaf in found):
            raise ValueError(
                f"Expected what is no tensor to be the same in all batches, but got {first!r} and others at {path!r}; "
                "return tensors (batch, ...) from `predict_step`, e.g. numbers instead of names."
            )
        else:
            values[path] = first
    return filled(batches[0], values)

"""Which rows of a batch are repeats: a distributed sampler hands some samples out twice, so that all shares are equal.

Said from what the sampler and the loader know, without a count kept or an exchange between ranks. Where they cannot
know it (batch samplers, samplers of users, iterable data sets), every row counts.
"""

from typing import Any

from torch import Tensor

from lightning_dropout.sampling.structures import filled, leaves_of

__all__ = ["first_rows", "unrepeated_rows"]

_PACKAGES = ("torch", "lightning", "lightning_fabric", "pytorch_lightning")
_SAMPLERS = ("DistributedSampler", "DistributedSamplerWrapper")  # of which the last samples of a share are the repeats


def unrepeated_rows(loader: Any, batch_idx: int, rows: int) -> int:
    """Return how many rows of a batch, the first ones, are no repeats.

    Rank r of W has the samples r, r + W, r + 2W, ...; numbers beyond the last sample begin again at the first.

    Args:
        loader: The loader that the batch is from, as the trainer holds it on this rank.
        batch_idx: Number of the batch in it.
        rows: Number of rows of the batch.

    Example:
        >>> from torch.utils.data import DataLoader, DistributedSampler
        >>> sampler = DistributedSampler(range(13), num_replicas=2, rank=1)
        >>> loader = DataLoader(range(13), batch_size=4, sampler=sampler)
        >>> unrepeated_rows(loader, 0, rows=4), unrepeated_rows(loader, 1, rows=3)
        (4, 2)
    """
    sampler: Any = getattr(loader, "sampler", None)
    kind = type(sampler)
    if kind.__name__ not in _SAMPLERS or kind.__module__.partition(".")[0] not in _PACKAGES:
        return rows
    before: int = batch_idx * loader.batch_size
    if rows != min(loader.batch_size, sampler.num_samples - before):  # no row a sample, or another loader's batch
        return rows
    own = len(range(sampler.rank, len(sampler.dataset), sampler.num_replicas))
    return min(rows, max(0, own - before))


def first_rows(structure: Any, rows: int, count: int) -> Any:
    """Return a copy of ``structure`` in which the tensors of ``rows`` rows have their first ``count`` only.

    Example:
        >>> import torch
        >>> first_rows({"x": torch.tensor([1, 2, 3]), "weight": torch.tensor([1, 2])}, rows=3, count=2)
        {'x': tensor([1, 2]), 'weight': tensor([1, 2])}
    """
    return filled(
        structure,
        {
            path: leaf[:count] if isinstance(leaf, Tensor) and leaf.shape[:1] == (rows,) else leaf
            for path, leaf in leaves_of(structure).items()
        },
    )

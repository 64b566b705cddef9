"""Which rows a distributed sampler has handed out twice."""

from collections import Counter
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, SubsetRandomSampler

from lightning_dropout.callbacks.repeated_rows import first_rows, unrepeated_rows
from lightning_dropout.sampling.prediction import MCPrediction


def kept(make_sampler: Any, ranks: int, batch_size: int, **arguments: Any) -> list[int]:
    """Return the rows that count, of all ranks."""
    rows = []
    for rank in range(ranks):
        loader = DataLoader(range(13), batch_size, sampler=make_sampler(num_replicas=ranks, rank=rank), **arguments)  # type: ignore[arg-type]
        for batch_idx, batch in enumerate(loader):
            rows += batch[: unrepeated_rows(loader, batch_idx, len(batch))].tolist()
    return rows


def distributed(**arguments: Any) -> DistributedSampler[int]:
    return DistributedSampler(range(13), shuffle=False, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 5, 13, 20])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 6, 64])
def test_every_sample_counts_once(ranks: int, batch_size: int) -> None:
    assert sorted(kept(distributed, ranks, batch_size)) == list(range(13))


@pytest.mark.parametrize("ranks", [2, 5])
def test_every_sample_counts_once_whatever_the_order(ranks: int) -> None:
    def shuffled(**arguments: Any) -> DistributedSampler[int]:
        return DistributedSampler(range(13), shuffle=True, seed=3, **arguments)  # type: ignore[arg-type]

    def wrapped(**arguments: Any) -> DistributedSamplerWrapper:
        order = SubsetRandomSampler(list(range(13)), generator=torch.Generator().manual_seed(0))
        return DistributedSamplerWrapper(order, shuffle=False, **arguments)

    for make_sampler in (shuffled, wrapped):
        assert sorted(kept(make_sampler, ranks, batch_size=2)) == list(range(13))


def test_samplers_and_loaders_that_leave_samples_out_repeat_none() -> None:
    def without_rest(**arguments: Any) -> DistributedSampler[int]:
        return DistributedSampler(range(13), shuffle=False, drop_last=True, **arguments)  # type: ignore[arg-type]

    def unrepeated(**arguments: Any) -> UnrepeatedDistributedSampler:
        return UnrepeatedDistributedSampler(range(13), shuffle=False, **arguments)

    assert len(kept(without_rest, 2, batch_size=4)) == 12
    assert sorted(kept(unrepeated, 2, batch_size=4)) == list(range(13))
    assert sorted(kept(distributed, 2, batch_size=6, drop_last=True)) == list(range(12))


class Own(DistributedSampler[int]):
    """Nobody knows in which order."""


def test_where_nothing_is_known_every_row_counts() -> None:
    share = {"num_replicas": 2, "rank": 1, "shuffle": False}
    own = DataLoader(range(13), 4, sampler=Own(range(13), **share))  # type: ignore[arg-type]
    batches = DataLoader(range(13), batch_sampler=BatchSampler(distributed(num_replicas=2, rank=1), 4, False))  # type: ignore[arg-type]
    known = DataLoader(range(13), 4, sampler=distributed(num_replicas=2, rank=1))  # type: ignore[arg-type]
    for loader in (own, batches, [1, 2, 3]):
        assert unrepeated_rows(loader, 1, rows=3) == 3
    assert unrepeated_rows(known, 1, rows=3) == 2
    assert unrepeated_rows(known, 1, rows=30) == 30  # ten rows a sample: of which sample is which?


def test_predictions_are_cut_with_their_batch() -> None:
    mean = torch.arange(6.0).view(3, 2)
    prediction = MCPrediction("raw", 4, mean, mean, (mean, mean), num_invalid=torch.tensor([0, 1, 2]))
    cut = first_rows([{"mc": prediction}], rows=3, count=2)[0]["mc"]
    assert cut.mean.equal(mean[:2])
    assert cut.predictive[1].equal(mean[:2])
    assert cut.num_invalid.tolist() == [0, 1]
    assert cut.num_samples == 4
    assert prediction.mean is mean


def test_the_order_that_is_relied_on() -> None:
    """Torch fills the shares up at their ends, with the first samples."""
    shares = [list(distributed(num_replicas=2, rank=rank)) for rank in range(2)]
    assert shares == [[0, 2, 4, 6, 8, 10, 12], [1, 3, 5, 7, 9, 11, 0]]
    assert Counter(shares[0] + shares[1])[0] == 2

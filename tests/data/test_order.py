"""The order of the training rows and the loader that goes on in it."""

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_dropout.data.loaders import Rows
from lightning_dropout.data.order import TrainingLoader, TrainingOrder


def noisy(x: Tensor) -> Tensor:
    return x + torch.rand_like(x)


def loader(num_workers: int = 0, epoch: int = 0, rank: int = 0, **arguments: Any) -> TrainingLoader:
    rows = torch.arange(20)
    data = Rows(rows.float(), rows, rows, noisy)
    order = TrainingOrder(data, num_replicas=2, rank=rank, seed=arguments.pop("seed", 0))
    order.set_epoch(epoch)
    return TrainingLoader(
        data, sampler=order, batch_size=3, num_workers=num_workers, persistent_workers=num_workers > 0, **arguments
    )


def inputs(batches: Any) -> list[list[float]]:
    return [x.tolist() for x, _ in batches]


def test_ranks_and_epochs_have_orders_of_their_own_that_repeat() -> None:
    passes = {(rank, epoch): [*loader(epoch=epoch, rank=rank).sampler] for rank in range(2) for epoch in range(3)}
    for epoch in range(3):
        assert sorted(row % 20 for rank in range(2) for row in passes[rank, epoch]) == list(range(20))
        assert {row // 20 for row in passes[0, epoch]} == {epoch + 1}
    assert len({tuple(row % 20 for row in rows) for rows in passes.values()}) == 6
    assert passes[0, 1] == [*loader(epoch=1).sampler]
    assert passes[0, 1] != [*loader(epoch=1, seed=1).sampler]


def test_complete_passes_move_on_without_a_trainer() -> None:
    each = loader()
    assert [inputs(each), inputs(each)] == [inputs(loader()), inputs(loader(epoch=1))]


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_goes_on_with_the_batches_not_yet_seen(num_workers: int) -> None:
    whole = inputs(loader())  # what is drawn for a batch does not depend on who reads it
    for seen in range(1, 4):
        first = loader(num_workers)
        batches = iter(first)
        begun = [next(batches)[0].tolist() for _ in range(seen)]
        state = first.state_dict()
        second = loader(num_workers)
        second.load_state_dict(state)
        assert begun + inputs(second) == whole
        assert inputs(second) == inputs(loader(epoch=1))


def test_the_state_of_another_epoch_is_left_alone() -> None:
    first = loader()
    inputs(first)
    second = loader(epoch=1)
    second.load_state_dict(first.state_dict())
    assert inputs(second) == inputs(loader(epoch=1))


def test_asked_for_its_state_before_the_first_batch_it_begins_nothing() -> None:
    first = loader()
    inputs(first)
    second = loader(epoch=1)
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict()
    assert inputs(second) == inputs(loader(epoch=1))
    assert loader().state_dict() == {}


def test_its_state_is_small_and_plain(tmp_path: Any) -> None:
    first = loader()
    next(iter(first))
    torch.save(first.state_dict(), tmp_path / "state")
    assert torch.load(tmp_path / "state", weights_only=True) == first.state_dict()
    assert (tmp_path / "state").stat().st_size < 3000  # bytes


def test_begins_when_the_first_batch_is_asked_for() -> None:
    each, calls = loader(), []
    each.trainer = SimpleNamespace(fit_loop=SimpleNamespace(_load_combined_loader_states=lambda: calls.append(1)))
    batches = iter(each)
    each.sampler.set_epoch(2)
    assert calls == []
    assert inputs(batches) == inputs(loader(epoch=2))
    assert calls == [1]


def test_draws_nothing_and_warns_of_nothing() -> None:
    before = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(loader().sampler)
    assert torch.equal(torch.get_rng_state(), before)

"""The record of a pass: what it keeps, gives out again, and refuses. What reuse makes of it is in test_reuse.py."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks
from torch.overrides import _get_current_function_mode

from lightning_dropout.sampling.record import DivergedError, Knowledge, Record


class Net(nn.Module):
    """Two layers and two functions before the first draw, and one of each behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.drop = nn.Dropout(0.5)
        self.ran: list[str] = []
        for name in ("first", "second", "third"):
            layer = getattr(self, name)
            layer.forward = self.counted(name, layer.forward)

    def counted(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(x: Tensor) -> Any:
            self.ran.append(name)
            return forward(x)

        return run

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.first(x))
        y = torch.tanh(self.second(x))
        return self.third(self.drop(y)) + y


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    net = Net()
    net.drop.train()
    return net


def watched(net: Net, x: Tensor, knowledge: Knowledge | None = None) -> tuple[Record, Any]:
    record = Record(frozenset([id(net.drop)]), [torch.default_generator], [], knowledge or Knowledge())
    torch.manual_seed(1)
    return record, record.watch(lambda: net(x))


@torch.no_grad()
def test_a_replay_begins_at_the_first_draw_and_equals_the_pass(net: Net) -> None:
    x = torch.ones(2, 4)
    record, output = watched(net, x)
    assert record.usable
    assert not record.verified
    assert net.ran == ["first", "second", "third"]
    torch.manual_seed(1)
    assert torch.equal(record.replay(lambda: net(x)), output)
    assert net.ran[3:] == ["third"]
    torch.manual_seed(2)
    assert not torch.equal(record.replay(lambda: net(x)), output)


@torch.no_grad()
def test_only_what_is_alive_at_the_first_draw_is_kept(net: Net) -> None:
    record, _ = watched(net, torch.ones(2, 4))
    assert len(record._events) == 4
    assert [tuple(tensor.shape) for tensor in record._kept.values()] == [(2, 4), (2, 4)]  # `x` and `y` of the forward


@torch.no_grad()
def test_what_was_accepted_is_known_in_the_next_batch(net: Net) -> None:
    knowledge = Knowledge()
    record, _ = watched(net, torch.ones(2, 4), knowledge)
    record.accept()
    assert watched(net, torch.ones(5, 4), knowledge)[0].verified
    net.second = nn.Linear(4, 4)
    assert not watched(net, torch.ones(5, 4), knowledge)[0].verified


@torch.no_grad()
def test_another_way_through_the_model_is_refused(net: Net) -> None:
    x = torch.ones(2, 4)
    record, _ = watched(net, x)
    for other in (
        lambda: net.third(net.drop(torch.relu(net.second(x)))),
        lambda: torch.sigmoid(net.first(x)),
        lambda: net.first(x),
    ):
        with pytest.raises(DivergedError):
            record.replay(other)


@torch.no_grad()
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_behind(net: Net, error: type[BaseException]) -> None:
    before = {name: dict(vars(module)) for name, module in net.named_modules()}
    x = torch.ones(2, 4)
    record, _ = watched(net, x)

    def fails() -> None:
        net.first(x)
        raise error

    fresh = Record(frozenset(), [torch.default_generator], [], Knowledge())
    for run in (record.replay, fresh.watch):
        with pytest.raises(error):
            run(fails)
        assert {name: dict(vars(module)) for name, module in net.named_modules()} == before
        assert not _global_forward_hooks
        assert not _global_forward_pre_hooks
        assert _get_current_function_mode() is None


@torch.no_grad()
def test_a_pass_that_draws_unseen_before_is_no_record(net: Net) -> None:
    knowledge = Knowledge()
    net.second.forward = lambda x: x + float(torch.default_generator.seed() % 2)
    record, _ = watched(net, torch.ones(2, 4), knowledge)
    assert not record.usable
    assert knowledge.searching

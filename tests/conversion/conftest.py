"""The same samples kept in a model that masks finished branches and in its conversion, so that both must agree."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_dropout.nn import functional
from lightning_dropout.nn.subset import Subset

RATE = 0.4


class Draws:
    """Which samples are kept in each call, the same from one start to the next."""

    def __init__(self) -> None:
        self.number = 0
        self.kept: list[int] = []

    def next(self, batch: int) -> Tensor:
        generator = torch.Generator().manual_seed(100 + self.number)
        self.number += 1
        kept = torch.randperm(batch, generator=generator)[: max(1, round(batch * (1 - RATE)))]
        self.kept.append(len(kept))
        return kept


def mask(x: Tensor, draws: Draws) -> Tensor:
    """Stochastic depth as the libraries do it: of a branch that ran for all samples."""
    factors = torch.zeros(len(x), dtype=x.dtype)
    factors[draws.next(len(x))] = 1 / (1 - RATE)
    return x * factors.view(-1, *[1] * (x.ndim - 1))


@contextmanager
def known_draws(monkeypatch: pytest.MonkeyPatch) -> Iterator[Draws]:
    draws = Draws()

    def drop_path(x: Tensor, drop_prob: Any, training: bool = True, *_: Any) -> Tensor:
        return mask(x, draws) if training and drop_prob else x

    def draw_subset(batch: int, drop_prob: Any, *_: Any) -> Subset | None:
        drop_prob = drop_prob() if callable(drop_prob) else drop_prob
        return Subset(draws.next(batch), None, 1 / (1 - RATE)) if drop_prob else None

    with monkeypatch.context() as patch:
        patch.setattr(functional, "drop_path", drop_path)
        patch.setattr(functional, "draw_subset", draw_subset)
        yield draws


def outcome(model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    """What a model makes of the inputs, and all gradients."""
    inputs = copy.deepcopy(inputs)
    leaves = [each for each in inputs if isinstance(each, Tensor) and each.is_floating_point()]
    for leaf in leaves:
        leaf.requires_grad_()
    given = [each * 1 if isinstance(each, Tensor) and each.is_floating_point() else each for each in inputs]
    output = model(*given)
    outputs = [*output] if isinstance(output, tuple | list) else [output]
    sum((each * each).sum() for each in outputs if isinstance(each, Tensor)).backward()
    gradients = [torch.zeros(()) if each.grad is None else each.grad.clone() for each in [*leaves, *model.parameters()]]
    model.zero_grad()
    changed = [
        each.detach()
        for value in given
        for each in (value if isinstance(value, list) else [value])
        if isinstance(each, Tensor)
    ]
    return [*(each.detach() for each in outputs if isinstance(each, Tensor)), *gradients, *changed]


@pytest.fixture
def agree(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Draws]:
    """Check that two models of the same parameters do the same, evaluated and trained; return what was drawn."""

    def check(model: nn.Module, converted: nn.Module, *inputs: Any) -> Draws:
        for training in (False, True):
            found = []
            for each in (model, converted):
                with known_draws(monkeypatch) as draws:
                    found.append((outcome(each.train(training), inputs), draws.number))
            (expected, number), (values, same_number) = found
            assert number == same_number
            assert len(expected) == len(values)
            for one, other in zip(expected, values, strict=True):
                if training:
                    torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)
                else:
                    assert torch.equal(one, other)
        return draws

    return check

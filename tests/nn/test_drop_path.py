"""The stochastic-depth layer: its rate, its mode, and residual additions through it."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from lightning_dropout.nn import DropPath, functional


@pytest.mark.parametrize("mode", ["row", "batch"])
@pytest.mark.parametrize("scale_by_keep", [True, False])
def test_forward_and_residual_are_the_functions(mode: Any, scale_by_keep: bool) -> None:
    x = torch.randn(32, 4)
    branch, shortcut = nn.Linear(4, 4), nn.Linear(4, 4)
    layer = DropPath(0.4, mode, scale_by_keep)

    def same_seed(function: Any, *args: Any) -> torch.Tensor:
        torch.manual_seed(0)
        return function(*args)

    dropped = same_seed(functional.drop_path, branch(x), 0.4, True, mode, scale_by_keep)
    assert torch.equal(same_seed(layer, branch(x)), dropped)
    torch.testing.assert_close(same_seed(layer.residual, x, branch), x + dropped)
    torch.testing.assert_close(same_seed(layer.residual, x, branch, shortcut), shortcut(x) + dropped)
    layer.eval()
    assert layer(x) is x
    assert torch.equal(layer.residual(x, branch), x + branch(x))


def test_number_of_active_blocks_follows_the_survival_probabilities() -> None:
    """Twelve blocks that each add 1: the count of kept blocks is a sum of independent coins."""
    torch.manual_seed(0)
    layers = [DropPath(0.05 * block, scale_by_keep=False) for block in range(12)]
    n = 200_000
    x = torch.zeros(n, 1)
    for layer in layers:
        x = layer.residual(x, torch.ones_like)
    keep = torch.tensor([1 - layer.drop_prob for layer in layers], dtype=torch.float64)
    variance = float((keep * (1 - keep)).sum())
    assert abs(float(x.double().mean() - keep.sum())) < 4.71 * (variance / n) ** 0.5
    # Near enough a normal sum for the standard deviation of its variance to be about variance * sqrt(2 / n).
    assert abs(float(x.double().var()) / variance - 1) < 4.71 * (2 / n) ** 0.5


def test_hooks_see_residual_additions() -> None:
    layer = DropPath(0.5)
    calls = []
    layer.register_forward_hook(lambda module, args, output: calls.append(output.shape))
    layer.residual(torch.ones(2, 3), torch.exp)
    assert calls == [(2, 3)]


def test_gradients_reach_the_input_and_only_kept_branches() -> None:
    torch.manual_seed(0)
    x = torch.ones(100, 1, requires_grad=True)
    DropPath(0.5).residual(x, lambda h: 3 * h).sum().backward()
    assert set(x.grad.flatten().tolist()) == {1.0, 7.0}  # the skip alone; the skip and a branch of scale 2


def test_rate_can_be_reassigned_and_bad_ones_are_refused() -> None:
    layer = DropPath()
    assert layer.drop_prob == 0.0
    layer.drop_prob = 1
    assert type(layer.drop_prob) is float
    for bad in (-0.1, 1.5, float("nan"), "abc", None, True):
        with pytest.raises(ValueError, match="Expected `drop_prob` to be a probability"):
            layer.drop_prob = bad
        with pytest.raises(ValueError, match="Expected `drop_prob` to be a probability"):
            DropPath(bad)
    assert layer.drop_prob == 1.0
    other = copy.deepcopy(layer)
    other.drop_prob = 0.5
    assert layer.drop_prob == 1.0
    assert layer.state_dict() == {}


def test_a_bad_mode_is_refused_at_construction() -> None:
    with pytest.raises(ValueError, match=r"`mode` to be one of \('row', 'batch', 'subset'\), but got 'sample'"):
        DropPath(0.1, mode="sample")  # type: ignore[arg-type]


def test_repr_names_what_differs_from_the_default() -> None:
    assert repr(DropPath(0.25)) == "DropPath(drop_prob=0.25)"
    assert repr(DropPath(0.25, "batch", False)) == "DropPath(drop_prob=0.25, mode='batch', scale_by_keep=False)"


def test_compiles_without_graph_breaks() -> None:
    layer, branch = DropPath(0.5), nn.Linear(3, 3)
    compiled = torch.compile(lambda x: layer.residual(x, branch), backend="eager", fullgraph=True)
    x = torch.randn(16, 3)
    torch.manual_seed(0)
    expected = layer.residual(x, branch)
    torch.manual_seed(0)
    assert torch.equal(compiled(x), expected)
    torch.compiler.reset()

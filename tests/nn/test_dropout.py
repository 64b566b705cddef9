"""The layer: its rate, its mode, and its likeness to ``torch.nn.Dropout``."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lightning_dropout.nn import Dropout, functional


@pytest.mark.parametrize("granularity", ["element", "channel"])
@pytest.mark.parametrize("shared_over_batch", [True, False])
def test_forward_is_the_function(granularity: Any, shared_over_batch: bool) -> None:
    x = torch.randn(8, 6, 4)
    layer = Dropout(0.4, granularity, shared_over_batch)
    torch.manual_seed(0)
    expected = functional.dropout(x, 0.4, True, granularity, shared_over_batch)
    torch.manual_seed(0)
    assert torch.equal(layer(x), expected)
    assert layer.eval()(x) is x


def test_rate_can_be_reassigned_and_is_a_plain_float() -> None:
    layer = Dropout()
    assert layer.p == 0.5
    for value in (0, 1, np.float32(0.25), np.int64(1)):
        layer.p = value  # type: ignore[assignment]
        assert type(layer.p) is float
        assert layer.p == value
    layer.p = 1.0
    assert not layer(torch.ones(3)).any()
    layer.p = 0.0
    assert layer(torch.ones(3)).all()


@pytest.mark.parametrize("p", [-0.1, 1.5, float("nan"), "abc", None, True])
def test_a_bad_rate_is_refused_and_leaves_the_old_one(p: Any) -> None:
    with pytest.raises(ValueError, match="Expected `p` to be a probability"):
        Dropout(p)
    layer = Dropout(0.3)
    with pytest.raises(ValueError, match="Expected `p` to be a probability"):
        layer.p = p
    assert layer.p == 0.3


def test_a_bad_granularity_is_refused_at_construction() -> None:
    with pytest.raises(ValueError, match=r"Expected `granularity` to be one of \('element', 'channel'\)"):
        Dropout(granularity="row")  # type: ignore[arg-type]


def test_the_rate_is_no_part_of_the_state_and_not_cast() -> None:
    layer = Dropout(0.1)
    assert layer.state_dict() == {}
    assert not [*layer.parameters(), *layer.buffers()]
    assert layer.to(torch.bfloat16).p == 0.1  # a buffer would come back as 0.10009765625


def test_copies_keep_their_own_rate() -> None:
    layer = Dropout(0.1, "channel")
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        layer.p = 0.9
        assert (other.p, other.granularity) == (0.1, "channel")
        layer.p = 0.1


def test_repr_names_what_differs_from_the_default() -> None:
    assert repr(Dropout(0.25)) == "Dropout(p=0.25)"
    assert repr(Dropout(0.25, "channel", True)) == "Dropout(p=0.25, granularity='channel', shared_over_batch=True)"


def test_spread_of_a_linear_readout_equals_its_closed_form_and_torchs() -> None:
    """Y = w . (m * x) / (1 - p) has mean w . x and variance p / (1 - p) * sum(w**2 x**2): a wrong rate moves both."""
    torch.manual_seed(0)
    p, n = 0.3, 200_000
    w, x = torch.randn(16), torch.randn(16)
    variance = p / (1 - p) * float((w * x).square().sum())

    def z_values(layer: nn.Module) -> tuple[float, float]:
        y = (layer(x.expand(n, 16)) @ w).double()
        centred = y - float(w @ x)
        spread = centred.square()
        return float(y.mean() - w @ x) / (variance / n) ** 0.5, float(spread.mean() - variance) / float(
            spread.std() / n**0.5
        )

    for layer in (Dropout(p), nn.Dropout(p)):
        assert max(map(abs, z_values(layer))) < 4.71
    assert abs(z_values(Dropout(p + 0.01))[1]) > 4.71  # the check notices a rate that is off by a hundredth


def test_compiled_layer_costs_one_graph_per_mode() -> None:
    graphs = []

    def count(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    layer = Dropout(0.5)
    compiled = torch.compile(layer, backend=count, fullgraph=True)
    for _ in range(3):
        assert (compiled(torch.ones(100)) == 0).any()
    assert len(graphs) == 1
    layer.eval()
    assert torch.equal(compiled(torch.ones(100)), torch.ones(100))
    torch.compiler.reset()

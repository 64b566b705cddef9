"""The rate of a layer as an attribute: checked when set, a plain float when read, in the ``__dict__`` of its layer."""

import copy
import math
import pickle
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lightning_dropout.nn import AttentionDropout, Dropout, DropPath
from lightning_dropout.nn.rate import Rate


class Layer(nn.Module):
    """Two rates, and nothing else."""

    first = Rate()
    second = Rate()


class Plain:
    rate = Rate()


@pytest.fixture(params=[Layer, Plain], ids=["module", "plain class"])
def holder(request: pytest.FixtureRequest) -> tuple[Any, str]:
    return request.param(), "first" if request.param is Layer else "rate"


@pytest.mark.parametrize(
    "value", [0, 1, 0.25, np.float32(0.25), np.int64(1), Fraction(1, 4)], ids=lambda value: f"{type(value).__name__}"
)
def test_whatever_number_is_set_is_kept_as_a_plain_float(holder: tuple[Any, str], value: Any) -> None:
    layer, name = holder
    setattr(layer, name, value)
    assert getattr(layer, name) == value
    assert type(getattr(layer, name)) is float
    assert vars(layer)[name] == value  # nowhere else: who writes there sets the rate
    vars(layer)[name] = 0.75
    assert getattr(layer, name) == 0.75


@pytest.mark.parametrize("value", [-0.1, 1.5, math.nan, "0.5", None, True, torch.tensor(0.5)], ids=repr)
def test_what_is_no_probability_is_refused_by_name_and_leaves_the_old_one(holder: tuple[Any, str], value: Any) -> None:
    layer, name = holder
    setattr(layer, name, 0.25)
    with pytest.raises(ValueError, match=f"^Expected `{name}` to be a probability of dropping"):
        setattr(layer, name, value)
    assert getattr(layer, name) == 0.25


def test_rates_are_each_layers_own_and_each_others_neighbours() -> None:
    layer, other = Layer(), Layer()
    layer.first, layer.second, other.first = 0.1, 0.2, 0.3
    assert (layer.first, layer.second, other.first) == (0.1, 0.2, 0.3)


def test_before_it_is_set_there_is_none(holder: tuple[Any, str]) -> None:
    layer, name = holder
    assert name not in vars(layer)
    with pytest.raises(TypeError, match="Rate"):
        1.0 - getattr(layer, name)
    assert isinstance(getattr(type(layer), name), Rate)


def test_reading_it_calls_nothing() -> None:
    """torch.compile before 2.13 would never come back from a getter."""
    assert not hasattr(Rate, "__get__")


def test_it_is_no_part_of_the_state_and_is_never_cast() -> None:
    layer = Layer()
    layer.first = 0.1
    assert not [*layer.parameters(), *layer.buffers(), *layer.state_dict()]
    assert layer.to(torch.bfloat16).first == 0.1


def test_copies_and_subclasses_have_it() -> None:
    layer = type("Child", (Layer,), {})()
    layer.first = 0.1
    other = copy.deepcopy(layer)
    layer.first = 0.2
    assert other.first == 0.1
    dropout = pickle.loads(pickle.dumps(Dropout(0.1)))
    with pytest.raises(ValueError, match="Expected `p` to be a probability"):
        dropout.p = 2  # still checked


@pytest.mark.parametrize(
    ("cls", "name"), [(Dropout, "p"), (AttentionDropout, "p"), (DropPath, "drop_prob")], ids=lambda value: str(value)
)
def test_every_layer_of_ours_keeps_its_rate_so(cls: type[nn.Module], name: str) -> None:
    assert isinstance(getattr(cls, name), Rate)
    assert vars(cls())[name] == getattr(cls(), name)

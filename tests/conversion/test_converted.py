"""The class of a converted module: in all but `forward` its own."""

import copy
import io
import pickle
import traceback
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_dropout.conversion import convert_stochastic_depth
from lightning_dropout.conversion.converted import (
    CONVERTED,
    converted_class,
    original_class,
    rewritings,
    runs_branches,
)
from lightning_dropout.models.block import ResidualBlock
from lightning_dropout.nn import DropPath


class Block(nn.Module):
    """Adds a branch."""

    def __init__(self, rate: float = 0.5) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.drop_path = DropPath(rate)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = x + self.drop_path(self.fc(x))
        return output


class Child(Block):
    def extra_repr(self) -> str:
        return "child"


class Overridden(Block):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class TwoMethods(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.drop_path(x)

    def inner(self, x: Tensor) -> Tensor:
        output: Tensor = x + self.drop_path(self.fc(x))
        return output


class WithState(Block):
    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "packed": True}


def converted(cls: type[Block] = Block) -> Block:
    torch.manual_seed(0)
    model = cls()
    convert_stochastic_depth(model)
    return model


def in_pickle(model: nn.Module) -> nn.Module:
    restored: nn.Module = pickle.loads(pickle.dumps(model))
    return restored


def in_file(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    restored: nn.Module = torch.load(file, weights_only=False)
    return restored


def test_it_looks_as_before() -> None:
    model, plain = converted(), Block()
    assert CONVERTED in vars(type(model))
    assert isinstance(model, Block)
    assert original_class(type(model)) is Block
    assert original_class(Block) is Block
    for name in ("__name__", "__qualname__", "__module__", "__doc__"):
        assert getattr(type(model), name) == getattr(Block, name)
    assert repr(model) == repr(plain).replace("drop_prob=0.5", "drop_prob=0.5, mode='subset'")
    assert [*model.state_dict()] == [*plain.state_dict()]
    plain.load_state_dict(model.state_dict())


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, in_pickle, in_file])
@pytest.mark.parametrize("cls", [Block, Child])
def test_copies_are_converted(copied: Any, cls: type[Block]) -> None:
    model = converted(cls)
    model.train()
    other = copied(model)
    assert type(other) is type(model)
    assert other.training
    x = torch.randn(8, 3)
    torch.manual_seed(1)
    expected = model(x)
    torch.manual_seed(1)
    assert torch.equal(other(x), expected)
    if copied is not copy.copy:
        other.fc.weight.data.zero_()
        assert model.fc.weight.any()


def test_a_state_of_its_own_is_copied() -> None:
    assert copy.deepcopy(converted(WithState)).packed


def test_one_class_for_all_modules_of_a_class() -> None:
    assert type(converted()) is type(converted())
    assert type(converted(Child)) is not type(converted())
    made = converted_class(Block, ("drop_path",))
    assert made is type(converted())
    assert rewritings(made, ("drop_path",)) is rewritings(Block, ("drop_path",))


def test_converting_twice_changes_nothing() -> None:
    model = converted()
    cls, layer = type(model), model.drop_path
    assert convert_stochastic_depth(model).converted == {"drop_path": 0.5}
    assert type(model) is cls
    assert model.drop_path is layer
    assert convert_stochastic_depth(copy.deepcopy(model), "row").converted == {"drop_path": 0.5}


def test_all_methods_but_the_hidden_are_looked_at() -> None:
    assert {*rewritings(Block, ("drop_path",))} == {"forward"}
    assert {*rewritings(Child, ("drop_path",))} == {"forward"}
    assert not rewritings(Overridden, ("drop_path",))  # what it calls stands in the base class
    found = rewritings(TwoMethods, ("drop_path",))
    assert found["inner"].done == {"drop_path"}
    assert found["forward"].left


def test_methods_that_give_their_branches_away_by_themselves() -> None:
    assert runs_branches(ResidualBlock, "drop_path")
    assert not runs_branches(Block, "drop_path")


def test_tracebacks_show_the_original_source() -> None:
    model = converted()
    with pytest.raises(RuntimeError) as error:
        model(torch.ones(2, 5))
    frames = traceback.extract_tb(error.value.__traceback__)
    shown = [frame.line for frame in frames if frame.filename == __file__]
    assert "output: Tensor = x + self.drop_path(self.fc(x))" in shown

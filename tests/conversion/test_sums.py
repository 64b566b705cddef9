"""Residual sums are found where one side is what modules made of the other, and nowhere else."""

from typing import Any

import pytest
import torch
from torch import nn

from lightning_dropout.conversion.branches import rewrite
from lightning_dropout.nn import DropPath


class Given(nn.Module):
    """What the blocks below are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.norm2 = nn.LayerNorm(3), nn.LayerNorm(3)
        self.linear, self.linear2 = nn.Linear(3, 3), nn.Linear(3, 3)
        self.table = nn.Parameter(torch.randn(3))


class PreNorm(Given):
    def forward(self, x: Any) -> Any:
        x = x + self.linear(self.norm(x))
        return self.linear2(self.norm2(x)) + x


class PostNorm(Given):
    def forward(self, x: Any) -> Any:
        y = self.linear(x)
        y = self.norm(y + x)
        z = self.linear2(y)
        return self.norm2(z + y)


class Named(Given):
    def forward(self, hidden: Any) -> Any:
        residual = hidden
        hidden = self.norm(hidden)
        hidden, _ = self.linear(hidden), None
        hidden = residual + hidden
        residual = hidden
        hidden = self.linear2(hidden)
        return hidden + residual


class InPlace(Given):
    def forward(self, x: Any) -> Any:
        identity = x
        out = self.linear(x)
        out = self.norm(out)
        if self.norm2 is not None:
            identity = self.norm2(x)
        out += identity
        return out


class Handed(Given):
    def forward(self, hidden: Any, input_tensor: Any) -> Any:
        return self.norm(self.linear(hidden) + input_tensor)


class Inside(Given):
    def forward(self, x: Any) -> Any:
        if self.training:
            x = x + self.linear(x)
        else:
            x = self.norm(x)
            x = x + self.linear2(x)
        return x


class Positions(Given):
    def forward(self, x: Any) -> Any:
        return self.norm(x + self.table)


class TwoBranches(Given):
    def forward(self, x: Any) -> Any:
        return self.linear(x) + self.linear2(x)


class OtherValue(Given):
    def forward(self, x: Any, y: Any) -> Any:
        return y + self.linear(x)


class Overwritten(Given):
    def forward(self, x: Any) -> Any:
        identity = x
        x = self.norm(x)
        x = x * 2
        y = self.linear(x)
        x = x - 1
        return y + identity if x is None else y * 1


class Counted(Given):
    def forward(self, x: Any) -> Any:
        return self.linear(x) * (len(x) + 1)


@pytest.mark.parametrize(("block", "number"), [(PreNorm, 2), (PostNorm, 2), (Named, 2), (InPlace, 1), (Inside, 2)])
def test_each_residual_sum_gets_a_drop_path(block: type[Given], number: int) -> None:
    rewriting = rewrite(block.forward, (), insert=True)
    names = ("drop_path",) if number == 1 else tuple(f"drop_path{i + 1}" for i in range(number))
    assert rewriting.inserted == names
    assert rewriting.done == {*names}
    layer, x = block().eval(), torch.randn(4, 3)
    expected = layer(x)
    for name in names:
        layer.add_module(name, DropPath(1.0, "subset"))
    assert rewriting.function is not None
    assert torch.equal(rewriting.function(layer.eval(), x), expected)
    dropped = rewriting.function(layer.train(), x)
    with torch.no_grad():  # a branch of zeros is what a rate of 1 leaves
        for part in (layer.linear, layer.linear2):
            part.weight.zero_()
            part.bias.zero_()
        if block is InPlace:
            layer.norm.weight.zero_()
    torch.testing.assert_close(dropped, layer(x))


def test_a_sum_with_what_the_caller_hands_over_is_residual_under_the_usual_name() -> None:
    assert rewrite(Handed.forward, (), insert=True).inserted == ("drop_path",)


@pytest.mark.parametrize("block", [Positions, TwoBranches, OtherValue, Overwritten, Counted])
def test_other_sums_are_left_alone(block: type[Given]) -> None:
    rewriting = rewrite(block.forward, (), insert=True)
    assert rewriting.inserted == ()
    assert rewriting.function is None

"""Residual blocks add what they say, and the networks have the sizes that their papers count."""

from typing import Any

import pytest
import torch
from torch import nn

from lightning_dropout.models import ResBlock, ResNet
from lightning_dropout.nn import functional


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("bottleneck", [False, True])
def test_block_is_x_plus_drop_path_of_block(bottleneck: bool) -> None:
    block = ResBlock(8, 8, drop_path=0.5, p=0.2, bottleneck=bottleneck, stochastic_depth_mode="row")
    x = torch.randn(16, 8, 4, 4)
    torch.manual_seed(1)
    expected = x + functional.drop_path(block.block(x), 0.5)
    torch.manual_seed(1)
    assert torch.equal(block(x), expected)


@pytest.mark.parametrize("bottleneck", [False, True])
def test_a_projection_is_never_dropped(bottleneck: bool) -> None:
    block = ResBlock(4, 8, stride=2, drop_path=0.5, bottleneck=bottleneck, stochastic_depth_mode="row")
    x = torch.randn(16, 4, 5, 5)
    torch.manual_seed(1)
    expected = block.shortcut(x) + functional.drop_path(block.block(x), 0.5)
    torch.manual_seed(1)
    assert torch.equal(block(x), expected)
    assert expected.shape == (16, 8, 3, 3)
    block.drop_path.drop_prob = 1.0
    assert torch.equal(block(x), block.shortcut(x))


def test_dropout_stands_between_the_convolutions() -> None:
    kinds = [type(layer).__name__ for layer in ResBlock(4, 4).block]
    assert kinds == ["Conv2d", "BatchNorm2d", "ReLU", "Dropout", "Conv2d", "BatchNorm2d"]
    kinds = [type(layer).__name__ for layer in ResBlock(4, 4, bottleneck=True).block]
    assert kinds == [*["Conv2d", "BatchNorm2d", "ReLU"] * 2, "Dropout", "Conv2d", "BatchNorm2d"]


# Thin ones: 0.27 M and 0.85 M in the paper, here with projection shortcuts. Wide ones: torchvision's counts with a
# 3x3 stem of 3 * 64 * 9 weights instead of 7x7, and ten classes.
@pytest.mark.parametrize(
    ("depth", "expected"),
    [(20, 272_474), (56, 855_770), (18, 11_173_962), (34, 21_282_122), (50, 23_520_842)],
)
def test_known_numbers_of_parameters(depth: int, expected: int) -> None:
    with torch.device("meta"):
        assert num_parameters(ResNet(depth=depth)) == expected


@pytest.mark.parametrize(("depth", "layers"), [(18, 18), (34, 34), (50, 50), (20, 20), (56, 56)])
def test_depth_counts_convolutions_and_the_classifier(depth: int, layers: int) -> None:
    with torch.device("meta"):
        model = ResNet(depth=depth)
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len([name for name in names if "shortcut" not in name]) == layers


@pytest.mark.parametrize("depth", [18, 20, 50])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 17, 9)])
def test_shapes(depth: int, shape: tuple[int, ...]) -> None:
    assert ResNet(shape, 7, depth=depth, width=4)(torch.randn(2, *shape)).shape == (2, 7)


def test_downsampling_happens_between_stages() -> None:
    model = ResNet(depth=18, width=4)
    sizes: list[Any] = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, output: sizes.append(tuple(output.shape[1:])))
    model(torch.randn(2, 3, 32, 32))
    assert sizes == [(4, 32, 32)] * 2 + [(8, 16, 16)] * 2 + [(16, 8, 8)] * 2 + [(32, 4, 4)] * 2


def test_network_written_out() -> None:
    model = ResNet((1, 8, 8), depth=20, width=4, p=0.5)
    x = torch.randn(4, 1, 8, 8)
    torch.manual_seed(1)
    h = model.stem(x)
    for block in model.blocks:
        h = block(h).clamp(min=0)  # the ReLU of a residual network follows the addition
    expected = model.fc(functional.dropout(h.mean(dim=(2, 3)), 0.5))
    torch.manual_seed(1)
    assert torch.equal(model(x), expected)


def test_every_branch_contributes_at_initialisation() -> None:
    # A zero-initialised last norm would make stochastic depth invisible until training has begun.
    model = ResNet((1, 8, 8), depth=20, width=4)
    for block in model.blocks:
        assert block.block[-1].weight.abs().min() > 0


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"Expected `depth` to be one of \[18, 20, 34, 50, 56\], but got 19"):
        ResNet(depth=19)
    with pytest.raises(ValueError, match="Expected `width` to be a whole number of at least 1, but got 0"):
        ResNet(width=0)
    with pytest.raises(ValueError, match="Expected `out_channels` of a bottleneck to be a multiple of 4, but got 6"):
        ResBlock(4, 6, bottleneck=True)

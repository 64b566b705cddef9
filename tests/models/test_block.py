"""The feed-forward Block and the residual network of it."""

import pytest
import torch
from torch.nn import functional as F

from lightning_dropout.models import MLP, Block
from lightning_dropout.models.block import ResidualBlock
from lightning_dropout.nn import functional


def test_block_written_out() -> None:
    block = Block(8, hidden=12, p=0.3, out_dim=5)
    x = torch.randn(4, 6, 8)
    torch.manual_seed(1)
    expected = functional.dropout(block.fc2(functional.dropout(F.gelu(block.fc1(x)), 0.3)), 0.3)
    torch.manual_seed(1)
    assert torch.equal(block(x), expected)
    assert expected.shape == (4, 6, 5)


def test_block_defaults() -> None:
    block = Block(8)
    assert (block.fc1.out_features, block.fc2.out_features) == (32, 8)
    assert (block.dropout1.p, block.dropout2.p) == (0.1, 0.1)


def test_residual_block_written_out() -> None:
    block = ResidualBlock(8, p=0.3, drop_path=0.4)
    x = torch.randn(64, 8)
    torch.manual_seed(1)
    expected = x + functional.drop_path(block.block(block.norm(x)), 0.4)
    torch.manual_seed(1)
    assert torch.equal(block(x), expected)


@pytest.mark.parametrize(("shape", "num_outputs"), [((13,), 1), ((1,), 2), ((1, 8, 8), 10)])
def test_mlp_takes_tables_and_images(shape: tuple[int, ...], num_outputs: int) -> None:
    assert MLP(shape, num_outputs, dim=8)(torch.randn(3, *shape)).shape == (3, num_outputs)


def test_mlp_arguments_reach_the_blocks() -> None:
    mlp = MLP((13,), 1, dim=8, depth=5, hidden=20, p=0.2, drop_path=0.4)
    assert [block.drop_path.drop_prob for block in mlp.blocks] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    assert {block.block.fc1.out_features for block in mlp.blocks} == {20}
    assert {block.block.dropout1.p for block in mlp.blocks} | {block.block.dropout2.p for block in mlp.blocks} == {0.2}


@pytest.mark.parametrize("name", ["dim", "depth", "hidden"])
def test_bad_sizes(name: str) -> None:
    with pytest.raises(ValueError, match=f"Expected `{name}` to be a whole number of at least 1, but got 0"):
        MLP((13,), 1, **{name: 0})

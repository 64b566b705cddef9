"""The vision transformer: presets, sizes of the papers, pooling, and where its rates go."""

from typing import Any

import pytest
import torch
from torch import nn

from lightning_dropout.models import ViT
from lightning_dropout.models.vit import EncoderBlock
from lightning_dropout.nn import functional


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# ViT-Ti/16, S/16 and B/16 with 1000 classes on 224 pixels: the published 5.7 M, 22 M and 86 M.
@pytest.mark.parametrize(("preset", "expected"), [("tiny", 5_717_416), ("small", 22_050_664), ("base", 86_567_656)])
def test_known_numbers_of_parameters(preset: Any, expected: int) -> None:
    with torch.device("meta"):
        assert num_parameters(ViT((3, 224, 224), 1000, preset, patch_size=16)) == expected


def test_tiny_with_ten_classes() -> None:
    with torch.device("meta"):
        assert num_parameters(ViT((3, 224, 224), 10, patch_size=16)) == 5_526_346


def test_digits_preset() -> None:
    net = ViT((1, 8, 8), preset="digits")
    assert len(net.blocks) == 4
    assert net.positions.shape == (1, 16, 64)
    assert net.class_token is None
    assert net(torch.randn(3, 1, 8, 8)).shape == (3, 10)


def test_what_is_given_wins_over_the_preset() -> None:
    net = ViT((1, 8, 8), preset="digits", patch_size=4, dim=24, depth=2, num_heads=3, mlp_ratio=2, pool="class")
    assert len(net.blocks) == 2
    assert net.positions.shape == (1, 5, 24)
    assert net.blocks[0].attn.num_heads == 3
    assert net.blocks[0].mlp.fc1.out_features == 48
    assert net.class_token is not None


def test_patches_are_read_row_by_row() -> None:
    net = ViT((1, 8, 4), preset="digits", dim=4, num_heads=1, depth=1)
    x = torch.randn(1, 1, 8, 4)
    expected = [net.patch_embedding(x[:, :, i : i + 2, j : j + 2]).flatten() for i in (0, 2, 4, 6) for j in (0, 2)]
    torch.testing.assert_close(net.patch_embedding(x).flatten(2).transpose(1, 2)[0], torch.stack(expected))


def test_mean_pooling_needs_positions_to_see_the_order_of_patches() -> None:
    net = ViT((1, 8, 8), preset="digits", dim=16, num_heads=2, depth=2).eval()
    x = torch.randn(2, 1, 8, 8)
    swapped = torch.cat([x[:, :, 4:], x[:, :, :4]], dim=2)
    assert not torch.allclose(net(x), net(swapped), atol=1e-6)
    nn.init.zeros_(net.positions)
    torch.testing.assert_close(net(x), net(swapped))


def test_encoder_block_written_out() -> None:
    block = EncoderBlock(
        dim=8,
        num_heads=2,
        hidden=16,
        p=0.1,
        attention_p=0.2,
        projection_p=0.3,
        drop_path=0.4,
        stochastic_depth_mode="row",
    )
    x = torch.randn(32, 5, 8)
    torch.manual_seed(1)
    h = x + functional.drop_path(block.attn(block.norm1(x)), 0.4)
    expected = h + functional.drop_path(block.mlp(block.norm2(h)), 0.4)
    torch.manual_seed(1)
    assert torch.equal(block(x), expected)


def test_rates_go_where_they_are_named() -> None:
    net = ViT((1, 8, 8), preset="digits", p=0.1, attention_p=0.2, projection_p=0.3, drop_path=0.6)
    assert net.dropout.p == 0.1
    for block, drop_path in zip(net.blocks, (0.0, 0.2, 0.4, 0.6), strict=True):
        assert block.mlp.dropout1.p == block.mlp.dropout2.p == 0.1
        assert block.attn.attn_drop.p == 0.2
        assert block.attn.proj_drop.p == 0.3
        assert block.drop_path1.drop_prob == block.drop_path2.drop_prob == pytest.approx(drop_path)


def test_initialisation() -> None:
    net = ViT((1, 8, 8), preset="digits", pool="class")
    for name, parameter in net.named_parameters():
        if "norm" in name:
            assert set(parameter.unique().tolist()) <= {0.0, 1.0}, name
        elif name.endswith("bias"):
            assert not parameter.any(), name
        elif parameter.numel() >= 256:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.25), name
        else:
            assert parameter.any(), name


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"Expected the sides of `input_shape` to be multiples of `patch_size`.* 3;"):
        ViT((1, 8, 8), patch_size=3)
    with pytest.raises(ValueError, match="Expected `dim` to be a multiple of `num_heads`, but got 64 and 5"):
        ViT((1, 8, 8), preset="digits", num_heads=5)
    with pytest.raises(ValueError, match=r"Expected `preset` to be one of .*, but got 'huge'"):
        ViT(preset="huge")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Expected `pool` to be one of \('mean', 'class'\), but got 'max'"):
        ViT(pool="max")  # type: ignore[arg-type]
    for ratio in (0, float("nan"), float("inf"), "4"):
        with pytest.raises(ValueError, match="Expected `mlp_ratio` to be a number"):
            ViT(mlp_ratio=ratio)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(2, 2), (16, 16), (8, 10)])
def test_an_image_of_another_size_is_refused(shape: tuple[int, int]) -> None:
    net = ViT((1, 8, 8), preset="digits", dim=8, num_heads=1, depth=1)
    with pytest.raises(ValueError, match=r"Expected `images` to have shape \(batch, \*\(1, 8, 8\)\)"):
        net(torch.randn(2, 1, *shape))

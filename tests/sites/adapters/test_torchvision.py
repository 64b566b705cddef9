"""The rows of torchvision: stochastic depth, blocks of pixels, Swin, DenseNet and the decoys of ViT."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_dropout.sites import find_sites

torchvision = pytest.importorskip("torchvision", reason="needs torchvision, an optional library")

from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2  # noqa: E402
from torchvision.ops import DropBlock2d, DropBlock3d, StochasticDepth  # noqa: E402


def images(model: nn.Module, size: int = 32) -> Tensor:
    output: Tensor = model(torch.linspace(-9, 9, 2 * 3 * size * size).sin().view(2, 3, size, size))
    return output


def volumes(model: nn.Module) -> Tensor:
    output: Tensor = model(torch.ones(2, 3, 8, 8, 8))
    return output


def windows(model: nn.Module) -> Tensor:
    output: Tensor = model(torch.linspace(-9, 9, 2 * 4 * 4 * 8).sin().view(2, 4, 4, 8))
    return output


def vision_transformer() -> nn.Module:
    model = torchvision.models.VisionTransformer(
        image_size=8,
        patch_size=4,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        mlp_dim=8,
        num_classes=3,
        dropout=0.1,
        attention_dropout=0.2,
    )
    nn.init.normal_(model.heads.head.weight)  # zero as it comes: nothing would show
    return model


def layer(name: str, kind: str = "dropout", cls: str = "Dropout", attribute: str = "p") -> Any:
    """The site of a layer that owns its drop."""
    return name, kind, cls, attribute, (cls,)


def swin_attention(cls: type) -> Any:
    return [
        layer("0.attention_dropout", "attention", cls.__name__, "attention_dropout"),
        layer("0.dropout", "dropout", cls.__name__, "dropout"),
    ]


ROWS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], Tensor], list[Any]]] = {
    "StochasticDepth": (
        lambda: nn.Sequential(StochasticDepth(0.1, "row")),
        images,
        [layer("0", "drop_path", "StochasticDepth")],
    ),
    "StochasticDepth of the whole batch": (
        lambda: nn.Sequential(StochasticDepth(0.1, "batch")),
        images,
        [layer("0", "drop_path", "StochasticDepth")],
    ),
    "DropBlock2d": (lambda: nn.Sequential(DropBlock2d(0.1, 3)), images, [layer("0", "dropout", "DropBlock2d")]),
    "DropBlock3d": (lambda: nn.Sequential(DropBlock3d(0.1, 3)), volumes, [layer("0", "dropout", "DropBlock3d")]),
    **{
        cls.__name__: (
            lambda cls=cls: nn.Sequential(cls(8, [2, 2], [1, 1], 2, attention_dropout=0.2, dropout=0.1)),
            windows,
            swin_attention(cls),
        )
        for cls in (ShiftedWindowAttention, ShiftedWindowAttentionV2)
    },
    "ViT: what its root and its encoder remember are decoys": (
        vision_transformer,
        lambda model: images(model, 8),
        [
            layer("encoder.dropout"),
            layer("encoder.layers.encoder_layer_0.self_attention", "attention", "MultiheadAttention", "dropout"),
            layer("encoder.layers.encoder_layer_0.dropout"),
            layer("encoder.layers.encoder_layer_0.mlp.2"),
            layer("encoder.layers.encoder_layer_0.mlp.4"),
        ],
    ),
    "DenseNet: a number in every layer": (
        lambda: torchvision.models.DenseNet(8, (1, 1), 8, drop_rate=0.2, num_classes=3),
        images,
        [
            layer(f"features.denseblock{each}.denselayer1.drop_rate", "dropout", "_DenseLayer", "drop_rate")
            for each in (1, 2)
        ],
    ),
    "ConvNeXt": (
        lambda: torchvision.models.convnext.CNBlock(3, layer_scale=1.0, stochastic_depth_prob=0.2),
        images,
        [layer("stochastic_depth", "drop_path", "StochasticDepth")],
    ),
}


@pytest.mark.parametrize("row", ROWS)
def test_the_sites_are_those_of_the_table_and_they_drop(row: str, check: Any, described: Any) -> None:
    build, run, expected = ROWS[row]
    model = build()
    sites = find_sites(model)
    assert described(sites) == expected
    check(model, run, sites)()


def test_the_decoys_of_vit_are_there_and_stay() -> None:
    model: Any = vision_transformer()
    for site in find_sites(model):
        site.rate = 0.7
    assert (model.dropout, model.attention_dropout) == (0.1, 0.2)
    assert model.encoder.layers.encoder_layer_0.num_heads == 2


def test_random_transforms_inside_a_model_are_no_dropout() -> None:
    from torchvision.transforms import RandomErasing, RandomHorizontalFlip, v2

    augment = nn.Sequential(RandomHorizontalFlip(p=0.3), RandomErasing(p=0.2), v2.RandomVerticalFlip(p=0.4))
    assert [site.name for site in find_sites(nn.Sequential(augment, nn.Dropout(0.1)))] == ["1"]


def only_dropout_layers(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Dropout)]


@pytest.mark.parametrize("row", [row for row in ROWS if not row.startswith("ViT")])
def test_a_finder_of_dropout_layers_finds_nothing(row: str) -> None:
    assert only_dropout_layers(ROWS[row][0]()) == []


def test_a_finder_of_names_takes_the_decoys(check: Any) -> None:
    model: Any = vision_transformer()
    sites = find_sites(model)
    wrong = type(sites[0])("dropout", "dropout", model, "dropout", sites[0].users)
    with pytest.raises(AssertionError, match="dropout drops at"):
        check(model, lambda model: images(model, 8), [*sites, wrong])()

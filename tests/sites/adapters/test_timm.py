"""The rows of timm: its layers, its attentions and the numbers that its models read at their roots."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_dropout.sites import Site, empty_slots, find_sites
from lightning_dropout.sites.adapters import source

timm = pytest.importorskip("timm", reason="needs timm, an optional library")

from timm.layers import Attention, DropBlock2d, DropPath, PatchDropout  # noqa: E402  (only if there is timm)
from timm.models.efficientvit_msra import ResidualDrop  # noqa: E402
from timm.models.hiera import Hiera  # noqa: E402
from timm.models.resnet import BasicBlock, ResNet  # noqa: E402
from timm.models.vision_transformer import VisionTransformer  # noqa: E402


def tokens(model: nn.Module) -> Tensor:
    output: Tensor = model(torch.linspace(-9, 9, 4 * 16 * 8).sin().view(4, 16, 8))
    return output


def mean_of_tokens(model: nn.Module) -> Tensor:
    """For layers that leave tokens out, of which the number is not random."""
    return tokens(model).mean(1)


def images(model: nn.Module) -> Tensor:
    output: Tensor = model(torch.linspace(-9, 9, 2 * 3 * 32 * 32).sin().view(2, 3, 32, 32))
    return output


def attention(*, fused: bool) -> nn.Module:
    layer = Attention(8, num_heads=2, attn_drop=0.1, proj_drop=0.2)
    layer.fused_attn = fused
    return layer


def vision_transformer(**rates: float) -> VisionTransformer:
    rates = rates or {f"{name}_rate": 0.1 for name in ("drop", "pos_drop", "patch_drop", "proj_drop", "attn_drop")}
    return VisionTransformer(
        img_size=32, patch_size=8, embed_dim=8, depth=2, num_heads=2, num_classes=3, **{"drop_path_rate": 0.2} | rates
    )


def resnet() -> ResNet:
    return ResNet(
        BasicBlock,
        (1, 1, 1, 1),
        num_classes=3,
        stem_width=8,
        channels=(8, 8, 8, 8),
        drop_rate=0.1,
        drop_path_rate=0.2,
        drop_block_rate=0.1,
        zero_init_last=False,  # or nothing that drops in a branch shows
    )


def hiera() -> Hiera:
    model = Hiera(
        img_size=(32, 32),
        embed_dim=8,
        num_heads=1,
        stages=(1, 1),
        q_pool=1,
        mask_unit_size=(2, 2),
        num_classes=3,
        patch_drop_rate=0.1,
    )
    nn.init.normal_(model.head.fc.weight)  # zero as it comes: nothing would show
    return model


def layer(name: str, kind: str = "dropout", cls: str = "Dropout", attribute: str = "p") -> Any:
    """The site of a layer that owns its drop."""
    return name, kind, cls, attribute, (cls,)


def block(name: str) -> list[Any]:
    return [
        (f"{name}.attn.attn_drop", "attention", "Dropout", "p", ("Attention",)),
        layer(f"{name}.attn.proj_drop"),
        *([layer(f"{name}.drop_path1", "drop_path", "DropPath", "drop_prob")] if name == "blocks.1" else []),
        layer(f"{name}.mlp.drop1"),
        layer(f"{name}.mlp.drop2"),
        *([layer(f"{name}.drop_path2", "drop_path", "DropPath", "drop_prob")] if name == "blocks.1" else []),
    ]


ROWS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], Tensor], list[Any]]] = {
    "DropPath": (
        lambda: nn.Sequential(DropPath(0.1)),
        tokens,
        [layer("0", "drop_path", "DropPath", "drop_prob")],
    ),
    "DropBlock2d": (
        lambda: nn.Sequential(DropBlock2d(0.1, block_size=3)),
        images,
        [layer("0", "dropout", "DropBlock2d", "drop_prob")],
    ),
    "PatchDropout": (
        lambda: nn.Sequential(PatchDropout(0.1)),
        mean_of_tokens,
        [layer("0", "dropout", "PatchDropout", "prob")],
    ),
    "ResidualDrop of EfficientViT": (
        lambda: nn.Sequential(ResidualDrop(nn.Linear(8, 8), 0.1)),
        lambda model: model(torch.ones(4, 8, 1, 8)),
        [layer("0", "drop_path", "ResidualDrop", "drop")],
    ),
    "attention, fused: its child only holds the rate": (
        lambda: nn.Sequential(attention(fused=True)),
        tokens,
        [("0.attn_drop", "attention", "Dropout", "p", ("Attention",)), layer("0.proj_drop")],
    ),
    "attention, not fused: its child drops": (
        lambda: nn.Sequential(attention(fused=False)),
        tokens,
        [layer("0.attn_drop", "attention"), layer("0.proj_drop")],
    ),
    "ViT": (
        vision_transformer,
        images,
        [
            layer("pos_drop"),
            layer("patch_drop", "dropout", "PatchDropout", "prob"),
            *block("blocks.0"),
            *block("blocks.1"),
            layer("head_drop"),
        ],
    ),
    "ResNet: a number at the root": (
        resnet,
        images,
        [
            layer("drop_rate", "dropout", "ResNet", "drop_rate"),
            layer("layer2.0.drop_path", "drop_path", "DropPath", "drop_prob"),
            layer("layer3.0.drop_block", "dropout", "DropBlock2d", "drop_prob"),
            layer("layer3.0.drop_path", "drop_path", "DropPath", "drop_prob"),
            layer("layer4.0.drop_block", "dropout", "DropBlock2d", "drop_prob"),
            layer("layer4.0.drop_path", "drop_path", "DropPath", "drop_prob"),
        ],
    ),
    "EfficientNet: likewise": (
        lambda: timm.create_model("test_efficientnet", num_classes=3, drop_rate=0.1),
        images,
        [layer("drop_rate", "dropout", "EfficientNet", "drop_rate")],
    ),
    "MobileNetV3: likewise": (
        lambda: timm.create_model("mobilenetv3_small_050", num_classes=3, drop_rate=0.1),
        images,
        [layer("drop_rate", "dropout", "MobileNetV3", "drop_rate")],
    ),
    "ConvNeXt: the number at the root is a decoy": (
        lambda: timm.create_model(
            "test_convnext", num_classes=3, drop_rate=0.1, depths=(1, 1, 1, 1), dims=(8, 8, 8, 8)
        ),
        images,
        [
            *(layer(f"stages.{stage}.blocks.0.mlp.drop{number}") for stage in range(4) for number in (1, 2)),
            layer("head.drop"),
        ],
    ),
    "Hiera: a method of the root draws the mask": (
        hiera,
        images,
        [
            layer("patch_drop_rate", "dropout", "Hiera", "patch_drop_rate"),
            *(layer(f"blocks.{each}.mlp.drop{number}") for each in range(2) for number in (1, 2)),
            layer("head.drop"),
        ],
    ),
}


@pytest.mark.parametrize("row", ROWS)
def test_the_sites_are_those_of_the_table_and_they_drop(row: str, check: Any, described: Any) -> None:
    build, run, expected = ROWS[row]
    model = build()
    sites = find_sites(model)
    assert described(sites) == expected
    # Hiera cannot go on without a single patch, and does not say so.
    check(model, run, sites, fragile=["patch_drop_rate"])()


def test_convnexts_decoy_is_there_and_stays() -> None:
    model = ROWS["ConvNeXt: the number at the root is a decoy"][0]()
    for site in find_sites(model):
        site.rate = 0.7
    assert model.drop_rate == 0.1


def test_switches_are_asked_of_the_instance() -> None:
    model = nn.Sequential(attention(fused=True), attention(fused=False))
    fused, plain = find_sites(model, "attn_drop")
    assert (fused.owners, plain.owners) == ((model[0],), (model[1].attn_drop,))
    model[0].fused_attn = False
    assert find_sites(model, "0.attn_drop")[0].owners == (model[0].attn_drop,)


def test_a_model_built_without_rates_says_which_slots_are_empty() -> None:
    model = vision_transformer(drop_rate=0.1, drop_path_rate=0.0)
    slots = empty_slots(model)
    assert [slot for slot in slots if slot.endswith("drop_path1")] == ["blocks.0.drop_path1", "blocks.1.drop_path1"]
    assert "patch_drop" in slots
    with pytest.raises(
        ValueError, match=rf"kind attention, dropout\. {len(slots)} slots such as [\w.]+ are empty.* above 0\.$"
    ):
        find_sites(model, kinds="drop_path")
    assert len(empty_slots(vision_transformer(drop_path_rate=0.2))) < len(slots)


def test_the_first_block_has_an_empty_slot_even_with_rates() -> None:
    assert "blocks.0.drop_path1" in empty_slots(vision_transformer(drop_path_rate=0.2))


# Wrong finders.


def the_holder_owns(sites: list[Site]) -> list[Site]:
    return [
        dataclasses.replace(site, users=(dataclasses.replace(site.users[0], owners=(site.holder,)),)) for site in sites
    ]


def only_dropout_layers(sites: list[Site]) -> list[Site]:
    return [site for site in sites if isinstance(site.holder, nn.Dropout)]


@pytest.mark.parametrize(
    ("start", "wrong"),
    [("attention, fused", the_holder_owns), ("ResNet", only_dropout_layers), ("Hiera", only_dropout_layers)],
)
def test_a_wrong_finder_fails_the_check(start: str, wrong: Any, check: Any) -> None:
    build, run, _ = next(row for name, row in ROWS.items() if name.startswith(start))
    model = build()
    with pytest.raises(AssertionError):
        check(model, run, wrong(find_sites(model)))()


@pytest.mark.parametrize("fused", [True, False])
def test_a_finder_that_ignores_switches_misses_the_table(
    fused: bool, described: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source.ClassSource, "_holds", lambda self, module, conditions: True)
    found = described(find_sites(nn.Sequential(attention(fused=fused)), "attn_drop"))
    assert found == [("0.attn_drop", "attention", "Dropout", "p", ("Attention", "Dropout"))]
    rows = [row for name, row in ROWS.items() if name.startswith("attention")]
    assert all(found[0] not in expected for _, _, expected in rows)

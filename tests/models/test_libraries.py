"""Models of other libraries: built for the data, rates where they belong, and every refusal in our words."""

import re
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lightning_dropout.models import libraries, timm_model, torchvision_model, transformers_model
from lightning_dropout.nn import DropPath

GREY, COLOUR = (1, 8, 8), (3, 32, 32)
TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "patch_size": 4}


def vit(**arguments: Any) -> nn.Module:
    return transformers_model("vit", **{"input_shape": GREY, **TINY, **arguments})


# Small builds, each with all images that it can be built for: fixed or free sizes, one channel or three.
BUILD: dict[str, tuple[Callable[..., nn.Module], list[tuple[int, ...]]]] = {
    "timm, size fixed": (lambda **a: timm_model("test_vit", **a), [(1, 32, 32), (3, 64, 32)]),
    "timm, size free": (lambda **a: timm_model("test_resnet", **a), [GREY, (2, 24, 16)]),
    "timm, a tag": (lambda **a: timm_model("resnet10t.c3_in1k", **a), [GREY]),
    "timm, an argument": (lambda **a: timm_model("test_vit", patch_size=4, **a), [GREY]),
    "torchvision, size free": (lambda **a: torchvision_model("mobilenet_v3_small", **a), [COLOUR, (3, 8, 24)]),
    "torchvision, size fixed": (lambda **a: torchvision_model("vit_b_32", **a), [COLOUR]),
    "transformers": (vit, [GREY, (3, 8, 12)]),
}


@pytest.mark.parametrize("case", BUILD)
def test_a_model_fits_the_data_and_is_ready_to_train(case: str) -> None:
    build, shapes = BUILD[case]
    for shape in shapes:
        model = build(input_shape=[*shape], num_classes=7)
        assert all(module.training for module in model.modules())
        with torch.no_grad():
            assert model(torch.randn(2, *shape)).shape == (2, 7)


def test_the_proof_leaves_no_trace() -> None:
    model = timm_model("test_resnet", GREY)
    assert all(batches == 0 for name, batches in model.named_buffers() if name.endswith("num_batches_tracked"))
    assert not any(buffer.is_inference() or buffer.requires_grad for buffer in model.buffers())
    assert all(parameter.grad is None for parameter in model.parameters())


def rates(model: nn.Module) -> dict[str, float]:
    """Return what the layers and attributes of a model hold as rates, by dotted name."""
    names = ("p", "drop_prob", "drop_rate", "attention_dropout", "dropout", "dropout_prob")
    found = {}
    for path, module in model.named_modules():
        for name in names:
            value = vars(module).get(name)
            if isinstance(value, float) and value > 0:
                found[f"{path}.{name}".lstrip(".")] = round(value, 6)
    return found


def test_rates_of_timm() -> None:
    assert rates(timm_model("test_vit", (1, 32, 32))) == {}
    assert rates(timm_model("test_vit", (1, 32, 32), p=0.25)) == {"head_drop.p": 0.25}
    attention = rates(timm_model("test_vit", (1, 32, 32), attention_p=0.25))
    assert attention
    assert all(name.endswith("attn.attn_drop.p") for name in attention)
    projection = rates(timm_model("test_vit", (1, 32, 32), projection_p=0.25))
    assert all(name.endswith(("attn.proj_drop.p", "mlp.drop1.p", "mlp.drop2.p")) for name in projection)
    paths = rates(timm_model("test_vit", (1, 32, 32), drop_path=0.25))
    assert paths["blocks.5.drop_path2.drop_prob"] == 0.25
    assert len(set(paths.values())) == 5  # the first block has none


def test_rates_of_torchvision() -> None:
    swin = rates(torchvision_model("swin_t", COLOUR, p=0.125, attention_p=0.25))
    assert swin["features.1.0.attn.dropout"] == 0.125
    assert swin["features.1.0.attn.attention_dropout"] == 0.25
    assert max(rates(torchvision_model("convnext_tiny", COLOUR, drop_path=0.375)).values()) == 0.375
    assert set(rates(torchvision_model("squeezenet1_1", COLOUR, p=0.25)).values()) == {0.25}
    assert set(rates(torchvision_model("densenet121", COLOUR, p=0.25)).values()) == {0.25}


def test_rates_of_transformers() -> None:
    assert rates(vit()) == {}
    assert set(rates(vit(p=0.25)).values()) == {0.25}
    assert rates(vit(attention_p=0.25))
    assert transformers_model("convnext", COLOUR, drop_path=0.25).model.config.drop_path_rate == 0.25


@pytest.mark.parametrize("mode", ["subset", "batch"])
def test_stochastic_depth_that_saves_what_it_drops(mode: Any) -> None:
    for model in (
        timm_model("test_vit", (1, 32, 32), drop_path=0.25, stochastic_depth_mode=mode),
        torchvision_model("convnext_tiny", COLOUR, drop_path=0.25, stochastic_depth_mode=mode),
        transformers_model("convnext", COLOUR, drop_path=0.25, stochastic_depth_mode=mode),
    ):
        paths = [layer for layer in model.modules() if "drop_path" in type(layer).__module__]
        assert {(type(layer), layer.mode) for layer in paths} == {(DropPath, mode)}
        assert max(layer.drop_prob for layer in paths) == 0.25


def test_auxiliary_heads_do_not_come_with_the_logits_of_training() -> None:
    assert torchvision_model("googlenet", COLOUR)(torch.randn(2, *COLOUR)).shape == (2, 10)


def test_the_librarys_name_of_an_argument_wins() -> None:
    assert rates(timm_model("test_vit", COLOUR, p=0.25, drop_rate=0.5)) == {"head_drop.p": 0.5}


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "beginning of a name": (
        lambda: timm_model("vit_tiny"),
        "a model of timm, but got 'vit_tiny'; closest: vit_tiny_pa",
    ),
    "typo": (lambda: timm_model("resnet_18"), "closest: resnet18"),
    "nothing close": (lambda: timm_model("#"), "'#'; it has "),
    "no name": (lambda: timm_model(18), "a model of timm, but got 18"),  # type: ignore[arg-type]
    "no such tag": (lambda: timm_model("resnet10t.x"), "but got 'resnet10t.x'; closest: resnet10t"),
    "hub": (lambda: timm_model("hf-hub:timm/resnet18.a1_in1k"), "but got 'hf-hub:timm"),
    "folder": (lambda: timm_model("local-dir:/tmp"), "but got 'local-dir:/tmp'"),
    "rate untaken": (
        lambda: timm_model("vgg11", COLOUR, drop_path=0.1),
        "`drop_path` to be None, since vgg11 of timm takes no `drop_path_rate`; .*callbacks/stochastic_depth=none",
    ),
    "rate untaken, dropout": (
        lambda: timm_model("test_resnet", GREY, attention_p=0.1),
        "`attention_p` to be None, since test_resnet of timm takes no `attn_drop_rate`; .*callbacks/dropout=none",
    ),
    "argument untaken": (
        lambda: timm_model("test_resnet", GREY, drop_block_rat=0.1),
        "`drop_block_rat` to be an argument of test_resnet of timm, .* did you mean `drop_block_rate`?",
    ),
    "argument untaken, in a plural": (lambda: timm_model("hrnet_w18_small", GREY, foo=1), "`foo` to be an argument"),
    "argument untaken by its name": (
        lambda: timm_model("vgg11", COLOUR, drop_path_rate=0.1),
        "`drop_path_rate` to be an argument of vgg11",
    ),
    "images too small": (
        lambda: timm_model("test_vit", GREY),
        r"`name` to be a classifier of images of shape \(1, 8, 8\), but test_vit of timm fails \(AssertionError: Input "
        r"height \(8\) should be divisible by patch size \(16\)\); resize the images \(data.image_size=...\)",
    ),
    "no logits": (
        lambda: timm_model("test_vit", COLOUR, features_only=True),
        r"returns \(1, 10\) logits .* returns list",
    ),
    "tables": (lambda: timm_model("test_vit", (13,)), r"`input_shape` to be \(channels, height, width\)"),
    "no classes": (lambda: timm_model("test_vit", COLOUR, num_classes=0), "`num_classes` to be a whole number"),
    "no rate": (lambda: timm_model("test_vit", COLOUR, p=1.5), "`p` to be a probability"),
    "no rate, of paths": (lambda: timm_model("test_vit", COLOUR, drop_path=1.5), "`drop_path` to be a probability"),
    "no mode": (
        lambda: timm_model("test_vit", COLOUR, stochastic_depth_mode="some"),  # type: ignore[arg-type]
        "`stochastic_depth_mode` to be one of .* but got 'some'",
    ),
    "no stochastic depth": (
        lambda: timm_model("vgg11", COLOUR, stochastic_depth_mode="subset"),
        "`stochastic_depth_mode` to be None for vgg11 of timm, but got 'subset': Expected `model` to have blocks",
    ),
    "no classifier": (lambda: torchvision_model("fcn_resnet50"), "a model of torchvision, but got 'fcn_resnet50'"),
    "grey": (lambda: torchvision_model("resnet18", GREY), r"3 channels, .* but got \(1, 8, 8\); .*data.channels=3"),
    "no dropout": (lambda: torchvision_model("resnet18", COLOUR, p=0.1), "`p` to be None, .* takes no `dropout`"),
    "rate fixed": (
        lambda: torchvision_model("swin_t", COLOUR, drop_path=0.1),
        "`drop_path` to be None, since swin_t of torchvision fixes its `stochastic_depth_prob`",
    ),
    "argument fixed": (
        lambda: torchvision_model("swin_t", COLOUR, embed_dim=8),
        "`embed_dim` .* fixes this one; leave",
    ),
    "oblong": (lambda: torchvision_model("vit_b_32", (3, 32, 64)), "vit_b_32 of torchvision fails"),
    "no image model": (lambda: transformers_model("bert"), "that classifies images, but got 'bert'; closest: beit"),
    "timm in disguise": (lambda: transformers_model("timm_wrapper"), "but got 'timm_wrapper'"),
    "no field": (lambda: vit(hidden_siz=8), "`hidden_siz` to be an argument of vit .* did you mean `hidden_size`?"),
    "no field, rate": (lambda: vit(drop_path=0.1), "`drop_path` to be None, since vit of transformers"),
    "code of a hub": (lambda: vit(attn_implementation="somebody/kernel"), "`attn_implementation` to be an argument"),
    "code of a hub, class": (lambda: vit(auto_map={"AutoModel": "somebody/x--y.Z"}), "`auto_map` to be an argument"),
    "image too small": (lambda: vit(patch_size=16), "vit of transformers fails .*Kernel size"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_names_argument_and_cure(case: str) -> None:
    build, message = REFUSED[case]
    with pytest.raises(ValueError, match=f"^Expected .*{message}") as caught:
        build()
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("build", "module", "install"),
    [
        (lambda: timm_model("resnet18"), "timm", 'pip install "lightning-dropout[vision]"'),
        (lambda: torchvision_model("resnet18"), "torchvision.models", 'pip install "lightning-dropout[vision]"'),
        (lambda: transformers_model("vit"), "transformers", "pip install transformers"),
    ],
)
def test_a_missing_library_is_named_with_its_cure(
    monkeypatch: pytest.MonkeyPatch, build: Callable[[], nn.Module], module: str, install: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=rf"^Expected `name` .* cannot be imported .*{re.escape(install)}"):
        build()


def test_a_download_that_fails_keeps_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = libraries.import_library("timm", "timm")

    def offline(*args: Any, **kwargs: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(OSError, match=r"^no route to host$"):
        timm_model("test_vit", COLOUR, pretrained=True)

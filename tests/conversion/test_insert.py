"""Stochastic depth in models that were built without: where it is put, at which rates, and that it drops there."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_dropout.conversion import convert_stochastic_depth, insert_drop_path
from lightning_dropout.nn import DropPath
from lightning_dropout.sites import find_sites

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")
transformers = pytest.importorskip("transformers")

TEXT = torch.randint(0, 50, (4, 7), generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
SMALL = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)


def with_head(model: Any) -> nn.Module:
    nn.init.normal_(model.heads.head.weight)  # zeros, as it is built
    return model


# How each is built, its input, and the drop paths of its second block.
MODELS: dict[str, tuple[Any, Tensor, list[str]]] = {
    "transformers_vit": (
        lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**SMALL, image_size=32)),
        IMAGES,
        ["vit.layers.1.drop_path1", "vit.layers.1.drop_path2"],
    ),
    "transformers_bert": (
        lambda: transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL, vocab_size=50)),
        TEXT,
        ["bert.encoder.layer.1.attention.output.drop_path", "bert.encoder.layer.1.output.drop_path"],
    ),
    "transformers_distilbert": (
        lambda: transformers.DistilBertForSequenceClassification(
            transformers.DistilBertConfig(dim=8, n_layers=3, n_heads=2, hidden_dim=16, vocab_size=50)
        ),
        TEXT,
        ["distilbert.transformer.layer.1.drop_path1", "distilbert.transformer.layer.1.drop_path2"],
    ),
    "torchvision_vit": (
        lambda: with_head(torchvision.models.VisionTransformer(32, 16, 3, 2, 8, 16, num_classes=3)),
        IMAGES,
        ["encoder.layers.encoder_layer_1.drop_path1", "encoder.layers.encoder_layer_1.drop_path2"],
    ),
    "torchvision_resnet": (
        lambda: torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=3),
        IMAGES,
        ["layer2.0.drop_path"],
    ),
    "timm_resnet": (
        lambda: timm.models.resnet.ResNet(
            timm.models.resnet.BasicBlock, (1, 1, 1, 1), num_classes=3, zero_init_last=False
        ),
        IMAGES,
        ["layer2.0.drop_path"],
    ),
    "timm_vit": (
        lambda: timm.models.VisionTransformer(32, 16, embed_dim=8, depth=3, num_heads=2, num_classes=3),
        IMAGES,
        ["blocks.1.drop_path1", "blocks.1.drop_path2"],
    ),
    "torch_encoder": (encoder, torch.randn(4, 5, 8), ["layers.1.drop_path3", "layers.1.drop_path4"]),
}


def output_of(model: nn.Module, x: Tensor) -> Tensor:
    output = model(x)
    return output if isinstance(output, Tensor) else output.logits


@pytest.mark.parametrize("name", MODELS)
def test_every_branch_gets_a_drop_path_and_nothing_else_changes(name: str) -> None:
    build, x, second = MODELS[name]
    torch.manual_seed(0)
    model = build().eval()
    expected, keys = output_of(model, x), [*model.state_dict()]
    report = insert_drop_path(model, 0.3)
    depth = 4 if "resnet" in name else 3
    assert not report.left
    assert len(report.converted) == depth * len(second)
    rates = sorted({round(rate, 6) for rate in report.converted.values()})
    assert rates == pytest.approx([0.3 * i / (depth - 1) for i in range(depth)], abs=1e-5)
    assert [path for path in report.converted if path in second] == second
    assert [model.get_submodule(path).drop_prob for path in report.converted] == [*report.converted.values()]
    assert {site.name: site.rate for site in find_sites(model, kinds=("drop_path",))} == dict(report.converted)
    assert torch.equal(output_of(model, x), expected)
    assert [*model.state_dict()] == keys
    assert all(path in str(report) for path in report.converted)


@pytest.mark.parametrize("name", MODELS)
def test_a_rate_of_one_leaves_the_branches_out(name: str) -> None:
    """What remains then is what remains where all drop paths are asleep and every branch gives zeros."""
    build, x, _ = MODELS[name]
    torch.manual_seed(0)
    model = build()
    report = insert_drop_path(model, 1.0, depth_rule="uniform")
    one = output_of(model.eval(), x)
    for path in report.converted:
        model.get_submodule(path).train()
    other = output_of(model, x)
    assert not torch.allclose(one, other)
    zeros = copy.deepcopy(model).eval()
    for path in report.converted:
        layer = zeros.get_submodule(path)
        layer.forward = lambda x, branch, shortcut=None, **options: (  # type: ignore[assignment]
            torch.zeros_like(branch(x, **(options["kwargs"] or {})))
            + (x if shortcut is None else 0 if shortcut == 0 else shortcut(x))
        )
    torch.testing.assert_close(output_of(zeros, x), other)


@pytest.mark.parametrize("name", MODELS)
def test_branches_run_for_the_kept_samples_only(name: str) -> None:
    build, x, _ = MODELS[name]
    model = build()
    report = insert_drop_path(model, 0.5, depth_rule="uniform")
    sizes: list[int] = []
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_hook(lambda module, args, output: sizes.append(len(output)))
    for path in report.converted:
        model.get_submodule(path).train()
    output_of(model, x).sum().backward()
    assert sizes.count(2) >= len(report.converted)


def test_depth_rule_uniform_and_modes() -> None:
    model = MODELS["timm_vit"][0]()
    report = insert_drop_path(model, 0.25, depth_rule="uniform", mode="row")
    assert {*report.converted.values()} == {0.25}
    assert {layer.mode for layer in model.modules() if isinstance(layer, DropPath)} == {"row"}


def test_a_resnet_runs_at_least_two_samples() -> None:
    model = MODELS["torchvision_resnet"][0]()
    insert_drop_path(model, 0.9, depth_rule="uniform")
    assert {layer.min_samples for layer in model.modules() if isinstance(layer, DropPath)} == {2}
    model.train()(IMAGES[:3, :, :32, :32])


def test_a_model_that_has_stochastic_depth_is_sent_to_the_conversion() -> None:
    model = timm.models.VisionTransformer(32, 16, embed_dim=8, depth=2, num_heads=2, drop_path_rate=0.1)
    with pytest.raises(ValueError, match=r"without stochastic depth, but got 2 .*convert_stochastic_depth"):
        insert_drop_path(model, 0.2)
    convert_stochastic_depth(model)
    with pytest.raises(ValueError, match="without stochastic depth"):
        insert_drop_path(model, 0.2)


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(3, 3)),
        nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2, enable_nested_tensor=False),  # time first
    ],
)
def test_a_model_without_residual_sums_is_refused(model: nn.Module) -> None:
    before = [*model.modules()]
    with pytest.raises(ValueError, match=r"blocks that add `x \+ branch\(x\)`, but got .*StochasticDepth"):
        insert_drop_path(model, 0.2)
    assert [*model.modules()] == before


def test_bad_arguments_change_nothing() -> None:
    model = MODELS["timm_vit"][0]()
    for arguments, message in (
        ({"drop_prob": 1.5}, "Expected `drop_prob` to be a probability"),
        ({"drop_prob": 0.1, "mode": "some"}, "Expected `mode` to be one of"),
        ({"drop_prob": 0.1, "depth_rule": "square"}, "Expected `rule` to be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            insert_drop_path(model, **arguments)
    assert not any(isinstance(layer, DropPath) for layer in model.modules())


class Grows(nn.Module):
    """`+=` changes what others hold, too: a list, and a tensor of another name."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm = nn.Linear(3, 3), nn.LayerNorm(3)

    def forward(self, x: Tensor, found: list[Tensor]) -> Tensor:
        x = x * 1
        same = x
        x += self.fc(self.norm(x * 1))
        found += [x]
        return x + same


class Growing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Grows(), Grows()])

    def forward(self, x: Tensor) -> Tensor:
        found: list[Tensor] = []
        for block in self.blocks:
            x = block(x, found)
        return torch.stack([x, *found])


def test_what_is_added_in_place_stays_in_place() -> None:
    model = Growing().eval()
    x = torch.randn(4, 3)
    expected = model(x)
    assert len(insert_drop_path(model, 0.5).converted) == 2
    assert torch.equal(model(x), expected)
    model.train()(x).sum().backward()

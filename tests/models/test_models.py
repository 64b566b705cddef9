"""What all models promise alike: shapes, modes, rates that fire one by one, and nothing that hides a rate."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_dropout import models
from lightning_dropout.models import MLP, Block, Net, ResBlock, ResNet, ViT
from lightning_dropout.nn import AttentionDropout, Dropout, DropPath, functional

DIGITS = (1, 8, 8)

# Small builds of each model, all rates 0 unless given.
BUILD: dict[str, Callable[..., nn.Module]] = {
    "net": lambda p=0.0: Net(DIGITS, 10, p=p, channels=(4, 8), hidden=16),
    "mlp": lambda p=0.0, **rates: MLP(DIGITS, 10, dim=16, depth=2, p=p, **rates),
    "resnet": lambda **rates: ResNet(DIGITS, 10, depth=20, width=4, **rates),
    "resnet_bottleneck": lambda **rates: ResNet(DIGITS, 10, depth=50, width=4, **rates),
    "vit": lambda **rates: ViT(DIGITS, 10, "digits", dim=16, depth=2, num_heads=2, **rates),
    "vit_class_token": lambda **rates: ViT(DIGITS, 10, "digits", dim=16, depth=2, num_heads=2, pool="class", **rates),
}
RATES = {
    "net": ("p",),
    "mlp": ("p", "drop_path"),
    "resnet": ("p", "block_p", "drop_path"),
    "resnet_bottleneck": ("p", "block_p", "drop_path"),
    "vit": ("p", "attention_p", "projection_p", "drop_path"),
    "vit_class_token": ("p", "attention_p", "projection_p", "drop_path"),
}
EACH_RATE = [(name, rate) for name, rates in RATES.items() for rate in rates]


def drops(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, AttentionDropout | Dropout | DropPath)]


def rate_of(drop: Any) -> float:
    return drop.drop_prob if isinstance(drop, DropPath) else drop.p


@pytest.mark.parametrize("name", BUILD)
def test_logits_and_gradients_of_every_parameter(name: str) -> None:
    model = BUILD[name]()
    logits = model(torch.randn(4, *DIGITS))
    assert logits.shape == (4, 10)
    F.cross_entropy(logits, torch.arange(4)).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        # The bias of a projection before batch or layer norm may get none, so weights only.
        if parameter.ndim > 1:
            assert parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize(("name", "rate"), EACH_RATE)
def test_each_rate_alone_makes_training_random_and_leaves_evaluation_alone(name: str, rate: str) -> None:
    x = torch.randn(8, *DIGITS)
    torch.manual_seed(1)
    plain = BUILD[name]()
    torch.manual_seed(1)
    model = BUILD[name](**{rate: 0.5})
    assert torch.equal(plain.train()(x), plain.train()(x))  # at rate 0 nothing else is random
    assert not torch.equal(model.train()(x), model.train()(x))
    plain.load_state_dict(model.state_dict())  # running statistics; the rates are no part of it
    assert torch.equal(model.eval()(x), model.eval()(x))
    assert torch.equal(model(x), plain.eval()(x))


@pytest.mark.parametrize(("name", "rate"), EACH_RATE)
def test_each_layer_of_a_rate_fires_by_itself(name: str, rate: str) -> None:
    """One Dropout or DropPath at a time in training mode, all else in evaluation: the output must change."""
    model = BUILD[name](**{rate: 0.5}, **({} if rate != "drop_path" else {"depth_rule": "uniform"}))
    x = torch.randn(8, *DIGITS)
    expected = model.eval()(x)
    layers = [drop for drop in drops(model) if rate_of(drop) > 0]
    assert layers
    for layer in layers:
        layer.train()
        assert not torch.equal(model(x), expected)
        layer.eval()
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("name", BUILD)
def test_built_at_rate_0_every_drop_is_there_to_be_scheduled(name: str) -> None:
    model = BUILD[name]()
    full = BUILD[name](**dict.fromkeys(RATES[name], 0.5))
    assert len(drops(model)) == len(drops(full)) > 0
    x = torch.randn(8, *DIGITS)
    model.train()
    before = torch.get_rng_state()
    model(x)
    assert torch.equal(torch.get_rng_state(), before)
    for drop in drops(model):
        setattr(drop, "p" if isinstance(drop, Dropout) else "drop_prob", 0.5)
    assert not torch.equal(model(x), model(x))


@pytest.mark.parametrize("name", BUILD)
def test_rates_live_in_the_dropping_layers_alone(name: str) -> None:
    model = BUILD[name](**dict.fromkeys(RATES[name], 0.375))
    for module in model.modules():
        if isinstance(module, AttentionDropout | Dropout | DropPath) or not type(module).__module__.startswith(
            "lightning_dropout"
        ):
            continue
        assert not [key for key, value in vars(module).items() if isinstance(value, float)], type(module)


@pytest.mark.parametrize("name", BUILD)
def test_all_rates_at_1_stay_finite(name: str) -> None:
    model = BUILD[name](**dict.fromkeys(RATES[name], 1.0))
    logits = model(torch.randn(4, *DIGITS))
    F.cross_entropy(logits, torch.arange(4)).backward()
    assert logits.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("name", [name for name, rates in RATES.items() if "drop_path" in rates])
def test_stochastic_depth_follows_the_rule(name: str) -> None:
    linear = [drop.drop_prob for drop in drops(BUILD[name](drop_path=0.3)) if isinstance(drop, DropPath)]
    assert linear[0] == 0.0
    assert linear[-1] == 0.3
    assert linear == sorted(linear)
    uniform = BUILD[name](drop_path=0.3, depth_rule="uniform")
    assert {drop.drop_prob for drop in drops(uniform) if isinstance(drop, DropPath)} == {0.3}


@pytest.mark.parametrize("name", BUILD)
def test_shapes_may_come_as_lists_and_models_as_bfloat16(name: str) -> None:
    model = BUILD[name](**dict.fromkeys(RATES[name], 0.1)).to(torch.bfloat16)
    assert model(torch.randn(4, *DIGITS, dtype=torch.bfloat16)).dtype == torch.bfloat16
    builder = {"net": Net, "mlp": MLP, "resnet": ResNet, "vit": ViT}[name.split("_")[0]]
    assert builder([3, 16, 16], 5)(torch.randn(2, 3, 16, 16)).shape == (2, 5)


@pytest.mark.parametrize("name", ["net", "resnet", "vit"])
def test_same_output_under_channels_last(name: str) -> None:
    model = BUILD[name]().eval()
    x = torch.randn(4, *DIGITS)
    expected = model(x)
    actual = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["net", "mlp", "resnet", "vit"])
def test_traces_into_one_graph(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mode = {"stochastic_depth_mode": "row"} if name in ("resnet", "vit") else {}
    model = BUILD[name](**dict.fromkeys(RATES[name], 0.25), **mode)
    x = torch.randn(4, *DIGITS)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.manual_seed(2)
    actual = compiled(x)
    torch.manual_seed(2)
    # Eager code on a CPU draws many coins in another way than compiled code.
    monkeypatch.setattr(functional, "is_plain", lambda x: False)
    torch.testing.assert_close(actual, model(x))
    torch.compiler.reset()


@pytest.mark.parametrize(("name", "rate"), EACH_RATE)
@pytest.mark.parametrize("bad", [1.5, -0.1, float("nan"), "abc"])
def test_a_bad_rate_is_named_as_the_model_names_it(name: str, rate: str, bad: Any) -> None:
    with pytest.raises(ValueError, match=f"Expected `{rate}` to be a probability"):
        BUILD[name](**{rate: bad})


@pytest.mark.parametrize("model", [Net, MLP, ResNet, ViT])
def test_bad_shapes_and_counts(model: Any) -> None:
    for shape in ((), "3,32,32", 32, None):
        with pytest.raises(ValueError, match="Expected `input_shape` to be the shape of one sample"):
            model(shape)
    with pytest.raises(ValueError, match=r"Expected `input_shape\[1\]` to be a whole number of at least 1, but got 0"):
        model((3, 0, 32))
    with pytest.raises(ValueError, match=r"`num_(classes|outputs)` to be a whole number of at least 1, but got 0"):
        model((3, 32, 32), 0)


@pytest.mark.parametrize("model", [Net, ResNet, ViT])
def test_image_models_send_tables_to_the_mlp(model: Any) -> None:
    with pytest.raises(ValueError, match=r"Expected `input_shape` to be \(channels, height, width\).* use the MLP"):
        model((13,))


@pytest.mark.parametrize("model", [MLP, ViT])
def test_a_rule_that_leaves_nothing_to_drop_is_an_error(model: Any) -> None:
    with pytest.raises(ValueError, match=r"Expected `depth` to be at least 2 .* use `depth_rule='uniform'`"):
        model((1, 8, 8), 10, depth=1, drop_path=0.1)
    model((1, 8, 8), 10, depth=1, drop_path=0.1, depth_rule="uniform")
    with pytest.raises(ValueError, match="Expected `depth_rule` to be one of"):
        model((1, 8, 8), 10, depth_rule="cosine")


def test_exported_names() -> None:
    of_libraries = {models.timm_model, models.torchvision_model, models.transformers_model}  # see test_libraries
    assert {Net, Block, MLP, ResBlock, ResNet, ViT} | of_libraries == {getattr(models, n) for n in models.__all__}

"""Models of other libraries, converted: run against themselves, with the same samples kept."""

import copy
import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_dropout import StochasticDepthScheduler
from lightning_dropout.conversion import Conversion, convert, convert_stochastic_depth
from lightning_dropout.conversion.converted import CONVERTED
from lightning_dropout.models import ViT
from lightning_dropout.nn import DropPath
from lightning_dropout.sampling import mc_sample
from lightning_dropout.sites import audit, find_sites

RATE = 0.4
IMAGES = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def needs(library: str) -> Any:
    return pytest.importorskip(library, reason=f"needs {library}, an optional library")


def timm_vit(**options: Any) -> nn.Module:
    options = {"drop_path_rate": RATE, "init_values": 0.5, "depth": 3} | options
    cls = needs("timm.models.vision_transformer").VisionTransformer
    return cls(img_size=32, patch_size=8, embed_dim=8, num_heads=2, num_classes=3, **options)


def timm_convnext() -> nn.Module:
    cls = needs("timm.models.convnext").ConvNeXt
    return cls(num_classes=3, depths=(1, 1, 1, 2), dims=(4, 8, 8, 8), drop_path_rate=RATE)


def timm_swin() -> nn.Module:
    cls = needs("timm.models.swin_transformer").SwinTransformer
    return cls(
        img_size=32,
        patch_size=2,
        window_size=4,
        embed_dim=8,
        depths=(2, 2),
        num_heads=(2, 2),
        num_classes=3,
        drop_path_rate=RATE,
    )


def timm_resnet(block: str) -> nn.Module:
    resnet = needs("timm.models.resnet")
    return resnet.ResNet(
        getattr(resnet, block), (1, 1, 1, 2), 3, stem_width=8, channels=(8, 8, 8, 8), drop_path_rate=RATE
    )


def timm_efficientnet() -> nn.Module:
    models = needs("timm.models.efficientnet")
    return models.EfficientNet(
        needs("timm.models._efficientnet_builder").decode_arch_def([["ir_r3_k3_s1_e2_c8_se0.25"]]),
        num_classes=3,
        num_features=8,
        stem_size=8,
        round_chs_fn=functools.partial(needs("timm.layers").make_divisible, divisor=4),
        drop_path_rate=RATE,
    )


def torchvision_convnext() -> nn.Module:
    models = needs("torchvision.models.convnext")
    setting = [models.CNBlockConfig(4, 8, 1), models.CNBlockConfig(8, None, 2)]
    return models.ConvNeXt(setting, stochastic_depth_prob=RATE, num_classes=3, layer_scale=0.5)


def torchvision_swin() -> nn.Module:
    models = needs("torchvision.models.swin_transformer")
    return models.SwinTransformer([2, 2], 8, [2, 2], [2, 2], [4, 4], stochastic_depth_prob=RATE, num_classes=3)


def torchvision_efficientnet() -> nn.Module:
    models = needs("torchvision.models.efficientnet")
    setting = [models.MBConvConfig(2, 3, 1, 8, 8, 3), models.FusedMBConvConfig(2, 3, 1, 8, 8, 2)]
    return models.EfficientNet(setting, 0.0, stochastic_depth_prob=RATE, num_classes=3)


def torchvision_maxvit() -> nn.Module:
    models = needs("torchvision.models.maxvit")
    return models.MaxVit((32, 32), 8, 4, [8, 8], [1, 1], 4, RATE, num_classes=3)


def transformers_swin() -> nn.Module:
    library = needs("transformers")
    config = library.SwinConfig(
        image_size=32,
        patch_size=2,
        embed_dim=8,
        depths=[2, 2],
        num_heads=[2, 2],
        window_size=4,
        drop_path_rate=RATE,
    )
    return Pooled(library.SwinModel(config))


def transformers_convnext() -> nn.Module:
    library = needs("transformers")
    config = library.ConvNextConfig(hidden_sizes=[4, 8], depths=[1, 2], num_stages=2, drop_path_rate=RATE)
    return Pooled(library.ConvNextModel(config))


class Pooled(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.model(x).pooler_output
        return output


# What is converted of each, and what its block never calls or is not written in a way that is known.
MODELS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "timm_vit": (timm_vit, 6, 0),
    "timm_convnext": (timm_convnext, 5, 0),
    "timm_swin": (timm_swin, 8, 0),
    "timm_basic_block": (lambda: timm_resnet("BasicBlock"), 5, 0),
    "timm_bottleneck": (lambda: timm_resnet("Bottleneck"), 5, 0),
    "timm_efficientnet": (timm_efficientnet, 3, 0),
    "torchvision_convnext": (torchvision_convnext, 3, 0),
    "torchvision_swin": (torchvision_swin, 4, 0),
    "torchvision_efficientnet": (torchvision_efficientnet, 5, 0),
    "torchvision_maxvit": (torchvision_maxvit, 6, 0),
    "transformers_convnext": (transformers_convnext, 3, 0),
}
each_model = pytest.mark.parametrize("name", MODELS)


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name][0]()


def without_other_noise(model: nn.Module) -> nn.Module:
    """Ready for a comparison: no dropout, and statistics that do not depend on the samples that run."""
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.momentum = 0.0
            layer.forward = functools.partial(normalised, layer)  # type: ignore[method-assign]
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
        if type(layer).__module__ != DropPath.__module__:
            continue
        if layer.drop_prob:
            layer.drop_prob = RATE
    return model


def normalised(layer: Any, x: Tensor) -> Tensor:
    return nn.functional.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias, False)


class Masking(nn.Module):
    """A drop path of a library, whose draws the test knows."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        from lightning_dropout.nn import functional

        return functional.drop_path(x, self.rate, self.training)


def with_known_masks(model: nn.Module) -> nn.Module:
    for parent in [*model.modules()]:
        for key, child in parent.named_children():
            if convert.is_drop_path(child):
                setattr(parent, key, Masking(convert._as_own(child).drop_prob))
    return model


def converted(model: nn.Module, **options: Any) -> tuple[nn.Module, Conversion]:
    model = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return model, convert_stochastic_depth(model, **options)


@each_model
def test_it_computes_and_learns_what_masking_does(name: str, agree: Callable[..., Any]) -> None:
    model = built(name)
    other, conversion = converted(model)
    assert (len(conversion.converted), len(conversion.left)) == MODELS[name][1:]
    agree(without_other_noise(with_known_masks(model)), without_other_noise(other), IMAGES)


@each_model
def test_names_weights_and_sites_stay(name: str) -> None:
    model = built(name)
    other, conversion = converted(model)
    assert [*other.state_dict()] == [*model.state_dict()]
    assert all(map(torch.equal, other.state_dict().values(), model.state_dict().values()))
    assert [key for key, _ in other.named_parameters()] == [key for key, _ in model.named_parameters()]
    sites, others = ([(site.name, site.kind, site.rate) for site in find_sites(each)] for each in (model, other))
    filled = {*conversion.converted} - {each for each, _, _ in sites}
    assert [each for each in others if each[0] not in filled] == sites
    assert {each for each in others if each[0] in filled} == {(each, "drop_path", 0.0) for each in filled}
    assert {kind for each, kind, _ in others if each in conversion.converted} == {"drop_path"}
    before, after = ([row for row in audit(each, IMAGES).rows if row.name not in filled] for each in (model, other))
    assert [(row.name, row.kind, row.state) for row in after] == [(row.name, row.kind, row.state) for row in before]


@each_model
def test_it_trains(name: str) -> None:
    torch.manual_seed(0)
    model, _ = converted(built(name))
    model.train()(IMAGES).square().sum().backward()
    assert all(each.grad is not None for each in model.parameters() if each.requires_grad)


def test_attention_dropout_is_a_site_as_before() -> None:
    model = timm_vit(attn_drop_rate=0.1, proj_drop_rate=0.2)
    before = [(site.name, site.kind, site.rate) for site in find_sites(model)]
    assert len({kind for _, kind, _ in before}) > 1
    other, conversion = converted(model)
    filled = {*conversion.converted} - {each for each, _, _ in before}
    assert [s for s in ((x.name, x.kind, x.rate) for x in find_sites(other)) if s[0] not in filled] == before


@pytest.mark.parametrize("mode", ["row", "batch", "subset"])
def test_mode(mode: Any) -> None:
    model, conversion = converted(timm_vit(), mode=mode)
    layers = [model.get_submodule(name) for name in conversion.converted]
    assert all(isinstance(layer, DropPath) and layer.mode == mode for layer in layers)
    sizes = []
    model.blocks[2].mlp.register_forward_hook(lambda _, args, output: sizes.append(len(output)))
    torch.manual_seed(0)
    for _ in range(20):
        model.train()(IMAGES)
    # Batch 5 at the rate 0.4; the whole batch or nothing; all.
    assert {*sizes} == {{"subset": 3}.get(mode, 5)}
    assert (len(sizes) < 20) is (mode == "batch")


def test_empty_slots_are_filled() -> None:
    model = timm_vit(drop_path_rate=0.0)
    _ = convert_stochastic_depth(model)
    assert repr(model.blocks[0].drop_path1) == "DropPath(drop_prob=0, mode='subset')"
    assert len([site for site in find_sites(model) if site.kind == "drop_path"]) == 6


def test_rates_and_scale_stay() -> None:
    layer = needs("timm.layers").DropPath(0.3, scale_by_keep=False)
    block = timm_vit().blocks[0]
    block.drop_path1 = layer.eval()
    convert_stochastic_depth(block)
    assert repr(block.drop_path1) == "DropPath(drop_prob=0.3, mode='subset', scale_by_keep=False)"
    assert not block.drop_path1.training


def test_two_samples_where_there_is_batch_normalisation() -> None:
    model, conversion = converted(timm_resnet("BasicBlock"))
    assert {model.get_submodule(name).min_samples for name in conversion.converted} == {2}
    vit, conversion = converted(timm_vit())
    assert {vit.get_submodule(name).min_samples for name in conversion.converted} == {1}


class Known(nn.Module):
    def __init__(self, path: nn.Module | None = None) -> None:
        super().__init__()
        self.fc, self.has_skip = nn.Linear(3, 3), True
        self.drop_path = DropPath(0.5) if path is None else path

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        if self.has_skip:
            y = self.drop_path(y) + x
        return y


class Unknown(Known):
    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        return x + self.drop_path(y) + y


class OnlyTrained(Known):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return x + self.drop_path(self.fc(x))
        return x + self.fc(x)


class TwoWays(Known):
    def forward(self, x: Tensor) -> Tensor:
        return self.added(x)

    def added(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.fc(x))


def test_the_report_and_the_warning() -> None:
    model = nn.Sequential(Known(), Unknown(), Known())
    model[2].has_skip = False
    with pytest.warns(UserWarning, match=r"1 drop paths of Sequential stay as they are, .*`1.drop_path` \(its branch"):
        conversion = convert_stochastic_depth(model)
    assert str(conversion).splitlines() == [
        "run for the kept samples only: 1",
        "  0.drop_path  drop_prob=0.5",
        "run for all samples: 2",
        "  1.drop_path: its branch is not told apart from the rest of the method",
        "  2.drop_path: its block never calls it (only if `has_skip`)",
    ]
    assert CONVERTED not in vars(type(model[1]))


class Twice(Unknown):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.fc(x))
        y = self.fc(x)
        return x + self.drop_path(y) + y


def test_a_layer_that_is_called_twice_may_be_converted_in_part() -> None:
    model = Twice()
    conversion = convert_stochastic_depth(model)
    assert conversion.converted == {"drop_path": 0.5}
    assert conversion.left["drop_path"].startswith("one of its calls: its branch is not told apart")
    model.train()(torch.ones(4, 3))


def test_a_layer_with_hooks_stays() -> None:
    seen = []
    hooked = needs("timm.layers").DropPath(0.5)
    hooked.register_forward_hook(lambda *given: seen.append(given))
    model = nn.Sequential(Known(), Known(hooked))
    with pytest.warns(UserWarning, match=r"`1.drop_path` \(it has hooks"):
        convert_stochastic_depth(model)
    model.train()(torch.ones(4, 3))
    assert model[1].drop_path is hooked
    assert len(seen) == 1


def test_a_switch_may_be_turned_on_later() -> None:
    model = nn.Sequential(Known(), Known(needs("timm.layers").DropPath(0.5)))
    model[1].has_skip = False
    convert_stochastic_depth(model)
    model[1].has_skip = True
    model.train()(torch.ones(4, 3))


def test_evaluation_mode_is_no_switch() -> None:
    model = OnlyTrained(needs("timm.layers").DropPath(0.5)).eval()
    assert convert_stochastic_depth(model).converted == {"drop_path": 0.5}
    model.train()(torch.ones(4, 3))


@pytest.mark.parametrize("cls", [Known, TwoWays])
def test_a_forward_of_its_own_stays(cls: type[Known]) -> None:
    block = cls(needs("timm.layers").DropPath(0.5))
    block.forward = functools.partial(cls.forward, block)  # type: ignore[method-assign]
    model = nn.Sequential(Known(), block)
    with pytest.warns(UserWarning, match="the `forward` of its block was replaced"):
        convert_stochastic_depth(model)
    assert type(block) is cls
    model.train()(torch.ones(4, 3))


def test_a_shared_layer_stays_one() -> None:
    layer = needs("timm.layers").DropPath(0.5)
    model = nn.Sequential(Known(layer), Known(layer))
    convert_stochastic_depth(model)
    assert model[0].drop_path is model[1].drop_path
    assert isinstance(model[0].drop_path, DropPath)


class PreActivated(Known):
    """The shortcut, too, is what the activation makes of it: it works in place."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.act, self.drop_path1 = act, DropPath(0.5)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        x = self.act(x)
        x = self.fc(x)
        x = shortcut + self.drop_path(x)
        return x + self.drop_path1(self.act(self.fc(x)))


@pytest.mark.parametrize("act", [nn.ReLU(inplace=True), nn.Sequential(nn.ReLU(inplace=True)), nn.ReLU()], ids=str)
def test_a_branch_that_changes_in_place_what_enters_it_runs_for_all(act: nn.Module, agree: Callable[..., Any]) -> None:
    model = PreActivated(act)
    other, conversion = converted(model)
    in_place = "True" in repr(act)
    assert ("drop_path" in conversion.left) is in_place
    assert ("drop_path" not in conversion.converted) is in_place
    assert "drop_path1" in conversion.converted  # what is made within may be changed
    agree(with_known_masks(model), other, torch.randn(5, 3))


def test_blocks_that_need_the_number_of_samples_are_told() -> None:
    model = transformers_swin()
    with pytest.raises(ValueError, match=r"`model.encoder.layers.0.blocks.1.drop_path`: its branch is not"):
        convert_stochastic_depth(model)


@pytest.mark.parametrize("model", [nn.Linear(3, 3), nn.Sequential(Unknown())], ids=["nothing", "unknown"])
def test_no_block_to_convert(model: nn.Module) -> None:
    before = [(name, type(each)) for name, each in model.named_modules()]
    with pytest.raises(ValueError, match=r"Expected `model` to have blocks that add `drop_path\(branch\(x\)\)`, but"):
        convert_stochastic_depth(model)
    assert [(name, type(each)) for name, each in model.named_modules()] == before


def test_a_bad_mode_changes_nothing() -> None:
    model = Known()
    with pytest.raises(ValueError, match="Expected `mode` to be one of"):
        convert_stochastic_depth(model, "sample")  # type: ignore[arg-type]
    assert type(model) is Known


def test_our_own_models() -> None:
    model = ViT((1, 8, 8), preset="digits", drop_path=0.2, stochastic_depth_mode="row")
    cls = type(model.blocks[0])
    assert len(convert_stochastic_depth(model).converted) == 8
    assert type(model.blocks[0]) is cls
    assert model.blocks[0].drop_path1.mode == "subset"


def test_the_scheduler_drives_it() -> None:
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = converted(timm_vit(drop_path_rate=0.0))[0]

        def training_step(self, batch: Tensor) -> Tensor:
            self.rates = [block.drop_path1.drop_prob for block in self.model.blocks]
            return self.model(batch).square().sum()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.0)

    module = Module()
    trainer = lightning.Trainer(
        max_steps=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[StochasticDepthScheduler(rate=0.4, depth_rule="linear")],
    )
    trainer.fit(module, torch.utils.data.DataLoader(IMAGES, batch_size=5))
    assert module.rates == pytest.approx([0.0, 0.2, 0.4])


def test_monte_carlo_passes_drop_branches() -> None:
    model, _ = converted(timm_vit())
    model.eval()
    sizes = []
    model.blocks[2].mlp.register_forward_hook(lambda _, args, output: sizes.append(len(output)))
    prediction = mc_sample(model, IMAGES, num_samples=8, task="raw", kinds=("drop_path",), return_samples=True)
    assert prediction.std.max() > 0
    assert min(sizes) == 3  # 0.6 of 5
    assert not any(layer.training for layer in model.modules())


@pytest.mark.filterwarnings(r"ignore:The \.grad attribute of a Tensor that is not a leaf")  # dynamo's own look
def test_compiled_graphs_do_not_grow_with_the_rate() -> None:
    model, conversion = converted(timm_vit(depth=2))
    layers = [model.get_submodule(name) for name in conversion.converted]
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        from torch._dynamo.backends.debugging import aot_eager

        graphs.append(graph)
        return aot_eager(graph, inputs)

    torch.compiler.reset()
    compiled = torch.compile(model.train(), backend=backend)
    numbers = []
    for step in range(6):
        for layer in layers:
            layer.drop_prob = 0.1 + 0.1 * step
        compiled(IMAGES.repeat(2, 1, 1, 1)).square().sum().backward()
        numbers.append(len(graphs))
    torch.compiler.reset()
    assert numbers[1] == numbers[-1]
    # One block is compiled once for all of them.
    assert numbers[-1] <= 12


class WritesInside(nn.Module):
    """Neither the attribute nor the name of a method tells that its input is changed."""

    def __init__(self) -> None:
        super().__init__()
        self.act, self.fc = nn.ReLU(inplace=True), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.fc(self.act(x))
        return output


def test_a_branch_that_changes_in_place_unseen_is_told_when_it_runs() -> None:
    model = Known()
    model.fc = WritesInside()
    convert_stochastic_depth(model)
    with pytest.raises(RuntimeError, match=r"but it changed a tensor, list or dict in place.*`inplace=False`"):
        model.train()(torch.randn(8, 3))
    convert_stochastic_depth(model, mode="row")
    model(torch.randn(8, 3))


class Collects(nn.Linear):
    def forward(self, x: Tensor, losses: list[Tensor]) -> Tensor:  # type: ignore[override]
        losses.append(self.weight.square().sum())
        return super().forward(x)


class WithLosses(Known):
    def __init__(self) -> None:
        super().__init__()
        self.fc = Collects(3, 3)

    def forward(self, x: Tensor, losses: list[Tensor]) -> Tensor:  # type: ignore[override]
        return x + self.drop_path(self.fc(x, losses))


def test_what_a_branch_adds_to_a_list_is_there_afterwards() -> None:
    model, losses = WithLosses(), list[Tensor]()
    convert_stochastic_depth(model)
    model.train()(torch.randn(8, 3), losses)
    assert len(losses) == 1
    with pytest.raises(RuntimeError, match="list or dict in place"):
        model(torch.randn(8, 3), [torch.randn(8)])  # of the kept samples: what it adds would be lost


class SomeHave(Known):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.fc(x) if self.has_skip else self.missing(x))


def test_an_attribute_that_some_blocks_lack() -> None:
    assert convert_stochastic_depth(SomeHave()).converted == {"drop_path": 0.5}


class TimeFirst(Known):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.attn(x, x, x)[0])


def test_time_first_stays() -> None:
    with pytest.raises(ValueError, match="its first dimension is time"):
        convert_stochastic_depth(TimeFirst())


def test_a_method_that_was_replaced_since() -> None:
    class Changing(Known):
        def forward(self, x: Tensor) -> Tensor:
            return x + self.drop_path(self.fc(x))

    def other(self: Any, x: Tensor) -> Tensor:
        return x + 2 * self.drop_path(self.fc(x))

    convert_stochastic_depth(Changing())
    Changing.forward = other  # type: ignore[method-assign]
    model, x = Changing().eval(), torch.randn(2, 3)
    expected = model(x)
    convert_stochastic_depth(model)
    assert torch.equal(model(x), expected)


class StraightIn(Known):
    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.fc(self.act(x)))


@pytest.mark.parametrize("kinds", [(StraightIn, Known), (Known, StraightIn)])
def test_a_shared_layer_runs_all_samples_if_one_place_needs_them(kinds: tuple[type[Known], ...]) -> None:
    model = nn.Sequential(*(kind() for kind in kinds))
    model[1].drop_path = model[0].drop_path
    _ = converted(model)
    other, _ = converted(model)
    assert other[0].drop_path is other[1].drop_path
    assert other[0].drop_path.mode == "row"

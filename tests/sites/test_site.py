"""Finding sites: names, patterns, kinds, owners, rates that the next forward uses, and what is refused by name."""

from typing import Any

import numpy as np
import pytest
import timm.layers
import torch
import torch.nn.functional as F
import torchvision.models
import torchvision.ops
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from lightning_dropout.models import MLP, Block, Net, ResNet, ViT
from lightning_dropout.nn import Dropout, DropPath
from lightning_dropout.sites import Site, find_sites, matches, register_adapter, sites_of
from lightning_dropout.sites.adapters import registry


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters registered in the test are forgotten after it."""
    monkeypatch.setattr(registry, "_ADAPTERS", {key: list(adapters) for key, adapters in registry._ADAPTERS.items()})


class Residual(nn.Module):
    """A branch of torch's layers under one of ours."""

    def __init__(self, p: float = 0.1, drop_prob: float = 0.2) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.drop = nn.Dropout(p)
        self.path = DropPath(drop_prob)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.path(self.drop(self.fc(x)))


class Backbone(nn.Module):
    """Blocks, a head, an attention: something of every kind that patterns choose from."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Residual(0.1 * (index + 1)) for index in range(2))
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.3)
        self.rnn = nn.LSTM(4, 4, num_layers=2, dropout=0.4)
        self.head_drop = Dropout(0.5)


def names(sites: list[Site]) -> list[str]:
    return [site.name for site in sites]


ALL_NAMES = [
    "blocks.0.drop",
    "blocks.0.path",
    "blocks.1.drop",
    "blocks.1.path",
    "attention",
    "rnn",
    "head_drop",
]


# What is found.


def test_every_site_is_found_in_the_order_of_the_modules() -> None:
    sites = find_sites(Backbone())
    assert names(sites) == ALL_NAMES
    assert [site.kind for site in sites] == [
        *["dropout", "drop_path"] * 2,
        "attention",
        "recurrent",
        "dropout",
    ]
    assert [site.rate for site in sites] == [0.1, 0.2, 0.2, 0.2, 0.3, 0.4, 0.5]


def test_mode_and_rate_do_not_matter_for_finding() -> None:
    model = Backbone()
    for module in (model.train(), model.eval()):
        assert names(find_sites(module)) == ALL_NAMES
    for site in find_sites(model):
        site.rate = 0
    assert names(find_sites(model)) == ALL_NAMES


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (lambda: Net((1, 8, 8)), {"dropout": 2}),
        (lambda: Block(4), {"dropout": 2}),
        (lambda: MLP((4,), 2, dim=8, depth=3), {"dropout": 6, "drop_path": 3}),
        (lambda: ResNet((3, 8, 8), depth=20, p=0.1), {"dropout": 10, "drop_path": 9}),
        (lambda: ViT((1, 8, 8), preset="digits"), {"dropout": 13, "attention": 4, "drop_path": 8}),
    ],
    ids=["Net", "Block", "MLP", "ResNet", "ViT"],
)
def test_our_models_hide_nothing_even_when_built_without_dropout(model: Any, expected: dict[str, int]) -> None:
    sites = find_sites(model())
    counts = {kind: sum(site.kind == kind for site in sites) for kind in {site.kind for site in sites}}
    assert counts == expected


def test_a_shared_module_is_one_site_named_where_it_is_met_first() -> None:
    drop = nn.Dropout(0.1)
    model = nn.Sequential(nn.Linear(2, 2), drop, nn.Sequential(nn.Linear(2, 2), drop), drop)
    assert names(find_sites(model)) == ["1"]


def test_a_single_layer_is_a_model() -> None:
    (site,) = find_sites(nn.Dropout(0.1))
    assert site.name == ""
    assert find_sites(nn.Dropout(0.1), "*")


def test_keys_tell_places_apart() -> None:
    model = Backbone()
    first, second = find_sites(model), find_sites(model)
    assert [site.key for site in first] == [site.key for site in second]
    assert len({site.key for site in first}) == len(first)


# Names under wrappers.


class Fsdp(nn.Module):
    """Puts the name between parent and child that FSDP1 puts there."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._fsdp_wrapped_module = module


def wrapped_inside(wrap: Any) -> nn.Module:
    model = Backbone()
    model.blocks[0] = wrap(model.blocks[0])
    return model


WRAPPED = {
    "compile": lambda: torch.compile(Backbone(), backend="eager"),
    "compile inside": lambda: wrapped_inside(lambda block: torch.compile(block, backend="eager")),
    "DataParallel": lambda: nn.DataParallel(Backbone()),
    "checkpointing": lambda: wrapped_inside(checkpoint_wrapper),
    "FSDP": lambda: Fsdp(wrapped_inside(Fsdp)),
    "all of them": lambda: nn.DataParallel(Fsdp(torch.compile(wrapped_inside(checkpoint_wrapper), backend="eager"))),
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_wrappers_leave_the_names_alone(wrapper: str) -> None:
    model = WRAPPED[wrapper]()
    assert names(find_sites(model)) == ALL_NAMES
    assert names(find_sites(model, "blocks.0.*")) == ["blocks.0.drop", "blocks.0.path"]
    raw = [name for name, module in model.named_modules() if isinstance(module, nn.Dropout)]
    assert raw != ["blocks.0.drop", "blocks.1.drop"], "the wrapper changed nothing, so the test shows nothing"


def test_a_child_called_module_keeps_its_name() -> None:
    model = nn.Module()
    model.module = nn.Dropout(0.1)
    assert names(find_sites(model)) == ["module"]


# Patterns, kinds, exclusion.


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*", ALL_NAMES),
        ("blocks.*", ALL_NAMES[:4]),
        ("blocks.?.drop", ["blocks.0.drop", "blocks.1.drop"]),
        ("blocks.[1-9].*", ["blocks.1.drop", "blocks.1.path"]),
        ("drop", ["blocks.0.drop", "blocks.1.drop"]),
        ("1.*", ["blocks.1.drop", "blocks.1.path"]),
        (["rnn", "attention"], ["attention", "rnn"]),
        (("*.path", "head_*"), ["blocks.0.path", "blocks.1.path", "head_drop"]),
    ],
    ids=str,
)
@pytest.mark.parametrize("prefix", [(), ("net",), ("module_of_mine", "net")], ids=str)
def test_patterns_may_begin_at_any_dot(pattern: Any, expected: list[str], prefix: tuple[str, ...]) -> None:
    model: nn.Module = Backbone()
    for name in reversed(prefix):
        parent = nn.Module()
        parent.add_module(name, model)
        model = parent
    assert names(find_sites(model, pattern)) == [".".join((*prefix, name)) for name in expected]


def test_patterns_begin_at_dots_only() -> None:
    assert not matches("net.my_blocks.0.drop", "blocks.*")
    assert not matches("net.blocks.0.drop", "locks.*")
    assert not matches("net.Blocks.0", "blocks.*")
    assert matches("", "*")
    assert matches("", "")
    assert not matches("net", "")


def test_exclude_wins() -> None:
    assert names(find_sites(Backbone(), "blocks.*", exclude="*.path")) == ["blocks.0.drop", "blocks.1.drop"]
    assert names(find_sites(Backbone(), exclude=["blocks.*", "rnn"])) == ["attention", "head_drop"]
    with pytest.raises(ValueError, match=r"sites='rnn', exclude='rnn'"):
        find_sites(Backbone(), "rnn", exclude="rnn")


def test_kinds_filter() -> None:
    assert names(find_sites(Backbone(), kinds=["recurrent", "attention"])) == ["attention", "rnn"]
    assert names(find_sites(Backbone(), kinds="drop_path")) == ["blocks.0.path", "blocks.1.path"]
    with pytest.raises(ValueError, match=r"Expected `kinds` among dropout, attention, .* but got droppath"):
        find_sites(Backbone(), kinds=["droppath"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"Expected `kinds` among .* but got droppath"):
        find_sites(Backbone(), kinds="droppath")  # type: ignore[arg-type]


# Nothing found.


def test_an_empty_match_names_what_comes_close() -> None:
    with pytest.raises(
        ValueError,
        match=r"none for sites='block\.0\.drop'; the model has 7 \(1 attention, 2 drop_path, 3 dropout, 1 recurrent\), "
        r"closest: blocks\.0\.drop",
    ):
        find_sites(Backbone(), "block.0.drop")
    with pytest.raises(ValueError, match=r"the model has 7 .*, e\.g\.: blocks\.0\.drop, "):
        find_sites(Backbone(), "zzz")


def test_an_empty_match_says_which_kind_was_there() -> None:
    with pytest.raises(
        ValueError, match=r"kinds=\('dropout', 'attention'\); the model has 1 \(1 drop_path\).*is of kind drop_path\."
    ):
        find_sites(nn.Sequential(DropPath(0.1)), kinds=("dropout", "attention"))
    with pytest.raises(ValueError, match=r"kinds=\(\)"):
        find_sites(Backbone(), kinds=[])


def test_a_model_without_any_site_says_how_to_get_one() -> None:
    with pytest.raises(ValueError, match=r"Expected Linear to drop somewhere, but got no site .*`register_adapter`"):
        find_sites(nn.Linear(2, 2))
    assert sites_of(nn.Linear(2, 2)) == []


# Rates.

MODELS = {
    "torch": (lambda: nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.1)), (4, 6)),
    "channels": (lambda: nn.Sequential(nn.Dropout2d(0.1)), (4, 6, 3, 3)),
    "alpha": (lambda: nn.Sequential(nn.AlphaDropout(0.1)), (4, 6)),
    "own": (lambda: nn.Sequential(nn.Linear(6, 6), Dropout(0.1)), (4, 6)),
    "own path": (lambda: nn.Sequential(DropPath(0.1)), (64, 6)),
    "ViT": (lambda: ViT((1, 8, 8), preset="digits", dim=16, depth=2, num_heads=2, attention_p=0.1), (64, 1, 8, 8)),
    "encoder layer": (lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True), (4, 5, 8)),
    "lstm": (lambda: nn.LSTM(4, 8, num_layers=2, dropout=0.1), (5, 4, 4)),
}


def run(model: nn.Module, x: Tensor) -> Tensor:
    output = model(x)
    return output[0] if isinstance(output, tuple) else output


def check_rates_reach_the_forward(model: nn.Module, sites: list[Site], x: Tensor) -> None:
    """Each site alone: at a high rate train-mode passes differ, and with all sites at 0 they equal evaluation."""
    for site in sites:
        for other in sites:
            other.rate = 0.0
        model.eval()
        plain = run(model, x)
        model.train()
        torch.testing.assert_close(run(model, x), plain)
        site.rate = 0.9
        assert not torch.equal(run(model, x), run(model, x)), f"{site.name} does not drop at 0.9"


@pytest.mark.parametrize("name", MODELS)
def test_a_rate_that_is_set_is_what_the_next_forward_uses(name: str) -> None:
    build, shape = MODELS[name]
    model = build()
    if name == "ViT":
        nn.init.normal_(model.head.weight)
    check_rates_reach_the_forward(model, find_sites(model), torch.randn(shape))


def test_a_site_that_writes_beside_the_rate_is_killed() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.1))
    model[1].drop_rate = 0.1
    decoy = Site("1", "dropout", model[1], "drop_rate", (model[1],))
    with pytest.raises(AssertionError):
        check_rates_reach_the_forward(model, [decoy], torch.randn(4, 6))


def test_rates_are_plain_floats() -> None:
    model = nn.Sequential(nn.Dropout(0), Dropout(0), DropPath(0), nn.LSTM(2, 2, 2, dropout=0))
    for site in find_sites(model):
        assert type(site.rate) is float
        for value in (1, np.float32(0.25), np.float64(0.25)):
            site.rate = value  # type: ignore[assignment]
            assert site.rate == value
            assert type(getattr(site.holder, site.attribute)) is float


@pytest.mark.parametrize("value", [-0.1, 1.2, float("nan"), "0.5", None, True], ids=repr)
def test_a_bad_rate_is_refused_and_leaves_the_old_one(value: Any) -> None:
    for site in find_sites(Backbone()):
        before = site.rate
        with pytest.raises(ValueError, match=rf"^Expected `rate of {site.name}` to be a probability"):
            site.rate = value
        assert site.rate == before


def test_the_effective_rate_is_0_while_an_owner_sleeps() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1)
    site = find_sites(layer, "dropout1")[0]
    assert site.effective_rate == 0.1
    layer.training = False
    assert (site.rate, site.effective_rate) == (0.1, 0.0)
    layer.training, layer.dropout1.training = True, False
    assert site.effective_rate == 0.0


# Refused by name.


class Functional(nn.Module):
    """A user's layer that drops without a dropout layer."""

    def __init__(self, p: Any = 0.3) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.dropout_rate = p

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.fc(x), self.dropout_rate, self.training)


def beside_dropout(layer: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1), layer)


def with_attribute(name: str, value: Any) -> nn.Module:
    layer = Functional(0.0)
    setattr(layer, name, value)
    return layer


FOREIGN = {
    "timm DropPath": (lambda: timm.layers.DropPath(0.1), r"`2` \(timm\.layers\.drop\.DropPath\): `drop_prob=0.1`"),
    "timm PatchDropout": (lambda: timm.layers.PatchDropout(0.1), r"timm\.layers\.patch_dropout\.\w+\): `prob=0.1`"),
    "timm attention": (
        lambda: timm.layers.Attention(8, num_heads=2, attn_drop=0.1),
        r"`2` \(timm\.layers\.attention\.Attention\): it may use the rate of `attn_drop` without calling it",
    ),
    "torchvision": (lambda: torchvision.ops.StochasticDepth(0.1, "row"), r"StochasticDepth\): `p=0.1` looks like"),
    "functional": (lambda: Functional(0.3), r"Functional\): `dropout_rate=0.3` looks like a rate"),
    "numpy rate": (lambda: Functional(np.float32(0.5)), r"Functional\): `dropout_rate=0.5` looks like a rate"),
    "keep_prob": (lambda: with_attribute("keep_prob", 0.9), r"`keep_prob=0.9` looks like a rate"),
    "survival": (lambda: with_attribute("survival_prob", 0.9), r"`survival_prob=0.9` looks like a rate"),
    "class attribute": (lambda: type("OnClass", (Functional,), {"drop_p": 0.2})(0.0), r"`drop_p=0.2` looks like a"),
    "private": (lambda: with_attribute("_drop_prob", 0.2), r"`_drop_prob=0.2` looks like a rate"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_layer_that_may_drop_in_an_unknown_way_is_refused_by_name(name: str) -> None:
    build, message = FOREIGN[name]
    model = beside_dropout(build())
    cure = r'.*`register_adapter\(\w+, "<attribute>", owner=\.\.\., kind=\.\.\.\)`.*`exclude="2"`'
    with pytest.raises(ValueError, match=message + cure):
        find_sites(model)
    assert names(find_sites(model, "1")) == ["1"]  # a pattern that leaves it out is no guess about it
    assert "1" in names(sites_of(model, strict=False))


@pytest.mark.parametrize("name", FOREIGN)
def test_excluding_it_works(name: str) -> None:
    model = beside_dropout(FOREIGN[name][0]())
    assert names(find_sites(model, exclude=["2", "2.*"])) == ["1"]


def test_the_model_itself_is_refused_by_its_class() -> None:
    model = Functional(0.3)
    with pytest.raises(ValueError, match=r"but got [\w.]+Functional: `dropout_rate=0.3` .*`exclude=\"\"`"):
        find_sites(model)
    model.drop = nn.Dropout(0.1)
    assert names(find_sites(model, exclude="")) == ["drop"]


@pytest.mark.usefixtures("own_registry")
@pytest.mark.parametrize(
    ("layer", "attribute", "kind"),
    [
        (lambda: Functional(0.3), "dropout_rate", "dropout"),
        (lambda: timm.layers.DropPath(0.3), "drop_prob", "drop_path"),
        (lambda: torchvision.ops.StochasticDepth(0.3, "row"), "p", "drop_path"),
    ],
    ids=["functional", "timm DropPath", "StochasticDepth"],
)
@pytest.mark.parametrize("by_name", [False, True])
def test_an_adapter_is_a_working_cure(layer: Any, attribute: str, kind: Any, by_name: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 4), layer())
    cls = type(model[1])
    register_adapter(f"{cls.__module__}.{cls.__qualname__}" if by_name else cls, attribute, kind=kind)
    (site,) = find_sites(model)
    assert (site.name, site.kind, site.rate, site.owners) == ("1", kind, 0.3, (model[1],))
    check_rates_reach_the_forward(model, [site], torch.randn(64, 4))


@pytest.mark.usefixtures("own_registry")
def test_an_adapter_may_say_that_a_class_drops_nothing() -> None:
    model = beside_dropout(Functional(0.3))
    register_adapter(Functional, None)
    assert names(find_sites(model)) == ["1"]


def test_what_the_registry_learnt_in_a_test_is_forgotten() -> None:
    with pytest.raises(ValueError, match="looks like a rate"):
        find_sites(beside_dropout(Functional(0.3)))


@pytest.mark.usefixtures("own_registry")
@pytest.mark.parametrize("value", [nn.Dropout(0.1), "0.1", 1.5, None, True], ids=repr)
def test_an_adapter_whose_attribute_is_no_rate_is_refused_when_met(value: Any) -> None:
    register_adapter(Functional, "dropout_rate")
    model = nn.Sequential(Functional(value))
    with pytest.raises(ValueError, match=r"^Expected `0\.dropout_rate` to be a probability of dropping"):
        find_sites(model)


@pytest.mark.usefixtures("own_registry")
def test_an_adapter_with_a_misspelt_attribute_is_refused_when_met() -> None:
    register_adapter(Functional, "drop_rate")
    with pytest.raises(ValueError, match=r"^Expected `drop_rate` to be a probability .*, but got None"):
        find_sites(Functional())


# Decoys: attributes that are called like rates and are none.


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("token_dropout", True),
        ("use_dropout", False),
        ("num_dropouts", 1),
        ("dropout", 0.0),
        ("drop_rate", 0),
        ("drop_last", np.bool_(True)),
        ("p", 2),
        ("p", 3.0),
        ("prob", None),
        ("dropout_mode", "element"),
        ("drop_scale", torch.tensor(0.5)),
        ("props", 0.5),
        ("probability_of_nothing", 0.5),
        ("keep", 0.5),
    ],
    ids=str,
)
def test_decoys_are_neither_refused_nor_touched(attribute: str, value: Any) -> None:
    layer = with_attribute(attribute, value)
    model = beside_dropout(layer)
    (site,) = find_sites(model)
    site.rate = 0.9
    assert getattr(layer, attribute) is value


def test_a_torchvision_model_built_without_dropout_holds_no_decoy() -> None:
    model = torchvision.models.VisionTransformer(8, 4, 1, 2, 8, 8, num_classes=2)
    assert {site.kind for site in find_sites(model)} == {"dropout", "attention"}


NAIVE_FINDERS = {
    "nn.Dropout only": lambda model: [module for module in model.modules() if isinstance(module, nn.Dropout)],
    "whatever has a p": lambda model: [module for module in model.modules() if hasattr(module, "p")],
}


@pytest.mark.parametrize("finder", NAIVE_FINDERS)
def test_naive_finders_would_not_pass(finder: str) -> None:
    model = Backbone()
    assert len(NAIVE_FINDERS[finder](model)) < len(find_sites(model))

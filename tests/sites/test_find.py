"""Finding sites: names, users, patterns, kinds, wrappers, and what is refused by name."""

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import lightning.pytorch
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

from lightning_dropout.models import MLP, Block, Net, ResNet, ViT
from lightning_dropout.nn import Dropout, DropPath
from lightning_dropout.sites import Site, find_sites, register_adapter, selected, sites_of
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


class Functional(nn.Module):
    """A layer that drops without a dropout layer."""

    def __init__(self, p: Any = 0.3) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.dropout_rate = p

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.fc(x), self.dropout_rate, self.training)


class Backbone(nn.Module):
    """Blocks, a head, an attention, a number: something of every kind that patterns choose from."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Residual(0.1 * (index + 1)) for index in range(2))
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.3)
        self.rnn = nn.LSTM(4, 4, num_layers=2, dropout=0.4)
        self.stem = Functional(0.6)
        self.head_drop = Dropout(0.5)


ALL_NAMES = [
    "blocks.0.drop",
    "blocks.0.path",
    "blocks.1.drop",
    "blocks.1.path",
    "attention",
    "rnn",
    "stem.dropout_rate",
    "head_drop",
]


def names(sites: list[Site]) -> list[str]:
    return [site.name for site in sites]


def users(site: Site) -> list[str]:
    return [user.name for user in site.users]


# What is found.


def test_every_site_is_found_in_the_order_of_the_modules() -> None:
    sites = find_sites(Backbone())
    assert names(sites) == ALL_NAMES
    assert [site.kind for site in sites] == [
        *["dropout", "drop_path"] * 2,
        "attention",
        "recurrent",
        "dropout",
        "dropout",
    ]
    assert [site.rate for site in sites] == [0.1, 0.2, 0.2, 0.2, 0.3, 0.4, 0.6, 0.5]


def test_mode_and_rate_do_not_matter_for_finding() -> None:
    model = Backbone()
    for module in (model.train(), model.eval()):
        assert names(find_sites(module)) == ALL_NAMES
    for site in find_sites(model):
        site.rate = 0
    assert names(find_sites(model)) == ALL_NAMES


def test_finding_changes_nothing() -> None:
    model = Backbone().eval()
    model.rnn.training = True
    before = [(list(vars(module)), module.training) for module in model.modules()]
    states = torch.get_rng_state(), {key: value.clone() for key, value in model.state_dict().items()}
    find_sites(model)
    assert before == [(list(vars(module)), module.training) for module in model.modules()]
    assert torch.equal(states[0], torch.get_rng_state())
    assert all(torch.equal(value, states[1][key]) for key, value in model.state_dict().items())


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


@pytest.mark.parametrize("model", [None, "net", Backbone, SimpleNamespace(), [nn.Dropout()]], ids=type)
def test_what_is_no_module_is_refused(model: Any) -> None:
    for find in (find_sites, sites_of):
        with pytest.raises(
            ValueError, match=r"^Expected `model` to be a module, but got \w+; pass the network itself\.$"
        ):
            find(model)


def test_a_single_layer_is_a_model() -> None:
    (site,) = find_sites(nn.Dropout(0.1))
    assert site.name == ""
    assert find_sites(nn.Dropout(0.1), "*")
    (site,) = find_sites(Functional())
    assert site.name == "dropout_rate"


def test_keys_tell_places_apart() -> None:
    model = Backbone()
    first, second = find_sites(model), find_sites(model)
    assert [site.key for site in first] == [site.key for site in second]
    assert len({site.key for site in first}) == len(first)


# Shared rates.


class Borrower(nn.Module):
    """Uses the Dropout of somebody else."""

    def __init__(self, drop: nn.Dropout) -> None:
        super().__init__()
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.drop(x)
        return output


def test_one_dropout_of_twelve_blocks_is_one_site_with_twelve_users() -> None:
    drop = nn.Dropout(0.1)
    model = nn.Sequential(*(Borrower(drop) for _ in range(12)))
    (site,) = find_sites(model)
    assert (site.name, users(site)) == ("0.drop", [f"{index}.drop" for index in range(12)])
    assert site.owners == (drop,)
    site.rate = 0.5
    assert all(block.drop.p == 0.5 for block in model)


def test_a_shared_module_is_one_site_named_where_it_is_met_first() -> None:
    drop = nn.Dropout(0.1)
    model = nn.Sequential(nn.Linear(2, 2), drop, nn.Sequential(nn.Linear(2, 2), drop), drop)
    (site,) = find_sites(model)
    assert (site.name, users(site)) == ("1", ["1", "2.1", "3"])


def test_what_is_in_a_shared_block_is_shared() -> None:
    block = Residual()
    sites = find_sites(nn.Sequential(block, nn.Linear(4, 4), nn.Sequential(block)))
    assert [users(site) for site in sites] == [["0.drop", "2.0.drop"], ["0.path", "2.0.path"]]


class Reader(nn.Module):
    """Reads a configuration that others read as well."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.config.dropout, self.training)


def test_a_number_in_a_configuration_is_one_site_for_its_readers() -> None:
    config = SimpleNamespace(dropout=0.1)
    model = nn.Sequential(Reader(config), Reader(SimpleNamespace(dropout=0.2)), Reader(config))
    shared, alone = find_sites(model)
    assert (shared.name, users(shared)) == ("0.config.dropout", ["0.config.dropout", "2.config.dropout"])
    assert (shared.holder, shared.attribute, shared.owners) == (config, "dropout", (model[0], model[2]))
    assert (alone.name, alone.rate) == ("1.config.dropout", 0.2)
    model[0].training = False
    assert shared.effective_rate == 0.1  # the other reader drops
    model[2].training = False
    assert shared.effective_rate == 0.0


def test_a_frozen_configuration_is_found_and_refused_when_set() -> None:
    @dataclass(frozen=True)
    class Config:
        dropout: float = 0.1

    (site,) = find_sites(Reader(Config()))
    assert site.rate == 0.1
    with pytest.raises(ValueError, match=r"`Config\.dropout` \(the rate of config\.dropout\) to be writable, but got"):
        site.rate = 0.2


def test_a_child_that_points_back_at_its_parent_ends_nowhere_else() -> None:
    model = nn.Sequential(Residual())
    model[0].parent = model
    assert [users(site) for site in find_sites(model)] == [["0.drop"], ["0.path"]]


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
        ("*rate", ["stem.dropout_rate"]),
        ("stem.*", ["stem.dropout_rate"]),
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


def test_exclude_wins() -> None:
    assert names(find_sites(Backbone(), "blocks.*", exclude="*.path")) == ["blocks.0.drop", "blocks.1.drop"]
    assert names(find_sites(Backbone(), exclude=["blocks.*", "rnn", "stem.*"])) == ["attention", "head_drop"]
    with pytest.raises(ValueError, match=r"sites='rnn', exclude='rnn'"):
        find_sites(Backbone(), "rnn", exclude="rnn")


@pytest.mark.parametrize("pattern", ["blocks.*", "*.path", "rnn", "stem", "net.stem", "1", "net", ""])
def test_an_exclude_may_name_what_the_kinds_leave_out_and_what_drops_nothing(pattern: str) -> None:
    """One list serves every kind, and models built with a rate of 0."""
    model = nn.ModuleDict({"net": Backbone()})
    model["net"].drop_path1 = nn.Identity()
    model["net"].drop_path2 = None  # type: ignore[assignment]
    assert names(find_sites(model, kinds="attention", exclude=[pattern, "drop_path1", "drop_path2"])) == [
        "net.attention"
    ]


@pytest.mark.parametrize(
    ("exclude", "message"),
    [
        (
            "blok.*",
            r"Expected `exclude` to match sites or modules of Backbone, but got 'blok\.\*', .* closest: .*block",
        ),
        (["rnn", "head-drop"], r"but got 'head-drop', which matches none; .* closest: head_drop"),
        (["rnn", "%"], r"but got '%', which matches none; .* e\.g\.: "),
        ("locks.*", r"but got 'locks\.\*'"),
    ],
)
def test_an_exclude_that_matches_nothing_is_refused(exclude: Any, message: str) -> None:
    """What it was to spare would drop."""
    with pytest.raises(ValueError, match=message):
        find_sites(Backbone(), exclude=exclude)


def test_a_shared_site_answers_to_the_name_of_any_user_and_is_left_out_by_any() -> None:
    drop = nn.Dropout(0.1)
    model = nn.Sequential(Borrower(drop), Borrower(drop), Borrower(nn.Dropout(0.2)))
    (site,) = find_sites(model, "1.drop")
    assert users(site) == ["0.drop", "1.drop"]  # setting it sets both: it keeps both
    assert names(find_sites(model, exclude="1.drop")) == ["2.drop"]
    assert selected(site, "1.*")
    assert not selected(site, "0.*", "1.*")
    assert not selected(site, "2.*")


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
        match=r"none for sites='block\.0\.drop'; the model has 8 \(1 attention, 2 drop_path, 4 dropout, 1 recurrent\), "
        r"closest: blocks\.0\.drop",
    ):
        find_sites(Backbone(), "block.0.drop")
    with pytest.raises(ValueError, match=r"the model has 8 .*, e\.g\.: blocks\.0\.drop, "):
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


class WithSlots(nn.Module):
    """Built with a rate of 0, as libraries do it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.drop_path = nn.Identity()
        self.attn_drop = None
        self.act = nn.Identity()
        self.register_module("dropout", None)
        self.drop_rate = 0.0


def test_an_empty_match_names_the_empty_slots() -> None:
    cure = r" 3 slots such as 0\.attn_drop are empty, since the model was built with a rate of 0: build it with a rate"
    for model in (nn.Sequential(WithSlots()), nn.Sequential(WithSlots(), nn.Dropout(0.1))):
        with pytest.raises(ValueError, match=cure):
            find_sites(model, kinds="drop_path")


# Names under wrappers.


class Fsdp(nn.Module):
    """Puts the name between parent and child that FSDP1 puts there."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._fsdp_wrapped_module = module


def swapped(module: nn.Module) -> nn.Module:
    """Swap the class as FSDP2 does, for every module."""
    for each in list(module.modules()):
        each.__class__ = type(f"FSDP{type(each).__name__}", (type(each),), {})
    return module


def wrapped_inside(wrap: Any) -> nn.Module:
    model = Backbone()
    model.blocks[0] = wrap(model.blocks[0])
    return model


WRAPPED = {
    "compile": lambda: torch.compile(Backbone(), backend="eager"),
    "compile inside": lambda: wrapped_inside(lambda block: torch.compile(block, backend="eager")),
    "DataParallel": lambda: nn.DataParallel(Backbone()),
    "checkpointing": lambda: wrapped_inside(checkpoint_wrapper),
    "checkpointing everything": lambda: checkpoint_wrapper(wrapped_inside(checkpoint_wrapper)),
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


@pytest.fixture(scope="module")
def one_process() -> Iterator[Any]:
    """A group of one process, and its mesh."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:FSDP is switching to use `NO_SHARD`")
@pytest.mark.parametrize("wrapper", ["DDP", "FSDP1", "FSDP2", "FSDP2, every block", "FSDP2 over checkpointing"])
def test_the_wrappers_of_parallel_training_leave_the_names_alone(wrapper: str, one_process: Any) -> None:
    model: nn.Module = Backbone()
    if wrapper == "DDP":
        model = nn.parallel.DistributedDataParallel(model)
    elif wrapper == "FSDP1":
        model.blocks[0] = FullyShardedDataParallel(model.blocks[0], device_id=torch.device("cpu"))
        model = FullyShardedDataParallel(model, device_id=torch.device("cpu"))
    else:
        if "checkpointing" in wrapper:
            model.blocks[0] = checkpoint_wrapper(model.blocks[0])
        for block in model.blocks if wrapper != "FSDP2" else ():
            fully_shard(block, mesh=one_process)
        fully_shard(model, mesh=one_process)
        assert type(model).__name__ == "FSDPBackbone"
    assert names(find_sites(model)) == ALL_NAMES
    (stem,) = find_sites(model, "stem.*")
    assert isinstance(stem.holder, Functional)
    assert stem.owners == (stem.holder,)


def test_swapped_classes_are_what_they_were() -> None:
    plain, model = Backbone(), swapped(Backbone())
    assert type(model.blocks[0]).__name__ == "FSDPResidual"
    for before, after in zip(find_sites(plain), find_sites(model), strict=True):
        assert (before.name, before.kind, before.attribute) == (after.name, after.kind, after.attribute)
        assert [type(owner).__name__ for owner in after.owners] == [
            f"FSDP{type(each).__name__}" for each in before.owners
        ]


@pytest.mark.usefixtures("own_registry")
@pytest.mark.parametrize(
    "wrap",
    [checkpoint_wrapper, Fsdp, nn.DataParallel, lambda layer: torch.compile(layer, backend="eager")],
    ids=["checkpointing", "FSDP", "DataParallel", "compile"],
)
def test_a_parent_is_never_a_wrapper(wrap: Any) -> None:
    cls = type("Child", (nn.Identity,), {"amount": 0.1})
    register_adapter(cls, "amount", owner="parent")
    model = nn.Sequential(nn.Sequential(Fsdp(wrap(cls()))))
    (site,) = find_sites(model)
    assert (site.name, site.owners) == ("0.0", (model[0],))


def test_the_fast_path_is_known_under_a_wrapper() -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1)
    layer.self_attn = checkpoint_wrapper(layer.self_attn)
    (site,) = find_sites(nn.Sequential(layer), "0.self_attn")
    assert site.owners == (site.holder, layer)


def test_a_child_called_module_keeps_its_name() -> None:
    model = nn.Module()
    model.module = nn.Dropout(0.1)
    assert names(find_sites(model)) == ["module"]


# Models that are built late.


class Late(lightning.pytorch.LightningModule):
    """Builds its network when the trainer says so, hands it its rate, and logs it."""

    def __init__(self, dropout: float = 0.3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net: nn.Module | None = None

    def configure_model(self) -> None:
        if self.net is None:
            self.net = nn.Sequential(nn.LazyLinear(4), nn.Dropout(self.hparams.dropout))

    def training_step(self, batch: Tensor) -> Tensor:
        assert self.net is not None
        self.log("dropout", self.hparams.dropout)
        loss: Tensor = self.net(batch).sum()
        return loss


def test_a_model_that_is_built_late_is_found_once_it_is_there() -> None:
    model = Late()
    assert sites_of(model) == []
    with pytest.raises(ValueError, match="Expected Late to drop somewhere"):
        find_sites(model)
    model.configure_model()
    assert names(find_sites(model)) == ["net.1"]


def test_layers_without_a_shape_are_no_obstacle() -> None:
    model = nn.Sequential(nn.LazyConv2d(2, 1), nn.Dropout(0.1), nn.LazyBatchNorm2d())
    assert names(find_sites(model)) == ["1"]
    model(torch.ones(2, 3, 4, 4))
    assert names(find_sites(model)) == ["1"]


def test_children_that_are_not_there_are_no_obstacle() -> None:
    model = nn.Sequential(nn.Dropout(0.1))
    model.register_module("later", None)
    assert names(find_sites(model)) == ["0"]


# Compiled, traced and quantised.


COMPILED: dict[str, Any] = {
    "script": torch.jit.script,
    "trace": lambda model: torch.jit.trace(model, torch.ones(2, 4), check_trace=False),
}


@pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated")
@pytest.mark.parametrize("compiled", COMPILED)
def test_torchscript_that_drops_is_refused(compiled: str) -> None:
    frozen = COMPILED[compiled](nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1)))
    with pytest.raises(
        ValueError,
        match=r"Expected eager modules, but got TorchScript at `the model`, whose rates are baked in; find the sites "
        r"before `torch\.jit` compiles it\.$",
    ):
        find_sites(frozen)
    model = nn.Sequential(nn.Dropout(0.2), frozen)
    with pytest.raises(ValueError, match=r'got TorchScript at `1`, whose rates are baked in; .*`exclude="1"`'):
        find_sites(model)
    assert names(find_sites(model, exclude=["1", "1.*"])) == ["0"]
    assert names(find_sites(model, "0")) == ["0"]


@pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated")
@pytest.mark.parametrize("compiled", COMPILED)
def test_torchscript_that_does_not_drop_passes(compiled: str) -> None:
    model = nn.Sequential(nn.Dropout(0.2), COMPILED[compiled](nn.Sequential(nn.Linear(4, 4), nn.ReLU())))
    assert names(find_sites(model)) == ["0"]


def test_a_traced_graph_that_drops_by_itself_is_refused() -> None:
    graph = torch.fx.symbolic_trace(Functional())
    with pytest.raises(
        ValueError, match=r"Expected eager modules, but got a traced graph at `1`, whose rates are baked"
    ):
        find_sites(nn.Sequential(nn.Dropout(0.1), graph))
    assert names(find_sites(nn.Sequential(nn.Dropout(0.1), graph), exclude="1")) == ["0"]


def test_a_traced_graph_that_calls_layers_is_a_model() -> None:
    graph = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1)))
    (site,) = find_sites(graph)
    site.rate = 0.9
    graph.train()
    assert not torch.equal(graph(torch.ones(8, 4)), graph(torch.ones(8, 4)))


def test_quantised_dropout_is_refused() -> None:
    layer = torch.ao.nn.quantized.Dropout(0.1)
    with pytest.raises(ValueError, match=r"got a quantised Dropout at `1`, which no longer drops; .*`exclude=\"1\"`"):
        find_sites(nn.Sequential(nn.Dropout(0.2), layer))
    assert names(find_sites(nn.Sequential(nn.Dropout(0.2), layer), exclude="1")) == ["0"]
    assert names(find_sites(nn.Sequential(nn.Dropout(0.2), torch.ao.nn.quantized.Dropout(0.0)), exclude="1")) == ["0"]


# Refused by name.


def unexplained(x: Tensor, rate: float) -> Tensor:
    """Something that nobody can read off the code that calls it."""
    return F.dropout(x, rate)


class Opaque(nn.Module):
    """Drops in a way that its source does not tell."""

    def __init__(self, p: Any = 0.3) -> None:
        super().__init__()
        self.dropout_rate = p

    def forward(self, x: Tensor) -> Tensor:
        return unexplained(x, self.dropout_rate)


def beside_dropout(layer: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1), layer)


@pytest.mark.parametrize("value", [0.3, 1.0, np.float32(0.5)], ids=repr)
def test_a_layer_that_may_drop_in_an_unknown_way_is_refused_by_name(value: Any) -> None:
    model = beside_dropout(Opaque(value))
    with pytest.raises(
        ValueError,
        match=rf"got `2` \([\w.]+\.Opaque\): it reads `dropout_rate={value}`, which looks like a rate; call "
        r'`register_adapter\(Opaque, "dropout_rate", owner=\.\.\., kind=\.\.\.\)`.*`None`.*`exclude="2"`\.$',
    ):
        find_sites(model)
    with pytest.raises(ValueError, match="looks like a rate"):
        sites_of(model)
    assert names(sites_of(model, strict=False)) == ["1"]


@pytest.mark.parametrize("pattern", ["2", "2.dropout_rate", "*rate", "2.*"])
def test_it_is_refused_by_every_pattern_that_would_find_it_and_by_no_other(pattern: str) -> None:
    model = beside_dropout(Opaque())
    with pytest.raises(ValueError, match="looks like a rate"):
        find_sites(model, ["1", pattern])
    assert names(find_sites(model, "1")) == ["1"]  # a pattern that leaves it out is no guess about it
    assert names(find_sites(model, exclude=pattern)) == ["1"]


def test_the_model_itself_is_refused_by_its_class() -> None:
    model = Opaque()
    with pytest.raises(ValueError, match=r"but got [\w.]+Opaque: it reads `dropout_rate=0.3`.*`exclude=\"\"`"):
        find_sites(model)
    model.drop = nn.Dropout(0.1)
    assert names(find_sites(model, exclude="")) == ["drop"]


def test_an_empty_match_counts_what_is_there_beside_it() -> None:
    with pytest.raises(ValueError, match=r"none for sites='zzz'; the model has 1 \(1 dropout\), e\.g\.: 1\.$"):
        find_sites(beside_dropout(Opaque()), "zzz")


@pytest.mark.parametrize("value", [0, 1, 0.0, 2.0, 1.5, True, None, "0.3", nn.Identity()], ids=repr)
def test_what_is_no_rate_is_not_refused(value: Any) -> None:
    assert names(find_sites(beside_dropout(Opaque(value)))) == ["1"]


def test_a_tensor_as_a_rate_is_refused() -> None:
    model = beside_dropout(Functional(torch.tensor(0.3)))
    with pytest.raises(
        ValueError, match=r"Expected rates that are numbers, but got `2` .*`dropout_rate` is a tensor; hold"
    ):
        find_sites(model)
    assert names(find_sites(model, exclude="2")) == ["1"]


@pytest.mark.usefixtures("own_registry")
@pytest.mark.parametrize("by_name", [False, True])
def test_an_adapter_is_a_working_cure(by_name: bool) -> None:
    model = beside_dropout(Opaque())
    register_adapter(f"{__name__}.Opaque" if by_name else Opaque, "dropout_rate")
    site = find_sites(model)[1]
    assert (site.name, site.kind, site.rate, site.owners) == ("2", "dropout", 0.3, (model[2],))


@pytest.mark.usefixtures("own_registry")
def test_an_adapter_may_say_that_a_class_drops_nothing() -> None:
    model = beside_dropout(Opaque())
    register_adapter(Opaque, None)
    assert names(find_sites(model)) == ["1"]


def test_what_the_registry_learnt_in_a_test_is_forgotten() -> None:
    with pytest.raises(ValueError, match="looks like a rate"):
        find_sites(beside_dropout(Opaque()))


@pytest.mark.usefixtures("own_registry")
@pytest.mark.parametrize("value", [nn.Dropout(0.1), "0.1", 1.5, None, True], ids=repr)
def test_an_adapter_whose_attribute_is_no_rate_is_refused_when_met(value: Any) -> None:
    register_adapter(Opaque, "dropout_rate")
    with pytest.raises(ValueError, match=r"^Expected `0\.dropout_rate` to be a probability of dropping"):
        find_sites(nn.Sequential(Opaque(value)))


@pytest.mark.usefixtures("own_registry")
def test_an_adapter_with_a_misspelt_attribute_is_refused_when_met() -> None:
    register_adapter(Opaque, "drop_rate")
    with pytest.raises(ValueError, match=r"^Expected `drop_rate` to be a probability .*, but got None"):
        find_sites(Opaque())


# Decoys: attributes that are called like rates and are none.


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("token_dropout", True),
        ("use_dropout", False),
        ("num_dropouts", 1),
        ("dropout", 0.5),
        ("_drop_prob", 0.5),
        ("keep_prob", 0.9),
        ("survival_prob", 0.9),
        ("drop_rate", 0),
        ("drop_last", np.bool_(True)),
        ("p", 0.5),
        ("p", 3.0),
        ("prob", None),
        ("dropout_mode", "element"),
        ("drop_scale", torch.tensor(0.5)),
        ("keep", 0.5),
    ],
    ids=str,
)
def test_attributes_that_no_code_reads_are_neither_refused_nor_touched(attribute: str, value: Any) -> None:
    layer = Residual()
    setattr(layer, attribute, value)
    sites = find_sites(nn.Sequential(layer))
    assert names(sites) == ["0.drop", "0.path"]
    for site in sites:
        site.rate = 0.9
    assert getattr(layer, attribute) is value


NAIVE_FINDERS = {
    "nn.Dropout only": lambda model: [module for module in model.modules() if isinstance(module, nn.Dropout)],
    "whatever has a p": lambda model: [module for module in model.modules() if hasattr(module, "p")],
}


@pytest.mark.parametrize("finder", NAIVE_FINDERS)
def test_naive_finders_would_not_pass(finder: str) -> None:
    model = Backbone()
    assert len(NAIVE_FINDERS[finder](model)) < len(find_sites(model))


@pytest.mark.parametrize("argument", ["include", "exclude", "kinds"])
@pytest.mark.parametrize("value", [3, [3], object], ids=["number", "numbers", "class"])
def test_what_is_no_pattern_or_kind_is_refused(argument: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^Expected `{argument}` "):
        find_sites(nn.Dropout(0.1), **{argument: value})


def test_places_that_share_a_rate_are_collected_in_linear_time() -> None:
    shared = nn.Dropout(0.1)
    (site,) = find_sites(nn.ModuleList(nn.Sequential(shared) for _ in range(3000)))
    assert len(site.users) == 3000

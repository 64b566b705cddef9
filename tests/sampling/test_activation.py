"""Switching sites on: these drop, nothing else changes, and everything borrowed is given back."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import pytest
import timm.layers
import torch
from torch import Tensor, nn

from lightning_dropout.nn import Dropout, DropPath
from lightning_dropout.sampling.activation import dropping, sample_by_sample
from lightning_dropout.sites import Site, User, find_sites

Dropping = Callable[..., AbstractContextManager[None]]


class Model(nn.Module):
    """Everything that must not wake up, around what must."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.instance_norm = nn.InstanceNorm1d(4, track_running_stats=True)
        self.noise = nn.RReLU()
        self.drop = nn.Dropout(0.3, inplace=True)
        self.own = Dropout(0.4)
        self.path = DropPath(0.5)
        self.encoder = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.2, batch_first=True)


def state(model: nn.Module) -> dict[str, Any]:
    """Everything that ``dropping`` may touch, by name."""
    found: dict[str, Any] = {"fast path": torch.backends.mha.get_fastpath_enabled()}
    for name, module in model.named_modules():
        found[f"{name} training"] = module.training
        found[f"{name} inplace"] = getattr(module, "inplace", None)
    return found | {f"{site.name} rate": site.rate for site in find_sites(model)}


def chosen(model: nn.Module) -> list[Site]:
    return find_sites(model, kinds=("dropout", "attention"))


@pytest.mark.parametrize("training", [True, False])
def test_only_owners_wake(training: bool) -> None:
    model = Model().train(training)
    before = state(model)
    with dropping(chosen(model)):
        changed = {name for name, value in state(model).items() if value != before[name]}
    owners = {"drop", "own", "encoder", "encoder.self_attn", "encoder.dropout", "encoder.dropout1", "encoder.dropout2"}
    expected = set() if training else {f"{name} training" for name in owners}
    assert changed == expected | {"drop inplace", "fast path"}


def leave(error: type[BaseException] | None) -> None:
    if error is not None:
        raise error


def check_given_back(drop: Dropping, error: type[BaseException] | None, rates: float | None = 0.9) -> None:
    for prepare in (nn.Module.eval, nn.Module.train, lambda model: model.drop.train() and model.encoder.eval()):
        model = Model().eval()
        prepare(model)
        before = state(model)
        sites = chosen(model)
        with suppress(error or ()), drop(sites, None if rates is None else [rates] * len(sites)):
            leave(error)
        after = state(model)
        torch.backends.mha.set_fastpath_enabled(True)  # for the tests that come after a bug
        assert after == before


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("rates", [None, 0.9])
def test_everything_is_given_back(error: type[BaseException] | None, rates: float | None) -> None:
    check_given_back(dropping, error, rates)


@contextmanager
def without_finally(sites: Sequence[Site], rates: Sequence[float] | None) -> Iterator[None]:
    owners = [owner for site in sites for owner in site.owners]
    flags = [owner.training for owner in owners]
    for owner in owners:
        owner.training = True
    yield
    for owner, flag in zip(owners, flags, strict=True):
        owner.training = flag


@contextmanager
def to_eval_afterwards(sites: Sequence[Site], rates: Sequence[float] | None) -> Iterator[None]:
    try:
        for site in sites:
            site.holder.train()
        yield
    finally:
        for site in sites:
            site.holder.eval()


@contextmanager
def rates_kept(sites: Sequence[Site], rates: Sequence[float] | None) -> Iterator[None]:
    with dropping(sites):
        for site, rate in zip(sites, rates or (), strict=True):
            site.rate = rate
        yield


@pytest.mark.parametrize(
    ("leaky", "error"),
    [(without_finally, RuntimeError), (to_eval_afterwards, None), (rates_kept, None)],
    ids=["no finally", "always eval afterwards", "rates kept"],
)
def test_leaks_are_killed(leaky: Dropping, error: type[BaseException] | None) -> None:
    with pytest.raises(AssertionError):
        check_given_back(leaky, error)


def test_a_mode_that_was_on_before_stays_on() -> None:
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with dropping(chosen(Model())):
            pass
        assert not torch.backends.mha.get_fastpath_enabled()
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_a_failure_while_switching_on_gives_everything_back() -> None:
    model = Model().eval()
    before = state(model)
    sites = chosen(model)
    with (
        pytest.raises(ValueError, match="to be a probability"),
        dropping(sites, [0.5] * (len(sites) - 1) + [2.0]),
    ):
        pass
    assert state(model) == before


def test_rates_apply_to_each_site_inside() -> None:
    model = nn.Sequential(nn.Dropout(0.1), Dropout(0.2))
    with dropping(find_sites(model), [0.0, 1.0]):
        assert [module.p for module in model] == [0.0, 1.0]
        assert not model(torch.ones(4)).any()
    assert [module.p for module in model] == [0.1, 0.2]
    with pytest.raises(ValueError, match="argument 2 is shorter"), dropping(find_sites(model), [0.5]):
        pass


def test_owner_flags_are_assigned_without_recursion() -> None:
    class Owner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(2)
            self.calls = 0

        def train(self, mode: bool = True) -> "Owner":
            self.calls += 1
            return super().train(mode)

    owner = Owner()
    owner.training = owner.norm.training = False
    site = Site("", "dropout", nn.Dropout(0.1), "p", (User("", (owner,), owner),))
    with dropping([site]):
        assert (owner.training, owner.norm.training, owner.calls) == (True, False, 0)


def test_in_place_dropout_leaves_its_input_alone_inside() -> None:
    model = nn.Sequential(nn.Dropout(0.5, inplace=True)).eval()
    x = torch.ones(100)
    with dropping(find_sites(model)):
        assert (model(x) == 0).any()
    assert torch.equal(x, torch.ones(100))
    model.train()(x)
    assert (x == 0).any(), "the layer does not work in place, so the test shows nothing"


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_the_fast_path_is_off_inside(context: Any) -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.5, batch_first=True).eval()
    x: Tensor = torch.randn(3, 5, 4)
    with context():
        assert torch.equal(layer(x), layer(x))
        # Were it on, the dropout layers alone, of a layer in eval mode, would be passed over.
        children = [Site("", "dropout", layer.dropout1, "p", (User("", (layer.dropout1,), layer.dropout1),))]
        with dropping(children):
            assert not torch.equal(layer(x), layer(x))


class Holder(nn.Module):
    """Refuses to take back what it held."""

    def __init__(self) -> None:
        super().__init__()
        self.p = 0.5

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "p" and value == 0.5 and hasattr(self, "p"):
            raise RuntimeError("planted")
        super().__setattr__(name, value)


def test_one_thing_that_cannot_be_given_back_leaves_nothing_else_behind() -> None:
    holder, drop = Holder().eval(), nn.Dropout(0.2).eval()
    sites = [Site("a", "dropout", each, "p", (User("a", (each,), each),)) for each in (drop, holder)]
    torch.backends.mha.set_fastpath_enabled(True)
    with pytest.raises(RuntimeError, match="planted"), dropping(sites, [0.9, 0.9]):
        assert (holder.training, drop.training) == (True, True)
    assert (holder.training, drop.training, drop.p) == (False, False, 0.2)
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_rate_of_1_that_nobody_may_set_is_given_back() -> None:
    layer = timm.layers.PatchDropout(0.5)
    layer.prob = 1
    (site,) = find_sites(layer)
    with dropping([site], [0.5]):
        assert layer.prob == 0.5
    assert layer.prob == 1
    assert type(layer.prob) is int


def test_quiet_sites_drop_nothing_inside_and_have_their_rates_back() -> None:
    model = nn.Sequential(nn.Dropout(0.3), nn.Dropout(0.4))
    first, second = find_sites(model)
    with dropping([first], quiet=[second]):
        assert [layer.p for layer in model] == [0.3, 0.0]
    assert [layer.p for layer in model] == [0.3, 0.4]


def test_drop_paths_draw_sample_by_sample_inside_and_have_their_modes_back() -> None:
    layers = nn.ModuleList([DropPath(0.5, mode) for mode in ("row", "subset", "batch")])
    with suppress(RuntimeError), sample_by_sample([*find_sites(layers), *find_sites(layers)]):
        assert [layer.mode for layer in layers] == ["row"] * 3
        raise RuntimeError
    assert [layer.mode for layer in layers] == ["row", "subset", "batch"]

"""The registry: what users may register, which adapter a class gets, and who owns a drop."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import lightning.pytorch
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_dropout.sites import find_sites, register_adapter
from lightning_dropout.sites.adapters import Adapter, adapters_of
from lightning_dropout.sites.adapters.registry import is_rate, is_registered, register_unused, resolve


def drop(x: Tensor, rate: float, on: bool) -> Tensor:
    """Something that nobody can read off the code that calls it."""
    return F.dropout(x, rate, on)


class Layer(nn.Module):
    """Drops twice, in two ways, when it is in train mode; how is told by nothing but its author."""

    def __init__(self) -> None:
        super().__init__()
        self.first = 0.1
        self.second = 0.2

    def forward(self, x: Tensor) -> Tensor:
        return drop(drop(x, self.first, self.training), self.second, self.training)


class Rate(nn.Module):
    """Holds a number for its parent and never runs."""

    def __init__(self, amount: float) -> None:
        super().__init__()
        self.amount = amount


class Holder(nn.Module):
    """Keeps its rates elsewhere: on a child, in a configuration."""

    def __init__(self, config: Any = None) -> None:
        super().__init__()
        self.noise = nn.Module()
        self.noise.rate = 0.1
        self.config = config or SimpleNamespace(dropout=0.2)


class Functional(nn.Module):
    """Drops in a way that its source tells."""

    def __init__(self) -> None:
        super().__init__()
        self.p = 0.3

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.training)


def names(model: nn.Module) -> list[str]:
    return [site.name for site in find_sites(model)]


# Which adapter a class gets.


def test_one_class_may_have_several_rates() -> None:
    register_adapter(Layer, "first")
    (site,) = find_sites(nn.Sequential(Layer()))
    assert site.name == "0"  # a single rate goes by the name of its layer
    register_adapter(Layer, "second", kind="attention")
    sites = find_sites(nn.Sequential(Layer()))
    assert [(site.name, site.attribute, site.kind, site.rate) for site in sites] == [
        ("0.first", "first", "dropout", 0.1),
        ("0.second", "second", "attention", 0.2),
    ]
    assert sites[0].key != sites[1].key


def test_subclasses_are_covered_and_the_nearest_class_wins() -> None:
    register_adapter(Layer, "first")
    child = type("Child", (Layer,), {})
    assert adapters_of(child()) == [Adapter("first")]
    register_adapter(child, "second")
    assert adapters_of(child()) == [Adapter("second")]
    assert adapters_of(Layer()) == [Adapter("first")]


def test_a_users_subclass_of_a_known_layer_may_be_described_anew() -> None:
    silent = type("SilentDropout", (nn.Dropout,), {})
    assert names(nn.Sequential(silent(0.1), nn.Dropout(0.1))) == ["0", "1"]
    register_adapter(silent, None)
    assert names(nn.Sequential(silent(0.1), nn.Dropout(0.1))) == ["1"]


def test_a_class_may_be_named_without_being_imported() -> None:
    register_adapter(f"{Layer.__module__}.Layer", "first")
    register_adapter("a_library.that.is_not.Installed", "p")
    assert adapters_of(Layer()) == [Adapter("first")]


@pytest.mark.parametrize("pattern", [f"{__name__}.*ayer", "*.Layer", "*test_registry.Lay*"])
def test_a_name_may_be_a_pattern(pattern: str) -> None:
    register_adapter(pattern, "first")
    assert adapters_of(Layer()) == [Adapter("first")]
    assert adapters_of(Rate(0.1)) == []
    assert is_registered(Layer)
    assert not is_registered(Rate)


def test_a_class_may_have_a_rate_more_than_its_pattern_says() -> None:
    register_adapter("*.Layer", "first")
    register_adapter(Layer, "second")
    assert [adapter.attribute for adapter in adapters_of(Layer())] == ["first", "second"]


def test_known_as_dropping_nothing_is_known() -> None:
    assert not is_registered(Layer)
    register_adapter(Layer, None)
    assert is_registered(Layer)
    assert adapters_of(Layer()) == []


def test_instances_that_never_drop_are_left_out() -> None:
    register_adapter(Rate, "amount", applies=lambda module: module.amount < 0.5)
    assert names(nn.Sequential(Rate(0.1), Rate(0.9))) == ["0"]


# The word of a user against what the source says.


def test_a_registered_class_is_not_read() -> None:
    model = nn.Sequential(Functional(), nn.Dropout(0.1))
    assert names(model) == ["0.p", "1"]
    register_adapter(Functional, None)
    assert names(model) == ["1"]


def test_a_class_that_is_registered_late_counts_from_then_on() -> None:
    model = nn.Sequential(type("Child", (Functional,), {})(), nn.Dropout(0.1))
    assert names(model) == ["0.p", "1"]
    register_adapter(Functional, "p", owner=lambda module, ancestors: [ancestors[0]], kind="attention")
    (site, _) = find_sites(model)
    assert (site.name, site.kind, site.owners) == ("0", "attention", (model,))


def test_a_child_that_is_noted_as_never_called_is_no_site_until_it_is_mentioned() -> None:
    class Builder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.idle = nn.Dropout(0.1)
            self.busy = nn.Dropout(0.2)

        def forward(self, x: Tensor) -> Tensor:
            return self.busy(x)

    class Repaired(Builder):
        def forward(self, x: Tensor) -> Tensor:
            return self.idle(super().forward(x))

    register_unused(f"{__name__}.{Builder.__qualname__}", "idle")
    assert names(Builder()) == ["busy"]
    assert names(type("Child", (Builder,), {})()) == ["busy"]
    assert names(Repaired()) == ["idle", "busy"]


# Where the rate lives.


def test_a_path_leads_to_a_child_which_gives_the_name() -> None:
    register_adapter(Holder, "noise.rate")
    model = nn.Sequential(Holder())
    (site,) = find_sites(model)
    assert (site.name, site.holder, site.attribute) == ("0.noise", model[0].noise, "rate")
    assert site.owners == (model[0],)
    site.rate = 0.5
    assert model[0].noise.rate == 0.5


def test_a_path_leads_to_a_configuration_that_modules_share() -> None:
    register_adapter(Holder, "config.dropout")
    config = SimpleNamespace(dropout=0.2)
    model = nn.Sequential(Holder(config), Holder(), Holder(config))
    shared, alone = find_sites(model)
    assert [user.name for user in shared.users] == ["0.config.dropout", "2.config.dropout"]
    assert shared.owners == (model[0], model[2])
    assert (shared.holder, shared.name, alone.name) == (config, "0.config.dropout", "1.config.dropout")
    assert names(nn.Sequential(Holder())) == ["0.config.dropout"]


def test_a_path_that_leads_nowhere_is_refused_when_met() -> None:
    register_adapter(Holder, "config.missing")
    with pytest.raises(ValueError, match=r"^Expected `0\.config\.missing` to be a probability .*, but got None"):
        find_sites(nn.Sequential(Holder()))


def test_resolve_and_is_rate() -> None:
    holder = Holder()
    assert resolve(holder, "config.dropout") == 0.2
    assert resolve(holder, "config.missing.deeper") is None
    assert resolve(lightning.pytorch.LightningModule(), "trainer.dropout") is None  # which raises: there is no trainer
    assert [is_rate(value) for value in (0, 1, 0.5, True, 1.5, -0.1, float("nan"), None, "0.5", torch.tensor(0.5))] == [
        *[True] * 3,
        *[False] * 7,
    ]


def test_below_one_refuses_a_rate_of_1() -> None:
    register_adapter(Rate, "amount", below_one=True)
    (site,) = find_sites(nn.Sequential(Rate(0.5)))
    with pytest.raises(ValueError, match=r"^Expected `rate of 0` to be below 1, .* got 1\.0; use a smaller rate\.$"):
        site.rate = 1
    assert site.rate == 0.5
    site.rate = 0.999
    assert site.holder.amount == 0.999


# Owners.


def test_owner_self_is_the_default() -> None:
    register_adapter(Rate, "amount")
    model = nn.Sequential(Rate(0.1))
    assert find_sites(model)[0].owners == (model[0],)


def test_owner_parent() -> None:
    register_adapter(Rate, "amount", owner="parent")
    model = nn.Sequential(nn.Sequential(Rate(0.1)))
    assert find_sites(model)[0].owners == (model[0],)
    alone = Rate(0.1)
    assert find_sites(alone)[0].owners == (alone,)


def test_owner_function_sees_the_ancestors_nearest_first() -> None:
    seen: list[Any] = []

    def owner(module: nn.Module, ancestors: Sequence[nn.Module]) -> list[nn.Module]:
        seen.append((module, list(ancestors)))
        return [ancestors[-1], module]

    register_adapter(Rate, "amount", owner=owner)
    model = nn.Sequential(nn.Sequential(Rate(0.1)))
    (site,) = find_sites(model)
    assert seen == [(model[0][0], [model[0], model])]
    assert site.owners == (model, model[0][0])


def test_a_module_in_two_places_has_two_parents() -> None:
    register_adapter(Rate, "amount", owner="parent")
    shared = Rate(0.1)
    model = nn.Sequential(nn.Sequential(shared), nn.Sequential(shared))
    (site,) = find_sites(model)
    assert [(user.name, user.owners) for user in site.users] == [("0.0", (model[0],)), ("1.0", (model[1],))]


# Bad input.


@pytest.mark.parametrize("attribute", ["first", None])
def test_a_second_adapter_for_the_same_attribute_is_refused(attribute: Any) -> None:
    register_adapter(Layer, attribute)
    with pytest.raises(ValueError, match=rf"Expected `Layer` to have no adapter for {attribute!r} yet"):
        register_adapter(Layer, attribute)
    register_adapter("some.library.Layer", attribute)
    with pytest.raises(ValueError, match=r"Expected `some\.library\.Layer` to have no adapter"):
        register_adapter("some.library.Layer", attribute)


@pytest.mark.parametrize("by_name_first", [True, False])
def test_the_name_of_a_class_is_the_class(by_name_first: bool) -> None:
    ways: list[Any] = [f"{__name__}.Layer", Layer]
    first, second = ways if by_name_first else reversed(ways)
    register_adapter(first, "first")
    with pytest.raises(ValueError, match=r"Layer` to have no adapter for 'first' yet"):
        register_adapter(second, "first")


def test_what_this_package_knows_already_cannot_be_registered_twice() -> None:
    with pytest.raises(ValueError, match=r"`_DropoutNd` to have no adapter for 'p' yet"):
        register_adapter(nn.Dropout.__mro__[1], "p")
    with pytest.raises(ValueError, match=r"`timm\.layers\.drop\.DropPath` to have no adapter for 'drop_prob' yet"):
        register_adapter("timm.layers.drop.DropPath", "drop_prob")


@pytest.mark.parametrize("cls", [nn.Dropout(0.1), "Dropout", int, None], ids=repr)
def test_what_is_no_class_of_modules_is_refused(cls: Any) -> None:
    with pytest.raises(ValueError, match=r'Expected `cls` to be a class of modules or a dotted name such as "package'):
        register_adapter(cls, "p")


@pytest.mark.parametrize("attribute", [0.5, "", "drop.", ".p", "a..b", "1st", "my rate", nn.Dropout], ids=repr)
def test_what_is_no_name_of_an_attribute_is_refused(attribute: Any) -> None:
    with pytest.raises(
        ValueError,
        match=r"Expected `attribute` to be the name of one attribute, a dotted path to it, or `None`, but got",
    ):
        register_adapter(Layer, attribute)
    assert not is_registered(Layer)


def test_unknown_words_are_refused_and_register_nothing() -> None:
    with pytest.raises(ValueError, match=r"Expected `kind` to be one of dropout, .*, but got 'droppath'"):
        register_adapter(Layer, "first", kind="droppath")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r'Expected `owner` to be "self", "parent" or a function, but got \'child\''):
        register_adapter(Layer, "first", owner="child")  # type: ignore[arg-type]
    assert not is_registered(Layer)

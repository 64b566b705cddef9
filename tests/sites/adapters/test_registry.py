"""The registry: what users may register, which adapter a class gets, and who owns a drop."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_dropout.sites import find_sites, register_adapter
from lightning_dropout.sites.adapters import Adapter, adapters_of, is_known, registry


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters registered in a test are forgotten after it."""
    monkeypatch.setattr(registry, "_ADAPTERS", {key: list(adapters) for key, adapters in registry._ADAPTERS.items()})


class Layer(nn.Module):
    """Drops twice, in two ways, when it is in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = 0.1
        self.activation_dropout = 0.2

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(F.dropout(x, self.dropout, self.training), self.activation_dropout, self.training)


class Rate(nn.Module):
    """Holds a number for its parent and never runs."""

    def __init__(self, amount: float) -> None:
        super().__init__()
        self.amount = amount


def test_one_class_may_have_several_rates() -> None:
    register_adapter(Layer, "dropout")
    register_adapter(Layer, "activation_dropout", kind="attention")
    sites = find_sites(nn.Sequential(Layer()))
    assert [(site.name, site.attribute, site.kind, site.rate) for site in sites] == [
        ("0", "dropout", "dropout", 0.1),
        ("0", "activation_dropout", "attention", 0.2),
    ]
    assert sites[0].key != sites[1].key


def test_subclasses_are_covered_and_the_nearest_class_wins() -> None:
    register_adapter(Layer, "dropout")
    child = type("Child", (Layer,), {})
    assert adapters_of(child()) == [Adapter("dropout")]
    register_adapter(child, "activation_dropout")
    assert adapters_of(child()) == [Adapter("activation_dropout")]
    assert adapters_of(Layer()) == [Adapter("dropout")]


def test_a_users_subclass_of_a_known_layer_may_be_described_anew() -> None:
    silent = type("SilentDropout", (nn.Dropout,), {})
    assert [site.name for site in find_sites(nn.Sequential(silent(0.1), nn.Dropout(0.1)))] == ["0", "1"]
    register_adapter(silent, None)
    assert [site.name for site in find_sites(nn.Sequential(silent(0.1), nn.Dropout(0.1)))] == ["1"]


def test_a_class_may_be_named_without_being_imported() -> None:
    register_adapter(f"{Layer.__module__}.Layer", "dropout")
    register_adapter("a_library.that.is_not.Installed", "p")
    assert adapters_of(Layer()) == [Adapter("dropout")]


def test_known_as_dropping_nothing_is_known() -> None:
    assert not is_known(Layer())
    register_adapter(Layer, None)
    assert is_known(Layer())
    assert adapters_of(Layer()) == []


def test_instances_that_never_drop_are_left_out() -> None:
    register_adapter(Rate, "amount", applies=lambda module: module.amount < 0.5)
    model = nn.Sequential(Rate(0.1), Rate(0.9))
    assert [site.name for site in find_sites(model)] == ["0"]


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


# Bad input.


@pytest.mark.parametrize("attribute", ["dropout", None])
def test_a_second_adapter_for_the_same_attribute_is_refused(attribute: Any) -> None:
    register_adapter(Layer, attribute)
    with pytest.raises(ValueError, match=rf"Expected `Layer` to have no adapter for {attribute!r} yet"):
        register_adapter(Layer, attribute)
    register_adapter("some.library.Layer", attribute)
    with pytest.raises(ValueError, match=r"Expected `some\.library\.Layer` to have no adapter"):
        register_adapter("some.library.Layer", attribute)


@pytest.mark.parametrize("cls", [nn.Dropout(0.1), "Dropout", int, None], ids=repr)
def test_what_is_no_class_of_modules_is_refused(cls: Any) -> None:
    with pytest.raises(ValueError, match=r'Expected `cls` to be a class of modules or a dotted name such as "package'):
        register_adapter(cls, "p")


@pytest.mark.parametrize("attribute", [0.5, "", "attn_drop.p", nn.Dropout], ids=repr)
def test_what_is_no_name_of_an_attribute_is_refused(attribute: Any) -> None:
    with pytest.raises(ValueError, match="Expected `attribute` to be the name of one attribute, or `None`, but got"):
        register_adapter(Layer, attribute)


def test_unknown_words_are_refused_and_register_nothing() -> None:
    with pytest.raises(ValueError, match=r"Expected `kind` to be one of dropout, .*, but got 'droppath'"):
        register_adapter(Layer, "dropout", kind="droppath")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r'Expected `owner` to be "self", "parent" or a function, but got \'child\''):
        register_adapter(Layer, "dropout", owner="child")  # type: ignore[arg-type]
    assert not is_known(Layer())

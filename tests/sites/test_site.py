"""A site alone: its rate, what the setter takes and refuses, and who has to be awake for it to drop."""

import argparse
import math
from collections import namedtuple
from dataclasses import dataclass
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from lightning_dropout.nn import AttentionDropout, Dropout, DropPath
from lightning_dropout.sites import Site, TensorRates, User


def site_of(holder: Any, attribute: str = "p", *users: tuple[nn.Module, ...], **options: Any) -> Site:
    """A site called ``net.drop``, with a user for each tuple of owners."""
    users = users or ((nn.Identity(),),)
    made = tuple(User(f"net.drop{number or ''}", owners, nn.Identity()) for number, owners in enumerate(users))
    return Site("net.drop", "dropout", holder, attribute, made, **options)


HOLDERS = {
    "nn.Dropout": lambda: (nn.Dropout(0.25), "p"),
    "nn.LSTM": lambda: (nn.LSTM(2, 2, 2, dropout=0.25), "dropout"),
    "our Dropout": lambda: (Dropout(0.25), "p"),
    "our DropPath": lambda: (DropPath(0.25), "drop_prob"),
    "a configuration": lambda: (SimpleNamespace(layerdrop=0.25), "layerdrop"),
    "arguments": lambda: (argparse.Namespace(dropout=0.25), "dropout"),
}


# Rates.


@pytest.mark.parametrize("holder", HOLDERS)
def test_the_rate_is_the_holders(holder: str) -> None:
    site = site_of(*HOLDERS[holder]())
    assert site.rate == 0.25
    site.rate = 0.5
    assert getattr(site.holder, site.attribute) == site.rate == 0.5
    setattr(site.holder, site.attribute, 0.125)  # nothing is stored beside it
    assert site.rate == 0.125


@pytest.mark.parametrize(
    "value",
    [0, 1, 0.5, np.float32(0.25), np.float64(0.25), np.int64(1), np.uint8(0), Fraction(1, 4)],
    ids=lambda value: f"{type(value).__name__} {value}",
)
@pytest.mark.parametrize("holder", HOLDERS)
def test_numbers_become_plain_floats(holder: str, value: Any) -> None:
    site = site_of(*HOLDERS[holder]())
    site.rate = value
    assert site.rate == float(value)
    assert type(site.rate) is float
    assert type(getattr(site.holder, site.attribute)) is float


@pytest.mark.parametrize("value", [0, 1, np.float32(0.5)])
def test_a_holder_may_keep_another_kind_of_number(value: Any) -> None:
    site = site_of(SimpleNamespace(p=value))
    assert type(site.rate) is float
    assert type(site.effective_rate) is float


@pytest.mark.parametrize(
    "value",
    [
        -0.1,
        1.2,
        -1,
        2,
        math.nan,
        math.inf,
        np.float32("nan"),
        "0.5",
        None,
        True,
        False,
        np.bool_(True),
        [0.5],
        0.5 + 0j,
    ],
    ids=repr,
)
@pytest.mark.parametrize("holder", HOLDERS)
def test_a_bad_rate_is_refused_and_leaves_the_old_one(holder: str, value: Any) -> None:
    site = site_of(*HOLDERS[holder]())
    with pytest.raises(ValueError, match=r"^Expected `rate of net\.drop` to be a probability of dropping, .* but got"):
        site.rate = value
    assert site.rate == 0.25


def test_a_site_without_a_name_is_the_models() -> None:
    site = Site("", "dropout", nn.Dropout(0.1), "p", (User("", (), nn.Identity()),))
    with pytest.raises(ValueError, match="Expected `rate of the model` to be"):
        site.rate = 2


def test_a_layer_that_divides_by_what_it_keeps_refuses_1() -> None:
    site = site_of(nn.Dropout(0.25), below_one=True)
    for one in (1, 1.0, np.float32(1)):
        with pytest.raises(
            ValueError, match=r"^Expected `rate of net\.drop` to be below 1, .* got 1\.0; use a smaller"
        ):
            site.rate = one
    with pytest.raises(ValueError, match="to be a probability"):
        site.rate = 1.5
    assert site.rate == 0.25
    site.rate = math.nextafter(1, 0)
    assert site.rate < 1


# Holders that cannot be written.


@dataclass(frozen=True)
class Frozen:
    p: float = 0.25


@dataclass(frozen=True, slots=True)
class FrozenSlots:
    p: float = 0.25


class ReadOnly(nn.Module):
    """Computes its rate."""

    @property
    def p(self) -> float:
        return 0.25


class Slots:
    __slots__ = ("config",)
    p = 0.25


READ_ONLY = {
    "frozen dataclass": Frozen,
    "frozen dataclass with slots": FrozenSlots,
    "property": ReadOnly,
    "named tuple": lambda: namedtuple("Config", "p")(0.25),
    "class attribute behind slots": Slots,
}


@pytest.mark.parametrize("holder", READ_ONLY)
def test_a_holder_that_cannot_be_written_is_named_with_the_cure(holder: str) -> None:
    site = site_of(READ_ONLY[holder]())
    assert site.rate == 0.25
    cls = type(site.holder).__name__
    with pytest.raises(
        ValueError,
        match=rf"^Expected `{cls}\.p` \(the rate of net\.drop\) to be writable, but got \w+Error: .*; "
        r'leave it out with `exclude="net\.drop"`, or hold the rate in an attribute that can be set\.$',
    ) as caught:
        site.rate = 0.5
    assert isinstance(caught.value.__cause__, AttributeError | TypeError)
    assert site.rate == 0.25
    with pytest.raises(ValueError, match="to be a probability"):  # the value comes first: it is the caller's mistake
        site.rate = 2


# Owners.


def asleep() -> nn.Module:
    return nn.Identity().eval()


def test_the_effective_rate_is_0_while_an_owner_sleeps() -> None:
    child, parent = nn.Dropout(0.25), nn.Identity()
    site = site_of(child, "p", (child, parent))
    assert (site.rate, site.effective_rate) == (0.25, 0.25)
    for owner in (child, parent):
        owner.training = False
        assert (site.rate, site.effective_rate) == (0.25, 0.0)
        owner.training = True


def test_one_user_who_is_awake_is_enough() -> None:
    awake = nn.Identity()
    holder = nn.Dropout(0.25).eval()  # only holds the rate: its own flag is nobody's
    assert site_of(holder, "p", (asleep(),), (awake,)).effective_rate == 0.25
    assert site_of(holder, "p", (asleep(),), (awake, asleep())).effective_rate == 0.0
    assert site_of(holder, "p", (asleep(),), (asleep(),)).effective_rate == 0.0


def test_without_owners_it_always_drops() -> None:
    site = site_of(nn.Dropout(0.25).eval(), "p", ())
    assert site.owners == ()
    assert site.users[0].awake
    assert site.effective_rate == 0.25


def test_owners_are_those_of_all_users_each_once_and_in_order() -> None:
    first, second, third = nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1)
    site = site_of(nn.Dropout(), "p", (second, first), (first, third), (second,))
    assert [id(owner) for owner in site.owners] == [id(second), id(first), id(third)]


def test_a_user_is_awake_when_all_its_owners_are() -> None:
    assert User("a", (nn.Identity(), nn.Identity()), nn.Identity()).awake
    assert not User("a", (nn.Identity(), asleep()), nn.Identity()).awake


# Identity.


def test_a_key_is_the_number_in_the_object() -> None:
    holder = SimpleNamespace(first=0.1, second=0.1)
    site = site_of(holder, "first")
    assert site.key == site_of(holder, "first", (nn.Identity(),)).key
    assert site.key != site_of(holder, "second").key
    assert site.key != site_of(SimpleNamespace(first=0.1), "first").key
    site.rate = 0.5
    assert site.key == site_of(holder, "first").key


def test_sites_are_compared_by_identity() -> None:
    holder = nn.Dropout()
    site = site_of(holder)
    assert site == site
    assert site != site_of(holder)
    assert len({site, site_of(holder)}) == 2


def test_what_was_held_is_given_back_as_it_was() -> None:
    class Whole(nn.Module):
        drop_prob = 1

    holder = Whole()
    site = Site("a", "drop_path", holder, "drop_prob", (User("a", (holder,), holder),), below_one=True)
    held = site.held
    site.rate = 0.5
    site.give_back(held)
    assert type(holder.drop_prob) is int
    with pytest.raises(ValueError, match="below 1"):  # what giving back through the rate would do
        site.rate = held


def test_a_read_only_configuration_is_told_in_our_words() -> None:
    config = OmegaConf.create({"dropout": 0.1})
    OmegaConf.set_readonly(config, True)
    module = nn.Linear(2, 2)
    site = Site("a.config.dropout", "dropout", config, "dropout", (User("a.config.dropout", (module,), module),))
    with pytest.raises(ValueError, match=r"^Expected `DictConfig\.dropout` .* to be writable"):
        site.rate = 0.2
    assert site.rate == 0.1


# Slots: where writing is all that setting does.


class Custom(nn.Module):
    """Watches its attributes."""

    def __init__(self, p: float = 0.25) -> None:
        super().__init__()
        self.p = p

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        self.__dict__["seen"] = name


class OnClass(nn.Module):
    p = 0.25


class Computed(nn.Module):
    """Keeps its rate elsewhere, and something else under its name."""

    def __init__(self) -> None:
        super().__init__()
        self.keep = 0.75
        self.__dict__["p"] = 0.25

    @property
    def p(self) -> float:
        return 1.0 - self.keep

    @p.setter
    def p(self, value: float) -> None:
        self.keep = 1.0 - value


def lent() -> nn.Module:
    layer = nn.Dropout(0.25)
    TensorRates([site_of(layer)], torch.device("cpu"))
    return layer


def of_timm() -> nn.Module:
    layer: nn.Module = pytest.importorskip("timm.layers", reason="needs timm, an optional library").DropPath(0.25)
    return layer


def of_torchvision() -> nn.Module:
    ops = pytest.importorskip("torchvision.ops", reason="needs torchvision, an optional library")
    layer: nn.Module = ops.StochasticDepth(0.25, "row")
    return layer


WITH_SLOT = {
    "nn.Dropout": (lambda: nn.Dropout(0.25), "p"),
    "nn.MultiheadAttention": (lambda: nn.MultiheadAttention(2, 1, dropout=0.25), "dropout"),
    "our Dropout": (lambda: Dropout(0.25), "p"),
    "our AttentionDropout": (lambda: AttentionDropout(0.25), "p"),
    "our DropPath": (lambda: DropPath(0.25), "drop_prob"),
    "timm's DropPath": (of_timm, "drop_prob"),
    "torchvision's StochasticDepth": (of_torchvision, "p"),
}


@pytest.mark.parametrize("holder", WITH_SLOT)
def test_writing_into_the_slot_is_setting_the_rate(holder: str) -> None:
    build, attribute = WITH_SLOT[holder]
    written, assigned = (site_of(build(), attribute) for _ in range(2))
    assert written.slot is not None
    held, key = written.slot
    for rate in (0.0, 0.5, 1.0):
        held[key] = rate
        assigned.rate = rate
        assert written.rate == rate
        assert repr(written.holder) == repr(assigned.holder)
        assert list(vars(written.holder)) == list(vars(assigned.holder))  # no entry more, none in another place
        assert vars(written.holder)[attribute] == vars(assigned.holder)[attribute]


WITHOUT_SLOT = {
    "a configuration": lambda: site_of(SimpleNamespace(p=0.25)),
    "a layer that divides by what it keeps": lambda: site_of(nn.Dropout(0.25), below_one=True),
    "a class with a __setattr__ of its own": lambda: site_of(Custom()),
    "torch's own such class": lambda: site_of(nn.LSTM(2, 2, 2, dropout=0.25), "dropout"),
    "an attribute of the class": lambda: site_of(OnClass()),
    "a property": lambda: site_of(ReadOnly()),
    "a property that hides an attribute": lambda: site_of(Computed()),
    "a layer that was lent a tensor": lambda: site_of(lent()),
}


@pytest.mark.parametrize("reason", WITHOUT_SLOT)
def test_where_setting_does_more_there_is_no_slot(reason: str) -> None:
    site = WITHOUT_SLOT[reason]()
    assert site.rate == 0.25
    assert site.slot is None


def test_writing_where_there_is_no_slot_would_be_wrong() -> None:
    site = site_of(Computed())
    vars(site.holder)["p"] = 0.5
    assert site.rate == 0.25  # what a slot without a look at the class would do: nothing
    site.rate = 0.5
    assert site.rate == 0.5
    watched = site_of(Custom())
    watched.holder.seen = ""
    watched.rate = 0.5
    assert watched.holder.seen == "p"

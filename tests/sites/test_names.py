"""Names and patterns: which places a walk meets, what it calls them, and where a pattern may begin.

That every wrapper of torch is seen through is tested with the sites, in test_find.py.
"""

from typing import Any

import pytest
from torch import nn

from lightning_dropout.sites.names import join, matches, walk

# Walking.


class Wrapper(nn.Module):
    """Puts a name of a wrapper between parent and child."""

    def __init__(self, name: str, module: nn.Module) -> None:
        super().__init__()
        self.add_module(name, module)


def nested() -> nn.Sequential:
    return nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.ReLU()))


def names(model: nn.Module) -> list[str]:
    return [name for name, _, _ in walk(model)]


def test_every_module_is_met_before_its_children() -> None:
    model = nested()
    assert [(name, module) for name, module, _ in walk(model)] == list(model.named_modules())


def test_a_shared_module_is_met_at_each_of_its_places() -> None:
    shared = nn.Sequential(nn.Dropout())
    model = nn.Sequential(shared, nn.ReLU(), shared)
    assert names(model) == ["", "0", "0.0", "1", "2", "2.0"]
    assert names(model) != [name for name, _ in model.named_modules()]  # torch names it once


def test_ancestors_come_nearest_first() -> None:
    model = nested()
    assert {name: ancestors for name, _, ancestors in walk(model)} == {
        "": [],
        "0": [model],
        "1": [model],
        "1.0": [model[1], model],
    }


def test_a_module_below_itself_ends_the_walk() -> None:
    model = nested()
    model[1].parent = model
    model[1].itself = model[1]
    assert names(model) == names(nested())


def test_children_that_are_not_there_are_passed_over() -> None:
    model = nested()
    model.register_module("later", None)
    assert names(model) == names(nested())


@pytest.mark.parametrize("name", ["_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod"])
@pytest.mark.parametrize("everywhere", [False, True])
def test_a_wrapper_is_neither_met_nor_an_ancestor(name: str, everywhere: bool) -> None:
    model = nested()
    model[1] = Wrapper(name, Wrapper(name, model[1]))
    wrapped: nn.Module = Wrapper(name, model) if everywhere else model
    assert names(wrapped) == names(nested())
    assert [module for each, module, _ in walk(wrapped) if each == "1"] == [model[1].get_submodule(f"{name}.{name}")]
    assert not any(isinstance(ancestor, Wrapper) for _, _, ancestors in walk(wrapped) for ancestor in ancestors)


def test_a_child_called_module_is_a_name_except_under_parallel_wrappers() -> None:
    assert names(Wrapper("module", nn.ReLU())) == ["", "module"]
    assert names(nn.DataParallel(nn.Sequential(nn.ReLU()))) == ["", "0"]


# Joining.


@pytest.mark.parametrize(
    ("name", "attribute", "joined"),
    [("a.b", "p", "a.b.p"), ("", "p", "p"), ("a", "", "a"), ("", "", ""), ("a", "config.dropout", "a.config.dropout")],
)
def test_no_dot_stands_beside_nothing(name: str, attribute: str, joined: str) -> None:
    assert join(name, attribute) == joined


# Matching.


@pytest.mark.parametrize(
    ("name", "patterns", "expected"),
    [
        ("net.blocks.0.drop", "blocks.*", True),
        ("net.blocks.0.drop", "drop", True),
        ("net.blocks.0.drop", "net.blocks.0.drop", True),
        ("net.blocks.0.drop", "*", True),
        ("net.blocks.10.drop", "blocks.?.drop", False),
        ("net.blocks.1.drop", "blocks.[1-9].*", True),
        ("net.my_blocks.0.drop", "blocks.*", False),  # a pattern begins at dots only
        ("net.blocks.0.drop", "locks.*", False),
        ("net.Blocks.0", "blocks.*", False),
        ("net.blocks.0.drop", "blocks", False),  # and ends at the end
        ("", "*", True),
        ("", "", True),
        ("net", "", False),
        ("net.drop", ["other", "drop"], True),
        ("net.drop", ("other", "others"), False),
        ("net.drop", (), False),
    ],
    ids=str,
)
def test_a_pattern_may_begin_at_any_dot(name: str, patterns: Any, expected: bool) -> None:
    assert matches(name, patterns) is expected

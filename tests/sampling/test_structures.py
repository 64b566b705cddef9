"""Structures taken apart and put together again: every form a model may return, and what stays as it is."""

from collections import OrderedDict, UserDict
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from transformers.modeling_outputs import SequenceClassifierOutput

from lightning_dropout.sampling.structures import children_of, filled, is_loss, leaves_of


class Named(NamedTuple):
    logits: Any
    rest: Any


@dataclass(frozen=True)
class Frozen:
    logits: Any
    rest: Any


FORMS = [
    (1, 2),
    [1, 2],
    {"a": 1, 3: 2},
    OrderedDict(a=1, b=2),
    UserDict(a=1),
    MappingProxyType({"a": 1}),
    Named(1, (2, 3)),
    Frozen(1, {"x": [2]}),
    {"a": [Frozen((1,), None), Named({}, [])]},
    SequenceClassifierOutput(logits=torch.ones(1)),
    7,
    None,
]


@pytest.mark.parametrize("form", FORMS, ids=repr)
def test_taking_apart_is_undone(form: Any) -> None:
    leaves = leaves_of(form)
    again = filled(form, leaves)
    assert type(again) is type(form)
    assert leaves_of(again) == leaves
    if children_of(form) is not None:
        assert again is not form, "who changes the copy would change what the model holds"


def test_new_leaves_stand_in_their_places() -> None:
    form = {"a": [Frozen(1, (2, None))], "b": Named(3, 4)}
    new = filled(form, {path: f"new {path}" for path in leaves_of(form)})
    assert new == {
        "a": [Frozen("new a.0.logits", ("new a.0.rest.0", "new a.0.rest.1"))],
        "b": Named("new b.logits", "new b.rest"),
    }
    assert form["a"][0].logits == 1


def test_a_class_is_no_structure() -> None:
    assert children_of(Frozen) is None
    assert children_of("text") is None
    assert children_of(torch.ones(2)) is None


@pytest.mark.parametrize(
    ("path", "expected"), [("loss", True), ("0.aux_loss", True), ("loss.0", False), ("gloss", False)]
)
def test_names_of_losses(path: str, expected: bool) -> None:
    assert is_loss(path) is expected

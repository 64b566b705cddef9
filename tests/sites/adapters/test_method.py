"""One method's source: what is read of it, and what is not guessed. Whole classes are ``test_source.py``'s."""

import linecache
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_dropout.sites.adapters.method import MethodSource, Reading, may_drop, mentions, names_in, read_method


class Methods:
    """Never run: only their source is read."""

    p: float
    drop_prob: float
    keep_prob: float
    training: bool
    fused: bool
    shortcut: Any
    drop: Any
    config: Any

    def functional(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.training)

    def always(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p)

    def of_a_child(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.drop.p, self.drop.training)

    def of_a_configuration(self, x: Tensor) -> Tensor:
        config = self.config
        return F.dropout(x, config.dropout, self.training)

    def fused_attention(self, x: Tensor) -> Tensor:
        if self.fused:
            return F.scaled_dot_product_attention(x, x, x, dropout_p=self.drop.p if self.training else 0.0)
        return self.drop(x)

    def drawn(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * (torch.rand_like(x) > self.p) / (1 - self.p)

    def skipped(self, x: Tensor) -> Tensor:
        if self.shortcut is None:
            return x
        return self.drop(x) + self.shortcut(x)

    def kept(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.keep_prob, self.training)

    def handed_on(self, x: Tensor) -> Tensor:
        return something(x, self.p)

    def plain(self, x: Tensor) -> Tensor:
        return x + 1


def something(x: Tensor, p: float) -> Tensor:
    return x * p


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (Methods.functional, Reading("p", "dropout", "", ())),
        (Methods.always, Reading("p", "dropout", None, ())),
        (Methods.of_a_child, Reading("drop.p", "dropout", "drop", ())),
        (Methods.of_a_configuration, Reading("config.dropout", "dropout", "", ())),
        (Methods.drawn, Reading("p", "dropout", "", (), own_mask=True)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_use_of_a_rate_is_read(method: Any, expected: Reading) -> None:
    source = read_method(method)
    assert set(source.readings) == {expected}
    assert source.unexplained == frozenset()


@pytest.mark.parametrize(("method", "path"), [(Methods.kept, "keep_prob"), (Methods.handed_on, "p")])
def test_what_is_not_understood_is_reported_and_not_guessed(method: Any, path: str) -> None:
    assert read_method(method) == MethodSource((), frozenset({path}), read_method(method).mentions)


def test_a_method_without_a_word_of_dropping_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ast.parse", lambda source: pytest.fail("parsed"))
    assert read_method(Methods.plain) == MethodSource()


def test_code_without_a_source_is_unexplained_where_it_may_drop() -> None:
    names: dict[str, Callable[..., Any]] = {}
    exec("def forward(self, x): return F.dropout(x, self.p, self.training)", {"F": F}, names)
    assert "p" in read_method(names["forward"]).unexplained  # type: ignore[arg-type]


def test_a_use_behind_a_switch_says_so() -> None:
    readings = read_method(Methods.fused_attention).readings
    assert {(each.path, each.kind, each.owner, each.conditions) for each in readings} >= {
        ("drop.p", "attention", "", (("fused", True),))
    }


def test_a_file_that_was_edited_since_it_was_imported_explains_nothing(tmp_path: Path) -> None:
    path = tmp_path / "edited.py"
    before = "def forward(self, x, F):\n    return F.dropout(x, self.p, self.training)\n"
    path.write_text(before)
    names: dict[str, Any] = {}
    exec(compile(before, str(path), "exec"), names)
    assert read_method(names["forward"]).unexplained == frozenset()
    for after in ("\n\ndef other(self):\n    pass\n" + before, before.replace("self.p", "0.1")):
        exec(compile(before, str(path), "exec"), names)
        path.write_text(after)
        linecache.checkcache()
        assert "p" in read_method(names["forward"]).unexplained


def test_children_are_mentioned_under_the_switches_on_the_way() -> None:
    assert ("drop", (("fused", False),)) in mentions(Methods.fused_attention)
    assert ("drop", (("shortcut is None", False),)) in mentions(Methods.skipped)
    assert "drop" not in {name for name, _ in mentions(Methods.of_a_child)}


def test_names_are_those_of_inner_functions_too() -> None:
    def outer(self: Any) -> Any:
        return lambda: self.inner_name

    assert {"inner_name"} <= names_in(outer.__code__)


def test_which_names_may_drop() -> None:
    assert all(map(may_drop, ("p", "prob", "attn_drop", "stochastic_depth", "drop_path", "keep_prob")))
    assert not any(map(may_drop, ("pos", "probability_map", "depth", "training")))

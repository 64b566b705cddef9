"""The comparison with a forward that somebody else runs: rates as they are, modes as they are."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_dropout.nn import Dropout
from lightning_dropout.sites import register_adapter, sites_of
from lightning_dropout.sites.adapters import registry
from lightning_dropout.sites.comparison import compare
from lightning_dropout.sites.findings import Audit
from lightning_dropout.sites.observation import Observer


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters registered in a test are forgotten after it."""
    monkeypatch.setattr(registry, "_ADAPTERS", {key: list(adapters) for key, adapters in registry._ADAPTERS.items()})
    torch.manual_seed(0)


X = torch.ones(2, 3, 4)


def observed(model: nn.Module, forward: Callable[[Tensor], Any] | None = None) -> Audit:
    observer = Observer(model)
    observer.__enter__()
    (forward or model)(X)
    observer.__exit__(None, None, None)
    return compare(model, sites_of(model, strict=False), observer)


def states(report: Audit) -> list[tuple[str, str]]:
    return [(row.name, row.state) for row in report.rows]


class Two(nn.Module):
    """Two rates, of which one is used."""

    def __init__(self, used: float, spare: float) -> None:
        super().__init__()
        self.dropout, self.activation_dropout = used, spare

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


@pytest.fixture
def _two() -> None:
    register_adapter(Two, "dropout")
    register_adapter(Two, "activation_dropout")


@pytest.mark.usefixtures("_two")
def test_rates_are_compared_as_they_are() -> None:
    model = nn.Sequential(Two(0.1, 0.2), Two(0.2, 0.1), nn.Dropout(0.2))
    assert states(observed(model)) == [
        ("0.dropout", "firing"),
        ("0.activation_dropout", "silent"),
        ("1.dropout", "firing"),
        ("1.activation_dropout", "silent"),
        ("2", "firing"),
    ]
    assert [(site.rate, site.holder) for site in sites_of(model)][-1] == (0.2, model[2])


@pytest.mark.usefixtures("_two")
def test_equal_rates_of_one_module_both_count_as_firing() -> None:
    assert states(observed(Two(0.1, 0.1))) == [("dropout", "firing"), ("activation_dropout", "firing")]


@pytest.mark.usefixtures("_two")
def test_lent_rates_are_told_apart_and_not_shown() -> None:
    model = Two(0.1, 0.1)
    sites = sites_of(model)
    sites[0].rate = 0.125
    with Observer(model) as observer:
        model(X)
    sites[0].rate = 0.1
    report = compare(model, sites, observer, [0.125, 0.1])
    assert [(row.name, row.rate, row.state) for row in report.rows] == [
        ("dropout", 0.1, "firing"),
        ("activation_dropout", 0.1, "silent"),
    ]
    assert not compare(model, sites, observer).firing, "0.125 is nobody's rate"


def test_modes_are_those_of_the_forward() -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 4, dropout=0.1, batch_first=True)
    model = nn.Sequential(nn.Dropout(0.1).eval(), nn.Sequential(layer), nn.Dropout(0.1))
    assert {row.state for row in observed(model).rows} == {"silent", "firing"}
    layer.training = False
    with torch.no_grad():
        report = observed(model)
    reasons = {row.name: row.reason for row in report.rows}
    assert reasons["0"] == "`0` is in eval mode"
    assert reasons["1.0.dropout1"] == reasons["1.0.self_attn"] == "`1.0` is in eval mode (fast path)"
    assert [row.name for row in report.firing] == ["2"]
    (row,) = observed(nn.Dropout(0.1).eval()).rows
    assert row.reason == "`the model` is in eval mode"


def test_what_drops_in_eval_mode_too_is_firing() -> None:
    class Always(nn.Module):
        drop_rate = 0.1

        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x, self.drop_rate)

    register_adapter(Always, "drop_rate")
    assert [row.state for row in observed(Always().eval()).rows] == ["firing"]


def test_a_sleeping_site_does_not_explain_a_draw() -> None:
    class Noise(nn.Module):
        drop_rate = 0.1

        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand(4)

    register_adapter(Noise, "drop_rate")
    assert [row.state for row in observed(Noise()).rows] == ["firing"]
    assert [row.state for row in observed(Noise().eval()).rows] == ["silent", "unknown"]


class LayerDrop(nn.Module):
    """Skips every layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layerdrop = 1.0
        self.layers = nn.ModuleList(nn.Dropout(0.1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            if not (self.training and torch.rand([]) < self.layerdrop):
                x = layer(x)
        return x


def test_a_layer_that_layer_drop_skips_is_said_to_be() -> None:
    model = nn.Module()
    model.encoder, model.spare = LayerDrop(), nn.Dropout(0.1)
    reasons = {row.name: row.reason for row in observed(model, model.encoder).silent}
    assert reasons == {
        "encoder.layers.0": "skipped by layer drop in this forward",
        "encoder.layers.1": "skipped by layer drop in this forward",
        "spare": "never reached by this forward",
    }


def test_a_method_called_from_outside_reaches_its_module() -> None:
    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop_rate, self.head_drop_rate = 0.1, 0.2

        def forward_features(self, x: Tensor) -> Tensor:
            return F.dropout(x, self.drop_rate, self.training)

        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(self.forward_features(x), self.head_drop_rate, self.training)

    model = nn.Sequential(Features())
    report = observed(model, model[0].forward_features)
    assert states(report) == [("0.drop_rate", "firing"), ("0.head_drop_rate", "silent")]
    assert report.silent[0].reason == "reached, but this forward did not use the rate"


def test_names_are_those_of_the_sites_whatever_wraps_the_model() -> None:
    inner = nn.Sequential(nn.Linear(4, 4), nn.RReLU(), Dropout(0.1))
    for model in (nn.DataParallel(inner), nn.Sequential(nn.DataParallel(inner))):
        report = observed(model)
        prefix = "0." if isinstance(model, nn.Sequential) else ""
        assert states(report) == [(f"{prefix}2", "firing"), (f"{prefix}1", "unknown")]
        assert report.model == "Sequential"


def test_a_draw_of_a_wrapper_goes_by_the_name_of_what_it_wraps() -> None:
    wrapper = nn.DataParallel(nn.Linear(4, 4))
    wrapper.forward = lambda x: x + torch.rand(4)  # type: ignore[method-assign]
    assert states(observed(nn.Sequential(nn.ReLU(), wrapper))) == [("1", "unknown")]


def test_a_shared_module_goes_by_its_first_name() -> None:
    shared = nn.RReLU()
    assert states(observed(nn.Sequential(shared, nn.Linear(4, 4), shared))) == [("0", "unknown")]


def test_several_forwards_add_up() -> None:
    model = nn.Sequential(nn.Dropout(0.1))
    (row,) = observed(model, lambda x: model(model(x))).rows
    assert row.count == 2

"""The rows of torch and of our own layers: kinds, rates, and owners whose flags do turn the drop on."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_dropout.nn import AttentionDropout, Dropout, DropPath
from lightning_dropout.sites import Site, find_sites

pytestmark = pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")


class SelfAttention(nn.MultiheadAttention):
    """Attention of an input to itself."""

    def __init__(self, *, need_weights: bool) -> None:
        super().__init__(8, 2, dropout=0.1, batch_first=True)
        self.need_weights = need_weights

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        output: Tensor = super().forward(x, x, x, need_weights=self.need_weights)[0]
        return output


class Decoder(nn.Module):
    """A decoder whose memory is what it decodes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(8, 2, 16, dropout=0.1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.layer(x, x)
        return output


def on(*shape: int) -> Callable[[nn.Module], Tensor]:
    """Run a model on an input of this shape; of several outputs, take the first."""

    def run(model: nn.Module) -> Tensor:
        x = torch.arange(1.0, 1 + torch.Size(shape).numel()).sin().view(shape)
        output = model(x)
        first: Tensor = output[0] if isinstance(output, tuple) else output
        return first

    return run


def attend(model: Any) -> Tensor:
    x = torch.arange(160.0).sin().view(2, 2, 5, 8)
    output: Tensor = model[0](x, x, x)
    return output


def layer(name: str, kind: str, cls: type, attribute: str = "p", *parents: type) -> Any:
    return name, kind, cls.__name__, attribute, tuple(each.__name__ for each in (cls, *parents))


def one(module: nn.Module, kind: str = "dropout", attribute: str = "p") -> Any:
    """A sequence of one layer, and its site."""
    return lambda: nn.Sequential(copy.deepcopy(module)), [layer("0", kind, type(module), attribute)]


def encoder_layer(**arguments: Any) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True, **arguments)


def encoder_sites(prefix: str = "") -> list[Any]:
    owner = nn.TransformerEncoderLayer
    return [
        layer(f"{prefix}self_attn", "attention", nn.MultiheadAttention, "dropout", owner),
        *(layer(f"{prefix}{name}", "dropout", nn.Dropout, "p", owner) for name in ("dropout", "dropout1", "dropout2")),
    ]


SENTENCES = (4, 5, 8)
# Model, sites, how it runs.
ROWS: dict[str, tuple[Callable[[], nn.Module], list[Any], Callable[[nn.Module], Tensor]]] = {
    "Dropout": (*one(nn.Dropout(0.1)), on(4, 8)),
    "Dropout1d": (*one(nn.Dropout1d(0.1)), on(*SENTENCES)),
    "Dropout2d": (*one(nn.Dropout2d(0.1)), on(4, 8, 3, 3)),
    "Dropout3d": (*one(nn.Dropout3d(0.1)), on(4, 8, 2, 2, 2)),
    "AlphaDropout": (*one(nn.AlphaDropout(0.1)), on(4, 8)),
    "FeatureAlphaDropout": (*one(nn.FeatureAlphaDropout(0.1)), on(4, 8, 3, 3)),
    "a subclass of Dropout": (*one(type("MyDropout", (nn.Dropout,), {})(0.1)), on(4, 8)),
    "our Dropout": (*one(Dropout(0.1)), on(4, 8)),
    "our AttentionDropout": (*one(AttentionDropout(0.1), "attention"), attend),
    "our DropPath": (*one(DropPath(0.1), "drop_path", "drop_prob"), on(16, 8)),
    "a subclass of our DropPath": (
        *one(type("MyDropPath", (DropPath,), {})(0.1), "drop_path", "drop_prob"),
        on(16, 8),
    ),
    "MultiheadAttention": (*one(SelfAttention(need_weights=False), "attention", "dropout"), on(*SENTENCES)),
    "MultiheadAttention with weights": (*one(SelfAttention(need_weights=True), "attention", "dropout"), on(*SENTENCES)),
    "LSTM": (*one(nn.LSTM(8, 8, 2, dropout=0.1), "recurrent", "dropout"), on(*SENTENCES)),
    "GRU": (*one(nn.GRU(8, 8, 3, dropout=0.1), "recurrent", "dropout"), on(*SENTENCES)),
    "RNN": (*one(nn.RNN(8, 8, 2, dropout=0.1), "recurrent", "dropout"), on(*SENTENCES)),
    "TransformerEncoderLayer, with its fast path": (encoder_layer, encoder_sites(), on(*SENTENCES)),
    "TransformerEncoderLayer, normalised first": (
        lambda: encoder_layer(norm_first=True),
        encoder_sites(),
        on(*SENTENCES),
    ),
    "TransformerEncoder": (
        lambda: nn.TransformerEncoder(encoder_layer(), 2),
        [*encoder_sites("layers.0."), *encoder_sites("layers.1.")],
        on(*SENTENCES),
    ),
    "TransformerDecoderLayer, which has no fast path": (
        Decoder,
        [
            layer("layer.self_attn", "attention", nn.MultiheadAttention, "dropout"),
            layer("layer.multihead_attn", "attention", nn.MultiheadAttention, "dropout"),
            *(layer(f"layer.dropout{each}", "dropout", nn.Dropout) for each in ("", 1, 2, 3)),
        ],
        on(*SENTENCES),
    ),
}


@pytest.mark.parametrize("row", ROWS)
def test_the_sites_are_those_of_the_table_and_they_drop(row: str, check: Any, described: Any) -> None:
    build, expected, run = ROWS[row]
    model = build()
    sites = find_sites(model)
    assert described(sites) == expected
    check(model, run, sites)()


@pytest.mark.filterwarnings("ignore:dropout option adds dropout after all but last recurrent layer")
@pytest.mark.parametrize("recurrent", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_drop_between_layers_only(recurrent: Any) -> None:
    model = nn.Sequential(recurrent(2, 2, 1, dropout=0.3), nn.Dropout(0.1), recurrent(2, 2, 2, dropout=0.2))
    assert [(site.name, site.rate) for site in find_sites(model)] == [("1", 0.1), ("2", 0.2)]
    cells = nn.Sequential(nn.LSTMCell(2, 2), nn.Dropout(0.1))
    assert len(find_sites(cells)) == 1


def test_an_encoder_layer_owns_what_is_in_it() -> None:
    encoder: Any = nn.TransformerEncoder(encoder_layer(), 2)
    for site in find_sites(encoder):
        assert site.owners == (site.holder, encoder.layers[int(site.name.split(".")[1])])


class AttentionWithALayer(nn.MultiheadAttention):
    """Attention that drops its output as well, which the fast path of an encoder layer never calls."""

    def __init__(self) -> None:
        super().__init__(8, 2, dropout=0.1, batch_first=True)
        self.drop = nn.Dropout(0.1)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output, weights = super().forward(*args, **kwargs)
        return self.drop(output), weights


def test_the_fast_path_passes_by_what_is_deeper_inside(check: Any) -> None:
    model = encoder_layer()
    model.self_attn = AttentionWithALayer()
    sites = find_sites(model)
    assert {site.name: site.owners for site in sites}["self_attn.drop"] == (model.self_attn.drop, model)
    check(model, on(*SENTENCES), sites)()


# Wrong finders.


def the_holder_owns(sites: list[Site]) -> list[Site]:
    return [
        dataclasses.replace(site, users=(dataclasses.replace(site.users[0], owners=(site.holder,)),)) for site in sites
    ]


def the_layer_owns(sites: list[Site]) -> list[Site]:
    return [
        dataclasses.replace(site, users=(dataclasses.replace(site.users[0], owners=site.owners[-1:]),))
        for site in sites
    ]


def only_dropout_layers(sites: list[Site]) -> list[Site]:
    return [site for site in sites if isinstance(site.holder, nn.Dropout)]


def the_wrong_attribute(sites: list[Site]) -> list[Site]:
    for site in sites:
        site.holder.rate = 0.1
    return [dataclasses.replace(site, attribute="rate") for site in sites]


@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        ("TransformerEncoderLayer, with its fast path", the_holder_owns),
        ("TransformerEncoderLayer, with its fast path", the_layer_owns),
        ("TransformerEncoderLayer, with its fast path", only_dropout_layers),
        ("Dropout", the_wrong_attribute),
        ("Dropout2d", only_dropout_layers),
        ("LSTM", only_dropout_layers),
        ("MultiheadAttention", only_dropout_layers),
    ],
)
def test_a_wrong_finder_fails_the_check(row: str, wrong: Any, check: Any) -> None:
    build, _, run = ROWS[row]
    model = build()
    with pytest.raises(AssertionError):
        check(model, run, wrong(find_sites(model)))()

"""The adapters of torch's layers and of our own: kinds, rates, and owners whose flags do turn the drop on."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_dropout.nn import AttentionDropout, Dropout, DropPath
from lightning_dropout.sites import find_sites


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (nn.Dropout(0.3), "dropout"),
        (nn.Dropout1d(0.3), "dropout"),
        (nn.Dropout2d(0.3), "dropout"),
        (nn.Dropout3d(0.3), "dropout"),
        (nn.AlphaDropout(0.3), "dropout"),
        (nn.FeatureAlphaDropout(0.3), "dropout"),
        (type("MyDropout", (nn.Dropout,), {})(0.3), "dropout"),
        (nn.MultiheadAttention(4, 2, dropout=0.3), "attention"),
        (nn.LSTM(2, 2, 2, dropout=0.3), "recurrent"),
        (nn.GRU(2, 2, 3, dropout=0.3), "recurrent"),
        (nn.RNN(2, 2, 2, dropout=0.3), "recurrent"),
        (Dropout(0.3), "dropout"),
        (AttentionDropout(0.3), "attention"),
        (DropPath(0.3), "drop_path"),
        (type("MyDropPath", (DropPath,), {})(0.3), "drop_path"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else value,
)
def test_one_layer_is_one_site(layer: nn.Module, kind: str) -> None:
    (site,) = find_sites(nn.Sequential(layer))
    assert (site.name, site.kind, site.rate, site.holder, site.owners) == ("0", kind, 0.3, layer, (layer,))


@pytest.mark.filterwarnings("ignore:dropout option adds dropout after all but last recurrent layer")
@pytest.mark.parametrize("recurrent", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_drop_between_layers_only(recurrent: Any) -> None:
    model = nn.Sequential(recurrent(2, 2, 1, dropout=0.3), nn.Dropout(0.1), recurrent(2, 2, 2, dropout=0.2))
    assert [(site.name, site.rate) for site in find_sites(model)] == [("1", 0.1), ("2", 0.2)]
    cells = nn.Sequential(nn.LSTMCell(2, 2), nn.Dropout(0.1))
    assert len(find_sites(cells)) == 1


def test_a_transformer_encoder_layer_owns_what_is_in_it() -> None:
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True), 2, enable_nested_tensor=False
    )
    sites = find_sites(encoder)
    children = ("self_attn", "dropout", "dropout1", "dropout2")
    assert [site.name for site in sites] == [f"layers.{index}.{child}" for index in range(2) for child in children]
    for site in sites:
        layer = encoder.layers[int(site.name.split(".")[1])]
        assert site.owners == (site.holder, layer)
    assert [site.kind for site in sites[:4]] == ["attention", "dropout", "dropout", "dropout"]


def test_a_decoder_layer_has_no_fast_path_and_owns_nothing() -> None:
    sites = find_sites(nn.TransformerDecoderLayer(8, 2, 16, dropout=0.2))
    assert [site.name for site in sites] == [
        "self_attn",
        "multihead_attn",
        "dropout",
        "dropout1",
        "dropout2",
        "dropout3",
    ]
    assert all(site.owners == (site.holder,) for site in sites)


# Owners: in eval mode, switching on the owners of one site, and nothing else, makes passes differ.

LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "dropout": (lambda: nn.Sequential(nn.Dropout(0.5)), (4, 6)),
    "attention": (lambda: SelfAttention(), (4, 5, 8)),
    "encoder layer": (lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True), (4, 5, 8)),
    "encoder": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True), 2),
        (4, 5, 8),
    ),
    "lstm": (lambda: nn.LSTM(4, 8, num_layers=2, dropout=0.5), (5, 4, 4)),
    "own": (lambda: nn.Sequential(Dropout(0.5), DropPath(0.5)), (64, 6)),
}


class SelfAttention(nn.MultiheadAttention):
    """Attention of an input to itself."""

    def __init__(self) -> None:
        super().__init__(8, 2, dropout=0.5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        output: Tensor = super().forward(x, x, x, need_weights=False)[0]
        return output


def check_owners_turn_it_on(model: nn.Module, x: Tensor, owners: tuple[nn.Module, ...]) -> None:
    model.eval()
    for owner in owners:
        owner.training = True
    with torch.no_grad():
        first, second = (model(x) for _ in range(2))
    first, second = (output[0] if isinstance(output, tuple) else output for output in (first, second))
    assert not torch.equal(first, second)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.parametrize("name", LAYERS)
def test_owners_alone_turn_the_drop_on(name: str) -> None:
    build, shape = LAYERS[name]
    model = build()
    x = torch.randn(shape)
    for site in find_sites(model):
        check_owners_turn_it_on(model, x, site.owners)


@pytest.mark.parametrize("child", ["dropout1", "self_attn"])
def test_the_holder_alone_as_owner_is_killed(child: str) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True)
    with pytest.raises(AssertionError):  # the fast path of the layer, itself in eval mode, knows no dropout
        check_owners_turn_it_on(layer, torch.randn(4, 5, 8), (getattr(layer, child),))

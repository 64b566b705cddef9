"""Shared masks: their law, that they follow from nothing but the key, every way to draw, refusals, and giving back.

Each check takes the class of the masks, and so also judges planted bugs.
"""

import random
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from math import sqrt
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from lightning_dropout.nn import AttentionDropout, Dropout, DropPath, functional
from lightning_dropout.randomness import isolated_randomness, seed_everywhere
from lightning_dropout.sampling import masks as masks_module
from lightning_dropout.sampling.activation import dropping
from lightning_dropout.sampling.masks import SharedMasks, check_masks, fast_masks
from lightning_dropout.sites import find_sites, register_adapter

Z_LIMIT = 4.71
P_LIMIT = 2.5e-6  # the same limit as a two-sided p-value
P = 0.3
BATCH, TOKENS, DIM = 21, 6, 12


# Models: every way to draw. All map (batch, tokens, dim) to (batch, ...).


class Functional(nn.Module):
    """A dropout in somebody's own code."""

    def __init__(self, drop: Callable[[Tensor, float, bool], Tensor]) -> None:
        super().__init__()
        self.p, self.drop = P, drop

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(x, self.p, self.training)


class Custom(nn.Module):
    """A mask made by hand from what ``draw`` returns for ``x`` and the probability of keeping."""

    def __init__(self, draw: Callable[[Tensor, float], Tensor]) -> None:
        super().__init__()
        self.drop_prob, self.draw = P, draw

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = 1 - self.drop_prob
        return x * self.draw(x, keep) / keep


register_adapter(Custom, "drop_prob")


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attend = AttentionDropout(P)

    def forward(self, x: Tensor) -> Tensor:
        q = x.view(*x.shape[:2], 2, DIM // 2).transpose(1, 2)
        return self.attend(q, q, q)


class MultiHead(nn.Module):
    def __init__(self, batch_first: bool, need_weights: bool) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(DIM, 3, dropout=P, batch_first=batch_first)
        self.need_weights = need_weights

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x, x, x, need_weights=self.need_weights)[0]


class First(nn.Module):
    """The first output of a layer, batch first; the layer itself may want time first."""

    def __init__(self, layer: nn.Module, time_first: bool = False) -> None:
        super().__init__()
        self.layer, self.time_first = layer, time_first

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x.transpose(0, 1) if self.time_first else x)
        y = y[0] if isinstance(y, tuple) else y
        return y.transpose(0, 1) if self.time_first else y


class Images(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.reshape(len(x), 2, TOKENS, DIM // 2)).flatten(1)


class Windows(nn.Module):
    """Folds the tokens into the batch, as window attention does."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.reshape(len(x) * 3, TOKENS // 3, DIM)).view_as(x)


def recurrent(cls: Any, batch_first: bool) -> nn.Module:
    return First(cls(DIM, 5, num_layers=3, dropout=P, batch_first=batch_first), time_first=not batch_first)


def encoder_layer(batch_first: bool) -> nn.Module:
    return First(nn.TransformerEncoderLayer(DIM, 3, 24, P, batch_first=batch_first), time_first=not batch_first)


def of_timm(name: str, **kwargs: Any) -> nn.Module:
    layers = pytest.importorskip("timm.layers")
    return getattr(layers, name)(P, **kwargs)


def of_torchvision(name: str, *args: Any) -> nn.Module:
    return getattr(pytest.importorskip("torchvision.ops"), name)(P, *args)


def stable_dropout() -> nn.Module:
    return pytest.importorskip("transformers.models.sew_d.modeling_sew_d").StableDropout(P)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "nn.Dropout": lambda: nn.Dropout(P),
    "our Dropout": lambda: Dropout(P),
    "our Dropout of channels": lambda: Dropout(P, "channel"),
    "our Dropout that shares": lambda: Dropout(P, shared_over_batch=True),
    "our DropPath": lambda: DropPath(P),
    "our function": lambda: Functional(functional.dropout),
    "Dropout1d": lambda: nn.Dropout1d(P),
    "Dropout2d": lambda: Images(nn.Dropout2d(P)),
    "Dropout3d": lambda: Images(nn.Sequential(nn.Unflatten(1, (2, 1)), nn.Dropout3d(P))),
    "AlphaDropout": lambda: nn.AlphaDropout(P),
    "FeatureAlphaDropout": lambda: nn.FeatureAlphaDropout(P),
    "windows": lambda: Windows(nn.Dropout(P)),
    "windows, function": lambda: Windows(Functional(F.dropout)),
    "F.dropout": lambda: Functional(F.dropout),
    "torch.dropout": lambda: Functional(torch.dropout),
    "F.dropout1d": lambda: Functional(F.dropout1d),
    "fused attention": Attention,
    **{
        f"MultiheadAttention {batch_first=} {need_weights=}": lambda b=batch_first, w=need_weights: First(
            MultiHead(b, w), time_first=not b
        )
        for batch_first in (True, False)
        for need_weights in (True, False)
    },
    **{
        f"{cls.__name__} {batch_first=}": lambda c=cls, b=batch_first: recurrent(c, b)
        for cls in (nn.LSTM, nn.GRU, nn.RNN)
        for batch_first in (True, False)
    },
    **{f"TransformerEncoderLayer {b=}": lambda b=b: encoder_layer(b) for b in (True, False)},
    "rand": lambda: Custom(lambda x, keep: torch.rand(x.shape) < keep),
    "rand, own generator": lambda: Custom(
        lambda x, keep: torch.rand(x.shape, generator=torch.Generator().manual_seed(3)) < keep
    ),
    "rand_like": lambda: Custom(lambda x, keep: torch.rand_like(x) < keep),
    "uniform_": lambda: Custom(lambda x, keep: torch.empty_like(x).uniform_(0, 2) < 2 * keep),
    "bernoulli_": lambda: Custom(lambda x, keep: x.new_empty(len(x), 1, DIM).bernoulli_(keep)),
    "bernoulli_ of a tensor": lambda: Custom(lambda x, keep: torch.empty_like(x).bernoulli_(torch.full((DIM,), keep))),
    "bernoulli": lambda: Custom(lambda x, keep: torch.bernoulli(torch.full_like(x, keep))),
    "bernoulli of a number": lambda: Custom(lambda x, keep: torch.bernoulli(x, keep)),
    "Bernoulli": lambda: Custom(lambda x, keep: torch.distributions.Bernoulli(keep).sample(x.shape)),
    "randn": lambda: Custom(lambda x, keep: torch.randn(*x.shape) > -0.5),
    "randn_like": lambda: Custom(lambda x, keep: torch.randn_like(x) > -0.5),
    "normal": lambda: Custom(lambda x, keep: torch.normal(0.0, 1.0, x.shape) > -0.5),
    "normal of a tensor": lambda: Custom(lambda x, keep: torch.normal(torch.ones_like(x), 2.0) > 0.0),
    "normal of tensors": lambda: Custom(lambda x, keep: torch.normal(torch.zeros(DIM), torch.ones_like(x)) > -0.5),
    "randint": lambda: Custom(lambda x, keep: torch.randint(10, x.shape) > 2),
    "randint from": lambda: Custom(lambda x, keep: torch.randint(2, 12, x.shape) > 4),
    "randint_like": lambda: Custom(lambda x, keep: torch.randint_like(x, 10) > 2),
    "exponential_": lambda: Custom(lambda x, keep: torch.empty_like(x).exponential_() > 0.3),
    "timm DropPath": lambda: of_timm("DropPath"),
    "timm PatchDropout": lambda: of_timm("PatchDropout", num_prefix_tokens=1),
    "torchvision StochasticDepth": lambda: of_torchvision("StochasticDepth", "row"),
    "transformers StableDropout": stable_dropout,
}
# Not equal when folded: what they do to a batch depends on all of it.
WHOLE_BATCH: dict[str, Callable[[], nn.Module]] = {
    "timm DropBlock": lambda: Images(of_timm("DropBlock2d", block_size=3)),
    "torchvision DropBlock": lambda: Images(of_torchvision("DropBlock2d", 3)),
    "torchvision StochasticDepth of the batch": lambda: of_torchvision("StochasticDepth", "batch"),
    "our DropPath of the batch": lambda: DropPath(P, "batch"),
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randn(BATCH, TOKENS, DIM, generator=torch.Generator().manual_seed(0))


def run(
    model: nn.Module,
    x: Tensor,
    number: int = 5,
    folds: int = 1,
    *,
    seed: int = 3,
    cls: type[SharedMasks] = SharedMasks,
    mode: Callable[[], AbstractContextManager[Any]] = torch.no_grad,
) -> Tensor:
    """The output of one pass, or of several that are folded into the batch."""
    sites = find_sites(model)
    with mode(), isolated_randomness(model), dropping(sites), cls(model, sites, seed) as masks:
        seed_everywhere(number)
        masks.begin(number, len(x) // folds, folds)
        output: Tensor = model(x)
        masks.check()
    return output


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return (MODELS | WHOLE_BATCH)[name]().eval()


# The checks.


def check_samples_share(name: str, cls: type[SharedMasks], x: Tensor) -> None:
    """Equal samples stay equal: all of them see the same network."""
    y = run(build(name), x[:1].repeat(BATCH, 1, 1), cls=cls)
    torch.testing.assert_close(y, y[:1].expand_as(y), rtol=1e-5, atol=1e-6)


def check_sizes(name: str, cls: type[SharedMasks], x: Tensor) -> None:
    """Neither the size of the batches nor their order nor who else is in them counts."""
    model = build(name)
    expected = run(model, x, cls=cls)
    for size in (7, 1):
        parts = [(start, run(model, x[start : start + size], cls=cls)) for start in reversed(range(0, BATCH, size))]
        for start, part in parts:
            torch.testing.assert_close(part, expected[start : start + size], rtol=1e-5, atol=1e-6)
            assert torch.equal(part == 0, expected[start : start + size] == 0)
    order = torch.randperm(BATCH)
    torch.testing.assert_close(run(model, x[order], cls=cls), expected[order], rtol=1e-5, atol=1e-6)


def check_folds(name: str, cls: type[SharedMasks], x: Tensor) -> None:
    model = build(name)
    expected = torch.cat([run(model, x, number, cls=cls) for number in (4, 5, 6)])
    folded = run(model, x.repeat(3, 1, 1), 4, 3, cls=cls)
    torch.testing.assert_close(folded, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(folded == 0, expected == 0)


def check_passes_differ(name: str, cls: type[SharedMasks], x: Tensor) -> None:
    model = build(name)
    outputs = [run(model, x, number, cls=cls) for number in range(12)]
    assert any(not torch.equal(output, outputs[0]) for output in outputs)
    assert torch.equal(run(model, x, 0, cls=cls), outputs[0])
    assert any(not torch.equal(run(model, x, number, seed=4, cls=cls), outputs[number]) for number in range(12))


CHECKS = (check_samples_share, check_sizes, check_folds, check_passes_differ)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", MODELS)
def test_every_way_to_draw_is_shared(name: str, check: Callable[..., None], x: Tensor) -> None:
    check(name, SharedMasks, x)


@pytest.mark.parametrize("check", [check_samples_share, check_sizes, check_passes_differ])
@pytest.mark.parametrize("name", WHOLE_BATCH)
def test_what_looks_at_the_whole_batch_is_shared_too(name: str, check: Callable[..., None], x: Tensor) -> None:
    check(name, SharedMasks, x)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("name", MODELS)
def test_the_mode_of_autograd_does_not_count(name: str, mode: Any, x: Tensor) -> None:
    model = build(name)
    expected = run(model, x)
    with torch.inference_mode(mode is torch.inference_mode):
        actual = run(model, x, mode=mode)
    torch.testing.assert_close(actual.detach().clone(), expected, rtol=1e-5, atol=1e-6)


class WholeShape(SharedMasks):
    """Draws for each sample."""

    def _split(self, module: nn.Module, shape: Any) -> None:
        return None


class WithoutPass(SharedMasks):
    def begin(self, number: int, batch_size: int, folds: int = 1) -> None:
        super().begin(0, batch_size, folds)


class OneMaskForAllFolds(SharedMasks):
    def begin(self, number: int, batch_size: int, folds: int = 1) -> None:
        super().begin(number, batch_size, folds)
        self._passes = [number] * folds  # type: ignore[assignment]


class BySizeOfTheBatch(SharedMasks):
    def begin(self, number: int, batch_size: int, folds: int = 1) -> None:
        super().begin(number, batch_size, folds)
        self.seed = batch_size


class FoldsMixed(SharedMasks):
    """Takes the rows of folded passes for sample-major."""

    def _split(self, module: nn.Module, shape: Any) -> Any:
        split = super()._split(module, shape)
        assert split is not None
        return masks_module._Split(split.dim, split.size, split.folds, split.rest)


PLANTED: dict[str, tuple[type[SharedMasks], Callable[..., None]]] = {
    "a mask for each sample": (WholeShape, check_samples_share),
    "one mask for all passes": (WithoutPass, check_passes_differ),
    "one mask for all folds": (OneMaskForAllFolds, check_folds),
    "masks by the size of the batch": (BySizeOfTheBatch, check_sizes),
    "rows of passes mixed": (FoldsMixed, check_folds),
}


@pytest.mark.parametrize("name", ["nn.Dropout", "F.dropout", "fused attention", "LSTM batch_first=True"])
@pytest.mark.parametrize("bug", PLANTED)
def test_every_planted_bug_is_killed(bug: str, name: str, x: Tensor) -> None:
    cls, check = PLANTED[bug]
    with pytest.raises((AssertionError, RuntimeError)):
        check(name, cls, x)


# The law.


def masks_of(
    num_passes: int, p: float, layers: Callable[[], nn.Module] = lambda: nn.Dropout(), seed: int = 3
) -> Tensor:
    """Kept coins of all passes, (passes, sites, calls, coins)."""
    model = nn.ModuleList([layers(), layers()])
    sites = find_sites(model)
    kept = []
    with torch.no_grad(), dropping(sites, [p] * len(sites)), SharedMasks(model, sites, seed) as masks:
        for number in range(num_passes):
            masks.begin(number, batch_size=2)
            kept += [layer(torch.ones(2, 1000))[0] for layer in model for _ in range(2)]
    return torch.stack(kept).view(num_passes, 2, 2, 1000)


def check_law(draw: Callable[[int, float], Tensor], p: float) -> None:
    y = draw(100, p)
    kept = y != 0
    centred = kept.double() - (1 - p)
    for dim, what in enumerate(("passes", "sites", "calls", "coins")):
        size = centred.shape[dim]
        products = centred.narrow(dim, 0, size - 1) * centred.narrow(dim, 1, size - 1)
        z = float(products.sum()) / (sqrt(products.numel()) * p * (1 - p))
        assert abs(z) < Z_LIMIT, f"{what} are correlated"
    assert stats.binomtest(int((~kept).sum()), kept.numel(), p).pvalue > P_LIMIT, "rate"
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 1 / (1 - p)))


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("layers", [nn.Dropout, Dropout, lambda: Functional(F.dropout)])
def test_the_law(layers: Any, p: float) -> None:
    check_law(lambda num_passes, p: masks_of(num_passes, p, layers), p)


@pytest.mark.parametrize("part", ["pass", "site", "call"])
def test_a_key_that_lacks_a_part_is_killed(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    position = ("pass", "site", "call").index(part) + 1

    def without(*parts: int) -> int:
        return derive(*parts[:position], *parts[position + 1 :])

    derive = masks_module.derive_seed
    monkeypatch.setattr(masks_module, "derive_seed", without)
    with pytest.raises(AssertionError, match=part):
        check_law(masks_of, 0.5)


@pytest.mark.parametrize(
    "mutant", [lambda n, p: masks_of(n, p + 0.01), lambda n, p: masks_of(n, p) * (1 - p)], ids=["rate", "scale"]
)
def test_another_rate_or_scale_is_killed(mutant: Any) -> None:
    with pytest.raises(AssertionError):
        check_law(mutant, 0.3)


@pytest.mark.parametrize("layers", [nn.Dropout, Dropout])
def test_ends_of_the_range(layers: Any) -> None:
    assert not masks_of(2, 1.0, layers).any()
    assert (masks_of(2, 0.0, layers) == 1).all()
    model = layers(0.5)
    values = torch.tensor([[float("inf"), float("nan"), 1.0, -2.0]]).repeat(2, 50)
    y = run(model, values)
    dropped = y[0] == 0
    assert dropped.any()
    torch.testing.assert_close(y[:, ~dropped], 2 * values[:, ~dropped], equal_nan=True)


def test_complex_values_are_dropped_for_all_samples_too() -> None:
    y = run(Dropout(0.5), torch.ones(4, 50, dtype=torch.complex64))
    assert torch.equal(y, y[:1].expand_as(y))
    assert set(y[0].tolist()) == {0j, 2 + 0j}


def test_masks_do_not_depend_on_the_dtype_or_the_memory_format() -> None:
    x = torch.ones(5, 8, 9, 10)
    expected = run(nn.Dropout(P), x) == 0
    for other in (x.bfloat16(), x.half(), x.double(), x.to(memory_format=torch.channels_last)):
        y = run(nn.Dropout(P), other)
        assert y.dtype == other.dtype
        assert y.stride() == other.stride()
        assert torch.equal(y == 0, expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(run(nn.Dropout(P), x) == 0, expected)


def test_a_golden_mask() -> None:
    """Old results can be repeated: the key is an interface."""
    y = run(nn.Dropout(0.5), torch.ones(1, 16), number=7, seed=11)
    assert (y[0] != 0).int().tolist() == GOLDEN


GOLDEN = [0, 0, 0, 0, 1, 1, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0]


# Computed by hand.


class Recording(SharedMasks):
    """Keeps what it has drawn for each pass."""

    drawn: list[Tensor]

    def begin(self, number: int, batch_size: int, folds: int = 1) -> None:
        super().begin(number, batch_size, folds)
        type(self).drawn = []

    def _draw(self, *args: Any) -> tuple[Tensor, Tensor]:
        x, draws = super()._draw(*args)
        type(self).drawn.append(draws.clone())
        return x, draws


def test_fused_attention_is_attention_with_a_mask_for_all(x: Tensor) -> None:
    y = run(build("fused attention"), x, cls=Recording)
    q = x.view(BATCH, TOKENS, 2, DIM // 2).transpose(1, 2)
    weights = (q @ q.transpose(-1, -2) / (DIM // 2) ** 0.5).softmax(-1)
    (kept,) = Recording.drawn
    assert kept.shape == (1, 2, TOKENS, TOKENS)
    torch.testing.assert_close(y, (weights * kept / (1 - P)) @ q)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
def test_multi_head_attention_is_attention_with_a_mask_for_all(
    batch_first: bool, need_weights: bool, x: Tensor
) -> None:
    name = f"MultiheadAttention {batch_first=} {need_weights=}"
    model: Any = build(name)
    y = run(model, x, cls=Recording)
    attend = model.layer.attend
    qkv = F.linear(x, attend.in_proj_weight, attend.in_proj_bias).view(BATCH, TOKENS, 3, 3, DIM // 3)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    (kept,) = Recording.drawn
    weights = (q @ k.transpose(-1, -2) / (DIM // 3) ** 0.5).softmax(-1) * kept.view(1, 3, TOKENS, TOKENS) / (1 - P)
    torch.testing.assert_close(y, attend.out_proj((weights @ v).transpose(1, 2).flatten(2)))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("cls", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_are_single_ones_with_masks_between(cls: Any, batch_first: bool, x: Tensor) -> None:
    model: Any = build(f"{cls.__name__} {batch_first=}")
    y = run(model, x, cls=Recording)
    assert [kept.shape for kept in Recording.drawn] == [(TOKENS, 1, 5)] * 2
    hidden = x.transpose(0, 1)
    for index in range(3):
        single = cls(hidden.shape[-1], 5)
        for key in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(single, f"{key}_l0").data = getattr(model.layer, f"{key}_l{index}").data
        hidden = single(hidden)[0]
        hidden = hidden * Recording.drawn[index] / (1 - P) if index < 2 else hidden
    torch.testing.assert_close(y, hidden.transpose(0, 1))


def test_alpha_dropout_is_its_formula(x: Tensor) -> None:
    y = run(build("AlphaDropout"), x, cls=Recording)
    (kept,) = Recording.drawn
    saturation = -1.7580993408473766
    scale = ((1 - P) * (1 + P * saturation**2)) ** -0.5
    torch.testing.assert_close(y, scale * (torch.where(kept > 0, x, saturation) - saturation * P))


def test_patch_dropout_drops_the_same_patches(x: Tensor) -> None:
    y = run(build("timm PatchDropout"), x, cls=Recording)
    (noise,) = Recording.drawn
    kept = noise[0].argsort()[: int((TOKENS - 1) * (1 - P))] + 1
    assert torch.equal(y, x[:, [0, *kept.tolist()]])


@pytest.mark.parametrize("name", ["timm DropPath", "torchvision StochasticDepth", "our DropPath"])
def test_a_drop_path_tosses_one_coin_for_a_pass(name: str, x: Tensor) -> None:
    model = build(name)
    outputs = torch.stack([run(model, x, number) for number in range(200)])
    whole = (outputs != 0).flatten(1)
    assert torch.equal(whole.all(1), whole.any(1))
    assert stats.binomtest(int((~whole[:, 0]).sum()), 200, P).pvalue > P_LIMIT


def test_a_transformer_layer_knows_time_from_batch(x: Tensor) -> None:
    """As many tokens as samples: only the layer can tell."""
    square = torch.randn(TOKENS, TOKENS, DIM)
    model = build("TransformerEncoderLayer b=False")
    expected = torch.cat([run(model, part) for part in square.split(1)])
    torch.testing.assert_close(run(model, square), expected, rtol=1e-5, atol=1e-6)


# Which module draws.


class Nested(nn.Module):
    """Draws itself, before and after a child that does so, too."""

    def __init__(self) -> None:
        super().__init__()
        self.p = P
        self.inner = nn.Sequential(nn.Linear(DIM, DIM), nn.Dropout(P))
        self.other = Functional(F.dropout)

    def forward(self, x: Tensor) -> Tensor:
        y = F.dropout(x, self.p, self.training)
        y = self.other(self.inner(y))
        return F.dropout(y, self.p, self.training)


def test_a_module_around_another_draws_by_its_own_name(x: Tensor) -> None:
    model = Nested().eval()
    sites = find_sites(model)
    names = {id(user.module): user.name for site in sites for user in site.users}

    class Named(SharedMasks):
        def _draw(self, module: nn.Module, *args: Any) -> tuple[Tensor, Tensor]:
            order.append(names[id(module)])
            return super()._draw(module, *args)

    order: list[str] = []
    run(model, x, cls=Named)
    assert order == ["p", "inner.1", "other.p", "p"]
    for check in (check_samples_share, check_sizes, check_folds, check_passes_differ):
        MODELS["nested"] = Nested
        try:
            check("nested", SharedMasks, x)
        finally:
            del MODELS["nested"]


def test_only_the_sites_asked_for_are_lent_anything() -> None:
    model = nn.Sequential(nn.Dropout(P), nn.Dropout(P))
    with SharedMasks(model, find_sites(model, "0"), 0):
        assert ["forward" in vars(layer) for layer in model] == [True, False]


def test_a_compiled_model_runs_uncompiled(x: Tensor) -> None:
    model = nn.Sequential(nn.Linear(DIM, DIM), nn.Dropout(P), Functional(F.dropout)).eval()
    graphs = []

    def count(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled: Any = torch.compile(model, backend=count)
    with torch.no_grad():
        compiled(x)
        before = len(graphs)
        assert torch.equal(run(compiled, x), run(model, x))
        compiled(x)
    assert len(graphs) == before == 1
    torch.compiler.reset()


class LayerDrop(nn.Module):
    def __init__(self, toss: Callable[[], Any]) -> None:
        super().__init__()
        self.layerdrop, self.toss = 0.5, toss
        self.layers = nn.ModuleList(nn.Linear(DIM, DIM) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            coin = self.toss()
            if self.training and coin < self.layerdrop:
                continue
            x = layer(x)
        return x


@pytest.mark.parametrize("toss", [lambda: torch.rand([]), random.random, lambda: np.random.uniform(0, 1)])  # noqa: NPY002
def test_layer_drop_tosses_one_coin_for_all_samples(toss: Any, x: Tensor) -> None:
    model = LayerDrop(toss).eval()
    assert [site.kind for site in find_sites(model)] == ["layer_drop"]
    expected = run(model, x)
    torch.testing.assert_close(torch.cat([run(model, part) for part in x.split(7)]), expected)
    assert any(not torch.equal(run(model, x, number), expected) for number in range(12))


# Refusals.


def test_masks_are_one_of_two_kinds() -> None:
    check_masks("shared")
    check_masks("independent")
    for bad in ("same", None, True):
        with pytest.raises(ValueError, match=r"Expected `masks` to be one of \('independent', 'shared'\), but got"):
            check_masks(bad)


def test_several_threads_are_refused() -> None:
    model = nn.DataParallel(nn.Sequential(nn.Dropout(P)))
    with pytest.raises(ValueError, match="but got DataParallel"):
        SharedMasks(model, find_sites(model), 0)


def test_packed_sequences_are_refused_by_name() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(DIM, 5, num_layers=2, dropout=P)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(pack_padded_sequence(x.transpose(0, 1), [TOKENS] * len(x)))[1][0]

    with pytest.raises(ValueError, match=r"but got a PackedSequence at `rnn`"):
        run(Packed(), torch.randn(3, TOKENS, DIM))


def test_a_draw_without_a_batch_is_refused_by_name(x: Tensor) -> None:
    model = nn.Sequential(nn.Linear(DIM, DIM), Custom(lambda x, keep: torch.rand(5) < keep))
    with pytest.raises(ValueError, match=r"Expected `1` to draw .* a shape of \(5,\), in which no dimension need be"):
        run(model, x)
    model = nn.Sequential(nn.Unflatten(1, (TOKENS, 1)), Functional(lambda x, p, training: F.dropout(x[0], p, training)))
    with pytest.raises(ValueError, match="no dimension need be the batch"):
        run(model, x)


class Table(nn.Module):
    """Drops rows of a table of positions, as many as there are samples, or a multiple of them."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.table, self.drop = nn.Parameter(torch.randn(rows, DIM)), nn.Dropout(P)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.drop(self.table + 0).T


class TimeFirst(nn.Module):
    """Drops where the batch is dimension 1, whatever it looks like."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.drop = nn.LSTM(DIM, DIM), nn.Dropout(P)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.rnn(x.transpose(0, 1))[0]).transpose(0, 1)


class Steps(nn.Module):
    """Calls its dropout once for each step."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(P)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.drop(step[None])[0] for step in x.unbind(1)], 1)


UNKNOWN: dict[str, Callable[[], nn.Module]] = {
    "a table of the size of the batch": lambda: Table(TOKENS),
    "a table of a multiple": lambda: Table(2 * TOKENS),
    "time that looks like the batch": TimeFirst,
    "more calls than were seen": Steps,
}


def learn(model: nn.Module, x: Tensor) -> None:
    sites = find_sites(model)
    with torch.no_grad(), isolated_randomness(model), dropping(sites), SharedMasks(model, sites, 9) as masks:

        def of_rows(rows: int) -> None:
            masks.begin(0, rows)
            model(x[:rows])

        masks.learn(of_rows, (len(x), len(x) - 1))


@pytest.mark.parametrize("first", [2, 3, TOKENS])
@pytest.mark.parametrize("name", UNKNOWN)
def test_where_the_samples_stand_is_learned_from_two_sizes(name: str, first: int, x: Tensor) -> None:
    torch.manual_seed(0)
    model = UNKNOWN[name]().eval()
    x = x[:12] if TOKENS < 12 else x
    learn(model, x[:first, :2] if name.startswith("more") else x[:first])
    expected = run(model, x)
    for size in (1, 3, TOKENS):
        parts = torch.cat([run(model, part) for part in x.split(size)])
        torch.testing.assert_close(parts, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", list(UNKNOWN)[:3])
def test_without_learning_they_are_mistaken_or_refused(name: str, x: Tensor) -> None:
    torch.manual_seed(0)
    model = UNKNOWN[name]().eval()
    with pytest.raises((AssertionError, ValueError)):
        torch.testing.assert_close(torch.cat([run(model, part) for part in x.split(TOKENS)]), run(model, x))


def test_a_table_cannot_be_folded(x: Tensor) -> None:
    model = Table(TOKENS).eval()
    learn(model, x)
    with pytest.raises(ValueError, match="no dimension need be the batch; leave `chunk_size` out"):
        run(model, x, folds=3)


def test_a_mask_of_the_batch_cannot_be_folded(x: Tensor) -> None:
    with pytest.raises(ValueError, match=r"draw for 3 times 7 samples.*leave `chunk_size` out"):
        run(DropPath(P, "batch"), x, folds=3)


@pytest.mark.parametrize(
    ("draw", "source"),
    [
        (lambda x, keep: torch.from_numpy(np.random.rand(*x.shape)) < keep, "numpy"),  # noqa: NPY002
        (lambda x, keep: float(random.random() < keep), "random"),
        (
            lambda x, keep: F.one_hot(torch.multinomial(torch.ones(len(x), TOKENS), 1), DIM),
            "torch by itself: `Custom` .multinomial",
        ),
    ],
    ids=["numpy", "random", "multinomial"],
)
def test_draws_that_cannot_be_shared_raise(draw: Any, source: str, x: Tensor) -> None:
    with pytest.raises(RuntimeError, match=rf"something drew from {source}") as error:
        run(Custom(draw), x)
    assert "Custom" in str(error.value)


def test_a_module_that_is_no_site_raises(x: Tensor) -> None:
    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn_like(x)

    with pytest.raises(RuntimeError, match=r"something drew from torch by itself: .*a module that is no site"):
        run(nn.Sequential(nn.Dropout(P), Noise()), x)


# Giving back.


class Interrupted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise KeyboardInterrupt


def footprint(model: nn.Module) -> list[tuple[str, list[str]]]:
    return [(name, sorted(vars(module))) for name, module in model.named_modules()]


def test_everything_is_given_back_after_an_interruption(x: Tensor) -> None:
    model = Nested()
    model.other.register_forward_hook(lambda *_: Interrupted()(x))
    lent = lambda x: x  # noqa: E731
    model.inner[1].forward = lent  # type: ignore[method-assign]
    before, state = footprint(model), torch.get_rng_state()
    for masks in (lambda sites: SharedMasks(model, sites, 0), fast_masks):
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012
            sites = find_sites(model)
            with ExitStack() as stack:
                entered = stack.enter_context(masks(sites))
                if entered is not None:
                    entered.begin(0, BATCH)
                    stack.callback(entered.check)
                model(x)
        assert footprint(model) == before
        assert model.inner[1].forward is lent
        assert torch._C._len_torch_dispatch_stack() == 0
        torch.set_rng_state(state)


def test_a_failure_on_entering_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Dropout(P), nn.Dropout(P), Functional(F.dropout))
    masks = SharedMasks(model, find_sites(model), 0)
    monkeypatch.setattr(
        masks, "_watched", lambda module: masks.missing if module is model[2] else SharedMasks._watched(masks, module)
    )
    with pytest.raises(AttributeError):
        masks.__enter__()
    assert not any("forward" in vars(module) for module in model.modules())


def test_nothing_global_is_drawn_and_masks_may_be_entered_twice(x: Tensor) -> None:
    model = Nested()
    sites = find_sites(model)
    masks = SharedMasks(model, sites, 0)
    state = torch.get_rng_state()
    outputs = []
    for _ in range(2):
        with torch.no_grad(), masks:
            masks.begin(0, BATCH)
            outputs.append(model(x))
    assert torch.equal(*outputs)
    assert torch.equal(torch.get_rng_state(), state)


# Independent masks.


def test_fast_masks_draw_as_our_own_layer() -> None:
    model = nn.Sequential(nn.Dropout(P), Dropout(P))
    x = torch.ones(100, 100)
    with fast_masks(find_sites(model)):
        outputs = []
        for layer in model:
            torch.manual_seed(1)
            outputs.append(layer(x))
    assert torch.equal(*outputs)
    assert len(outputs[0].unique(dim=0)) == 100
    torch.manual_seed(1)
    assert not torch.equal(model[0](x), outputs[0])  # torch's own again


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Dropout(P), torch.ones(10, 10)),
        (nn.Dropout(1e-4), torch.ones(100, 100)),
        (nn.Dropout(P).eval(), torch.ones(100, 100)),
        (nn.Dropout(1.0), torch.ones(100, 100)),
        (nn.Dropout2d(P), torch.ones(100, 10, 10, 1)),
        (nn.Sequential(Functional(F.dropout)), torch.ones(100, 100)),
    ],
    ids=["few", "a small rate", "evaluation", "rate 1", "another class", "a function"],
)
def test_fast_masks_leave_the_rest_to_torch(layer: nn.Module, x: Tensor) -> None:
    outputs = []
    for masks in (fast_masks(find_sites(layer)), ExitStack()):
        with masks:
            torch.manual_seed(1)
            outputs.append(layer(x))
    assert torch.equal(*outputs)


def test_fast_masks_pass_over_what_is_compiled_or_lent() -> None:
    model = nn.Sequential(nn.Dropout(P), nn.Dropout(P), nn.Dropout(P))
    model[0].compile(backend="eager")
    model[1].forward = lambda x: x  # type: ignore[method-assign]
    own = model[1].forward
    with fast_masks(find_sites(model)):
        assert ["forward" in vars(layer) for layer in model] == [False, True, True]
        assert model[1].forward is own
    torch.compiler.reset()

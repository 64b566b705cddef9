"""The residual wrapper that saves what it drops: its law, what its branch is given, gradients, and every way to train.

The checks of the law take what a layer did, so they also judge planted bugs: every mutant must fail one of them. They
draw from a fixed seed; under fresh seeds the chance of a false alarm of one check is about 1e-6.
"""

import copy
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.utils.checkpoint
from scipy import stats
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from lightning_dropout.nn import DropPath, StochasticDepth, functional
from lightning_dropout.nn.functional import drop_residual
from lightning_dropout.nn.subset import Subset, add_subset, draw_subset, select

Z_LIMIT = 5.5  # for the largest of up to 129 numbers
P_LIMIT = 2.5e-6
NUM_RUNS = 1_500
MODES: Any = ("subset", "batch")
CASES = [(batch, p) for batch in (1, 2, 3, 8, 64) for p in (0.4, 0.7)]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Scale(nn.Module):
    """``weight * x``: every number of a run is linear in which samples are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x


# The law: mean and variance of the output and of both gradients. Each check raises AssertionError on a wrong one.


class Runs(NamedTuple):
    """What many runs added to the samples, and their gradients, each (runs, numbers), less what is not random."""

    added: Tensor
    input_grads: Tensor
    weight_grads: Tensor


def values(batch: int) -> tuple[Tensor, Tensor]:
    """The samples, and the gradient that comes back to each."""
    return torch.linspace(1, 2, batch), torch.linspace(-1, 3, batch)


def repeated(layer: nn.Module, batch: int) -> Runs:
    x, upstream = values(batch)
    x.requires_grad_()
    branch = next(part for part in layer.modules() if isinstance(part, Scale))
    rows: list[tuple[Tensor, Tensor, Tensor]] = []
    for _ in range(NUM_RUNS):
        y = layer(x)
        grads = (torch.zeros_like(x), torch.zeros(()))
        if y.grad_fn is not None:  # else nothing of the branch has run
            found = torch.autograd.grad(y, (x, branch.weight), upstream, allow_unused=True)
            grads = tuple(zeros if grad is None else grad for grad, zeros in zip(found, grads, strict=True))
        rows.append(((y - x).detach(), grads[0] - upstream, grads[1][None]))
    return Runs(*(torch.stack(parts).double() for parts in zip(*rows, strict=True)))


def expected(batch: int) -> Runs:
    """The same without dropping."""
    x, upstream = (each.double() for each in values(batch))
    return Runs(2 * x, 2 * upstream, (x * upstream).sum()[None])


def covariance(batch: int, p: float, mode: str) -> Tensor:
    """Of what the samples are multiplied by, 0 or ``1 / keep``: on the diagonal as in any stochastic depth.

    Two samples are kept together with the probability that both are among the ``k`` drawn ones, ``k (k - 1)`` of
    ``batch (batch - 1)`` pairs, over the two values of ``k``; with one coin for all, whenever the coin says so.
    """
    keep = 1 - p
    lowest = int(batch * keep)
    more = batch * keep - lowest
    pairs = (1 - more) * lowest * (lowest - 1) + more * (lowest + 1) * lowest
    together = keep if mode == "batch" else keep**2 if mode == "row" else pairs / max(1, batch * (batch - 1))
    matrix = torch.full((batch, batch), together / keep**2 - 1, dtype=torch.float64)
    return matrix.fill_diagonal_(1 / keep - 1)


def check_mean(runs: Runs, batch: int, p: float, mode: str) -> None:
    for name, got, mean in zip(Runs._fields, runs, expected(batch), strict=True):
        sigma = variance_of(name, batch, p, mode).sqrt() / NUM_RUNS**0.5
        z = (got.mean(0) - mean).abs() / sigma.clamp_min(1e-6)  # it is 0 for what is the same in every run
        assert z.max() < Z_LIMIT, f"mean of {name} is off, z={float(z.max()):.0f}"


def check_variance(runs: Runs, batch: int, p: float, mode: str) -> None:
    for name, got, mean in zip(Runs._fields, runs, expected(batch), strict=True):
        squares = got.square()  # about 0: about the mean all of them are 1 at p = 0.5, without any spread
        wanted = variance_of(name, batch, p, mode) + mean.square()
        z = (squares.mean(0) - wanted).abs() / (squares.std(0) / NUM_RUNS**0.5).clamp_min(1e-6)
        assert z.max() < Z_LIMIT, f"variance of {name} is off, z={float(z.max()):.0f}"


def variance_of(name: str, batch: int, p: float, mode: str) -> Tensor:
    x, upstream = (each.double() for each in values(batch))
    matrix = covariance(batch, p, mode)
    if name == "weight_grads":
        return ((x * upstream) @ matrix @ (x * upstream))[None]
    return matrix.diagonal() * (2 * (x if name == "added" else upstream)).square()


def check_marginal(runs: Runs, batch: int, p: float, mode: str) -> None:
    """Each sample by itself is added or left alone as by a coin of its own."""
    ratios = runs.added / expected(batch).added
    kept = ratios > 0
    assert torch.allclose(ratios[kept], torch.tensor(1 / (1 - p), dtype=torch.float64)), "the scale is wrong"
    for count in kept.sum(0).tolist():
        p_value = stats.binomtest(count, NUM_RUNS, 1 - p).pvalue
        assert p_value > P_LIMIT / batch, f"a sample is kept in {count / NUM_RUNS} instead of {1 - p}"


LAW = (check_mean, check_variance, check_marginal)


class Residual(nn.Module):
    """A layer that drops, around the branch."""

    def __init__(self, residual: Callable[[Tensor, nn.Module], Tensor]) -> None:
        super().__init__()
        self.residual, self.branch = residual, Scale()

    def forward(self, x: Tensor) -> Tensor:
        return self.residual(x, self.branch)


def check_law(layer: nn.Module, batch: int, p: float, mode: str) -> None:
    runs = repeated(layer, batch)
    for check in LAW:
        check(runs, batch, p, mode)


@pytest.mark.parametrize(("batch", "p"), CASES)
@pytest.mark.parametrize("mode", ["subset", "batch", "row"])
def test_output_and_gradients_are_unbiased_with_the_variance_of_the_formula(mode: Any, batch: int, p: float) -> None:
    check_law(StochasticDepth(Scale(), p, mode), batch, p, mode)


@pytest.mark.parametrize("mode", MODES)
def test_drop_path_residual_obeys_the_same_law(mode: Any) -> None:
    check_law(Residual(DropPath(0.4, mode).residual), 3, 0.4, mode)
    alone = DropPath(0.4, mode)
    check_law(Residual(lambda x, branch: x + alone.residual(x, branch, 0)), 3, 0.4, mode)


def test_timm_obeys_the_law_of_row_mode() -> None:
    """A control of the checks."""
    timm_drop = pytest.importorskip("timm.layers").DropPath(0.4)
    check_law(Residual(lambda x, branch: x + timm_drop(branch(x))), 3, 0.4, "row")


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_each_sample_sees_the_law_of_row_mode_and_of_timm(batch: int) -> None:
    """Sample by sample, the counts of the three are from one distribution."""
    timm_drop = pytest.importorskip("timm.layers").DropPath(0.4)
    counts = []
    for layer in (
        StochasticDepth(Scale(), 0.4),
        StochasticDepth(Scale(), 0.4, "row"),
        Residual(lambda x, branch: x + timm_drop(branch(x))),
    ):
        kept = (repeated(layer, batch).added > 0).sum(0)
        counts.append(torch.stack([kept, NUM_RUNS - kept]))
    for sample in range(batch):
        table = torch.stack([count[:, sample] for count in counts])
        assert stats.chi2_contingency(table.numpy()).pvalue > P_LIMIT


# Planted bugs.

DRAW, ADD = draw_subset, add_subset


def draws(change: Callable[[Subset | None, int], Subset | None]) -> dict[str, Any]:
    """A draw that is changed."""

    def draw(batch: int, *args: Any, **kwargs: Any) -> Subset | None:
        return change(DRAW(batch, *args, **kwargs), batch)

    return {"draw_subset": draw}


def dinov2(batch: int, drop_prob: Any, *args: Any, **kwargs: Any) -> Subset:
    """A number that is rounded down, and rescaled by the share that this is."""
    size = max(int(batch * (1 - drop_prob())), 1)
    return Subset(torch.randperm(batch)[:size], None, batch / size)


def add_to_others(skip: Tensor, residual: Tensor, drawn: Subset, batch_dim: int) -> Tensor:
    assert drawn.samples is not None
    return ADD(skip, residual, drawn._replace(samples=(drawn.samples + 1) % len(skip)), batch_dim)


def nominal(drawn: Subset | None, batch: int) -> Subset | None:
    return None if drawn is None else drawn._replace(scale=1.0)


def first_ones(drawn: Subset | None, batch: int) -> Subset | None:
    if drawn is None or drawn.samples is None:
        return drawn
    return drawn._replace(samples=torch.arange(len(drawn.samples)))


# What of the function is replaced, and the check that must notice it at batch 3 and 0.8; others may, too.
MUTANTS: dict[str, tuple[dict[str, Any], Any]] = {
    "rounded down: variance": ({"draw_subset": dinov2}, check_variance),
    "rounded down: what a sample sees": ({"draw_subset": dinov2}, check_marginal),
    "not scaled": (draws(nominal), check_mean),
    "padding counts": (draws(lambda drawn, batch: drawn and drawn._replace(kept=None)), check_mean),
    "the first ones": (draws(first_ones), check_mean),
    "added to other samples": ({"add_subset": add_to_others}, check_mean),
    "not dropped": (draws(lambda drawn, batch: None), check_variance),
    "no gradient of the branch": (
        {"add_subset": lambda skip, residual, *rest: ADD(skip, residual.detach(), *rest)},
        check_mean,
    ),
}


def plant(monkeypatch: pytest.MonkeyPatch, parts: dict[str, Any]) -> None:
    for name, part in parts.items():
        monkeypatch.setattr(functional, name, part)


@pytest.mark.parametrize("bug", MUTANTS)
def test_every_planted_bug_is_killed(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parts, check = MUTANTS[bug]
    plant(monkeypatch, parts)
    runs = repeated(StochasticDepth(Scale(), 0.8), 3)
    with pytest.raises(AssertionError):
        check(runs, 3, 0.8, "subset")


@pytest.mark.parametrize(("batch", "p"), CASES)
def test_dinov2s_number_fails_wherever_it_is_not_whole(batch: int, p: float, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, {"draw_subset": dinov2})
    runs = repeated(StochasticDepth(Scale(), p), batch)
    with pytest.raises(AssertionError):
        check_marginal(runs, batch, p, "subset")


def test_the_mutant_without_a_bug_survives(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, draws(lambda drawn, batch: drawn))
    check_law(StochasticDepth(Scale(), 0.8), 3, 0.8, "subset")


# Given what is kept, the same as running all and dropping some.


class Attention(nn.Module):
    """Tokens look at one another; samples do not."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x, x, need_weights=False)[0]


BRANCHES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.GELU()), (4,)),
    "attention": (Attention, (5, 4)),
    "conv": (lambda: nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Tanh()), (4, 5, 5)),
}
# What is run of a batch of 5, and how many of these count.
DRAWN = {"some": ([3, 0, 4], 3), "padded": ([2, 1], 1), "none": ([2], 0), "all": ([4, 2, 0, 1, 3], 5)}


def set_draw(monkeypatch: pytest.MonkeyPatch, samples: Sequence[int], num_kept: int, scale: float) -> None:
    kept = torch.arange(len(samples)) < num_kept
    drawn = Subset(torch.tensor(samples), None if kept.all() else kept, scale)
    monkeypatch.setattr(functional, "draw_subset", lambda *args, **kwargs: drawn)


@pytest.mark.parametrize("shortcut", ["none", "module", "nothing"])
@pytest.mark.parametrize("drawn", DRAWN)
@pytest.mark.parametrize("name", BRANCHES)
def test_given_the_samples_it_is_row_mode(
    name: str, drawn: str, shortcut: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, shape = BRANCHES[name]
    samples, num_kept = DRAWN[drawn]
    branch, extra = make().double(), nn.Linear(shape[-1], shape[-1]).double()
    skip: Any = {"none": None, "module": extra, "nothing": 0}[shortcut]
    inputs = torch.randn(5, *shape, dtype=torch.float64, requires_grad=True)
    parameters = [*branch.parameters(), *(extra.parameters() if shortcut == "module" else ())]
    upstream = torch.randn_like(inputs)
    mask = torch.zeros(5, *[1] * len(shape), dtype=torch.float64)
    mask[samples[:num_kept]] = 2.5

    start = {"none": inputs, "module": extra(inputs), "nothing": 0.0}[shortcut]
    by_hand = start + mask * branch(inputs)
    set_draw(monkeypatch, samples, num_kept, 2.5)
    got = drop_residual(inputs, branch, 0.6, mode="subset", shortcut=skip)
    torch.testing.assert_close(got, by_hand)
    for one, other in zip(
        torch.autograd.grad(got, (inputs, *parameters), upstream),
        torch.autograd.grad(by_hand, (inputs, *parameters), upstream),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_channels_last_stays() -> None:
    layer = StochasticDepth(nn.Conv2d(4, 4, 3, padding=1), 0.5).to(memory_format=torch.channels_last)
    x = torch.randn(6, 4, 5, 5).to(memory_format=torch.channels_last)
    layouts = []
    layer.branch.register_forward_pre_hook(
        lambda module, args: layouts.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    y = layer(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert layouts == [True]
    alone = DropPath(0.5, "subset").residual(x, layer.branch, 0)
    assert alone.is_contiguous(memory_format=torch.channels_last)


# Exactness.


@pytest.mark.parametrize("mode", ["subset", "batch", "row"])
def test_rate_0_and_evaluation_add_the_branch_as_it_is(mode: Any) -> None:
    x = torch.randn(5, 3)
    layer = StochasticDepth(nn.Linear(3, 3), 0.0, mode)
    before = torch.get_rng_state()
    assert torch.equal(layer(x), x + layer.branch(x))
    layer.drop_prob = 0.9
    assert torch.equal(layer.eval()(x), x + layer.branch(x))
    assert torch.equal(layer.drop_path.residual(x, layer.branch, 0), layer.branch(x))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_rate_1_leaves_the_input_with_gradients_of_zero(batch: int) -> None:
    x = torch.randn(batch, 3, requires_grad=True)
    layer = StochasticDepth(nn.Linear(3, 3), 1.0)
    with torch.no_grad():
        layer.branch.bias.fill_(float("inf"))  # dropped, it is nothing
    y = layer(x)
    assert torch.equal(y, x)
    y.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    for parameter in layer.parameters():
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))
    alone = layer.drop_path.residual(x, layer.branch, 0)
    assert torch.equal(alone, torch.zeros_like(x))


@pytest.mark.parametrize("mode", ["subset", "batch", "row"])
def test_no_samples_and_scale_by_keep(mode: Any) -> None:
    layer = StochasticDepth(nn.Linear(3, 3), 0.5, mode, scale_by_keep=False)
    assert layer(torch.ones(0, 3)).shape == (0, 3)
    x = torch.randn(64, 3)
    added = layer(x) - x
    kept = added.abs().sum(1) > 0
    torch.testing.assert_close(added[kept], layer.branch(x)[kept])


# What the branch is given.


def record(module: nn.Module) -> list[Tensor]:
    """Fill with what ``module`` is given first in each call."""
    calls: list[Tensor] = []
    module.register_forward_pre_hook(lambda _, args: calls.append(args[0]))
    return calls


@pytest.mark.parametrize(("batch", "p"), CASES)
def test_the_branch_runs_for_just_the_samples_that_are_kept(batch: int, p: float) -> None:
    layer = StochasticDepth(nn.Linear(2, 2), p)
    calls = record(layer.branch)
    x = torch.randn(batch, 2)
    for _ in range(30):
        changed = ((layer(x) - x).abs().sum(1) > 0).nonzero()[:, 0].tolist()
        (given,) = calls
        assert len(given) == max(1, len(changed))
        assert len(changed) in (int(batch * (1 - p)), int(batch * (1 - p)) + 1)
        if changed:
            assert sorted(map(tuple, given.tolist())) == sorted(map(tuple, x[changed].tolist()))
        calls.clear()


class Inputs(nn.Module):
    """Adds to each sample what belongs to it, and notes what it was given."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.args, self.kwargs = args, kwargs
        return x


class Rotation(NamedTuple):
    cos: Tensor
    sin: Tensor


def numbered(*shape: int, batch_dim: int = 0) -> Tensor:
    """Each sample is filled with its number."""
    view = [1] * len(shape)
    view[batch_dim] = -1
    return torch.arange(float(shape[batch_dim])).reshape(view).expand(shape).contiguous()


def check_other_inputs() -> None:
    batch, tokens, width = 6, 4, 3
    layer = StochasticDepth(Inputs(), 0.5)
    x, mask = numbered(batch, tokens, width), numbered(batch, 1, tokens, tokens)
    conditioning, position = numbered(batch, width), torch.randn(1, tokens, width)
    rotation = Rotation(numbered(batch, tokens), torch.randn(tokens, 2))
    calls = record(layer.branch)
    layer(x, mask, position, (conditioning, 7), rotation=rotation, shapes={"all": x.shape, "name": "abc"})
    (given,) = calls
    samples = given[:, 0, 0]
    assert len(samples) == 3
    got_mask, got_position, (got_conditioning, seven) = layer.branch.args
    got_rotation, shapes = layer.branch.kwargs["rotation"], layer.branch.kwargs["shapes"]
    for got, size in (
        (got_mask, (3, 1, tokens, tokens)),
        (got_conditioning, (3, width)),
        (got_rotation.cos, (3, tokens)),
    ):
        assert got.shape == size
        assert torch.equal(got.flatten(1)[:, 0], samples)
    assert got_position is position
    assert got_rotation.sin is rotation.sin
    assert type(got_rotation) is Rotation
    assert seven == 7
    assert shapes == {"all": x.shape, "name": "abc"}


def test_other_inputs_are_cut_along() -> None:
    check_other_inputs()


SELECTS: dict[str, Any] = {
    "in another order": lambda value, samples, **rest: select(value, samples.flip(0), **rest),
    "the first ones": lambda value, samples, **rest: select(value, torch.arange(len(samples)), **rest),
    "not all": lambda value, samples, **rest: value if value.ndim > 3 else select(value, samples, **rest),
}


@pytest.mark.parametrize("bug", SELECTS)
def test_inputs_that_are_cut_in_other_ways_are_killed(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other ways than what enters the branch first, that is."""

    def cut(value: Any, **rest: Any) -> Any:
        entering = isinstance(value, Tensor) and value.shape == (6, 4, 3)
        return select(value, **rest) if entering or not isinstance(value, Tensor) else SELECTS[bug](value, **rest)

    monkeypatch.setattr(functional, "select", cut)
    with pytest.raises(AssertionError):
        check_other_inputs()


def test_inputs_for_all_samples_are_named_where_their_size_is_by_chance_the_batchs() -> None:
    batch = tokens = 6
    x, table = numbered(batch, tokens), torch.randn(tokens, tokens)
    plain = StochasticDepth(Inputs(), 0.5)
    plain(x, table, table, bias=table)
    assert [len(each) for each in (*plain.branch.args, plain.branch.kwargs["bias"])] == [3, 3, 3]
    layer = StochasticDepth(Inputs(), 0.5, shared_inputs=(1, "bias"))
    layer(x, table, table, bias=table, mask=table)
    assert len(layer.branch.args[0]) == len(layer.branch.kwargs["mask"]) == 3
    assert layer.branch.args[1] is table
    assert layer.branch.kwargs["bias"] is table


def test_with_something_that_cannot_be_cut_all_samples_run() -> None:
    layer = StochasticDepth(Inputs(), 0.5)
    calls = record(layer.branch)
    x = torch.ones(64, 3)
    y = layer(x, cache=object())
    assert len(calls[0]) == 64
    assert set(y.flatten().tolist()) == {1.0, 3.0}


def test_a_list_of_features_is_cut_part_by_part() -> None:
    features = [numbered(6, 3), numbered(6, 2)]
    seen = []

    def branch(parts: Any) -> Tensor:
        seen.append(parts)
        return torch.ones(len(parts[0]), 3)

    y = drop_residual(features, branch, 0.5, mode="subset", shortcut=lambda parts: parts[0])  # type: ignore[arg-type]
    (first, second) = seen[0]
    assert torch.equal(first[:, 0], second[:, 0])
    assert sorted(first[:, 0].tolist()) == (y - features[0])[:, 0].nonzero()[:, 0].tolist()


def test_where_the_first_dimension_holds_parts_of_samples_all_run() -> None:
    windows = torch.ones(64, 2, 3)  # four of each sample
    calls = []
    y = drop_residual(
        windows,
        lambda x: calls.append(x) or x.reshape(16, 8, 3),
        0.5,
        mode="subset",
        shortcut=lambda x: x.reshape(16, 8, 3),
    )
    assert calls[0] is windows
    assert set(y.flatten().tolist()) == {1.0, 3.0}
    assert torch.equal(y, y[:, :1, :1].expand_as(y))


@pytest.mark.parametrize("mode", ["subset", "batch", "row"])
def test_samples_in_another_dimension(mode: Any) -> None:
    layer = StochasticDepth(Inputs(), 0.5, mode, batch_dim=1)
    calls = record(layer.branch)
    x = numbered(4, 6, 3, batch_dim=1) + 1
    kept = set()
    for _ in range(20):
        ratio = layer(x, numbered(4, 6, batch_dim=1), numbered(6, 4)) / x
        per_sample = ratio[0, :, 0]
        assert torch.equal(ratio, per_sample[None, :, None].expand_as(x))
        assert set(per_sample.tolist()) <= {1.0, 3.0}
        kept.add(int((per_sample == 3).sum()))
        if mode == "subset":
            assert calls[-1].shape == (4, 3, 3)
            assert torch.equal(layer.branch.args[0] + 1, calls[-1][:, :, 0])
            assert layer.branch.args[1].shape == (6, 4)
    assert {"subset": kept == {3}, "batch": kept == {0, 6}, "row": len(kept) > 2}[mode]


def test_hooks_see_the_layer_and_a_branch_that_is_no_module_is_fine() -> None:
    layer = DropPath(0.5, "subset")
    seen = []
    layer.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    x = torch.ones(8, 3)
    y = layer.residual(x, lambda kept, factor: factor * kept, args=(5.0,))
    assert seen == [(8, 3)]
    assert sorted(y[:, 0].tolist()) == [1.0] * 4 + [11.0] * 4


# Batch normalisation.


def normalised() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("batch", [2, 3, 8])
def test_batch_normalisation_is_given_two_samples_and_the_padding_has_weight_0(batch: int, p: float) -> None:
    layer = StochasticDepth(normalised(), p)
    calls = record(layer.branch)
    x = torch.randn(batch, 3, 1, 1, requires_grad=True)
    sizes = set()
    for _ in range(100):
        y = layer(x)
        y.sum().backward()
        changed = int(((y - x).abs().flatten(1).sum(1) > 0).sum())
        assert len(calls[-1]) == max(2, changed)
        assert changed in (int(batch * (1 - p)), int(batch * (1 - p)) + 1)
        sizes.add(changed)
    assert p not in (0.9, 1.0) or min(sizes) == 0
    assert x.grad.isfinite().all()


def test_with_one_sample_batch_normalisation_says_what_it_always_says() -> None:
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        StochasticDepth(normalised(), 0.5)(torch.randn(1, 3, 1, 1))


def test_with_a_minimum_of_one_batch_normalisation_fails() -> None:
    layer = DropPath(0.9, "subset")
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        layer.residual(torch.randn(8, 3, 1, 1), normalised())
    DropPath(0.9, "subset", min_samples=2).residual(torch.randn(8, 3, 1, 1), normalised())


# One coin for the batch.


def test_a_dropped_branch_does_not_run() -> None:
    layer = StochasticDepth(nn.Linear(3, 3), 0.5, "batch")
    calls = record(layer.branch)
    seen = set()
    for _ in range(30):
        calls.clear()
        layer.zero_grad(set_to_none=True)
        x = torch.randn(4, 3, requires_grad=True)
        y = layer(x)
        y.sum().backward()
        kept = bool(calls)
        seen.add(kept)
        if kept:
            assert calls[0] is x
            torch.testing.assert_close(y, x + 2 * layer.branch(x))
        else:
            assert torch.equal(y, x)
            assert torch.equal(x.grad, torch.ones_like(x))
        assert all((parameter.grad is None) is not kept for parameter in layer.parameters())
    assert seen == {True, False}


@pytest.mark.parametrize("shortcut", [None, nn.Identity(), lambda x: x[:, :]], ids=["none", "identity", "view"])
def test_the_result_is_a_new_tensor(shortcut: Any) -> None:
    for mode, p in (("batch", 1.0), ("subset", 1.0), ("subset", 0.5), ("row", 1.0)):
        x = torch.randn(4, 3)
        before = x.clone()
        layer = StochasticDepth(nn.Linear(3, 3), p, mode, shortcut=shortcut)  # type: ignore[arg-type]
        layer(x).zero_()
        assert torch.equal(x, before), mode


def test_a_branch_that_is_added_to_nothing_always_runs() -> None:
    layer, branch = DropPath(1.0, "batch"), nn.Linear(3, 5)
    y = layer.residual(torch.randn(4, 3), branch, 0)
    assert torch.equal(y, torch.zeros(4, 5))
    y.sum().backward()
    assert branch.weight.grad is not None
    assert not branch.weight.grad.any()


# Every way to train.


class Stack(nn.Module):
    """Three blocks, with or without activation checkpointing."""

    def __init__(self, mode: Any, reentrant: bool | None = None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            StochasticDepth(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Dropout(0.3)), 0.5, mode) for _ in range(3)
        )
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            if self.reentrant is None:
                x = block(x)
            else:
                x = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=self.reentrant)
        return x


def gradients(model: nn.Module, x: Tensor, seed: int) -> list[Tensor | None]:
    x = x.clone().requires_grad_()
    model.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    model(x).square().sum().backward()
    return [x.grad, *(parameter.grad for parameter in model.parameters())]


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_activation_checkpointing_replays_the_draw(mode: Any, reentrant: bool) -> None:
    check_checkpointing(mode, reentrant)


def check_checkpointing(mode: Any, reentrant: bool) -> None:
    plain = Stack(mode)
    checkpointed = Stack(mode, reentrant)
    checkpointed.load_state_dict(plain.state_dict())
    x = torch.randn(5, 4)
    for seed in range(10):
        for one, other in zip(gradients(plain, x, seed), gradients(checkpointed, x, seed), strict=True):
            assert (one is None) is (other is None)
            assert one is None or torch.equal(one, other)


def test_checkpointing_that_forgets_the_generator_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    replay = torch.utils.checkpoint.checkpoint
    forgetful = lambda *args, **options: replay(*args, preserve_rng_state=False, **options)  # noqa: E731
    monkeypatch.setattr(torch.utils.checkpoint, "checkpoint", forgetful)
    with pytest.raises(AssertionError):
        check_checkpointing("subset", reentrant=True)


@pytest.mark.parametrize("mode", ["subset", "batch", "row"])
@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_bf16_autocast(mode: Any, p: float) -> None:
    layer = StochasticDepth(nn.Linear(3, 3), p, mode)
    x = torch.randn(8, 3, requires_grad=True)
    dtypes = []
    layer.branch.register_forward_hook(lambda module, args, output: dtypes.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    y.sum().backward()
    assert y.dtype == torch.float32
    assert x.grad.dtype == torch.float32
    assert set(dtypes) <= {torch.bfloat16}
    with torch.autocast("cpu", torch.bfloat16):
        added = (layer(x) - x).detach()
    whole = layer.branch(x).detach() / (1 - p) if p < 1 else torch.zeros_like(x)
    kept = added.abs().sum(1) > 0
    torch.testing.assert_close(added[kept], whole[kept], rtol=0.02, atol=0.02)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own forward mode
@pytest.mark.parametrize("mode", ["subset", "batch", "row"])
def test_forward_mode_and_function_transforms(mode: Any) -> None:
    layer = StochasticDepth(Scale(), 0.5, mode)
    x = torch.ones(6)
    with forward_ad.dual_level():
        y, tangent = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, torch.ones(6))))
    assert torch.equal(y, tangent)
    assert set(tangent.tolist()) <= {1.0, 5.0}
    y, tangent = torch.func.jvp(layer, (x,), (torch.ones(6),))
    assert torch.equal(y, tangent)

    parameters = dict(layer.named_parameters())
    tenfold = {"branch.weight": torch.tensor(20.0)}
    assert set(functional_call(layer, tenfold, (x,)).tolist()) <= {1.0, 41.0}
    many = {name: torch.stack([value.detach()] * 50) for name, value in parameters.items()}
    outputs = torch.vmap(lambda state: functional_call(layer, state, (x,)), randomness="different")(many)
    assert set(outputs.unique().tolist()) == {1.0, 5.0}
    grads = torch.vmap(
        torch.func.grad(lambda state, x: functional_call(layer, state, (x,)).sum()), (None, 0), randomness="different"
    )({name: value.detach() for name, value in parameters.items()}, torch.ones(50, 6))
    assert grads["branch.weight"].shape == (50,)
    assert set(grads["branch.weight"].tolist()) <= {2.0 * kept for kept in range(7)}


def test_second_derivatives() -> None:
    x = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    for mode in MODES:

        def run(x: Tensor, mode: Any = mode) -> Tensor:
            torch.manual_seed(1)
            return drop_residual(x, torch.sin, 0.5, mode=mode)

        assert torch.autograd.gradgradcheck(run, (x,))


@pytest.mark.parametrize("p", [0.0, 0.25, 0.5, 0.75])
def test_what_is_dropped_is_not_computed(p: float) -> None:
    """Forward and backward: the operations fall in proportion."""
    num_flops = []
    for mode in ("row", "subset"):
        layer = StochasticDepth(Attention(), p, mode)
        with FlopCounterMode(display=False) as counter:
            layer(torch.randn(8, 5, 4, requires_grad=True)).sum().backward()
        num_flops.append(counter.get_total_flops())
    assert num_flops[1] == num_flops[0] * (1 - p) > 0


@pytest.mark.filterwarnings("ignore:`torch.jit.trace", "ignore::torch.jit.TracerWarning")  # shapes are compared
@pytest.mark.parametrize("mode", MODES)
def test_a_traced_or_exported_layer_drops_like_row_mode(mode: Any) -> None:
    layer, x = StochasticDepth(Scale(), 0.5, mode), torch.ones(64)
    for run in (
        torch.jit.trace(layer, x, check_trace=False),
        torch.export.export(layer, (x,), strict=False).module(),
    ):
        seen = [run(x) for _ in range(20)]
        assert set(torch.cat(seen).tolist()) == {1.0, 5.0}
        assert len({int((y > 1).sum()) for y in seen}) > 1


def test_copies_pickles_and_names() -> None:
    layer = StochasticDepth(nn.Linear(3, 3), 0.5, shortcut=nn.Linear(3, 3), shared_inputs=["bias"])
    assert set(layer.state_dict()) == {"branch.weight", "branch.bias", "shortcut.weight", "shortcut.bias"}
    x = torch.randn(8, 3)
    torch.manual_seed(3)
    expected = layer(x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.manual_seed(3)
        assert torch.equal(twin(x), expected)
        twin.drop_prob = 1.0
        assert layer.drop_prob == 0.5
        assert twin.shared_inputs == ("bias",)
    assert layer.drop_path.drop_prob == layer.drop_prob
    assert "DropPath(drop_prob=0.5, mode='subset')" in repr(layer)
    assert "min_samples=2" in repr(StochasticDepth(nn.BatchNorm1d(3), 0.5))


def test_a_rate_in_a_tensor_or_a_function() -> None:
    x = torch.ones(8)
    for rate in (torch.tensor(0.5), lambda: 0.5):
        for mode, sums in (("subset", {16.0}), ("batch", {8.0, 24.0})):
            for _ in range(10):
                assert float(drop_residual(x, torch.ones_like, rate, mode=mode).sum()) in sums  # type: ignore[arg-type]
    assert torch.equal(drop_residual(x, torch.ones_like, lambda: 0.5, training=False), 2 * x)
    assert set(drop_residual(x, torch.ones_like, lambda: 0.5).tolist()) <= {1.0, 3.0}


# Compilation.


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch looks, in any gap
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("mode", MODES)
def test_at_most_three_graphs_while_the_rate_changes(mode: Any, backend: str) -> None:
    check_graphs(StochasticDepth(Scale(), 0.0, mode), mode, backend)


def check_graphs(layer: Any, mode: Any, backend: str) -> None:
    """30 rates, 0 and 1 among them, and evaluation in between."""
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    stats_of_torch = torch._dynamo.utils.counters["stats"]
    compiled = torch.compile(layer, backend=backend)
    x = (torch.rand(8, 3) + 1).requires_grad_()
    for step in range(30):
        layer.drop_prob = step / 29
        for training in (True, step % 5 > 0):
            y = compiled.train(training)(x)
            (factors,) = torch.autograd.grad(y.sum(), x)
            torch.testing.assert_close(y, factors * x)
            whole = 1 + 2 / (1 - layer.drop_prob) if training and layer.drop_prob < 1 else 3.0
            kept = factors > 1
            torch.testing.assert_close(factors, torch.where(kept, whole, 1.0))
            assert torch.equal(kept, kept[:, :1].expand_as(kept))
            num_kept = int(kept[:, 0].sum())
            if mode == "subset" and training:
                assert abs(num_kept - 8 * (1 - layer.drop_prob)) < 1
            elif not training or layer.drop_prob in (0.0, 1.0):
                assert num_kept == (0 if training and layer.drop_prob == 1.0 else 8)
            else:
                assert num_kept in (0, 8)
    assert stats_of_torch["unique_graphs"] <= 3, stats_of_torch
    torch.compiler.reset()


class Constant(StochasticDepth):
    """The rate is read where it becomes a constant of the graph."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.drop_path.forward_at(self.drop_prob, x, self.branch)


def test_a_graph_for_each_rate_is_killed() -> None:
    torch._dynamo.config.recompile_limit = 50
    with pytest.raises(AssertionError, match="unique_graphs"):
        check_graphs(Constant(Scale(), 0.0), "subset", "eager")
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch looks, in any gap
@pytest.mark.parametrize("mode", MODES)
def test_many_layers_need_no_more_graphs_than_one(mode: Any) -> None:
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    model = Stack(mode)
    compiled = torch.compile(model, backend="eager")
    for step in range(12):
        for depth, block in enumerate(model.blocks):
            block.drop_prob = step / 11 * (depth + 1) / 3
        for training in (True, False):
            compiled.train(training)(torch.ones(8, 4, requires_grad=True))  # as between layers
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 3
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch looks, in any gap
@pytest.mark.parametrize("mode", MODES)
def test_the_law_is_the_same_in_a_compiled_layer(mode: Any) -> None:
    torch.compiler.reset()
    layer = StochasticDepth(Scale(), 0.4, mode)
    check_law(torch.compile(layer, backend="eager"), 3, 0.4, mode)
    torch.compiler.reset()


@pytest.mark.parametrize("mode", MODES)
def test_where_there_may_be_one_graph_only_all_run_and_it_says_so(mode: Any) -> None:
    torch.compiler.reset()
    layer = StochasticDepth(nn.Linear(3, 3), 0.5, mode)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    x = torch.randn(16, 3)
    with pytest.warns(UserWarning, match="to be compiled without `fullgraph=True`"):
        compiled(x)
    torch.manual_seed(2)
    got = compiled(x)
    row = StochasticDepth(layer.branch, 0.5, "batch" if mode == "batch" else "row")
    torch.manual_seed(2)
    by_hand = x + row.drop_path(layer.branch(x))
    torch.testing.assert_close(got, by_hand)
    torch.compiler.reset()


# Bad input.


def test_bad_construction() -> None:
    branch = nn.Linear(3, 3)
    for bad in (-0.1, 1.5, float("nan"), "abc", None, True):
        with pytest.raises(ValueError, match="Expected `drop_prob` to be a probability"):
            StochasticDepth(branch, bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`mode` to be one of \('row', 'batch', 'subset'\), but got 'sample'"):
        StochasticDepth(branch, 0.5, "sample")  # type: ignore[arg-type]
    for bad in (-1, 0.5, True, None):
        with pytest.raises(ValueError, match="Expected `batch_dim` to be a dimension of at least 0, but got"):
            StochasticDepth(branch, 0.5, batch_dim=bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Expected `branch` to be a module, but got 3"):
        StochasticDepth(3, 0.5)  # type: ignore[arg-type]
    for bad in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="Expected `min_samples` to be a whole number of at least 1, but got"):
            DropPath(0.5, "subset", min_samples=bad)  # type: ignore[arg-type]
    layer = StochasticDepth(branch, 0.5)
    with pytest.raises(ValueError, match="Expected `drop_prob` to be a probability"):
        layer.drop_prob = 2.0
    assert layer.drop_prob == 0.5


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mode", ["subset", "batch", "row"])
def test_bad_calls(mode: Any, training: bool) -> None:
    x = torch.ones(4, 3)

    def residual(branch: Any, x: Tensor = x, mode: Any = mode, p: Any = 0.01, **options: Any) -> Tensor:
        torch.manual_seed(0)  # kept
        return drop_residual(x, branch, p, training, mode, **options)

    for shape in [(4, 5), (1, 3), (4, 3, 3), (4,)]:
        with pytest.raises(ValueError, match=r"Expected `branch` to return the shape .*\(\d, 3\), but got .*shortcut"):
            residual(lambda x, shape=shape: torch.ones(shape))
    with pytest.raises(ValueError, match=r"Expected `mode` to be one of .*'sample'"):
        residual(torch.exp, mode="sample")
    for dim in (2, -1):
        with pytest.raises(
            ValueError, match=rf"`batch_dim` to be a dimension of `x`.*got {dim} for the shape \(4, 3\)"
        ):
            residual(torch.exp, batch_dim=dim)
    with pytest.raises(ValueError, match=r"`batch_dim` to be a dimension of `x`.*got 0 for the shape \(\)"):
        residual(torch.exp, x=torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"Expected `branch` to return a floating-point dtype, but got torch.int64"):
        residual(torch.Tensor.long)
    for shortcut in (None, 0):
        with pytest.raises(ValueError, match="Expected `branch` to return a tensor, but got tuple; wrap it"):
            residual(lambda x: (x, x), shortcut=shortcut)
    with pytest.raises(ValueError, match="Expected `drop_prob` to be a probability"):
        residual(torch.exp, p=1.5)


# Several processes.

RANKS = """
import datetime, json, sys
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from lightning_dropout.nn import StochasticDepth, subset


def train(rank, mode):
    torch.manual_seed(0)
    blocks = (StochasticDepth(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), 0.5, mode) for _ in range(3))
    model = DistributedDataParallel(nn.Sequential(*blocks, nn.Linear(4, 1)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    torch.manual_seed(1 + rank)  # each draws its own
    for _ in range(50):
        optimizer.zero_grad()
        model(torch.randn(2, 4)).square().mean().backward()
        optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).tolist()


def work(rank, folder, modes):
    timeout = datetime.timedelta(seconds=20)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timeout)
    weights = [train(rank, mode) for mode in modes]
    with open(f"{folder}/{rank}.json", "w") as file:
        json.dump(weights, file)
    dist.destroy_process_group()


folder, guard, *modes = sys.argv[1:]
if guard == "unguarded":
    subset._others_wait = lambda: False
torch.multiprocessing.start_processes(work, (folder, modes), 2, start_method="fork")
"""


def run_two_ranks(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Train 50 steps of two samples for each rank, in each mode; the final parameters stand in a file of each rank."""
    return subprocess.run(
        [sys.executable, "-c", RANKS, str(folder), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_two_processes_train_without_looking_for_unused_parameters(tmp_path: Path) -> None:
    done = run_two_ranks(tmp_path, "guarded", *MODES)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert len(first) == len(MODES)
    assert first == second
    assert torch.tensor(first).isfinite().all()


def test_a_rank_that_skips_a_branch_keeps_the_other_one_waiting(tmp_path: Path) -> None:
    done = run_two_ranks(tmp_path, "unguarded", "batch")
    assert done.returncode != 0
    assert "Expected to have finished reduction in the prior iteration" in done.stderr

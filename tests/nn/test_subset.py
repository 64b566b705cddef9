"""Which samples a branch is run for: the law of the draw, what is cut along, and what becomes of the sum.

The checks of the law take a callable that draws, so they also judge planted bugs: every mutant must fail one of them.
They draw from a fixed seed; under fresh seeds the chance of a false alarm of one check is about 2.5e-6.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.autograd import forward_ad

from lightning_dropout.nn import subset
from lightning_dropout.nn.subset import (
    Subset,
    add_subset,
    can_subset,
    draw_subset,
    draw_traced,
    normalises_over_batch,
    select,
    spread_subset,
)

CPU = torch.device("cpu")
P_LIMIT = 2.5e-6  # two-sided; divided by the number of samples or pairs that are looked at together
NUM_DRAWS = 2_000
BATCHES = (1, 2, 3, 8, 64)
RATES = (0.1, 0.3, 0.4, 0.5, 0.9)
CASES = [(batch, p) for batch in BATCHES for p in RATES]
LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}

Draw = Callable[[int, float], Subset | None]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# The law of the draw. Each check raises AssertionError on a wrong one.


def draw(batch: int, p: float, **options: Any) -> Subset | None:
    return draw_subset(batch, p, CPU, **options)


def counting(drawn: Subset | None, batch: int) -> Tensor:
    """The samples that count, in the order in which they run."""
    if drawn is None:
        return torch.arange(batch)
    if drawn.skipped:
        return torch.arange(0)
    samples = torch.arange(batch) if drawn.samples is None else drawn.samples
    assert samples.unique().tolist() == sorted(samples.tolist()), "a sample is run twice"
    return samples if drawn.kept is None else samples[drawn.kept]


def kept_masks(draw: Draw, batch: int, p: float) -> np.ndarray:
    """Which samples count, (draws, batch) of 0 and 1."""
    masks = np.zeros((NUM_DRAWS, batch), dtype=np.int64)
    for mask in masks:
        mask[counting(draw(batch, p), batch).numpy()] = 1
    return masks


def check_binomial(counts: Any, probability: Any, what: str) -> None:
    counts = np.asarray(counts)
    tails = (stats.binom.cdf(counts, NUM_DRAWS, probability), stats.binom.sf(counts - 1, NUM_DRAWS, probability))
    p_value = 2 * np.minimum(*tails).min() * counts.size
    assert p_value > P_LIMIT, f"{what} {counts.ravel()[:4] / NUM_DRAWS} instead of {probability}"


def check_size(draw: Draw, batch: int, p: float) -> None:
    """Floor or ceil of the nominal number, in just the shares that make it the expectation."""
    sizes = kept_masks(draw, batch, p).sum(1)
    lowest = int(batch * (1 - p))
    assert set(sizes.tolist()) <= {lowest, lowest + 1}, f"sizes {set(sizes.tolist())}"
    check_binomial((sizes > lowest).sum(), batch * (1 - p) - lowest, "rounded up in")


def check_samples(draw: Draw, batch: int, p: float) -> None:
    check_binomial(kept_masks(draw, batch, p).sum(0), 1 - p, "samples are kept in")


def check_pairs(draw: Draw, batch: int, p: float) -> None:
    """Of subsets of one size, each is as likely as any other, as far as two samples show it."""
    masks = kept_masks(draw, batch, p)
    lowest = int(batch * (1 - p))
    more = batch * (1 - p) - lowest
    pairs = (1 - more) * lowest * (lowest - 1) + more * (lowest + 1) * lowest
    if batch > 1:
        check_binomial((masks.T @ masks)[np.triu_indices(batch, 1)], pairs / (batch * (batch - 1)), "pairs are kept in")


def check_scale(draw: Draw, batch: int, p: float) -> None:
    assert {drawn.scale for drawn in (draw(batch, p) for _ in range(20)) if drawn is not None} == {1 / (1 - p)}


LAW = (check_size, check_samples, check_pairs, check_scale)


@pytest.mark.parametrize(("batch", "p"), CASES)
def test_the_law_of_the_draw(batch: int, p: float) -> None:
    for check in LAW:
        check(draw, batch, p)


@pytest.mark.parametrize(("batch", "p"), CASES)
def test_samples_that_do_not_count_leave_the_law_as_it_is(batch: int, p: float) -> None:
    for check in (check_size, check_samples):
        check(lambda batch, p: draw(batch, p, min_samples=2), batch, p)


@pytest.mark.parametrize(("batch", "p"), [case for case in CASES if case[0] in (1, 3)])
def test_the_law_of_the_draw_for_a_graph(batch: int, p: float) -> None:
    for check in (check_size, check_samples, check_pairs):
        check(lambda batch, p: draw_traced(batch, p, CPU, False, 1, True, True), batch, p)


@pytest.mark.parametrize(("batch", "p"), CASES)
def test_the_whole_batch_shares_a_coin(batch: int, p: float) -> None:
    masks = kept_masks(lambda batch, p: draw(batch, p, whole=True), batch, p)
    assert (masks == masks[:, :1]).all()
    check_binomial(masks[:, 0].sum(), 1 - p, "kept in")
    check_scale(lambda batch, p: draw(batch, p, whole=True), batch, p)


# Planted bugs.


def dinov2(batch: int, p: float) -> Subset:
    """A number that is rounded down, and rescaled by the share that this is."""
    size = max(int(batch * (1 - p)), 1)
    return Subset(torch.randperm(batch)[:size], None, batch / size)


def rounded(batch: int, p: float) -> Subset:
    return Subset(torch.randperm(batch)[: round(batch * (1 - p))], None, 1 / (1 - p))


def coin_each(batch: int, p: float) -> Subset:
    return Subset((torch.rand(batch) >= p).nonzero()[:, 0], None, 1 / (1 - p))


def change(**parts: Callable[[Subset, int], Any]) -> Draw:
    """A right draw, with parts of it replaced."""

    def mutant(batch: int, p: float) -> Subset:
        drawn = draw(batch, p, min_samples=2)
        assert drawn is not None
        return drawn._replace(**{name: part(drawn, batch) for name, part in parts.items()})

    return mutant


def num_run(drawn: Subset, batch: int) -> int:
    return batch if drawn.samples is None else len(drawn.samples)


# Each with the check that must notice it; others may, too.
MUTANTS: dict[str, tuple[Draw, Callable[[Draw, int, float], None]]] = {
    "rounded down": (dinov2, check_size),
    "rounded down, seen from a sample": (dinov2, check_samples),
    "rounded": (rounded, check_size),
    "rounded, seen from a sample": (rounded, check_samples),
    "a coin for each": (coin_each, check_size),
    "p + .05 for each": (lambda batch, p: draw(batch, p + 0.05), check_samples),
    "the first ones": (change(samples=lambda drawn, batch: torch.arange(num_run(drawn, batch))), check_samples),
    "neighbours": (
        change(samples=lambda drawn, batch: (torch.arange(num_run(drawn, batch)) + torch.randint(batch, ())) % batch),
        check_pairs,
    ),
    "padding counts": (change(kept=lambda drawn, batch: None), check_size),
    "scaled by the realised share": (
        change(scale=lambda drawn, batch: batch / max(1, len(counting(drawn, batch)))),
        check_scale,
    ),
    "not scaled": (change(scale=lambda drawn, batch: 1.0), check_scale),
}


@pytest.mark.parametrize("bug", MUTANTS)
def test_every_planted_bug_is_killed(bug: str) -> None:
    mutant, check = MUTANTS[bug]
    with pytest.raises(AssertionError):
        check(mutant, 8, 0.8)  # one or two samples: few enough for padding, enough for pairs


def test_the_mutant_without_a_bug_survives() -> None:
    for check in LAW:
        check(change(), 8, 0.8)


@pytest.mark.parametrize("mutant", [dinov2, rounded])
@pytest.mark.parametrize(("batch", "p"), CASES)
def test_a_number_that_is_not_drawn_is_wrong_wherever_it_is_not_whole(mutant: Draw, batch: int, p: float) -> None:
    if float(batch * (1 - p)).is_integer():
        check_size(mutant, batch, p)
        return
    with pytest.raises(AssertionError):
        check_size(mutant, batch, p)


# Numbers of samples.


@pytest.mark.parametrize("min_samples", [1, 2, 5, 100])
@pytest.mark.parametrize("batch", BATCHES)
def test_at_least_so_many_run_and_the_additional_ones_do_not_count(batch: int, min_samples: int) -> None:
    for _ in range(50):
        drawn = draw(batch, 0.9, min_samples=min_samples)
        assert drawn is not None
        assert not drawn.skipped
        assert num_run(drawn, batch) >= min(batch, min_samples)
        assert len(counting(drawn, batch)) <= int(batch * 0.1) + 1
        if drawn.kept is not None:
            assert len(drawn.kept) == min(batch, min_samples)


@pytest.mark.parametrize("as_rate", [float, torch.tensor, lambda p: lambda: p], ids=["float", "tensor", "function"])
@pytest.mark.parametrize("whole", [True, False])
def test_rates_0_and_1(whole: bool, as_rate: Callable[[float], Any]) -> None:
    before = torch.get_rng_state()
    assert draw(8, as_rate(0.0), whole=whole) is None
    assert draw(0, as_rate(0.5), whole=whole) is None
    assert torch.equal(torch.get_rng_state(), before)
    drawn = draw(8, as_rate(1.0), whole=whole)
    assert drawn is not None
    assert drawn.scale == 1.0  # there is nothing to divide by
    assert drawn.skipped is whole
    assert len(counting(drawn, 8)) == 0
    assert whole or num_run(drawn, 8) == 1


@pytest.mark.parametrize("whole", [True, False])
def test_scale_by_keep_false(whole: bool) -> None:
    drawn = draw(8, 0.5, whole=whole, scale_by_keep=False)
    assert drawn is not None
    assert drawn.scale == 1.0


def test_what_may_not_be_skipped_runs_and_does_not_count() -> None:
    drawn = draw(8, 1.0, whole=True, min_samples=3, may_skip=False)
    assert drawn is not None
    assert not drawn.skipped
    assert num_run(drawn, 8) == 3
    assert len(counting(drawn, 8)) == 0


def test_other_processes_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subset, "_others_wait", lambda: True)
    for min_samples in (1, 2):
        drawn = draw(8, 1.0, whole=True, min_samples=min_samples)
        assert drawn is not None
        assert not drawn.skipped
        assert num_run(drawn, 8) == min_samples
        assert len(counting(drawn, 8)) == 0


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan"), True, "0.5", None, torch.tensor(2.0), lambda: 3.0])
def test_bad_rates(p: Any) -> None:
    with pytest.raises(ValueError, match="Expected `drop_prob` to be a probability"):
        draw(8, p)


# Cutting.


class Pair(NamedTuple):
    mask: Tensor
    name: str


def test_select_goes_into_tuples_lists_and_dicts_and_leaves_the_rest() -> None:
    each, index = torch.arange(6.0).reshape(3, 2), torch.tensor([2, 0])
    cut = each[[2, 0]]
    same = (torch.ones(1, 2), torch.ones(4, 2), torch.tensor(3.0), torch.Size([3, 2]), 3, "abc", None, torch.float32)
    for value in same:
        assert select(value, index, 0, batch=3) is value
    nested = select({"pair": Pair(each, "abc"), "deep": [(each, 3)], "shape": each.shape}, index, 0, batch=3)
    assert set(nested) == {"pair", "deep", "shape"}
    assert type(nested["pair"]) is Pair
    assert nested["pair"].name == "abc"
    assert type(nested["shape"]) is torch.Size
    assert nested["shape"] == (3, 2)
    assert type(nested["deep"]) is list
    assert type(nested["deep"][0]) is tuple
    assert nested["deep"][0][1] == 3
    for got in (nested["pair"].mask, nested["deep"][0][0], select(each, index, 0, batch=3)):
        assert torch.equal(got, cut)


def test_select_along_another_dimension() -> None:
    x, index = torch.randn(4, 3, 2), torch.tensor([1])
    assert torch.equal(select(x, index, 1, batch=3), x[:, [1]])
    flat = torch.randn(3)
    assert select(flat, index, 1, batch=3) is flat


@pytest.mark.parametrize("ndim", LAYOUTS)
@pytest.mark.parametrize("batch_dim", [0, 1, 2])
def test_select_keeps_the_layout(ndim: int, batch_dim: int) -> None:
    index = torch.tensor([2, 0])
    x = torch.randn(3, 4, 5, 6, 7)[(..., *[0] * (5 - ndim))]
    for layout in (torch.contiguous_format, LAYOUTS[ndim]):
        got = select(x.contiguous(memory_format=layout), index, batch_dim, batch=x.shape[batch_dim])
        assert torch.equal(got, x.index_select(batch_dim, index))
        assert got.is_contiguous(memory_format=layout)
        assert not got.is_contiguous() or layout is torch.contiguous_format


def test_select_has_the_gradient_of_the_samples_that_were_taken() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    select((x, 1), torch.tensor([2, 0]), 0, batch=3)[0].backward(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert torch.equal(x.grad, torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, 2.0]]))


# Adding.


def subset_of(samples: list[int] | None, scale: float | Tensor = 1.0, kept: list[bool] | None = None) -> Subset:
    return Subset(
        None if samples is None else torch.tensor(samples), None if kept is None else torch.tensor(kept), scale
    )


@pytest.mark.parametrize("samples", [[2, 0], None])
@pytest.mark.parametrize("batch_dim", [0, 1])
def test_the_sum_written_out(samples: list[int] | None, batch_dim: int) -> None:
    skip = torch.randn(3, 3, 2)
    places = [0, 1, 2] if samples is None else samples
    residual = torch.randn(3, 3, 2).narrow(batch_dim, 0, len(places))
    expected = skip.clone().movedim(batch_dim, 0)
    expected[places] += 1.25 * residual.movedim(batch_dim, 0)
    before = skip.clone()
    for scale in (1.25, torch.tensor(1.25)):
        got = add_subset(skip, residual, subset_of(samples, scale), batch_dim)
        torch.testing.assert_close(got, expected.movedim(0, batch_dim))
        got.zero_()  # what is returned is nobody else's
        assert torch.equal(skip, before)


@pytest.mark.parametrize("scale", [10 / 9, torch.tensor(10 / 9)], ids=["float", "tensor"])
@pytest.mark.parametrize("samples", [[2, 0, 1], None])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_scale_is_not_rounded_to_16_bits(dtype: torch.dtype, samples: list[int] | None, scale: Any) -> None:
    residual = torch.rand(3, 10_000, dtype=dtype) + 1
    got = add_subset(torch.zeros_like(residual), residual, subset_of(samples, scale), 0)
    error = (got.double().mean() / residual.double().mean() * 0.9 - 1).abs()
    assert got.dtype == dtype
    limit = torch.finfo(dtype).eps / 20  # rounding goes up as often as down; the scale's own goes one way
    assert error < limit
    rounded_first = residual.double() * float(torch.tensor(10 / 9, dtype=dtype))
    assert (rounded_first.mean() / residual.double().mean() * 0.9 - 1).abs() > limit


@pytest.mark.parametrize("scale", [1.25, torch.tensor(1.25)], ids=["float", "tensor"])
@pytest.mark.parametrize("samples", [[2, 0, 1], None])
@pytest.mark.parametrize("residual_dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("skip_dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_dtypes_are_those_of_a_plain_sum(
    skip_dtype: torch.dtype, residual_dtype: torch.dtype, samples: list[int] | None, scale: Any
) -> None:
    skip, residual = torch.ones(3, 2, dtype=skip_dtype), torch.ones(3, 2, dtype=residual_dtype)
    got = add_subset(skip, residual, subset_of(samples, scale), 0)
    assert got.dtype == (skip + residual).dtype
    assert (got == 2.25).all()


def test_what_does_not_count_may_be_anything() -> None:
    residual = torch.tensor([[1.0, 2.0], [float("nan"), float("inf")]], requires_grad=True)
    got = add_subset(torch.zeros(3, 2), residual, subset_of([2, 0], 2.0, [True, False]), 0)
    assert got.tolist() == [[0.0, 0.0], [0.0, 0.0], [2.0, 4.0]]
    got.sum().backward()
    assert residual.grad is not None
    assert residual.grad.tolist() == [[2.0, 2.0], [0.0, 0.0]]
    along_1 = add_subset(torch.zeros(2, 3), residual.detach().T, subset_of([2, 0], 2.0, [True, False]), 1)
    assert torch.equal(along_1, got.T)
    product = residual.detach() * torch.tensor([[1.0], [0.0]])  # the mutant
    assert product.isnan().any()


@pytest.mark.parametrize("samples", [[2, 0], None])
@pytest.mark.parametrize("ndim", LAYOUTS)
def test_the_sum_keeps_the_layout(ndim: int, samples: list[int] | None) -> None:
    x = torch.randn(3, 4, 5, 6, 7)[(..., *[0] * (5 - ndim))]
    residual = x if samples is None else x[:2]
    expected = add_subset(x.contiguous(), residual, subset_of(samples, 2.0), 0)
    assert expected.is_contiguous()
    channels_last = x.contiguous(memory_format=LAYOUTS[ndim])
    got = add_subset(channels_last, residual.contiguous(memory_format=LAYOUTS[ndim]), subset_of(samples, 2.0), 0)
    assert torch.equal(got, expected)
    assert got.is_contiguous(memory_format=LAYOUTS[ndim])
    assert samples is None or not torch.index_add(  # torch's own way
        channels_last, 0, torch.tensor(samples), residual
    ).is_contiguous(memory_format=LAYOUTS[ndim])


@pytest.mark.parametrize("scale", [1.25, torch.tensor(1.25)], ids=["float", "tensor"])
@pytest.mark.parametrize("kept", [[True, False], None])
@pytest.mark.parametrize("batch_dim", [0, 1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_without_a_skip_it_is_the_sum_with_zeros(
    dtype: torch.dtype, batch_dim: int, kept: list[bool] | None, scale: Any
) -> None:
    for samples in ([2, 0], None):
        for layout in (torch.contiguous_format, torch.channels_last):
            residual = torch.randn(2, 2, 4, 5, dtype=dtype).contiguous(memory_format=layout).requires_grad_()
            batch = 3 if samples else 2
            shape = [2, 2, 4, 5]
            shape[batch_dim] = batch
            zeros = torch.zeros(shape, dtype=dtype).contiguous(memory_format=layout)
            drawn = subset_of(samples, scale, kept)
            got = spread_subset(residual, drawn, batch_dim, batch)
            wanted = add_subset(zeros, residual, drawn, batch_dim)
            assert got.dtype == dtype
            torch.testing.assert_close(got, wanted)
            assert got.is_contiguous(memory_format=layout)
            upstream = torch.randn_like(got)
            torch.testing.assert_close(*(torch.autograd.grad(y, residual, upstream)[0] for y in (got, wanted)))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own forward mode
def test_gradients_of_cutting_and_adding() -> None:
    x = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor) -> Tensor:
        drawn = subset_of([3, 1, 0], 1.5, [True, True, False])
        return add_subset(x, select(x, drawn.samples, 0, batch=4).sin(), drawn, 0)

    assert torch.autograd.gradcheck(run, (x,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run, (x,))


# Where samples can be taken out.


class Cache:
    pass


class Tagged(Tensor):
    pass


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own forward mode
def test_what_can_be_cut() -> None:
    x = torch.ones(3, 2)
    plain = [None, True, 3, 0.5, "abc", torch.float32, CPU, x.shape]
    fine = [*plain, x, nn.Parameter(x), (x, [x, {"a": x}]), Pair(x, "abc")]
    assert can_subset(x, None, 0, fine)
    assert can_subset(nn.Parameter(x), None, 0, ())
    with forward_ad.dual_level():
        assert can_subset(forward_ad.make_dual(x, x), None, 0, ())


UNCUT: dict[str, Callable[[], Any]] = {
    "cache": Cache,
    "function": lambda: torch.exp,
    "class": lambda: object,
    "ordered dict": lambda: OrderedDict(a=torch.ones(3)),
    "coo": lambda: torch.ones(3, 3).to_sparse(),
    "csr": lambda: torch.ones(3, 3).to_sparse_csr(),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.strided),
    "jagged": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
@pytest.mark.parametrize("name", UNCUT)
def test_what_cannot_be_cut(name: str) -> None:
    x, value = torch.ones(3, 2), UNCUT[name]()
    for inputs in ((value,), (x, [value]), ({"a": (value,)},)):
        assert not can_subset(x, None, 0, inputs)


def test_what_holds_parts_of_samples_where_the_sum_holds_samples_is_not_cut() -> None:
    windows, images = torch.ones(12, 5), torch.ones(3, 4, 5)
    assert not can_subset(windows, images, 0, ())
    assert can_subset(windows, torch.ones(12, 4), 0, ())
    assert can_subset(images, images, 1, ())


def test_a_tensor_with_a_meaning_of_its_own_is_not_cut() -> None:
    assert not can_subset(torch.ones(3, 2).as_subclass(Tagged), None, 0, ())
    assert not can_subset(torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged), None, 0, ())


@pytest.mark.filterwarnings("ignore:`torch.jit.(trace|script)` is deprecated")
def test_not_where_the_number_of_samples_cannot_be_drawn() -> None:
    seen = []

    def look(x: Tensor) -> Tensor:
        seen.append(can_subset(x, None, 0, ()))
        return x.sum()

    x = torch.ones(3, 2)
    torch.vmap(look)(x)
    torch.func.grad(look)(x)
    torch.func.jvp(look, (x,), (x,))
    torch.jit.trace(look, x, check_trace=False)
    assert seen == [False] * 4
    look(x)
    assert seen[-1]


def test_a_draw_for_a_graph_has_no_sizes_and_numbers_that_torch_would_take_for_constants() -> None:
    for p, whole in ((0.5, False), (0.9, False), (1.0, False), (0.5, True)):
        for _ in range(20):
            drawn = draw_traced(8, p, CPU, whole, 1, True, True)
            assert drawn is not None
            assert isinstance(drawn.scale, Tensor)
            assert drawn.scale.dtype == torch.float32
            if not whole:
                assert drawn.samples is not None
                assert drawn.kept is not None
                assert len(drawn.samples) == len(drawn.kept) >= 2
                assert drawn.samples._base is None
    assert draw_traced(8, 0.0, CPU, False, 1, True, True) is None
    whole_kept = draw_traced(8, 0.0, CPU, True, 1, True, True)  # one graph for all rates at which all are kept
    assert whole_kept == Subset(None, None, torch.tensor(1.0))


def test_batch_normalisation_is_found_wherever_it_is() -> None:
    assert normalises_over_batch(nn.BatchNorm2d(3))
    assert normalises_over_batch(nn.Sequential(nn.Sequential(nn.SyncBatchNorm(3))))
    assert not normalises_over_batch(nn.Sequential(nn.LayerNorm(3), nn.GroupNorm(1, 3), nn.InstanceNorm1d(3)))
    assert not normalises_over_batch(torch.exp)


# What is kept for the backward pass.


def bytes_kept(function: Callable[[], object]) -> int:
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        function()
    return sum(kept.values())


def kept_by_a_sum(spread: bool) -> int:
    """How many bytes adding a branch keeps; it needs to know which samples these are, and nothing of their values."""
    skip, residual = torch.randn(8, 100, requires_grad=True), torch.randn(4, 100, requires_grad=True)
    some = Subset(torch.tensor([1, 3, 4, 6]), None, 2.0)
    if spread:
        return bytes_kept(lambda: spread_subset(residual, some, 0, 8))
    return bytes_kept(lambda: add_subset(skip, residual, some, 0))


@pytest.mark.parametrize("spread", [False, True])
def test_a_sum_keeps_no_values(spread: bool) -> None:
    assert kept_by_a_sum(spread) == 4 * 8


def test_a_sum_that_keeps_what_it_has_added_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subset, "_index_add", lambda skip, *rest: torch.index_add(skip, *rest[:-1], alpha=rest[-1]))
    assert kept_by_a_sum(spread=False) > 4 * 100 * 4

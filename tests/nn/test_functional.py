"""The laws of dropping, tested as statistics: rate, scale, gradient mask, mean, independence, granularity.

The checks take a callable that drops, and so also judge planted bugs: every mutant below must fail one of them.
Each check draws about a million coins from a fixed seed; under fresh seeds its chance of a false alarm is about 2.5e-6.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from scipy import stats
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_dropout.nn import functional
from lightning_dropout.nn.functional import drop_path, drop_residual, dropout

Z_LIMIT = 4.71
P_LIMIT = 2.5e-6  # the same limit as a two-sided p-value
NUM_DRAWS = 1_000_000
RATES = (0.0, 1e-3, 0.1, 0.5, 0.9, 1.0)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

Drop = Callable[[Tensor], Tensor]
Rate = Any  # a float, or the same number in a tensor


@dataclass(frozen=True)
class Layout:
    """Which values share a coin: shape of one call's input, and of its coins (1 = shared along that dimension)."""

    x: tuple[int, ...]
    coins: tuple[int, ...]
    drop: Callable[[Tensor, Rate], Tensor]

    @property
    def num_calls(self) -> int:
        coins_per_call = torch.Size(self.coins).numel()
        # One coin per call is dear, so those get fewer.
        return NUM_DRAWS // coins_per_call if coins_per_call > 1 else 5_000

    @property
    def few_calls(self) -> int:
        return min(self.num_calls, 50) if self.x[0] < 10 else 2

    @property
    def one_value_per_coin(self) -> tuple[slice, ...]:
        return tuple(slice(size) for size in self.coins)


LAYOUTS = {
    "element": Layout((500, 20, 10), (500, 20, 10), lambda x, p: dropout(x, p)),
    "channel": Layout((500, 20, 3, 2), (500, 20, 1, 1), lambda x, p: dropout(x, p, granularity="channel")),
    "shared": Layout((3, 1000, 10), (1, 1000, 10), lambda x, p: dropout(x, p, shared_over_batch=True)),
    "shared_channel": Layout((3, 5000, 2), (1, 5000, 1), lambda x, p: dropout(x, p, True, "channel", True)),
    "row": Layout((10_000, 3, 2), (10_000, 1, 1), lambda x, p: drop_path(x, p)),
    "batch": Layout((4, 2), (1, 1), lambda x, p: drop_path(x, p, mode="batch")),
}


def realised(p: float, num_coins: int) -> float:
    """The rate at which eager code on a CPU drops."""
    coarse = num_coins >= 2048 and 2**-10 <= p <= 1 - 2**-10
    return round(p * 2**16) / 2**16 if coarse else p


# The checks. Each raises AssertionError on a wrong law.


def kept_masks(drop: Drop, layout: Layout, dtype: torch.dtype = torch.float32) -> Tensor:
    """Which coins kept, (calls, coins per call) of bool, after asserting that each coin rules its whole unit."""
    ones = torch.ones(layout.x, dtype=dtype)
    masks = []
    for _ in range(layout.num_calls):
        kept = drop(ones) != 0
        coins = kept[layout.one_value_per_coin]
        assert torch.equal(kept, coins.expand(layout.x)), "a unit was dropped in part"
        masks.append(coins.flatten())
    return torch.stack(masks)


def check_rate(drop: Drop, layout: Layout, p: float, dtype: torch.dtype = torch.float32) -> None:
    masks = kept_masks(drop, layout, dtype)
    dropped, n = int((~masks).sum()), masks.numel()
    assert stats.binomtest(dropped, n, p).pvalue > P_LIMIT, f"rate {dropped / n} instead of {p}"


def check_scale(drop: Drop, layout: Layout, p: float, dtype: torch.dtype = torch.float32, eps: float = 0.0) -> None:
    expected = torch.tensor(1 / (1 - p) if p < 1 else 0.0, dtype=dtype)
    one_ulp = max(torch.finfo(dtype).eps, eps) * expected
    for _ in range(layout.few_calls):
        y = drop(torch.ones(layout.x, dtype=dtype))
        assert y.dtype == dtype
        kept = y[y != 0]
        assert ((kept - expected).abs() <= one_ulp).all(), f"kept values are {kept.unique().tolist()}"


def check_gradient(drop: Drop, layout: Layout, p: float, dtype: torch.dtype = torch.float32) -> None:
    for _ in range(layout.few_calls):
        x = torch.ones(layout.x, dtype=dtype, requires_grad=True)
        y = drop(x)
        drop(x.detach())  # as any network does before it goes backward
        upstream = (-2.0) ** torch.randint(-2, 3, layout.x).to(dtype)  # powers of two: products without rounding
        y.backward(upstream)
        assert x.grad is not None
        assert torch.equal(x.grad, torch.where(y != 0, upstream * y.detach(), 0)), "gradient is not mask * scale"


def check_mean(drop: Drop, layout: Layout, p: float) -> None:
    x = torch.linspace(1, 3, torch.Size(layout.x).numel()).reshape(layout.x)
    x[..., 1::2] *= -1
    ratios = torch.stack([(drop(x) / x)[layout.one_value_per_coin] for _ in range(layout.num_calls)])
    z = float((ratios - 1).double().mean()) * sqrt(ratios.numel() * (1 - p) / p)
    assert abs(z) < Z_LIMIT, f"mean is off, z={z:.1f}"


def check_second_moment(drop: Drop, layout: Layout, p: float) -> None:
    x = torch.linspace(1, 3, torch.Size(layout.x).numel()).reshape(layout.x)
    ratios = torch.stack([(drop(x) / x)[layout.one_value_per_coin] for _ in range(layout.num_calls)])
    squares = ratios.double().square()  # about 0: about the mean all of them are 1 at p = 0.5, without any spread
    z = float(squares.mean() - 1 / (1 - p)) * sqrt(squares.numel()) / float(squares.std())
    assert abs(z) < Z_LIMIT, f"second moment is off, z={z:.1f}"


def check_independence(drop: Drop, layout: Layout, p: float) -> None:
    """Neighbouring elements, samples and calls are uncorrelated."""
    masks = kept_masks(drop, layout).double()
    centred = (masks - (1 - p)).reshape(len(masks), *[size for size in layout.coins if size > 1])
    for dim, size in enumerate(centred.shape):
        products = centred.narrow(dim, 0, size - 1) * centred.narrow(dim, 1, size - 1)
        z = float(products.sum()) / (sqrt(products.numel()) * p * (1 - p))
        assert abs(z) < Z_LIMIT, f"neighbours along dimension {dim} of (call, *coins) are correlated, z={z:.0f}"


def check_patterns(drop: Drop, layout: Layout, p: float) -> None:
    """All 2**4 patterns of four coins, far apart and in a row, are as frequent as independent coins make them."""
    masks = kept_masks(drop, layout).flatten()
    masks = masks[: len(masks) // 4 * 4]
    _check_fours(masks.reshape(4, -1), p)
    _check_fours(masks.reshape(-1, 4).T, p)


def _check_fours(fours: Tensor, p: float) -> None:
    patterns = (fours * torch.tensor([[1], [2], [4], [8]])).sum(dim=0)
    observed = torch.bincount(patterns, minlength=16).double()
    kept = torch.tensor([pattern.bit_count() for pattern in range(16)]).double()
    expected = (1 - p) ** kept * p ** (4 - kept) * patterns.numel()
    often = expected >= 5  # where chi-square is an approximation worth its name
    chi_square = float(((observed - expected) ** 2 / expected)[often].sum())
    assert stats.chi2.sf(chi_square, int(often.sum())) > P_LIMIT, f"chi-square {chi_square:.0f}"


LAW = (check_rate, check_scale, check_gradient, check_mean)
JOINT_LAW = (check_independence, check_patterns)


def check_all(drop: Drop, layout: Layout, p: float) -> None:
    for check in (*LAW, *JOINT_LAW):
        check(drop, layout, p)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# The real thing, and torch's as a control of the checks.


@pytest.mark.parametrize("p", RATES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LAYOUTS)
def test_rate_scale_and_gradient(name: str, dtype: torch.dtype, p: float) -> None:
    layout = LAYOUTS[name]
    q = realised(p, torch.Size(layout.coins).numel())
    for check in (check_rate, check_scale, check_gradient):
        check(lambda x: layout.drop(x, p), layout, q, dtype)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("name", LAYOUTS)
def test_mean_and_independence(name: str, p: float) -> None:
    layout = LAYOUTS[name]
    q = realised(p, torch.Size(layout.coins).numel())
    for check in (check_mean, check_second_moment, *JOINT_LAW):
        check(lambda x: layout.drop(x, p), layout, q)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_torch_dropout_obeys_the_same_law(p: float) -> None:
    check_all(nn.Dropout(p), LAYOUTS["element"], p)


# Planted bugs.


def mutant(
    *,
    rate: Callable[[float], float] = lambda p: p,
    scale_of: Callable[[float], float] = lambda p: p,
    one_mask_per_batch: bool = False,
    frozen: bool = False,
    backward: str = "same",
) -> Callable[[Layout, float], Drop]:
    """A dropout with one bug: drops with ``rate(p)``, divides by ``1 - scale_of(p)``, ..."""

    def build(layout: Layout, p: float) -> Drop:
        coins = (1, *layout.coins[1:]) if one_mask_per_batch else layout.coins
        memory: list[Tensor] = []

        def draw() -> Tensor:
            if frozen and memory:
                return memory[0]
            memory.append((torch.rand(coins) >= rate(p)).float() / (1 - scale_of(p)))
            return memory[-1]

        class Mutant(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: Tensor) -> Tensor:
                ctx.mask = draw()
                return x * ctx.mask

            @staticmethod
            def backward(ctx: Any, grad: Tensor) -> Tensor:
                return {"same": lambda: grad * ctx.mask, "other": lambda: grad * draw(), "none": lambda: grad}[
                    backward
                ]()

        return lambda x: Mutant.apply(x)

    return build


# Each with the check that must notice it; others may, too.
MUTANTS: dict[str, tuple[Callable[[Layout, float], Drop], Callable[[Drop, Layout, float], None]]] = {
    "p becomes .5, scale matches": (mutant(rate=lambda p: 0.5, scale_of=lambda p: 0.5), check_rate),
    "p + .05, scale matches": (mutant(rate=lambda p: p + 0.05, scale_of=lambda p: p + 0.05), check_rate),
    "p + .05, scale of p": (mutant(rate=lambda p: p + 0.05), check_mean),
    "p and 1 - p swapped, scale matches": (mutant(rate=lambda p: 1 - p, scale_of=lambda p: 1 - p), check_rate),
    "p and 1 - p swapped, scale of p": (mutant(rate=lambda p: 1 - p), check_rate),
    "no scale": (mutant(scale_of=lambda p: 0.0), check_scale),
    "one mask per batch": (mutant(one_mask_per_batch=True), check_patterns),
    "frozen mask": (mutant(frozen=True), check_independence),
    "other mask in backward": (mutant(backward="other"), check_gradient),
    "no mask in backward": (mutant(backward="none"), check_gradient),
    "p + .003, scale matches": (
        mutant(rate=lambda p: p + 0.003, scale_of=lambda p: p + 0.003),
        check_second_moment,  # the mean is right
    ),
}


@pytest.mark.parametrize("name", ["element", "channel", "row"])
@pytest.mark.parametrize("bug", MUTANTS)
def test_every_planted_bug_is_killed(bug: str, name: str) -> None:
    build, check = MUTANTS[bug]
    layout = LAYOUTS[name]
    with pytest.raises(AssertionError):
        check(build(layout, 0.1), layout, 0.1)


@pytest.mark.parametrize("name", ["element", "channel", "row"])
def test_the_mutant_without_a_bug_survives(name: str) -> None:
    check_all(mutant()(LAYOUTS[name], 0.1), LAYOUTS[name], 0.1)


def test_a_drop_that_splits_its_unit_is_killed() -> None:
    with pytest.raises(AssertionError, match="in part"):
        kept_masks(lambda x: dropout(x, 0.5), LAYOUTS["row"])


# Exactness.

SITES = {
    "dropout": lambda x, p, training=True: dropout(x, p, training),
    "channel": lambda x, p, training=True: dropout(x, p, training, "channel"),
    "shared": lambda x, p, training=True: dropout(x, p, training, shared_over_batch=True),
    "row": lambda x, p, training=True: drop_path(x, p, training),
    "batch": lambda x, p, training=True: drop_path(x, p, training, "batch"),
}


@pytest.mark.parametrize("site", SITES)
def test_rate_0_and_evaluation_return_the_input_and_draw_nothing(site: str) -> None:
    x = torch.randn(4, 3)
    before = torch.get_rng_state()
    assert SITES[site](x, 0.0) is x
    assert SITES[site](x, 0) is x
    assert SITES[site](x, 0.7, training=False) is x
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("as_rate", [float, torch.tensor])
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_rate_1_returns_zeros_with_zero_gradients(
    site: str, dtype: torch.dtype, as_rate: Callable[[float], Rate]
) -> None:
    x = torch.tensor([[1.0, float("inf")], [float("nan"), -3.0]], dtype=dtype, requires_grad=True)
    y = SITES[site](x, as_rate(1.0))
    y.sum().backward()
    assert y.dtype == dtype
    assert torch.equal(y, torch.zeros_like(x))
    assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize("as_rate", [float, torch.tensor])
@pytest.mark.parametrize("site", SITES)
def test_dropped_infinities_are_zero_and_leave_the_gradient_finite(site: str, as_rate: Callable[[float], Rate]) -> None:
    x = torch.full((50, 4), float("inf"), requires_grad=True)
    y = SITES[site](x, as_rate(0.5))
    while not (y == 0).any():  # one coin for the batch may have kept it
        y = SITES[site](x, as_rate(0.5))
    y.backward(torch.ones_like(y))
    assert torch.equal(x.grad, torch.where(y == 0, 0.0, 2.0))


def test_small_rates_survive_half_precision() -> None:
    # Masks drawn in bfloat16 would drop 0.0039 at a rate of 0.003, and nothing at 0.001.
    for p in (0.001, 0.003):
        check_rate(lambda x, p=p: dropout(x, p), LAYOUTS["element"], p, torch.bfloat16)
        with pytest.raises(AssertionError, match="rate"):
            check_rate(lambda x, p=p: x * (torch.rand_like(x) >= p), LAYOUTS["element"], p, torch.bfloat16)


def test_scale_by_keep_false_leaves_kept_values() -> None:
    x = torch.randn(1000, 3)
    y = drop_path(x, 0.4, scale_by_keep=False)
    kept = (y != 0).any(dim=1)
    assert torch.equal(y[kept], x[kept])
    assert 500 < kept.sum() < 700


@pytest.mark.parametrize("size", [100, 10_000, 300_000])
def test_same_seed_same_mask_whatever_the_dtype(size: int) -> None:
    masks = []
    for dtype in (*DTYPES, torch.float64):
        torch.manual_seed(3)
        masks.append(dropout(torch.ones(size, dtype=dtype), 0.5) != 0)
    assert all(torch.equal(mask, masks[0]) for mask in masks)


# Rates in tensors.

TENSOR_RATES = (0.0, 1e-3, 0.5, 1.0)


@pytest.mark.parametrize("p", TENSOR_RATES)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_rate_in_a_tensor_obeys_the_same_law(name: str, dtype: torch.dtype, p: float) -> None:
    layout, rate = LAYOUTS[name], torch.tensor(p)
    # The rate has float32's digits, so the scale has no more even where the values do.
    check_rate(lambda x: layout.drop(x, rate), layout, p, dtype)
    check_scale(lambda x: layout.drop(x, rate), layout, p, dtype, eps=torch.finfo(torch.float32).eps)
    check_gradient(lambda x: layout.drop(x, rate), layout, p, dtype)


@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("name", LAYOUTS)
def test_mean_variance_and_independence_under_a_tensor(name: str, p: float) -> None:
    layout, rate = LAYOUTS[name], torch.tensor(p)
    for check in (check_mean, check_second_moment, *JOINT_LAW):
        check(lambda x: layout.drop(x, rate), layout, p)


@pytest.mark.parametrize("p", RATES)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("site", SITES)
def test_a_tensor_keeps_what_the_same_number_keeps(site: str, dtype: torch.dtype, p: float) -> None:
    results = []
    x = torch.randn(50, 40).to(dtype)  # few enough for the general way, which floats and tensors share
    for rate in (p, torch.tensor(p)):
        torch.manual_seed(2)
        results.append(SITES[site](x, rate))
    eps = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
    assert torch.equal(results[0] == 0, results[1] == 0)
    # As many digits as 1 - p keeps of the rate's.
    torch.testing.assert_close(results[1], results[0], rtol=2 * eps + 2**-25 / max(1 - p, 0.01), atol=0)


def test_nobody_looks_into_the_tensor() -> None:
    x, rate = torch.ones(2, 3, device="meta"), torch.tensor(0.5, device="meta")  # which holds nothing to look at
    for site in SITES.values():
        assert site(x, rate).shape == x.shape
        assert site(x, rate, training=False) is x
    assert drop_residual(x, torch.exp, rate).shape == x.shape
    with pytest.raises(RuntimeError, match="meta"):
        rate.item()


class Products(TorchDispatchMode):
    """Notes the dtypes of every product."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: list[tuple[torch.dtype, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.mul.Tensor:
            self.dtypes.append(tuple(arg.dtype for arg in args if isinstance(arg, Tensor)))
        return func(*args, **(kwargs or {}))


def test_a_scale_in_a_tensor_is_not_rounded_to_the_values() -> None:
    """A GPU casts a scalar tensor to the dtype of the other factor before it multiplies; a CPU keeps its digits."""

    def mixed(drop: Callable[[Tensor, Tensor], Tensor]) -> bool:
        x = torch.ones(2, 3, dtype=torch.bfloat16, requires_grad=True)
        with Products() as products:
            drop(x, torch.tensor(0.1)).sum().backward()
        assert products.dtypes
        return any(len(set(dtypes)) > 1 for dtypes in products.dtypes)

    assert not any(mixed(site) for site in SITES.values())
    assert mixed(drop_with(scale=lambda x, rate: x * (1 / (1 - rate))))


@pytest.mark.parametrize("as_rate", [float, torch.tensor])
def test_scale_by_keep_false_under_either_rate(as_rate: Callable[[float], Rate]) -> None:
    x = torch.randn(1000, 3)
    torch.manual_seed(2)
    y = drop_path(x, as_rate(0.4), scale_by_keep=False)
    assert torch.equal(y, torch.where(y == 0, 0, x))


# Mutants of the path of tensors, each with the check that must notice it.


def drop_with(
    *,
    mask_dtype: torch.dtype = torch.float32,
    scale: Callable[[Tensor, Tensor], Tensor] = lambda x, rate: x / (1 - rate),
) -> Callable[[Tensor, Tensor], Tensor]:
    def drop(x: Tensor, rate: Tensor) -> Tensor:
        return torch.where(torch.rand_like(x, dtype=mask_dtype) < rate, 0.0, scale(x, rate))

    return drop


def check_finite_gradient(drop: Drop, layout: Layout, p: float, dtype: torch.dtype) -> None:
    x = torch.ones(layout.x, dtype=dtype, requires_grad=True)
    drop(x).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all(), "gradient is not finite"


def check_mean_of_rounded_values(drop: Drop, layout: Layout, p: float, dtype: torch.dtype) -> None:
    """Values of every mantissa, so that what rounding adds to one it takes from another."""
    x = torch.linspace(1, 3, torch.Size(layout.x).numel()).reshape(layout.x).to(dtype)
    sums = torch.stack([drop(x).double().sum() for _ in range(40)])
    error = sqrt(p / (1 - p) * float(x.double().square().sum()) * len(sums))
    z = float(sums.sum() - len(sums) * x.double().sum()) / error
    assert abs(z) < Z_LIMIT, f"mean is off, z={z:.1f}"


TENSOR_MUTANTS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Any, float, torch.dtype]] = {
    "mask drawn in bfloat16": (drop_with(mask_dtype=torch.bfloat16), check_rate, 1e-3, torch.bfloat16),
    "division by 1 - p": (drop_with(), check_finite_gradient, 1.0, torch.float32),
    "scale rounded to bfloat16": (
        drop_with(scale=lambda x, rate: x * (1 / (1 - rate)).to(x.dtype)),
        check_mean_of_rounded_values,
        0.1,
        torch.bfloat16,
    ),
    "no scale": (drop_with(scale=lambda x, rate: x), check_scale, 0.5, torch.float32),
    "p and 1 - p swapped": (lambda x, rate: dropout(x, 1 - rate), check_rate, 1e-3, torch.float32),
}


@pytest.mark.parametrize("bug", TENSOR_MUTANTS)
def test_every_planted_bug_of_a_rate_in_a_tensor_is_killed(bug: str) -> None:
    drop, check, p, dtype = TENSOR_MUTANTS[bug]
    layout, rate = LAYOUTS["element"], torch.tensor(p)
    with pytest.raises(AssertionError):
        check(lambda x: drop(x, rate), layout, p, dtype)
    check(lambda x: dropout(x, rate), layout, p, dtype)


# Where tensors live and how they lie.


@pytest.mark.parametrize("as_rate", [float, torch.tensor])
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("size", [5, 110])  # small, and in several pieces
def test_channels_last_stays(site: str, as_rate: Callable[[float], Rate], size: int) -> None:
    x = torch.randn(4, 3, size, size + 1).to(memory_format=torch.channels_last).requires_grad_()
    y = SITES[site](x, as_rate(0.5))
    y.square().sum().backward()
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert x.grad.is_contiguous(memory_format=torch.channels_last)
    if as_rate is float:
        torch.testing.assert_close(x.grad, 2 * y.detach() ** 2 / x.detach())


@pytest.mark.parametrize("site", SITES)
def test_odd_inputs(site: str) -> None:
    drop = SITES[site]
    assert drop(torch.empty(0, 3), 0.5).shape == (0, 3)
    strided = torch.ones(6, 8)[::2, ::3]
    assert set(drop(strided, 0.5).unique().tolist()) <= {0.0, 2.0}
    for size in (64, 400):
        sliced, expanded = torch.ones(2 * size, 3 * size)[::2, ::3], torch.ones(1, 1).expand(size, size)
        for x in (sliced, expanded):
            assert drop(x, 0.5).shape == (size, size)
            assert set(drop(x, 0.5).unique().tolist()) <= {0.0, 2.0}
        assert drop(torch.ones(size, size, dtype=torch.complex64), 0.5).dtype == torch.complex64


def test_element_dropout_takes_a_scalar_tensor() -> None:
    assert dropout(torch.tensor(1.0), 1.0) == 0.0


@pytest.mark.parametrize("as_rate", [float, torch.tensor])
@pytest.mark.parametrize("site", SITES)
def test_second_derivative(site: str, as_rate: Callable[[float], Rate]) -> None:
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)

    def fixed(x: Tensor) -> Tensor:
        torch.manual_seed(1)
        return SITES[site](x**2, as_rate(0.5))

    assert torch.autograd.gradcheck(fixed, x)
    assert torch.autograd.gradgradcheck(fixed, x)


def test_autocast_keeps_the_dtype_of_what_it_gets() -> None:
    linear = nn.Linear(8, 8)
    x = torch.randn(4, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert dropout(linear(x), 0.5).dtype == torch.bfloat16
        assert dropout(x, 0.5).dtype == torch.float32
        y = drop_residual(x, linear, 0.5)
        assert y.dtype == torch.float32  # the residual stream stays as wide as it came
        y.sum().backward()
    assert linear.weight.grad.isfinite().all()


@pytest.mark.parametrize("as_rate", [float, torch.tensor])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_to_one_graph_with_the_same_law(backend: str, as_rate: Callable[[float], Rate]) -> None:
    def forward(x: Tensor, p: Rate) -> Tensor:
        h = dropout(x, p)
        h = dropout(h, p, granularity="channel", shared_over_batch=True)
        return drop_residual(h, torch.tanh, p)

    compiled = torch.compile(forward, backend=backend, fullgraph=True)
    x = torch.ones(200, 8, requires_grad=True)  # few enough for eager code to draw as compiled code does
    torch.manual_seed(5)
    expected = forward(x, as_rate(0.3))
    torch.manual_seed(5)
    actual = compiled(x, as_rate(0.3))
    actual.sum().backward()
    assert torch.equal(actual, expected)
    assert x.grad.isfinite().all()
    layout = LAYOUTS["element"]
    check_rate(torch.compile(lambda x: dropout(x, 0.1), backend=backend, fullgraph=True), layout, 0.1)
    torch.compiler.reset()


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("size", [64, 1000, 40_000])
def test_activation_checkpointing_replays_the_mask(size: int, reentrant: bool) -> None:
    x = torch.randn(size, 8, requires_grad=True)
    y = torch.utils.checkpoint.checkpoint(lambda x: dropout(x, 0.5).square(), x, use_reentrant=reentrant)
    dropout(x.detach(), 0.5)
    y.sum().backward()
    assert torch.equal(x.grad == 0, y == 0)


# Sixteen bits for each coin.

MANY = 300_000  # values: more than one piece, and no multiple of it


@pytest.mark.parametrize("p", [2**-10, 0.001, 0.1, 1 / 3, 0.5, 0.9, 1 - 2**-10])
def test_of_all_coins_exactly_the_rounded_share_drops(p: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every coin there is, once: no statistics needed."""
    coins = torch.arange(-(2**15), 2**15).to(torch.int16)
    monkeypatch.setattr(functional, "_toss", lambda like: coins.repeat(len(like) // 2**16))
    for x in (torch.ones(2**16), torch.ones(2**18), torch.ones(2**16, dtype=torch.bfloat16)):
        y = dropout(x, p)
        dropped = round(p * 2**16)
        assert int((y == 0).sum()) * 2**16 == dropped * len(x)
        torch.testing.assert_close(y.double().mean().item(), 1.0, rtol=float(torch.finfo(x.dtype).eps), atol=0.0)


@pytest.mark.parametrize("p", [0.0009, 0.9995])
def test_a_rate_too_close_to_its_bounds_for_16_bits_is_drawn_as_it_is(p: float) -> None:
    expected = torch.tensor(1 / (1 - p))
    y = dropout(torch.ones(MANY), p)
    torch.testing.assert_close(y[y != 0].unique(), expected[None])


def check_bits(toss: Callable[[Tensor], Tensor]) -> None:
    """Each of the 64 bits of a word is a fair coin, and neighbours in a word are independent."""
    lanes = toss(torch.empty(NUM_DRAWS)).reshape(-1, 4).to(torch.int32)
    bits = (lanes[:, :, None] >> torch.arange(16)) & 1
    centred = bits.flatten(1).double() - 0.5
    z = centred.sum(0) / (sqrt(len(centred)) / 2)
    assert z.abs().max() < Z_LIMIT, (
        f"bit {int(z.abs().argmax())} is 1 in {float(bits.flatten(1).double().mean(0)[z.abs().argmax()]):.3f}"
    )
    pairs = centred.T @ centred / (sqrt(len(centred)) / 4)
    assert pairs.fill_diagonal_(0.0).abs().max() < 5.5, "bits of one word are correlated"  # the most of 2016 pairs


def wordwise(draw: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def toss(like: Tensor) -> Tensor:
        words = draw(torch.empty(-(-like.numel() // 4), dtype=torch.int64))
        return words.view(torch.int16).as_strided(like.shape, like.stride())

    return toss


BAD_TOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "no sign bit": wordwise(lambda words: words.random_()),
    "32 random bits": wordwise(lambda words: words.random_(-(2**31), 2**31)),
    "one coin for four values": wordwise(
        lambda words: words.random_(0, 2**16) * 0x0001_0001_0001_0001  # overflows as it should
    ),
}


def test_all_bits_of_a_word_are_random() -> None:
    check_bits(functional._toss)


@pytest.mark.parametrize("bug", BAD_TOSSES)
def test_words_with_fewer_random_bits_are_killed(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError):
        check_bits(BAD_TOSSES[bug])
    monkeypatch.setattr(functional, "_toss", BAD_TOSSES[bug])
    with pytest.raises(AssertionError):  # also by who sees the masks only
        check_all(lambda x: dropout(x, 0.1), LAYOUTS["element"], realised(0.1, NUM_DRAWS))


PIECES = Layout((3, MANY // 3), (3, MANY // 3), lambda x, p: dropout(x, p))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_many_values_obey_the_same_law(dtype: torch.dtype) -> None:
    q = realised(0.1, MANY)
    for check in (check_rate, check_scale, check_gradient):
        check(lambda x: dropout(x, 0.1), PIECES, q, dtype)
    if dtype == torch.float32:
        for joint in (check_mean, check_second_moment, *JOINT_LAW):
            joint(lambda x: dropout(x, 0.1), PIECES, q)


def test_coins_that_are_drawn_into_one_buffer_are_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    words = torch.empty(MANY // 4, dtype=torch.int64)
    monkeypatch.setattr(
        functional, "_toss", lambda like: words.data.random_(-(2**63), None).view(torch.int16).view(like.shape)
    )
    with pytest.raises(AssertionError, match="gradient"):
        check_gradient(lambda x: dropout(x, 0.1), PIECES, realised(0.1, MANY))


def test_a_scale_by_the_rate_as_it_was_given_is_killed() -> None:
    """At 0.001 it is off by 7e-6 of 1, which no mean of a million values shows."""
    nominal = lambda x: dropout(x, 0.001) * (1 - realised(0.001, MANY)) / (1 - 0.001)  # noqa: E731
    with pytest.raises(AssertionError, match="kept values"):
        check_scale(nominal, PIECES, realised(0.001, MANY))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own derivative of a derivative
def test_the_gradient_does_not_depend_on_whether_and_how_it_is_asked_for() -> None:
    x = torch.randn(MANY // 300, 300, dtype=torch.float64)
    leaf = x.clone().requires_grad_()

    def draw(values: Tensor) -> Tensor:
        torch.manual_seed(4)
        return dropout(values, 0.3)

    y = draw(x)
    scale = (draw(torch.ones_like(x))).detach()
    with torch.inference_mode():
        assert torch.equal(draw(x), y)
    with torch.no_grad():
        assert torch.equal(draw(leaf), y)
    assert torch.equal(draw(leaf).detach(), y)
    for upstream in (torch.randn_like(x), torch.randn_like(x).t().contiguous().t(), torch.ones(()).expand_as(x)):
        (grad,) = torch.autograd.grad(draw(leaf), leaf, upstream)
        torch.testing.assert_close(grad, upstream * scale)
        (first,) = torch.autograd.grad(draw(leaf**2), leaf, upstream, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), leaf)
        torch.testing.assert_close(second, 2 * upstream * scale)
    (batched,) = torch.autograd.grad(draw(leaf), leaf, torch.stack([scale, 2 * scale]), is_grads_batched=True)
    torch.testing.assert_close(batched[1], 2 * scale**2)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(draw(dual)).tangent, scale)


@pytest.mark.parametrize("randomness", ["different", "same"])
def test_vmap(randomness: str) -> None:
    masks = torch.vmap(lambda x: dropout(x, 0.5), randomness=randomness)(torch.ones(3, 5000)) != 0
    assert torch.equal(masks[0], masks[1]) is (randomness == "same")
    assert 0.45 < float(masks.float().mean()) < 0.55
    grads = torch.func.vmap(torch.func.grad(lambda x: dropout(x, 0.5).sum()), randomness="different")(
        torch.ones(3, 5000)
    )
    assert set(grads.unique().tolist()) == {0.0, 2.0}


def test_infinities_that_are_dropped_are_zero_in_pieces_too() -> None:
    x = torch.full((MANY,), float("inf"), requires_grad=True)
    y = dropout(x, 0.5)
    y.backward(torch.full_like(y, float("nan")))
    assert ((y == 0) | y.isinf()).all()
    assert torch.equal(x.grad == 0, y == 0)
    assert x.grad[y != 0].isnan().all()


def test_threads_draw_their_own_masks() -> None:
    masks: dict[int, Tensor] = {}

    def work(index: int) -> None:
        x = torch.ones(MANY, requires_grad=True)
        y = dropout(x, 0.5)
        y.sum().backward()
        assert x.grad is not None
        assert torch.equal(x.grad, y.detach())
        masks[index] = y.detach() != 0

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shares = [float((masks[0] == masks[index]).float().mean()) for index in range(4)]
    assert shares[0] == 1.0
    assert all(0.49 < share < 0.51 for share in shares[1:])


@pytest.mark.filterwarnings("ignore:`torch.jit.trace` is deprecated")
def test_a_traced_or_recorded_function_draws_the_general_way() -> None:
    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            names.append(func.__name__)
            return func(*args, **(kwargs or {}))

    names: list[str] = []
    with Names():
        dropout(torch.ones(5000), 0.5)
    assert "rand_like.default" in names
    traced = torch.jit.trace(lambda x: dropout(x, 0.5), torch.ones(5000), check_trace=False)
    assert not torch.equal(traced(torch.ones(5000)), traced(torch.ones(5000)))


# Residual addition.


@pytest.mark.parametrize("mode", ["row", "batch"])
@pytest.mark.parametrize("p", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("training", [True, False])
def test_drop_residual_is_the_sum_written_out(mode: Any, p: float, training: bool) -> None:
    x = torch.randn(16, 3)
    branch = nn.Linear(3, 3)
    torch.manual_seed(7)
    expected = x + drop_path(branch(x), p, training, mode)
    torch.manual_seed(7)
    torch.testing.assert_close(drop_residual(x, branch, p, training, mode), expected)


def test_drop_residual_adds_to_a_shortcut_that_is_never_dropped() -> None:
    x = torch.randn(16, 3)
    shortcut, branch = nn.Linear(3, 5), nn.Linear(3, 5)
    assert torch.equal(drop_residual(x, branch, 1.0, shortcut=shortcut), shortcut(x))
    torch.manual_seed(7)
    expected = shortcut(x) + drop_path(branch(x), 0.5, scale_by_keep=False)
    torch.manual_seed(7)
    assert torch.equal(drop_residual(x, branch, 0.5, scale_by_keep=False, shortcut=shortcut), expected)


@pytest.mark.parametrize("shape", [(16, 1), (1, 3), (16, 3, 3), (16,)])
def test_drop_residual_refuses_to_broadcast(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"Expected `branch` to return .*\(16, 3\), but got .*shortcut"):
        drop_residual(torch.ones(16, 3), lambda x: torch.ones(shape), 0.5)


# Bad input.


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan"), True, "0.5", None])
@pytest.mark.parametrize("training", [True, False])
def test_bad_rates(p: Any, training: bool) -> None:
    x = torch.ones(2, 3)
    with pytest.raises(ValueError, match="Expected `p` to be a probability"):
        dropout(x, p, training)
    with pytest.raises(ValueError, match="Expected `drop_prob` to be a probability"):
        drop_path(x, p, training)
    with pytest.raises(ValueError, match="Expected `drop_prob` to be a probability"):
        drop_residual(x, torch.exp, p, training)


def test_bad_words_and_shapes() -> None:
    x = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"Expected `granularity` to be one of .*'channels'"):
        dropout(x, 0.5, granularity="channels")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Expected `mode` to be one of .*'sample'"):
        drop_path(x, 0.5, mode="sample")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Expected `x` to have shape \(batch, channel, \*\), but got \(3,\)"):
        dropout(torch.ones(3), 0.5, granularity="channel")
    with pytest.raises(ValueError, match=r"Expected `x` to have shape \(batch, \*\), but got \(\)"):
        dropout(torch.tensor(1.0), 0.5, shared_over_batch=True)
    with pytest.raises(ValueError, match=r"Expected `x` to have shape \(batch, \*\), but got \(\)"):
        drop_path(torch.tensor(1.0), 0.5)
    with pytest.raises(ValueError, match=r"Expected `x` to be of a floating-point dtype, but got torch.int64"):
        dropout(torch.ones(3, dtype=torch.int64), 0.5)

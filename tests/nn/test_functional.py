"""The laws of dropping, tested as statistics: rate, scale, gradient mask, mean, independence, granularity.

The checks take a callable that drops, and so also judge planted bugs: every mutant below must fail one of them.
Each check draws about a million coins from a fixed seed; under fresh seeds its chance of a false alarm is about 2.5e-6.
"""

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
    """All 2**4 patterns of four coins far apart are as frequent as four independent coins make them."""
    masks = kept_masks(drop, layout).flatten()
    fours = masks[: len(masks) // 4 * 4].reshape(4, -1)
    patterns = (fours * torch.tensor([[1], [2], [4], [8]])).sum(dim=0)
    observed = torch.bincount(patterns, minlength=16).double()
    kept = torch.tensor([pattern.bit_count() for pattern in range(16)]).double()
    expected = (1 - p) ** kept * p ** (4 - kept) * patterns.numel()
    often = expected >= 5  # where chi-square is an approximation worth its name
    chi_square = float(((observed - expected) ** 2 / expected)[often].sum())
    assert stats.chi2.sf(chi_square, int(often.sum())) > P_LIMIT, f"chi-square {chi_square:.0f}"


LAW = (check_rate, check_scale, check_gradient, check_mean)
JOINT_LAW = (check_independence, check_patterns)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# The real thing, and torch's as a control of the checks.


@pytest.mark.parametrize("p", RATES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LAYOUTS)
def test_rate_scale_and_gradient(name: str, dtype: torch.dtype, p: float) -> None:
    layout = LAYOUTS[name]
    for check in (check_rate, check_scale, check_gradient):
        check(lambda x: layout.drop(x, p), layout, p, dtype)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("name", LAYOUTS)
def test_mean_and_independence(name: str, p: float) -> None:
    for check in (check_mean, check_second_moment, *JOINT_LAW):
        check(lambda x: LAYOUTS[name].drop(x, p), LAYOUTS[name], p)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_torch_dropout_obeys_the_same_law(p: float) -> None:
    for check in (*LAW, *JOINT_LAW):
        check(nn.Dropout(p), LAYOUTS["element"], p)


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
    for check in (*LAW, *JOINT_LAW):
        check(mutant()(LAYOUTS[name], 0.1), LAYOUTS[name], 0.1)


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


def test_same_seed_same_mask_whatever_the_dtype() -> None:
    masks = []
    for dtype in DTYPES:
        torch.manual_seed(3)
        masks.append(dropout(torch.ones(100, dtype=dtype), 0.5) != 0)
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[0], masks[2])


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
    x = torch.randn(500, 40).to(dtype)
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
def test_channels_last_stays(site: str, as_rate: Callable[[float], Rate]) -> None:
    x = torch.randn(4, 3, 5, 6).to(memory_format=torch.channels_last).requires_grad_()
    y = SITES[site](x, as_rate(0.5))
    y.square().sum().backward()
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert x.grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("site", SITES)
def test_odd_inputs(site: str) -> None:
    drop = SITES[site]
    assert drop(torch.empty(0, 3), 0.5).shape == (0, 3)
    strided = torch.ones(6, 8)[::2, ::3]
    assert set(drop(strided, 0.5).unique().tolist()) <= {0.0, 2.0}
    expanded = torch.ones(1, 1).expand(64, 64)
    assert drop(expanded, 0.5).shape == (64, 64)
    assert drop(torch.ones(3, 2, dtype=torch.complex64), 0.5).dtype == torch.complex64


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
    x = torch.ones(1000, 8, requires_grad=True)
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


def test_activation_checkpointing_replays_the_mask() -> None:
    x = torch.randn(64, 8, requires_grad=True)
    y = torch.utils.checkpoint.checkpoint(lambda x: dropout(x, 0.5).square(), x, use_reentrant=False)
    y.sum().backward()
    assert torch.equal(x.grad == 0, y == 0)


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
    assert torch.equal(drop_residual(x, branch, p, training, mode), expected)


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

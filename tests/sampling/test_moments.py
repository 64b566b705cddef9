"""Streaming moments against float64 over everything at once, where naive formulas go wrong."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import Tensor

from lightning_dropout.sampling.moments import LogMeanExp, Moments, entropy, wide

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# Mean and variance.

Estimate = Callable[[list[Tensor]], tuple[Tensor, Tensor]]


def streamed(values: list[Tensor]) -> tuple[Tensor, Tensor]:
    moments = Moments()
    for value in values:
        moments.update(value)
    return moments.mean, moments.variance()


def check_moments(estimate: Estimate, dtype: torch.dtype, offset: float, count: int) -> None:
    """Mean and variance of ``count`` tensors agree with numpy's two passes over the same numbers in float64."""
    values = [(torch.randn(3, 5, dtype=torch.float64) + offset).to(dtype) for _ in range(count)]
    everything = torch.stack(values).double().numpy()
    mean, variance = estimate(values)
    np.testing.assert_allclose(mean.double(), everything.mean(0), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(variance.double(), everything.var(0, ddof=1), rtol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("offset", [0.0, 1.0, 1e3, 1e4])
def test_moments_agree_with_float64(dtype: torch.dtype, offset: float) -> None:
    for count in (2, 3, 300):
        check_moments(streamed, dtype, offset, count)


def naive(values: list[Tensor], dtype: torch.dtype | None = None, correction: int = 1) -> tuple[Tensor, Tensor]:
    """E[x²] - E[x]², in the dtype of the values or another."""
    stacked = torch.stack(values).to(dtype or values[0].dtype)
    mean = stacked.mean(0)
    return mean, (stacked.square().mean(0) - mean.square()) * len(values) / (len(values) - correction)


def in_single_precision(values: list[Tensor]) -> tuple[Tensor, Tensor]:
    mean, squares = torch.zeros_like(values[0]).float(), torch.zeros_like(values[0]).float()
    for count, value in enumerate(values, 1):
        deviation = value.float() - mean
        mean = mean + deviation / count
        squares = squares + deviation * (value.float() - mean)
    return mean, squares / (len(values) - 1)


def check_order(estimate: Estimate) -> None:
    """10 000 tensors far from 0 give the same in every order: sorted, reversed, and with the outlier first or last."""
    noise = torch.randn(10_000, 3, dtype=torch.float64)
    noise[0] = 1e3
    for order in (slice(None), noise[:, 0].argsort(), noise[:, 0].argsort().flip(0)):
        values = noise[order] + 1e4
        mean, variance = estimate(list(values))
        np.testing.assert_allclose(mean, values.numpy().mean(0), rtol=1e-12)
        np.testing.assert_allclose(variance, values.numpy().var(0, ddof=1), rtol=1e-9)


def test_moments_do_not_depend_on_the_order() -> None:
    check_order(streamed)


def running_average(values: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Give the last pass too much weight, as an average that forgets does."""
    mean, squares = values[0], torch.zeros_like(values[0])
    for count, value in enumerate(values[1:], 2):
        deviation = value - mean
        mean = mean + deviation / min(count, 1000)
        squares = squares + deviation * (value - mean)
    return mean, squares / (len(values) - 1)


def without_the_part(values: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The squared deviation from the mean before, not from that before times that after."""
    mean, squares = values[0].double(), torch.zeros_like(values[0]).double()
    for count, value in enumerate(values[1:], 2):
        deviation = value.double() - mean
        mean = mean + deviation / count
        squares = squares + deviation * deviation
    return mean, squares / (len(values) - 1)


@pytest.mark.parametrize("bug", [running_average, without_the_part])
def test_a_bug_in_the_recursion_is_killed(bug: Estimate) -> None:
    with pytest.raises(AssertionError):
        check_order(bug)
    with pytest.raises(AssertionError):
        check_moments(bug, torch.float64, 1.0, 2000)


MUTANTS: dict[str, tuple[Estimate, torch.dtype, float]] = {
    "naive in bfloat16": (naive, torch.bfloat16, 1.0),
    "naive in float16": (naive, torch.float16, 1.0),
    "naive in float32": (naive, torch.float32, 1e3),
    "naive in float64": (lambda values: naive(values, torch.float64), torch.float64, 1e4),
    "correction 0": (lambda values: naive(values, torch.float64, correction=0), torch.float32, 0.0),
    "Welford in float32": (in_single_precision, torch.float32, 1e4),
}


@pytest.mark.parametrize("bug", MUTANTS)
def test_every_planted_bug_is_killed(bug: str) -> None:
    estimate, dtype, offset = MUTANTS[bug]
    with pytest.raises(AssertionError):
        check_moments(estimate, dtype, offset, 300)


def test_variance_is_never_negative() -> None:
    # 0.1 is no float: the naive formula gives -1e-17 and worse, whose root is NaN.
    for value in (0.1, 1 / 3, 1e8, 1e-8):
        mean, variance = streamed([torch.tensor(value, dtype=torch.float32)] * 50)
        assert variance == 0.0
        assert mean == torch.tensor(value, dtype=torch.float32).double()


def test_a_single_tensor_has_no_variance() -> None:
    mean, variance = streamed([torch.tensor([1.0, 2.0])])
    assert mean.tolist() == [1.0, 2.0]
    assert variance.isnan().all()


def test_half_precision_does_not_overflow() -> None:
    mean, variance = streamed([torch.tensor(60_000.0, dtype=torch.float16)] * 10)
    assert (mean, variance) == (60_000.0, 0.0)


def test_nan_and_infinity_come_out_as_nan() -> None:
    bad, good = torch.tensor([1.0, math.nan, math.inf]), torch.tensor([1.0, 2.0, 3.0])
    for values in ([bad, good], [good, bad], [good, bad, good], [good, good, bad]):
        _, variance = streamed(values)
        assert variance.isnan().tolist() == [False, True, True]


def test_memory_holds_two_tensors_whatever_the_count() -> None:
    moments = Moments()
    for _ in range(10):
        moments.update(torch.randn(4))
    tensors = [value for value in vars(moments).values() if isinstance(value, Tensor)]
    assert [tensor.shape for tensor in tensors] == [(4,), (4,)]


def test_what_was_given_is_not_changed() -> None:
    values = torch.ones(3, dtype=torch.float64)  # needs no conversion, so it could be kept and written to
    moments, logs = Moments(), LogMeanExp()
    for _ in range(3):
        moments.update(values)
        logs.update(values)
    assert values.tolist() == [1.0, 1.0, 1.0]


def test_wide_is_float64_on_the_cpu() -> None:
    assert all(wide(torch.ones(1, dtype=dtype)).dtype == torch.float64 for dtype in DTYPES)


# Log of a mean probability.


def check_log_mean_exp(estimate: Callable[[list[Tensor]], Tensor], offset: float) -> None:
    logs = [torch.randn(4, dtype=torch.float64) * 3 + offset for _ in range(50)]
    expected = special.logsumexp(torch.stack(logs).numpy(), axis=0) - math.log(50)
    np.testing.assert_allclose(estimate(logs), expected, rtol=1e-12)


def streamed_log_mean_exp(logs: list[Tensor]) -> Tensor:
    running = LogMeanExp()
    for values in logs:
        running.update(values)
    return running.value()


@pytest.mark.parametrize("offset", [0.0, -1e4, 1e4])
def test_log_mean_exp_neither_underflows_nor_overflows(offset: float) -> None:
    check_log_mean_exp(streamed_log_mean_exp, offset)


@pytest.mark.parametrize("offset", [-1e4, 1e4])
def test_the_log_of_the_plain_mean_is_killed(offset: float) -> None:
    with pytest.raises(AssertionError):
        check_log_mean_exp(lambda logs: torch.stack(logs).exp().mean(0).log(), offset)


def resumed(logs: list[Tensor], start: Callable[[Tensor, int], LogMeanExp] = LogMeanExp) -> Tensor:
    """Start from the mean of the first 20 probabilities, and go on with logarithms."""
    running = start(torch.stack(logs[:20]).exp().mean(0), 20)
    for values in logs[20:]:
        running.update(values)
    return running.value()


def test_log_mean_exp_goes_on_from_a_mean() -> None:
    check_log_mean_exp(resumed, -3.0)
    nothing_yet = resumed([torch.zeros(4)] * 20 + [torch.full((4,), -math.inf)] * 20)
    torch.testing.assert_close(nothing_yet, torch.full((4,), math.log(0.5), dtype=torch.float64))


@pytest.mark.parametrize(
    "start", [lambda mean, count: LogMeanExp(), lambda mean, count: LogMeanExp(mean, 1)], ids=["forgotten", "count"]
)
def test_a_start_with_another_weight_is_killed(start: Callable[[Tensor, int], LogMeanExp]) -> None:
    with pytest.raises(AssertionError):
        check_log_mean_exp(lambda logs: resumed(logs, start), -3.0)


def test_the_mean_of_the_logs_is_killed() -> None:
    with pytest.raises(AssertionError):
        check_log_mean_exp(lambda logs: torch.stack(logs).mean(0), 0.0)


def test_impossible_in_every_pass_stays_impossible() -> None:
    impossible, sometimes = torch.tensor(-math.inf), torch.tensor(math.log(0.5))
    assert streamed_log_mean_exp([impossible] * 3) == -math.inf
    assert streamed_log_mean_exp([impossible, sometimes]).item() == pytest.approx(math.log(0.25))


# Entropies.


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_entropy(dim: int) -> None:
    probabilities = torch.randn(6, 5, dtype=torch.float64).softmax(dim)
    np.testing.assert_allclose(entropy(probabilities, dim), stats.entropy(probabilities.numpy(), axis=dim), rtol=1e-12)


def test_entropy_of_certainty_is_0_and_of_ignorance_ln_c() -> None:
    assert entropy(torch.tensor([0.0, 1.0, 0.0]), 0) == 0.0
    assert entropy(torch.full((8,), 1 / 8, dtype=torch.float64), 0).item() == pytest.approx(math.log(8), rel=1e-15)

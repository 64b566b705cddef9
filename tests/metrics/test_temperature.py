"""The temperature is the minimum of the likelihood: by a closed form, by scipy, by the derivative at both ends."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F

from lightning_dropout.metrics.probability_metric import ClassificationTask
from lightning_dropout.metrics.temperature import TEMPERATURES, fit_temperature


def drawn(scale: float, classes: int = 10, samples: int = 2000) -> tuple[Tensor, Tensor]:
    """Return logits and targets that are drawn from their probabilities at temperature ``scale``."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(samples, classes, generator=generator)
    return logits, torch.multinomial((logits / scale).softmax(1), 1, generator=generator)[:, 0]


def oracle(nll: Callable[[float], float]) -> float:
    found = minimize_scalar(lambda log: nll(math.exp(log)), bounds=(-3, 3), method="bounded", options={"xatol": 1e-9})
    return math.exp(found.x)


@pytest.mark.parametrize("scale", [0.4, 1.0, 2.5, 7.0])
def test_multiclass_is_the_minimum_that_scipy_finds(scale: float) -> None:
    logits, target = drawn(scale)
    found = fit_temperature(logits, target, task="multiclass")
    assert found == pytest.approx(oracle(lambda t: F.cross_entropy(logits.double() / t, target).item()), rel=1e-4)
    assert found == pytest.approx(scale, rel=0.1)  # what they were drawn with


@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_bits_are_the_minimum_that_scipy_finds(task: ClassificationTask) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(500, 4, generator=generator)
    target = torch.bernoulli((logits / 2.0).sigmoid(), generator=generator)
    found = fit_temperature(logits, target, task=task)
    expected = oracle(lambda t: F.binary_cross_entropy_with_logits(logits.double() / t, target.double()).item())
    assert found == pytest.approx(expected, rel=1e-4)


def test_parts_in_several_processes_give_what_the_whole_gives() -> None:
    logits, target = drawn(3.0, samples=300)
    whole = fit_temperature(logits, target, task="multiclass")
    others: list[Tensor] = []

    def record(sums: Tensor) -> Tensor:
        others.append(sums)
        return sums

    fit_temperature(logits[:100], target[:100], task="multiclass", summed=record)
    assert len(others[0]) == 3
    # The rank that holds the rest, evaluated by the same steps: played by one that is fitted inside the other's sum.
    rest = Rest(logits[100:], target[100:])
    assert fit_temperature(logits[:100], target[:100], task="multiclass", summed=rest.add) == pytest.approx(whole)
    assert fit_temperature(logits[:100], target[:100], task="multiclass") != pytest.approx(whole, rel=1e-3)


class Rest:
    """Adds the derivatives of other samples at the point that the caller is at: it makes the same steps."""

    def __init__(self, logits: Tensor, target: Tensor) -> None:
        self.gaps = (logits - logits.gather(1, target[:, None])).double()
        self.inverse, self.lowest, self.highest = 1.0, 1.0 / TEMPERATURES[1], 1.0 / TEMPERATURES[0]

    def add(self, sums: Tensor) -> Tensor:
        probabilities = (self.gaps * self.inverse).softmax(1)
        first = (probabilities * self.gaps).sum(1)
        second = (probabilities * self.gaps.square()).sum(1) - first.square()
        total = sums + torch.stack([first.sum(), second.sum(), torch.tensor(float(len(first)), dtype=torch.float64)])
        slope, curvature, _ = total.tolist()
        self.lowest, self.highest = (self.lowest, self.inverse) if slope > 0 else (self.inverse, self.highest)
        step = self.inverse - slope / curvature
        self.inverse = step if self.lowest < step < self.highest else math.sqrt(self.lowest * self.highest)
        return total


@pytest.mark.parametrize("labels", [[0, 1], [1, 0]])
def test_without_errors_or_without_hits_there_is_none(labels: list[int]) -> None:
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert math.isnan(fit_temperature(logits, torch.tensor(labels), task="multiclass"))
    some = fit_temperature(torch.cat([logits, logits]), torch.tensor([0, 1, 0, 0]), task="multiclass")
    assert some == pytest.approx(1 / math.log(3), rel=1e-4)


def test_classes_that_are_ruled_out_do_not_count() -> None:
    logits, target = drawn(2.0, classes=4)
    masked = torch.cat([logits, torch.full((len(logits), 3), -torch.inf)], dim=1)
    assert fit_temperature(masked, target, task="multiclass") == pytest.approx(
        fit_temperature(logits, target, task="multiclass")
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_samples_that_are_not_finite_are_left_out(bad: float) -> None:
    logits, target = drawn(2.0)
    spoilt = torch.cat([logits, logits[:1]])
    spoilt[-1, target[0]] = bad
    found = fit_temperature(spoilt, torch.cat([target, target[:1]]), task="multiclass")
    assert found == fit_temperature(logits, target, task="multiclass")


@pytest.mark.parametrize("rows", [0, 5])
def test_nothing_to_learn_from_is_nan(rows: int) -> None:
    assert math.isnan(fit_temperature(torch.zeros(rows, 3), torch.zeros(rows).long(), task="multiclass"))


def test_half_precision_is_summed_in_double() -> None:
    logits, target = drawn(2.0)
    rough = logits.bfloat16()
    assert fit_temperature(rough, target, task="multiclass") == fit_temperature(
        rough.double(), target, task="multiclass"
    )


@pytest.mark.parametrize(("shape", "task"), [((3, 2), "multiclass"), ((3,), "multilabel")])
def test_shapes_that_do_not_fit_are_named(shape: tuple[int, ...], task: ClassificationTask) -> None:
    with pytest.raises(ValueError, match=r"`target` to have the shape .* but got"):
        fit_temperature(torch.zeros(3, 2), torch.zeros(shape), task=task)


def test_far_starts_converge_in_few_steps() -> None:
    calls = []
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(50 * rng.standard_normal((1000, 5)))
    target = torch.multinomial((logits / 18.0).softmax(1), 1, generator=torch.Generator().manual_seed(0))[:, 0]

    def counted(sums: Tensor) -> Tensor:
        calls.append(sums)
        return sums

    assert fit_temperature(logits, target, task="multiclass", summed=counted) == pytest.approx(18.0, rel=0.15)
    assert len(calls) < 20


@pytest.mark.parametrize("margin", [3.0, 12.0, 40.0, 100.0])
def test_samples_that_are_all_surely_right_have_none(margin: float) -> None:
    logits = torch.tensor([[margin, 0.0]]).repeat(5, 1)
    assert math.isnan(fit_temperature(logits, torch.zeros(5).long(), task="multiclass"))

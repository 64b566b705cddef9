"""Gaussian and mixture likelihoods and sharpness against scipy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import norm
from torch import Tensor

from lightning_dropout.metrics import GaussianNLL, MixtureNLL, Sharpness, mixture_nll
from lightning_dropout.metrics.predictive import PredictiveMetrics
from lightning_dropout.sampling.prediction import Statistics


def value(metric: Any, *inputs: Any) -> float:
    metric.update(*(torch.as_tensor(values) for values in inputs))
    return metric.compute().item()


def draw(*shape: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.normal(size=shape), generator.uniform(0.1, 3, shape), generator.normal(size=shape[-1:])


class WithoutConstant(GaussianNLL):
    """Planted bug: without ln(2 pi) / 2, as torch's loss is by default."""

    def update(self, mean: Tensor, variance: Tensor, target: Tensor) -> None:
        self._take(torch.nn.functional.gaussian_nll_loss(mean, target, variance, reduction="none"))


class MeanOfLogs(MixtureNLL):
    """Planted bug: the mean of the passes' likelihoods, in place of the likelihood of their mean."""

    def update(self, means: Tensor, variances: Tensor, target: Tensor) -> None:
        for mean, variance in zip(means, variances, strict=True):
            self._take(mixture_nll(mean[None], variance[None], target))


class TestGaussian:
    """One Gaussian."""

    @pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
    def test_equals_scipy_in_all_units(self, scale: float) -> None:
        mean, variance, target = draw(200)
        expected = -norm.logpdf(scale * target, scale * mean, scale * np.sqrt(variance)).mean()
        assert value(GaussianNLL(), scale * mean, scale**2 * variance, scale * target) == pytest.approx(
            expected, rel=1e-6
        )

    def test_mutant_without_the_constant_is_seen(self) -> None:
        mean, variance, target = draw(200)
        expected = -norm.logpdf(target, mean, np.sqrt(variance)).mean()
        assert value(WithoutConstant(), mean, variance, target) == pytest.approx(expected - math.log(2 * math.pi) / 2)

    def test_a_variance_that_underflowed_is_finite(self) -> None:
        assert value(GaussianNLL(), [1.0], [0.0], [1.0]) == pytest.approx(math.log(2 * math.pi * 1e-30) / 2)
        assert math.isfinite(value(GaussianNLL(), [1.0], [0.0], [2.0]))

    def test_is_what_the_comparison_reports(self) -> None:
        heads = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
        statistics = Statistics("gaussian", class_dim=1)
        statistics.update(heads)
        statistics.update(heads + 0.1)
        prediction, target = statistics.result(heads), torch.zeros(20, 1)
        bundle = PredictiveMetrics("gaussian")
        bundle.update(prediction, target)
        ours = value(GaussianNLL(), prediction.mean, prediction.total_variance, target)
        assert bundle.compute()["nll"].item() == pytest.approx(ours, rel=1e-6)

    def test_integer_targets_are_numbers(self) -> None:
        assert value(GaussianNLL(), [0.0], [1.0], [2]) == pytest.approx(-norm.logpdf(2))


class TestMixture:
    """Gaussians of several passes."""

    @pytest.mark.parametrize("passes", [1, 2, 30])
    def test_equals_scipy(self, passes: int) -> None:
        means, variances, target = draw(passes, 200)
        logs = norm.logpdf(target, means, np.sqrt(variances))
        expected = -(logsumexp(logs, axis=0) - np.log(passes)).mean()
        assert value(MixtureNLL(), means, variances, target) == pytest.approx(expected, rel=1e-6)
        if passes == 1:
            assert value(GaussianNLL(), means[0], variances[0], target) == pytest.approx(expected, rel=1e-6)
        else:
            assert value(MeanOfLogs(), means, variances, target) > expected + 0.05  # Jensen

    def test_densities_that_underflow_count(self) -> None:
        far = [[1e4], [1e4 + 1]]
        assert math.exp(-(1e4**2) / 2) == 0
        assert value(MixtureNLL(), far, [[1.0], [1.0]], [0.0]) == pytest.approx(1e8 / 2, rel=1e-4)

    def test_every_output_is_a_sample(self) -> None:
        means, variances, target = draw(3, 12)
        flat = value(MixtureNLL(), means, variances, target)
        shaped = value(MixtureNLL(), means.reshape(3, 6, 2), variances.reshape(3, 6, 2), target.reshape(6, 2))
        assert shaped == pytest.approx(flat)


class TestSharpness:
    """Width of the predictions."""

    def test_is_the_root_of_the_mean_variance(self) -> None:
        _, variance, _ = draw(100)
        metric = Sharpness()
        metric.update(torch.from_numpy(variance[:30]))
        metric.update(torch.from_numpy(variance[30:]))
        assert metric.compute().item() == pytest.approx(np.sqrt(variance.mean()))
        assert metric.compute().item() != pytest.approx(np.sqrt(variance).mean(), rel=1e-3)

    def test_of_a_constant_it_is_the_deviation(self) -> None:
        assert value(Sharpness(), [4.0, 4.0]) == 2


class TestRefusals:
    """Wrong inputs are named, with the cure."""

    @pytest.mark.parametrize(
        ("metric", "shapes"),
        [(GaussianNLL, ((3,), (3,), (3,))), (MixtureNLL, ((2, 3), (2, 3), (3,))), (Sharpness, ((3,),))],
    )
    def test_log_variances(self, metric: Any, shapes: tuple[tuple[int, ...], ...]) -> None:
        with pytest.raises(ValueError, match=r"Expected variances of at least 0, but got -0\.5; take the exp"):
            metric().update(*(torch.full(shape, -0.5) for shape in shapes))

    def test_shapes_that_would_broadcast(self) -> None:
        with pytest.raises(ValueError, match=r"Expected `target` to have the shape \(3, 1\) of `mean`, but got \(3,\)"):
            GaussianNLL().update(torch.zeros(3, 1), torch.ones(3, 1), torch.zeros(3))

    @pytest.mark.parametrize("shape", [(3,), (0, 3), (2, 3, 1)])
    def test_passes_that_are_none(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"Expected `means` to have the shape \(T, \*\(3,\)\) with T >= 1 passes"):
            MixtureNLL().update(torch.zeros(shape), torch.ones(shape), torch.zeros(3))

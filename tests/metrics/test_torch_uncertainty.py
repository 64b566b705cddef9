"""Our metrics beside those of torch-uncertainty, on the same numbers, where both mean the same by a name.

Where they do not, the difference is written out. The library is installed for this test alone, without what it needs
for anything but metrics: see the Makefile.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_dropout import metrics as ours

INSTALLED = Path(__file__).parents[2] / ".venv" / "torch-uncertainty"
N, C, T = 500, 6, 7
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # what its own imports warn of
    pytest.mark.skipif(not INSTALLED.is_dir(), reason="torch-uncertainty is installed by `make test-slow` only"),
]


@pytest.fixture(scope="module")
def theirs() -> Iterator[Any]:
    sys.path.append(str(INSTALLED))
    try:
        import torch_uncertainty.metrics

        yield torch_uncertainty.metrics
    finally:
        sys.path.remove(str(INSTALLED))


@pytest.fixture(scope="module")
def samples() -> Tensor:
    """Probabilities of passes, samples and classes."""
    return (2 * torch.randn(T, N, C, generator=torch.Generator().manual_seed(0))).softmax(-1)


@pytest.fixture(scope="module")
def target(samples: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    drawn = torch.multinomial(samples.mean(0), 1, generator=generator)[:, 0]
    return torch.where(torch.rand(N, generator=generator) < 0.5, samples.mean(0).argmax(1), drawn)


def value(metric: Any, *batch: Any) -> float:
    metric.update(*batch)
    return float(metric.compute())


def test_proper_scores(theirs: Any, samples: Tensor, target: Tensor) -> None:
    mean = samples.mean(0)
    assert value(ours.BrierScore(task="multiclass"), mean, target) == pytest.approx(
        value(theirs.BrierScore(num_classes=C), mean, target), rel=1e-5
    )
    assert value(ours.NegativeLogLikelihood(task="multiclass"), mean, target) == pytest.approx(
        value(theirs.CategoricalNLL(), mean, target), rel=1e-5
    )


@pytest.mark.parametrize("norm", ["l1", "l2", "max"])
def test_calibration(norm: Any, theirs: Any, samples: Tensor, target: Tensor) -> None:
    mean = samples.mean(0)
    given = {"task": "multiclass", "num_classes": C, "num_bins": 10, "norm": norm}
    equal_width = ours.CalibrationError(task="multiclass", n_bins=10, norm=norm)
    assert value(equal_width, mean, target) == pytest.approx(
        value(theirs.CalibrationError(**given), mean, target), rel=1e-4
    )
    equal_mass = ours.CalibrationError(task="multiclass", n_bins=10, norm=norm, binning="equal_mass")
    assert value(equal_mass, mean, target) == pytest.approx(
        value(theirs.AdaptiveCalibrationError(**given), mean, target), rel=1e-3
    )


def test_calibration_of_each_class(theirs: Any, samples: Tensor, target: Tensor) -> None:
    mean = samples.mean(0)
    metric = ours.CalibrationError(task="multiclass", n_bins=15, classwise=True, num_classes=C)
    assert value(metric, mean, target) == pytest.approx(
        value(theirs.ClasswiseCalibrationError(num_classes=C, num_bins=15), mean, target), rel=1e-4
    )


def test_entropies(theirs: Any, samples: Tensor) -> None:
    mean = samples.mean(0)
    assert value(ours.PredictiveEntropy(task="multiclass"), mean) == pytest.approx(
        value(theirs.Entropy(), mean), rel=1e-5
    )
    per_sample = samples.movedim(0, 1)  # theirs has the passes second
    assert value(ours.MutualInformation(task="multiclass"), samples) == pytest.approx(
        value(theirs.MutualInformation(), per_sample), rel=1e-4
    )


def test_selective_prediction(theirs: Any, samples: Tensor, target: Tensor) -> None:
    mean = samples.mean(0)
    confidence, right = mean.amax(1), mean.argmax(1) == target
    assert value(ours.AUGRC(), confidence, right) == pytest.approx(value(theirs.AUGRC(), mean, target), abs=1 / N)
    # Ours is the mean of the N risks, theirs their trapezoids over the coverages from 1 / N on.
    assert value(ours.AURC(), confidence, right) == pytest.approx(value(theirs.AURC(), mean, target), abs=1 / N)
    accuracy = value(ours.AccuracyAtCoverage(0.8), confidence, right)
    assert 1 - accuracy == pytest.approx(value(theirs.RiskAt80Cov(), mean, target), abs=2 / N)


def test_foreign_data(theirs: Any, samples: Tensor) -> None:
    scores = torch.special.entr(samples.mean(0)).sum(1) + torch.cat([torch.zeros(N // 2), torch.full((N // 2,), 0.3)])
    foreign = torch.arange(N) >= N // 2
    # Positive is in-distribution with ours, and where its highest scores are with theirs.
    assert value(ours.FPR95(), scores, foreign) == pytest.approx(
        value(theirs.FPR95(pos_label=1), -scores, (~foreign).long()), abs=2 / N
    )


def test_intervals(theirs: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    mean, label = torch.randn(N, generator=generator), torch.randn(N, generator=generator)
    lower, upper = mean - 1.0, mean + 1.5
    assert value(ours.IntervalCoverage(), lower, upper, label) == pytest.approx(
        value(theirs.IntervalCoverage(), lower, upper, label)
    )
    assert value(ours.IntervalWidth(), lower, upper) == pytest.approx(value(theirs.MeanIntervalWidth(), lower, upper))
    variance = torch.rand(N, generator=generator) + 0.5
    normal = torch.distributions.Normal(mean, variance.sqrt())
    assert value(ours.GaussianNLL(), mean, variance, label) == pytest.approx(
        value(theirs.DistributionNLL(), normal, label), rel=1e-5
    )

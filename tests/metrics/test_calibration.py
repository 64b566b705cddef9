"""CalibrationError against torchmetrics (but for its phantom bin), numpy and known distributions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import BinaryCalibrationError, MulticlassCalibrationError

from lightning_dropout.metrics import CalibrationError

Draw = Callable[..., tuple[Tensor, Tensor]]
every_norm = pytest.mark.parametrize("norm", ["l1", "l2", "max"])


def error(task: Any, probabilities: Tensor, target: Tensor, **arguments: Any) -> float:
    metric = CalibrationError(task=task, **arguments)
    metric.update(probabilities, target)
    return metric.compute().item()


class OpenLastBin(CalibrationError):  # noqa: N818  (no exception)
    """Planted bug: the last bin is open, so that a confidence of 1.0 falls out of the table."""

    def update(self, probabilities: Tensor, target: Tensor) -> None:
        keep = probabilities.amax(1) < 1
        super().update(probabilities[keep], target[keep])


def expected(confidence: np.ndarray, right: np.ndarray, n_bins: int, norm: str) -> float:
    """The definition, bin by bin."""
    gaps, shares = [], []
    for b in range(n_bins):
        inside = (confidence >= b / n_bins) & ((confidence < (b + 1) / n_bins) | (b == n_bins - 1))
        if inside.any():
            gaps.append(abs(confidence[inside].mean() - right[inside].mean()))
            shares.append(inside.mean())
    if norm == "max":
        return max(gaps)
    order = {"l1": 1, "l2": 2}[norm]
    return sum(share * gap**order for share, gap in zip(shares, gaps, strict=True)) ** (1 / order)


class TestOracles:
    """The same number as others, where they are right."""

    @every_norm
    @pytest.mark.parametrize("n_bins", [1, 2, 10, 15])
    @pytest.mark.parametrize("classes", [2, 7])
    def test_multiclass(self, norm: str, n_bins: int, classes: int, draw: Draw) -> None:
        probabilities, target = draw("multiclass", n=2000, classes=classes)
        probabilities = probabilities.float()
        confidence, predicted = probabilities.max(1)
        assert confidence.max() < 1
        ours = error("multiclass", probabilities, target, n_bins=n_bins, norm=norm)
        theirs: Any = MulticlassCalibrationError(classes, n_bins=n_bins, norm=norm)  # type: ignore[arg-type]
        assert ours == pytest.approx(theirs(probabilities, target).item(), rel=1e-4)
        right = (predicted == target).double().numpy()
        assert ours == pytest.approx(expected(confidence.double().numpy(), right, n_bins, norm), rel=1e-6)

    @every_norm
    def test_binary(self, norm: str, draw: Draw) -> None:
        probabilities, target = draw("binary", n=2000)
        ours = error("binary", probabilities, target, n_bins=10, norm=norm)
        theirs: Any = BinaryCalibrationError(n_bins=10, norm=norm)  # type: ignore[arg-type]
        assert ours == pytest.approx(theirs(probabilities, target).item(), rel=1e-4)
        assert ours == pytest.approx(expected(probabilities.numpy(), target.double().numpy(), 10, norm), rel=1e-6)

    def test_multilabel_pools_the_labels(self, draw: Draw) -> None:
        probabilities, target = draw("multilabel")
        assert error("multilabel", probabilities, target) == error("binary", probabilities.flatten(), target.flatten())


class TestConfidenceOfOne:
    """Saturated softmaxes: where torchmetrics 1.9 makes up a bin of its own."""

    probabilities = torch.tensor([[1.0, 0.0], [0.05, 0.95]])
    target = torch.tensor([1, 1])  # sure and wrong, nearly sure and right

    def test_belongs_to_the_last_bin(self) -> None:
        metric = CalibrationError(task="multiclass", n_bins=10)
        metric.update(self.probabilities, self.target)
        assert metric.bins().count.tolist() == [0] * 9 + [2]
        assert metric.compute().item() == pytest.approx(abs((1.0 + 0.95) / 2 - 0.5))  # 0.475

    def test_torchmetrics_has_a_phantom_bin(self) -> None:
        # If this fails, torchmetrics was repaired: say so in the documentation of the class, and compare at 1.0 too.
        theirs = MulticlassCalibrationError(2, n_bins=10)(self.probabilities, self.target)
        assert theirs.item() == pytest.approx(0.5 * 1.0 + 0.5 * 0.05)  # 0.525

    def test_mutant_that_loses_it_is_seen(self) -> None:
        metric = OpenLastBin(task="multiclass", n_bins=10)
        metric.update(self.probabilities, self.target)
        assert metric.compute().item() == pytest.approx(0.05)
        assert metric.bins().count.sum() == 1

    def test_all_saturated(self) -> None:
        certain = torch.eye(4)
        assert error("multiclass", certain, torch.arange(4)) == 0
        assert error("multiclass", certain, torch.tensor([0, 1, 2, 0])) == 0.25
        assert error("binary", torch.ones(4), torch.tensor([1, 1, 1, 0])) == 0.25


class TestBins:
    """The table behind the number."""

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("n_bins", [2, 5, 10, 15])
    def test_an_edge_belongs_to_the_bin_above_it_in_every_dtype(self, n_bins: int, dtype: torch.dtype) -> None:
        edges = torch.linspace(0, 1, n_bins + 1, dtype=torch.float64).to(dtype)
        metric = CalibrationError(task="binary", n_bins=n_bins)
        metric.update(edges[:-1], torch.zeros(n_bins))
        assert metric.bins().count.tolist() == [1] * n_bins

    def test_table(self) -> None:
        metric = CalibrationError(task="binary", n_bins=4)
        metric.update(torch.tensor([0.1, 0.2, 0.6, 1.0]), torch.tensor([0, 1, 1, 1]))
        bins = metric.bins()
        assert bins.lower.tolist() == [0, 0.25, 0.5, 0.75]
        assert bins.upper.tolist() == [0.25, 0.5, 0.75, 1]
        assert bins.count.tolist() == [2, 0, 1, 1]
        torch.testing.assert_close(bins.confidence, torch.tensor([0.15, math.nan, 0.6, 1.0]), equal_nan=True)
        torch.testing.assert_close(bins.accuracy, torch.tensor([0.5, math.nan, 1.0, 1.0]), equal_nan=True)

    @every_norm
    def test_table_explains_the_number(self, norm: Any, draw: Draw) -> None:
        metric = CalibrationError(task="multiclass", norm=norm)
        metric.update(*draw("multiclass"))
        bins = metric.bins()
        gaps = (bins.confidence - bins.accuracy).abs().nan_to_num(0)
        shares = bins.count / bins.count.sum()
        by_norm = {"l1": (shares * gaps).sum(), "l2": (shares * gaps**2).sum().sqrt(), "max": gaps.max()}
        torch.testing.assert_close(metric.compute(), by_norm[norm])

    def test_table_is_of_all_ranks_and_the_metric_goes_on(
        self, draw: Draw, as_ranks: Callable[[list[Metric]], list[Metric]]
    ) -> None:
        probabilities, target = draw("multiclass")
        whole = CalibrationError(task="multiclass")
        whole.update(probabilities, target)
        ranks = [CalibrationError(task="multiclass") for _ in range(2)]
        ranks[0].update(probabilities[:300], target[:300])
        ranks[1].update(probabilities[300:], target[300:])
        for rank, own in zip(as_ranks([*ranks]), (300, 200), strict=True):
            assert isinstance(rank, CalibrationError)
            assert torch.equal(rank.bins().count, whole.bins().count)
            torch.testing.assert_close(rank.bins().confidence, whole.bins().confidence, equal_nan=True)
            assert rank.counts.sum() == own  # the local sums are back
            torch.testing.assert_close(rank.compute(), whole.compute())

    def test_memory_does_not_grow(self, draw: Draw) -> None:
        metric = CalibrationError(task="multiclass", n_bins=15)
        for seed in range(3):
            metric.update(*draw("multiclass", seed=seed))
        assert {state.shape for state in metric.metric_state.values()} == {(15,)}


class TestMeaning:
    """Predictions whose calibration is known, with a fixed seed."""

    def sample(self, temperature: float, n: int = 200_000) -> float:
        generator = torch.Generator().manual_seed(3)
        logits = 2 * torch.randn(n, generator=generator, dtype=torch.float64)
        happens = torch.rand(n, generator=generator, dtype=torch.float64) < logits.sigmoid()
        return error("binary", (logits / temperature).sigmoid(), happens.long(), n_bins=15)

    def test_true_probabilities_are_calibrated(self) -> None:
        # A gap is a mean of about n / 15 coin flips: with n = 200 000 their deviations are near 0.003 at most.
        assert self.sample(temperature=1.0) < 0.006

    @pytest.mark.parametrize("temperature", [0.5, 2.0])
    def test_sharpened_and_flattened_ones_are_not(self, temperature: float) -> None:
        logits = 2 * torch.randn(1_000_000, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        true_gap = (logits.sigmoid() - (logits / temperature).sigmoid()).abs().mean().item()
        assert self.sample(temperature) == pytest.approx(true_gap, rel=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_bins": 0}, "`n_bins` to be an integer of at least 1, but got 0"),
        ({"n_bins": 1.5}, "`n_bins` to be an integer of at least 1, but got 1.5"),
        ({"n_bins": True}, "`n_bins` to be an integer of at least 1, but got True"),
        ({"norm": "l3"}, "`norm` to be one of l1, l2, max, but got 'l3'"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"Expected {message}"):
        CalibrationError(task="multiclass", **arguments)

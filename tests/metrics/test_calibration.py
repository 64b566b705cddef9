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
from lightning_dropout.metrics import calibration as calibration_module

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


def in_equal_parts(confidence: np.ndarray, right: np.ndarray, n_bins: int, norm: str = "l1") -> float:
    """The adaptive error where no confidences tie: cut the sorted samples into parts of N/B, rounded down."""
    order = np.argsort(confidence)
    cuts = [b * len(order) // n_bins for b in range(1, n_bins)]
    parts = [part for part in np.split(order, cuts) if len(part)]
    gaps = np.array([abs(confidence[part].mean() - right[part].mean()) for part in parts])
    shares = np.array([len(part) / len(order) for part in parts])
    return {"l1": (shares * gaps).sum(), "l2": np.sqrt((shares * gaps**2).sum()), "max": gaps.max()}[norm]


class TestEqualMass:
    """Bins of equal counts."""

    @every_norm
    @pytest.mark.parametrize(("n", "n_bins"), [(1, 15), (7, 15), (15, 15), (100, 15), (101, 1), (500, 10)])
    def test_equals_cutting_the_sorted_samples(self, n: int, n_bins: int, norm: str, draw: Draw) -> None:
        probabilities, target = draw("multiclass", n=n)
        confidence, predicted = probabilities.max(1)
        right = (predicted == target).double().numpy()
        ours = error("multiclass", probabilities, target, n_bins=n_bins, norm=norm, binning="equal_mass")
        assert ours == pytest.approx(in_equal_parts(confidence.numpy(), right, n_bins, norm), rel=1e-6)

    def test_mutant_off_by_one_is_seen(self, draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
        probabilities, target = draw("binary", n=100)
        edges = calibration_module._equal_mass_edges
        monkeypatch.setattr(
            calibration_module, "_equal_mass_edges", lambda ordered, n_bins: edges(ordered.roll(-1), n_bins)
        )
        wrong = error("binary", probabilities, target, n_bins=10, norm="max", binning="equal_mass")
        right = in_equal_parts(probabilities.numpy(), target.double().numpy(), 10, "max")
        assert wrong != pytest.approx(right, rel=1e-3)

    def test_counts_are_equal_and_edges_are_confidences(self, draw: Draw) -> None:
        metric = CalibrationError(task="binary", n_bins=10, binning="equal_mass")
        probabilities, target = draw("binary", n=205)
        metric.update(probabilities, target)
        bins = metric.bins()
        assert bins.count.tolist() == [20, 21] * 5
        assert (bins.lower[0], bins.upper[-1]) == (0, 1)
        assert torch.equal(bins.lower[1:], bins.upper[:-1])
        ordered = probabilities.sort().values.float()
        assert torch.equal(bins.lower[1:], ordered[[b * 205 // 10 for b in range(1, 10)]])
        assert ((bins.confidence >= bins.lower) & (bins.confidence < bins.upper)).all()

    def test_ties_stay_together_whatever_their_order(self) -> None:
        confidence = torch.tensor([0.2, 0.5, 0.5, 0.5, 0.5, 0.9, 1.0, 1.0])
        right = torch.tensor([0, 1, 0, 0, 1, 1, 1, 0])
        results = set()
        for seed in range(20):
            order = torch.randperm(8, generator=torch.Generator().manual_seed(seed))
            metric = CalibrationError(task="binary", n_bins=4, binning="equal_mass")
            metric.update(confidence[order], right[order])
            assert metric.bins().count.tolist() == [1, 0, 5, 2]  # edges: 0.5, 0.5, 1.0
            results.add(metric.compute().item())
        assert len(results) == 1

    def test_constant_confidence_is_one_bin(self) -> None:
        metric = CalibrationError(task="binary", n_bins=5, binning="equal_mass")
        metric.update(torch.full((8,), 0.75), torch.tensor([1, 1, 1, 1, 0, 0, 0, 0]))
        assert metric.bins().count.tolist() == [0, 0, 0, 0, 8]
        assert metric.compute() == 0.25

    def test_nan_is_in_the_last_bin_and_leaves_the_others(self) -> None:
        metric = CalibrationError(task="binary", n_bins=2, binning="equal_mass")
        metric.update(torch.tensor([torch.nan, 0.1, 0.9, torch.nan]), torch.tensor([0, 0, 1, 1]))
        assert metric.bins().count.tolist() == [1, 3]
        assert metric.bins().confidence[0] == pytest.approx(0.1)

    def test_nothing_has_no_bins(self) -> None:
        metric = CalibrationError(task="binary", n_bins=2, binning="equal_mass")
        metric.update(torch.empty(0), torch.empty(0))
        assert metric.bins().count.tolist() == [0, 0]


class TestClasswise:
    """The mean over classes of each one's binary error."""

    @every_norm
    @pytest.mark.parametrize("binning", ["equal_width", "equal_mass"])
    @pytest.mark.parametrize("task", ["multiclass", "multilabel"])
    def test_is_the_mean_of_binary_errors(self, task: Any, binning: Any, norm: Any, draw: Draw) -> None:
        probabilities, target = draw(task, classes=4)
        hits = torch.stack([target == c for c in range(4)], dim=1) if task == "multiclass" else target
        alone = [error("binary", probabilities[:, c], hits[:, c].long(), binning=binning, norm=norm) for c in range(4)]
        ours = error(task, probabilities, target, binning=binning, norm=norm, classwise=True, num_classes=4)
        assert ours == pytest.approx(np.mean(alone), rel=1e-6)
        if binning == "equal_width":
            oracle = [expected(probabilities[:, c].numpy(), hits[:, c].double().numpy(), 15, norm) for c in range(4)]
            assert ours == pytest.approx(np.mean(oracle), rel=1e-6)
        assert ours != pytest.approx(error(task, probabilities, target, binning=binning, norm=norm), rel=1e-2)

    def test_table_by_class(self, draw: Draw) -> None:
        metric = CalibrationError(task="multiclass", n_bins=3, classwise=True, num_classes=4)
        probabilities, target = draw("multiclass", classes=4)
        metric.update(probabilities, target)
        bins = metric.bins()
        assert {field.shape for field in vars(bins).values()} == {(4, 3)}
        assert bins.count.sum(1).tolist() == [500] * 4
        hits = (bins.accuracy.nan_to_num(0) * bins.count).sum(1).round().long()
        assert hits.tolist() == target.bincount(minlength=4).tolist()

    @pytest.mark.parametrize("task", ["multiclass", "multilabel"])
    def test_pixels_are_samples(self, task: Any, draw: Draw) -> None:
        probabilities, target = draw(task, n=60, classes=4)
        shaped, labels = probabilities.unflatten(0, (10, 2, 3)).movedim(-1, 1), target.unflatten(0, (10, 2, 3))
        labels = labels if task == "multiclass" else labels.movedim(-1, 1)
        flat = error(task, probabilities, target, classwise=True, num_classes=4)
        assert error(task, shaped, labels, classwise=True, num_classes=4) == pytest.approx(flat)

    def test_chunks_change_nothing(self, draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
        batch = draw("multiclass", classes=4)
        whole = error("multiclass", *batch, classwise=True, num_classes=4)
        monkeypatch.setattr(calibration_module, "_AT_ONCE", 12)
        assert error("multiclass", *batch, classwise=True, num_classes=4) == whole

    def test_many_classes(self) -> None:
        metric = CalibrationError(task="multiclass", classwise=True, num_classes=10_000)
        metric.update(torch.full((20, 10_000), 1e-4), torch.arange(20))
        assert metric.counts.shape == (10_000, 15)
        # of 20 classes a twentieth of the samples, of the others none, where 1e-4 was said
        assert metric.compute().item() == pytest.approx((20 * (0.05 - 1e-4) + 9980 * 1e-4) / 10_000, rel=1e-5)


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
        ({"binning": "mass"}, "`binning` to be one of equal_width, equal_mass, but got 'mass'"),
        ({"classwise": True}, "`num_classes` with classwise=True and not else, but got None with True"),
        ({"num_classes": 3}, "`num_classes` with classwise=True and not else, but got 3 with False"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"Expected {message}"):
        CalibrationError(task="multiclass", **arguments)


def test_one_class_is_not_by_class() -> None:
    with pytest.raises(ValueError, match='Expected `classwise` with several classes, but got task="binary"'):
        CalibrationError(task="binary", classwise=True, num_classes=1)


def test_wrong_number_of_classes() -> None:
    metric = CalibrationError(task="multiclass", classwise=True, num_classes=3)
    with pytest.raises(
        ValueError, match=r"`probabilities` of num_classes=3 in dimension 1, but got the shape \(1, 2\)"
    ):
        metric.update(torch.tensor([[0.5, 0.5]]), torch.tensor([0]))

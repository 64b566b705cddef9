"""FPR95 and the AUROC of out-of-distribution scores against scikit-learn and scipy."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu
from sklearn.metrics import roc_auc_score, roc_curve
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryAUROC

from lightning_dropout.metrics import FPR95, OODAUROC, fpr95

every_metric = pytest.mark.parametrize("metric_class", [FPR95, OODAUROC])


def draw(inside: int, outside: int, seed: int, digits: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    scores = np.concatenate([generator.normal(size=inside), generator.normal(1.5, 1, outside)])
    return scores.round(digits), np.repeat([0, 1], [inside, outside])


def score(metric: Any, scores: Any, is_ood: Any) -> float:
    metric.update(torch.as_tensor(scores), torch.as_tensor(is_ood))
    return metric.compute().item()


class WithoutTies(FPR95):
    """Planted bug: samples that tie with the threshold do not pass."""

    def _value(self, scores: Tensor, flags: Tensor) -> Tensor:
        inside, outside = scores[~flags], scores[flags]
        threshold = inside.kthvalue(-(-19 * len(inside) // 20)).values
        return (outside < threshold).double().mean()


class OtherSide(FPR95):
    """Planted bug: out-of-distribution is positive."""

    def _value(self, scores: Tensor, flags: Tensor) -> Tensor:
        return fpr95(-scores, ~flags)


def by_sklearn(scores: np.ndarray, is_ood: np.ndarray) -> float:
    false, true, _ = roc_curve(1 - is_ood, -scores, drop_intermediate=False)
    return float(false[np.argmax(true >= 0.95)])


class TestOracles:
    """The same numbers as others."""

    @pytest.mark.parametrize("digits", [0, 1, 9])
    @pytest.mark.parametrize(("inside", "outside"), [(1, 1), (19, 7), (20, 7), (21, 40), (400, 300)])
    def test_fpr95(self, inside: int, outside: int, digits: int) -> None:
        for seed in range(10):
            scores, is_ood = draw(inside, outside, seed, digits)
            assert score(FPR95(), scores, is_ood) == pytest.approx(by_sklearn(scores, is_ood))

    @pytest.mark.parametrize("mutant", [WithoutTies, OtherSide])
    def test_mutants_of_fpr95_are_seen(self, mutant: type[FPR95]) -> None:
        scores, is_ood = draw(400, 300, 0, 0)
        assert score(mutant(), scores, is_ood) != pytest.approx(by_sklearn(scores, is_ood), abs=0.05)

    @pytest.mark.parametrize("digits", [0, 1, 9])
    @pytest.mark.parametrize(("inside", "outside"), [(1, 1), (20, 7), (400, 300)])
    def test_auroc(self, inside: int, outside: int, digits: int) -> None:
        scores, is_ood = draw(inside, outside, 0, digits)
        ours = score(OODAUROC(), scores, is_ood)
        assert ours == pytest.approx(roc_auc_score(is_ood, scores))
        pairs = mannwhitneyu(scores[is_ood == 1], scores[is_ood == 0]).statistic
        assert ours == pytest.approx(pairs / (inside * outside))


class TestAnyRange:
    """Only the order counts: where torchmetrics 1.9 squashes some batches and not others."""

    # Entropies: of a batch of sure predictions, all in [0, 1], and of one of unsure predictions.
    sure, unsure = torch.tensor([0.1, 0.9]), torch.tensor([0.2, 5.0])
    is_ood = torch.tensor([0, 1])

    def test_batches_are_ranked_together(self) -> None:
        metric = OODAUROC()
        metric.update(self.sure, self.is_ood)
        metric.update(self.unsure, self.is_ood)
        assert metric.compute() == 1

    def test_torchmetrics_squashes_one_of_them(self) -> None:
        # If this fails, torchmetrics was repaired: let OODAUROC inherit from it.
        theirs: Any = BinaryAUROC()
        theirs.update(self.sure, self.is_ood)
        theirs.update(self.unsure, self.is_ood)
        assert theirs.compute() == 1  # 0.9 is below sigmoid(5), and above sigmoid(0.2) = 0.55
        theirs.update(torch.tensor([0.4, 0.5]), self.is_ood)  # 0.5 is above 0.2, and yet below its sigmoid
        assert theirs.compute() == pytest.approx(8 / 9)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert BinaryAUROC()(torch.rand(3), torch.zeros(3, dtype=torch.long)) == 0  # no side, no NaN

    @every_metric
    def test_monotone_maps_change_nothing(self, metric_class: type[FPR95]) -> None:
        scores, is_ood = draw(100, 80, 0, 9)
        expected = score(metric_class(), scores, is_ood)
        for changed in (1000 * scores + 7, np.exp(5 * scores), -1e-12 * np.exp(-scores)):
            assert score(metric_class(), changed, is_ood) == expected

    @every_metric
    def test_infinities_rank_and_tie(self, metric_class: type[FPR95]) -> None:
        everywhere = torch.tensor([torch.inf, torch.inf])
        assert score(metric_class(), everywhere, [0, 1]) == (1 if metric_class is FPR95 else 0.5)


class TestExtremes:
    """Values where others crash."""

    @pytest.mark.parametrize(
        ("scores", "expected"), [([0, 1, 2, 3], (0, 1)), ([3, 2, 1, 0], (1, 0)), ([5] * 4, (1, 0.5))]
    )
    def test_apart_and_constant(self, scores: list[float], expected: tuple[float, float]) -> None:
        values = torch.tensor(scores, dtype=torch.float32)
        assert (score(FPR95(), values, [0, 0, 1, 1]), score(OODAUROC(), values, [0, 0, 1, 1])) == expected

    @every_metric
    @pytest.mark.parametrize(("side", "name"), [(0, "out-of-distribution"), (1, "in-distribution")])
    def test_one_side_alone_is_nan_with_a_reason(self, metric_class: type[FPR95], side: int, name: str) -> None:
        with pytest.warns(UserWarning, match=f"`{metric_class.__name__}` is NaN, since none of 3 samples is {name}"):
            assert np.isnan(score(metric_class(), torch.rand(3), [side] * 3))

    def test_both_numbers_share_what_they_keep(self) -> None:
        both = MetricCollection([FPR95(), OODAUROC()])
        both.update(torch.tensor([0.1, 0.2, 3.0]), torch.tensor([0, 0, 1]))
        both.update(torch.tensor([0.15]), torch.tensor([1]))
        assert len(both.compute_groups) == 1
        assert {name: value.item() for name, value in both.compute().items()} == {"FPR95": 0.5, "OODAUROC": 0.75}

"""The risk–coverage curve and its numbers against all orders of ties, thresholds and the AUROC of failures."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, roc_auc_score
from torch import Tensor
from torchmetrics import Metric

from lightning_dropout.metrics import AUGRC, AURC, AccuracyAtCoverage, risk_coverage

every_metric = pytest.mark.parametrize("metric_class", [AURC, AUGRC, AccuracyAtCoverage])


def score(metric: Any, confidence: Any, right: Any) -> float:
    metric.update(torch.as_tensor(confidence, dtype=torch.float64), torch.as_tensor(right))
    return metric.compute().item()


def draw(n: int, levels: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Confidences of few values, right the likelier the surer."""
    generator = np.random.default_rng(seed)
    confidence = generator.integers(levels, size=n) / levels
    return confidence, generator.random(n) < 0.3 + 0.6 * confidence


def curve_in_order(confidence: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """The risks where the samples' own order breaks ties."""
    order = np.argsort(-confidence, kind="stable")
    return np.cumsum(loss[order]) / np.arange(1, len(loss) + 1)


class TiesInSampleOrder(AURC):
    """Planted bug: the data set's order decides between equal confidences."""

    def _value(self, scores: Tensor, flags: Tensor) -> Tensor:
        return torch.from_numpy(curve_in_order(scores.numpy(), 1.0 - flags.numpy())).mean()


class WithoutOrigin(AUGRC):
    """Planted bug: rectangles instead of trapezoids from (0, 0)."""

    def _value(self, scores: Tensor, flags: Tensor) -> Tensor:
        return self._curve(scores, flags).generalized_risk.mean()


class TestCurve:
    """Expected over the orders of ties."""

    @pytest.mark.parametrize("losses", [[0, 1, 0, 1, 1, 0], [0.5, -2.0, 3.0, 0.1, 0.7, 9.0]])
    @pytest.mark.parametrize("confidence", [[3, 3, 3, 1, 2, 1], [1, 1, 1, 1, 1, 1], [1, 2, 3, 4, 5, 6]])
    def test_is_the_mean_over_all_orders(self, confidence: list[float], losses: list[float]) -> None:
        orders = [list(order) for order in itertools.permutations(range(6))]
        values, costs = np.array(confidence, dtype=float), np.array(losses, dtype=float)
        expected = np.mean([curve_in_order(values[order], costs[order]) for order in orders], axis=0)
        curve = risk_coverage(torch.from_numpy(values), torch.from_numpy(costs))
        np.testing.assert_allclose(curve.risk, expected, rtol=1e-12)
        np.testing.assert_allclose(curve.coverage, np.arange(1, 7) / 6)
        np.testing.assert_allclose(curve.generalized_risk, expected * np.arange(1, 7) / 6)

    def test_at_thresholds_it_is_the_plain_definition(self) -> None:
        confidence, right = draw(500, levels=20)
        curve = risk_coverage(torch.from_numpy(confidence), torch.from_numpy(1.0 - right))
        for threshold in np.unique(confidence):
            accepted = confidence >= threshold
            assert curve.risk[accepted.sum() - 1] == pytest.approx(
                1 - accuracy_score(right[accepted], np.ones(accepted.sum()))
            )

    def test_infinities_rank_and_tie(self) -> None:
        curve = risk_coverage(torch.tensor([torch.inf, -torch.inf, torch.inf, 0.0]), torch.tensor([1.0, 0.0, 0.0, 0.0]))
        torch.testing.assert_close(curve.risk.float(), torch.tensor([1 / 2, 1 / 2, 1 / 3, 1 / 4]))

    def test_nan_has_no_rank(self) -> None:
        assert risk_coverage(torch.tensor([0.1, torch.nan]), torch.tensor([0.0, 0.0])).risk.isnan().all()

    def test_of_nothing_is_empty(self) -> None:
        assert risk_coverage(torch.empty(0), torch.empty(0)).risk.shape == (0,)

    @every_metric
    def test_is_of_all_ranks_and_the_metric_goes_on(
        self, metric_class: type[AURC], as_ranks: Callable[[list[Metric]], list[Metric]]
    ) -> None:
        confidence, right = (torch.from_numpy(values) for values in draw(100, levels=9))
        ranks = [metric_class(), metric_class()]
        ranks[0].update(confidence[:70], right[:70])
        ranks[1].update(confidence[70:], right[70:])
        for rank, own in zip(as_ranks([*ranks]), (70, 30), strict=True):
            assert isinstance(rank, AURC | AUGRC | AccuracyAtCoverage)
            torch.testing.assert_close(rank.curve().risk, risk_coverage(confidence, 1 - right.double()).risk)
            assert len(rank._kept("scores")) == own


class TestNumbers:
    """Against other ways to the same number."""

    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("levels", [1, 3, 1000])
    def test_aurc_is_the_mean_over_random_orders_of_ties(self, levels: int, seed: int) -> None:
        confidence, right = draw(40, levels, seed)
        generator = np.random.default_rng(seed)
        orders = [generator.permutation(40) for _ in range(2000)]
        drawn = [curve_in_order(confidence[order], 1.0 - right[order]).mean() for order in orders]
        error = 5 * np.std(drawn) / np.sqrt(len(drawn)) + 1e-6
        assert score(AURC(), confidence, right) == pytest.approx(np.mean(drawn), abs=error)

    @pytest.mark.parametrize("levels", [1, 3, 1000])
    def test_augrc_is_the_closed_form_of_its_paper(self, levels: int) -> None:
        confidence, right = draw(300, levels)
        accuracy, auroc = right.mean(), roc_auc_score(right, confidence)
        closed = (1 - auroc) * accuracy * (1 - accuracy) + (1 - accuracy) ** 2 / 2
        assert score(AUGRC(), confidence, right) == pytest.approx(closed, rel=1e-6)
        assert score(WithoutOrigin(), confidence, right) != pytest.approx(closed, rel=1e-3)

    def test_order_of_the_samples_changes_no_bit(self) -> None:
        confidence, right = draw(300, levels=4)
        order = np.lexsort((right, confidence))
        for make in (AURC, AUGRC, AccuracyAtCoverage):
            assert score(make(), confidence, right) == score(make(), confidence[order], right[order])
        first, then = (score(TiesInSampleOrder(), confidence[o], right[o]) for o in (order, order[::-1]))
        assert abs(first - then) > 0.01

    @pytest.mark.parametrize(
        ("coverage", "accepted"), [(1.0, 100), (0.9, 90), (0.07, 7), (0.071, 8), (0.01, 1), (1e-9, 1)]
    )
    def test_accuracy_of_the_surest(self, coverage: float, accepted: int) -> None:
        generator = np.random.default_rng(0)
        confidence, right = generator.permutation(100) * 1.0, generator.random(100) < 0.5
        expected = right[np.argsort(-confidence)[:accepted]].mean()
        assert score(AccuracyAtCoverage(coverage), confidence, right) == pytest.approx(expected)

    def test_rare_failures_at_the_top_weigh_more_in_aurc_than_in_augrc(self) -> None:
        right = np.ones(100, dtype=bool)
        right[0] = False
        worst, middle = -np.arange(100.0), np.where(np.arange(100) == 0, -49.5, -np.arange(100.0))
        in_aurc = score(AURC(), worst, right) / score(AURC(), middle, right)
        in_augrc = score(AUGRC(), worst, right) / score(AUGRC(), middle, right)
        assert in_aurc > 3 * in_augrc


class TestExtremes:
    """Values where others crash."""

    @pytest.mark.parametrize("confidence", [[0.1, 0.5, 0.5, 0.9], [0.5, 0.5, 0.5, 0.5]])
    def test_all_right_and_all_wrong(self, confidence: list[float]) -> None:
        assert [score(make(), confidence, [1] * 4) for make in (AURC, AUGRC, AccuracyAtCoverage)] == [0, 0, 1]
        assert [score(make(), confidence, [0] * 4) for make in (AURC, AUGRC, AccuracyAtCoverage)] == [1, 0.5, 0]

    @pytest.mark.parametrize("right", [0, 1])
    def test_one_sample(self, right: int) -> None:
        wrong = 1 - right
        assert [score(make(), [0.3], [right]) for make in (AURC, AUGRC, AccuracyAtCoverage)] == [
            wrong,
            wrong / 2,
            right,
        ]

    def test_constant_confidence_gives_the_error_rate(self) -> None:
        right = [1, 1, 0, 0, 0, 0, 0, 0]
        assert score(AURC(), [0.5] * 8, right) == 0.75
        assert score(AUGRC(), [0.5] * 8, right) == 0.375
        assert score(AccuracyAtCoverage(), [0.5] * 8, right) == 0.25

    @every_metric
    def test_targets_in_place_of_right_are_refused(self, metric_class: type[AURC]) -> None:
        with pytest.raises(ValueError, match="Expected `right` to be a yes or no, 1 or 0, for each sample, but got 3"):
            metric_class().update(torch.rand(3), torch.tensor([0, 3, 1]))

    @pytest.mark.parametrize("coverage", [0.0, 1.5, -0.1, float("nan")])
    def test_coverage_out_of_range(self, coverage: float) -> None:
        with pytest.raises(ValueError, match=r"Expected `coverage` to lie in \(0, 1\], but got"):
            AccuracyAtCoverage(coverage)

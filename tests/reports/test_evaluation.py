"""Which figures a test has, and that they hold what the metrics say; without errors, labels or sense none fails."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_dropout.metrics import AURC, CalibrationError
from lightning_dropout.metrics.sample_scores import sample_scores
from lightning_dropout.reports.evaluation import draw_evaluation
from lightning_dropout.sampling.prediction import MCPrediction, Statistics

N, C = 120, 4
CLASS_FIGURES = ["report/reliability", "report/risk_coverage", "report/entropy"]


def predicted(task: Any, outputs: Any) -> MCPrediction:
    statistics = Statistics(task, 1)
    statistics.update(outputs)
    return statistics.result(outputs)


def classes(seed: int = 0, labelled: bool = True, size: float = 2.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = size * torch.randn(N, C, generator=generator)
    labels = torch.multinomial((logits / 2).softmax(1), 1, generator=generator)[:, 0]
    return sample_scores(predicted("multiclass", logits), labels if labelled else None)


def figures(*args: Any, **kwargs: Any) -> dict[str, Any]:
    return {drawn.key: drawn for drawn in draw_evaluation(*args, **kwargs)}


def test_the_figures_of_classes_say_what_the_metrics_say() -> None:
    found = figures({"mc": classes(), "det": classes(1), "temperature": classes(2)})
    assert [*found] == CLASS_FIGURES
    for side, name, seed in (("mc", "mc", 0), ("det", "det", 1), ("temperature", "det + temperature", 2)):
        scores = classes(seed)
        calibration, aurc = CalibrationError(task="binary"), AURC()
        calibration.update(scores["confidence"], scores["right"].long())
        aurc.update(scores["confidence"], scores["right"])
        bins = found["report/reliability"].numbers[name]
        assert torch.equal(bins.count, calibration.bins().count), side
        assert found["report/risk_coverage"].numbers[name].aurc == pytest.approx(aurc.compute().item())
    histograms = found["report/entropy"].numbers
    assert [*histograms] == ["det", "mc"]  # a temperature changes no order
    counts = histograms["mc"].counts
    assert sum(counts["wrong"]) == int((classes()["right"] == 0).sum())
    assert 0.5 < histograms["mc"].auroc["wrong"] < 1.0


def test_binary_reliability_is_that_of_yes() -> None:
    logits = 2 * torch.randn(N, generator=torch.Generator().manual_seed(0))
    labels = (torch.rand(N, generator=torch.Generator().manual_seed(1)) < logits.sigmoid()).long()
    found = figures({"mc": sample_scores(predicted("binary", logits), labels)})
    metric = CalibrationError(task="binary")
    metric.update(logits.sigmoid(), labels)
    assert torch.equal(found["report/reliability"].numbers["mc"].count, metric.bins().count)


def test_foreign_data_sets() -> None:
    surer, less_sure = classes(1, labelled=False, size=20.0), classes(2, labelled=False, size=0.1)
    found = figures({"mc": classes()}, {"noise": {"mc": less_sure}, "known": {"mc": surer}})
    assert [*found] == [*CLASS_FIGURES, "report/ood_entropy"]
    histogram = found["report/ood_entropy"].numbers["mc"]
    assert [*histogram.counts] == ["in-distribution", "noise", "known"]
    assert histogram.auroc["noise"] > 0.9
    assert histogram.auroc["known"] < 0.1


def spoilt(name: str, value: float) -> dict[str, Tensor]:
    return {**classes(), name: torch.full((N,), value)}


@pytest.mark.parametrize(
    "scores",
    [
        spoilt("right", 1.0),
        spoilt("right", 0.0),
        spoilt("right", math.nan),
        spoilt("entropy", math.nan),
        {name: values[:1] for name, values in classes().items()},
        {name: values[:0] for name, values in classes().items()},
    ],
    ids=["all right", "all wrong", "no label counts", "NaN", "one", "none"],
)
@pytest.mark.filterwarnings("ignore:`AURC` is NaN")
@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_degenerate_tests_have_figures_too(scores: dict[str, Tensor]) -> None:
    assert [*figures({"mc": scores, "det": scores})] == CLASS_FIGURES


def test_without_labels_there_is_nothing_to_judge() -> None:
    assert figures({"mc": classes(labelled=False)}) == {}


def test_without_scores_there_are_no_figures() -> None:
    assert figures({"mc": {}, "det": {}}) == {}


def values(noise: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.linspace(-1, 1, 2000)
    heads = x, torch.full_like(x, math.log(noise**2))
    label = x + torch.randn(2000, generator=generator)
    return sample_scores(predicted("gaussian", tuple(head[:, None] for head in heads)), label[:, None])


def test_intervals_of_the_right_width_hold_what_they_promise() -> None:
    found = figures({"mc": values(), "det": values(0.5)})
    tables = found["report/interval_calibration"].numbers
    assert tables["mc"].mean_gap < 0.02
    assert tables["det"].mean_gap > 0.1  # half as wide
    at = tables["mc"].nominal.index(0.95)
    assert tables["mc"].observed[at] == pytest.approx(0.95, abs=0.02)
    assert tables["mc"].width[at] == pytest.approx(2 * 1.96, rel=0.01)


@pytest.mark.parametrize("one_input", [True, False])
def test_the_band_of_one_input(one_input: bool) -> None:
    scores = values()
    if one_input:
        scores["input"] = torch.linspace(-1, 1, 2000)
    train = {"input": torch.tensor([0.0, 0.5]), "label": torch.tensor([1.0, 2.0])}
    found = figures({"mc": scores}, train=train)
    assert ("report/regression_band" in found) is one_input
    if one_input:
        assert found["report/regression_band"].numbers.data_y == (1.0, 2.0)

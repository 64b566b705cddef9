"""Reliability diagrams and coverage of intervals: what is drawn is what the tables say."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from lightning_dropout.metrics import CalibrationBins, CalibrationError
from lightning_dropout.reports import IntervalCoverage, draw_interval_coverage, draw_reliability

Check = Callable[[Any], Any]


def measured(samples: int, classes: int = 10, bins: int = 15) -> CalibrationError:
    generator = torch.Generator().manual_seed(0)
    metric = CalibrationError(task="multiclass", n_bins=bins)
    if samples:
        probabilities = torch.randn(samples, classes, generator=generator).mul(3).softmax(1)
        metric.update(probabilities, torch.randint(classes, (samples,), generator=generator))
    return metric


def bars(axes: Any) -> dict[float, float]:
    return {round(bar.get_x(), 4): bar.get_height() for bar in axes.patches}


def title(axes: Any) -> str:
    return str(axes.get_title(loc="left"))


def test_bars_points_gaps_and_counts_are_the_table(readable: Check) -> None:
    bins = measured(500).bins()
    figure = readable(draw_reliability({"mc": bins}))
    upper, lower = figure.axes
    filled = bins.count > 0
    assert not filled.all()
    accuracy = bins.accuracy[filled].double().tolist()
    assert [*bars(upper).values()] == accuracy
    assert [*bars(upper)] == pytest.approx(bins.lower[filled].tolist(), abs=1e-4)
    assert [*bars(lower).values()] == bins.count.tolist()
    (points,) = [line for line in upper.get_lines() if line.get_marker() == "o"]
    assert points.get_xydata().tolist() == [*map(list, zip(bins.confidence[filled].tolist(), accuracy, strict=True))]
    gaps = [segment[:, 1].tolist() for segment in upper.collections[0].get_segments()]
    assert gaps == [*map(list, zip(accuracy, bins.confidence[filled].tolist(), strict=True))]


def test_the_title_says_what_the_metric_says() -> None:
    for bins in (1, 4, 15):
        metric = measured(300, bins=bins)
        assert title(draw_reliability({"mc": metric.bins()}).axes[0]) == f"mc: ECE {metric.compute():.3g}"


def test_a_column_for_each_side_on_common_axes(readable: Check) -> None:
    sides = {"det": measured(200).bins(), "mc": measured(300).bins(), "det + temperature": measured(9).bins()}
    figure = readable(draw_reliability(sides))
    assert [title(axes).split("\n")[0] for axes in figure.axes[:3]] == [*sides]
    assert len({axes.get_ylim() for axes in figure.axes[3:]}) == 1
    assert all(axes.get_xlim() == (0.0, 1.0) for axes in figure.axes)


@pytest.mark.parametrize(("counts", "scale"), [([10, 400], "linear"), ([10, 600], "log"), ([0, 600], "linear")])
def test_counts_are_logarithmic_where_small_ones_would_vanish(counts: list[int], scale: str) -> None:
    half = torch.tensor([0.25, 0.75])
    bins = CalibrationBins(torch.tensor([0.0, 0.5]), torch.tensor([0.5, 1.0]), torch.tensor(counts), half, half)
    lower = draw_reliability({"mc": bins}).axes[1]
    assert lower.get_yscale() == scale
    assert lower.get_ylim()[0] < 1


def test_adaptive_bins_have_their_own_widths() -> None:
    edges = torch.tensor([0.0, 0.7, 0.9, 1.0])
    middle = (edges[1:] + edges[:-1]) / 2
    bins = CalibrationBins(edges[:-1], edges[1:], torch.tensor([5, 5, 5]), middle, middle)
    assert [bar.get_width() for bar in draw_reliability({"mc": bins}).axes[0].patches] == pytest.approx([0.7, 0.2, 0.1])


def test_nothing_one_sample_many_classes_and_nan(readable: Check) -> None:
    some = measured(50, classes=3).bins()
    unknown = dataclasses.replace(some, confidence=torch.full_like(some.confidence, math.nan))
    sides = {"none": measured(0), "one": measured(1), "10,000 classes": measured(50, 10_000)}
    tables = {name: metric.bins() for name, metric in sides.items()} | {"NaN": unknown}
    figure = readable(draw_reliability(tables))
    notes = [[text.get_text() for text in axes.texts] for axes in figure.axes[:4]]
    assert notes == [["no samples"], [], [], ["some probabilities\nare NaN"]]
    shown = [title(axes).split("ECE ")[1] for axes in figure.axes[:4]]
    assert (shown[0], shown[3]) == ("undefined", "undefined")
    assert float(shown[1]) == pytest.approx(float(sides["one"].compute()), rel=5e-3)


@pytest.mark.parametrize("count", [0, 5])
def test_too_few_or_too_many_sides(count: int) -> None:
    with pytest.raises(ValueError, match=f"Expected `sides` to hold one to four tables, but got {count}"):
        draw_reliability({str(index): measured(5).bins() for index in range(count)})


# --- intervals ------------------------------------------------------------------------------------------------------

LEVELS = np.linspace(0.1, 0.9, 9)


def test_lines_are_the_tables(readable: Check) -> None:
    sides = {"det": IntervalCoverage.of(LEVELS, LEVELS - 0.1), "mc": IntervalCoverage.of(LEVELS, LEVELS + 0.05)}
    figure = readable(draw_interval_coverage(sides))
    (axes,) = figure.axes
    _, det, mc = axes.get_lines()
    assert det.get_ydata().tolist() == (LEVELS - 0.1).tolist()
    assert mc.get_ydata().tolist() == (LEVELS + 0.05).tolist()
    assert (det.get_linestyle(), det.get_marker()) != (mc.get_linestyle(), mc.get_marker())
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["calibrated", "det: mean gap 0.1", "mc: mean gap 0.05"]


def test_widths_have_a_panel_where_they_are_known(readable: Check) -> None:
    sides = {"det": IntervalCoverage.of([0.5, 0.9, 1.0], [0.4, 0.8, 1.0], [1.0, 2.0, math.inf])}
    figure = readable(draw_interval_coverage(sides | {"mc": IntervalCoverage.of([0.5], [0.5])}))
    (width,) = figure.axes[1].get_lines()
    assert width.get_ydata()[:2].tolist() == [1.0, 2.0]
    assert np.isnan(width.get_ydata()[2])
    assert len(draw_interval_coverage({"mc": IntervalCoverage.of([0.5], [0.5])}).axes) == 1


def test_the_mean_gap() -> None:
    assert IntervalCoverage.of([0.2, 0.5, 0.9], [0.3, math.nan, 0.7]).mean_gap == pytest.approx(0.15)
    assert math.isnan(IntervalCoverage.of([], []).mean_gap)
    assert math.isnan(IntervalCoverage.of([0.5], [math.nan]).mean_gap)


def test_nothing_observed(readable: Check) -> None:
    for side in (IntervalCoverage.of([], []), IntervalCoverage.of(LEVELS, LEVELS * math.nan)):
        figure = readable(draw_interval_coverage({"mc": side}))
        assert "nothing was observed" in [text.get_text() for text in figure.axes[0].texts]
    with pytest.raises(ValueError, match="Expected `sides` to hold at least one table, but got none"):
        draw_interval_coverage({})

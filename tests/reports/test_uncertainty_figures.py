"""Risk–coverage curves and histograms of scores: counts, shares and lines against what was given."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from lightning_dropout.reports import Histogram, RiskCoverage, draw_histograms, draw_risk_coverage

Check = Callable[[Any], Any]


def curve_of(wrong: list[int], aurc: float = 0.1) -> RiskCoverage:
    """Return the curve of predictions in descending order of confidence."""
    kept = np.arange(1, len(wrong) + 1)
    return RiskCoverage.of(kept / len(wrong), np.cumsum(wrong) / kept, aurc)


def legend(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def notes(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_the_lines_are_the_curves(readable: Check) -> None:
    sides = {"det": curve_of([0, 1, 0, 0], 0.25), "mc": curve_of([0, 0, 0, 1], 0.125)}
    (axes,) = readable(draw_risk_coverage(sides)).axes
    det, perfect, random, mc, *_ = axes.get_lines()
    assert det.get_xdata().tolist() == [0.25, 0.5, 0.75, 1.0]
    assert det.get_ydata().tolist() == [0.0, 0.5, 1 / 3, 0.25]
    assert mc.get_ydata().tolist() == [0.0, 0.0, 0.0, 0.25]
    assert det.get_linestyle() != mc.get_linestyle()
    assert legend(axes) == ["det: AURC 0.25", "mc: AURC 0.125", "perfect order", "random order"]
    assert {*random.get_ydata()} == {0.25}
    # mc is in perfect order: its curve lies on the reference wherever it has a point
    assert np.interp(mc.get_xdata(), *perfect.get_data()) == pytest.approx(mc.get_ydata(), abs=2e-3)
    assert np.interp(det.get_xdata(), *perfect.get_data()) != pytest.approx(det.get_ydata(), abs=2e-3)


def test_a_million_points_become_a_thousand_with_both_ends() -> None:
    length = 1_000_000
    side = RiskCoverage.of(torch.arange(1, length + 1) / length, torch.linspace(0, 0.5, length), aurc=0.25)
    assert len(side.coverage) == len(side.risk) == 1000
    assert (side.coverage[0], side.risk[0], side.coverage[-1], side.risk[-1]) == (pytest.approx(1e-6), 0, 1, 0.5)


@pytest.mark.parametrize(
    ("side", "note"),
    [
        (curve_of([0, 0, 0], 0.0), "no prediction is wrong: nothing to leave out"),
        (curve_of([0], 0.0), "no prediction is wrong: nothing to leave out"),
        (curve_of([1], 1.0), None),
        (RiskCoverage.of([0.5, 1.0], [math.nan, math.nan], math.nan), "undefined: no risk is a number"),
        (RiskCoverage.of([], [], math.nan), "undefined: no risk is a number"),
    ],
)
def test_risks_that_say_little(side: RiskCoverage, note: str | None, readable: Check) -> None:
    (axes,) = readable(draw_risk_coverage({"mc": side})).axes
    assert notes(axes) == ([] if note is None else [note])
    bottom, top = axes.get_ylim()
    assert bottom == 0.0
    assert top >= max(side.risk, default=0.0) or math.isnan(side.aurc)
    assert axes.get_lines() == [] or (axes.get_lines()[0].get_marker() == "o") == (len(side.risk) == 1)


def test_no_sides_and_no_panels() -> None:
    with pytest.raises(ValueError, match="Expected `sides` to hold at least one curve, but got none"):
        draw_risk_coverage({})
    with pytest.raises(ValueError, match="Expected `panels` to hold at least one histogram, but got none"):
        draw_histograms({}, score="entropy, nats", title="")
    with pytest.raises(ValueError, match="Expected `coverage` and `risk` to be equally long"):
        RiskCoverage.of([0.5, 1.0], [0.5], 0.1)


# --- histograms -----------------------------------------------------------------------------------------------------


def test_counts() -> None:
    groups = {"right": [0.0, 0.1, 0.25, 1.0], "wrong": torch.tensor([0.9, math.nan, math.inf, -math.inf])}
    histogram = Histogram.of(groups, num_bins=4)
    assert histogram.edges == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert histogram.counts == {"right": (2, 1, 0, 1), "wrong": (0, 0, 0, 1)}
    assert histogram.not_finite == {"right": 0, "wrong": 3}


def test_a_common_end_keeps_what_lies_above_and_scores_below_zero_move_the_start() -> None:
    assert Histogram.of({"a": [0.5, 3.0]}, upper=1.0, num_bins=2).counts == {"a": (0, 2)}
    assert Histogram.of({"a": [-4.0, 4.0]}, num_bins=2).edges == (-4.0, 0.0, 4.0)
    assert Histogram.of({"a": [0.0, 0.0]}, num_bins=2).edges == (0.0, 0.5, 1.0)


def test_the_bars_are_shares_of_each_group(readable: Check) -> None:
    generator = np.random.default_rng(0)
    groups = {"right": generator.random(300), "wrong": 1 + generator.random(20)}
    histogram = Histogram.of(groups, auroc={"wrong": 0.987}, num_bins=10)
    figure = draw_histograms({"mc": histogram}, score="entropy, nats", title="Are wrong ones less sure?")
    (axes,) = readable(figure).axes
    assert legend(axes) == ["right (300)", "wrong (20), AUROC 0.987"]
    assert axes.get_legend().get_title().get_text() == "mc"
    for (name, scores), patch in zip(groups.items(), axes.patches, strict=True):
        values, edges, _ = patch.get_data()
        assert values == pytest.approx(np.array(histogram.counts[name]) / len(scores))
        assert values.sum() == pytest.approx(1.0)
        assert edges.tolist() == [*histogram.edges]
    assert [patch.get_fill() for patch in axes.patches] == [True, False]  # told apart without colours
    assert axes.get_xlabel() == "entropy, nats"


def test_panels_share_their_axis_and_lines_their_dashes_with_nobody(readable: Check) -> None:
    groups = {name: np.linspace(0, 1 + index, 50) for index, name in enumerate(["in", "svhn", "noise", "$x_{$"])}
    panels = {"det": Histogram.of(groups), "mc": Histogram.of({name: 2 * score for name, score in groups.items()})}
    figure = readable(draw_histograms(panels, score="entropy, nats", title="In and out of distribution"))
    assert {axes.get_xlim() for axes in figure.axes} == {(0.0, 8.0)}
    assert len({patch.get_linestyle() for patch in figure.axes[0].patches[1:]}) == 3


@pytest.mark.parametrize("place", [0, 9])
def test_one_bar_beside_which_nothing_could_be_seen_is_cut_off_and_says_so(place: int, readable: Check) -> None:
    certain = np.full(950, place / 10 + 0.05)
    histogram = Histogram.of({"right": [*certain, *np.linspace(0, 1, 50)], "wrong": np.linspace(0, 1, 40)}, num_bins=10)
    (axes,) = readable(draw_histograms({"det": histogram}, score="probability", title="")).axes
    assert notes(axes) == [" 96% of right (bar cut off) "]
    assert 0.1 < axes.get_ylim()[1] < 0.2
    alike = Histogram.of({"right": [0.1] * 50 + [0.9] * 20, "wrong": [0.9]}, num_bins=10)
    (axes,) = draw_histograms({"det": alike}, score="probability", title="").axes
    assert notes(axes) == []
    assert axes.get_ylim()[1] > 1.0


def test_groups_that_say_little(readable: Check) -> None:
    panels = {
        "no wrong": Histogram.of({"right": [0.1, 0.2], "wrong": []}, auroc={"wrong": math.nan}),
        "NaN": Histogram.of({"right": [math.nan] * 3, "wrong": [math.inf]}),
        "one": Histogram.of({"right": [0.0]}),
    }
    figure = readable(draw_histograms(panels, score="entropy, nats", title="Are wrong ones less sure?"))
    assert [legend(axes) for axes in figure.axes] == [
        ["right (2)", "wrong (none), AUROC undefined"],
        ["right (none), 3 not finite", "wrong (none), 1 not finite"],
        ["right (1)"],
    ]
    assert [notes(axes) for axes in figure.axes] == [[], ["no finite score to draw"], []]


def test_many_groups_with_long_names(readable: Check) -> None:
    groups = {
        f"photographs of shift {index}, a long name": np.random.default_rng(index).random(20) for index in range(8)
    }
    readable(draw_histograms({"mc": Histogram.of(groups)}, score="entropy, nats", title="Shift"))

"""Bands around a regression: where they are drawn, where data are missing, and that explosions stay readable."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from lightning_dropout.data import SinusoidDataModule
from lightning_dropout.reports import RegressionBand, draw_band

Check = Callable[[Any], Any]
X = np.linspace(-1.0, 1.0, 21)


def legend(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def edges(collection: Any) -> tuple[float, float]:
    """Return where a band begins and ends at x = 0."""
    corners = collection.get_paths()[0].vertices
    at_zero = corners[np.isclose(corners[:, 0], 0.0)][:, 1]
    return float(at_zero.min()), float(at_zero.max())


def test_bands_are_two_standard_deviations(readable: Check) -> None:
    order = np.random.default_rng(0).permutation(21)
    band = RegressionBand.of(
        torch.tensor(X[order])[:, None], (X + 1.0)[order], np.full(21, 0.5), np.full(21, 0.2), data_x=X, data_y=X + 1.1
    )
    figure = readable(draw_band(band, x_label="time, s", y_label="height, m"))
    (axes,) = figure.axes
    data, epistemic, total = axes.collections
    assert edges(epistemic) == pytest.approx((0.6, 1.4))
    assert edges(total) == pytest.approx((0.0, 2.0))
    assert data.get_offsets().tolist() == np.stack([X, X + 1.1], 1).tolist()
    mean = axes.get_lines()[0]
    assert (mean.get_xdata().tolist(), mean.get_ydata().tolist()) == (X.tolist(), (X + 1.0).tolist())
    assert legend(figure) == ["training data", "mean", "± 2 epistemic std", "± 2 total std"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("time, s", "height, m")
    assert len({line.get_linestyle() for line in axes.get_lines()}) == 3  # mean and both edges, without colours


def test_holes_are_where_the_sinusoid_has_none() -> None:
    data = SinusoidDataModule()
    data.setup()
    x, rows = data.test_set.inputs, data.train_set.rows
    inputs = data.train_set.inputs[rows]
    band = RegressionBand.of(x, x, x.abs(), x.abs(), data_x=inputs, data_y=data.train_set.targets[rows])
    expected = [(-6.0, -4.0), (-1.5, 1.5), (4.0, 6.0)]
    assert np.array(band.holes) == pytest.approx(np.array(expected), abs=0.1)
    figure = draw_band(band)
    assert [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in figure.axes[0].patches] == [
        pytest.approx(hole) for hole in band.holes
    ]
    assert legend(figure)[-1] == "no training data"


@pytest.mark.parametrize(
    ("data", "holes"),
    [
        ([], ()),  # nothing is known of the data: nothing is said of them
        ([0.0], ((-1.0, 0.0), (0.0, 1.0))),
        ([-5.0], ((-1.0, 1.0),)),
        ([-1.0, 1.0], ()),  # two points are as far apart as their usual distance
        (np.linspace(-2.0, 2.0, 30), ()),
        (np.random.default_rng(0).uniform(-1, 1, 30), None),  # chance leaves no holes, but both ends
        ([*np.linspace(-1.0, -0.5, 50), *np.linspace(0.5, 1.0, 50), math.nan], ((-0.5, 0.5),)),
    ],
)
def test_holes(data: Any, holes: tuple[tuple[float, float], ...] | None) -> None:
    found = RegressionBand.of(X, X, X, X, data_x=data, data_y=np.zeros(len(data))).holes
    assert len(found) == 2 if holes is None else found == holes


def test_a_band_that_explodes_leaves_the_data_to_be_seen(readable: Check) -> None:
    std = np.exp(30 * np.abs(X))
    std[:2] = math.inf
    figure = readable(draw_band(RegressionBand.of(X, X, std, std, data_x=X, data_y=X)))
    bottom, top = figure.axes[0].get_ylim()
    assert -4.0 < bottom < -1.0 < 1.0 < top < 4.0
    assert "(4 numbers are not finite and left out)" in figure._suptitle.get_text()


def test_many_are_thinned_and_said_to_be() -> None:
    x = np.linspace(0.0, 1.0, 1_000_000)
    band = RegressionBand.of(x, x, x, x, data_x=x, data_y=x)
    assert (len(band.x), len(band.data_x), band.num_data, band.holes) == (1000, 2000, 1_000_000, ())
    assert legend(draw_band(band))[0] == "training data (2,000 of 1,000,000)"


@pytest.mark.parametrize("count", [0, 1])
def test_one_input_and_none(count: int, readable: Check) -> None:
    one = np.ones(count)
    axes = readable(draw_band(RegressionBand.of(one, one, 0.2 * one, 0.1 * one))).axes[0]
    if count:
        bottom, top = axes.get_ylim()
        assert bottom < 0.6 < 1.4 < top
        assert [line.get_marker() for line in axes.get_lines()] == ["o", "_", "_", "_", "_"]


def test_nothing_finite(readable: Check) -> None:
    figure = readable(draw_band(RegressionBand.of(X, X * math.nan, X, X, data_x=X, data_y=X)))
    assert [text.get_text() for text in figure.axes[0].texts] == ["no prediction is finite"]


def test_lengths() -> None:
    with pytest.raises(ValueError, match=r"Expected `x` and `mean` and .* equally long"):
        RegressionBand.of([0, 1], [0], [0], [0])
    with pytest.raises(ValueError, match="Expected `data_x` and `data_y` to be equally long"):
        RegressionBand.of([0], [0], [0], [0], data_x=[1.0])

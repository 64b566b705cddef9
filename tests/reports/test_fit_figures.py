"""Losses over a run: every finite value where it belongs, every other one said."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lightning_dropout.reports import Curve, draw_fit

Check = Callable[[Any], Any]


def legend(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_lines_are_the_curves(readable: Check) -> None:
    losses = {"training": Curve.of([0, 1, 2], [0.9, 0.5, 0.4]), "validation": Curve.of([0, 1, 2], [0.8, 0.6, 0.7])}
    figure = readable(draw_fit(losses, Curve.of([0, 1, 2], [0.0, 0.1, 0.3]), loss="cross-entropy, nats"))
    upper, lower = figure.axes
    for line, curve in zip(upper.get_lines(), losses.values(), strict=True):
        assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == ([*curve.at], [*curve.value])
    zero, gap = lower.get_lines()
    assert {*zero.get_ydata()} == {0.0}
    assert gap.get_ydata().tolist() == [0.0, 0.1, 0.3]
    assert legend(upper) == ["training: lowest 0.4 at epoch 2, last 0.4", "validation: lowest 0.6 at epoch 1, last 0.7"]
    assert legend(lower) == ["validation − training (above 0: overfitting): last 0.3"]
    assert len({(line.get_linestyle(), line.get_marker()) for line in (*upper.get_lines(), gap)}) == 3
    assert (upper.get_ylabel(), lower.get_xlabel()) == ("cross-entropy, nats", "epoch")


def test_long_curves_become_means_of_neighbours() -> None:
    value = np.random.default_rng(0).random(2_500)
    curve = Curve.of(np.arange(2_500), value)
    assert len(curve.at) == 834  # of three each, one at the end
    assert curve.at[:2] == (1.0, 4.0)
    assert curve.value[1] == pytest.approx(value[3:6].mean())
    assert curve.value[-1] == value[-1]
    assert curve.value[:-1] != pytest.approx(value[1:-1:3])  # thinned they would be noisier
    assert Curve.of([], []) == Curve((), ())
    assert Curve.of(np.arange(1000), value[:1000]).value == tuple(value[:1000])


@pytest.mark.parametrize(("lowest", "scale"), [(0.5, "linear"), (0.01, "log"), (0.0, "linear"), (-0.1, "linear")])
def test_losses_that_fall_far_are_logarithmic(lowest: float, scale: str) -> None:
    assert draw_fit({"training": Curve.of([0, 1], [1.0, lowest])}).axes[0].get_yscale() == scale


def test_what_is_not_finite_is_a_hole_and_a_cross(readable: Check) -> None:
    losses = {name: Curve.of(range(5), [1.0, 0.5, math.nan, math.inf, 0.4]) for name in ("training", "validation")}
    axes = readable(draw_fit(losses)).axes[0]
    line, _, _, crosses = axes.get_lines()
    assert np.isnan(line.get_ydata()).tolist() == [False, False, True, True, False]
    assert crosses.get_xdata().tolist() == [2.0, 3.0]
    assert legend(axes)[1] == "training: not finite (2 of 5 points)"
    axes.figure.draw_without_rendering()
    to_pixels = (line.get_transform().transform, crosses.get_transform().transform)
    highest, cross = (one([0.0, y])[1] for one, y in zip(to_pixels, (1.0, crosses.get_ydata()[0]), strict=True))
    assert highest < cross < axes.get_window_extent().y1


def test_an_infinite_loss_among_averaged_neighbours_is_not_lost() -> None:
    value = np.ones(10_000)
    value[[5, 7000]] = math.inf, math.nan
    assert sum(not math.isfinite(one) for one in Curve.of(np.arange(10_000), value).value) == 2


def test_curves_that_say_little(readable: Check) -> None:
    one = readable(draw_fit({"training": Curve.of([0], [0.5])}, Curve.of([0], [0.1])))
    assert one.axes[0].get_xlim() == (-1.0, 1.0)
    assert one.axes[0].get_lines()[0].get_marker() == "o"
    for curve in (Curve.of([0, 1], [math.nan, math.inf]), Curve.of([], [])):
        nothing = readable(draw_fit({"training": curve}, curve))
        assert [text.get_text() for axes in nothing.axes for text in axes.texts] == ["no finite value to draw"] * 2
        assert legend(nothing.axes[0])[0] == "training: nothing finite"
    with pytest.raises(ValueError, match="Expected `losses` to hold at least one curve, but got none"):
        draw_fit({})

"""Rates read back from a log, drawn as the plan is."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex

from lightning_dropout.reports import draw_rates, rate_table, realised_rates

STEPS = np.arange(10)
RISING = STEPS / 20


def over_all(mean: Any, low: Any = None, high: Any = None) -> dict[str, Any]:
    low, high = (mean if values is None else values for values in (low, high))
    return {f"dropout/{name}": (STEPS, values) for name, values in {"mean": mean, "min": low, "max": high}.items()}


def test_the_line_holds_each_rate_until_the_next_and_the_last_to_the_end(readable: Callable[[Any], Any]) -> None:
    curves = realised_rates({"dropout/head": ([4, 9], [0.1, 0.3])}, steps=20)
    figure = readable(draw_rates(curves, steps=20, epochs=None, title="Rates that the run had"))
    (line,) = figure.axes[0].get_lines()
    assert line.get_drawstyle() == "steps-post"
    assert [*line.get_xdata()] == [4.0, 9.0, 20.0]
    assert [*line.get_ydata()] == [0.1, 0.3, 0.3]
    assert curves[0].mean == curves[0].low == curves[0].high == (0.1, 0.3, 0.3)
    assert line.get_label() == "head"  # of how many sites no log tells


def test_all_sites_with_their_range_where_no_group_is_all_of_them() -> None:
    logged = over_all(RISING, RISING / 2, RISING * 2) | {"dropout/body": (STEPS, RISING / 2)}
    assert [curve.label for curve in realised_rates(logged, steps=10)] == ["body", "all"]
    (curve,) = realised_rates(over_all(RISING, RISING / 2, RISING * 2), steps=10)
    assert (curve.label, curve.mean[4], curve.low[4], curve.high[4]) == ("all", 0.2, 0.1, 0.4)


def test_a_group_that_is_all_sites_is_drawn_once_with_their_range() -> None:
    (curve,) = realised_rates(over_all(RISING, RISING / 2) | {"dropout/net": (STEPS, RISING)}, steps=10)
    assert (curve.label, curve.low[4]) == ("net", 0.1)


def test_many_steps_are_thinned() -> None:
    (curve,) = realised_rates({"dropout/y": (np.arange(5000), np.arange(5000) / 5000)}, steps=5000)
    assert len(curve.at) == len(curve.high) == 1001
    assert (curve.at[0], curve.at[-2], curve.mean[-2]) == (0.0, 0.9998, 0.9998)


def test_families_and_other_keys() -> None:
    logged = {"drop_path/x": (STEPS, RISING), "dropout/y": (STEPS, RISING), "train/loss": (STEPS, RISING)}
    assert [(curve.family, curve.label) for curve in realised_rates(logged, steps=10)] == [
        ("drop_path", "x"),
        ("dropout", "y"),
    ]
    assert realised_rates({"dropout/y": ([], []), "train/loss": ([0], [1.0])}, steps=10) == []


def test_the_table_leaves_the_sites_out() -> None:
    _, row = rate_table(realised_rates({"dropout/y": ([0, 5], [0.1, 0.2])}, steps=10)).splitlines()
    assert row.split() == ["dropout/y", "0.1", "0.2", "0.2"]


@pytest.mark.parametrize("at", [[0, 10], [-1, 3]])
def test_steps_outside_the_run(at: list[int]) -> None:
    with pytest.raises(ValueError, match=r"Expected the steps of `dropout/y` to lie in a run of 10 steps, but got"):
        realised_rates({"dropout/y": (at, [0.1, 0.2])}, steps=10)


def test_the_range_has_the_colour_of_its_line() -> None:
    figure = draw_rates(realised_rates(over_all(RISING, RISING / 2), steps=10), steps=10, epochs=None)
    (band,), (line,) = figure.axes[0].collections, figure.axes[0].get_lines()
    assert to_hex(band.get_facecolor()[0]) == line.get_color().lower()

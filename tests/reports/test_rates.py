"""Figures of rates: what is drawn is what the schedules say, and people can read it."""

import io
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot
from PIL import Image

from lightning_dropout.clock import RunLength
from lightning_dropout.log_keys import DROP_PATH, DROPOUT
from lightning_dropout.reports import RateCurve, draw_rates, rate_table
from lightning_dropout.reports.rates import on_one_axis
from lightning_dropout.schedules import Constant, Cosine, Early, Late, Linear, Schedule


def curve_of(
    schedule: Schedule,
    *,
    steps: int = 40,
    family: str = DROPOUT,
    label: str = "all",
    sites: int = 2,
    spread: float = 0.0,
) -> RateCurve:
    at = tuple(step / steps for step in range(steps + 1))
    mean = tuple(schedule(progress) for progress in at)
    low, high = (tuple(rate * factor for rate in mean) for factor in (1.0 - spread, 1.0 + spread))
    return RateCurve(family, label, sites, at, mean, low, high)


def lines_of(figure: Any, panel: int = 0) -> dict[str, Any]:
    return {str(line.get_label()).partition(" (")[0]: line for line in figure.axes[panel].get_lines()}


def rates_drawn(line: Any, x: list[float]) -> list[float]:
    """Return how high the drawn line is at ``x``, steps included."""
    assert line.get_drawstyle() == "steps-post"
    at, rates = line.get_xdata(), line.get_ydata()
    return [float(rates[max(index for index, start in enumerate(at) if start <= one + 1e-9)]) for one in x]


SCHEDULES = [Linear(0.0, 0.5), Cosine(0.5, 0.0), Early(0.5, until=0.5), Late(0.5, begin=0.25), Constant(0.2)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
@pytest.mark.parametrize(("epochs", "per_epoch"), [(4, 10), (None, None)])
def test_the_line_is_the_schedule_at_every_step(schedule: Schedule, epochs: int | None, per_epoch: int | None) -> None:
    figure = draw_rates([curve_of(schedule)], steps=40, epochs=epochs)
    during = [(step + share) / (per_epoch or 1) for step in range(40) for share in (0.0, 0.5, 0.99)]
    expected = [schedule(step / 40) for step in range(40) for _ in range(3)]
    assert rates_drawn(lines_of(figure)["all"], during) == expected


def test_the_last_step_holds_to_the_end_of_the_run() -> None:
    line = lines_of(draw_rates([curve_of(Linear(0.0, 1.0), steps=4)], steps=4, epochs=None))["all"]
    assert [*line.get_xdata()] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert [*line.get_ydata()] == [0.0, 0.25, 0.5, 0.75, 0.75]  # with 1.0 nothing is trained


def test_a_jump_stands_upright() -> None:
    """Counted in pixels: between two steps a sloping line would take the width of a step, some 90 of them."""
    figure = draw_rates([curve_of(Late(0.5, begin=0.5), steps=8)], steps=8, epochs=None)
    pixels = np.asarray(Image.open(saved(figure)).convert("RGB")).astype(int)
    blue = np.abs(pixels - (0x00, 0x72, 0xB2)).sum(axis=2) < 10
    half_way = int(blue.any(axis=1).argmax() + np.flatnonzero(blue.any(axis=1))[-1]) // 2
    assert 1 <= blue[half_way].sum() <= 6


def saved(figure: Any) -> io.BytesIO:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    file.seek(0)
    return file


def test_a_band_where_sites_differ_and_nowhere_else() -> None:
    curves = [curve_of(Linear(0.0, 0.4), label="wide", spread=0.5), curve_of(Constant(0.3), label="alike")]
    figure = draw_rates(curves, steps=40, epochs=None)
    (band,) = figure.axes[0].collections
    corners = band.get_paths()[0].vertices
    at_the_end = corners[corners[:, 0] == 40.0][:, 1]
    assert (at_the_end.min(), at_the_end.max()) == pytest.approx((0.2 * 39 / 40, 0.6 * 39 / 40))
    assert legend(figure)[-1] == "range over sites"
    assert legend(draw_rates(curves[1:], steps=40, epochs=None)) == ["alike (2 sites)"]


def legend(figure: Any, panel: int = 0) -> list[str]:
    return [text.get_text() for text in figure.axes[panel].get_legend().get_texts()]


def test_the_legend_lists_the_lines_as_they_end() -> None:
    curves = [
        curve_of(Early(0.1, until=0.5), label="low"),
        curve_of(Early(0.5, until=0.5), label="high"),
        curve_of(Linear(0.0, 0.2), label="head", sites=1),
    ]
    assert legend(draw_rates(curves, steps=1, epochs=1)) == ["head (1 site)", "high (2 sites)", "low (2 sites)"]


def test_a_panel_for_each_family_and_one_x_axis() -> None:
    depth = curve_of(Linear(0.0, 0.2), family=DROP_PATH)
    dropout = [curve_of(Constant(0.1), label="attn"), curve_of(Constant(0.5), label="head")]
    figure = draw_rates([depth, *dropout], steps=40, epochs=4)
    assert [axes.get_ylabel() for axes in figure.axes] == ["dropout rate", "stochastic-depth rate"]
    assert [len(axes.get_lines()) for axes in figure.axes] == [2, 1]
    assert [axes.get_xlabel() for axes in figure.axes] == ["", "epoch"]
    assert figure.axes[0].get_shared_x_axes().joined(*figure.axes)
    assert len(draw_rates([depth], steps=40, epochs=4).axes) == 1


@pytest.mark.parametrize("schedule", [Constant(0.0), Constant(1.0), Linear(0.2, 0.1)], ids=repr)
def test_y_begins_at_0_and_ends_above_the_highest_rate(schedule: Schedule) -> None:
    bottom, top = draw_rates([curve_of(schedule, spread=0.5)], steps=40, epochs=4).axes[0].get_ylim()
    assert bottom == 0.0
    assert top > 1.5 * schedule(0.0)


@pytest.mark.parametrize(
    ("steps", "epochs", "label", "end", "top"),
    [
        (1380, 60, "epoch", 60, "step"),
        (Fraction(1380), Fraction(60), "epoch", 60, "step"),
        (None, 60, "epoch", 60, None),
        (None, 1, "epoch", 1, None),
        (1380, None, "step", 1380, None),
        (1380, 1, "step", 1380, None),  # one long epoch: nobody counts in parts of it
        (5, Fraction(5, 23), "step", 5, None),
        (None, None, "fraction of the run", 1, None),
    ],
)
def test_the_x_axis(steps: Any, epochs: Any, label: str, end: float, top: str | None) -> None:
    axes = draw_rates([curve_of(Linear(0.0, 0.5))], steps=steps, epochs=epochs).axes[0]
    assert axes.get_xlabel() == label
    assert axes.get_xlim() == (0.0, end)
    assert lines_of(axes.figure)["all"].get_xdata()[-1] == end
    above = axes.child_axes
    assert [one.get_xlabel() for one in above] == ([] if top is None else [top])
    for one in above:
        axes.figure.draw_without_rendering()
        assert one.get_xlim() == pytest.approx((0.0, float(steps)))


@pytest.mark.parametrize(("steps", "shown"), [(2000, "500"), (375_300, "50k"), (4_000_000, "1M")])
def test_many_steps_are_shortened(steps: int, shown: str) -> None:
    for epochs in (None, 300):
        axes = draw_rates([curve_of(Linear(0.0, 0.5))], steps=steps, epochs=epochs).axes[0]
        axes.figure.draw_without_rendering()
        axis = axes.child_axes[0] if epochs else axes
        assert shown in [tick.get_text() for tick in axis.get_xticklabels()]


def test_everything_stands_inside_the_figure() -> None:
    curves = [
        curve_of(Linear(0.0, 0.1 + index / 40), label=f"backbone_blocks_{index}_attn", sites=12) for index in range(20)
    ]
    words = "experiment=vit_cifar10 callbacks/dropout=linear callbacks.dropout.scale.end=0.5 " * 2
    figure = draw_rates([*curves, curve_of(Constant(0.1), family=DROP_PATH)], steps=1e6, epochs=300, title=words)
    figure.draw_without_rendering()
    width, height = figure.canvas.get_width_height()
    parts = [
        figure._suptitle,
        *(axes.get_legend() for axes in figure.axes),
        *(axes.yaxis.label for axes in figure.axes),
    ]
    for part in parts:
        box = part.get_window_extent()
        assert 0 <= box.x0 < box.x1 <= width
        assert 0 <= box.y0 < box.y1 <= height
    first, second = (axes.get_legend().get_window_extent() for axes in figure.axes)
    assert first.y0 > second.y1  # one below the other
    assert figure.axes[0].get_window_extent().width > width / 3  # and the lines have room


def test_as_many_groups_as_one_likes_look_different() -> None:
    figure = draw_rates([curve_of(Constant(0.1), label=str(index)) for index in range(28)], steps=40, epochs=4)
    looks = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].get_lines()}
    assert len(looks) == 28
    assert {line.get_linestyle() for line in figure.axes[0].get_lines()[:7]} == {"-"}


def test_no_figure_is_left_to_pyplot() -> None:
    before = pyplot.get_fignums()
    image = Image.open(saved(draw_rates([curve_of(Constant(0.1))], steps=40, epochs=4, title="words")))
    assert pyplot.get_fignums() == before
    assert image.width > 1000  # sharp where W&B shows it large


def test_nothing_to_draw() -> None:
    with pytest.raises(ValueError, match="Expected `curves` to hold at least one group's rate, but got none"):
        draw_rates([], steps=1, epochs=1)


# --- several schedulers ---------------------------------------------------------------------------------------------


def test_a_shorter_run_ends_early_and_holds() -> None:
    short, long = curve_of(Linear(0.0, 0.5), steps=2), curve_of(Linear(0.5, 0.0), steps=2)
    (first, second), length = on_one_axis(
        [([short], RunLength(Fraction(10), Fraction(1))), ([long], RunLength(Fraction(40), Fraction(4)))]
    )
    assert length == RunLength(Fraction(40), Fraction(4))
    assert (first.at, first.mean) == ((0.0, 0.125, 0.25, 1.0), (0.0, 0.25, 0.5, 0.5))
    assert first.low == first.high == first.mean
    assert second == long


@pytest.mark.parametrize(
    ("lengths", "expected", "ends"),
    [
        ([RunLength(Fraction(10), None), RunLength(Fraction(20), Fraction(2))], (20, 2), [0.5, 1.0]),
        ([RunLength(None, Fraction(3)), RunLength(Fraction(20), Fraction(2))], (None, 3), [1.0, 2 / 3]),
        ([RunLength(None, Fraction(3)), RunLength(Fraction(20), None)], (None, None), [1.0, 1.0]),
        ([RunLength(Fraction(7), None)] * 2, (7, None), [1.0, 1.0]),
    ],
)
def test_lengths_are_compared_in_a_unit_that_all_know(
    lengths: list[RunLength], expected: tuple[int | None, int | None], ends: list[float]
) -> None:
    curves, length = on_one_axis([([curve_of(Constant(0.1), steps=2)], one) for one in lengths])
    assert (length.steps, length.epochs) == expected
    assert [curve.at[2] for curve in curves] == pytest.approx(ends)
    assert {curve.at[-1] for curve in curves} == {1.0}


# --- the table ------------------------------------------------------------------------------------------------------


def test_table() -> None:
    curves = [
        curve_of(Late(0.1, begin=0.5), steps=1000, sites=17),
        curve_of(Early(0.4, until=0.5), steps=1000, family=DROP_PATH, label="body", spread=1.0, sites=8),
    ]
    assert rate_table(curves).splitlines() == [
        "group           sites           first            peak  last",
        "dropout/all        17               0             0.1   0.1",
        "drop_path/body      8  0.4 (0 to 0.8)  0.4 (0 to 0.8)     0",
    ]


def test_the_last_rate_of_the_table_is_trained_with() -> None:
    _, row = rate_table([curve_of(Linear(0.0, 1.0), steps=4)]).splitlines()
    assert [float(number) for number in row.split()[2:]] == [0.0, 0.75, 0.75]
    assert math.isclose(Linear(0.0, 1.0)(3 / 4), 0.75)

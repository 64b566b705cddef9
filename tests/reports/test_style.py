"""The look of all figures, and that the tests of the others would see an unreadable one."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from lightning_dropout.reports.style import (
    COLOURS,
    UNCLIPPED,
    add_legend,
    add_note,
    new_figure,
    number,
    shorten_thousands,
    tidy,
)

Check = Callable[[Any], Any]


def test_users_words_are_no_formulas(readable: Check) -> None:
    figure = new_figure(3.0, "costs $1 and $2_{")
    axes = figure.subplots()
    (line,) = axes.plot([0, 1])
    add_legend(axes, {"$a_{$": line, "_under": line}, title="$b$")
    readable(figure)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["$a_{$", "_under"]
    figure = new_figure(3.0)
    figure.suptitle("$a_{$")
    with pytest.raises(ValueError, match="Expected end_group"):  # as matplotlib would take them
        readable(figure)


def test_numbers() -> None:
    assert [number(value) for value in (0.0, 1.0, 12345.0, math.inf, math.nan)] == [
        "0",
        "1",
        "1.23e+04",
        "inf",
        "undefined",
    ]


@pytest.mark.parametrize(("most", "expected"), [(9_999, "8000"), (50_000, "40k"), (1e6, "800k")])
def test_thousands(most: float, expected: str) -> None:
    figure = new_figure(2.0)
    axes = figure.subplots()
    axes.set_xlim(0, most)
    shorten_thousands(axes.xaxis, most)
    figure.draw_without_rendering()
    assert expected in [tick.get_text() for tick in axes.get_xticklabels()]


def test_a_note_takes_no_room() -> None:
    figure = new_figure(2.0)
    column = figure.subplots(1, 4)
    add_note(column[0], "a long word about why there is nothing to see here at all")
    figure.draw_without_rendering()
    assert len({round(axes.get_window_extent().width) for axes in column}) == 1


def test_a_line_without_points_takes_no_room() -> None:
    heights = {}
    for name, options in {"ours": UNCLIPPED, "theirs": {"clip_on": False}}.items():
        figure = new_figure(4.0)
        rows = figure.subplots(2)
        rows[0].plot([], [], marker="o", **options)
        figure.draw_without_rendering()
        heights[name] = rows[0].get_window_extent().height
    assert heights["ours"] > 2 * heights["theirs"]


def test_no_colour_comes_twice() -> None:
    assert len({*COLOURS}) == len(COLOURS) == 7


def overlapping(figure: Any) -> None:
    axes = figure.subplots()
    axes.text(0.5, 0.5, "one")
    axes.text(0.51, 0.5, "other")


def outside(figure: Any) -> None:
    figure.subplots().text(0.9, 0.5, "runs out of the figure on the right").set_in_layout(False)


def crushed(figure: Any) -> None:
    figure.subplots(2)[0].plot([], [], marker="o", clip_on=False)


def empty(figure: Any) -> None:
    figure.subplots().axis("off")


@pytest.mark.parametrize("draw", [overlapping, outside, crushed, empty])
def test_the_check_sees_what_cannot_be_read(draw: Callable[[Any], None], readable: Check) -> None:
    figure = new_figure(4.0)
    draw(figure)
    with pytest.raises(AssertionError):
        readable(figure)


def test_the_check_lets_a_plain_figure_pass(readable: Check) -> None:
    figure = new_figure(2.0, "title")
    tidy(figure.subplots(1, 2)[0])
    readable(figure)

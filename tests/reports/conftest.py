"""What every figure must be: readable, and nobody's but its owner's."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from matplotlib import pyplot
from matplotlib.backends.backend_agg import FigureCanvasAgg


def texts(figure: Any) -> Iterator[Any]:
    """Yield all words of a figure, numbers on the axes included."""
    legends = [*figure.legends, *(legend for axes in figure.axes if (legend := axes.get_legend()))]
    for legend in legends:
        yield from (legend.get_title(), *legend.get_texts())
    if figure._suptitle:
        yield figure._suptitle
    for axes in figure.axes:
        if axes.axison:
            yield from (*axes.texts, axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label)
            for axis in (axes.xaxis, axes.yaxis):
                yield from (tick.label1 for tick in axis._update_ticks() if tick.label1.get_visible())


def check_readable(figure: Any) -> Any:
    """Assert that all words lie inside the figure, no two on each other, and that the axes have room."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    width, height = figure.canvas.get_width_height()
    assert width == 1080
    boxes = [
        (text.get_text(), text.get_window_extent(renderer))
        for text in texts(figure)
        if text.get_visible() and text.get_text()
    ]
    assert boxes
    for words, box in boxes:
        assert -1 <= box.x0 < box.x1 <= width + 1, f"{words!r} runs out of the figure"
        assert -1 <= box.y0 < box.y1 <= height + 1, f"{words!r} runs out of the figure"
    for (first, one), (second, other) in itertools.combinations(boxes, 2):
        apart = one.x1 <= other.x0 + 2 or other.x1 <= one.x0 + 2 or one.y1 <= other.y0 + 2 or other.y1 <= one.y0 + 2
        assert apart, f"{first!r} lies on {second!r}"
    for axes in figure.axes:
        assert min(axes.get_window_extent(renderer).size) > 80, "axes without room"
    return figure


@pytest.fixture
def readable() -> Iterator[Callable[[Any], Any]]:
    """Check a figure, and at the end that pyplot knows of none."""
    before = pyplot.get_fignums()
    yield check_readable
    assert pyplot.get_fignums() == before

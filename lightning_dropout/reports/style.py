"""What all figures share: size, colours, how axes look, how a missing number reads. Knows no metric and no curve.

Figures stand for themselves: none is known to pyplot, whose global figures nobody would close.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = [
    "COLOURS",
    "DASHES",
    "DPI",
    "MARKERS",
    "MINOR",
    "UNCLIPPED",
    "add_legend",
    "add_note",
    "new_figure",
    "number",
    "shorten_thousands",
    "tidy",
]

# Okabe & Ito (2008), https://jfly.uni-koeln.de/color/, told apart by the colour-blind; without the yellow, which
# disappears on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D")
MINOR = "0.4"  # grey of what is said in passing
# Of lines that may lie on the edge of their axes, half of which would be cut off. Without points, such a line counts as
# one in the corner of the figure, to which the axes would make room.
UNCLIPPED: dict[str, Any] = {"clip_on": False, "in_layout": False}
DPI = 150
_WIDTH = 7.2  # inches: 1080 pixels


def new_figure(height: float, title: str = "") -> Figure:
    """Return an empty figure, 7.2 inches wide.

    Args:
        height: In inches.
        title: Stands above it, from the left.

    Example:
        >>> new_figure(3.0, "Reliability").get_size_inches().tolist()
        [7.2, 3.0]
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), dpi=DPI, layout="constrained")
    if title:
        # users' words are no formulas: two dollar signs would be one
        figure.suptitle(title, x=0.01, ha="left", fontsize="medium", wrap=True).set_parse_math(False)
    return figure


def tidy(axes: Axes, grid: Literal["x", "y", "both"] = "y") -> None:
    """Draw a light grid behind the data, and no frame on the sides without numbers."""
    axes.grid(axis=grid, color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def add_note(axes: Axes, text: str) -> None:
    """Write into the middle of ``axes`` why they show little or nothing."""
    axes.text(
        0.5,
        0.5,
        text,
        transform=axes.transAxes,
        ha="center",
        va="center",
        color=MINOR,
        zorder=5,
        fontsize="small",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8},
    ).set_in_layout(False)  # no axes shrink to nothing to make room for it


def add_legend(where: Axes | Figure, entries: Mapping[str, Any], **options: Any) -> None:
    """Write a legend without a frame: labels as they are, also with ``$``, and what each is drawn as.

    Args:
        where: The axes or the figure that it belongs to.
        entries: For each label the artist.
        options: Of matplotlib's ``legend``.
    """
    legend = where.legend(entries.values(), entries, frameon=False, **options)
    for text in (legend.get_title(), *legend.get_texts()):
        text.set_parse_math(False)


def number(value: float) -> str:
    """Return three digits of a number; that of nothing is undefined.

    Example:
        >>> number(0.123456), number(float("nan"))
        ('0.123', 'undefined')
    """
    return "undefined" if math.isnan(value) else f"{value:.3g}"


def shorten_thousands(axis: Axis, most: float) -> None:
    """Write 50k for 50000 on an axis that goes up to ``most``, if that is many."""
    from matplotlib.ticker import EngFormatter

    if most >= 10_000:
        axis.set_major_formatter(EngFormatter(sep=""))

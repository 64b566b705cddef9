"""How a run went: losses on training and validation data, and the gap between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_dropout.reports.arrays import MOST_POINTS, Numbers, equally_long
from lightning_dropout.reports.style import (
    COLOURS,
    DASHES,
    MARKERS,
    MINOR,
    add_legend,
    add_note,
    new_figure,
    number,
    shorten_thousands,
    tidy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Curve", "draw_fit"]

_LOG_FROM = 50.0  # ratio of the highest to the lowest loss above which the end of a run would be a flat line
_FEW = 40  # points that each get a marker


@dataclass(frozen=True)
class Curve:
    """Logged values over a run.

    Args:
        at: Epochs or steps, ascending.
        value: What was logged there.
    """

    at: tuple[float, ...]
    value: tuple[float, ...]

    @classmethod
    def of(cls, at: Numbers, value: Numbers) -> Curve:
        """Make a curve of at most 1000 points: means of neighbours where more were logged.

        One value that is not finite makes the mean of its neighbours so.

        Raises:
            ValueError: If both are not equally long.

        Example:
            >>> Curve.of([0, 1], [0.5, 0.25])
            Curve(at=(0.0, 1.0), value=(0.5, 0.25))
            >>> len(Curve.of(range(10_000), range(10_000)).at)
            1000
        """
        columns = equally_long(at=at, value=value)
        size = -(-len(columns[0]) // MOST_POINTS) or 1
        starts = np.arange(0, len(columns[0]), size)
        if size > 1:
            lengths = np.diff([*starts, len(columns[0])])
            with np.errstate(invalid="ignore"):  # inf - inf
                columns = [np.add.reduceat(column, starts) / lengths for column in columns]
        return cls(*(tuple(column.tolist()) for column in columns))


def draw_fit(
    losses: Mapping[str, Curve], gap: Curve | None = None, *, unit: str = "epoch", loss: str = "loss"
) -> Figure:
    """Draw the losses of a run, and below the gap between them.

    Where a value is not finite, the line has a hole and a cross stands at the upper edge.

    Args:
        losses: Curves by name: ``{"training": ..., "validation": ...}``.
        gap: Validation minus training loss, as it is logged; without it there is no second panel.
        unit: Of the x-axis.
        loss: What the losses are, with their unit: ``"cross-entropy, nats"``.

    Returns:
        A figure of its own. ``losses`` and ``gap`` are its numbers.

    Raises:
        ValueError: If there are no losses.

    Example:
        >>> figure = draw_fit({"validation": Curve.of([0, 1, 2], [0.5, 0.25, 0.3])})
        >>> figure.axes[0].get_legend().get_texts()[0].get_text()
        'validation: lowest 0.25 at epoch 1, last 0.3'
    """
    if not losses:
        raise ValueError("Expected `losses` to hold at least one curve, but got none.")
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(
        (3.2 if gap is None else 5.0) + 0.2 * len(losses),
        f"Fit: loss over the run{'' if gap is None else ' and generalisation gap'}",
    )
    column = figure.subplots(1 if gap is None else 2, sharex=True, squeeze=False)[:, 0]
    _draw_curves(column[0], {name: (curve, _summary(curve, unit)) for name, curve in losses.items()})
    column[0].set_ylabel(loss)
    finite = np.array([value for curve in losses.values() for value in curve.value if np.isfinite(value)])
    if len(finite) and finite.min() > 0 and finite.max() > _LOG_FROM * finite.min():
        column[0].set_yscale("log")
    if gap is not None:
        column[1].axhline(0.0, color=MINOR, linewidth=1)
        last = number(gap.value[-1]) if gap.value else "nothing"
        _draw_curves(column[1], {"validation − training (above 0: overfitting)": (gap, f"last {last}")}, len(losses))
        column[1].set_ylabel("gap")
    column[-1].set_xlabel(unit)
    column[-1].xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=[1, 2, 5, 10]))
    at = {x for curve in losses.values() for x in curve.at}
    if len(at) == 1:
        column[-1].set_xlim(min(at) - 1.0, max(at) + 1.0)
    shorten_thousands(column[-1].xaxis, max(at, default=0.0))
    figure.align_ylabels()
    return figure


def _draw_curves(axes: Axes, curves: Mapping[str, tuple[Curve, str]], first_look: int = 0) -> None:
    """Draw curves, each with what the legend says of it."""
    entries: dict[str, Any] = {}
    any_finite = False
    for look, (name, (curve, summary)) in enumerate(curves.items(), start=first_look):
        at, value = np.array(curve.at), np.array(curve.value)
        finite = np.isfinite(value)
        any_finite |= bool(finite.any())
        colour = COLOURS[look % len(COLOURS)]
        (entries[f"{name}: {summary}"],) = axes.plot(
            at,
            np.where(finite, value, np.nan),
            color=colour,
            linestyle=DASHES[look % len(DASHES)],
            linewidth=1.8,
            marker=MARKERS[look % len(MARKERS)] if len(at) <= _FEW else "",
            markersize=4,
        )
        if not finite.all():
            axes.margins(y=0.15)  # no line goes where the crosses are
            (entries[f"{name}: not finite ({(~finite).sum():,} of {len(value):,} points)"],) = axes.plot(
                at[~finite],
                np.full((~finite).sum(), 0.97 - 0.05 * (look - first_look)),
                color=colour,
                linestyle="",
                marker="x",
                markersize=5,
                transform=axes.get_xaxis_transform(),  # y in parts of the axes
            )
    if not any_finite:
        add_note(axes, "no finite value to draw")
        axes.set_yticks([])
    # above the axes: inside, lines may be anywhere
    add_legend(axes, entries, loc="lower left", bbox_to_anchor=(0.0, 1.0), borderaxespad=0.2, fontsize="small")
    tidy(axes)


def _summary(curve: Curve, unit: str) -> str:
    value = np.array(curve.value)
    finite = np.isfinite(value)
    if not finite.any():
        return "nothing finite"
    lowest = int(np.argmin(np.where(finite, value, np.inf)))
    return f"lowest {number(value[lowest])} at {unit} {curve.at[lowest]:.6g}, last {number(value[-1])}"

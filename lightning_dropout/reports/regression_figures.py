"""A regression of one input: its mean, how unsure it is of it, and where it had no data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_dropout.reports.arrays import Array, Numbers, equally_long, evenly
from lightning_dropout.reports.style import COLOURS, DASHES, add_legend, add_note, new_figure, tidy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["RegressionBand", "draw_band"]

_MOST_DATA = 2000  # points that are drawn
_HOLE = 0.05  # least width of a hole in the data, in parts of their range ...
_SPACINGS = 10  # ... and in median distances between neighbours


@dataclass(frozen=True)
class RegressionBand:
    """A prediction over one input, and the data that it was trained on.

    Args:
        x: Inputs, ascending.
        mean: Predicted there.
        total_std: Standard deviation of the prediction, noise included; equal to the epistemic one if no noise is
            predicted.
        epistemic_std: Standard deviation over the passes.
        data_x: Inputs of training samples, ascending.
        data_y: Their targets.
        num_data: How many there are, also where fewer are listed.
        holes: Intervals of x without training data: before the first, beyond the last, and between neighbours much
            farther apart than usual.
    """

    x: tuple[float, ...]
    mean: tuple[float, ...]
    total_std: tuple[float, ...]
    epistemic_std: tuple[float, ...]
    data_x: tuple[float, ...]
    data_y: tuple[float, ...]
    num_data: int
    holes: tuple[tuple[float, float], ...]

    @classmethod
    def of(
        cls,
        x: Numbers,
        mean: Numbers,
        total_std: Numbers,
        epistemic_std: Numbers,
        *,
        data_x: Numbers = (),
        data_y: Numbers = (),
    ) -> RegressionBand:
        """Sort by input, find the holes, and take at most 1000 inputs and 2000 training samples, evenly.

        Shape:
            All of a prediction ``(N,)`` or ``(N, 1)``, the data ``(M,)`` or ``(M, 1)``.

        Raises:
            ValueError: If columns that belong together are not equally long.

        Example:
            >>> band = RegressionBand.of([3.0, 0.0], [1.0, 2.0], [0.5, 0.5], [0.1, 0.1], data_x=[1, 2], data_y=[0, 1])
            >>> band.x, band.mean, band.holes
            ((0.0, 3.0), (2.0, 1.0), ((0.0, 1.0), (2.0, 3.0)))
        """
        rows = np.stack(equally_long(x=x, mean=mean, total_std=total_std, epistemic_std=epistemic_std))
        rows = rows[:, np.argsort(rows[0], kind="stable")]
        data = np.stack(equally_long(data_x=data_x, data_y=data_y))
        data = data[:, np.argsort(data[0], kind="stable")]
        kept, shown = rows[:, evenly(rows.shape[1])], data[:, evenly(data.shape[1], _MOST_DATA)]
        across, means, totals, epistemics, inputs, targets = (tuple(row.tolist()) for row in (*kept, *shown))
        holes = _holes(rows[0], data[0])
        return cls(across, means, totals, epistemics, inputs, targets, data.shape[1], holes)


def draw_band(band: RegressionBand, *, x_label: str = "x", y_label: str = "y") -> Figure:
    """Draw mean, two standard deviations around it, the training data, and where there were none.

    Args:
        band: The prediction.
        x_label: The input, with its unit.
        y_label: The target, with its unit.

    Returns:
        A figure of its own. ``band`` are its numbers. Its y-axis shows the data and the mean; where a band leaves that
        far behind, it is cut.

    Example:
        >>> band = RegressionBand.of([0.0, 1.0], [1.0, 2.0], [0.5, 0.5], [0.1, 0.1])
        >>> [text.get_text() for text in draw_band(band).legends[0].get_texts()]
        ['mean', '± 2 epistemic std', '± 2 total std']
    """
    x, mean, total, epistemic = map(np.array, (band.x, band.mean, band.total_std, band.epistemic_std))
    lost = sum(int((~np.isfinite(column)).sum()) for column in (mean, total, epistemic))
    title = "Regression: the prediction and how unsure it is"
    figure = new_figure(4.2, title + (f" ({lost:,} numbers are not finite and left out)" if lost else ""))
    axes = figure.subplots()
    alone = len(x) == 1  # a line of one point is nothing to see
    entries: dict[str, Any] = {}
    if band.data_x:
        shown = "" if len(band.data_x) == band.num_data else f" ({len(band.data_x):,} of {band.num_data:,})"
        entries[f"training data{shown}"] = axes.scatter(
            band.data_x, band.data_y, s=6, color="0.35", linewidth=0, zorder=2
        )
    (entries["mean"],) = axes.plot(
        x, _finite(mean), color=COLOURS[0], linewidth=2, marker="o" if alone else "", zorder=4
    )
    for std, label, alpha, dash in ((epistemic, "epistemic", 0.4, DASHES[1]), (total, "total", 0.18, DASHES[3])):
        low, high = _finite(mean - 2 * std), _finite(mean + 2 * std)
        area = axes.fill_between(x, low, high, color=COLOURS[0], alpha=alpha, linewidth=0)
        edges = [
            axes.plot(x, edge, color=COLOURS[0], linewidth=1, linestyle=dash, marker="_" if alone else "")[0]
            for edge in (low, high)
        ]
        entries[f"± 2 {label} std"] = (area, edges[0])
    for start, end in band.holes:
        entries["no training data"] = axes.axvspan(
            start, end, facecolor="0.95", edgecolor="0.8", hatch="//", linewidth=0, zorder=0
        )
    if not np.isfinite(mean).any():
        add_note(axes, "no prediction is finite")
    axes.set(xlabel=x_label, ylabel=y_label)
    if np.isfinite(x).any():
        start, end = np.nanmin(x), np.nanmax(x)
        axes.set_xlim((start, end) if end > start else (start - 0.5, start + 0.5))
    axes.set_ylim(_limits(band))
    tidy(axes)
    add_legend(figure, entries, loc="outside lower center", ncols=3)
    return figure


def _limits(band: RegressionBand) -> tuple[float, float]:
    """Return where y begins and ends: data and mean, and of the bands up to as much again on both sides."""
    mean, std = np.array(band.mean), 2 * np.array(band.total_std)
    middle = np.array([*mean, *band.data_y])
    middle = middle[np.isfinite(middle)]
    if not len(middle):
        return 0.0, 1.0
    low, high = middle.min(), middle.max()
    reach = np.concatenate([mean - std, mean + std, middle])
    reach = reach[np.isfinite(reach)]
    room = high - low or np.ptp(reach) or 1.0
    return max(reach.min(), low - room) - 0.05 * room, min(reach.max(), high + room) + 0.05 * room


def _holes(x: Array, data: Array) -> tuple[tuple[float, float], ...]:
    x, data = x[np.isfinite(x)], data[np.isfinite(data)]
    if not len(x) or not len(data):
        return ()
    steps = np.diff(data)
    least = max(_HOLE * np.ptp(data), _SPACINGS * np.median(steps)) if len(steps) else np.inf
    inside = [(data[index], data[index + 1]) for index in np.flatnonzero(steps > least)]
    outside = [(x[0], min(data[0], x[-1])), (max(data[-1], x[0]), x[-1])]
    return tuple((float(start), float(end)) for start, end in sorted([*inside, *outside]) if start < end)


def _finite(values: Array) -> Array:
    return np.where(np.isfinite(values), values, np.nan)

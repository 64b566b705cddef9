"""Whether probabilities and intervals keep what they promise: reliability diagrams and coverage of intervals.

Draws tables that metrics have made; computes nothing that a metric logs, except the one number in each title, which
follows from the table beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_dropout.reports.arrays import Array, Numbers, as_array, equally_long
from lightning_dropout.reports.style import (
    COLOURS,
    DASHES,
    MARKERS,
    MINOR,
    UNCLIPPED,
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

    from lightning_dropout.metrics.calibration import CalibrationBins

__all__ = ["IntervalCoverage", "draw_interval_coverage", "draw_reliability"]

_LOG_FROM = 50.0  # ratio of the fullest to the emptiest filled bin above which small counts would be invisible


@dataclass(frozen=True)
class IntervalCoverage:
    """How many targets lay in the central intervals that a regression predicted for them.

    Args:
        nominal: Probabilities of the intervals, in [0, 1].
        observed: Shares of the targets inside, in [0, 1].
        width: Mean widths of the intervals, in units of the target; empty if unknown.
    """

    nominal: tuple[float, ...]
    observed: tuple[float, ...]
    width: tuple[float, ...] = ()

    @classmethod
    def of(cls, nominal: Numbers, observed: Numbers, width: Numbers | None = None) -> IntervalCoverage:
        """Make a table of arrays or tensors.

        Raises:
            ValueError: If they are not equally long.

        Example:
            >>> IntervalCoverage.of([0.5, 0.9], np.array([0.4, 0.8])).observed
            (0.4, 0.8)
        """
        columns = {"nominal": nominal, "observed": observed} | ({} if width is None else {"width": width})
        return cls(*(tuple(array.tolist()) for array in equally_long(**columns)))

    @property
    def mean_gap(self) -> float:
        """Mean of ``|observed - nominal|`` over the levels where something was observed; NaN if nowhere."""
        gaps = np.abs(np.array(self.observed) - np.array(self.nominal))
        return float(np.mean(gaps[~np.isnan(gaps)])) if not np.isnan(gaps).all() else math.nan


def draw_reliability(sides: Mapping[str, CalibrationBins]) -> Figure:
    """Draw how often predictions of each confidence were right, and below how many they are.

    A column for each side. A bar is the accuracy of a bin; the point on it lies at the bin's mean confidence, and the
    line from there to the diagonal is the gap that the error averages.

    Args:
        sides: Tables by name: ``{"det": ..., "mc": ..., "det + temperature": ...}``, at most four.

    Returns:
        A figure of its own. ``sides`` are its numbers.

    Raises:
        ValueError: If there is no side, or more than four.

    Example:
        >>> from lightning_dropout.metrics import CalibrationError
        >>> import torch
        >>> metric = CalibrationError(task="multiclass", n_bins=2)
        >>> metric.update(torch.tensor([[1.0, 0.0], [0.8, 0.2]]), torch.tensor([0, 1]))
        >>> draw_reliability({"mc": metric.bins()}).axes[0].get_title(loc="left")
        'mc: ECE 0.4'
    """
    if not 1 <= len(sides) <= 4:
        raise ValueError(f"Expected `sides` to hold one to four tables, but got {len(sides)}; draw several figures.")
    figure = new_figure(5.0, "Reliability: is what is predicted with 80 % confidence right 80 % of the time?")
    rows = figure.subplots(2, len(sides), sharex=True, sharey="row", squeeze=False, height_ratios=[3, 1])
    counts = np.concatenate([as_array(bins.count) for bins in sides.values()])
    for column, ((name, bins), upper, lower) in enumerate(zip(sides.items(), *rows, strict=True)):
        entries = _draw_bins(upper, bins)
        _draw_counts(lower, bins)
        between = ": " if len(sides) < 3 else "\n"  # three in one line would touch each other
        title = f"{name}{between}ECE {number(_ece(bins))}"
        upper.set_title(title, loc="left", fontsize="medium").set_parse_math(False)
        lower.set_xlabel("confidence")
        if column == 0:
            upper.set_ylabel("accuracy")
            lower.set_ylabel("samples")
    ticks = (0.0, 0.5, 1.0) if len(sides) > 2 else (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # else neighbours' numbers meet
    rows[0, 0].set(xlim=(0.0, 1.0), ylim=(0.0, 1.02), xticks=ticks)
    filled = counts[counts > 0]
    if len(filled) and filled.max() > _LOG_FROM * filled.min():
        rows[1, 0].set_yscale("log")
        rows[1, 0].set_ylim(bottom=0.5)  # below 1: a single sample is to be seen
        rows[1, 0].minorticks_off()
    else:
        rows[1, 0].set_ylim(bottom=0.0)
        shorten_thousands(rows[1, 0].yaxis, counts.max(initial=0.0))
    figure.align_ylabels()
    add_legend(figure, entries, loc="outside lower center", ncols=len(entries))
    return figure


def draw_interval_coverage(sides: Mapping[str, IntervalCoverage]) -> Figure:
    """Draw how many targets lay in predicted intervals against how many ought to, and how wide these were.

    Args:
        sides: Tables by name.

    Returns:
        A figure of its own; the widths stand in a second panel where one side has some. ``sides`` are its numbers.

    Raises:
        ValueError: If there is no side.

    Example:
        >>> figure = draw_interval_coverage({"mc": IntervalCoverage.of([0.5, 0.9], [0.4, 0.8])})
        >>> [text.get_text() for text in figure.legends[0].get_texts()]
        ['calibrated', 'mc: mean gap 0.1']
    """
    if not sides:
        raise ValueError("Expected `sides` to hold at least one table, but got none.")
    figure = new_figure(4.2, "Calibration of intervals: do 90 % of the targets lie in the 90 % intervals?")
    with_width = any(side.width for side in sides.values())
    panels = figure.subplots(1, 1 + with_width, squeeze=False)[0]
    (diagonal,) = panels[0].plot([0, 1], [0, 1], color="black", linewidth=1, linestyle=":")
    entries = {"calibrated": diagonal}
    for index, (name, side) in enumerate(sides.items()):
        look: dict[str, Any] = {
            "color": COLOURS[index % len(COLOURS)],
            "linestyle": DASHES[index % len(DASHES)],
            "marker": MARKERS[index % len(MARKERS)],
            "zorder": 3,
            **UNCLIPPED,
        }
        label = f"{name}: mean gap {number(side.mean_gap)}"
        (entries[label],) = panels[0].plot(side.nominal, side.observed, **look)
        if side.width:
            width = np.array(side.width)
            panels[1].plot(side.nominal, np.where(np.isfinite(width), width, np.nan), **look)
    for x, y, align, words in ((0.03, 0.97, "left", "intervals too wide"), (0.97, 0.03, "right", "too narrow")):
        panels[0].text(x, y, words, color=MINOR, ha=align, va="top" if y > 0.5 else "bottom", fontsize="small")
    if all(math.isnan(side.mean_gap) for side in sides.values()):
        add_note(panels[0], "nothing was observed")
    for axes in panels:
        axes.set(xlim=(0, 1), xlabel="nominal coverage")
        tidy(axes, "both")
    panels[0].set(ylim=(0, 1), ylabel="observed coverage", aspect="equal" if with_width else "auto")
    if with_width:
        panels[1].set_ylabel("mean width, units of y")
        panels[1].set_ylim(bottom=0.0)
    add_legend(figure, entries, loc="outside lower center", ncols=3)
    return figure


def _draw_bins(axes: Axes, bins: CalibrationBins) -> dict[str, Any]:
    lower, upper, count, confidence, accuracy = _columns(bins)
    filled = count > 0
    bars = axes.bar(
        lower[filled],
        accuracy[filled],
        width=(upper - lower)[filled],
        align="edge",
        color=COLOURS[5],
        edgecolor="white",
        linewidth=0.8,
    )
    (diagonal,) = axes.plot([0, 1], [0, 1], color="black", linewidth=1, linestyle=":")
    x, y = confidence[filled], accuracy[filled]
    known = ~np.isnan(x)
    x, y = x[known], y[known]
    gaps = axes.vlines(x, y, x, color=COLOURS[1], linewidth=2.5)
    (points,) = axes.plot(x, y, color=COLOURS[0], linestyle="", marker="o", markersize=4, **UNCLIPPED)
    if not filled.any():
        add_note(axes, "no samples")
    elif not known.all():
        add_note(axes, "some probabilities\nare NaN")
    tidy(axes)
    return {"accuracy of a bin": bars, "at its mean confidence": points, "gap": gaps, "calibrated": diagonal}


def _draw_counts(axes: Axes, bins: CalibrationBins) -> None:
    lower, upper, count, _, _ = _columns(bins)
    axes.bar(lower, count, width=upper - lower, align="edge", color="0.6", edgecolor="white", linewidth=0.8)
    tidy(axes)


def _ece(bins: CalibrationBins) -> float:
    _, _, count, confidence, accuracy = _columns(bins)
    filled = count > 0
    if not filled.any():
        return math.nan
    return float(np.average(np.abs(accuracy - confidence)[filled], weights=count[filled]))


def _columns(bins: CalibrationBins) -> list[Array]:
    return equally_long(
        lower=bins.lower, upper=bins.upper, count=bins.count, confidence=bins.confidence, accuracy=bins.accuracy
    )

"""Rates over a run as a figure: one panel for each family of sites, one line for each group.

Draws what it is given, before, during or after a run: no trainer, no model, no pyplot (whose global figures nobody
would close).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from lightning_dropout.clock import RunLength
from lightning_dropout.log_keys import DROP_PATH, DROPOUT, rate_key
from lightning_dropout.reports.style import COLOURS, DASHES, MINOR, new_figure, shorten_thousands, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["RateCurve", "draw_rates", "on_one_axis", "rate_table"]

_FAMILIES = {DROPOUT: "dropout rate", DROP_PATH: "stochastic-depth rate"}
_LEGEND_LINE = 0.22  # inches


@dataclass(frozen=True)
class RateCurve:
    """The rate of one group of sites over a run.

    Args:
        family: ``log_keys.DROPOUT`` or ``log_keys.DROP_PATH``: a panel each.
        label: The group, as in the logs.
        sites: How many sites it has, if known.
        at: Fractions of the run, ascending from 0 to 1. A rate holds from its fraction to the next one.
        mean: The rate there, averaged over the sites.
        low: The lowest rate of a site there.
        high: The highest.
    """

    family: str
    label: str
    sites: int | None
    at: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def on_one_axis(runs: Sequence[tuple[Sequence[RateCurve], RunLength]]) -> tuple[list[RateCurve], RunLength]:
    """Bring the curves of schedulers that take the run for differently long (``total=``) onto the longest of them.

    Args:
        runs: For each scheduler its curves and the length that their fractions are of.

    Returns:
        All curves, each holding its last rate to the end, and the length that their fractions are now of; nothing is
        known of it where the lengths share no unit.

    Example:
        >>> curve = RateCurve("dropout", "all", 1, at=(0.0, 1.0), mean=(0.0, 0.5), low=(0.0, 0.5), high=(0.0, 0.5))
        >>> short, long = RunLength(Fraction(10), None), RunLength(Fraction(20), None)
        >>> curves, length = on_one_axis([([curve], short), ([curve], long)])
        >>> [curve.at for curve in curves], length.steps
        ([(0.0, 0.5, 1.0), (0.0, 1.0)], Fraction(20, 1))
    """
    lengths = [length for _, length in runs]
    steps = [length.steps for length in lengths if length.steps is not None]
    epochs = [length.epochs for length in lengths if length.epochs is not None]
    if len(steps) == len(runs):
        shares = [own / max(steps) for own in steps]
        longest = lengths[steps.index(max(steps))]
    elif len(epochs) == len(runs):
        shares = [own / max(epochs) for own in epochs]
        longest = RunLength(None, max(epochs))
    else:
        shares = [Fraction(1)] * len(runs)
        longest = RunLength(None, None)
    curves = [_shortened(curve, share) for (own, _), share in zip(runs, shares, strict=True) for curve in own]
    return curves, longest


def draw_rates(
    curves: Sequence[RateCurve],
    *,
    steps: float | Fraction | None,
    epochs: float | Fraction | None,
    title: str = "",
) -> Figure:
    """Draw rates over a run.

    A line is the mean over the sites of a group, the band around it their lowest to highest rate where these differ.

    Args:
        curves: At least one.
        steps: Optimizer steps of the run, if known.
        epochs: Epochs of the run, if known. They are the x-axis, with steps at the top; runs of one epoch or less, or
            of an unknown number, are drawn over steps, and those of which neither is known over fractions.
        title: Stands above the figure.

    Returns:
        A figure of its own; ``figure.savefig(path)`` writes it.

    Raises:
        ValueError: If there are no curves.

    Example:
        >>> rates = (0.0, 0.1, 0.1)
        >>> curve = RateCurve("dropout", "all", 9, at=(0.0, 0.5, 1.0), mean=rates, low=rates, high=rates)
        >>> figure = draw_rates([curve], steps=1380, epochs=60)
        >>> figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()
        ('epoch', 'dropout rate')
    """
    if not curves:
        raise ValueError("Expected `curves` to hold at least one group's rate, but got none; is there a scheduler?")
    panels: dict[str, list[RateCurve]] = {}
    for curve in sorted(curves, key=lambda curve: [*_FAMILIES].index(curve.family)):
        panels.setdefault(_FAMILIES[curve.family], []).append(curve)
    heights = [max(2.2, _LEGEND_LINE * (len(panel) + 1)) for panel in panels.values()]
    figure = new_figure(sum(heights) + 1.0, title)
    column = figure.subplots(len(panels), sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    unit, length = _unit(steps, epochs)
    for axes, (label, panel) in zip(column, panels.items(), strict=True):
        _draw_panel(axes, panel, length)
        axes.set_ylabel(label)
    _label_x(column[-1], unit, length)
    if unit == "epoch" and steps:
        _add_steps(column[0], float(steps), length)
    figure.align_ylabels()
    return figure


def rate_table(curves: Sequence[RateCurve]) -> str:
    """Return what a group's rate is at the first step of a run, at its highest and at the last step, as text.

    The mean over its sites; where these differ, with the lowest and the highest.

    Example:
        >>> curve = RateCurve("dropout", "head", 2, (0.0, 0.5, 1.0), (0.0, 0.2, 0.4), (0.0, 0.1, 0.2), (0.0, 0.3, 0.6))
        >>> print(rate_table([curve]))
        group         sites  first              peak              last
        dropout/head      2      0  0.2 (0.1 to 0.3)  0.2 (0.1 to 0.3)
    """
    rows = [["group", "sites", "first", "peak", "last"]]
    for curve in curves:
        rates = [*zip(*map(_held, (curve.mean, curve.low, curve.high)), strict=True)]
        shown = [_shown(*each) for each in (rates[0], max(rates), rates[-1])]
        rows.append([rate_key(curve.family, curve.label), "" if curve.sites is None else str(curve.sites), *shown])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows)


def _shown(mean: float, low: float, high: float) -> str:
    return f"{mean:.3g}" if low == high else f"{mean:.3g} ({low:.3g} to {high:.3g})"


def _shortened(curve: RateCurve, share: Fraction) -> RateCurve:
    """Return ``curve`` over the first ``share`` of a run, and its last rate from there on."""
    if share == 1:
        return curve
    return replace(
        curve,
        at=(*(float(share) * at for at in curve.at), 1.0),
        mean=(*curve.mean, curve.mean[-1]),
        low=(*curve.low, curve.low[-1]),
        high=(*curve.high, curve.high[-1]),
    )


def _unit(steps: float | Fraction | None, epochs: float | Fraction | None) -> tuple[str, float]:
    if epochs and (epochs > 1 or not steps):
        return "epoch", float(epochs)
    return ("step", float(steps)) if steps else ("fraction of the run", 1.0)


def _draw_panel(axes: Axes, curves: Sequence[RateCurve], length: float) -> None:
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    lines = {}
    for index, curve in enumerate(curves):
        x = [length * at for at in curve.at]
        colour = COLOURS[index % len(COLOURS)]
        dash = DASHES[index // len(COLOURS) % len(DASHES)]  # the next one when the colours are used up
        sites = "" if curve.sites is None else f" ({curve.sites} site{'' if curve.sites == 1 else 's'})"
        # Steps, since a rate holds until the next one: a jump stands upright, and short runs show what they really do.
        # Not clipped, or half of a line at 0 would lie under the axis.
        (lines[index],) = axes.step(
            x,
            _held(curve.mean),
            where="post",
            color=colour,
            linestyle=dash,
            linewidth=2,
            label=curve.label + sites,
            clip_on=False,
            zorder=3,
        )
        if curve.low != curve.high:
            axes.fill_between(
                x, _held(curve.low), _held(curve.high), step="post", color=colour, alpha=0.15, linewidth=0
            )
    by_end = sorted(lines, key=lambda index: (-curves[index].mean[-1], -max(curves[index].mean)))  # as they end
    handles: list[object] = [lines[index] for index in by_end]
    if any(curve.low != curve.high for curve in curves):
        handles.append(Patch(color="black", alpha=0.15, linewidth=0, label="range over sites"))
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0, frameon=False)
    axes.set_xlim(0.0, length)
    axes.set_ylim(0.0, 1.05 * max(max(curve.high) for curve in curves) or 1.0)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    tidy(axes)


def _held(rates: Sequence[float]) -> list[float]:
    """Return what is in force up to the end of the run: the rate at its very end is never trained with."""
    return [*rates[:-1], *rates[-2:-1]]


def _label_x(axes: Axes, unit: str, length: float) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(unit)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=length >= 4, steps=[1, 2, 5, 10]))
    if unit == "step":
        shorten_thousands(axes.xaxis, length)


def _add_steps(axes: Axes, steps: float, epochs: float) -> None:
    def to_steps(epoch: Any) -> Any:
        return epoch * steps / epochs

    def to_epochs(step: Any) -> Any:
        return step * epochs / steps

    top = axes.secondary_xaxis("top", functions=(to_steps, to_epochs))
    top.set_xlabel("step", color=MINOR)
    top.tick_params(colors=MINOR)
    top.spines["top"].set_visible(False)
    shorten_thousands(top.xaxis, steps)

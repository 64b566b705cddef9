"""What uncertainty is good for: does it order predictions by risk, tell wrong from right, foreign from familiar?

Takes scores and curves, not predictions: which score is drawn, and how a curve is defined, metrics decide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_dropout.reports.arrays import Numbers, as_array, equally_long, evenly
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
    tidy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Histogram", "RiskCoverage", "draw_histograms", "draw_risk_coverage"]

_WIDE = 40  # characters of a label that two columns have no room for
_LEGEND_LINE = 0.2  # inches
_LONELY = 4.0  # times the next highest bar: what is higher is cut off
# Dashes of the two thin lines of a side: dots, and short strokes far apart.
_PERFECT, _RANDOM = (0, (1, 2)), (0, (4, 6))


@dataclass(frozen=True)
class RiskCoverage:
    """The error rate among the predictions that a model is surest of.

    Args:
        coverage: Shares of the predictions that are kept, ascending in (0, 1].
        risk: Error rate among these, in [0, 1].
        aurc: Area under the curve, as it is logged.
    """

    coverage: tuple[float, ...]
    risk: tuple[float, ...]
    aurc: float

    @classmethod
    def of(cls, coverage: Numbers, risk: Numbers, aurc: float) -> RiskCoverage:
        """Take at most 1000 points of a curve of any length, evenly, the first and the last among them.

        Raises:
            ValueError: If coverage and risk are not equally long.

        Example:
            >>> RiskCoverage.of(np.array([0.5, 1.0]), [0.0, 0.5], aurc=0.25)
            RiskCoverage(coverage=(0.5, 1.0), risk=(0.0, 0.5), aurc=0.25)
        """
        kept, risks = equally_long(coverage=coverage, risk=risk)
        places = evenly(len(kept))
        return cls(tuple(kept[places].tolist()), tuple(risks[places].tolist()), float(aurc))


@dataclass(frozen=True)
class Histogram:
    """How a score is distributed in several groups of samples.

    Args:
        edges: Of the bins, ascending; one more than bins.
        counts: Samples in each bin, for each group.
        not_finite: How many samples of a group have a score that is NaN or infinite, and lie in no bin.
        auroc: How well the score tells a group from the first one, as it is logged; for none, some or all groups.
    """

    edges: tuple[float, ...]
    counts: Mapping[str, tuple[int, ...]]
    not_finite: Mapping[str, int]
    auroc: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        groups: Mapping[str, Numbers],
        *,
        auroc: Mapping[str, float] | None = None,
        upper: float | None = None,
        num_bins: int = 30,
    ) -> Histogram:
        """Count scores in bins of equal width that begin at 0, or at the lowest score if that is below.

        Args:
            groups: Scores by group: ``{"right": ..., "wrong": ...}``.
            auroc: By group, as it is logged.
            upper: Where the bins end, for several histograms to share; by default at the highest score. Scores above
                are counted in the last bin.
            num_bins: Number of bins, at least 1.

        Example:
            >>> Histogram.of({"right": [0.1, 0.2], "wrong": [1.0, math.nan]}, num_bins=2).counts
            {'right': (2, 0), 'wrong': (0, 1)}
        """
        scores = {name: as_array(values) for name, values in groups.items()}
        finite = {name: values[np.isfinite(values)] for name, values in scores.items()}
        every = np.concatenate([np.zeros(1), *finite.values()])
        start, end = every.min(), every.max() if upper is None else upper
        edges = np.linspace(start, end if end > start else start + 1.0, num_bins + 1)
        return cls(
            edges=tuple(edges.tolist()),
            counts={
                name: tuple(np.histogram(values.clip(edges[0], edges[-1]), edges)[0].tolist())
                for name, values in finite.items()
            },
            not_finite={name: len(values) - len(finite[name]) for name, values in scores.items()},
            auroc={name: float(value) for name, value in (auroc or {}).items()},
        )


def draw_risk_coverage(sides: Mapping[str, RiskCoverage]) -> Figure:
    """Draw the error rate of what is kept when the predictions that a model is least sure of are left out.

    Two thin lines belong to each side: what a perfect order would reach (all wrong ones left out first), and what a
    random one would (the error rate of all).

    Args:
        sides: Curves by name.

    Returns:
        A figure of its own. ``sides`` are its numbers.

    Raises:
        ValueError: If there is no side.

    Example:
        >>> figure = draw_risk_coverage({"mc": RiskCoverage.of([0.5, 1.0], [0.0, 0.5], aurc=0.25)})
        >>> figure.axes[0].get_legend().get_texts()[0].get_text()
        'mc: AURC 0.25'
    """
    if not sides:
        raise ValueError("Expected `sides` to hold at least one curve, but got none.")
    from matplotlib.lines import Line2D

    figure = new_figure(4.0, "Selective prediction: how many errors are left when unsure predictions are left out?")
    axes = figure.subplots()
    entries, risks = {}, []
    for index, (name, side) in enumerate(sides.items()):
        colour, coverage, risk = COLOURS[index % len(COLOURS)], np.array(side.coverage), np.array(side.risk)
        (entries[f"{name}: AURC {number(side.aurc)}"],) = axes.plot(
            coverage,
            risk,
            color=colour,
            linestyle=DASHES[index % len(DASHES)],
            linewidth=2,
            marker=MARKERS[index % len(MARKERS)] if len(risk) == 1 else "",
            zorder=3,
            **UNCLIPPED,
        )
        finite = risk[np.isfinite(risk)]
        risks.extend(finite)
        if len(finite) and math.isfinite(risk[-1]):
            reach = np.linspace(0.002, 1.0, 500)
            perfect = np.maximum(0.0, 1.0 - (1.0 - risk[-1]) / reach)  # from accuracy on, only wrong ones are added
            axes.plot(reach, perfect, color=colour, linewidth=1, linestyle=_PERFECT)
            axes.plot([0, 1], [risk[-1]] * 2, color=colour, linewidth=1, linestyle=_RANDOM)
    if risks:
        entries["perfect order"] = Line2D([], [], color=MINOR, linewidth=1, linestyle=_PERFECT)
        entries["random order"] = Line2D([], [], color=MINOR, linewidth=1, linestyle=_RANDOM)
    add_legend(axes, entries, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0)
    if not risks:
        add_note(axes, "undefined: no risk is a number")
    elif not any(risks):
        add_note(axes, "no prediction is wrong: nothing to leave out")
    axes.set(xlim=(0, 1), xlabel="coverage (share of predictions kept)", ylabel="risk (error rate among these)")
    axes.set_ylim(0.0, 1.08 * max(risks, default=0.0) or 1.0)
    tidy(axes)
    return figure


def draw_histograms(panels: Mapping[str, Histogram], *, score: str, title: str) -> Figure:
    """Draw how a score is distributed in groups of samples, each group's bars summing to 1.

    Args:
        panels: Histograms by name (``det`` and ``mc``, say), one below the other on one axis.
        score: What is counted, with its unit: ``"entropy, nats"``.
        title: Says what is compared.

    Returns:
        A figure of its own. ``panels`` are its numbers.

    Raises:
        ValueError: If there is no panel.

    Example:
        >>> histogram = Histogram.of({"right": [0.1, 0.2], "wrong": [1.0]}, auroc={"wrong": 1.0})
        >>> figure = draw_histograms({"mc": histogram}, score="entropy, nats", title="Are wrong ones less sure?")
        >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        ['right (2)', 'wrong (1), AUROC 1']
    """
    if not panels:
        raise ValueError("Expected `panels` to hold at least one histogram, but got none.")
    labels = {name: _labels(histogram) for name, histogram in panels.items()}
    columns = 1 if max(len(label) for each in labels.values() for label in each.values()) > _WIDE else 2
    heights = [2.0 + _LEGEND_LINE * -(-len(histogram.counts) // columns) for histogram in panels.values()]
    figure = new_figure(0.8 + sum(heights), title)
    column = figure.subplots(len(panels), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (name, histogram) in zip(column, panels.items(), strict=True):
        drawn = _draw_groups(axes, histogram)
        # above the axes: inside, bars may be anywhere
        add_legend(
            axes,
            {label: drawn[group] for group, label in labels[name].items()},
            title=name,
            alignment="left",
            loc="lower left",
            bbox_to_anchor=(0.0, 1.0),
            borderaxespad=0.2,
            fontsize="small",
            ncols=columns,
        )
        axes.set_ylabel("share of the group")
    column[-1].set_xlabel(score)
    ends = [histogram.edges for histogram in panels.values()]
    column[-1].set_xlim(min(edges[0] for edges in ends), max(edges[-1] for edges in ends))
    figure.align_ylabels()
    return figure


def _draw_groups(axes: Axes, histogram: Histogram) -> dict[str, Any]:
    names = [*histogram.counts]
    shares = np.array([np.array(counts) / max(sum(counts), 1) for counts in histogram.counts.values()])
    drawn = {
        # The first group is an area, the others are lines, each with its own dashes: colours are not needed to tell.
        name: axes.stairs(
            shares[index],
            histogram.edges,
            fill=index == 0,
            color=COLOURS[index % len(COLOURS)],
            alpha=0.4 if index == 0 else 1.0,
            linewidth=0 if index == 0 else 1.8,
            linestyle=DASHES[(index - 1) % len(DASHES)],
        )
        for index, name in enumerate(names)
    }
    tidy(axes)
    axes.set_ylim(bottom=0.0)
    if not shares.any():
        add_note(axes, "no finite score to draw")
        axes.set_yticks([])
        return drawn
    *_, second, highest = 0.0, *np.sort(shares, axis=None)
    if second and highest > _LONELY * second:
        # Predictions that are all but certain fill one bar, beside which nothing else could be seen.
        group, place = np.unravel_index(shares.argmax(), shares.shape)
        axes.set_ylim(0.0, 1.5 * second)
        on_the_left = place < shares.shape[1] / 2
        axes.text(
            histogram.edges[place + on_the_left],
            1.45 * second,
            f" {highest:.0%} of {names[group]} (bar cut off) ",
            ha="left" if on_the_left else "right",
            va="top",
            color=MINOR,
            fontsize="small",
            parse_math=False,
        )
    return drawn


def _labels(histogram: Histogram) -> dict[str, str]:
    labels = {}
    for name, counts in histogram.counts.items():
        labels[name] = f"{name} ({sum(counts):,})" if any(counts) else f"{name} (none)"
        if histogram.not_finite[name]:
            labels[name] += f", {histogram.not_finite[name]:,} not finite"
        if name in histogram.auroc:
            labels[name] += f", AUROC {number(histogram.auroc[name])}"
    return labels

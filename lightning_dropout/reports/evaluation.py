"""The figures of a test, from the scores of its samples: which of them there are, and what goes into each.

Drawing is done in the files beside; no trainer here. Whatever is undefined is left out or drawn as undefined, so that a
test of one class, without errors or without labels has a report, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from lightning_dropout import log_keys
from lightning_dropout.metrics import CalibrationError, gaussian_quantiles, ood_auroc, risk_coverage
from lightning_dropout.reports.calibration_figures import IntervalCoverage, draw_interval_coverage, draw_reliability
from lightning_dropout.reports.regression_figures import RegressionBand, draw_band
from lightning_dropout.reports.uncertainty_figures import Histogram, RiskCoverage, draw_histograms, draw_risk_coverage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Drawn", "draw_evaluation"]

Scores = Mapping[str, Tensor]
_NAMES = {log_keys.DET: "det", log_keys.TEMPERATURE: "det + temperature", log_keys.MC: "mc"}  # in this order
_LEVELS = (*(level / 20 for level in range(1, 20)), 0.99)


class Drawn(NamedTuple):
    """A figure, the key that it is logged under, and its numbers."""

    key: str
    figure: Figure
    numbers: object


def draw_evaluation(
    scores: Mapping[str, Scores], foreign: Mapping[str, Mapping[str, Scores]] | None = None, train: Scores | None = None
) -> Iterator[Drawn]:
    """Draw what the scores of a test have to show.

    Args:
        scores: Of the samples of the first loader, by side, as ``metrics.sample_scores`` gives them; those of a
            regression of one input with that ``input`` beside them.
        foreign: The same of out-of-distribution data sets, by name.
        train: ``input`` and ``label`` of training samples, for the regression of one input.

    Returns:
        Figures: reliability, risk and coverage, entropy of right and wrong ones, and of foreign ones; or the band and
        the calibration of intervals of a regression. None if a sample has several answers.

    Example:
        >>> scores = {"confidence": torch.tensor([0.9, 0.6]), "entropy": torch.tensor([0.3, 0.7])}
        >>> scores["right"] = torch.tensor([1.0, 0.0])
        >>> [drawn.key for drawn in draw_evaluation({"mc": scores})]
        ['report/reliability', 'report/risk_coverage', 'report/entropy']
    """
    sides = {side: scores[side] for side in _NAMES if scores.get(side)}
    if any("confidence" in side for side in sides.values()):
        labelled = {_NAMES[side]: _counted(each) for side, each in sides.items() if "right" in each}
        if labelled:
            yield from _draw_classes(labelled)
        if foreign:
            yield _draw_foreign(sides, foreign)
    else:
        yield from _draw_values(sides, train)


def _counted(scores: Scores) -> dict[str, Tensor]:
    """Return the scores of the samples whose label is not to be ignored."""
    counted = ~scores["right"].isnan()
    return {name: values[counted] for name, values in scores.items()}


def _draw_classes(sides: Mapping[str, Scores]) -> Iterator[Drawn]:
    bins, curves, histograms = {}, {}, {}
    for name, scores in sides.items():
        right = scores["right"] == 1
        event = ("probability", scores["label"]) if "probability" in scores else ("confidence", right.long())
        # The scores are those of all ranks, and one rank draws: a metric that asked the others would wait for good.
        calibration = CalibrationError(task="binary", distributed_available_fn=lambda: False)
        if len(right):
            calibration.update(scores[event[0]], event[1])
        bins[name] = calibration.bins()
        curve = risk_coverage(scores["confidence"], ~right)
        curves[name] = RiskCoverage.of(curve.coverage, curve.risk, curve.risk.mean().item())
        if name != _NAMES[log_keys.TEMPERATURE]:
            entropy = scores["entropy"]
            histograms[name] = Histogram.of(
                {"right": entropy[right], "wrong": entropy[~right]}, auroc={"wrong": _auroc(entropy, ~right)}
            )
    yield Drawn(log_keys.REPORT_RELIABILITY, draw_reliability(bins), bins)
    yield Drawn(log_keys.REPORT_RISK_COVERAGE, draw_risk_coverage(curves), curves)
    figure = draw_histograms(histograms, score="entropy, nats", title="Entropy: are wrong predictions less sure?")
    yield Drawn(log_keys.REPORT_ENTROPY, figure, histograms)


def _draw_foreign(sides: Mapping[str, Scores], foreign: Mapping[str, Mapping[str, Scores]]) -> Drawn:
    histograms = {}
    for side in (log_keys.DET, log_keys.MC):
        if side in sides:
            entropies = {name: each[side]["entropy"] for name, each in foreign.items() if each.get(side)}
            own = sides[side]["entropy"]
            aurocs = {
                name: _auroc(torch.cat([own, other]), torch.arange(len(own) + len(other)) >= len(own))
                for name, other in entropies.items()
            }
            histograms[_NAMES[side]] = Histogram.of({"in-distribution": own, **entropies}, auroc=aurocs)
    figure = draw_histograms(
        histograms, score="entropy, nats", title="Entropy: is the model less sure of what it was not trained on?"
    )
    return Drawn(log_keys.REPORT_OOD_ENTROPY, figure, histograms)


def _auroc(scores: Tensor, flags: Tensor) -> float:
    finite = scores.isfinite()
    return ood_auroc(scores[finite], flags[finite]).item()


def _draw_values(sides: Mapping[str, Scores], train: Scores | None) -> Iterator[Drawn]:
    mc = sides.get(log_keys.MC, {})
    if "input" in mc and "std" in mc:
        known = train or {}
        band = RegressionBand.of(
            mc["input"],
            mc["mean"],
            mc["std"],
            mc.get("epistemic_std", mc["std"]),
            data_x=known.get("input", ()),
            data_y=known.get("label", ()),
        )
        yield Drawn(log_keys.REPORT_REGRESSION_BAND, draw_band(band), band)
    tables = {_NAMES[side]: _coverage(scores) for side, scores in sides.items() if {"std", "error"} <= scores.keys()}
    if tables:
        yield Drawn(log_keys.REPORT_INTERVAL_CALIBRATION, draw_interval_coverage(tables), tables)


def _coverage(scores: Scores) -> IntervalCoverage:
    """Return how many targets lie in the central intervals of a normal distribution with that mean and spread."""
    error, variance = scores["error"].double(), scores["std"].double().square()
    upper = gaussian_quantiles(torch.zeros_like(error), variance, [(1.0 + level) / 2.0 for level in _LEVELS])
    return IntervalCoverage.of(_LEVELS, (error.abs() <= upper).double().mean(1), (2.0 * upper).mean(1))

"""Metrics of predicted probabilities as ``torchmetrics.Metric`` classes: calibration and proper scores."""

from lightning_dropout.metrics.brier import BrierScore
from lightning_dropout.metrics.calibration import CalibrationBins, CalibrationError
from lightning_dropout.metrics.nll import NegativeLogLikelihood

__all__ = ["BrierScore", "CalibrationBins", "CalibrationError", "NegativeLogLikelihood"]

"""Metrics as ``torchmetrics.Metric`` classes: calibration, proper scores, uncertainty, selective prediction, OOD.

What torchmetrics has is not repeated: accuracy, errors of regression, CRPS.
"""

from lightning_dropout.metrics.brier import BrierScore
from lightning_dropout.metrics.calibration import CalibrationBins, CalibrationError
from lightning_dropout.metrics.intervals import (
    IntervalCoverage,
    IntervalWidth,
    QuantileCalibration,
    QuantileCalibrationError,
    gaussian_quantiles,
)
from lightning_dropout.metrics.nll import NegativeLogLikelihood
from lightning_dropout.metrics.ood import FPR95, OODAUROC, fpr95, ood_auroc
from lightning_dropout.metrics.regression import GaussianNLL, MixtureNLL, Sharpness, gaussian_nll, mixture_nll
from lightning_dropout.metrics.selective import AUGRC, AURC, AccuracyAtCoverage, RiskCoverage, risk_coverage
from lightning_dropout.metrics.uncertainty import (
    MutualInformation,
    PredictiveEntropy,
    mutual_information,
    predictive_entropy,
)

__all__ = [
    "AUGRC",
    "AURC",
    "FPR95",
    "OODAUROC",
    "AccuracyAtCoverage",
    "BrierScore",
    "CalibrationBins",
    "CalibrationError",
    "GaussianNLL",
    "IntervalCoverage",
    "IntervalWidth",
    "MixtureNLL",
    "MutualInformation",
    "NegativeLogLikelihood",
    "PredictiveEntropy",
    "QuantileCalibration",
    "QuantileCalibrationError",
    "RiskCoverage",
    "Sharpness",
    "fpr95",
    "gaussian_nll",
    "gaussian_quantiles",
    "mixture_nll",
    "mutual_information",
    "ood_auroc",
    "predictive_entropy",
    "risk_coverage",
]

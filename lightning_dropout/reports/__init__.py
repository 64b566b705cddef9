"""What a run leaves for people: figures of rates, calibration and uncertainty, the numbers behind them, a dashboard."""

from lightning_dropout.reports.calibration_figures import IntervalCoverage, draw_interval_coverage, draw_reliability
from lightning_dropout.reports.dashboard import (
    DashboardPanel,
    dashboard_json,
    dashboard_panels,
    dashboard_workspace,
)
from lightning_dropout.reports.fit_figures import Curve, draw_fit
from lightning_dropout.reports.predictions import prediction_table, write_table
from lightning_dropout.reports.rates import RateCurve, draw_rates, rate_table
from lightning_dropout.reports.realised_rates import realised_rates
from lightning_dropout.reports.regression_figures import RegressionBand, draw_band
from lightning_dropout.reports.sample_sheet import SampleTable, draw_samples
from lightning_dropout.reports.saving import save_figure
from lightning_dropout.reports.uncertainty_figures import (
    Histogram,
    RiskCoverage,
    draw_histograms,
    draw_risk_coverage,
)

__all__ = [
    "Curve",
    "DashboardPanel",
    "Histogram",
    "IntervalCoverage",
    "RateCurve",
    "RegressionBand",
    "RiskCoverage",
    "SampleTable",
    "dashboard_json",
    "dashboard_panels",
    "dashboard_workspace",
    "draw_band",
    "draw_fit",
    "draw_histograms",
    "draw_interval_coverage",
    "draw_rates",
    "draw_reliability",
    "draw_risk_coverage",
    "draw_samples",
    "prediction_table",
    "rate_table",
    "realised_rates",
    "save_figure",
    "write_table",
]

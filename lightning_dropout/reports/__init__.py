"""What a run leaves for people: figures of rates, tables of predictions."""

from lightning_dropout.reports.predictions import prediction_table, write_table
from lightning_dropout.reports.rates import RateCurve, draw_rates, rate_table

__all__ = ["RateCurve", "draw_rates", "prediction_table", "rate_table", "write_table"]

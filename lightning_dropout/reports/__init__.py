"""What a run leaves behind for people: tables of predictions."""

from lightning_dropout.reports.predictions import prediction_table, write_table

__all__ = ["prediction_table", "write_table"]

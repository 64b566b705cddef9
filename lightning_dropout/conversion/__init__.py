"""Stochastic depth for models that others wrote: their blocks are rewritten, their names and weights stay."""

from lightning_dropout.conversion.convert import Conversion, convert_stochastic_depth
from lightning_dropout.conversion.insert import insert_drop_path

__all__ = ["Conversion", "convert_stochastic_depth", "insert_drop_path"]

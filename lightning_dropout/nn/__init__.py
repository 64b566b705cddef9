"""The layers that drop, in plain torch: nothing here knows of Lightning, of schedules or of sampling."""

from lightning_dropout.nn import functional
from lightning_dropout.nn.attention_dropout import AttentionDropout
from lightning_dropout.nn.depth_rules import depth_rates
from lightning_dropout.nn.drop_path import DropPath
from lightning_dropout.nn.dropout import Dropout
from lightning_dropout.nn.stochastic_depth import StochasticDepth

__all__ = ["AttentionDropout", "DropPath", "Dropout", "StochasticDepth", "depth_rates", "functional"]

"""The layers that drop, in plain torch: nothing here knows of Lightning, of schedules or of sampling."""

from lightning_dropout.nn import functional
from lightning_dropout.nn.attention_dropout import AttentionDropout
from lightning_dropout.nn.depth_rules import depth_rates
from lightning_dropout.nn.drop_path import DropPath
from lightning_dropout.nn.dropout import Dropout

__all__ = ["AttentionDropout", "DropPath", "Dropout", "depth_rates", "functional"]

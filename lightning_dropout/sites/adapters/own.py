"""Adapters of this package's own layers, ``lightning_dropout.nn``."""

from lightning_dropout.nn import AttentionDropout, Dropout, DropPath
from lightning_dropout.sites.adapters.registry import register_adapter

__all__: list[str] = []

register_adapter(Dropout, "p")
register_adapter(AttentionDropout, "p", kind="attention")
register_adapter(DropPath, "drop_prob", kind="drop_path")

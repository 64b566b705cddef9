"""Adapters of torchvision's dropping layers.

By dotted name, so that torchvision is imported only by who uses it. Swin's attention and DenseNet's layers need no
entry: ``source.py`` reads them.
"""

from lightning_dropout.sites.adapters.registry import register_adapter

__all__: list[str] = []

register_adapter("torchvision.ops.stochastic_depth.StochasticDepth", "p", kind="drop_path")
register_adapter("torchvision.ops.drop_block.DropBlock2d", "p")  # and DropBlock3d, its subclass

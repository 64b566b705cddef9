"""Adapters of timm's dropping layers, which draw outside their own code, or under names that say too little.

By dotted name, so that timm is imported only by who uses it. timm's attentions and the ``drop_rate`` of its classifiers
need no entry: ``source.py`` reads them.
"""

from lightning_dropout.sites.adapters.registry import register_adapter, register_unused

__all__: list[str] = []

register_adapter("timm.layers.drop.DropPath", "drop_prob", kind="drop_path")
register_adapter("timm.layers.drop.DropBlock2d", "drop_prob")
register_adapter("timm.layers.patch_dropout.PatchDropout", "prob", below_one=True)
register_adapter("timm.layers.patch_dropout.PatchDropoutWithIndices", "prob", below_one=True)
register_adapter("timm.models.efficientvit_msra.ResidualDrop", "drop", kind="drop_path", below_one=True)

register_unused("timm.models.coat.FactorAttnConvRelPosEnc", "attn_drop")

"""Adapters of transformers' dropping layers, of which every model has its own copy: so they go by pattern.

By dotted name, so that transformers is imported only by who uses it. The rates of its attentions and layers, and those
in configurations, need no entry: ``source.py`` reads them.
"""

from torch import nn

from lightning_dropout.sites.adapters.registry import is_rate, register_adapter, register_unused

__all__: list[str] = []


def _has_a_rate(module: nn.Module) -> bool:
    return is_rate(module.drop_prob)  # `None` in some copies


register_adapter("transformers.models.*DropPath", "drop_prob", kind="drop_path", applies=_has_a_rate, below_one=True)
register_adapter("transformers.models.*StableDropout", "drop_prob", below_one=True)

register_unused("transformers.models.albert.modeling_albert.AlbertLayer", "dropout")
register_unused("transformers.models.esm.modeling_esm.EsmEmbeddings", "dropout")
register_unused("transformers.models.layoutlm.modeling_layoutlm.LayoutLMSelfAttention", "dropout")
register_unused("transformers.models.xlnet.modeling_xlnet.XLNetLayer", "dropout")
register_unused("transformers.models.yoso.modeling_yoso.YosoSelfAttention", "dropout")

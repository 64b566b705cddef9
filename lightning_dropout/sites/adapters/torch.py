"""Adapters of ``torch.nn``: the Dropout family, attention, recurrent layers.

Only what torch itself ships. The traps: multi-head attention has no Dropout child, recurrent layers drop between their
stacked layers only, and a Transformer encoder layer skips its children's dropout on its fast path while it is itself
in eval mode.
"""

from collections.abc import Sequence

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from lightning_dropout.sites.adapters.registry import register_adapter

__all__: list[str] = []


def _dropout_and_transformer_layer(module: nn.Module, ancestors: Sequence[nn.Module]) -> tuple[nn.Module, ...]:
    layer = next((parent for parent in ancestors[:2] if isinstance(parent, nn.TransformerEncoderLayer)), None)
    return (module,) if layer is None else (module, layer)


def _has_layers_to_drop_between(module: nn.Module) -> bool:
    return isinstance(module, nn.RNNBase) and module.num_layers > 1


register_adapter(_DropoutNd, "p", owner=_dropout_and_transformer_layer)
register_adapter(nn.MultiheadAttention, "dropout", owner=_dropout_and_transformer_layer, kind="attention")
register_adapter(nn.RNNBase, "dropout", kind="recurrent", applies=_has_layers_to_drop_between)

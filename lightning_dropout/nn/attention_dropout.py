"""Attention whose weights drop: the fused kernel of torch, with its rate in a layer of its own."""

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from lightning_dropout.nn.rate import Rate

__all__ = ["AttentionDropout"]


class AttentionDropout(nn.Module):
    """Scaled dot-product attention that drops attention weights: ``dropout(softmax(q k^T / sqrt(d))) v``.

    The fused kernel draws the mask itself, so no ``Dropout`` is ever called inside an attention; a rate kept elsewhere
    is read at somebody's mercy. Here rate, switch and kernel are one layer. ``train()`` drops and rescales the kept
    weights by ``1 / (1 - p)``; ``eval()`` does not.

    Args:
        p: Probability of dropping an attention weight, in [0, 1]. May be reassigned at any time.

    Shape:
        Queries ``(batch, heads, tokens, dim)``, keys and values likewise, to the shape of the queries.

    Raises:
        ValueError: If ``p`` is set to no probability.

    Source:
        Vaswani et al. (2017), arXiv:1706.03762, equation 1; dropout of its weights as in their public code.

    Example:
        >>> import torch
        >>> attention = AttentionDropout(p=0.1)
        >>> q, k, v = torch.rand(3, 2, 4, 5, 8).unbind()
        >>> attention(q, k, v).shape
        torch.Size([2, 4, 5, 8])
    """

    p = Rate()

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        self.p = p

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        """Return what the queries gather; ``options`` are those of the kernel, such as ``attn_mask``, ``is_causal``."""
        dropout_p = self.p if self.training else 0.0
        gathered: Tensor = scaled_dot_product_attention(query, key, value, dropout_p=dropout_p, **options)
        return gathered

    def extra_repr(self) -> str:
        """Name the rate."""
        return f"p={self.p:g}"

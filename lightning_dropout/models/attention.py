"""Multi-head self-attention whose dropout can be found, scheduled and sampled like any other."""

from torch import Tensor, nn

from lightning_dropout.models.arguments import check_count
from lightning_dropout.nn import AttentionDropout, Dropout
from lightning_dropout.probability import check_probability

__all__ = ["Attention"]


class Attention(nn.Module):
    """Self-attention with dropout of attention weights and of the projection.

    Training: attention weights drop at the rate of ``attn_drop``, outputs at that of ``proj_drop``. Evaluation:
    deterministic. Each layer drops when it is itself in training mode, whatever mode this module is in, so switching on
    those two is enough to sample it.

    Args:
        dim: Size of the tokens; a multiple of ``num_heads``.
        num_heads: Number of heads.
        attention_p: Rate of the attention weights, in [0, 1].
        projection_p: Rate of the output, in [0, 1].

    Shape:
        ``(batch, tokens, dim)`` to the same.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        Vaswani et al. (2017), arXiv:1706.03762, section 3.2.

    Example:
        >>> import torch
        >>> Attention(dim=8, num_heads=2, attention_p=0.1)(torch.rand(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    def __init__(self, dim: int, num_heads: int, attention_p: float = 0.0, projection_p: float = 0.0) -> None:
        super().__init__()
        check_count(dim, "dim")
        if dim % check_count(num_heads, "num_heads"):
            raise ValueError(f"Expected `dim` to be a multiple of `num_heads`, but got {dim} and {num_heads}.")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.attn_drop = AttentionDropout(check_probability(attention_p, "attention_p"))
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = Dropout(check_probability(projection_p, "projection_p"))

    def forward(self, x: Tensor) -> Tensor:
        """Return what the tokens of ``x`` gather from each other."""
        # Three tensors of shape (batch, heads, tokens, dim / heads).
        query, key, value = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        gathered = self.attn_drop(query, key, value)
        output: Tensor = self.proj_drop(self.proj(gathered.transpose(1, 2).flatten(2)))
        return output

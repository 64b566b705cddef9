"""Attention against the formula, and the law of its dropped weights."""

from math import sqrt

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from lightning_dropout.models.attention import Attention


def test_equals_the_formula() -> None:
    attention = Attention(dim=8, num_heads=2).eval()
    x = torch.randn(3, 5, 8)
    heads = []
    query, key, value = attention.qkv(x).chunk(3, dim=-1)
    for q, k, v in zip(query.split(4, -1), key.split(4, -1), value.split(4, -1), strict=True):
        heads.append((q @ k.transpose(1, 2) / sqrt(4)).softmax(-1) @ v)
    torch.testing.assert_close(attention(x), attention.proj(torch.cat(heads, -1)))


def test_equals_torchs_multihead_attention() -> None:
    attention = Attention(dim=12, num_heads=3).eval()
    reference = nn.MultiheadAttention(12, 3, batch_first=True).eval()
    with torch.no_grad():
        reference.in_proj_weight.copy_(attention.qkv.weight)
        reference.in_proj_bias.copy_(attention.qkv.bias)
        reference.out_proj.load_state_dict(attention.proj.state_dict())
    x = torch.randn(2, 7, 12)
    torch.testing.assert_close(attention(x), reference(x, x, x, need_weights=False)[0])


def visible_weights(attention: Attention, batch: int) -> Tensor:
    """Return (batch, tokens, tokens) attention weights: equal before dropping, and the values spell them out."""
    tokens = attention.proj.in_features
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.zero_()
        attention.qkv.weight[2 * tokens :] = torch.eye(tokens)
        attention.proj.weight.copy_(torch.eye(tokens))
        return attention(torch.eye(tokens).expand(batch, tokens, tokens))


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_weights_drop_at_their_rate_and_keep_their_mean(p: float) -> None:
    weights = visible_weights(Attention(dim=16, num_heads=1, attention_p=p), batch=1000)
    dropped = int((weights == 0).sum())
    assert stats.binomtest(dropped, weights.numel(), p).pvalue > 2.5e-6
    torch.testing.assert_close(weights[weights != 0], torch.tensor(1 / 16 / (1 - p)).expand(weights.numel() - dropped))
    # Independent between samples: agreement of two coins is as frequent as p**2 + (1 - p)**2.
    agree = int(((weights[::2] == 0) == (weights[1::2] == 0)).sum())
    assert stats.binomtest(agree, weights.numel() // 2, p**2 + (1 - p) ** 2).pvalue > 2.5e-6
    # The check notices another rate.
    assert stats.binomtest(dropped, weights.numel(), p + 0.02).pvalue < 2.5e-6


def test_the_dropout_child_is_the_switch() -> None:
    attention = Attention(dim=8, num_heads=2, attention_p=0.5).eval()
    x = torch.randn(4, 6, 8)
    expected = attention(x)
    attention.training = True
    assert torch.equal(attention(x), expected)
    attention.training = False
    attention.attn_drop.train()
    assert not torch.equal(attention(x), expected)
    attention.attn_drop.p = 0.0
    assert torch.equal(attention(x), expected)


def test_rate_1_drops_all_weights() -> None:
    weights = visible_weights(Attention(dim=4, num_heads=1, attention_p=1.0), batch=2)
    assert torch.equal(weights, torch.zeros(2, 4, 4))


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="Expected `dim` to be a multiple of `num_heads`, but got 10 and 3"):
        Attention(10, 3)
    with pytest.raises(ValueError, match="Expected `num_heads` to be a whole number of at least 1, but got 0"):
        Attention(10, 0)
    with pytest.raises(ValueError, match="Expected `projection_p` to be a probability"):
        Attention(8, 2, projection_p=2)

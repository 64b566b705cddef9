"""The attention layer with dropout of its own; the law of its masks is tested in tests/models/test_attention.py."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from lightning_dropout.nn import AttentionDropout


def test_evaluation_is_plain_attention_with_its_options() -> None:
    q, k, v = torch.randn(3, 2, 1, 4, 8).unbind()
    layer = AttentionDropout(0.5).eval()
    torch.testing.assert_close(layer(q, k, v, is_causal=True), scaled_dot_product_attention(q, k, v, is_causal=True))


def test_its_own_mode_and_rate_decide() -> None:
    q, k, v = torch.randn(3, 2, 1, 4, 8).unbind()
    layer = AttentionDropout(0.5)
    assert not torch.equal(layer(q, k, v), layer(q, k, v))
    layer.p = 0
    assert torch.equal(layer(q, k, v), layer.eval()(q, k, v))


def test_a_rate_outside_the_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Expected `p` to be a probability.*got 1\.5"):
        AttentionDropout(1.5)
    assert repr(AttentionDropout(0.25)) == "AttentionDropout(p=0.25)"

"""The textbook net: its layers in order, and its size for any image."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_dropout.models import Net


def test_default_is_the_textbooks() -> None:
    net = Net()
    convolutions = [layer for layer in net.features if isinstance(layer, nn.Conv2d)]
    assert [(layer.in_channels, layer.out_channels) for layer in convolutions] == [(3, 32), (32, 64), (64, 128)]
    assert (net.fc1.in_features, net.fc1.out_features, net.fc2.out_features) == (128 * 4 * 4, 512, 10)
    assert net.dropout1.p == net.dropout2.p == 0.25


def test_dropout_stands_before_both_fully_connected_layers() -> None:
    net = Net((1, 8, 8), hidden=16)
    x = torch.randn(4, 1, 8, 8)
    torch.manual_seed(1)
    expected = net.fc2(net.dropout2(F.relu(net.fc1(net.dropout1(net.features(x).flatten(1))))))
    torch.manual_seed(1)
    assert torch.equal(net(x), expected)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 28, 28), (3, 33, 47), (4, 9, 64)])
def test_any_input_shape(shape: tuple[int, ...]) -> None:
    assert Net(shape, 7, hidden=8)(torch.randn(2, *shape)).shape == (2, 7)


def test_finding_the_size_changes_nothing() -> None:
    torch.manual_seed(1)
    Net((1, 8, 8), channels=(4,), hidden=8)
    after_net = torch.get_rng_state()
    torch.manual_seed(1)
    nn.Conv2d(1, 4, 3), nn.Linear(64, 8), nn.Linear(8, 10)
    assert torch.equal(torch.get_rng_state(), after_net)


def test_builds_on_the_meta_device() -> None:
    with torch.device("meta"):
        assert Net((1, 8, 8)).fc1.in_features == 128


@pytest.mark.parametrize("shape", [(1, 7, 8), (1, 8, 7), (3, 4, 4)])
def test_too_small_an_image(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"Expected `input_shape` to have sides of at least 8, .* fewer `channels`"):
        Net(shape)
    assert Net(shape, channels=(4, 8), hidden=8)(torch.randn(2, *shape)).shape == (2, 10)


def test_bad_channels() -> None:
    with pytest.raises(ValueError, match="Expected `channels`"):
        Net(channels=())

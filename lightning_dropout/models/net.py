"""The textbook convolutional net: convolutions, then two fully connected layers, each behind a dropout."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_dropout.models.arguments import check_count, check_image_shape, check_shape, check_weights
from lightning_dropout.nn import Dropout

__all__ = ["Net"]


class Net(nn.Module):
    """Convolutional classifier with dropout before both fully connected layers.

    ``features`` (3x3 convolution, ReLU, 2x2 max pool, once per entry of ``channels``), flatten, ``dropout1``, ``fc1``,
    ReLU, ``dropout2``, ``fc2``. Training: both dropouts drop. Evaluation: deterministic.

    Args:
        input_shape: (channels, height, width) of one image; sides of at least ``2 ** len(channels)``.
        num_classes: Number of logits.
        p: Rate of both dropouts, in [0, 1].
        channels: Feature maps after each convolution.
        hidden: Units between the fully connected layers.

    Shape:
        ``(batch, *input_shape)`` to logits ``(batch, num_classes)``.

    Raises:
        ValueError: If an argument is out of range, or the image is too small to be halved once per convolution.

    Source:
        Dropout where Hinton et al. (2012), arXiv:1207.0580, put it: in the fully connected layers.

    Example:
        >>> net = Net(input_shape=(1, 8, 8), hidden=64)
        >>> net.fc1
        Linear(in_features=128, out_features=64, bias=True)
        >>> net(torch.rand(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        input_shape: Sequence[int] = (3, 32, 32),
        num_classes: int = 10,
        p: float = 0.25,
        channels: Sequence[int] = (32, 64, 128),
        hidden: int = 512,
    ) -> None:
        super().__init__()
        image_shape = check_image_shape(input_shape)
        channels = check_shape(channels, "channels")
        check_count(num_classes, "num_classes")
        check_count(hidden, "hidden")
        smallest = 2 ** len(channels)
        if min(image_shape[1:]) < smallest:
            raise ValueError(
                f"Expected `input_shape` to have sides of at least {smallest}, since each of {len(channels)} pools "
                f"halves them, but got {image_shape}; resize the images or give fewer `channels`."
            )
        pairs = list(zip((image_shape[0], *channels), channels, strict=False))
        pixels = prod(image_shape[1:])
        weights = pixels * max(image_shape[0], *channels) + sum(9 * before * after for before, after in pairs)
        weights += hidden * (channels[-1] * pixels // smallest**2 + num_classes)
        check_weights(
            weights, channels=max(channels), hidden=hidden, num_classes=num_classes, input_shape=max(image_shape)
        )
        layers: list[nn.Module] = []
        for before, after in pairs:
            layers += [nn.Conv2d(before, after, kernel_size=3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)
        # Zeros through layers without state or randomness: finds the size, changes nothing.
        with torch.no_grad():
            flattened = self.features(torch.zeros(1, *image_shape)).numel()
        self.dropout1 = Dropout(p)
        self.fc1 = nn.Linear(flattened, hidden)
        self.dropout2 = Dropout(p)
        self.fc2 = nn.Linear(hidden, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of ``images``."""
        h = self.features(images).flatten(1)
        h = F.relu(self.fc1(self.dropout1(h)))
        logits: Tensor = self.fc2(self.dropout2(h))
        return logits

"""Random shifts and mirror images of whole batches, drawn anew for each image, in plain torch.

A torchvision v2 transform draws once per call: given a batch it moves all images alike, and called image by image it
takes about ten times as long as the functions here (8.6 against 0.7 ms for 128 images of 32x32 on a CPU).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["random_flip", "random_shift"]


def random_shift(images: Tensor, max_shift: int) -> Tensor:
    """Move each image by its own random number of pixels; what comes in from outside is 0.

    Both offsets are uniform on {-max_shift, ..., max_shift}: the same law as padding and cropping at random. Call it
    before normalisation, where 0 is black.

    Args:
        images: A batch of images of any dtype.
        max_shift: Largest offset in pixels, at least 0.

    Shape:
        ``(batch, channels, height, width)`` to the same.

    Example:
        >>> random_shift(torch.ones(2, 1, 3, 3), max_shift=0).sum()
        tensor(18.)
    """
    if max_shift == 0:
        return images
    batch, _, height, width = images.shape
    padded = F.pad(images, (max_shift,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: (batch, channels, 2s + 1, 2s + 1, H, W)
    down, right = torch.randint(2 * max_shift + 1, (2, batch), device=images.device)
    return windows[torch.arange(batch, device=images.device), :, down, right]


def random_flip(images: Tensor) -> Tensor:
    """Mirror each image left to right with probability 1/2, each by its own coin.

    Shape:
        ``(batch, channels, height, width)`` to the same.

    Example:
        >>> random_flip(torch.ones(2, 1, 3, 3)).shape
        torch.Size([2, 1, 3, 3])
    """
    mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    return torch.where(mirrored, images.flip(-1), images)

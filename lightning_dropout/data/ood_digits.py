"""Images as large as the digits that are none: what a model of digits should be unsure of. Nothing is downloaded.

All draws follow from a seed of their own; no module-wide random state is read or moved here.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

__all__ = ["OOD_DIGITS", "inverted", "photo", "shuffled"]

_SIDE = 8  # pixels of a digit
_SHRINK = 4  # of 512 x 600 pixels; at full size eight of them hold a smooth spot


def shuffled(ink: Tensor, seed: int) -> Tensor:
    """Permute the pixels of each image, each in an order of its own: the same ink, and no strokes.

    Shape:
        ``(images, 1, 8, 8)`` to the same.

    Example:
        >>> shuffled(torch.arange(64).view(1, 1, 8, 8), seed=0).sum()
        tensor(2016)
    """
    order = torch.rand(len(ink), _SIDE**2, generator=torch.Generator().manual_seed(seed)).argsort(1)
    return ink.flatten(1).gather(1, order).view_as(ink)


def inverted(ink: Tensor, seed: int) -> Tensor:
    """Swap ink and paper: the same strokes, in white on black.

    Shape:
        ``(images, 1, 8, 8)`` to the same.

    Example:
        >>> inverted(torch.full((1, 1, 8, 8), 3), seed=0)[0, 0, 0, 0]
        tensor(13)
    """
    return 16 - ink


def photo(ink: Tensor, seed: int) -> Tensor:
    """Cut as many patches out of a photograph, at different places: structure, but of another kind.

    The photograph is the portrait of Grace Hopper that matplotlib ships as sample data, in grey, a quarter as high and
    wide; dark is ink. Of the patches only the half with more contrast is used: the others show cloth and wall.

    Shape:
        ``(images, 1, 8, 8)`` to the same, uint8.

    Raises:
        FileNotFoundError: If matplotlib was installed without its sample data.

    Source:
        US Navy, official portrait of Rear Admiral Grace M. Hopper (1985), in the public domain.

    Example:
        >>> photo(torch.zeros(5, 1, 8, 8), seed=0).shape
        torch.Size([5, 1, 8, 8])
    """
    from matplotlib.cbook import get_sample_data  # slow to import, and wanted for this only

    path = Path(get_sample_data("grace_hopper.jpg", asfileobj=False))
    if not path.is_file():
        raise FileNotFoundError(
            f"Expected the photograph that comes with matplotlib in {path}, but there is no such file; reinstall "
            'matplotlib with its sample data, or leave "photo" out of `ood`.'
        )
    with Image.open(path) as image:
        grey = torch.from_numpy(np.array(image.convert("L").reduce(_SHRINK)))
    patches = (16 - (grey / 255 * 16).round()).to(torch.uint8).unfold(0, _SIDE, 1).unfold(1, _SIDE, 1).flatten(0, 1)
    contrast = patches.flatten(1).float().std(1)
    patches = patches[contrast >= contrast.median()]
    places = torch.randperm(len(patches), generator=torch.Generator().manual_seed(seed))[: len(ink)]
    return patches[places].unsqueeze(1)


OOD_DIGITS: dict[str, Callable[[Tensor, int], Tensor]] = {"shuffled": shuffled, "inverted": inverted, "photo": photo}

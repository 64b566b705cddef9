"""Real handwritten digits inside the package: the data set that needs no download and trains in a minute.

The 1,797 images are the test part of "Optical Recognition of Handwritten Digits" by E. Alpaydin and C. Kaynak (1998),
UCI Machine Learning Repository, doi:10.24432/C50P49, licence CC BY 4.0; unchanged, written as whole numbers.
"""

import gzip
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_dropout.data.arguments import check_count, check_fraction, check_held_out
from lightning_dropout.data.augmentation import random_shift
from lightning_dropout.data.loaders import Rows, RowsDataModule
from lightning_dropout.data.ood_digits import OOD_DIGITS
from lightning_dropout.data.splits import stratified_split, stratified_subset
from lightning_dropout.log_keys import check_ood_names
from lightning_dropout.sampling.losses import IGNORED

__all__ = ["DigitsDataModule", "load_digits"]

# Mean and standard deviation of a pixel (after division by 16) over the training rows of the default split.
PIXEL_MEAN, PIXEL_STD = 0.305, 0.376


def load_digits() -> tuple[Tensor, Tensor]:
    """Read the embedded images and their classes.

    Returns:
        Ink per pixel, whole numbers from 0 to 16, and classes from 0 to 9.

    Shape:
        ``(1797, 1, 8, 8)`` uint8 and ``(1797,)`` int64.

    Source:
        E. Alpaydin and C. Kaynak (1998), doi:10.24432/C50P49, CC BY 4.0.

    Example:
        >>> images, labels = load_digits()
        >>> images.shape, labels[:4]
        (torch.Size([1797, 1, 8, 8]), tensor([0, 1, 2, 3]))
    """
    file = resources.files("lightning_dropout.data").joinpath("digits.csv.gz")
    table = np.loadtxt(gzip.decompress(file.read_bytes()).decode().splitlines(), delimiter=",", dtype=np.uint8)
    return torch.from_numpy(table[:, :64].reshape(-1, 1, 8, 8).copy()), torch.from_numpy(table[:, 64].astype(np.int64))


@dataclass(frozen=True)
class DigitBatch:
    """Turn ``(batch, 1, 8, 8)`` uint8 ink into what the model reads; ``max_shift`` in pixels of the 8x8 image."""

    image_size: int
    channels: int
    max_shift: int = 0

    def __call__(self, ink: Tensor) -> Tensor:
        pixels = random_shift(ink, self.max_shift).float() / 16  # outside of the image there is no ink: 0
        if self.image_size != 8:
            pixels = F.interpolate(pixels, size=(self.image_size, self.image_size), mode="bilinear", antialias=True)
        return ((pixels - PIXEL_MEAN) / PIXEL_STD).expand(-1, self.channels, -1, -1)


class DigitsDataModule(RowsDataModule):
    """1,797 real handwritten digits of 8x8 pixels, embedded in the package.

    Ink (0 to 16) is divided by 16, resized, and normalised with the constants 0.305 and 0.376 (mean and standard
    deviation of the training rows of the default split, so that no test row moves them). In training ``augment``
    shifts each image by its own offset of up to one pixel; validation, test and gap rows are never shifted.

    Args:
        image_size: Height and width in pixels that the model reads, at least 1; 8 keeps the images as they are.
        channels: 1, or 3 for models that read colour images (three equal channels).
        val_fraction: Share of all rows for validation, in (0, 1); every class keeps its share.
        test_fraction: Share of all rows for the test, in (0, 1); every class keeps its share.
        train_fraction: Share of the training rows that is kept, in (0, 1]; few rows make overfitting visible.
            Validation and test rows do not depend on it.
        augment: Whether training images are shifted at random.
        batch_size: Rows per batch and process, at least 1.
        num_workers: Worker processes per loader, at least 0.
        pin_memory: Whether batches are put into page-locked memory.
        seed: Seed of the split, at least 0; independent of the seed of the training.
        gap_loader: Whether ``val_dataloader`` yields a second loader over training rows, for ``val/gap``.
        ood: Out-of-distribution sets that ``test_dataloader`` yields after the test rows, each of as many images:
            ``"shuffled"`` (the pixels of each test image in an order of its own), ``"inverted"`` (ink and paper
            swapped), ``"photo"`` (patches of a photograph). Which order and which patches follows from ``seed``; labels
            are -100.

    Shape:
        ``x``: ``(batch, channels, image_size, image_size)`` float32; ``y``: ``(batch,)`` int64.

    Raises:
        ValueError: If an argument is out of range; in ``setup``, if a set is empty.
        FileNotFoundError: In ``setup``, if matplotlib, which ships the photograph, came without it.

    Source:
        E. Alpaydin and C. Kaynak (1998), "Optical Recognition of Handwritten Digits", doi:10.24432/C50P49, CC BY 4.0.

    Example:
        >>> data = DigitsDataModule(image_size=16, batch_size=32)
        >>> data.input_shape, data.num_classes
        ((1, 16, 16), 10)
        >>> data.setup()
        >>> len(data.train_set), len(data.val_set), len(data.test_set)
        (1258, 180, 359)
    """

    def __init__(
        self,
        image_size: int = 8,
        channels: int = 1,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        train_fraction: float = 1.0,
        augment: bool = False,
        batch_size: int = 64,
        num_workers: int = 0,
        pin_memory: bool = False,
        seed: int = 0,
        gap_loader: bool = True,
        ood: Sequence[str] = (),
    ) -> None:
        super().__init__(batch_size, num_workers, pin_memory, seed, gap_loader)
        self.image_size = check_count(image_size, "image_size", minimum=1, maximum=1024)
        if channels not in (1, 3):
            raise ValueError(f"Expected `channels` to be 1 (grey) or 3 (grey, repeated), but got {channels!r}.")
        self.channels = channels
        self.val_fraction, self.test_fraction = check_held_out(val_fraction, test_fraction)
        self.train_fraction = check_fraction(train_fraction, "train_fraction", allow_one=True)
        self.augment = augment
        self.input_shape = (channels, self.image_size, self.image_size)
        self.num_classes = 10
        self.ood_names = check_ood_names(ood)
        unknown = [name for name in self.ood_names if name not in OOD_DIGITS]
        if unknown:
            raise ValueError(f"Expected `ood` to list some of {', '.join(OOD_DIGITS)}, but got {unknown}.")

    def plain_transform(self) -> Callable[[Tensor], Tensor]:
        """Return the transform without shifts."""
        return DigitBatch(self.image_size, self.channels)

    def make_sets(self) -> tuple[Rows, Rows, Rows]:
        """Read the embedded file and split it, every class with its share in each set."""
        ink, labels = load_digits()
        test, val, train = stratified_split(labels, (self.test_fraction, self.val_fraction), self.seed)
        train = train[stratified_subset(labels[train], round(self.train_fraction * len(train)), self.seed)]
        plain = self.plain_transform()
        shifted = DigitBatch(self.image_size, self.channels, max_shift=int(self.augment))
        return Rows(ink, labels, train, shifted), Rows(ink, labels, val, plain), Rows(ink, labels, test, plain)

    def make_ood_sets(self, test: Rows) -> Mapping[str, Rows]:
        """Make each set of the test images, or as many as there are."""
        ink, labels, rows = test.inputs[test.rows], torch.full_like(test.rows, IGNORED), torch.arange(len(test))
        return {name: Rows(OOD_DIGITS[name](ink, self.seed), labels, rows, test.transform) for name in self.ood_names}

    def cure_of_empty(self, name: str) -> str:
        """Name the argument that gives the set more rows."""
        argument = {"training": "train_fraction", "validation": "val_fraction", "test": "test_fraction"}[name]
        return f"raise `{argument}` ({getattr(self, argument)} of the 1,797 digits rounds to no row)"

"""What the data modules for images share: split, augmentation, normalisation; nothing here reads a file.

Decoding small JPEGs is what starves a CPU run, so images come in as uint8, from memory where they fit, and are turned
into augmented, normalised floats a batch at a time. On one CPU core that takes under 1 s for the 50,000 training images
of CIFAR-10, where decoding them takes about 5 s and crops and flips by torchvision, image by image, 3 s.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from lightning_dropout.data.arguments import check_fraction, check_held_out
from lightning_dropout.data.augmentation import random_flip, random_shift
from lightning_dropout.data.image_files import Images, fit_to_size, list_image_folders, open_image_sets
from lightning_dropout.data.loaders import Rows, RowsDataModule
from lightning_dropout.data.splits import stratified_split, stratified_subset

__all__ = ["ImageBatch", "ImageDataModule", "ImageTransform"]

ImageTransform = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ImageBatch:
    """Turn ``(batch, 3, height, width)`` uint8 images into what the model reads; every random draw is per image."""

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: bool = False
    train_transform: ImageTransform | None = None

    def __call__(self, images: Tensor) -> Tensor:
        images = fit_to_size(images, self.size)
        if self.train_transform is not None:
            images = torch.stack([_apply(self.train_transform, image) for image in images])
        if self.augment:
            images = random_flip(random_shift(images, max_shift=min(self.size) // 8))
        mean, std = (torch.tensor(values).view(-1, 1, 1) * 255 for values in (self.mean, self.std))
        return images.float().sub_(mean).div_(std)


def _apply(transform: ImageTransform, image: Tensor) -> Tensor:
    result = transform(image)
    if result.dtype != torch.uint8 or result.shape != image.shape:
        raise ValueError(
            f"Expected `train_transform` to keep uint8 and the shape {tuple(image.shape)}, but got {result.dtype} "
            f"and {tuple(result.shape)}; leave conversion and normalisation out of it, they come after it."
        )
    return result


class ImageDataModule(RowsDataModule):
    """Split, augmentation and normalisation of images; a subclass says in ``read_images`` where they come from.

    Args:
        size: Height and width in pixels that the model reads.
        num_classes: Number of classes.
        val_fraction: Share of the training images that become validation rows where the data bring none.
        test_fraction: Likewise for test rows.
        train_fraction: Share of the training rows that is kept, in (0, 1].
        augment: Whether training images are shifted by up to an eighth of their size and mirrored at random.
        train_transform: Applied to each training image before that.
        mean: Subtracted from each colour after scaling to [0, 1].
        std: What each colour is then divided by.
        batch_size: Rows per batch and process, at least 1.
        num_workers: Worker processes per loader, at least 0.
        pin_memory: Whether batches are put into page-locked memory.
        seed: Seed of the split, at least 0.
        gap_loader: Whether ``val_dataloader`` yields a second loader over training rows.
        ood: Folders of image files, by the names of the out-of-distribution sets that follow the test rows.
    """

    cache: bool | None = True  # whether images of folders are decoded once, as in ``open_image_sets``

    def __init__(
        self,
        size: tuple[int, int],
        num_classes: int,
        val_fraction: float,
        test_fraction: float,
        train_fraction: float,
        augment: bool,
        train_transform: ImageTransform | None,
        mean: Sequence[float],
        std: Sequence[float],
        batch_size: int,
        num_workers: int,
        pin_memory: bool,
        seed: int,
        gap_loader: bool,
        ood: Mapping[str, str | Path],
    ) -> None:
        super().__init__(batch_size, num_workers, pin_memory, seed, gap_loader)
        self.size = size
        self.input_shape = (3, *size)
        self.num_classes = num_classes
        self.val_fraction, self.test_fraction = check_held_out(val_fraction, test_fraction, allow_zero_test=True)
        self.train_fraction = check_fraction(train_fraction, "train_fraction", allow_one=True)
        self._plain = ImageBatch(size, _three_numbers(mean, "mean"), _three_numbers(std, "std", positive=True))
        self._augmented = replace(self._plain, augment=augment, train_transform=train_transform)
        self._ood_files = list_image_folders(ood)
        self.ood_names = tuple(self._ood_files)

    @abstractmethod
    def read_images(self) -> dict[str, Images]:
        """Return the images that the data bring: ``"train"``, and ``"val"`` and ``"test"`` if they are separate."""

    def plain_transform(self) -> Callable[[Tensor], Tensor]:
        """Return the transform without augmentation."""
        return self._plain

    def make_sets(self) -> tuple[Rows, Rows, Rows]:
        """Split off what the data do not bring, every class with its share."""
        given = self.read_images()
        store, labels = given["train"]
        fractions = (0.0 if "test" in given else self.test_fraction, 0.0 if "val" in given else self.val_fraction)
        test_rows, val_rows, rows = stratified_split(labels, fractions, self.seed)
        rows = rows[stratified_subset(labels[rows], round(self.train_fraction * len(rows)), self.seed)]

        def held_out(name: str, split_off: Tensor) -> Rows:
            if name not in given:
                return Rows(store, labels, split_off, self._plain)
            images, classes = given[name]
            return Rows(images, classes, torch.arange(len(classes)), self._plain)

        return Rows(store, labels, rows, self._augmented), held_out("val", val_rows), held_out("test", test_rows)

    def make_ood_sets(self, test: Rows) -> Mapping[str, Rows]:
        """Open the folders; their images are made as large as the test images are before the transform."""
        height, width = test.inputs[test.rows[:1]].shape[-2:]
        sets = open_image_sets(self._ood_files, (height, width), resize=True, cache=self.cache)
        return {
            name: Rows(images, labels, torch.arange(len(labels)), test.transform)
            for name, (images, labels) in sets.items()
        }

    def cure_of_empty(self, name: str) -> str:
        """Name the argument that gives the set more rows."""
        argument = {"training": "train_fraction", "validation": "val_fraction", "test": "test_fraction"}[name]
        return f"add images, or raise `{argument}` (now {getattr(self, argument)})"


def _three_numbers(values: Sequence[float], name: str, *, positive: bool = False) -> tuple[float, ...]:
    numbers = [value for value in values if isinstance(value, int | float) and math.isfinite(value)]
    if len(numbers) != 3 or len(values) != 3 or (positive and min(numbers) <= 0):
        kind = "finite numbers above 0" if positive else "finite numbers"
        raise ValueError(f"Expected `{name}` to be three {kind} (red, green, blue), but got {values!r}.")
    return tuple(float(value) for value in numbers)

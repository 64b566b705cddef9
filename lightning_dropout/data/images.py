"""Images in folders, one folder per class; needs the extra ``vision``.

Nothing is downloaded here, and nothing of torchvision is imported before a module is constructed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning_dropout.data.arguments import check_count
from lightning_dropout.data.image_data_module import ImageDataModule, ImageTransform
from lightning_dropout.data.image_files import Images, decode, import_torchvision, list_image_sets, open_image_sets

__all__ = ["ImageFolderDataModule"]


class ImageFolderDataModule(ImageDataModule):
    """Images in folders: ``root/train/<class>/*``, ``root/test/<class>/*`` and, where given, ``root/val/<class>/*``.

    Classes are numbered by the alphabetical order of the folders in ``root/train``. In training each image is shifted
    by its own offset (up to an eighth of its size, black comes in) and mirrored by its own coin; validation, test and
    gap rows are only resized and normalised.

    The files are listed when the module is constructed; with ``cache`` they are decoded in ``setup``, so that a broken
    one ends the run before the training.

    Args:
        root: The folder that holds ``train`` and ``test``.
        image_size: Height and width in pixels: images are scaled to cover that square, the middle is cut out. None
            takes them as they are; all must then be as large as the first one.
        val_fraction: Share of the training images for validation, in (0, 1), if there is no ``root/val``; every class
            keeps its share.
        test_fraction: Likewise for the test, in [0, 1), if there is no ``root/test``; at 0 its absence is an error.
        train_fraction: Share of the training rows that is kept, in (0, 1]; few rows make overfitting visible.
        augment: Whether training images are shifted and mirrored. Not for letters or whatever else has a left and a
            right.
        train_transform: More augmentation: takes and returns one uint8 image ``(3, height, width)``, for example
            ``torchvision.transforms.v2.TrivialAugmentWide()``; runs before shift and mirror, image by image.
        mean: Subtracted from red, green and blue, after scaling to [0, 1].
        std: What red, green and blue are then divided by, above 0.
        cache: Whether images are decoded once and kept in memory, one byte per value and process. None: if they take
            at most 1 GiB.
        batch_size: Rows per batch and process, at least 1.
        num_workers: Worker processes per loader, at least 0; with cached images 0 is usually fastest on a CPU.
        pin_memory: Whether batches are put into page-locked memory.
        seed: Seed of the split, at least 0; independent of the seed of the training.
        gap_loader: Whether ``val_dataloader`` yields a second loader over training rows, for ``val/gap``.
        ood: Folders of image files at any depth, by the names of out-of-distribution sets: ``{"svhn": "/data/svhn"}``.
            ``test_dataloader`` yields them after the test rows, resized and normalised like these; labels are -100.

    Shape:
        ``x``: ``(batch, 3, height, width)`` float32; ``y``: ``(batch,)`` int64.

    Raises:
        FileNotFoundError: If a folder or all its images are missing.
        ValueError: If an argument is out of range, a folder names an unknown class, or an image is broken or of another
            size; in ``setup``, if a set is empty.
        ImportError: If torchvision cannot be imported.

    Example:
        >>> ImageFolderDataModule("/nowhere")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        FileNotFoundError: Expected `root` to hold the folder `train`, ... but /nowhere does not exist; ...
    """

    def __init__(
        self,
        root: str | Path,
        image_size: int | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.0,
        train_fraction: float = 1.0,
        augment: bool = True,
        train_transform: ImageTransform | None = None,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        cache: bool | None = None,
        batch_size: int = 128,
        num_workers: int = 0,
        pin_memory: bool = False,
        seed: int = 0,
        gap_loader: bool = True,
        ood: Mapping[str, str | Path] = {},
    ) -> None:
        folder = Path(root).expanduser().absolute()
        classes, files = list_image_sets(folder)
        if "test" not in files and test_fraction == 0:
            raise FileNotFoundError(
                f"Expected test images in {folder / 'test'}, but there is no such folder; "
                "add it, or pass `test_fraction` to split test images off the training images."
            )
        if image_size is None:
            height, width = decode(files["train"][0][0], 0).shape[1:]
        else:
            height = width = check_count(image_size, "image_size", minimum=1, maximum=8192)
        import_torchvision("torchvision.transforms.v2")
        super().__init__(
            size=(height, width),
            num_classes=len(classes),
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            train_fraction=train_fraction,
            augment=augment,
            train_transform=train_transform,
            mean=mean,
            std=std,
            batch_size=batch_size,
            num_workers=num_workers,
            pin_memory=pin_memory,
            seed=seed,
            gap_loader=gap_loader,
            ood=ood,
        )
        self.root = folder
        self.classes = classes
        self.cache = cache
        self.image_size = image_size
        self._files = files

    def read_images(self) -> dict[str, Images]:
        """Decode the listed files, if they are to be cached."""
        return open_image_sets(self._files, self.size, resize=self.image_size is not None, cache=self.cache)

    def cure_of_empty(self, name: str) -> str:
        """Name the folder that needs images, or the argument."""
        folder = self.root / {"training": "train", "validation": "val", "test": "test"}[name]
        if name != "training" and folder.is_dir():
            return f"put images into {folder}/<class>/, or remove the folder and use `{folder.name}_fraction`"
        return super().cure_of_empty(name)

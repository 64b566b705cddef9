"""CIFAR-10 from either of its usual forms on disk; needs the extra ``vision``.

Nothing is downloaded unless ``download=True``, and nothing of torchvision is imported before a module is constructed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from lightning_dropout.data.arguments import check_count
from lightning_dropout.data.image_data_module import ImageDataModule, ImageTransform
from lightning_dropout.data.image_files import Files, Images, import_torchvision, list_image_sets, open_image_sets

__all__ = ["CIFAR10DataModule"]

# The archive of A. Krizhevsky: its folder, and the files in it that are read.
BATCHES = "cifar-10-batches-py"
BATCH_FILES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"]
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


class CIFAR10DataModule(ImageDataModule):
    """CIFAR-10: 50,000 training and 10,000 test images of 32x32 pixels in 10 classes.

    Reads ``root/cifar-10-batches-py`` (the original archive, unpacked, as torchvision keeps it; checked by checksum) or
    ``root/train/<class>/*`` and ``root/test/<class>/*`` (image files). All images are kept in memory as uint8, 184 MB
    per process. In training each image is shifted by its own offset of up to an eighth of its size (4 pixels of 32,
    black comes in) and mirrored by its own coin; validation, test and gap rows are only normalised.

    Args:
        root: The folder that holds one of the two forms.
        download: Whether torchvision may fetch the archive into ``root`` if neither form is there.
        image_size: Height and width in pixels that the model reads, at least 1; other than 32 resizes each batch.
        val_fraction: Share of the training images for validation, in (0, 1); every class keeps its share.
        train_fraction: Share of the training rows that is kept, in (0, 1]; few rows make overfitting visible.
        augment: Whether training images are shifted and mirrored.
        train_transform: More augmentation: takes and returns one uint8 image ``(3, image_size, image_size)``, for
            example ``torchvision.transforms.v2.TrivialAugmentWide()``; runs before shift and mirror, image by image.
        mean: Subtracted from red, green and blue, after scaling to [0, 1]; the default is that of the training images.
        std: What red, green and blue are then divided by; the default is that of the training images.
        batch_size: Rows per batch and process, at least 1.
        num_workers: Worker processes per loader, at least 0; 0 is usually fastest on a CPU.
        pin_memory: Whether batches are put into page-locked memory.
        seed: Seed of the split, at least 0; independent of the seed of the training.
        gap_loader: Whether ``val_dataloader`` yields a second loader over training rows, for ``val/gap``.
        ood: Folders of image files at any depth, by the names of out-of-distribution sets: ``{"svhn": "/data/svhn"}``.
            ``test_dataloader`` yields them after the test rows, resized and normalised like these; labels are -100.

    Shape:
        ``x``: ``(batch, 3, image_size, image_size)`` float32; ``y``: ``(batch,)`` int64.

    Raises:
        FileNotFoundError: If neither form is there and ``download`` is False, or a folder of ``ood`` has no images.
        ValueError: If an argument is out of range, or the files are damaged or not CIFAR-10.
        ConnectionError: In ``prepare_data``, if the download fails.
        ImportError: If torchvision cannot be imported.

    Source:
        A. Krizhevsky (2009), "Learning Multiple Layers of Features from Tiny Images".

    Example:
        >>> CIFAR10DataModule("/nowhere")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        FileNotFoundError: Expected `root` to hold CIFAR-10, but there is neither /nowhere/cifar-10-batches-py nor ...
    """

    def __init__(
        self,
        root: str | Path,
        download: bool = False,
        image_size: int = 32,
        val_fraction: float = 0.1,
        train_fraction: float = 1.0,
        augment: bool = True,
        train_transform: ImageTransform | None = None,
        mean: Sequence[float] = (0.4914, 0.4822, 0.4465),
        std: Sequence[float] = (0.2470, 0.2435, 0.2616),
        batch_size: int = 128,
        num_workers: int = 0,
        pin_memory: bool = False,
        seed: int = 0,
        gap_loader: bool = True,
        ood: Mapping[str, str | Path] = {},
    ) -> None:
        side = check_count(image_size, "image_size", minimum=1, maximum=8192)
        super().__init__(
            size=(side, side),
            num_classes=len(CLASSES),
            val_fraction=val_fraction,
            test_fraction=0.0,
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
        folder = Path(root).expanduser().absolute()
        self.root = folder.parent if folder.name == BATCHES else folder
        self.classes = CLASSES
        self.image_size = side
        self.download = download
        self._files: dict[str, Files] | None = None
        if (self.root / "train").is_dir() and not (self.root / BATCHES).is_dir():
            self._files = self._list_files()
        elif not download:
            self._expect_batches()
        import_torchvision("torchvision.transforms.v2")

    def prepare_data(self) -> None:
        """Download the archive if that is wanted and needed; Lightning calls this in one process per machine."""
        if self.download and self._files is None:
            datasets = import_torchvision("torchvision.datasets")
            try:
                datasets.CIFAR10(self.root, download=True)  # fetches nothing if all files are there
            except (OSError, RuntimeError) as error:
                raise ConnectionError(
                    f"Expected to download CIFAR-10 into {self.root}, but got {type(error).__name__}: {error}; "
                    "fetch the archive by hand and unpack it there."
                ) from error

    def read_images(self) -> dict[str, Images]:
        """Read all images into memory."""
        if self._files is not None:
            return open_image_sets(self._files, (32, 32), resize=False, cache=True)
        datasets = import_torchvision("torchvision.datasets")
        sets: dict[str, Images] = {}
        for name in ("train", "test"):
            try:
                images = datasets.CIFAR10(self.root, train=name == "train")
            except RuntimeError as error:  # a missing file or a wrong checksum
                raise ValueError(
                    f"Expected {self.root / BATCHES} to hold the files of CIFAR-10, but got: {error} "
                    "Remove the folder, then unpack the archive again or pass `download=True`."
                ) from error
            pixels = torch.from_numpy(images.data).permute(0, 3, 1, 2).contiguous()
            sets[name] = (pixels, torch.tensor(images.targets))
        return sets

    def cure_of_empty(self, name: str) -> str:
        """Name the folder that needs images, or the argument."""
        return f"put images into {self.root / 'test'}/<class>/" if name == "test" else super().cure_of_empty(name)

    def _expect_batches(self) -> None:
        folder = self.root / BATCHES
        if not folder.is_dir():
            raise FileNotFoundError(
                f"Expected `root` to hold CIFAR-10, but there is neither {folder} nor {self.root / 'train'}; "
                "correct `root`, or pass `download=True`."
            )
        missing = [name for name in BATCH_FILES if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"Expected {folder} to hold the files of CIFAR-10, but {', '.join(missing)} is missing; "
                "unpack the archive again, or pass `download=True`."
            )

    def _list_files(self) -> dict[str, Files]:
        classes, files = list_image_sets(self.root)
        if classes != CLASSES or "test" not in files:
            raise ValueError(
                f"Expected the folders `train` and `test` of {self.root} to hold the ten classes of CIFAR-10, "
                f"but got {sorted(files)} with {classes}; use ImageFolderDataModule for other images."
            )
        return files

"""Image files on disk as a store of uint8 batches: finding them, decoding them, keeping them in memory.

Needs the extra ``vision``; torchvision is imported on use, never when this module is. No random number is drawn here.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lightning_dropout.data.loaders import Store
from lightning_dropout.log_keys import check_ood_names
from lightning_dropout.sampling.losses import IGNORED

__all__ = [
    "Files",
    "ImageFiles",
    "Images",
    "decode",
    "fit_to_size",
    "import_torchvision",
    "list_image_folders",
    "list_image_sets",
    "open_image_sets",
]

CACHE_LIMIT = 2**30  # bytes that images which are opened together may take in memory, unless it is told otherwise

Images = tuple[Store, Tensor]  # images of one set, and the class of each
Files = tuple[list[str], Tensor]  # paths of one set, and the class of each


def import_torchvision(module: str) -> ModuleType:
    """Import a module of torchvision, or say how to install it.

    Args:
        module: Full name, such as ``"torchvision.datasets"``.

    Raises:
        ImportError: If it cannot be imported for whatever reason.
    """
    try:
        return import_module(module)
    except Exception as error:  # a torchvision built for another torch fails with RuntimeError, not ImportError
        raise ImportError(
            f"Expected torchvision to be importable for image data, but got {type(error).__name__}: {error}; "
            "run `pip install 'lightning-dropout[vision]'`, which installs the build that fits the installed torch."
        ) from error


def list_image_sets(root: Path) -> tuple[list[str], dict[str, Files]]:
    """List the images in ``root/train/<class>/``, and those in ``val`` and ``test`` where these folders exist.

    Class i is the i-th folder of ``train`` in alphabetical order. The other sets are numbered by these, not by their
    own folders: a test set without cats must not call dogs cats. Hidden folders are left out.

    Args:
        root: The folder that holds ``train``.

    Returns:
        Names of the classes, and for each set the paths and class numbers.

    Raises:
        FileNotFoundError: If ``train`` is missing, has less than two classes or one without images.
        ValueError: If another set has a folder that is no training class.
    """
    train = root / "train"
    if not train.is_dir():
        found = "has no such folder" if root.is_dir() else "does not exist"
        raise FileNotFoundError(
            f"Expected `root` to hold the folder `train`, with one folder per class in it, but {root} {found}; "
            "correct `root`, or move the class folders into `train`."
        )
    classes = _class_folders(train)
    sets = {name: _list_images(root / name, classes) for name in ("train", "val", "test") if (root / name).is_dir()}
    empty = sorted(set(classes) - {classes[label] for label in sets["train"][1].tolist()})
    if len(classes) < 2 or empty:
        found = f"no image in {empty[:5]}" if empty else f"{len(classes)}"
        raise FileNotFoundError(
            f"Expected {train} to hold at least two folders, one per class, with images in each, but got {found}; "
            "put the images of each class into a folder of its own."
        )
    return classes, sets


def list_image_folders(folders: Mapping[str, str | Path]) -> dict[str, Files]:
    """List the images in each folder, at any depth, in alphabetical order: out-of-distribution sets, without classes.

    Args:
        folders: By name of the set.

    Returns:
        Paths and labels by name of the set; every label is -100.

    Raises:
        ValueError: If ``folders`` is no mapping, or a name is none that a logging key can hold.
        FileNotFoundError: If a folder is missing or has no image in it.
    """
    if not isinstance(folders, Mapping):
        raise ValueError(
            f'Expected `ood` to give a folder for each name, but got {folders!r}; e.g. {{"svhn": "/data"}}.'
        )
    listed = {}
    for name in check_ood_names(folders):
        folder = Path(folders[name]).expanduser().absolute()
        paths = _find_images(folder.parent, {folder.name: 0})[0] if folder.is_dir() else []
        if not paths:
            found = "there is none in it" if folder.is_dir() else "there is no such folder"
            raise FileNotFoundError(
                f"Expected image files in {folder}, `ood` of {name!r}, but {found}; correct the folder, or leave "
                f"{name!r} out."
            )
        listed[name] = paths, torch.full((len(paths),), IGNORED)
    return listed


def open_image_sets(
    sets: dict[str, Files], size: tuple[int, int], *, resize: bool, cache: bool | None
) -> dict[str, Images]:
    """Make stores of listed images.

    Args:
        sets: Paths and class numbers of each set.
        size: Height and width in pixels of every image.
        resize: Whether images of another size are made to fit; if not, they are an error.
        cache: Whether all files are decoded now; None: if they take at most 1 GiB.
    """
    stores = {name: ImageFiles(paths, size, resize) for name, (paths, _) in sets.items()}
    if cache is None:
        cache = sum(map(len, stores.values())) * 3 * size[0] * size[1] <= CACHE_LIMIT
    return {name: (store.in_memory() if cache else store, sets[name][1]) for name, store in stores.items()}


def _class_folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _list_images(folder: Path, classes: list[str]) -> Files:
    unknown = sorted(set(_class_folders(folder)) - set(classes))
    if unknown:
        raise ValueError(
            f"Expected {folder} to hold folders of the {len(classes)} training classes only, but got {unknown[:5]}; "
            "rename or remove them."
        )
    return _find_images(folder, {name: number for number, name in enumerate(classes)})


def _find_images(folder: Path, classes: dict[str, int]) -> Files:
    torchvision_folder = import_torchvision("torchvision.datasets.folder")
    found = torchvision_folder.make_dataset(str(folder), classes, torchvision_folder.IMG_EXTENSIONS, allow_empty=True)
    return [path for path, _ in found], torch.tensor([label for _, label in found], dtype=torch.long)


def fit_to_size(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Scale images until they just cover ``size`` and cut out the middle, so that nothing is squashed.

    Shape:
        ``(..., channels, H, W)`` to ``(..., channels, *size)``, the same dtype.
    """
    height, width = images.shape[-2:]
    if (height, width) == size:
        return images
    functional = import_torchvision("torchvision.transforms.v2.functional")
    scale = max(size[0] / height, size[1] / width)
    scaled = [max(side, round(old * scale)) for side, old in zip(size, (height, width), strict=True)]
    cut: Tensor = functional.center_crop(functional.resize(images, scaled, antialias=True), list(size))
    return cut


class ImageFiles:
    """A store of image files: row numbers in, one uint8 RGB batch out.

    Args:
        paths: The files; row i is the i-th.
        size: Height and width in pixels of every row.
        resize: Whether images of another size are made to fit; if not, they are an error.

    Shape:
        Indexing: row numbers ``(batch,)`` to ``(batch, 3, *size)`` uint8.
    """

    def __init__(self, paths: Sequence[str], size: tuple[int, int], resize: bool) -> None:
        self.paths = np.array(
            paths, dtype=np.str_
        )  # one block of memory: a list is copied by forked workers page by page
        self.size = size
        self.resize = resize

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, rows: Tensor) -> Tensor:
        return torch.stack([self._read(row) for row in rows.tolist()])

    def in_memory(self) -> Tensor:
        """Decode all files, once."""
        images = torch.empty(len(self), 3, *self.size, dtype=torch.uint8)
        for row in range(len(self)):
            images[row] = self._read(row)
        return images

    def _read(self, row: int) -> Tensor:
        image = decode(str(self.paths[row]), row)
        if self.resize:
            return fit_to_size(image, self.size)
        if image.shape[1:] != self.size:
            raise ValueError(
                f"Expected images of one size, {self.size} (height, width), but {self.paths[row]} (image {row} of its "
                f"set) has {tuple(image.shape[1:])}; pass `image_size` to resize all."
            )
        return image


def decode(path: str, row: int) -> Tensor:
    """Read one file as RGB; grey images and palettes are converted, transparency is dropped.

    Args:
        path: The file.
        row: Its number in its set, from 0, for the message.

    Shape:
        ``(3, height, width)`` uint8.

    Raises:
        ValueError: If the file cannot be read as an image, from whatever cause.
    """
    try:
        with Image.open(path) as image:
            pixels = np.array(image.convert("RGB"))
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError and more on broken files
        raise ValueError(
            f"Expected a readable image in {path} (image {row} of its set), "
            f"but got {type(error).__name__}: {error}; replace or delete the file."
        ) from error
    return torch.from_numpy(pixels).permute(2, 0, 1)

"""Image files: classes numbered by the training folders, broken files named, sizes made to fit without squashing."""

import builtins
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from lightning_dropout.data import image_files
from lightning_dropout.data.loaders import Rows

pytest.importorskip("torchvision", reason="needs the extra `vision`", exc_type=Exception)


def check_class_numbers(module: ModuleType, root: Path) -> None:
    """The test set has no ants and the validation set no bees; bees stay class 1."""
    for path in (root / "test" / "ant").iterdir():
        path.unlink()
    (root / "test" / "ant").rmdir()
    (root / "val" / "ant").mkdir(parents=True)
    (root / "test" / ".cache").mkdir()
    (root / "train" / ".cache").mkdir()
    classes, sets = module.list_image_sets(root)
    assert classes == ["ant", "bee"]
    assert sets["train"][1].tolist() == [0] * 20 + [1] * 10
    assert sets["test"][1].tolist() == [1, 1]
    assert sets["val"][1].tolist() == []
    assert sets["train"][1].dtype == sets["val"][1].dtype == torch.int64
    assert [Path(path).name for path in sets["test"][0]] == ["000.png", "001.png"]


def test_class_numbers(image_root: Path) -> None:
    check_class_numbers(image_files, image_root)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("for number, name in enumerate(classes)}", "for number, name in enumerate(_class_folders(folder))}"),
        (' and not entry.name.startswith(".")', ""),
    ],
    ids=["numbered by own folders", "hidden folder is a class"],
)
def test_planted_bugs(mutate: Callable[..., ModuleType], image_root: Path, old: str, new: str) -> None:
    with pytest.raises((AssertionError, FileNotFoundError)):
        check_class_numbers(mutate(image_files, (old, new)), image_root)


def test_missing_folders(tmp_path: Path, make_images: Callable[..., list[Path]]) -> None:
    with pytest.raises(
        FileNotFoundError, match=rf"hold the folder `train`.* but {tmp_path}/no does not exist; correct"
    ):
        image_files.list_image_sets(tmp_path / "no")
    with pytest.raises(FileNotFoundError, match=rf"but {tmp_path} has no such folder; .* move the class folders"):
        image_files.list_image_sets(tmp_path)
    make_images(tmp_path / "train" / "ant", 2)
    with pytest.raises(
        FileNotFoundError, match=rf"Expected {tmp_path}/train to hold at least two folders.* but got 1;"
    ):
        image_files.list_image_sets(tmp_path)
    (tmp_path / "train" / "bee").mkdir()
    (tmp_path / "train" / "bee" / "notes.txt").write_text("no image")
    with pytest.raises(FileNotFoundError, match=r"but got no image in \['bee'\]; put the images"):
        image_files.list_image_sets(tmp_path)


def test_unknown_class(image_root: Path, make_images: Callable[..., list[Path]]) -> None:
    make_images(image_root / "test" / "cat", 1)
    with pytest.raises(ValueError, match=rf"{image_root}/test to hold .* 2 training classes only, but got \['cat'\]"):
        image_files.list_image_sets(image_root)


@pytest.mark.parametrize("content", [b"", b"no image", None], ids=["empty", "text", "cut off"])
@pytest.mark.parametrize("workers", [0, 1])
def test_broken_file_is_named(
    image_root: Path, drain: Callable[..., None], content: bytes | None, workers: int
) -> None:
    _, sets = image_files.list_image_sets(image_root)
    broken = Path(sets["train"][0][7])
    broken.write_bytes(broken.read_bytes()[:100] if content is None else content)
    store = image_files.ImageFiles(sets["train"][0], (8, 8), resize=False)
    rows = Rows(store, sets["train"][1], torch.arange(30))
    message = rf"Expected a readable image in {broken} \(image 7 of its set\), but got \w+: .*; replace or delete"
    with pytest.raises(ValueError, match=message):
        drain(DataLoader(rows, batch_size=10, num_workers=workers))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK"])
def test_every_colour_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    Image.new("RGB", (6, 4), (255, 0, 0) if mode not in ("L", "LA", "1") else (255, 255, 255)).convert(mode).save(path)
    image = image_files.decode(str(path), 0)
    assert image.shape == (3, 4, 6)
    assert image.dtype == torch.uint8
    assert (image[0] > 250).all()


def test_image_of_another_size(tmp_path: Path, make_images: Callable[..., list[Path]]) -> None:
    paths = [str(path) for path in make_images(tmp_path / "a", 2) + make_images(tmp_path / "b", 1, size=(10, 8))]
    with pytest.raises(
        ValueError, match=rf"one size, \(8, 8\) .* but {paths[2]} \(image 2 .* has \(10, 8\); pass `image_size`"
    ):
        image_files.ImageFiles(paths, (8, 8), resize=False).in_memory()
    assert image_files.ImageFiles(paths, (8, 8), resize=True).in_memory().shape == (3, 3, 8, 8)


def test_fit_keeps_proportions_and_the_middle() -> None:
    wide = torch.zeros(3, 8, 24, dtype=torch.uint8)
    wide[:, :, 8:16] = 200  # the middle third is a square
    assert image_files.fit_to_size(wide, (8, 8)).equal(torch.full((3, 8, 8), 200, dtype=torch.uint8))
    assert image_files.fit_to_size(wide.transpose(1, 2), (4, 4)).float().mean() > 180
    bigger = image_files.fit_to_size(wide.expand(2, -1, -1, -1), (16, 48))
    assert bigger.shape == (2, 3, 16, 48)
    assert bigger.dtype == torch.uint8
    assert image_files.fit_to_size(wide, (8, 24)) is wide


def test_cache(image_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, sets = image_files.list_image_sets(image_root)

    def opened(cache: bool | None) -> Any:
        return image_files.open_image_sets(sets, (8, 8), resize=False, cache=cache)["train"][0]

    files, memory = opened(False), opened(True)
    assert isinstance(files, image_files.ImageFiles)
    assert isinstance(memory, torch.Tensor)
    rows = torch.tensor([29, 0, 7])
    assert files[rows].equal(memory[rows])
    assert files[rows][1].permute(1, 2, 0).numpy().tolist() == np.array(Image.open(sets["train"][0][0])).tolist()
    assert isinstance(opened(None), torch.Tensor)
    size = 36 * 3 * 8 * 8  # all sets together
    monkeypatch.setattr(image_files, "CACHE_LIMIT", size)
    assert isinstance(opened(None), torch.Tensor)
    monkeypatch.setattr(image_files, "CACHE_LIMIT", size - 1)
    assert isinstance(opened(None), image_files.ImageFiles)


@pytest.mark.parametrize("error", [RuntimeError("operator torchvision::nms does not exist"), ImportError("none")])
def test_torchvision_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def failing_import(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "torchvision":
            raise error
        return real_import(name, *args, **kwargs)

    real_import = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", failing_import)
    monkeypatch.setattr(image_files, "import_module", failing_import)
    with pytest.raises(ImportError, match=r"but got \w+: .*; run `pip install 'lightning-dropout\[vision\]'`") as info:
        image_files.import_torchvision("torchvision.datasets")
    assert info.value.__cause__ is error


def test_torchvision_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, image_root: Path) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.datasets.folder", None)
    with pytest.raises(ImportError, match=r"but got ModuleNotFoundError.*lightning-dropout\[vision\]"):
        image_files.list_image_sets(image_root)


def test_folders_at_any_depth(tmp_path: Path, make_images: Callable[..., list[Path]]) -> None:
    deep = make_images(tmp_path / "svhn" / "test" / "3", 2)
    flat = make_images(tmp_path / "svhn", 1)
    make_images(tmp_path / "other", 3)
    (tmp_path / "svhn" / "readme.txt").write_text("no image")
    listed = image_files.list_image_folders({"svhn": str(tmp_path / "svhn"), "rest": tmp_path / "other"})
    assert list(listed) == ["svhn", "rest"]
    paths, labels = listed["svhn"]
    assert paths == [str(path) for path in (*flat, *deep)]
    assert labels.tolist() == [-100] * 3
    assert image_files.list_image_folders({}) == {}


def test_folders_that_are_no_data_set(tmp_path: Path) -> None:
    (tmp_path / "empty" / "deep").mkdir(parents=True)
    with pytest.raises(
        FileNotFoundError, match=rf"in {tmp_path}/empty, `ood` of 'a', but there is none in it; correct"
    ):
        image_files.list_image_folders({"a": tmp_path / "empty"})
    with pytest.raises(FileNotFoundError, match=rf"in {tmp_path}/no, `ood` of 'a', but there is no such folder"):
        image_files.list_image_folders({"a": tmp_path / "no"})
    with pytest.raises(ValueError, match="Expected `ood` to list different names"):
        image_files.list_image_folders({"a/b": tmp_path})
    with pytest.raises(ValueError, match=r"Expected `ood` to give a folder for each name, but got \['a'\]"):
        image_files.list_image_folders(["a"])  # type: ignore[arg-type]

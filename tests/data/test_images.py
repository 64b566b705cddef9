"""Image folders, end to end, on tiny images."""

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import lightning_dropout.data
from lightning_dropout.data import ImageFolderDataModule

pytest.importorskip("torchvision", reason="needs the extra `vision`", exc_type=Exception)


def ready(root: Path, **kwargs: Any) -> ImageFolderDataModule:
    data = ImageFolderDataModule(root, **kwargs)
    data.setup()
    return data


def read(loader: Any) -> tuple[Tensor, Tensor]:
    batches = list(loader)
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def test_importing_the_room_needs_no_torchvision() -> None:
    for file in Path(lightning_dropout.data.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.startswith("torchvision") for name in names), file.name


def test_known_before_setup(image_root: Path) -> None:
    data = ImageFolderDataModule(str(image_root))
    assert (data.input_shape, data.num_classes, data.classes) == ((3, 8, 8), 2, ["ant", "bee"])
    assert ImageFolderDataModule(image_root, image_size=12).input_shape == (3, 12, 12)


@pytest.mark.parametrize(("cache", "workers"), [(True, 0), (False, 0), (None, 0), (False, 1)])
def test_test_images_in_order(image_root: Path, cache: bool | None, workers: int) -> None:
    x, y = read(ready(image_root, cache=cache, num_workers=workers, batch_size=4).test_dataloader())
    assert y.tolist() == [0, 0, 0, 0, 1, 1]
    paths = [image_root / "test" / name for name in ("ant/000.png", "ant/001.png", "ant/002.png", "ant/003.png")]
    paths += [image_root / "test" / "bee" / name for name in ("000.png", "001.png")]
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) for path in paths])
    assert torch.allclose(x, pixels.float() / 127.5 - 1, atol=1e-6)


def test_validation_rows_are_split_off(image_root: Path) -> None:
    data = ready(image_root, val_fraction=0.2)
    assert read(data.val_dataloader()[0])[1].bincount().tolist() == [4, 2]
    assert len(data.train_set) == 24
    torch.manual_seed(9)
    assert ready(image_root, val_fraction=0.2).val_set.rows.equal(data.val_set.rows)


def test_given_validation_rows_are_used(image_root: Path, make_images: Callable[..., list[Path]]) -> None:
    make_images(image_root / "val" / "bee", 3)
    data = ready(image_root, train_fraction=0.5)
    assert len(data.train_set) == 15
    assert data.train_set.targets[data.train_set.rows].bincount().tolist() == [10, 5]
    val, gap = data.val_dataloader()
    assert read(val)[1].tolist() == [1, 1, 1]
    assert len(read(gap)[1]) == 3


def test_test_folder_missing(image_root: Path) -> None:
    (image_root / "test").rename(image_root / "elsewhere")
    with pytest.raises(FileNotFoundError, match=rf"test images in {image_root}/test, but .* pass `test_fraction`"):
        ImageFolderDataModule(image_root)
    data = ready(image_root, test_fraction=0.2)
    assert [len(rows) for rows in (data.train_set, data.val_set, data.test_set)] == [21, 3, 6]


@pytest.mark.parametrize("name", ["val", "test"])
def test_folder_without_images(image_root: Path, name: str) -> None:
    for path in image_root.glob(f"{name}/*/*"):
        path.unlink()
    (image_root / name / "ant").mkdir(parents=True, exist_ok=True)
    kind = "validation" if name == "val" else name
    with pytest.raises(ValueError, match=rf"the {kind} set .* none; put images into {image_root}/{name}/<class>/, or"):
        ready(image_root)


def test_root_missing(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=rf"Expected `root` to hold .*{tmp_path}/no does not exist; correct `root`"
    ):
        ImageFolderDataModule(tmp_path / "no")


@pytest.mark.parametrize("image_size", [0, -8, 8.0, "8"])
def test_bad_image_size(image_root: Path, image_size: Any) -> None:
    with pytest.raises(ValueError, match="`image_size`"):
        ImageFolderDataModule(image_root, image_size=image_size)


def test_broken_image_ends_setup_if_cached_and_training_if_not(image_root: Path, drain: Callable[..., None]) -> None:
    broken = image_root / "train" / "bee" / "004.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(ValueError, match=rf"readable image in {broken} \(image 24 of its set\)"):
        ready(image_root)
    data = ready(image_root, cache=False, num_workers=1, batch_size=4)
    assert 24 in data.train_set.rows
    with pytest.raises(ValueError, match=rf"readable image in {broken} \(image 24 of its set\)"):
        drain(data.train_dataloader())


def test_images_of_several_sizes(image_root: Path, make_images: Callable[..., list[Path]]) -> None:
    make_images(image_root / "train" / "bee", 10, size=(9, 13))
    with pytest.raises(ValueError, match="pass `image_size`"):
        ready(image_root)
    x, _ = read(ready(image_root, image_size=6).train_dataloader())
    assert x.shape[1:] == (3, 6, 6)


def test_batches_larger_than_the_data(image_root: Path) -> None:
    data = ready(image_root, batch_size=10_000)
    assert [len(y) for _, y in data.train_dataloader()] == [27]


@pytest.mark.parametrize(("cache", "image_size"), [(True, 12), (False, 12), (None, None)])
def test_other_folders_look_like_the_test_images(
    image_root: Path, make_images: Callable[..., list[Path]], cache: bool | None, image_size: int | None
) -> None:
    same = [path for name in ("ant", "bee") for path in sorted((image_root / "test" / name).iterdir())]
    copied = image_root / "other" / "deep"
    copied.mkdir(parents=True)
    for number, path in enumerate(same):
        (copied / f"{number}.png").write_bytes(path.read_bytes())
    make_images(image_root / "large", 3, size=(20, 30))
    ood = {"copy": image_root / "other", "large": str(image_root / "large")}
    data = ready(image_root, cache=cache, image_size=image_size, ood=ood, mean=(0.1, 0.2, 0.3), batch_size=4)
    assert data.ood_names == ("copy", "large")
    test, copy, large = map(read, data.test_dataloader())
    assert copy[0].equal(test[0])
    assert large[0].shape == (3, *data.input_shape)
    assert copy[1].tolist() == [-100] * 6
    assert large[1].tolist() == [-100] * 3
    assert isinstance(data.ood_sets["copy"].inputs, Tensor) is (cache is not False)


def test_other_folders_are_looked_for_at_once(image_root: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"Expected image files in {image_root}/no, `ood` of 'svhn'"):
        ImageFolderDataModule(image_root, ood={"svhn": image_root / "no"})

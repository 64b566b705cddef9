"""CIFAR-10 in both forms on disk, made tiny: the same images and classes come out of either."""

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lightning_dropout.data import CIFAR10DataModule
from lightning_dropout.data.cifar10 import BATCHES, CLASSES
from lightning_dropout.data.image_files import fit_to_size

datasets = pytest.importorskip("torchvision.datasets", reason="needs the extra `vision`", exc_type=Exception)

PIXELS = np.random.default_rng(0).integers(0, 256, (120, 32, 32, 3), dtype=np.uint8)
LABELS = np.arange(120) % 10  # rows 0 to 99 are for training, in five files of 20


@pytest.fixture
def batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of the archive, with the checksums that torchvision compares."""
    folder = tmp_path / BATCHES
    folder.mkdir()

    def write(name: str, content: dict[str, Any]) -> list[str]:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    def rows(name: str, first: int) -> list[str]:
        flat = PIXELS[first : first + 20].transpose(0, 3, 1, 2).reshape(20, -1)
        return write(name, {"data": flat, "labels": LABELS[first : first + 20].tolist()})

    train = [rows(f"data_batch_{number + 1}", 20 * number) for number in range(5)]
    monkeypatch.setattr(datasets.CIFAR10, "train_list", train)
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [rows("test_batch", 100)])
    meta = write("batches.meta", {"label_names": CLASSES})
    monkeypatch.setattr(datasets.CIFAR10, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]})
    return tmp_path


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    root = tmp_path / "folders"
    for row, (pixels, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
        folder = root / ("train" if row < 100 else "test") / CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{row:04d}.png")
    return root


def ready(root: Path, **kwargs: Any) -> CIFAR10DataModule:
    data = CIFAR10DataModule(root, **kwargs)
    data.prepare_data()
    data.setup()
    return data


def read(loader: Any) -> tuple[Tensor, Tensor]:
    parts = list(loader)
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


def check_content(data: CIFAR10DataModule) -> None:
    assert (data.input_shape, data.num_classes) == ((3, 32, 32), 10)
    assert [len(rows) for rows in (data.train_set, data.val_set, data.test_set, data.gap_set)] == [90, 10, 20, 10]
    assert data.val_set.targets[data.val_set.rows].bincount().tolist() == [1] * 10
    x, y = read(data.test_dataloader())
    mean, std = (
        torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1),
        torch.tensor([0.2470, 0.2435, 0.2616]).view(3, 1, 1),
    )
    pixels = torch.from_numpy(PIXELS[100:]).permute(0, 3, 1, 2).float() / 255
    order = y.argsort(stable=True)
    expected = torch.from_numpy(LABELS[100:]).argsort(stable=True)
    assert y[order].tolist() == LABELS[100:][expected].tolist()
    assert torch.allclose(x[order], ((pixels - mean) / std)[expected], atol=1e-5)


def test_archive(batches: Path) -> None:
    check_content(ready(batches))
    check_content(ready(batches / BATCHES))


def test_folders(folders: Path) -> None:
    check_content(ready(folders))


def test_archive_wins_where_both_are(batches: Path, folders: Path) -> None:
    (folders / "train").rename(batches / "train")
    assert ready(batches)._files is None


def test_resized_per_batch(batches: Path) -> None:
    data = ready(batches, image_size=48, augment=False)
    x, _ = read(data.val_dataloader()[0])
    assert data.input_shape == (3, 48, 48) == tuple(x.shape[1:])
    assert data.train_set.inputs.shape[-1] == 32  # memory holds what the file holds


def test_full_size_split_is_45000_to_5000() -> None:
    from lightning_dropout.data.splits import stratified_split

    labels = torch.arange(50000) % 10
    _, val, train = stratified_split(labels, (0.0, 0.1), seed=0)
    assert labels[val].bincount().tolist() == [500] * 10
    assert labels[train].bincount().tolist() == [4500] * 10


def test_nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("no download was asked for")

    monkeypatch.setattr(datasets.CIFAR10, "download", refuse)
    message = rf"neither {tmp_path}/{BATCHES} nor {tmp_path}/train; correct `root`, or pass `download=True`"
    with pytest.raises(FileNotFoundError, match=message):
        CIFAR10DataModule(tmp_path)


def test_download_only_if_asked_for(batches: Path, folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(datasets.CIFAR10, "download", lambda self: calls.append(self.root))
    ready(batches)
    ready(folders, download=True)  # already there, in the other form
    assert calls == []
    ready(batches, download=True)  # torchvision finds all files and fetches nothing
    assert [str(call) for call in calls] == [str(batches)]
    assert CIFAR10DataModule(batches / "later", download=True).input_shape == (3, 32, 32)


def test_damaged_archive(batches: Path) -> None:
    (batches / BATCHES / "data_batch_3").write_bytes(b"damaged")
    data = CIFAR10DataModule(batches)
    with pytest.raises(
        ValueError, match=rf"Expected {batches}/{BATCHES} to hold the files of CIFAR-10.*Remove the folder"
    ):
        data.setup()
    (batches / BATCHES / "data_batch_3").unlink()
    with pytest.raises(FileNotFoundError, match="but data_batch_3 is missing; unpack the archive again"):
        CIFAR10DataModule(batches)


def test_damaged_image(folders: Path) -> None:
    broken = folders / "train" / "bird" / "0012.png"
    broken.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=rf"readable image in {broken} \(image 21 of its set\)"):
        ready(folders)


def test_other_images(image_root: Path, make_images: Callable[..., list[Path]]) -> None:
    with pytest.raises(
        ValueError, match=r"ten classes of CIFAR-10, but got \['test', 'train'\].*ImageFolderDataModule"
    ):
        CIFAR10DataModule(image_root)


def test_empty_test_set(folders: Path) -> None:
    for path in folders.glob("test/*/*"):
        path.unlink()
    with pytest.raises(ValueError, match=rf"the test set .* none; put images into {folders}/test/<class>/"):
        ready(folders)


def test_download_that_fails_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(self: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(datasets.CIFAR10, "download", no_network)
    data = CIFAR10DataModule(tmp_path, download=True)
    with pytest.raises(ConnectionError, match=rf"download CIFAR-10 into {tmp_path}, but got OSError: no network; "):
        data.prepare_data()


def test_other_folders_are_made_small_and_then_large_like_the_test_images(batches: Path, folders: Path) -> None:
    big = Image.fromarray(PIXELS[0]).resize((128, 128), Image.Resampling.NEAREST)
    (folders / "big").mkdir()
    big.save(folders / "big" / "0.png")
    data = ready(batches, image_size=64, ood={"test": folders / "test", "big": folders / "big"})
    (x, _), (copy, labels), (large, _) = map(read, data.test_dataloader())
    assert sorted(copy.flatten(1).sum(1).tolist()) == pytest.approx(sorted(x.flatten(1).sum(1).tolist()))
    assert labels.eq(-100).all()
    small = fit_to_size(torch.from_numpy(np.array(big)).permute(2, 0, 1), (32, 32))
    assert large.equal(data.plain_transform()(small[None]))  # no sharper than the test images are

"""From uint8 to what the model reads: values, augmentation per image, and which rows see it."""

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_dropout.data import image_data_module
from lightning_dropout.data.image_data_module import ImageBatch, ImageDataModule

ARGUMENTS: dict[str, Any] = {
    "size": (8, 8),
    "num_classes": 2,
    "val_fraction": 0.2,
    "test_fraction": 0.0,
    "train_fraction": 1.0,
    "augment": True,
    "train_transform": None,
    "mean": (0.5, 0.25, 0.0),
    "std": (0.5, 1.0, 0.25),
    "batch_size": 64,
    "num_workers": 0,
    "pin_memory": False,
    "seed": 0,
    "gap_loader": True,
    "ood": {},
}
LABELS = torch.arange(100) % 2
IMAGES = torch.randint(256, (100, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def build(module: ModuleType, with_test: bool = True, **arguments: Any) -> ImageDataModule:
    class InMemory(module.ImageDataModule):  # type: ignore[name-defined, misc]
        def read_images(self) -> dict[str, Any]:
            test = {"test": (IMAGES[:10], LABELS[:10])} if with_test else {}
            return {"train": (IMAGES, LABELS), **test}

    data = InMemory(**{**ARGUMENTS, **arguments})
    data.setup()
    return data


def read(rows: Any) -> Tensor:
    return torch.stack([x for x, _ in rows.__getitems__(list(range(len(rows))))])


def check_values(module: ModuleType) -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    before = images.clone()
    x = module.ImageBatch((4, 4), mean=(0.5, 0.25, 0.0), std=(0.5, 1.0, 0.25))(images)
    assert x.dtype == torch.float32
    assert torch.allclose(x[0, :, 0, 0], torch.tensor([-1.0, -0.05, 4.0]))
    assert images.equal(before)


def test_values() -> None:
    check_values(image_data_module)


@pytest.mark.parametrize(
    ("old", "new"),
    [("view(-1, 1, 1) * 255", "view(-1, 1, 1)"), ("sub_(mean).div_(std)", "div_(std).sub_(mean)")],
)
def test_planted_bugs_of_values(mutate: Callable[..., ModuleType], old: str, new: str) -> None:
    with pytest.raises(AssertionError):
        check_values(mutate(image_data_module, (old, new)))


def check_augmented_rows(module: ModuleType) -> None:
    """Training images change from one reading to the next, each in its own way; no others do."""
    data = build(module)
    plain = ImageBatch((8, 8), ARGUMENTS["mean"], ARGUMENTS["std"])
    torch.manual_seed(0)
    first, second = read(data.train_set), read(data.train_set)
    original = plain(IMAGES[data.train_set.rows])
    changed = (first != original).flatten(1).any(dim=1).float().mean()
    assert 0.85 < changed.item() < 1  # 17 of 18 shifts and mirrors move something; 80 images
    assert (first != second).flatten(1).any(dim=1).float().mean() > 0.85
    for rows in (data.val_set, data.gap_set, data.test_set):
        assert read(rows).equal(plain(rows.inputs[rows.rows]))


def test_only_training_rows_are_augmented() -> None:
    check_augmented_rows(image_data_module)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Rows(store, labels, split_off, self._plain)", "Rows(store, labels, split_off, self._augmented)"),
        ("torch.arange(len(classes)), self._plain)", "torch.arange(len(classes)), self._augmented)"),
        ("        return self._plain\n", "        return self._augmented\n"),
        ("labels, rows, self._augmented)", "labels, rows, self._plain)"),
    ],
    ids=["validation", "test", "gap", "nothing"],
)
def test_planted_bugs_of_augmentation(mutate: Callable[..., ModuleType], old: str, new: str) -> None:
    with pytest.raises(AssertionError):
        check_augmented_rows(mutate(image_data_module, (old, new)))


def test_no_augmentation() -> None:
    data = build(image_data_module, augment=False)
    assert read(data.train_set).equal(read(data.train_set))


def test_split() -> None:
    data = build(image_data_module)
    assert [len(rows) for rows in (data.train_set, data.val_set, data.test_set, data.gap_set)] == [80, 20, 10, 20]
    assert LABELS[data.val_set.rows].bincount().tolist() == [10, 10]
    assert torch.cat([data.train_set.rows, data.val_set.rows]).sort().values.equal(torch.arange(100))
    assert data.test_set.inputs is not data.train_set.inputs
    three = build(image_data_module, with_test=False, test_fraction=0.1, train_fraction=0.5)
    assert [len(rows) for rows in (three.train_set, three.val_set, three.test_set)] == [35, 20, 10]
    assert len(set(torch.cat([three.train_set.rows, three.val_set.rows, three.test_set.rows]).tolist())) == 65


def test_empty_test_set() -> None:
    with pytest.raises(ValueError, match=r"the test set .* none; add images, or raise `test_fraction` \(now 0\.0\)"):
        build(image_data_module, with_test=False)


def test_own_transform_sees_single_training_images_before_the_rest() -> None:
    seen = []

    def invert(image: Tensor) -> Tensor:
        seen.append(image.shape)
        return 255 - image

    data = build(image_data_module, augment=False, train_transform=invert)
    plain = ImageBatch((8, 8), ARGUMENTS["mean"], ARGUMENTS["std"])
    assert read(data.train_set).equal(plain(255 - IMAGES[data.train_set.rows]))
    assert seen == [(3, 8, 8)] * 80
    assert read(data.gap_set).equal(plain(IMAGES[data.gap_set.rows]))


@pytest.mark.parametrize("wrong", [lambda image: image.float(), lambda image: image[:, 1:]])
def test_own_transform_must_keep_type_and_shape(wrong: Callable[[Tensor], Tensor]) -> None:
    data = build(image_data_module, train_transform=wrong)
    with pytest.raises(
        ValueError, match="Expected `train_transform` to keep uint8 and the shape \\(3, 8, 8\\), but got"
    ):
        read(data.train_set)


def test_transforms_of_torchvision_draw_per_image() -> None:
    v2 = pytest.importorskip("torchvision.transforms.v2", reason="needs the extra `vision`", exc_type=Exception)
    batch = replace(ImageBatch((8, 8), (0.5,) * 3, (0.5,) * 3), train_transform=v2.RandomVerticalFlip(p=0.5))
    torch.manual_seed(0)
    image = torch.arange(3 * 64, dtype=torch.uint8).view(1, 3, 8, 8)
    x = batch(image.expand(200, -1, -1, -1))
    flipped = (x[:, 0, 0, 0] != x.min()).float().mean().item()
    assert 0.3 < flipped < 0.7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mean": (0.5, 0.5)}, "Expected `mean` to be three finite numbers \\(red, green, blue\\), but got"),
        ({"mean": ("a", 0.5, 0.5)}, "Expected `mean` to be three"),
        ({"mean": (float("nan"), 0.5, 0.5)}, "Expected `mean` to be three"),
        ({"std": (0.5, 0.5, 0.0)}, "Expected `std` to be three finite numbers above 0"),
        ({"val_fraction": 0.0}, "`val_fraction`"),
        ({"val_fraction": 0.6, "test_fraction": 0.4}, "`val_fraction` \\+ `test_fraction`"),
        ({"train_fraction": 0.0}, "`train_fraction`"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(image_data_module, **arguments)

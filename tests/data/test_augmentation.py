"""Augmentation draws per image: the law of the offsets, the coin of the mirror, and bugs that break them."""

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

from lightning_dropout.data import augmentation

IMAGES = 9000


def check_shift(module: ModuleType) -> None:
    """Offsets of single images are uniform on 3 x 3 and independent of each other (a fixed seed; chi-square, 8)."""
    torch.manual_seed(0)
    lit = torch.zeros(IMAGES, 2, 5, 5, dtype=torch.uint8)
    lit[:, 0, 2, 2] = 200
    lit[:, 1, 2, 2] = 100
    moved = module.random_shift(lit, max_shift=1)
    assert moved.shape == lit.shape
    assert moved.dtype == torch.uint8
    assert moved[:, 0].div(2, rounding_mode="floor").equal(moved[:, 1])  # all channels of an image move together
    brightest = moved[:, 0].flatten(1).argmax(dim=1)
    down, right = brightest // 5 - 2, brightest % 5 - 2
    counts = ((down + 1) * 3 + right + 1).bincount(minlength=9)
    assert len(counts) == 9
    assert ((counts - IMAGES / 9) ** 2 / (IMAGES / 9)).sum() < 45  # p about 4e-7
    neighbours_alike = ((down[1:] == down[:-1]) & (right[1:] == right[:-1])).float().mean().item()
    assert abs(neighbours_alike - 1 / 9) < 5 * (1 / 9 * 8 / 9 / IMAGES) ** 0.5


def check_flip(module: ModuleType) -> None:
    """Each image is mirrored with probability 1/2, by its own coin."""
    torch.manual_seed(0)
    image = torch.arange(6.0).view(1, 1, 2, 3)
    result = module.random_flip(image.expand(IMAGES, -1, -1, -1))
    mirrored = (result == image.flip(-1)).flatten(1).all(dim=1)
    kept = (result == image).flatten(1).all(dim=1)
    assert (mirrored ^ kept).all()
    assert abs(mirrored.float().mean().item() - 0.5) < 5 * 0.5 / IMAGES**0.5
    alike = (mirrored[1:] == mirrored[:-1]).float().mean().item()
    assert abs(alike - 0.5) < 5 * 0.5 / IMAGES**0.5


def test_shift() -> None:
    check_shift(augmentation)


def test_flip() -> None:
    check_flip(augmentation)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("torch.randint(2 * max_shift + 1, (2, batch), device", "torch.randint(2 * max_shift + 1, (2, 1), device"),
        ("torch.randint(2 * max_shift + 1, (2, batch), device", "torch.randint(2 * max_shift, (2, batch), device"),
        ("(2, batch), device=images.device)", "(1, batch), device=images.device).expand(2, -1)"),
    ],
    ids=["one shift per batch", "never the largest", "down equals right"],
)
def test_planted_bugs_of_shift(mutate: Callable[..., ModuleType], old: str, new: str) -> None:
    with pytest.raises(AssertionError):
        check_shift(mutate(augmentation, (old, new)))


@pytest.mark.parametrize(
    ("old", "new"),
    [("torch.rand(len(images), 1, 1, 1", "torch.rand(1, 1, 1, 1"), ("< 0.5", "< 0.4")],
    ids=["one coin per batch", "wrong rate"],
)
def test_planted_bugs_of_flip(mutate: Callable[..., ModuleType], old: str, new: str) -> None:
    with pytest.raises(AssertionError):
        check_flip(mutate(augmentation, (old, new)))


def test_shift_is_a_padded_crop() -> None:
    torch.manual_seed(1)
    images = torch.rand(50, 3, 6, 4)
    moved = augmentation.random_shift(images, max_shift=2)
    padded = F.pad(images, (2, 2, 2, 2))
    crops = torch.stack([padded[:, :, y : y + 6, x : x + 4] for y in range(5) for x in range(5)])
    assert (crops == moved).flatten(2).all(dim=2).any(dim=0).all()


def test_no_shift_is_the_identity() -> None:
    images = torch.rand(3, 1, 4, 4)
    assert augmentation.random_shift(images, max_shift=0).equal(images)

"""What is made of the digits, and cut out of a photograph: the right pixels, from their own seed, nothing missing."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import matplotlib.cbook
import numpy as np
import pytest
import torch
from PIL import Image

from lightning_dropout.data import ood_digits
from lightning_dropout.data.digits import load_digits
from lightning_dropout.data.ood_digits import OOD_DIGITS

INK = load_digits()[0][:300]


@pytest.mark.parametrize("name", OOD_DIGITS)
def test_as_many_images_of_the_same_kind(name: str) -> None:
    before, state = INK.clone(), torch.get_rng_state()
    images = OOD_DIGITS[name](INK, 0)
    assert (images.shape, images.dtype) == (INK.shape, INK.dtype)
    assert images.max() <= 16
    assert images.equal(OOD_DIGITS[name](INK, 0))
    assert INK.equal(before)
    assert torch.get_rng_state().equal(state)
    assert (images != INK).flatten(1).any(1).all()
    assert images.equal(OOD_DIGITS[name](INK, 1)) is (name == "inverted")


def check_shuffled(module: ModuleType) -> None:
    """Each image has the ink it had, in an order of its own."""
    places = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).expand(300, -1, -1, -1)
    order = module.shuffled(places, 0).flatten(1).long()
    assert order.sort(1).values.equal(torch.arange(64).expand(300, -1))
    assert len(order.unique(dim=0)) == 300
    # a place gets each pixel equally often: chi-squared of 63 degrees of freedom has mean 63 and deviation 11.2
    counts = torch.stack([order[:, place].bincount(minlength=64) for place in range(64)]).double()
    statistic = (counts - 300 / 64).square().sum(1) / (300 / 64)
    assert abs(statistic.mean() - 63) < 5 * 11.2 / 8


def test_shuffled() -> None:
    check_shuffled(ood_digits)


def test_inverted() -> None:
    assert (INK + ood_digits.inverted(INK, 0)).eq(16).all()


def check_photo(module: ModuleType) -> None:
    """Every patch stands in the photograph, once, and has something in it; they come from all over it."""
    path = Path(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))
    grey = np.asarray(Image.open(path).convert("L"), dtype=np.float64)
    small = grey[:600, :512].reshape(150, 4, 128, 4).mean(axis=(1, 3))
    ink = torch.from_numpy(16 - small / 255 * 16)
    windows = ink.unfold(0, 8, 1).unfold(1, 8, 1)
    patches = module.photo(INK, 0)[:, 0].double()
    distances = torch.cdist(patches.flatten(1), windows.reshape(-1, 64), p=torch.inf)
    assert distances.min(1).values.max() <= 0.6  # half a step of ink, and one of grey that Pillow rounds
    places = distances.argmin(1)
    assert len(places.unique()) > 290  # those that overlap nearly are alike
    rows, columns = places // 121, places % 121
    for place, size in ((rows, 143), (columns, 121)):
        assert place.min() < size / 5
        assert place.max() > 4 * size / 5
    assert patches.flatten(1).std(1).min() > 0.5


def test_photo() -> None:
    check_photo(ood_digits)


@pytest.mark.parametrize(
    ("check", "old", "new"),
    [
        (check_shuffled, "torch.rand(len(ink), _SIDE**2,", "torch.rand(1, _SIDE**2,"),
        (check_shuffled, "ink.flatten(1).gather(1, order)", "ink.flatten(1).sort(1).values"),
        (check_photo, "(16 - (grey / 255 * 16).round())", "((grey / 255 * 16).round())"),
        (check_photo, ".unfold(0, _SIDE, 1).unfold(1, _SIDE, 1)", ".unfold(0, _SIDE, 1).unfold(1, _SIDE, 1).mT"),
        (check_photo, "patches = patches[contrast >= contrast.median()]", ""),
        (check_photo, "torch.randperm(len(patches), generator", "torch.randperm(3000, generator"),
        (check_photo, "_SHRINK = 4", "_SHRINK = 2"),
    ],
)
def test_planted_bugs(
    mutate: Callable[..., ModuleType], check: Callable[[ModuleType], None], old: str, new: str
) -> None:
    with pytest.raises((AssertionError, RuntimeError)):
        check(mutate(ood_digits, (old, new)))


def test_a_photograph_that_was_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = str(tmp_path / "grace_hopper.jpg")
    monkeypatch.setattr(matplotlib.cbook, "get_sample_data", lambda name, asfileobj: missing)
    with pytest.raises(FileNotFoundError, match=rf"with matplotlib in {missing}, but .* leave \"photo\" out of `ood`"):
        ood_digits.photo(INK, 0)

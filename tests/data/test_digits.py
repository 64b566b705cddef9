"""The embedded digits: the right images, exact shares, and augmentation of training rows only."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_dropout.data import DigitsDataModule, digits, ood_digits
from lightning_dropout.data.loaders import Rows

INK, LABELS = digits.load_digits()


def ready(**kwargs: Any) -> DigitsDataModule:
    data = DigitsDataModule(**kwargs)
    data.setup()
    return data


def inputs(rows: Rows) -> Tensor:
    return torch.stack([x for x, _ in rows.__getitems__(list(range(len(rows))))])


def test_embedded_copy_equals_the_original() -> None:
    original = pytest.importorskip("sklearn.datasets").load_digits()
    assert torch.from_numpy(original.images).equal(INK[:, 0].double())
    assert torch.from_numpy(original.target).long().equal(LABELS)


def test_default_split_is_exact() -> None:
    data = ready()
    sets = {"train": data.train_set, "val": data.val_set, "test": data.test_set}
    assert {name: len(rows) for name, rows in sets.items()} == {"train": 1258, "val": 180, "test": 359}
    assert torch.cat([rows.rows for rows in sets.values()]).sort().values.equal(torch.arange(1797))
    for rows in sets.values():
        for label in range(10):
            exact = LABELS.eq(label).sum().item() * len(rows) / 1797
            # Training rows are what two roundings leave, so they may be off by two.
            assert abs((LABELS[rows.rows] == label).sum().item() - exact) < (2 if rows is data.train_set else 1.1)


def test_train_fraction_keeps_a_stratified_part_and_leaves_the_rest_alone() -> None:
    all_rows, few = ready(), ready(train_fraction=0.1)
    assert len(few.train_set) == 126
    assert set(few.train_set.rows.tolist()) <= set(all_rows.train_set.rows.tolist())
    counts = LABELS[few.train_set.rows].bincount(minlength=10)
    assert counts.min() >= 12
    assert counts.max() <= 13
    assert few.val_set.rows.equal(all_rows.val_set.rows)
    assert few.test_set.rows.equal(all_rows.test_set.rows)


def test_split_follows_the_seed_of_the_data_only() -> None:
    torch.manual_seed(1)
    first = ready()
    torch.manual_seed(2)
    assert ready().train_set.rows.equal(first.train_set.rows)
    assert not ready(seed=1).test_set.rows.equal(first.test_set.rows)


@pytest.mark.parametrize(("image_size", "channels"), [(8, 1), (8, 3), (32, 3), (5, 1)])
def test_size_and_channels(image_size: int, channels: int) -> None:
    data = ready(image_size=image_size, channels=channels)
    x, y = next(iter(data.test_dataloader()))
    assert data.input_shape == (channels, image_size, image_size) == tuple(x.shape[1:])
    assert x.dtype == torch.float32
    assert y.equal(LABELS[data.test_set.rows[:64]])
    pixels = INK[data.test_set.rows[:64]].double() / 16
    resized = F.interpolate(pixels, size=(image_size,) * 2, mode="bilinear", antialias=True)
    for channel in range(channels):
        assert torch.allclose(x[:, channel].double(), (resized[:, 0] - 0.305) / 0.376, atol=1e-5)


def test_training_rows_are_normalised() -> None:
    x = inputs(ready().train_set)
    assert abs(x.mean().item()) < 0.01
    assert abs(x.std().item() - 1) < 0.01


def check_augmentation(data: DigitsDataModule) -> None:
    """Training images are shifted by at most one pixel, each on its own; all other rows stay as they are."""
    data.setup()
    torch.manual_seed(0)
    plain = digits.DigitBatch(8, 1)
    ink = INK[data.train_set.rows]
    padded = F.pad(ink, (1, 1, 1, 1))
    shifts = torch.stack([plain(padded[:, :, y : y + 8, x : x + 8]) for y in range(3) for x in range(3)])
    matches = (shifts == inputs(data.train_set)).flatten(2).all(dim=2)
    assert matches.any(dim=0).all()
    # An image with an empty margin matches once; all nine offsets must turn up within this one batch.
    assert matches[:, matches.sum(dim=0) == 1].float().mean(dim=1).min() > 0.05
    for rows in (data.val_set, data.test_set, data.gap_set):
        assert inputs(rows).equal(plain(INK[rows.rows]))


def test_augmentation() -> None:
    check_augmentation(DigitsDataModule(augment=True))
    assert inputs((data := ready()).train_set).equal(digits.DigitBatch(8, 1)(INK[data.train_set.rows]))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("random_shift(ink, self.max_shift)", "random_shift(ink[None, :, 0], self.max_shift)[0].unsqueeze(1)"),
        ("Rows(ink, labels, val, plain)", "Rows(ink, labels, val, shifted)"),
        ("return DigitBatch(self.image_size, self.channels)", "return DigitBatch(self.image_size, self.channels, 1)"),
        ("max_shift=int(self.augment)", "max_shift=0"),
    ],
    ids=["one shift per batch", "validation shifted", "gap rows shifted", "never shifted"],
)
def test_planted_bugs_of_augmentation(mutate: Callable[..., ModuleType], old: str, new: str) -> None:
    with pytest.raises(AssertionError):
        check_augmentation(mutate(digits, (old, new)).DigitsDataModule(augment=True))


def test_augmentation_shifts_before_it_resizes() -> None:
    torch.manual_seed(0)
    ink = INK[:20]
    big = digits.DigitBatch(32, 1, max_shift=1)(ink)
    padded = F.pad(ink, (1, 1, 1, 1))
    plain = digits.DigitBatch(32, 1)
    shifts = torch.stack([plain(padded[:, :, y : y + 8, x : x + 8]) for y in range(3) for x in range(3)])
    assert (shifts == big).flatten(2).all(dim=2).any(dim=0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 0}, "`image_size`"),
        ({"channels": 2}, "Expected `channels` to be 1 .* but got 2"),
        ({"val_fraction": 0}, "`val_fraction`"),
        ({"test_fraction": 1.0}, "`test_fraction`"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "`val_fraction` \\+ `test_fraction`"),
        ({"train_fraction": 0}, "`train_fraction`"),
        ({"train_fraction": 1.5}, "`train_fraction`"),
        ({"batch_size": 0}, "`batch_size`"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DigitsDataModule(**arguments)


@pytest.mark.parametrize(
    ("argument", "name"),
    [("test_fraction", "test"), ("val_fraction", "validation"), ("train_fraction", "training")],
)
def test_a_share_that_rounds_to_no_row(argument: str, name: str) -> None:
    with pytest.raises(ValueError, match=f"the {name} set .* got none; raise `{argument}` \\(0.0001 of the"):
        ready(**{argument: 0.0001})


def test_other_data_sets() -> None:
    data = ready(ood=["inverted", "shuffled"], image_size=16, channels=3, batch_size=100)
    assert data.ood_names == ("inverted", "shuffled")
    test, inverted, shuffled = (
        [torch.cat(part) for part in zip(*loader, strict=True)] for loader in data.test_dataloader()
    )
    assert test[1].equal(LABELS[data.test_set.rows])
    ink = INK[data.test_set.rows]
    for (x, y), expected in ((inverted, 16 - ink), (shuffled, ood_digits.shuffled(ink, seed=0))):
        assert y.eq(-100).all()
        assert x.equal(data.plain_transform()(expected))
    other = ready(ood=["shuffled"], seed=1)
    assert inputs(other.ood_sets["shuffled"]).equal(
        other.plain_transform()(ood_digits.shuffled(INK[other.test_set.rows], seed=1))
    )
    assert ready().ood_names == ()


@pytest.mark.parametrize(
    ("ood", "message"),
    [
        (["noise"], r"Expected `ood` to list some of shuffled, inverted, photo, but got \['noise'\]"),
        ("photo", "Expected `ood` to list different names"),
        (["photo", "photo"], "Expected `ood` to list different names"),
    ],
)
def test_unknown_data_sets(ood: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DigitsDataModule(ood=ood)

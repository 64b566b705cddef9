"""The least sure samples of all, in order, with their images where each has one; nothing else is kept in memory."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_dropout.callbacks.least_sure import LeastSure


def scores(entropy: list[float]) -> dict[str, Tensor]:
    rows = len(entropy)
    return {
        "predicted": torch.arange(rows),
        "label": torch.arange(rows) + 1,
        "confidence": torch.full((rows,), 0.5),
        "entropy": torch.tensor(entropy),
    }


@pytest.mark.parametrize(("number", "expected"), [(0, ()), (2, (3, 0)), (9, (3, 0, 2, 1, 4))])
def test_the_highest_entropies_of_all_batches(number: int, expected: tuple[int, ...]) -> None:
    kept = LeastSure(number)
    kept.add(None, scores([0.5, 0.125]))
    kept.add(None, scores([0.25, 0.75, math.nan]))
    assert kept.table().sample == expected
    assert len(kept) == len(expected)
    if number == 2:
        assert (kept.table().predicted, kept.table().label) == ((1, 0), (2, 1))
        assert all(map(math.isnan, kept.table().mutual_information))


def test_of_two_alike_the_first() -> None:
    kept = LeastSure(2)
    for _ in range(3):
        kept.add(None, scores([0.5, 0.5]))
    assert kept.table().sample == (0, 1)


def test_images_go_with_their_scores() -> None:
    images = torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 3, 2, 2).clone()
    kept = LeastSure(2)
    kept.add([images, None], scores([0.1, 0.4, 0.2, 0.3]))
    images.zero_()  # the loader may use the memory again
    assert [image.unique().item() for image in kept.images()] == [1.0, 3.0]
    assert all(image.untyped_storage().nbytes() == image.nbytes for image in kept.images())


@pytest.mark.parametrize("other", [None, [torch.zeros(2, 5)], [torch.zeros(3, 1, 2, 2)]])
def test_without_an_image_of_each_there_is_none(other: Any) -> None:
    kept = LeastSure(4)
    kept.add([torch.zeros(2, 1, 2, 2)], scores([0.1, 0.2]))
    assert len(kept.images()) == 2
    kept.add(other, scores([0.3, 0.4]))
    assert kept.images() == []
    assert len(kept.table().sample) == 4


def test_labels_need_not_be_there() -> None:
    unlabelled = scores([0.1])
    del unlabelled["label"]
    kept = LeastSure(1)
    kept.add(None, unlabelled)
    assert kept.table().label == (None,)

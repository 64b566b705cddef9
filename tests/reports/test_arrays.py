"""Numbers from anywhere, thinned without losing the ends."""

from typing import Any

import numpy as np
import pytest
import torch

from lightning_dropout.reports.arrays import as_array, equally_long, evenly


@pytest.mark.parametrize(
    "values",
    [
        [1, 2, 3],
        (1.0, 2.0, 3.0),
        range(1, 4),
        np.array([3, 2, 1], dtype=np.float32)[::-1],
        np.array([[1], [2], [3]], dtype=np.uint16),
        torch.tensor([1, 2, 3], dtype=torch.bfloat16),
        torch.tensor([[1.0], [2.0], [3.0]], requires_grad=True),
        [torch.tensor(1.0), torch.tensor(2.0), 3],
    ],
    ids=str,
)
def test_numbers_from_anywhere(values: Any) -> None:
    array = as_array(values)
    assert array.dtype == np.float64
    assert array.tolist() == [1.0, 2.0, 3.0]


def test_nothing() -> None:
    assert as_array([]).tolist() == as_array(torch.zeros(0, 3)).tolist() == evenly(0).tolist() == []


@pytest.mark.parametrize("length", [1, 2, 999, 1000, 1001, 1_000_000])
def test_places_are_even_and_keep_the_ends(length: int) -> None:
    places = evenly(length)
    assert len(places) == min(length, 1000)
    assert (places[0], places[-1]) == (0, length - 1)
    steps = np.diff(places)
    assert not len(steps) or 1 <= steps.min() <= steps.max() <= steps.min() + 1


def test_columns_of_different_lengths() -> None:
    with pytest.raises(ValueError, match=r"Expected `x` and `y` to be equally long, but got \[2, 3\] numbers"):
        equally_long(x=[1, 2], y=[1, 2, 3])

"""From whatever holds numbers to few enough of them to draw and to save."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

__all__ = ["MOST_POINTS", "Array", "Numbers", "as_array", "equally_long", "evenly"]

Array: TypeAlias = npt.NDArray[np.float64]
Numbers: TypeAlias = Tensor | npt.NDArray[Any] | Sequence[float]

MOST_POINTS = 1000  # of a line: about one for each pixel


def as_array(values: Numbers) -> Array:
    """Return ``values`` as a flat float64 array, wherever and in whatever precision they are.

    Example:
        >>> import torch
        >>> as_array(torch.tensor([[0.5], [1.0]], dtype=torch.bfloat16))
        array([0.5, 1. ])
    """
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64).ravel()


def equally_long(**columns: Numbers) -> list[Array]:
    """Return columns as arrays.

    Raises:
        ValueError: If their lengths differ.

    Example:
        >>> equally_long(x=[1, 2], y=[3, 4])
        [array([1., 2.]), array([3., 4.])]
    """
    arrays = [as_array(column) for column in columns.values()]
    if len({len(array) for array in arrays}) > 1:
        names = " and ".join(f"`{name}`" for name in columns)
        raise ValueError(f"Expected {names} to be equally long, but got {[len(array) for array in arrays]} numbers.")
    return arrays


def evenly(length: int, most: int = MOST_POINTS) -> npt.NDArray[np.int64]:
    """Return at most ``most`` places in a row of ``length``, the first and the last among them.

    Example:
        >>> evenly(9, most=3), evenly(2, most=3)
        (array([0, 4, 8]), array([0, 1]))
    """
    return np.linspace(0, length - 1, min(length, most)).round().astype(np.int64)

"""Argument checks accept what configs and libraries hand over, and name what they refuse."""

import re
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from lightning_dropout.models.arguments import block_rates, check_count, check_image_shape, check_shape


@pytest.mark.parametrize("value", [1, 3, np.int64(3)])
def test_counts(value: Any) -> None:
    assert type(check_count(value, "depth")) is int


@pytest.mark.parametrize("value", [0, -1, True, 1.0, "3", None, [3]])
def test_bad_counts(value: Any) -> None:
    with pytest.raises(
        ValueError, match=re.escape(f"Expected `depth` to be a whole number of at least 1, but got {value!r}")
    ):
        check_count(value, "depth")


@pytest.mark.parametrize("shape", [(3, 8, 8), [3, 8, 8], OmegaConf.create([3, 8, 8]), np.array([3, 8, 8])])
def test_shapes(shape: Any) -> None:
    assert check_shape(shape) == check_image_shape(shape) == (3, 8, 8)
    assert all(type(size) is int for size in check_shape(shape))


def test_block_rates_speak_of_the_models_argument() -> None:
    assert block_rates(0.2, 3, "linear") == [0.0, 0.1, 0.2]
    assert block_rates(0.0, 1, "linear") == [0.0]
    with pytest.raises(ValueError, match="Expected `drop_path` to be a probability"):
        block_rates(2.0, 3, "linear")

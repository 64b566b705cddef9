"""Numbers are refused at construction, never clipped."""

import math
from typing import Any

import numpy as np
import pytest

from lightning_dropout.data.arguments import check_count, check_fraction, check_held_out, check_positive


@pytest.mark.parametrize("value", [0, 1, -0.1, 1.1, math.nan, math.inf, "0.5", None, True])
def test_no_share_of_rows(value: Any) -> None:
    with pytest.raises(ValueError, match=r"Expected `f` to be a share of rows, a number in \(0, 1\), but got"):
        check_fraction(value, "f")


def test_share_of_rows_with_its_ends() -> None:
    assert check_fraction(0, "f", allow_zero=True) == 0.0
    assert check_fraction(np.float32(1), "f", allow_one=True) == 1.0
    assert type(check_fraction(np.float64(0.25), "f")) is float


@pytest.mark.parametrize("value", [0, -1, 2.0, 2.5, "2", None, True, math.nan])
def test_no_count(value: Any) -> None:
    with pytest.raises(ValueError, match="Expected `n` to be a whole number of at least 1, but got"):
        check_count(value, "n", minimum=1)


def test_count_is_a_plain_int() -> None:
    assert type(check_count(np.int64(3), "n", minimum=3)) is int


@pytest.mark.parametrize("value", [0, -1.0, math.inf, math.nan, "1", True])
def test_not_positive(value: Any) -> None:
    with pytest.raises(ValueError, match="Expected `s` to be a finite number above 0"):
        check_positive(value, "s")


def test_held_out_rows_leave_training_rows() -> None:
    assert check_held_out(0.1, 0, allow_zero_test=True) == (0.1, 0.0)
    with pytest.raises(ValueError, match=r"to be below 1, but got 0\.4 \+ 0\.6"):
        check_held_out(0.4, 0.6)
    with pytest.raises(ValueError, match="`test_fraction`"):
        check_held_out(0.4, 0)

"""Rates are refused, never clipped, and come back as plain floats."""

import re
from fractions import Fraction

import numpy as np
import pytest
import torch

from lightning_dropout.probability import check_probability


@pytest.mark.parametrize(
    "value", [0, 1, 0.0, 1.0, -0.0, 0.25, Fraction(1, 4), np.float32(0.25), np.float64(0.25), np.int64(1)]
)
def test_numbers_in_range_become_plain_floats(value: object) -> None:
    checked = check_probability(value, "p")
    assert type(checked) is float  # a numpy float would not survive a checkpoint loaded with weights_only=True
    assert checked == value


@pytest.mark.parametrize(
    "value",
    [
        -1e-9,
        1 + 1e-9,
        2,
        float("nan"),
        float("inf"),
        np.float32("nan"),
        True,
        np.bool_(True),
        "0.5",
        None,
        1j,
        [0.5],
        torch.tensor(0.5),
    ],
    ids=repr,
)
def test_anything_else_is_refused_with_name_and_value(value: object) -> None:
    with pytest.raises(ValueError, match=r"^Expected `attention_p` to be .*\[0, 1\]") as error:
        check_probability(value, "attention_p")
    assert re.search(re.escape(repr(value)) + r"\.$", str(error.value))

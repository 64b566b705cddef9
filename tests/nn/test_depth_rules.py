"""Depth rules: the formulas, their endpoints, and timm's values."""

from itertools import pairwise
from typing import Any

import pytest

from lightning_dropout.nn import depth_rates


@pytest.mark.parametrize("depth", [2, 3, 12, 24, 54])
@pytest.mark.parametrize("drop_prob", [0.0, 0.1, 0.3, 1.0])
def test_linear_walks_from_0_to_the_largest_rate_in_equal_steps(drop_prob: float, depth: int) -> None:
    rates = depth_rates(drop_prob, depth)
    assert len(rates) == depth
    assert rates[0] == 0.0
    assert rates[-1] == drop_prob  # exactly
    assert [later - earlier for earlier, later in pairwise(rates)] == pytest.approx(
        [drop_prob / (depth - 1)] * (depth - 1)
    )


def test_a_single_block_is_a_first_block() -> None:
    assert depth_rates(0.5, 1) == [0.0]
    assert depth_rates(0.5, 1, "uniform") == [0.5]


def test_uniform() -> None:
    assert depth_rates(0.2, 4, rule="uniform") == [0.2] * 4


@pytest.mark.parametrize("depth", [1, 2, 7, 12, 32])
@pytest.mark.parametrize("drop_prob", [0.0, 0.05, 0.1, 0.4, 0.9])
def test_linear_equals_timm(drop_prob: float, depth: int) -> None:
    try:
        from timm.layers import calculate_drop_path_rates
    except Exception as error:  # an incompatible torchvision breaks timm's import in many ways
        pytest.skip(f"timm cannot be imported: {error}")
    assert depth_rates(drop_prob, depth) == pytest.approx(calculate_drop_path_rates(drop_prob, depth), abs=1e-7)


@pytest.mark.parametrize("depth", [0, -1, 1.5, True, "3", None])
def test_bad_depth(depth: Any) -> None:
    with pytest.raises(ValueError, match="Expected `depth` to be a number of blocks"):
        depth_rates(0.1, depth)


def test_bad_rate_and_rule() -> None:
    with pytest.raises(ValueError, match="Expected `drop_prob` to be a probability"):
        depth_rates(1.1, 3)
    with pytest.raises(ValueError, match=r"Expected `rule` to be one of \('linear', 'uniform'\), but got 'cosine'"):
        depth_rates(0.1, 3, rule="cosine")  # type: ignore[arg-type]

"""Seeds that every generator takes, and no others."""

import pytest

from lightning_dropout.configuration import ConfigError, check_seed


def test_the_range() -> None:
    assert [check_seed(seed) for seed in (0, 1, 2**32 - 1)] == [0, 1, 2**32 - 1]


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5, "abc", True, None])
def test_others_are_named(seed: object) -> None:
    with pytest.raises(ConfigError, match=r"seed=.*Expected a whole number from 0"):
        check_seed(seed)

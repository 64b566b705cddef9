"""The rates of the passes; with real schedulers they are tested through the callback."""

from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from lightning_dropout.callbacks.sampled_rates import base_rates, check_final_rates, check_rates
from lightning_dropout.sites import Site, find_sites


def trainer_with(*callbacks: Any) -> Any:
    return SimpleNamespace(callbacks=list(callbacks))


def sites(*rates: float) -> list[Site]:
    return find_sites(nn.Sequential(*(nn.Dropout(rate) for rate in rates)))


@pytest.mark.parametrize(("rates", "kept"), [("trained", "trained"), ("base", "base"), (1, 1.0), (0.25, 0.25)])
def test_words_and_probabilities(rates: Any, kept: Any) -> None:
    assert check_rates(rates) == kept
    assert type(check_rates(rates)) is type(kept)


@pytest.mark.parametrize("rates", ["last", None, -0.1, 1.1, float("nan"), 0, 0.0])
def test_everything_else_is_refused(rates: Any) -> None:
    with pytest.raises(ValueError, match="Expected `rates`"):
        check_rates(rates)


def test_without_a_scheduler_the_rates_are_those_of_the_model() -> None:
    assert base_rates(trainer_with(), sites(0.1, 0.5)) == [0.1, 0.5]
    for rates in ("trained", "base", 0.1):
        check_final_rates(trainer_with(), sites(0.0, 0.5), rates)
    check_final_rates(trainer_with(), sites(0.0), 0.1)
    for rates in ("trained", "base"):
        with pytest.raises(ValueError, match="but got 0 at all 2 sites"):
            check_final_rates(trainer_with(), sites(0.0, 0.0), rates)

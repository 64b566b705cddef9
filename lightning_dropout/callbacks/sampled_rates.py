"""At which rates the passes drop: those of the training's end, those of the model as built, or one number for all.

Asks the schedulers of the same trainer, and sets nothing.
"""

from collections.abc import Sequence
from typing import Any, Literal

from lightning_dropout.callbacks.rate_scheduler import schedulers_of
from lightning_dropout.probability import check_probability
from lightning_dropout.sites import Site

__all__ = ["Rates", "base_rates", "check_final_rates", "check_rates"]

Rates = Literal["trained", "base"] | float


def check_rates(rates: Rates) -> Rates:
    """Return ``rates``, a number as a float.

    Raises:
        ValueError: If it is neither a word nor a probability above 0.

    Example:
        >>> check_rates("base"), check_rates(1)
        ('base', 1.0)
    """
    if rates == "trained" or rates == "base":
        return rates
    number = check_probability(rates, "rates")
    if number == 0.0:
        raise ValueError(f"Expected `rates` above 0, where passes differ, but got {rates!r}; e.g. `rates=0.1`.")
    return number


def check_final_rates(trainer: Any, sites: Sequence[Site], rates: Rates) -> None:
    """Raise at the start of a training after which sampling would find rates of 0 only."""
    if rates == "trained" and not any(_final_rate(trainer, site) for site in sites):
        raise ValueError(
            f"Expected rates above 0 at the end of training, but got 0 at all {len(sites)} sites, where "
            'Monte-Carlo dropout would sample nothing; pass `rates="base"` or e.g. `rates=0.1` to MCDropout '
            "(callbacks.mc_dropout.rates=base)."
        )
    if rates == "base" and not any(base_rates(trainer, sites)):
        raise ValueError(
            f"Expected a model built with rates above 0, but got 0 at all {len(sites)} sites, where Monte-Carlo "
            'dropout would sample nothing; pass `rates="trained"` or e.g. `rates=0.1` to MCDropout '
            "(callbacks.mc_dropout.rates=0.1), or leave it out (callbacks/mc_dropout=none)."
        )


def base_rates(trainer: Any, sites: Sequence[Site]) -> list[float]:
    """Return the rates that the model was built with, also where a scheduler has changed them."""
    return [_first((scheduler.base_rate(site) for scheduler in schedulers_of(trainer)), site.rate) for site in sites]


def _final_rate(trainer: Any, site: Site) -> float:
    return _first((scheduler.final_rate(trainer, site) for scheduler in schedulers_of(trainer)), site.rate)


def _first(rates: Any, default: float) -> float:
    return next((rate for rate in rates if rate is not None), default)

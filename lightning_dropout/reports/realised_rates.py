"""The rates that a run really had, as curves for the figure that also draws the plan."""

from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from lightning_dropout.log_keys import DROP_PATH, DROPOUT
from lightning_dropout.reports.arrays import Array, Numbers, equally_long, evenly
from lightning_dropout.reports.rates import RateCurve

__all__ = ["realised_rates"]

_OVER_ALL = ("mean", "min", "max")


def realised_rates(logged: Mapping[str, tuple[Numbers, Numbers]], *, steps: int) -> list[RateCurve]:
    """Make curves of the rates that were logged.

    One for each group, and one over all sites of a family with the range of their rates, unless a group is all of them.

    Args:
        logged: For each key (``dropout/mean``, ``dropout/<group>``, ``drop_path/...``; others are passed over) the
            optimizer steps, ascending, and the rate logged at each.
        steps: How many the run had.

    Returns:
        Curves of at most 1001 points for ``draw_rates(curves, steps=steps, epochs=None)``; none if nothing was logged.

    Raises:
        ValueError: If a step lies outside the run, or a key has not as many rates as steps.

    Example:
        >>> (curve,) = realised_rates({"dropout/head": ([0, 2], [0.1, 0.3])}, steps=4)
        >>> curve.label, curve.at, curve.mean
        ('head', (0.0, 0.5, 1.0), (0.1, 0.3, 0.3))
    """
    families: dict[str, dict[str, tuple[Array, Array]]] = defaultdict(dict)
    for key, (at, rate) in logged.items():
        family, _, group = key.partition("/")
        if family in (DROPOUT, DROP_PATH) and len(at):
            at, rate = equally_long(at=at, rate=rate)
            if at.min() < 0 or at.max() >= steps:
                raise ValueError(
                    f"Expected the steps of `{key}` to lie in a run of {steps} steps, but got {at.min():g} to "
                    f"{at.max():g}; pass `steps=` of the whole run."
                )
            places = evenly(len(at))
            families[family][group] = at[places] / steps, rate[places]
    return [curve for family, groups in families.items() for curve in _curves(family, groups)]


def _curves(family: str, groups: Mapping[str, tuple[Array, Array]]) -> list[RateCurve]:
    over_all = [groups[name] for name in _OVER_ALL if name in groups]
    curves = {name: [values] * 3 for name, values in groups.items() if name not in _OVER_ALL}
    if len(over_all) == len(_OVER_ALL):
        whole = [name for name, (values, *_) in curves.items() if np.array_equal(values, over_all[0])]
        curves[whole[0] if whole else "all"] = over_all
    return [_curve(family, name, *values) for name, values in curves.items()]


def _curve(
    family: str, label: str, mean: tuple[Array, Array], low: tuple[Array, Array], high: tuple[Array, Array]
) -> RateCurve:
    at = (*mean[0].tolist(), 1.0)
    rates = [(*rate.tolist(), float(rate[-1])) for _, rate in (mean, low, high)]
    return RateCurve(family, label, None, at, *rates)

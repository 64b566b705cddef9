"""Sites that follow one schedule, and the three ways in which a rate gets into them.

Eager code reads floats: they are set, and a foreign layer stays bit for bit what it was. Compiled layers that can read
a tensor are lent one. All other compiled code makes a constant of a rate, so there the schedule's values are taken in
stairs. When a rate is set is the scheduler's business.
"""

from collections.abc import Sequence, Set
from typing import Any

import torch
from torch import nn

from lightning_dropout.probability import check_probability
from lightning_dropout.schedules import Schedule
from lightning_dropout.sites import Site, TensorRates, has_tensor_form

__all__ = ["RateGroup"]


class RateGroup:
    """Sites, the schedule that they follow, and the factor of its value that each of them gets.

    Args:
        name: What the logs call the group, if it has a line of its own.
        schedule: Value at every progress.
        sites: At least one.
        factors: One for each site: its share under a depth rule, or the rate that it was built with under ``scale``.
    """

    def __init__(self, name: str | None, schedule: Schedule, sites: Sequence[Site], factors: Sequence[float]) -> None:
        self.name = name
        self.schedule = schedule
        self.sites = tuple(sites)
        self.factors = tuple(factors)
        self._greatest = max(range(len(sites)), key=lambda i: factors[i])
        self._low, self._high, self._stairs = 0.0, 0.0, 2
        self._tensors: TensorRates | None = None
        self._sort(lent=[], stepped=[])

    def adapt(
        self, compiled: Set[nn.Module], progresses: Sequence[float], device: torch.device, stairs: int, tensors: bool
    ) -> tuple[list[Site], int]:
        """Keep compiled code at few graphs: lend tensors where that is possible, and take stairs elsewhere.

        Args:
            compiled: The modules that ``torch.compile`` runs.
            progresses: Those at which the schedule will be asked.
            device: Where the model computes.
            stairs: How many values of a rate compiled code may see, at least 2.
            tensors: Whether to lend tensors at all.

        Returns:
            The sites that take stairs, none if the schedule has no more values than that anyhow; and how many values
            compiled code will see as constants.
        """
        inside = [
            i
            for i, site in enumerate(self.sites)
            # A rate that stays 0 makes no second graph, and read from a tensor it would toss coins for nothing.
            if self.factors[i] > 0.0 and any(user.module in compiled for user in site.users)
        ]
        lent = [i for i in inside if tensors and has_tensor_form(self.sites[i])]
        numbers = [i for i in inside if i not in lent]
        values = {self._value(progress) for progress in progresses}
        self._low, self._high, self._stairs = min(values, default=0.0), max(values, default=0.0), stairs
        stepped = numbers if len(values) > stairs else []
        if lent:
            self._tensors = TensorRates([self.sites[i] for i in lent], device)
        self._sort(lent, stepped)
        return [self.sites[i] for i in stepped], min(len(values), stairs) if numbers else 0

    def give_back(self) -> None:
        """Return what was lent, and take no more stairs; the rates stay as they are."""
        if self._tensors is not None:
            self._tensors.give_back()
            self._tensors = None
        self._sort(lent=[], stepped=[])

    def set(self, progress: float) -> None:
        """Give every site its rate at ``progress``.

        Raises:
            ValueError: If that is no probability.
        """
        value = self._value(progress)
        for held, key, factor in self._written:
            held[key] = value * factor
        if self._tensors is not None:
            self._tensors.set([value * factor for factor in self._lent])
        _assign(self._assigned, value)
        if self._stepped:
            _assign(self._stepped, self._on_stairs(value))

    def rates(self, progress: float) -> list[float]:
        """Return the rate that each site gets at ``progress``."""
        stepped = {id(site) for site, _ in self._stepped}
        value = self._value(progress)
        on_stair = self._on_stairs(value) if stepped else value
        return [
            factor * (on_stair if id(site) in stepped else value)
            for site, factor in zip(self.sites, self.factors, strict=True)
        ]

    def _on_stairs(self, value: float) -> float:
        """Return the nearest of the values at equal distances from the run's lowest to its highest.

        Of values, not of progress: points of progress would miss what happens between them, such as a short peak.
        """
        share = (value - self._low) / (self._high - self._low)
        stair = round((self._stairs - 1) * share) / (self._stairs - 1)
        return (1.0 - stair) * self._low + stair * self._high  # both ends exact

    def _value(self, progress: float) -> float:
        value = float(self.schedule(progress))
        greatest = self._greatest  # checked once for all: the others' rates are smaller
        check_probability(value * self.factors[greatest], f"rate of {self.sites[greatest].name}")
        return value

    def _sort(self, lent: Sequence[int], stepped: Sequence[int]) -> None:
        """Note, once for all steps, in which way each site gets its rate."""
        others = [i for i in range(len(self.sites)) if i not in lent and i not in stepped]
        slots = {i: slot for i in others if (slot := self.sites[i].slot) is not None}
        self._lent = [self.factors[i] for i in lent]
        self._stepped = [(self.sites[i], self.factors[i]) for i in stepped]
        self._written: list[tuple[dict[str, Any], str, float]] = [
            (held, key, self.factors[i]) for i, (held, key) in slots.items()
        ]
        self._assigned = [(self.sites[i], self.factors[i]) for i in others if i not in slots]


def _assign(sites: Sequence[tuple[Site, float]], value: float) -> None:
    for site, factor in sites:
        rate = value * factor
        if site.rate != rate:  # setting it may be refused, such as 1 by a layer that divides by 1 - rate
            site.rate = rate

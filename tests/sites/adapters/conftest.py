"""What every row of the tables of classes must pass: its sites are the expected ones, and they are what drops.

A check takes the sites from any finder, so that wrong finders can be shown to fail it.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_dropout.sites import Site
from lightning_dropout.sites.adapters import registry

# Name, kind, class of the holder, attribute, classes of the owners.
Described = tuple[str, str, str, str, tuple[str, ...]]
Run = Callable[[nn.Module], Tensor]

STILL = 4  # runs that must be equal
TURNING = 24  # runs of which one must differ: a coin that never turns in so many throws is no coin


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters registered in a test are forgotten after it."""
    monkeypatch.setattr(registry, "_ADAPTERS", {key: list(adapters) for key, adapters in registry._ADAPTERS.items()})
    monkeypatch.setattr(registry, "_UNUSED", dict(registry._UNUSED))


def describe(sites: Iterable[Site]) -> list[Described]:
    return [
        (site.name, site.kind, type(site.holder).__name__, site.attribute, tuple(type(o).__name__ for o in site.owners))
        for site in sites
    ]


def is_stochastic(model: nn.Module, run: Run, runs: int = TURNING) -> bool:
    """Run, each time from another seed, until an output differs from the first one."""

    def output(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return run(model).detach()

    first = output(0)
    assert first.isfinite().all()
    return any(not torch.equal(first, output(seed)) for seed in range(1, runs))


def plain_values(model: nn.Module) -> dict[tuple[int, str], Any]:
    """Every number, switch and word on a module, or on an object such as a configuration that a module holds."""
    objects: dict[int, Any] = {}
    for module in model.modules():
        objects[id(module)] = module
        held = [value for value in vars(module).values() if hasattr(value, "__dict__") and not isinstance(value, type)]
        objects |= {
            id(value): value for value in held if not isinstance(value, Tensor | nn.Module) and not callable(value)
        }
    return {
        (key, name): value
        for key, each in objects.items()
        for name, value in vars(each).items()
        if isinstance(value, int | float | str | None)
    }


@dataclass(frozen=True)
class Check:
    """A model, how it is run, and the claim that these sites are where it drops.

    ``dead`` sites are those of layers that the model's own code forgets to call; ``fragile`` ones cannot be at 1 in a
    way that no finder can know.
    """

    model: nn.Module
    run: Run
    sites: Sequence[Site]
    dead: Sequence[str] = ()
    fragile: Sequence[str] = ()

    def __call__(self) -> None:
        self.rates_reach_the_forward()
        self.a_rate_of_1_is_harmless_or_refused()
        self.owners_turn_it_on()
        self.nothing_else_is_touched()

    def only(self, site: Site | None) -> None:
        """Let one site drop, at 0.5, and no other."""
        for each in self.sites:
            each.rate = 0.5 if each is site else 0.0

    def rates_reach_the_forward(self) -> None:
        self.model.train()
        self.only(None)
        assert not is_stochastic(self.model, self.run, STILL), "something drops that is no site"
        for site in self.sites:
            self.only(site)
            drops = is_stochastic(self.model, self.run)
            assert drops is (site.name not in self.dead), f"{site.name} drops at 0.5: {drops}"

    def a_rate_of_1_is_harmless_or_refused(self) -> None:
        self.model.train()
        for site in self.sites:
            self.only(None)
            if not site.below_one and site.name not in self.fragile:
                site.rate = 1.0
                assert self.run(self.model).isfinite().all(), f"{site.name} breaks at 1"

    def owners_turn_it_on(self) -> None:
        for site in self.sites:
            if site.name in self.dead:
                continue
            self.only(site)
            for grad in (True, False):
                with torch.set_grad_enabled(grad):
                    self.switch_on(site.owners)
                    assert site.effective_rate == 0.5
                    assert is_stochastic(self.model, self.run), f"the owners of {site.name} do not turn it on"
            subsets = [[each for each in site.owners if each is not asleep] for asleep in site.owners]
            for awake in subsets if len(site.users) == 1 else [[]]:
                self.switch_on(awake)
                assert site.effective_rate == 0.0
                with torch.no_grad():
                    assert not is_stochastic(self.model, self.run, STILL), f"{site.name} drops while an owner sleeps"

    def switch_on(self, owners: Iterable[nn.Module]) -> None:
        self.model.eval()
        for owner in owners:
            owner.training = True

    def nothing_else_is_touched(self) -> None:
        # A layer of ours keeps its rate under an underscore, behind a property.
        rates = {(id(site.holder), name) for site in self.sites for name in (site.attribute, f"_{site.attribute}")}
        before = plain_values(self.model.eval())
        for site in self.sites:
            site.rate = 0.125
        after = plain_values(self.model)
        assert {key for key in after if key not in before or after[key] is not before[key]} <= rates
        assert {site.rate for site in self.sites} <= {0.125}


@pytest.fixture
def check() -> type[Check]:
    """The check of one row: ``check(model, run, sites)()``."""
    return Check


@pytest.fixture
def described() -> Callable[[Iterable[Site]], list[Described]]:
    """Tuples that a table of expected sites can hold."""
    return describe

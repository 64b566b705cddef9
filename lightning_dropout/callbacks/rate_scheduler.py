"""What drives rates over a run, of whatever kind: a thin shell over schedules, clock and sites.

The rate is a pure function of the trainer's counters, set before every training batch and nowhere else: activation
checkpointing reads it again in backward, and a mid-epoch resume skips the start of the epoch. Logged is what the
modules hold. What the run borrows, the model's own rates, is given back at its end.
"""

import numbers
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Union

from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from lightning_dropout import log_keys
from lightning_dropout.callbacks.any_callback import AnyCallback
from lightning_dropout.clock import Clock, RunLength
from lightning_dropout.probability import check_probability
from lightning_dropout.schedules import Constant, Schedule
from lightning_dropout.sites import Audit, Kind, Observer, Site, compare, find_sites, selected, sites_of

__all__ = ["RateScheduler", "Rates", "schedulers_of"]

Rates = Union[float, Schedule, Mapping[str, Union[float, Schedule]], None]  # noqa: UP007  (jsonargparse reads it)
_STATE_VERSION = 1
_OVERALL = ("mean", "min", "max")  # logged over all sites, so no group may be called so


@dataclass(frozen=True)
class _Group:
    """Sites that follow one schedule; each gets its ``factor`` of the schedule's value."""

    name: str | None
    schedule: Schedule
    sites: tuple[Site, ...]
    factors: tuple[float, ...]


class RateScheduler(AnyCallback):
    """What both schedulers share; use :class:`DropoutScheduler` or :class:`StochasticDepthScheduler`.

    A subclass says which ``kinds`` it drives, under which ``prefix`` it logs and which ``option`` chooses it.
    """

    kinds: ClassVar[tuple[Kind, ...]]
    prefix: ClassVar[str]
    option: ClassVar[str]  # what the config groups call it

    def __init__(
        self,
        *,
        rate: Rates,
        scale: Rates,
        sites: str | Sequence[str],
        exclude: str | Sequence[str],
        clock: Clock,
        name: str | None,
        audit: bool,
    ) -> None:
        super().__init__()
        if (rate is None) == (scale is None):
            both = "neither" if rate is None else "both"
            raise ValueError(
                f"Expected exactly one of `rate` (probabilities) and `scale` (factors of the model's own rates), "
                f"but got {both}; e.g. `rate=0.1` or `scale=Linear(0.0, 1.0)`."
            )
        if name is not None and not re.fullmatch(r"[A-Za-z0-9_]+", name):
            raise ValueError(f"Expected `name` to consist of letters, digits and underscores, but got {name!r}.")
        given, self._argument = (rate, "rate") if scale is None else (scale, "scale")
        plan: list[tuple[str | None, str | Sequence[str], object]] = [(name, sites, given)]
        if isinstance(given, Mapping):
            if sites != "*":
                raise ValueError(
                    f"Expected `sites` to be left out where `{self._argument}` maps patterns to schedules, "
                    f"but got {sites!r}; write it into the keys."
                )
            if not given:
                raise ValueError(f"Expected `{self._argument}` to map at least one pattern, but got an empty mapping.")
            plan = [(_group_name(str(key)), str(key), value) for key, value in given.items()]
        names = [group for group, _, _ in plan]
        taken = [group for group in names if group in _OVERALL or (group and names.count(group) > 1)]
        if taken:
            raise ValueError(
                f"Expected a log key of its own for each group, but `{self.prefix}/{taken[0]}` would be taken twice; "
                "choose another `name` or pattern."
            )
        self._plan = [(group, pattern, self._schedule(value)) for group, pattern, value in plan]
        self._exclude = exclude
        self._clock = clock
        self._name = name
        self._groups: list[_Group] = []
        self._length: RunLength | None = None
        self._borrowed: list[tuple[Site, Any]] = []  # what to give back; empty outside a run
        self._trained: dict[str, float] = {}
        self._checked_modes = False
        self.audit = audit
        self.findings: Audit | None = None
        self._observer: Observer | None = None

    @property
    def state_key(self) -> str:
        return type(self).__name__ + (f"[{self._name}]" if self._name else "")

    def state_dict(self) -> dict[str, Any]:
        rates = {_state_name(site): site.rate for group in self._groups for site in group.sites}
        return {"version": _STATE_VERSION, "rates": rates or dict(self._trained)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["version"] > _STATE_VERSION:
            raise ValueError(
                f"Expected a state of version {_STATE_VERSION} at most, but got {state_dict['version']}; "
                "upgrade lightning-dropout to the version that wrote the checkpoint."
            )
        self._trained = {str(name): check_probability(rate, name) for name, rate in state_dict["rates"].items()}

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self._give_back()
        groups = [self._group(pl_module, *entry) for entry in self._plan]
        self._refuse_shared(trainer, groups)
        self._length = self._clock.measure(trainer)
        self._borrow(site for group in groups for site in group.sites)
        self._groups = groups
        self._checked_modes = False
        self.findings = None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if not self._checked_modes:
            self._refuse_sleeping(pl_module)
            self._checked_modes = True
        assert self._length is not None  # noqa: S101  (on_fit_start has run)
        progress = self._clock.progress(trainer, self._length)
        for group in self._groups:
            value = float(group.schedule(progress))
            for site, factor in zip(group.sites, group.factors, strict=True):
                rate = value * factor
                if site.rate != rate:
                    site.rate = rate
        if trainer.fast_dev_run or trainer._logger_connector.should_update_logs:
            # Only when Lightning writes to the loggers: a log call costs more than setting a hundred rates. Its own
            # word for when, since `global_step` counts the steps of every optimizer.
            pl_module.log_dict(self._effective_rates(trainer), on_step=True, on_epoch=False, batch_size=1)
        if self._is_to_observe(trainer):
            self._observe(pl_module)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        self._report(pl_module)  # before activation checkpointing runs forwards again

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._report(pl_module)  # a step without a backward

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if not self._groups:  # inside fit the current rates stand
            self._apply_trained(pl_module)

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        self._apply_trained(pl_module)

    def on_predict_start(self, trainer: Any, pl_module: Any) -> None:
        self._apply_trained(pl_module)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._stop_observing()
        self._give_back()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._stop_observing()
        self._give_back()

    def base_rate(self, site: Site) -> float | None:
        """Return the rate that the model was built with; ``None`` while this scheduler has not changed it."""
        return next((float(held) for other, held in self._borrowed if other.key == site.key), None)

    def final_rate(self, trainer: Any, site: Site) -> float | None:
        """Return the rate to which the fit brings ``site``; ``None`` where this scheduler does not drive it."""
        if site.kind in self.kinds:
            for _, pattern, schedule in self._plan:
                if selected(site, pattern, self._exclude):
                    base = self.base_rate(site)
                    unit = 1.0 if self._argument == "rate" else site.rate if base is None else base
                    return float(schedule(self._final_progress(trainer))) * unit
        return None

    def _final_progress(self, trainer: Any) -> float:
        length = self._clock.measure(trainer)
        nothing_runs = length.steps == 0
        return 1.0 if trainer.fast_dev_run or nothing_runs else self._clock.window(length, Fraction(1))

    def _schedule(self, value: object) -> Schedule:
        if not isinstance(value, Schedule):
            if self._argument == "rate":
                return Constant(check_probability(value, "rate"))
            if isinstance(value, bool) or not isinstance(value, numbers.Real):
                raise ValueError(
                    f"Expected `scale` to be a factor or a schedule of factors, but got {value!r}; "
                    "e.g. `scale=Linear(0.0, 1.0)`."
                )
            return Constant(float(value))
        if self._argument == "rate":
            for progress, sample in value.samples():
                if sample > 1.0:
                    raise ValueError(
                        f"Expected `rate` to give probabilities in [0, 1], but got {sample} from {value!r} at "
                        f"progress {progress:g}; use `scale` for factors."
                    )
        return value

    def _group(self, model: nn.Module, name: str | None, pattern: str | Sequence[str], schedule: Schedule) -> _Group:
        sites = tuple(find_sites(model, pattern, self._exclude, self.kinds))
        factors = self._factors(sites)
        if self._argument == "scale":
            peak = max(sample for _, sample in schedule.samples())
            worst = max(sites, key=lambda site: site.rate)
            if worst.rate * peak > 1.0:
                raise ValueError(
                    f"Expected `scale` to keep rates in [0, 1], but got {peak:g} × {worst.rate:g} at `{worst.name}`; "
                    "lower the schedule's peak."
                )
        return _Group(name, schedule, sites, tuple(factors))

    def _factors(self, sites: Sequence[Site]) -> list[float]:
        if self._argument == "rate":
            return [1.0] * len(sites)
        zeros = [site.name for site in sites if site.rate == 0.0]
        if len(zeros) == len(sites):
            raise ValueError(
                f"Expected `scale` to find a rate above 0 to scale, but got 0 at all {len(sites)} sites "
                f"({', '.join(zeros[:5])}{', ...' if len(zeros) > 5 else ''}); pass `rate=` with absolute "
                "probabilities, build the model with its highest rates, or leave the scheduler out "
                f"({self.option}=none)."
            )
        if zeros:
            rank_zero_info(f"{type(self).__name__}: built with rate 0, they stay 0 under `scale`: {', '.join(zeros)}")
        return [site.rate for site in sites]

    def _refuse_shared(self, trainer: Any, groups: Sequence[_Group]) -> None:
        mine: dict[tuple[int, str], Site] = {}
        for group in groups:
            for site in group.sites:
                if site.key in mine:
                    raise ValueError(
                        f"Expected one schedule for each site, but got two patterns of `{self._argument}` that match "
                        f"`{site.name}`; make them exclude each other."
                    )
                mine[site.key] = site
        for other in schedulers_of(trainer):
            taken = [site for group in other._groups for site in group.sites if site.key in mine]
            if other is not self and taken:
                raise ValueError(
                    f"Expected one scheduler for each site, but got `{taken[0].name}` in both {other.state_key} and "
                    f"{self.state_key}; narrow their `sites`."
                )

    def _refuse_sleeping(self, model: nn.Module) -> None:
        """Raise for sites that cannot drop in training because an owner is in eval mode, unless it is frozen there."""
        for group in self._groups:
            for site, factor in zip(group.sites, group.factors, strict=True):
                asleep = [owner for owner in site.owners if not owner.training]
                if factor > 0.0 and asleep and not _is_frozen(model, asleep[0]):
                    raise ValueError(
                        f"Expected `{site.name}` in train mode during fit, but got it in eval mode, where it drops "
                        "nothing whatever its rate (pretrained models often arrive so); call `.train()` on the model "
                        "before `fit`, or leave the site out with `exclude`."
                    )

    def _is_to_observe(self, trainer: Any) -> bool:
        """Tell whether the coming forward is the one to observe: the first in which a site of this scheduler drops."""
        if not self.audit or self.findings is not None or not trainer.is_global_zero:
            return False
        auditors = [other for other in schedulers_of(trainer) if other.audit]
        return auditors[0] is self and any(site.effective_rate for group in self._groups for site in group.sites)

    def _observe(self, model: nn.Module) -> None:
        if _is_compiled(model):
            self.audit = False
            rank_zero_info(
                f"{type(self).__name__}: compiled code cannot be observed, so `audit=True` reports nothing; audit the "
                "model before it is compiled: `audit(model, batch)`."
            )
            return
        self._observer = Observer(model)
        self._observer.__enter__()

    def _report(self, model: nn.Module) -> None:
        if self._observer is not None:
            observer = self._observer
            self._stop_observing()
            self.findings = compare(model, sites_of(model, strict=False), observer)
            self.findings.show()

    def _stop_observing(self) -> None:
        if self._observer is not None:
            observer, self._observer = self._observer, None
            observer.__exit__(None, None, None)

    def _effective_rates(self, trainer: Any) -> dict[str, float]:
        """Return what the modules drop with: over all sites of this family, and in each group of this scheduler."""
        family = [group for other in schedulers_of(trainer) if other.prefix == self.prefix for group in other._groups]
        everything = [site.effective_rate for group in family for site in group.sites]
        values = {"mean": _mean(everything), "min": min(everything), "max": max(everything)}
        values |= {
            group.name: _mean([site.effective_rate for site in group.sites]) for group in self._groups if group.name
        }
        return {log_keys.rate_key(self.prefix, name): value for name, value in values.items()}

    def _apply_trained(self, model: nn.Module) -> None:
        """Bring the last trained rates, or those of the loaded checkpoint, back for evaluation."""
        self._give_back()
        if not self._trained:
            return
        sites = {_state_name(site): site for site in sites_of(model, strict=False)}
        missing = sorted(set(self._trained) - set(sites))
        if missing:
            raise ValueError(
                f"Expected the sites that {self.state_key} has trained, but got a model without "
                f"{', '.join(missing[:5])}; test with the model that the checkpoint belongs to."
            )
        self._borrow(sites[name] for name in self._trained)
        for name, rate in self._trained.items():
            sites[name].rate = rate

    def _borrow(self, sites: Any) -> None:
        self._borrowed = [(site, site.held) for site in sites]

    def _give_back(self) -> None:
        if self._groups:
            self._trained = self.state_dict()["rates"]
        for site, held in self._borrowed:
            site.give_back(held)
        self._borrowed, self._groups = [], []


def schedulers_of(trainer: Any) -> list[RateScheduler]:
    """Return the rate schedulers among the callbacks of ``trainer``, in their order."""
    return [callback for callback in trainer.callbacks if isinstance(callback, RateScheduler)]


def _mean(rates: Sequence[float]) -> float:
    return sum(rates) / len(rates)


def _group_name(pattern: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", pattern).strip("_") or "all"


def _state_name(site: Site) -> str:
    return f"{site.name}:{site.attribute}"


def _is_frozen(model: nn.Module, owner: nn.Module) -> bool:
    """Tell whether the smallest part of ``model`` around ``owner`` that has parameters trains none of them."""
    holders = [part for part in model.modules() if owner in part.modules() and any(True for _ in part.parameters())]
    smallest = min(holders, key=lambda part: sum(1 for _ in part.modules()), default=None)
    return smallest is not None and not any(parameter.requires_grad for parameter in smallest.parameters())


def _is_compiled(model: nn.Module) -> bool:
    """Tell whether ``torch.compile`` runs a part of ``model``, be it as a wrapper, in place or by Lightning."""
    return bool(getattr(model, "_compiler_ctx", None)) or any(
        type(part).__module__ == "torch._dynamo.eval_frame" or getattr(part, "_compiled_call_impl", None) is not None
        for part in model.modules()
    )

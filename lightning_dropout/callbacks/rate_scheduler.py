"""What drives rates over a run, of whatever kind: a thin shell over schedules, clock and sites.

The rate is a pure function of the trainer's counters, set before every training batch and nowhere else: activation
checkpointing reads it again in backward, and a mid-epoch resume skips the start of the epoch. Logged is what the
modules hold. What the run borrows, the model's own rates, is given back at its end.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any, ClassVar, Literal, Union, get_args

from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from lightning_dropout import log_keys
from lightning_dropout.callbacks.any_callback import load_missed_state
from lightning_dropout.callbacks.borrower import Borrower
from lightning_dropout.callbacks.first_forward import FirstForward
from lightning_dropout.callbacks.log_plan import log_plan
from lightning_dropout.callbacks.rate_arguments import Assignment, Rates, read_rates
from lightning_dropout.callbacks.rate_group import RateGroup
from lightning_dropout.callbacks.trained_rates import rates_in, rates_of, state_of, trained_sites
from lightning_dropout.clock import Clock, RunLength, UnknownLengthError
from lightning_dropout.reports.rates import RateCurve
from lightning_dropout.schedules import Constant
from lightning_dropout.sites import (
    Audit,
    Kind,
    Site,
    Slot,
    allow_graphs,
    check_patterns,
    compiled_roots,
    draws_on_host,
    fill_paths,
    find_sites,
    selected,
)

__all__ = ["CompileMode", "RateScheduler", "schedulers_of"]

CompileMode = Literal["auto", "tensor", "stairs", "off"]
# A rate that compiled code reads as a number costs a graph for each of its values; as many again in eval mode, and once
# more with a batch of another size.
_GRAPHS_PER_VALUE = 4


class RateScheduler(Borrower):
    """What both schedulers share; use :class:`DropoutScheduler` or :class:`StochasticDepthScheduler`.

    A subclass says which ``kinds`` it drives, under which ``prefix`` it logs and which ``option`` chooses it.
    """

    kinds: ClassVar[tuple[Kind, ...]]
    prefix: ClassVar[str]
    option: ClassVar[str]  # what the config groups call it

    def __init__(
        self,
        *,
        rate: Rates = None,
        scale: Rates = None,
        sites: Union[str, Sequence[str]] = "*",  # noqa: UP007  (jsonargparse reads it)
        exclude: Union[str, Sequence[str]] = (),  # noqa: UP007
        unit: Literal["step", "epoch"] = "step",
        begin: Union[str, float, None] = None,  # noqa: UP007
        end: Union[str, float, None] = None,  # noqa: UP007
        total: str | None = None,
        name: str | None = None,
        audit: bool = False,
        compile_mode: CompileMode = "auto",
        stairs: int = 5,
    ) -> None:
        super().__init__()
        if compile_mode not in get_args(CompileMode):
            raise ValueError(
                f"Expected `compile_mode` to be one of {', '.join(get_args(CompileMode))}, but got {compile_mode!r}."
            )
        if isinstance(stairs, bool) or not isinstance(stairs, int) or stairs < 2:
            raise ValueError(f"Expected `stairs` to be a whole number of at least 2, but got {stairs!r}; e.g. 5.")
        check_patterns(exclude, "exclude")
        self._argument, self._plan = read_rates(rate, scale, sites, name, self.prefix)
        self._exclude = exclude
        self._clock = Clock(unit=unit, begin=begin, end=end, total=total)
        self._name = name
        self._compile_mode = compile_mode
        self._stairs = stairs
        self._fill_identity = False
        self._filled: list[Slot] = []
        self._groups: list[RateGroup] = []
        self._length: RunLength | None = None
        self._borrowed: list[tuple[Site, Any]] = []  # what to give back; empty outside a run
        self._more_graphs = 0  # than torch would keep, allowed so far
        self._roots: set[nn.Module] = set()  # what was compiled when the groups were adapted
        self._trained: dict[str, float] = {}
        self._resumed_steps: float | None = None  # of the run that wrote the checkpoint
        self._driving = False  # whether a batch of this run has had its rates
        self._first_forward = FirstForward(wanted=audit)

    @property
    def findings(self) -> Audit | None:
        """What the observed forward has dropped; ``None`` without ``audit=True``, and before it ran."""
        return self._first_forward.findings

    @property
    def plan(self) -> str:
        """Which sites follow which schedule, in words that are equal in every process that does the same."""
        told = "; ".join(f"{each.pattern}: {each.schedule!r}" for each in self._plan)
        return re.sub(r" at 0x[0-9a-f]+", "", f"{self._argument} {told}")

    @property
    def state_key(self) -> str:
        return type(self).__name__ + (f"[{self._name}]" if self._name else "")

    def state_dict(self) -> dict[str, Any]:
        state = state_of(self._rates_so_far())
        if self._steps is not None:
            state["steps"] = self._steps
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._trained = rates_in(state_dict)
        self._resumed_steps = state_dict.get("steps")

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._fill(pl_module)  # now, so that callbacks that come earlier in the list find the sites, too

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self._give_back_rates()
        self._fill(pl_module)  # what `configure_model` has built since
        groups = [self._group(pl_module, each) for each in self._plan]
        self._refuse_shared(trainer, groups)
        self._length = self._measure(trainer)
        if self._fill_identity and not self._filled:
            rank_zero_info(f"{self.state_key}: `fill_identity=True` has found no empty slot of a drop path.")
        self._borrow(site for group in groups for site in group.sites)
        self._groups = groups
        self._adapt(pl_module)
        self._driving = False
        self._first_forward.findings = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        before, self._resumed_steps = self._resumed_steps, None
        now = self._steps
        if before is not None and now is not None and before != now and not self._is_constant:
            rank_zero_info(
                f"{self.state_key}: the checkpoint is of a run of {before:g} steps and this one has {now:g}; rates "
                "follow the new length, so they may jump here."
            )
        schedulers = schedulers_of(trainer)
        if schedulers[0] is self:
            log_plan(trainer, schedulers)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if not self._driving:
            self._refuse_sleeping(pl_module)
            self._adapt(pl_module)  # what was compiled since
            self._driving = True
        progress = 0.0 if self._is_constant else self._clock.progress(trainer, self.run_length)
        for group in self._groups:
            group.set(progress)
        if trainer.fast_dev_run or trainer._logger_connector.should_update_logs:
            # Only when Lightning writes to the loggers: a log call costs more than setting a hundred rates. Its own
            # word for when, since `global_step` counts the steps of every optimizer.
            pl_module.log_dict(self._effective_rates(trainer), on_step=True, on_epoch=False, batch_size=1)
        if self._is_to_observe(trainer):
            self._first_forward.watch(pl_module, self.state_key)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        self._first_forward.report(pl_module)  # before activation checkpointing runs forwards again

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._first_forward.report(pl_module)  # a step without a backward

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if not self._groups:  # inside fit the current rates stand
            self._apply_trained(trainer, pl_module)

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        self._apply_trained(trainer, pl_module)

    def on_predict_start(self, trainer: Any, pl_module: Any) -> None:
        self._apply_trained(trainer, pl_module)

    def base_rate(self, site: Site) -> float | None:
        """Return the rate that the model was built with; ``None`` while this scheduler has not changed it."""
        return next((float(held) for other, held in self._borrowed if other.key == site.key), None)

    def final_rate(self, trainer: Any, site: Site) -> float | None:
        """Return the rate to which the fit brings ``site``; ``None`` where this scheduler does not drive it."""
        if site.kind in self.kinds:
            for each in self._plan:
                if selected(site, each.pattern, self._exclude):
                    base = self.base_rate(site)
                    unit = 1.0 if self._argument == "rate" else site.rate if base is None else base
                    return float(each.schedule(self._final_progress(trainer))) * unit
        return None

    def _final_progress(self, trainer: Any) -> float:
        length = self._measure(trainer)
        nothing_runs = length.steps == 0
        if trainer.fast_dev_run or nothing_runs or self._is_constant:
            return 1.0
        return self._clock.window(length, Fraction(1))

    @property
    def _is_constant(self) -> bool:
        return all(isinstance(each.schedule, Constant) for each in self._plan)

    def _measure(self, trainer: Any) -> RunLength:
        try:
            return self._clock.measure(trainer)
        except UnknownLengthError:
            if not self._is_constant:
                raise
            return RunLength(None, None)  # nobody will ask

    def _rates_so_far(self) -> dict[str, float]:
        """Return the rates of the last batch; those of an earlier run where this one has had none."""
        return rates_of(site for group in self._groups for site in group.sites) if self._driving else self._trained

    @property
    def _steps(self) -> float | None:
        return None if self._length is None or self._length.steps is None else float(self._length.steps)

    def _fill(self, model: nn.Module) -> None:
        if self._fill_identity:
            for each in self._plan:
                self._filled += fill_paths(model, each.pattern, self._exclude)

    def _find(self, model: nn.Module, pattern: str | Sequence[str]) -> list[Site]:
        return find_sites(model, pattern, self._exclude, self.kinds)

    def _adapt(self, model: Any) -> None:
        """Keep compiled parts of the model at few graphs."""
        if self._compile_mode == "off":
            return
        roots = compiled_roots(model) if self._compile_mode == "auto" else [model]
        if {*roots} == self._roots:
            return
        self._roots = {*roots}
        inside = {part for root in roots for part in root.modules()}
        progresses = [progress for _, progress in self._clock.course(self.run_length)]
        tensors = self._compile_mode != "stairs"
        stepped: list[Site] = []
        values = 0
        for group in self._groups:
            group.give_back()
            sites, constants = group.adapt(inside, progresses, model.device, self._stairs, tensors)
            stepped += sites
            values += constants
        # Torch counts the graphs of all instances of a class together, such as regionally compiled blocks.
        wanted = _GRAPHS_PER_VALUE * values * max(Counter(map(type, roots)).values(), default=0)
        # Where only some samples run, each branch has graphs of its own, which torch counts together.
        wanted += _GRAPHS_PER_VALUE * len({id(part) for part in inside if draws_on_host(part)})
        if wanted > self._more_graphs:
            allow_graphs(wanted - self._more_graphs)
            self._more_graphs = wanted
        if stepped:
            rank_zero_info(
                f"{self.state_key}: `torch.compile` makes constants of the rates of {len(stepped)} sites "
                f"({', '.join(site.name for site in stepped[:3])}{', ...' if len(stepped) > 3 else ''}): there the "
                f"schedule's values are taken in {self._stairs} stairs, a graph each (`stairs={self._stairs}`)."
            )

    @property
    def run_length(self) -> RunLength:
        """How long the run is, from the start of a fit on."""
        assert self._length is not None  # noqa: S101  (on_fit_start has measured it)
        return self._length

    def curves(self) -> list[RateCurve]:
        """Return what the rates of each group will be over the run, from the start of a fit on."""
        course = self._clock.course(self.run_length)
        curves = []
        for group in self._groups:
            rates = [group.rates(progress) for _, progress in course]
            curves.append(
                RateCurve(
                    family=self.prefix,
                    label=group.name or "all",
                    sites=len(group.sites),
                    at=tuple(fraction for fraction, _ in course),
                    mean=tuple(map(_mean, rates)),
                    low=tuple(map(min, rates)),
                    high=tuple(map(max, rates)),
                )
            )
        return curves

    def _group(self, model: nn.Module, assignment: Assignment) -> RateGroup:
        schedule = assignment.schedule
        sites = self._find(model, assignment.pattern)
        factors = self._factors(sites)
        if self._argument == "scale":
            peak = max(sample for _, sample in schedule.samples())
            worst = max(sites, key=lambda site: site.rate)
            if worst.rate * peak > 1.0:
                raise ValueError(
                    f"Expected `scale` to keep rates in [0, 1], but got {peak:g} × {worst.rate:g} at `{worst.name}`; "
                    "lower the schedule's peak."
                )
        return RateGroup(assignment.name, schedule, sites, factors)

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

    def _refuse_shared(self, trainer: Any, groups: Sequence[RateGroup]) -> None:
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
                        "nothing whatever its rate (pretrained models often arrive so, and an interrupted validation "
                        "leaves them so); call `.train()` on the model before `fit`, or leave the site out with "
                        "`exclude`."
                    )

    def _is_to_observe(self, trainer: Any) -> bool:
        """Tell whether the coming forward is the one to observe: the first in which a site of this scheduler drops."""
        if not self._first_forward.pending or not trainer.is_global_zero:
            return False
        auditors = [other for other in schedulers_of(trainer) if other._first_forward.wanted]
        return auditors[0] is self and any(site.effective_rate for group in self._groups for site in group.sites)

    def _effective_rates(self, trainer: Any) -> dict[str, float]:
        """Return what the modules drop with: over all sites of this family, and in each group of this scheduler."""
        family = [group for other in schedulers_of(trainer) if other.prefix == self.prefix for group in other._groups]
        everything = [site.effective_rate for group in family for site in group.sites]
        values = {"mean": _mean(everything), "min": min(everything), "max": max(everything)}
        values |= {
            group.name: _mean([site.effective_rate for site in group.sites]) for group in self._groups if group.name
        }
        return {log_keys.rate_key(self.prefix, name): value for name, value in values.items()}

    def _apply_trained(self, trainer: Any, model: nn.Module) -> None:
        """Bring the last trained rates, or those of the loaded checkpoint, back for evaluation."""
        self._give_back_rates()
        load_missed_state(self, trainer)
        self._resumed_steps = None  # for a fit that goes on, not for one that comes after this
        if not self._trained:
            return
        self._fill(model)
        found = trained_sites(model, self._trained, self.state_key)
        self._borrow(site for site, _ in found)
        for site, rate in found:
            site.rate = rate

    def _borrow(self, sites: Iterable[Site]) -> None:
        self._borrowed = [(site, site.held) for site in sites]

    def _give_back_rates(self) -> None:
        self._trained = self._rates_so_far()
        self._driving = False
        self._roots = set()
        for group in self._groups:
            group.give_back()
        for site, held in self._borrowed:
            site.give_back(held)
        self._borrowed, self._groups = [], []

    def give_back(self) -> None:
        self._first_forward.stop()
        self._give_back_rates()
        for slot in self._filled:
            slot.give_back()
        self._filled = []


def schedulers_of(trainer: Any) -> list[RateScheduler]:
    """Return the rate schedulers among the callbacks of ``trainer``, in their order."""
    return [callback for callback in trainer.callbacks if isinstance(callback, RateScheduler)]


def _mean(rates: Sequence[float]) -> float:
    return sum(rates) / len(rates)


def _is_frozen(model: nn.Module, owner: nn.Module) -> bool:
    """Tell whether the smallest part of ``model`` around ``owner`` that has parameters trains none of them."""
    holders = [part for part in model.modules() if owner in part.modules() and any(True for _ in part.parameters())]
    smallest = min(holders, key=lambda part: sum(1 for _ in part.modules()), default=None)
    return smallest is not None and not any(parameter.requires_grad for parameter in smallest.parameters())

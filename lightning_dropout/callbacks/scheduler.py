"""The two callbacks that users add: dropout rates and stochastic-depth rates on a schedule.

What their arguments mean, and what is particular to a family; how a rate reaches a module is ``rate_scheduler.py``'s.
"""

import re
from collections.abc import Sequence
from typing import Literal, Union, get_args

from torch import nn

from lightning_dropout import log_keys
from lightning_dropout.callbacks.rate_arguments import Rates
from lightning_dropout.callbacks.rate_scheduler import CompileMode, RateScheduler
from lightning_dropout.nn import depth_rates
from lightning_dropout.sites import Site, path_slots, sites_of

__all__ = ["DropoutScheduler", "StochasticDepthScheduler"]

DepthRule = Literal["keep", "linear", "uniform"]


class DropoutScheduler(RateScheduler):
    """Drive the rates of dropout, attention dropout and recurrent dropout by a schedule.

    Training: before each batch every matched site gets the schedule's value. Evaluation: dropout is off, and the last
    trained (or the checkpoint's) rates stand, so that Monte-Carlo dropout samples with them; the model's own rates are
    back at the end of each run.

    Args:
        rate: Absolute probabilities in [0, 1]: a number, a schedule, or ``{pattern: number or schedule}``.
        scale: Factors of the rates that the model was built with, so that per-layer ratios survive; likewise. Exactly
            one of the two.
        sites: Glob pattern or patterns of the sites to drive; a pattern may begin at any dot of a name.
        exclude: Patterns to leave alone.
        unit: ``"step"``: the rate follows every optimizer step; ``"epoch"``: it is constant within an epoch.
        begin: Where the schedule's progress 0 lies: ``"10ep"``, ``"500step"`` or a fraction of the run.
        end: Where progress 1 lies.
        total: Length of the run where the trainer cannot know it, ``"5000step"`` or ``"20ep"``.
        name: Names the group in the logs and tells two schedulers of one trainer apart in checkpoints.
        audit: Whether to observe the first training forward that drops and print what it really dropped, of all kinds;
            nothing is run in addition, and the result stays in ``findings``.
        compile_mode: ``"auto"``: in what ``torch.compile`` runs, known layers read their rates from tensors, which
            costs one graph for the whole schedule; a rate that compiled code reads as a number (attention, recurrent
            layers, functional dropout) takes the schedule's values in stairs. ``"tensor"``: likewise everywhere, for a
            compiled function that leaves no trace in the model. ``"stairs"``: numbers in stairs everywhere. ``"off"``:
            numbers at every step, which ends in uncompiled runs after eight graphs.
        stairs: How many values of a rate compiled code sees where it needs stairs, at least 2: at equal distances from
            the schedule's lowest value to its highest, both included. Torch's limit of graphs is raised to hold them,
            for the rest of the process, as torch keeps them that long.

    Raises:
        ValueError: For impossible arguments at construction; at the start of a fit if no site matches, a site is driven
            twice, ``scale`` finds only zeros, or the run has no known length; at the first batch if a site sleeps in
            eval mode although its weights are trained.

    Example:
        >>> from lightning_dropout.schedules import Late
        >>> DropoutScheduler(rate=Late(0.1, begin=1 / 6)).state_key
        'DropoutScheduler'
    """

    kinds = ("dropout", "attention", "recurrent")
    prefix = log_keys.DROPOUT
    option = "callbacks/dropout"


class StochasticDepthScheduler(RateScheduler):
    """Drive the rates of stochastic depth (``drop_path``) and layer drop by a schedule.

    Training and evaluation as in :class:`DropoutScheduler`; the two never touch each other's sites, so both may run in
    one trainer.

    Args:
        rate: Absolute probabilities in [0, 1]: a number, a schedule, or ``{pattern: number or schedule}``.
        scale: Factors of the rates that the model was built with; keeps the depth rule that it was built with.
        sites: Glob pattern or patterns of the sites to drive.
        exclude: Patterns to leave alone.
        depth_rule: Under ``rate``: ``"keep"`` and ``"uniform"`` give every site the schedule's value, ``"linear"``
            gives block i of L the share i / (L - 1), so that the first keeps everything and the deepest gets the value.
            Sites with one name up to its last number are of one block: ``blocks.3.drop_path1``,
            ``blocks.3.drop_path2``.
        unit: ``"step"`` or ``"epoch"``.
        begin: Where the schedule's progress 0 lies: ``"10ep"``, ``"500step"`` or a fraction of the run.
        end: Where progress 1 lies.
        total: Length of the run where the trainer cannot know it.
        name: Names the group in the logs and tells two schedulers of one trainer apart in checkpoints.
        audit: Whether to observe the first training forward that drops and print what it really dropped.
        compile_mode: As in :class:`DropoutScheduler`.
        stairs: As in :class:`DropoutScheduler`.
        fill_identity: Whether to put a ``DropPath`` where timm and transformers, built with a rate of 0, have left an
            ``Identity`` or ``None``; needs ``rate``. What stood there is back at the end of each run.

    Raises:
        ValueError: As :class:`DropoutScheduler`; also for a ``depth_rule`` beside ``scale``, which keeps its own.

    Source:
        Huang et al. (2016), "Deep Networks with Stochastic Depth", arXiv:1603.09382, section 3 (linear decay).

    Example:
        >>> from lightning_dropout.schedules import Linear
        >>> StochasticDepthScheduler(rate=Linear(0.0, 0.2), depth_rule="linear").state_key
        'StochasticDepthScheduler'
    """

    kinds = ("drop_path", "layer_drop")
    prefix = log_keys.DROP_PATH
    option = "callbacks/stochastic_depth"

    def __init__(
        self,
        *,
        rate: Rates = None,
        scale: Rates = None,
        sites: Union[str, Sequence[str]] = "*",  # noqa: UP007
        exclude: Union[str, Sequence[str]] = (),  # noqa: UP007
        depth_rule: DepthRule = "keep",
        unit: Literal["step", "epoch"] = "step",
        begin: Union[str, float, None] = None,  # noqa: UP007
        end: Union[str, float, None] = None,  # noqa: UP007
        total: str | None = None,
        name: str | None = None,
        audit: bool = False,
        compile_mode: CompileMode = "auto",
        stairs: int = 5,
        fill_identity: bool = False,
    ) -> None:
        if depth_rule not in get_args(DepthRule):
            raise ValueError(
                f"Expected `depth_rule` to be one of {', '.join(get_args(DepthRule))}, but got {depth_rule!r}."
            )
        if scale is not None and depth_rule != "keep":
            raise ValueError(
                f'Expected `depth_rule="keep"` beside `scale`, which keeps the model\'s own rule, but got '
                f"{depth_rule!r}; use `rate` to impose another."
            )
        if scale is not None and fill_identity:
            raise ValueError(
                "Expected `rate` beside `fill_identity=True`, but got `scale`: what is filled has a rate of 0, and no "
                "factor changes that; e.g. `rate=Linear(0.0, 0.1)`."
            )
        self._depth_rule = depth_rule
        super().__init__(
            rate=rate,
            scale=scale,
            sites=sites,
            exclude=exclude,
            unit=unit,
            begin=begin,
            end=end,
            total=total,
            name=name,
            audit=audit,
            compile_mode=compile_mode,
            stairs=stairs,
        )
        self._fill_identity = fill_identity

    def _find(self, model: nn.Module, pattern: str | Sequence[str]) -> list[Site]:
        try:
            return super()._find(model, pattern)
        except ValueError as error:
            slots = path_slots(model, pattern, self._exclude)
            missing = not any(site.kind in self.kinds for site in sites_of(model, pattern, self._exclude, strict=False))
            if not missing or not slots or self._fill_identity:
                raise
            raise ValueError(
                f"{error} Or pass `fill_identity=True` with `rate=` to StochasticDepthScheduler, which puts a DropPath "
                f"into {len(slots)} of them for the run (+{self.option.replace('/', '.')}.fill_identity=true)."
            ) from None

    def _factors(self, sites: Sequence[Site]) -> list[float]:
        if self._depth_rule != "linear":
            return super()._factors(sites)
        blocks = dict.fromkeys(_block(site) for site in sites)
        if len(blocks) == 1:
            raise ValueError(
                f'Expected at least two blocks for `depth_rule="linear"`, which keeps all of the first, but got only '
                f"`{sites[0].name}`; leave `depth_rule` out."
            )
        shares = dict(zip(blocks, depth_rates(1.0, len(blocks), rule="linear"), strict=True))
        return [shares[_block(site)] for site in sites]


def _block(site: Site) -> str:
    """Return the name of the residual block around ``site``: its own up to the last number."""
    numbered = re.match(r"(?:.*\.)?\d+(?=\.|$)", site.name)
    return numbered[0] if numbered else site.name

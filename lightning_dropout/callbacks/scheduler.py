"""The two callbacks that users add: dropout rates and stochastic-depth rates on a schedule.

Only arguments and what is particular to a family of sites; how a rate reaches a module is ``rate_scheduler.py``'s.
"""

import re
from collections.abc import Sequence
from typing import Literal, Union, get_args

from lightning_dropout import log_keys
from lightning_dropout.callbacks.rate_scheduler import Rates, RateScheduler
from lightning_dropout.clock import Clock
from lightning_dropout.nn import depth_rates
from lightning_dropout.sites import Site

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

    def __init__(
        self,
        *,
        rate: Rates = None,
        scale: Rates = None,
        sites: Union[str, Sequence[str]] = "*",  # noqa: UP007
        exclude: Union[str, Sequence[str]] = (),  # noqa: UP007
        unit: Literal["step", "epoch"] = "step",
        begin: Union[str, float, None] = None,  # noqa: UP007
        end: Union[str, float, None] = None,  # noqa: UP007
        total: str | None = None,
        name: str | None = None,
        audit: bool = False,
    ) -> None:
        clock = Clock(unit=unit, begin=begin, end=end, total=total)
        super().__init__(rate=rate, scale=scale, sites=sites, exclude=exclude, clock=clock, name=name, audit=audit)


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
        self._depth_rule = depth_rule
        clock = Clock(unit=unit, begin=begin, end=end, total=total)
        super().__init__(rate=rate, scale=scale, sites=sites, exclude=exclude, clock=clock, name=name, audit=audit)

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

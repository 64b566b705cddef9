"""Stochastic depth for residual models that have none: ``insert_drop_path``."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from lightning_dropout.conversion.convert import Conversion, Plan, is_drop_path, rate_of
from lightning_dropout.conversion.converted import converted_class, original_class, rewritings
from lightning_dropout.nn import DropPath, depth_rates
from lightning_dropout.nn.depth_rules import DepthRule
from lightning_dropout.nn.functional import Mode, check_mode
from lightning_dropout.nn.subset import normalises_over_batch
from lightning_dropout.probability import check_probability
from lightning_dropout.sites.names import join, walk
from lightning_dropout.sites.slots import path_slots

__all__ = ["insert_drop_path"]

_NUMBER = re.compile(r"\d(\.|$)")  # blocks are numbered: "layers.0", "encoder_layer_0", "block1-0"


def insert_drop_path(
    model: nn.Module, drop_prob: float, depth_rule: DepthRule = "linear", mode: Mode = "subset"
) -> Conversion:
    """Give a residual model that was built without it stochastic depth, in place.

    For models whose blocks stand in a list or sequence and add ``x + branch(x)``: the transformers of transformers and
    torchvision, plain ResNets, those of timm that were built with a rate of 0. Each residual sum gets a ``DropPath``,
    ``drop_path`` (or ``drop_path1``, ``drop_path2``, ...) of its block; a place that was left empty for one is filled.
    Training: branches are dropped, and run for the kept samples only where the code of the block tells them from the
    rest. Evaluation, names and weights: as they were. Decoders must be called with ``use_cache=False`` to save
    anything: a cache of keys and values cannot be taken apart.

    Args:
        model: Any module that holds such blocks; changed in place.
        drop_prob: Largest probability of dropping, in [0, 1].
        depth_rule: Rates of the other blocks, see ``lightning_dropout.nn.depth_rates``; all branches of a block get
            its rate.
        mode: See ``convert_stochastic_depth``.

    Returns:
        Where drop paths were put, with their rates, and which of them save nothing, with the reason; print it.

    Raises:
        ValueError: If the model has stochastic depth already, no residual sum is found, or an argument is out of
            range; the model is then as it was.

    Source:
        Huang et al., "Deep Networks with Stochastic Depth" (2016), arXiv:1603.09382.

    Example:
        >>> layer = nn.TransformerEncoderLayer(8, nhead=2, dim_feedforward=16, batch_first=True)
        >>> model = nn.TransformerEncoder(layer, num_layers=2)
        >>> print(insert_drop_path(model, 0.2))
        run for the kept samples only: 4
          layers.0.drop_path3  drop_prob=0
          layers.0.drop_path4  drop_prob=0
          layers.1.drop_path3  drop_prob=0.2
          layers.1.drop_path4  drop_prob=0.2
    """
    drop_prob = check_probability(drop_prob, "drop_prob")
    check_mode(mode)
    depth_rates(drop_prob, 1, depth_rule)
    present = [name for name, module, _ in walk(model) if is_drop_path(module) and rate_of(module) > 0.0]
    if present:
        raise ValueError(
            f"Expected a model without stochastic depth, but got {len(present)} drop paths in it: `{present[0]}`, ...; "
            "`convert_stochastic_depth` lets them save what they drop."
        )
    places = [*_places(model)]
    if not places:
        raise ValueError(
            f"Expected `model` to have blocks that add `x + branch(x)`, but got {type(model).__name__}, in which none "
            "was found; wrap its branches with `StochasticDepth`."
        )
    blocks = [*dict.fromkeys(place.block for place in places)]
    rates = dict(zip(blocks, depth_rates(drop_prob, len(blocks), depth_rule), strict=True))
    converted: dict[str, float] = {}
    left: dict[str, str] = {}
    for place in places:
        for name, reason in place.fill(rates[place.block], mode).items():
            if reason:
                left[name] = f"drop_prob={rates[place.block]:.3g}; {reason}"
            else:
                converted[name] = rates[place.block]
    return Conversion(converted, left)


@dataclass
class _Place:
    """A module that gets drop paths."""

    name: str
    module: nn.Module
    plan: Plan | None  # for places that were left for them

    @property
    def block(self) -> str:
        """The name of the block that it belongs to: up to its last number."""
        found = re.match(rf".*{_NUMBER.pattern}", self.name)
        return found[0].removesuffix(".") if found else self.name

    def fill(self, drop_prob: float, mode: Mode) -> dict[str, str]:
        """Put the layers in; return their names, each with the reason why it saves nothing, if it does not."""
        module = self.module
        if self.plan is not None:
            self.plan.carry_out(mode, {})
            idle = self.plan.idle_slots
            for slot, _ in idle.values():
                slot.fill(DropPath(0.0, mode))
            names = [*self.plan.converted, *idle]
            for name in names:
                layer: Any = module._modules[name.rpartition(".")[2]]
                layer.drop_prob = drop_prob
            return dict.fromkeys(names, "") | {name: reason for name, (_, reason) in idle.items()}
        kind: type = type(module)
        rewriting = rewritings(kind, (), insert=True)["forward"]
        module.__class__ = converted_class(kind, (), insert=True)
        fewest = 2 if normalises_over_batch(module) else 1
        keys = [key for key in rewriting.inserted if key not in rewriting.off(module)]
        for key in keys:
            module.add_module(key, DropPath(drop_prob, mode, min_samples=fewest).train(module.training))
        return {join(self.name, key): "" if key in rewriting.done else rewriting.left[key] for key in keys}


def _places(model: nn.Module) -> Iterator[_Place]:
    slots = path_slots(model)
    taken: set[nn.Module] = set()
    for name, module, ancestors in walk(model):
        if module in taken:  # in two places
            continue
        plan = Plan.of(name, module, slots)
        if plan is not None and (plan.converted or plan.idle_slots):
            taken.add(module)
            yield _Place(name, module, plan)
        elif plan is None and _may_insert(name, module, ancestors, taken):
            taken.add(module)
            yield _Place(name, module, None)


def _may_insert(name: str, module: nn.Module, ancestors: list[nn.Module], taken: set[nn.Module]) -> bool:
    kind: type = type(module)
    if "forward" in vars(module) or not _NUMBER.search(name) or original_class(kind) is not kind:
        return False
    rewriting = rewritings(kind, (), insert=True).get("forward")
    if rewriting is None or rewriting.function is None or any(hasattr(module, key) for key in rewriting.inserted):
        return False
    if len(rewriting.off(module)) == len(rewriting.inserted):
        return False
    if any(getattr(part, "batch_first", True) is False for part in module.modules()):  # its first dimension is time
        return False
    # A sum inside the branch of another one is a part of it, except for what adds the branch for its block.
    code = rewriting.function.__code__
    return taken.isdisjoint(ancestors) or "input_tensor" in code.co_varnames[: code.co_argcount]

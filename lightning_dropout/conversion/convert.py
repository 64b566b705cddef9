"""Giving models of other libraries stochastic depth that saves what it drops: ``convert_stochastic_depth``."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from lightning_dropout.conversion.converted import converted_class, rewritings, runs_branches
from lightning_dropout.nn import DropPath
from lightning_dropout.nn.functional import Mode, check_mode
from lightning_dropout.nn.subset import normalises_over_batch
from lightning_dropout.sites.names import join, walk
from lightning_dropout.sites.slots import Slot, path_slots

__all__ = ["Conversion", "Plan", "convert_stochastic_depth", "is_drop_path", "rate_of"]

_NEVER = "its block never calls it"
_LIBRARIES = ("timm.", "torchvision.", "transformers.")


@dataclass(frozen=True)
class Conversion:
    """What became of the drop paths of a model; printed, a list of them.

    Args:
        converted: The drop paths whose branches run for the kept samples only, with their rates.
        left: Those whose branches run for all samples, with the reason; one that its block calls several times may
            stand in both.
    """

    converted: Mapping[str, float]
    left: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"run for the kept samples only: {len(self.converted)}"]
        lines += [f"  {name}  drop_prob={rate:.3g}" for name, rate in self.converted.items()]
        if self.left:
            lines += [
                f"run for all samples: {len(self.left)}",
                *(f"  {name}: {why}" for name, why in self.left.items()),
            ]
        return "\n".join(lines)


def convert_stochastic_depth(model: nn.Module, mode: Mode = "subset") -> Conversion:
    """Let the residual branches of ``model`` run for the samples that its stochastic depth keeps, in place.

    For models with drop paths of timm, torchvision, transformers or this package, whose blocks add them as
    ``x + self.drop_path(branch(x))`` or in several statements; the code of each block is rewritten accordingly.
    Training: each branch saves the share of time and memory that its rate drops. Evaluation: bit for bit what it was.
    Names, weights, rates, copies and pickles stay; each drop path is now a ``DropPath`` of this package. Places that
    were built with a rate of 0 get one, too, so that a scheduler can raise it.

    Convert before ``torch.compile``, before a scheduler starts, and before optimizers only if you like: no parameter
    changes.

    Args:
        model: Any module that holds such blocks; changed in place.
        mode: ``"subset"`` saves; ``"row"`` runs all samples and drops afterwards, what the libraries do; ``"batch"``
            drops each branch for the whole batch or not at all.

    Returns:
        The names of what was converted, and of what was not, with the reason; print it. What was not is also said in a
        warning.

    Raises:
        ValueError: If no block can be converted, or ``mode`` is unknown; the model is then as it was.

    Source:
        Huang et al., "Deep Networks with Stochastic Depth" (2016), arXiv:1603.09382; see
        ``lightning_dropout.nn.functional.drop_residual``.

    Example:
        >>> from lightning_dropout.models import ViT
        >>> model = ViT((1, 8, 8), preset="digits", drop_path=0.2, stochastic_depth_mode="row")
        >>> print(convert_stochastic_depth(model))
        run for the kept samples only: 8
          blocks.0.drop_path1  drop_prob=0
          ...
        >>> model.blocks[3].drop_path2
        DropPath(drop_prob=0.2, mode='subset')
    """
    check_mode(mode)
    slots = path_slots(model)
    plans = [plan for name, module, _ in walk(model) if (plan := Plan.of(name, module, slots))]
    converted = [*dict.fromkeys(name for plan in plans for name in plan.converted)]
    left = {name: reason for plan in plans for name, reason in plan.left.items()}
    if not converted:
        reasons = "; ".join(f"`{name}`: {reason}" for name, reason in [*left.items()][:3]) or "it has no drop path"
        raise ValueError(
            f"Expected `model` to have blocks that add `drop_path(branch(x))`, but got {type(model).__name__}: "
            f"{reasons}. Put drop paths in with `insert_drop_path`, or wrap branches with `StochasticDepth`."
        )
    made: dict[int, DropPath] = {}
    for plan in plans:
        plan.carry_out(mode, made)
    saving_nothing = [
        f"`{name}` ({reason})"
        for name, reason in left.items()
        if not reason.startswith(_NEVER) and name not in converted
    ]
    if saving_nothing:
        warnings.warn(
            f"{len(saving_nothing)} drop paths of {type(model).__name__} stay as they are, and save nothing: "
            f"{', '.join(saving_nothing[:3])}{', ...' if len(saving_nothing) > 3 else ''}; {len(converted)} are "
            "converted.",
            stacklevel=2,
        )
    rates = {name: rate for plan in plans for name, rate in plan.rates().items()}
    return Conversion(rates, left)


@dataclass
class Plan:
    """What is to be done with one module."""

    module: nn.Module
    cls: type
    layers: dict[str, nn.Module]
    slots: list[Slot]
    idle_slots: dict[str, tuple[Slot, str]]  # by name: a drop path there would save nothing, and why
    converted: list[str]
    left: dict[str, str]
    in_place: set[str]  # drop paths whose branches change what enters them, for all samples

    @classmethod
    def of(cls, name: str, module: nn.Module, all_slots: Sequence[Slot]) -> "Plan | None":
        layers = {key: child for key, child in module._modules.items() if child is not None and is_drop_path(child)}
        hooked = {key: layer for key, layer in layers.items() if _has_hooks(layer)}
        layers = {key: layer for key, layer in layers.items() if key not in hooked}
        slots = {slot.key: slot for slot in all_slots if slot.parent is module}
        paths = tuple(sorted({*layers, *slots}))
        if not paths and not hooked:
            return None
        kind: type = type(module)
        found = rewritings(kind, paths)
        done = {path for each in found.values() for path in each.done}
        done |= {key for key, layer in layers.items() if isinstance(layer, DropPath) and runs_branches(kind, key)}
        left = {path: reason for each in found.values() for path, reason in each.left.items() if path in layers}
        left |= {key: "no method of its block calls it" for key in layers if key not in done and key not in left}
        left |= {key: f"one of its calls: {left[key]}" for key in done & {*left}}
        for path, switch in (each for rewriting in found.values() for each in rewriting.off(module).items()):
            done.discard(path)
            if path in layers:
                left[path] = f"{_NEVER} (only if `{switch}`)"
        entered = [pair for each in found.values() for pair in each.entered.items()]
        in_place = {
            path for path, names in entered if any(_works_in_place(getattr(module, name, None)) for name in names)
        }
        done -= in_place
        if any(getattr(part, "batch_first", True) is False for part in module.modules()):
            done, found, left = set(), {}, dict.fromkeys(layers, "its first dimension is time")
        left |= dict.fromkeys(in_place & {*layers}, "its branch changes in place what enters it")
        if done and "forward" in vars(module):
            done, found, left = set(), {}, dict.fromkeys(layers, "the `forward` of its block was replaced")
        left |= dict.fromkeys(hooked, "it has hooks, which would not be called any more")
        given = {path for each in found.values() for path in each.done}  # a branch, should a switch be turned on
        return cls(
            module=module,
            cls=converted_class(kind, paths) if given else kind,
            layers={key: layer for key, layer in layers.items() if key in done | given},
            slots=[slot for key, slot in slots.items() if key in done | in_place],
            idle_slots={
                slots[path].name: (slots[path], reason)
                for each in found.values()
                for path, reason in each.left.items()
                if path in slots and path not in done
            },
            converted=[join(name, key) for key in paths if key in done],
            left={join(name, key): reason for key, reason in left.items()},
            in_place=in_place,
        )

    def carry_out(self, mode: Mode, made: dict[int, DropPath]) -> None:
        """Change the module; ``made`` holds the layers that were made for others, since places may share one."""
        fewest = 2 if normalises_over_batch(self.module) else 1
        for key, layer in self.layers.items():
            shared = id(layer) in made
            own = made.setdefault(id(layer), _as_own(layer))
            if not (shared and own.mode == "row"):  # another place needs all samples
                own.mode = self._mode(key, mode)
            own.min_samples = max(own.min_samples, fewest)
            self.module._modules[key] = own
        for slot in self.slots:
            slot.fill(DropPath(0.0, self._mode(slot.key, mode), min_samples=fewest))
        self.module.__class__ = self.cls

    def rates(self) -> dict[str, float]:
        """Return the rates of what is converted, once that is done."""
        return {name: rate_of(self.module._modules[name.rpartition(".")[2]]) for name in self.converted}

    def _mode(self, key: str, mode: Mode) -> Mode:
        return "row" if key in self.in_place else mode


def _has_hooks(layer: nn.Module) -> bool:
    return not isinstance(layer, DropPath) and any(
        (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    )


def _works_in_place(layer: object) -> bool:
    while isinstance(layer, nn.Sequential) and len(layer):
        layer = layer[0]
    return getattr(layer, "inplace", False) is True


def is_drop_path(layer: nn.Module) -> bool:
    """Tell whether ``layer`` is a drop path of a library whose law is known."""
    if isinstance(layer, DropPath):
        return True
    name = type(layer).__name__
    return type(layer).__module__.startswith(_LIBRARIES) and (name.endswith("DropPath") or name == "StochasticDepth")


def rate_of(layer: Any) -> float:
    """Return the rate of a drop path; some copies in transformers have None for 0."""
    return float((layer.p if hasattr(layer, "p") else layer.drop_prob) or 0.0)


def _as_own(layer: Any) -> DropPath:
    if isinstance(layer, DropPath):
        return layer
    own = DropPath(rate_of(layer), scale_by_keep=getattr(layer, "scale_by_keep", True))
    return own.train(layer.training)

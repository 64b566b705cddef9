"""The registry of adapters: which class drops, where its rate lives and who turns it on.

Filled at import by the files beside this one and by users through :func:`register_adapter`. Knows classes, never
models: looking at instances is ``find_sites``' job.
"""

import numbers
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeGuard, get_args

from torch import nn

__all__ = [
    "Adapter",
    "Kind",
    "Owner",
    "adapters_of",
    "generation",
    "is_rate",
    "is_registered",
    "register_adapter",
    "register_unused",
    "resolve",
    "unused_children",
]

Kind = Literal["dropout", "attention", "recurrent", "drop_path", "layer_drop"]
Owner = Literal["self", "parent"] | Callable[[nn.Module, Sequence[nn.Module]], Iterable[nn.Module]]


def _always(module: nn.Module) -> bool:
    return True


@dataclass(frozen=True)
class Adapter:
    """One way in which the instances of a class drop.

    Args:
        attribute: Where the rate lives, from the module: ``"p"``, ``"attn_drop.p"``, ``"config.layerdrop"``; ``None``
            says that the class drops nothing of its own.
        kind: What is dropped.
        owner: Whose ``training`` flag turns the drop on: the module itself, its parent, or a function of the module
            and its ancestors (nearest first) that returns them.
        applies: Whether an instance can drop at all (a one-layer LSTM holds a rate that it never uses).
        below_one: Whether the layer divides by its keep probability, so that a rate of 1 would give NaN.
    """

    attribute: str | None
    kind: Kind = "dropout"
    owner: Owner = "self"
    applies: Callable[[nn.Module], bool] = field(default=_always)
    below_one: bool = False

    def holder(self, module: nn.Module) -> tuple[object, str]:
        """Return the object on which the rate of ``module`` lives, and its attribute there."""
        assert self.attribute is not None  # noqa: S101  (adapters_of leaves those out)
        path, _, attribute = self.attribute.rpartition(".")
        return (resolve(module, path) if path else module), attribute

    def owners(self, module: nn.Module, ancestors: Sequence[nn.Module]) -> tuple[nn.Module, ...]:
        """Return the modules that must be in train mode for ``module`` to drop; ``ancestors`` are nearest first."""
        if self.owner == "self":
            return (module,)
        if self.owner == "parent":
            return (ancestors[0],) if ancestors else (module,)
        return tuple(self.owner(module, ancestors))


def resolve(module: object, path: str) -> Any:
    """Return the attribute at a dotted path, ``None`` where there is none."""
    try:
        for part in path.split("."):
            module = getattr(module, part, None)
    except Exception:  # a property that has no answer yet, such as the trainer of a LightningModule
        return None
    return module


def is_rate(value: object) -> TypeGuard[float]:
    """Tell whether a value may be a rate: a number in [0, 1] that is no switch."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and 0.0 <= float(value) <= 1.0


_ADAPTERS: dict[type | str, list[Adapter]] = {}


def register_adapter(
    cls: type | str,
    attribute: str | None,
    *,
    owner: Owner = "self",
    kind: Kind = "dropout",
    applies: Callable[[nn.Module], bool] = _always,
    below_one: bool = False,
) -> None:
    """Teach the package a layer class of your own; subclasses are covered.

    Args:
        cls: The class, or its dotted name ``"package.module.Class"`` where it should not be imported yet; the module is
            the one that defines it. ``*`` in a name stands for anything.
        attribute: Where the rate lives, a float in [0, 1] read by every forward: ``"rate"``, or a path as in
            ``"attention_drop.p"`` and ``"config.dropout"``. ``None``: the class drops nothing of its own, whatever its
            attributes are called.
        owner: Whose ``training`` flag turns the drop on: ``"self"``, ``"parent"``, or a function of the module and its
            ancestors (nearest first) that returns the owners.
        kind: ``"dropout"``, ``"attention"``, ``"recurrent"``, ``"drop_path"`` or ``"layer_drop"``.
        applies: Tells instances that can drop from those that never do.
        below_one: Whether the layer divides by its keep probability, so that a rate of 1 would give NaN; such a rate is
            then refused.

    Raises:
        ValueError: If ``cls`` is no class of modules or ``attribute`` no name, if the class has an adapter for this
            attribute already, or if ``kind`` or ``owner`` is unknown.

    Example:
        >>> class NoisyLinear(nn.Linear):
        ...     rate = 0.1
        ...
        ...     def forward(self, x):
        ...         return nn.functional.dropout(super().forward(x), self.rate, self.training)
        >>> register_adapter(NoisyLinear, "rate")
        >>> from lightning_dropout.sites import find_sites
        >>> find_sites(nn.Sequential(NoisyLinear(2, 2)))[0].rate
        0.1
    """
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)) and not (isinstance(cls, str) and "." in cls):
        raise ValueError(
            f'Expected `cls` to be a class of modules or a dotted name such as "package.module.Class", but got {cls!r}.'
        )
    if attribute is not None and not (
        isinstance(attribute, str) and all(part.isidentifier() for part in attribute.split("."))
    ):
        raise ValueError(
            f"Expected `attribute` to be the name of one attribute, a dotted path to it, or `None`, but got "
            f'{attribute!r}; e.g. "p" or "config.dropout".'
        )
    if kind not in get_args(Kind):
        raise ValueError(f"Expected `kind` to be one of {', '.join(get_args(Kind))}, but got {kind!r}.")
    if not callable(owner) and owner not in ("self", "parent"):
        raise ValueError(f'Expected `owner` to be "self", "parent" or a function, but got {owner!r}.')
    registered = _registered(cls)
    if any(adapter.attribute == attribute for adapter in registered):
        name = cls if isinstance(cls, str) else cls.__qualname__
        raise ValueError(f"Expected `{name}` to have no adapter for {attribute!r} yet, but got a second one.")
    _ADAPTERS[cls] = [*registered, Adapter(attribute, kind, owner, applies, below_one)]


def _registered(cls: type | str) -> list[Adapter]:
    """Return what is registered for this very class, be it by the class, its name or a pattern."""
    if isinstance(cls, str):
        keys = [key for key in _ADAPTERS if key == cls or (isinstance(key, type) and _name(key) == cls)]
        return [adapter for key in keys for adapter in _ADAPTERS[key]]
    key = _key(cls)
    return [] if key is None else _ADAPTERS[key]


_UNUSED: dict[str, frozenset[str]] = {}


def register_unused(cls: str, *children: str) -> None:
    """Note that a class of another library builds layers that its code never calls: they are no sites.

    Args:
        cls: Dotted name of the class.
        children: Their names. Where a method of the class does mention one, as in a later release, this is void.
    """
    _UNUSED[cls] = frozenset(children)


def unused_children(cls: type) -> frozenset[str]:
    """Return the children of ``cls`` that are noted as never called."""
    return _UNUSED.get(_name(cls), frozenset())


def adapters_of(module: nn.Module) -> list[Adapter]:
    """Return the adapters of the nearest registered class of ``module``; empty if it drops nothing that is known."""
    return _lookup(type(module)) or []


def generation() -> object:
    """Return what changes with every class that is registered: what was read off classes until then may be stale."""
    return tuple(_ADAPTERS)


def is_registered(cls: type) -> bool:
    """Tell whether ``cls`` itself, not only a class above it, has an adapter or is registered as dropping nothing."""
    return _key(cls) is not None


def _key(cls: type) -> type | str | None:
    name = _name(cls)
    if cls in _ADAPTERS:
        return cls
    if name in _ADAPTERS:
        return name
    return next((key for key in _ADAPTERS if isinstance(key, str) and "*" in key and fnmatchcase(name, key)), None)


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _lookup(cls: type) -> list[Adapter] | None:
    keys = (_key(base) for base in cls.__mro__)
    nearest = next((key for key in keys if key is not None), None)
    if nearest is None:
        return None
    return [adapter for adapter in _ADAPTERS[nearest] if adapter.attribute is not None]

"""The registry of adapters: which class drops, where its rate lives and who turns it on.

Filled at import by the files beside this one and by users through :func:`register_adapter`. Knows classes, never
models: looking at instances is ``find_sites``' job.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from torch import nn

__all__ = ["Adapter", "Kind", "Owner", "adapters_of", "is_known", "register_adapter"]

Kind = Literal["dropout", "attention", "recurrent", "drop_path", "layer_drop"]
Owner = Literal["self", "parent"] | Callable[[nn.Module, Sequence[nn.Module]], Iterable[nn.Module]]


def _always(module: nn.Module) -> bool:
    return True


@dataclass(frozen=True)
class Adapter:
    """One way in which the instances of a class drop.

    Args:
        attribute: Name of the attribute that holds the rate; ``None`` says that the class drops nothing of its own.
        kind: What is dropped.
        owner: Whose ``training`` flag turns the drop on: the module itself, its parent, or a function of the module
            and its ancestors (nearest first) that returns them.
        applies: Whether an instance can drop at all (a one-layer LSTM holds a rate that it never uses).
    """

    attribute: str | None
    kind: Kind = "dropout"
    owner: Owner = "self"
    applies: Callable[[nn.Module], bool] = field(default=_always)

    def owners(self, module: nn.Module, ancestors: Sequence[nn.Module]) -> tuple[nn.Module, ...]:
        """Return the modules that must be in train mode for ``module`` to drop; ``ancestors`` are nearest first."""
        if self.owner == "self":
            return (module,)
        if self.owner == "parent":
            return (ancestors[0],) if ancestors else (module,)
        return tuple(self.owner(module, ancestors))


_ADAPTERS: dict[type | str, list[Adapter]] = {}


def register_adapter(
    cls: type | str,
    attribute: str | None,
    *,
    owner: Owner = "self",
    kind: Kind = "dropout",
    applies: Callable[[nn.Module], bool] = _always,
) -> None:
    """Teach the package a layer class of your own; subclasses are covered.

    Args:
        cls: The class, or its dotted name ``"package.module.Class"`` where it should not be imported yet; the module is
            the one that defines it.
        attribute: The attribute that holds the rate, a float in [0, 1] read by every forward. ``None``: the class drops
            nothing of its own, whatever its attributes are called.
        owner: Whose ``training`` flag turns the drop on: ``"self"``, ``"parent"``, or a function of the module and its
            ancestors (nearest first) that returns the owners.
        kind: ``"dropout"``, ``"attention"``, ``"recurrent"``, ``"drop_path"`` or ``"layer_drop"``.
        applies: Tells instances that can drop from those that never do.

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
    if attribute is not None and not (isinstance(attribute, str) and attribute.isidentifier()):
        raise ValueError(f"Expected `attribute` to be the name of one attribute, or `None`, but got {attribute!r}.")
    if kind not in get_args(Kind):
        raise ValueError(f"Expected `kind` to be one of {', '.join(get_args(Kind))}, but got {kind!r}.")
    if not callable(owner) and owner not in ("self", "parent"):
        raise ValueError(f'Expected `owner` to be "self", "parent" or a function, but got {owner!r}.')
    registered = _ADAPTERS.setdefault(cls, [])
    if any(adapter.attribute == attribute for adapter in registered):
        name = cls if isinstance(cls, str) else cls.__qualname__
        raise ValueError(f"Expected `{name}` to have no adapter for {attribute!r} yet, but got a second one.")
    registered.append(Adapter(attribute, kind, owner, applies))


def adapters_of(module: nn.Module) -> list[Adapter]:
    """Return the adapters of the nearest registered class of ``module``; empty if it drops nothing that is known."""
    return _lookup(type(module)) or []


def is_known(module: nn.Module) -> bool:
    """Tell whether some class of ``module`` is registered, be it as dropping nothing."""
    return _lookup(type(module)) is not None


def _lookup(cls: type) -> list[Adapter] | None:
    for base in cls.__mro__:
        for key in (base, f"{base.__module__}.{base.__qualname__}"):
            if key in _ADAPTERS:
                return [adapter for adapter in _ADAPTERS[key] if adapter.attribute is not None]
    return None

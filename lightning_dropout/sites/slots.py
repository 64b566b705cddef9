"""Slots: places where a layer would drop, had the model been built with a rate above 0; and filling those of paths.

timm and transformers put an ``Identity`` or ``None`` there, which holds no rate. Which slots exist is told by their
name; only a slot of a drop path is known well enough (its input is a residual branch) to be filled.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from lightning_dropout.nn import DropPath
from lightning_dropout.sites.adapters.method import DROP_PATH
from lightning_dropout.sites.names import Patterns, join, matches, walk

__all__ = ["Slot", "empty_slots", "fill_paths", "path_slots"]

_NUMBER = re.compile(r"(rate|prob)s?$", re.IGNORECASE)  # a rate that is `None` is no place for a layer


@dataclass(frozen=True)
class Slot:
    """One empty place of a model.

    Args:
        name: Dotted name, without the names that wrappers insert.
        parent: The module that has the place.
        key: Its attribute there.
        held: What stands there: an ``Identity`` or ``None``.
        book: In which of its dictionaries: children, or plain attributes.
    """

    name: str
    parent: nn.Module = field(repr=False)
    key: str
    held: nn.Module | None = field(repr=False)
    book: dict[str, Any] = field(repr=False, compare=False)

    def fill(self, layer: nn.Module) -> None:
        """Put ``layer`` here, in the mode of the module around it."""
        setattr(self.parent, self.key, layer.train(self.parent.training))

    def give_back(self) -> None:
        """Put back what was here, where it was."""
        if self.book is not self.parent._modules:
            self.parent._modules.pop(self.key, None)
        self.book[self.key] = self.held


def _slots(model: nn.Module) -> list[Slot]:
    slots: dict[tuple[int, str], Slot] = {}
    for name, module, _ in walk(model):
        if "Norm" in type(module).__name__:  # timm's have a slot of this name that no rate fills
            continue
        attributes = {key: value for key, value in vars(module).items() if value is None}
        for book, children in ((vars(module), attributes), (module._modules, module._modules)):
            for key, child in children.items():
                if ("drop" in key or DROP_PATH.search(key)) and (child is None or type(child) is nn.Identity):
                    slots.setdefault((id(module), key), Slot(join(name, key), module, key, child, book))
    return list(slots.values())


def empty_slots(model: nn.Module) -> list[str]:
    """Return the places where a layer would drop if the model had been built with a rate above 0.

    Example:
        >>> block = nn.Module()
        >>> block.drop_path = nn.Identity()
        >>> empty_slots(nn.Sequential(block))
        ['0.drop_path']
    """
    return [slot.name for slot in _slots(model)]


def path_slots(model: nn.Module, include: Patterns = "*", exclude: Patterns = ()) -> list[Slot]:
    """Return the empty slots of drop paths whose names match."""
    slots = [slot for slot in _slots(model) if DROP_PATH.search(slot.key) and not _NUMBER.search(slot.key)]
    return [slot for slot in slots if matches(slot.name, include) and not matches(slot.name, exclude)]


def fill_paths(model: nn.Module, include: Patterns = "*", exclude: Patterns = ()) -> list[Slot]:
    """Put a ``DropPath`` of rate 0, which passes everything through, into the empty slots of drop paths that match.

    Returns:
        The slots that were filled, to be given back.

    Example:
        >>> block = nn.Module()
        >>> block.drop_path = nn.Identity()
        >>> slots = fill_paths(block)
        >>> block.drop_path
        DropPath(drop_prob=0)
        >>> slots[0].give_back()
        >>> block.drop_path
        Identity()
    """
    slots = path_slots(model, include, exclude)
    try:
        for slot in slots:
            slot.fill(DropPath(0.0))
    except BaseException:  # nobody knows of them yet
        for slot in slots:
            slot.give_back()
        raise
    return slots

"""Structures of tensors: what a model takes or returns, taken apart into leaves by dotted path and put together again.

Tuples, lists, mappings, named tuples and dataclasses in any nesting, told apart by what they are, never by a library's
class; so nothing has to be registered. Nothing here looks into a leaf.
"""

import copy
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import fields, is_dataclass
from typing import Any

__all__ = ["children_of", "filled", "is_loss", "leaves_of", "nodes_of"]


def children_of(node: Any) -> dict[Any, Any] | None:
    """Return the parts of ``node`` by key, index or name; ``None`` if it is a leaf."""
    if isinstance(node, Mapping):
        return dict(node)
    if isinstance(node, tuple | list):
        return dict(zip(getattr(node, "_fields", range(len(node))), node, strict=True))
    if is_dataclass(node) and not isinstance(node, type):
        return {field.name: getattr(node, field.name) for field in fields(node)}
    return None


def nodes_of(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ``node`` and everything in it, each with its dotted path."""
    yield path, node
    for key, child in (children_of(node) or {}).items():
        yield from nodes_of(child, f"{path}.{key}" if path else str(key))


def leaves_of(node: Any) -> dict[str, Any]:
    """Return what in ``node`` has no parts, by its dotted path.

    Example:
        >>> leaves_of({"logits": 1, "features": [2, 3]})
        {'logits': 1, 'features.0': 2, 'features.1': 3}
    """
    return {path: leaf for path, leaf in nodes_of(node) if children_of(leaf) is None}


def filled(node: Any, values: Mapping[str, Any], path: str = "") -> Any:
    """Return a copy of the structure ``node`` with ``values`` for its leaves, which stands at ``path`` in a larger one.

    Example:
        >>> filled({"logits": 1, "features": (2, 3)}, {"logits": 4, "features.0": 5, "features.1": 6})
        {'logits': 4, 'features': (5, 6)}
    """
    children = children_of(node)
    if children is None:
        return values[path]
    fresh = {key: filled(child, values, f"{path}.{key}" if path else str(key)) for key, child in children.items()}
    if isinstance(node, MutableMapping):
        copied: Any = copy.copy(node)  # a constructor may ask for anything
        for key, value in fresh.items():  # not `update`, which transformers' outputs refuse
            copied[key] = value
        return copied
    if isinstance(node, Mapping):
        return type(node)(fresh)  # type: ignore[call-arg]
    if isinstance(node, tuple | list):
        return type(node)(*fresh.values()) if hasattr(node, "_fields") else type(node)(fresh.values())
    copied = copy.copy(node)
    for name, value in fresh.items():
        object.__setattr__(copied, name, value)  # it may be frozen
    return copied


def is_loss(path: str) -> bool:
    """Tell whether the last name of a dotted path is that of a loss.

    Example:
        >>> is_loss("0.loss"), is_loss("mlm_loss"), is_loss("losses")
        (True, True, False)
    """
    name = path.rpartition(".")[2]
    return name == "loss" or name.endswith("_loss")

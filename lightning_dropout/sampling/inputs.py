"""The inputs of a pass: every pass gets its own containers, and a trial gets more or fewer samples.

What holds data is never copied: a pass that changes a tensor is an error, which ``witness.py`` finds. Nothing here runs
a model.
"""

import copy
from collections import deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, TypeGuard

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

__all__ = ["batch_size_of", "copied", "has_rows", "resized", "signature_of"]

_DEEPEST = 3  # objects in objects: a key-value cache, its layers; a trainer that an input refers to is none of ours


def batch_size_of(inputs: Any) -> int:
    """Return the first dimension of the first tensor in ``inputs``, in any nesting, that has one.

    Example:
        >>> import torch
        >>> batch_size_of(({"tokens": torch.ones(8, 16)},))
        8
    """
    size = next((leaf.shape[0] for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.ndim), None)
    if size is None:
        raise ValueError(
            "Expected a tensor with a batch dimension among the inputs, but got none, so that `chunk_size` above 1 and "
            '`masks="shared"` cannot know the batch; leave both out.'
        )
    return size


def copied(inputs: Any) -> Any:
    """Return ``inputs`` for one pass: the same tensors, arrays and generators in new containers and new objects.

    A pass may append to a list, take a key out of a dictionary or fill a key-value cache; the next one must not see it.
    Objects that hold no container and no tensor are left as they are: some are known by who they are.

    Raises:
        ValueError: If there is an iterator, which the first pass would use up.

    Example:
        >>> inputs = ([1, 2],)
        >>> copied(inputs)[0].append(3)
        >>> inputs
        ([1, 2],)
    """
    return _copied(inputs, {}, 0)


def _copied(node: Any, twins: dict[int, Any], depth: int) -> Any:
    return tree_map(lambda leaf: _copied_leaf(leaf, twins, depth), node)


def _copied_leaf(leaf: Any, twins: dict[int, Any], depth: int) -> Any:
    if id(leaf) in twins:
        return twins[id(leaf)]
    if isinstance(leaf, Iterator):
        raise ValueError(
            f"Expected inputs that every pass can read from their beginning, but got {type(leaf).__name__}; call the "
            "model with a list of what it yields."
        )
    held = getattr(leaf, "__dict__", None)
    contents = isinstance(leaf, list | dict | set | deque)
    if isinstance(leaf, Tensor | nn.Module | type) or callable(leaf) or depth >= _DEEPEST:
        return leaf
    if not contents and not (isinstance(held, dict) and any(map(_may_change, held.values()))):
        return leaf
    try:
        twin = copy.copy(leaf)
    except Exception:  # whatever there is one of only
        return leaf
    twins[id(leaf)] = twin
    if isinstance(twin, dict):
        for key in twin:
            twin[key] = _copied(twin[key], twins, depth + 1)
    for name, value in (getattr(twin, "__dict__", None) or {}).items():
        twin.__dict__[name] = _copied(value, twins, depth + 1)
    return twin


def _may_change(value: Any) -> bool:
    return isinstance(value, Tensor | list | dict | set | deque) or bool(getattr(value, "__dict__", None))


def signature_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Hashable:
    """Return what tells calls apart that may take other ways through a model: not sizes of tensors, numbers or texts.

    Example:
        >>> import torch
        >>> signature_of((torch.ones(2, 3), 5), {}) == signature_of((torch.ones(7, 4), 6), {})
        True
        >>> signature_of((torch.ones(2, 3),), {"causal": True}) == signature_of((torch.ones(2, 3),), {"causal": False})
        False
    """
    leaves, spec = tree_flatten((args, dict(kwargs)))
    kinds = [(leaf.dtype, leaf.ndim) if isinstance(leaf, Tensor) else _switch(leaf, bool) for leaf in leaves]
    return str(spec), *kinds, *(_switch(argument, str) for argument in (*args, *kwargs.values()))


def _switch(argument: Any, kind: type) -> Hashable:
    return argument if isinstance(argument, kind) else type(argument)


def resized(inputs: Any, size: int, rows: int) -> Any:
    """Return ``rows`` of ``size`` samples: the first ones, or all of them again and again.

    Example:
        >>> import torch
        >>> resized((torch.tensor([1, 2]), 0.5), size=2, rows=1), resized(torch.tensor([1, 2]), size=2, rows=4)
        ((tensor([1]), 0.5), tensor([1, 2, 1, 2]))
    """

    def change(leaf: Any) -> Any:
        if not has_rows(leaf, size):
            return leaf
        return leaf[:rows] if rows < size else leaf.repeat(-(-rows // size), *[1] * (leaf.ndim - 1))[:rows]

    return inputs if rows == size else tree_map(change, inputs)


def has_rows(leaf: Any, rows: int) -> TypeGuard[Tensor]:
    """Tell whether ``leaf`` is a tensor whose first dimension is ``rows``."""
    return isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == rows

"""The inputs of a pass: every pass gets its own containers, and a trial gets more or fewer samples.

Tensors are never copied: a pass that changes one is an error, which ``witness.py`` finds. Nothing here runs a model.
"""

import copy
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from lightning_dropout.randomness import OwnGenerator

__all__ = ["batch_size_of", "copied", "has_rows", "resized"]

# What a forward cannot change, or what it is meant to find as it is: generators are seeded instead.
_PLAIN = None | bool | int | float | complex | str | bytes | type | torch.dtype | torch.device
_AS_THEY_ARE = _PLAIN | Tensor | nn.Module | OwnGenerator


def batch_size_of(inputs: Any) -> int:
    """Return the first dimension of the first tensor in ``inputs``, in any nesting, that has one.

    Example:
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
    """Return ``inputs`` for one pass: the same tensors in new containers, and copies of all objects that may change.

    A pass may append to a list, take a key out of a dictionary or fill a key-value cache; the next one must not see it.

    Raises:
        ValueError: If there is an object that cannot be copied.

    Example:
        >>> inputs = ([1, 2],)
        >>> copied(inputs)[0].append(3)
        >>> inputs
        ([1, 2],)
    """
    return tree_map(_copied_leaf, inputs)


def _copied_leaf(leaf: Any) -> Any:
    if isinstance(leaf, _AS_THEY_ARE) or callable(leaf):
        return leaf
    try:
        return copy.deepcopy(leaf)
    except Exception as error:
        raise ValueError(
            f"Expected inputs that every pass can have for itself, but got {type(leaf).__name__}, of which there is no "
            f"second one ({type(error).__name__}: {error}); call the model with tensors, lists and dictionaries."
        ) from error


def resized(inputs: Any, size: int, rows: int) -> Any:
    """Return the first ``rows`` of ``size`` samples, or all of them so often that there are ``rows``.

    Example:
        >>> resized((torch.tensor([1, 2]), 0.5), size=2, rows=1), resized(torch.tensor([1, 2]), size=2, rows=4)
        ((tensor([1]), 0.5), tensor([1, 2, 1, 2]))
    """

    def change(leaf: Any) -> Any:
        if not has_rows(leaf, size):
            return leaf
        return leaf[:rows] if rows < size else leaf.repeat(rows // size, *[1] * (leaf.ndim - 1))

    return inputs if rows == size else tree_map(change, inputs)


def has_rows(leaf: Any, rows: int) -> TypeGuard[Tensor]:
    """Tell whether ``leaf`` is a tensor whose first dimension is ``rows``."""
    return isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == rows

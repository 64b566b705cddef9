"""The guards of a pass: it changes no buffer and no input. Whatever it changed after all is put back.

Compares and copies; nothing here runs a model.
"""

import copy
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

__all__ = ["Counters", "Witness", "same_values"]

_LARGEST = 2**20  # values; a larger tensor in a plain attribute is not copied


class Witness:
    """Remembers buffers and inputs, raises if a pass has changed one, and puts back what an error leaves behind.

    Args:
        model: Whose buffers must stay as they are, and whose attributes an error must leave as they are.
        inputs: What a pass reads, in any nesting.

    Example:
        >>> x = torch.zeros(2)
        >>> with Witness(nn.ReLU(), (x,)) as witness:
        ...     witness.check()
    """

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        # By the dictionary that holds it: code that assigns a new buffer leaves the old tensor as it was.
        self._buffers = [
            (f"buffer `{f'{prefix}.{name}'.lstrip('.')}`", module._buffers, name, buffer, buffer.clone())
            for prefix, module in model.named_modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        leaves = tree_leaves(inputs)
        self._inputs = [(leaf, leaf.clone()) for leaf in leaves if isinstance(leaf, Tensor)]
        self._arrays = [(leaf, leaf.copy()) for leaf in leaves if isinstance(leaf, np.ndarray)]
        self._attributes = [_Attributes(module) for module in model.modules()]

    def __enter__(self) -> "Witness":
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is None:  # `check` has found nothing to put back
            return
        for attributes in self._attributes:
            attributes.put_back()
        for _, holder, name, buffer, values in self._buffers:
            holder[name] = buffer if _put_back(buffer, values) else values
        for tensor, values in self._inputs:
            _put_back(tensor, values)
        for array, entries in self._arrays:
            array[...] = entries

    def check(self) -> None:
        """Raise if something has changed since construction.

        Raises:
            RuntimeError: Naming the buffer, or saying that it was an input.
        """
        for what, holder, name, _, values in self._buffers:
            if not same_values(holder.get(name), values):
                raise RuntimeError(
                    f"Expected passes that change nothing, but got a changed {what} (put back); call `model.eval()` "
                    "before sampling, so that normalisation layers use what they have learned, and call the model once "
                    "if it fills a cache in its first forward."
                )
        same_arrays = (np.array_equal(array, entries) for array, entries in self._arrays)
        if not all(same_values(tensor, values) for tensor, values in self._inputs) or not all(same_arrays):
            raise RuntimeError(
                "Expected passes that change nothing, but got a changed input (put back), so that later passes would "
                "see another one; make the layer that works in place (`inplace=True`) return a new tensor."
            )


class Counters:
    """What torch counts of the changes of buffers and inputs: at next to no cost, and no proof.

    Whoever writes the same values is noticed, too; what numpy and some kernels write is not.

    Args:
        buffers: The dictionaries in which modules hold theirs.
        inputs: What a pass reads, in any nesting.

    Example:
        >>> x = torch.zeros(2)
        >>> counters = Counters([], (x,))
        >>> _ = x.add_(0)
        >>> counters.have_moved()
        True
    """

    def __init__(self, buffers: Sequence[Mapping[str, Tensor | None]], inputs: Any) -> None:
        self._buffers = buffers
        self._inputs = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
        self._seen = self._look()

    def have_moved(self) -> bool:
        """Tell whether something was written since construction."""
        return self._look() != self._seen

    def _look(self) -> list[tuple[int, int]]:
        buffers = (buffer for held in self._buffers for buffer in held.values())
        # What was made in inference mode counts nothing.
        return [
            (id(each), 0 if each.is_inference() else each._version)
            for each in (*buffers, *self._inputs)
            if each is not None
        ]


class _Attributes:
    """What a module holds in plain attributes: names, values, entries of containers, values of tensors."""

    def __init__(self, module: nn.Module) -> None:
        self._held = vars(module)
        self._values = dict(self._held)
        self._containers, self._tensors = [], []
        for name, value in self._values.items():
            if isinstance(value, (dict, list, set, deque)):
                self._containers.append((value, copy.copy(value) if value else None))  # most are empty books of hooks
            elif isinstance(value, Tensor) and value.numel() <= _LARGEST:
                self._tensors.append((name, value, value.clone()))

    def put_back(self) -> None:
        _refill(self._held, self._values)
        for each, entries in self._containers:
            if entries is None:
                each.clear()
            else:
                _refill(each, entries)
        for name, tensor, values in self._tensors:
            if not _put_back(tensor, values):
                self._held[name] = values


def _refill(container: Any, entries: Any) -> None:
    if isinstance(container, dict):  # never empty in between: others may be reading, or Ctrl-C come again
        container.update(entries)
        for key in container.keys() - entries.keys():
            del container[key]
    elif isinstance(container, set):
        container |= entries
        container &= entries
    elif isinstance(container, list):
        container[:] = entries
    else:
        container.clear()
        container.extend(entries)


def _put_back(tensor: Tensor, values: Tensor) -> bool:
    """Give ``tensor`` its values back and tell whether that was possible; whatever the mode it was made in."""
    try:
        if not same_values(tensor, values):
            with torch.inference_mode(tensor.is_inference()), torch.no_grad():
                tensor.copy_(values)
    except RuntimeError:  # of another shape now
        return False
    return True


def same_values(one: Tensor | None, other: Tensor) -> bool:
    """Tell whether two tensors are equal in every value, NaN being equal to NaN.

    Example:
        >>> same_values(torch.tensor([1.0, float("nan")]), torch.tensor([1.0, float("nan")]))
        True
    """
    if one is None:
        return False
    if one.is_nested or one.layout != torch.strided:
        mine, theirs = _parts(one), _parts(other)
        return one.layout == other.layout and len(mine) == len(theirs) and all(map(same_values, mine, theirs))
    if one.is_complex() and other.is_complex():
        one, other = torch.view_as_real(one.resolve_conj()), torch.view_as_real(other.resolve_conj())
    if one.dtype == other.dtype and torch.equal(one, other):  # one look at each value
        return True
    if one.shape != other.shape or not (one.is_floating_point() and other.is_floating_point()):
        return False
    return bool(((one == other) | (one.isnan() & other.isnan())).all().item())


def _parts(tensor: Tensor) -> Sequence[Tensor]:
    """Return the ordinary tensors that a sparse or nested one is made of."""
    if tensor.is_nested:
        return tensor.unbind()
    if tensor.layout == torch.strided:
        return [tensor]
    sparse = tensor.to_sparse_coo()  # type: ignore[no-untyped-call]
    return sparse._indices(), sparse._values(), torch.tensor(sparse.shape)

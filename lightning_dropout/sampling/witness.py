"""The guards of a pass: it changes no buffer and no input. Whatever it changed after all is put back.

Compares and copies; nothing here runs a model.
"""

import copy
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

__all__ = ["Witness", "same_values"]


class Witness:
    """Remembers buffers and inputs, raises if a pass has changed one, and puts back what an error leaves behind.

    Args:
        model: Whose buffers must stay as they are, and whose attributes an error must leave as they are.
        inputs: What a pass reads, in any nesting.
        by_value: Whether to copy and compare values; else only what torch counts is noticed, at next to no cost, and
            nothing can be put back.

    Example:
        >>> x = torch.zeros(2)
        >>> with Witness(nn.ReLU(), (x,)) as witness:
        ...     witness.check()
    """

    def __init__(self, model: nn.Module, inputs: Any, *, by_value: bool = True) -> None:
        self._by_value = by_value
        # By the dictionary that holds it: code that assigns a new buffer leaves the old tensor as it was.
        self._buffers = [
            (f"buffer `{f'{prefix}.{name}'.lstrip('.')}`", module._buffers, name, buffer, self._mark(buffer))
            for prefix, module in model.named_modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        self._inputs = [(leaf, self._mark(leaf)) for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
        self._attributes = [_Attributes(module) for module in model.modules()] if by_value else []

    def _mark(self, tensor: Tensor) -> Any:
        if self._by_value:
            return tensor.clone()
        return 0 if tensor.is_inference() else tensor._version  # made in inference mode, it counts nothing

    def _same(self, tensor: Tensor, mark: Any) -> bool:
        return same_values(tensor, mark) if self._by_value else self._mark(tensor) == mark

    def __enter__(self) -> "Witness":
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is None or not self._by_value:  # `check` has found nothing to put back
            return
        for attributes in self._attributes:
            attributes.put_back()
        for _, holder, name, buffer, values in self._buffers:
            holder[name] = buffer
            _put_back(buffer, values)
        for tensor, values in self._inputs:
            _put_back(tensor, values)

    def check(self) -> None:
        """Raise if something has changed since construction.

        Raises:
            RuntimeError: Naming the buffer, or saying that it was an input.
        """
        mended = " (put back)" if self._by_value else ""
        for what, holder, name, buffer, mark in self._buffers:
            now = holder.get(name)
            if now is None or not (self._by_value or now is buffer) or not self._same(now, mark):
                raise RuntimeError(
                    f"Expected passes that change nothing, but got a changed {what}{mended}; call `model.eval()` "
                    "before sampling, so that normalisation layers use what they have learned, and call the model once "
                    "if it fills a cache in its first forward."
                )
        if not all(self._same(tensor, mark) for tensor, mark in self._inputs):
            raise RuntimeError(
                f"Expected passes that change nothing, but got a changed input{mended}, so that later passes would "
                "see another one; make the layer that works in place (`inplace=True`) return a new tensor."
            )


class _Attributes:
    """What a module holds in plain attributes: names, values, what lists and dictionaries hold, values of tensors."""

    def __init__(self, module: nn.Module) -> None:
        self._held = vars(module)
        self._values = dict(self._held)
        containers = (list, dict, OrderedDict)
        self._containers = [(each, copy.copy(each)) for each in self._values.values() if type(each) in containers]
        self._tensors = [(each, each.clone()) for each in self._values.values() if isinstance(each, Tensor)]

    def put_back(self) -> None:
        self._held.clear()
        self._held.update(self._values)
        for each, contents in self._containers:
            each.clear()
            each.extend(contents) if isinstance(each, list) else each.update(contents)
        for tensor, values in self._tensors:
            _put_back(tensor, values)


def _put_back(tensor: Tensor, values: Tensor) -> None:
    if not same_values(tensor, values):
        tensor.copy_(values)


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
    if one.shape != other.shape or not one.is_floating_point():
        return torch.equal(one, other)
    return bool(((one == other) | (one.isnan() & other.isnan())).all().item())


def _parts(tensor: Tensor) -> Sequence[Tensor]:
    """Return the ordinary tensors that a sparse or nested one is made of."""
    if tensor.is_nested:
        return tensor.unbind()
    if tensor.layout == torch.strided:
        return [tensor]
    sparse = tensor.to_sparse_coo()  # type: ignore[no-untyped-call]
    return sparse._indices(), sparse._values(), torch.tensor(sparse.shape)

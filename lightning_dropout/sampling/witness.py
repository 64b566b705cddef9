"""The guards of a pass: it changes no buffer and no input. Whatever it changed after all is put back.

Compares and copies tensors only; nothing here runs a model.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

__all__ = ["Witness", "same_values"]


class Witness:
    """Remembers buffers and inputs, raises if a pass has changed one, and puts back what an error leaves behind.

    Args:
        model: Whose buffers must stay as they are.
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
        self._inputs = [(leaf, leaf.clone()) for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]

    def __enter__(self) -> "Witness":
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is None:  # `check` has found nothing to put back
            return
        for _, holder, name, buffer, copy in self._buffers:
            holder[name] = buffer
            _put_back(buffer, copy)
        for tensor, copy in self._inputs:
            _put_back(tensor, copy)

    def check(self) -> None:
        """Raise if something has changed since construction.

        Raises:
            RuntimeError: Naming the buffer, or saying that it was an input.
        """
        for what, holder, name, _, copy in self._buffers:
            if not same_values(holder.get(name), copy):
                raise RuntimeError(
                    f"Expected passes that change nothing, but got a changed {what} (put back); call `model.eval()` "
                    "before sampling, so that normalisation layers use what they have learned, and call the model once "
                    "if it fills a cache in its first forward."
                )
        if not all(same_values(tensor, copy) for tensor, copy in self._inputs):
            raise RuntimeError(
                "Expected passes that change nothing, but got a changed input (put back), so that later passes would "
                "see another one; make the layer that works in place (`inplace=True`) return a new tensor."
            )


def _put_back(tensor: Tensor, copy: Tensor) -> None:
    if not same_values(tensor, copy):
        tensor.copy_(copy)


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

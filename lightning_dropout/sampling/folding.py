"""Several passes at a time: the batch, repeated, goes through the model once, and its output is taken apart again.

Pass-major: the first rows are the first pass. Nothing here runs a model or draws anything.
"""

import numbers
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_dropout.sampling.inputs import has_rows
from lightning_dropout.sampling.masks import Masks
from lightning_dropout.sampling.structures import filled, is_loss, leaves_of
from lightning_dropout.sites import Site

__all__ = ["check_chunk_size", "refuse_coins_of_the_batch", "unfold"]


def check_chunk_size(chunk_size: int) -> None:
    """Raise unless ``chunk_size`` is a whole number of at least 1."""
    if not isinstance(chunk_size, numbers.Integral) or isinstance(chunk_size, bool) or chunk_size < 1:
        raise ValueError(
            f"Expected `chunk_size` to be a whole number of passes, at least 1, but got {chunk_size!r}; "
            "1 runs the passes one by one."
        )


def refuse_coins_of_the_batch(sites: Sequence[Site], masks: Masks) -> None:
    """Raise for a site that tosses one coin for the whole batch, or scales by it: folded passes would share it.

    Shared masks know where a pass begins, so only two are left: layer drop, whose coin is tossed outside any layer, and
    DropBlock, which divides by what it kept of the whole batch.
    """
    for site in sites:
        whole = getattr(site.holder, "mode", None) == "batch" or getattr(site.holder, "shared_over_batch", False)
        never = site.kind == "layer_drop" or type(site.holder).__name__.startswith("DropBlock")
        if never or (whole and masks == "independent"):
            raise ValueError(
                f"Expected sites that draw for each sample, but got `{site.name}`, which drops for the whole batch, so "
                "that passes folded into the batch would share its mask; leave `chunk_size` out."
            )


def unfold(outputs: Any, size: int, folds: int) -> list[Any]:
    """Return the outputs of the single passes.

    Raises:
        ValueError: If no tensor in ``outputs`` has the rows of all passes, or a loss has taken them together.

    Example:
        >>> import torch
        >>> unfold(torch.tensor([1, 2, 3, 4]), size=2, folds=2)
        [tensor([1, 2]), tensor([3, 4])]
    """
    if folds == 1:
        return [outputs]
    rows = size * folds
    leaves = leaves_of(outputs)
    loss = next((path for path, leaf in leaves.items() if is_loss(path) and isinstance(leaf, Tensor)), None)
    if loss is not None and not has_rows(leaves[loss], rows):
        raise ValueError(
            f"Expected outputs that can be told apart by pass, but got `{loss}`, one loss for {folds} folded passes; "
            "call the model without labels, or leave `chunk_size` out."
        )
    if not any(has_rows(leaf, rows) for leaf in leaves.values()):
        shapes = [tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__ for leaf in leaves.values()]
        raise ValueError(
            f"Expected an output with {rows} rows, {size} for each of {folds} folded passes, but got {shapes}; "
            "leave `chunk_size` out."
        )

    def part(start: int) -> Any:
        cut = {path: leaf[start : start + size] if has_rows(leaf, rows) else leaf for path, leaf in leaves.items()}
        return filled(outputs, cut)

    return [part(start) for start in range(0, rows, size)]

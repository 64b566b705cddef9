"""Which rows go where: training, validation and test rows as a pure function of strata, shares and a seed.

No module-wide random state is read or moved here, so every process of a run arrives at the same rows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["stratified_split", "stratified_subset"]


def stratified_subset(strata: Tensor, count: int, seed: int) -> Tensor:
    """Choose ``count`` rows so that every stratum keeps its share.

    Rows are put in random order, then ordered by stratum, and row i of n is taken when ``i * count / n`` passes a
    whole number. So the total is exact, and each stratum of m rows gives ``m * count / n`` rows, rounded up or down.

    Args:
        strata: Class of each row; all equal (regression) makes this a plain random subset.
        count: How many rows to choose, from 0 to ``len(strata)``.
        seed: The same seed chooses the same rows, on every process and whatever the training seed is.

    Returns:
        Row numbers in ascending order.

    Shape:
        ``(rows,)`` to ``(count,)``, int64.

    Raises:
        ValueError: If ``count`` is negative or above the number of rows.

    Example:
        >>> labels = torch.tensor([0, 0, 0, 0, 1, 1])
        >>> labels[stratified_subset(labels, count=3, seed=0)]
        tensor([0, 0, 1])
    """
    total = len(strata)
    if not 0 <= count <= total:
        raise ValueError(f"Expected `count` to lie between 0 and the {total} rows, but got {count}.")
    if count == total:
        return torch.arange(total)
    shuffled = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    by_stratum = shuffled[torch.argsort(strata[shuffled], stable=True)]
    position = torch.arange(total)
    # Whole numbers only: with floats, 0.1 * n would now and then round to a row too many or too few.
    taken = (position + 1) * count // total > position * count // total
    return by_stratum[taken].sort().values


def stratified_split(strata: Tensor, fractions: Sequence[float], seed: int) -> tuple[Tensor, ...]:
    """Split the rows into one part per fraction and a last part with the rest.

    Each part is chosen from what the parts before it have left. So the first part (the test rows, say) does not move
    when a later fraction changes.

    Args:
        strata: Class of each row; all equal (regression) makes this a plain random split.
        fractions: Share of *all* rows for each part, rounded to whole rows; their sum is at most 1.
        seed: The same seed gives the same split.

    Returns:
        ``len(fractions) + 1`` tensors of row numbers: disjoint, ascending, together all rows.

    Shape:
        ``(rows,)`` to tensors of shape ``(rows of the part,)``, int64.

    Raises:
        ValueError: If the fractions add up to more than all rows.

    Example:
        >>> test, val, train = stratified_split(torch.zeros(10), (0.2, 0.1), seed=0)
        >>> len(test), len(val), len(train)
        (2, 1, 7)
    """
    total = len(strata)
    left = torch.arange(total)
    parts = []
    for fraction in fractions:
        count = round(fraction * total)
        if count > len(left):
            raise ValueError(f"Expected fractions that add up to at most 1, but got {tuple(fractions)}.")
        chosen = stratified_subset(strata[left], count, seed)
        parts.append(left[chosen])
        keep = torch.ones(len(left), dtype=torch.bool)
        keep[chosen] = False
        left = left[keep]
    return (*parts, left)

"""How a maximum stochastic-depth rate is shared out over the blocks of a model. Plain numbers, no torch."""

from typing import Literal, get_args

from lightning_dropout.probability import check_probability

__all__ = ["DepthRule", "depth_rates"]

DepthRule = Literal["linear", "uniform"]


def depth_rates(drop_prob: float, depth: int, rule: DepthRule = "linear") -> list[float]:
    """Return the rate of each residual block, first to last.

    ``"linear"``: block ``i = 0 … depth - 1`` gets ``drop_prob * i / (depth - 1)``; the first is never dropped, the last
    with ``drop_prob``. A single block counts as a first one: ``[0.0]``. These are timm's values; the original paper's
    start at ``drop_prob / depth``. ``"uniform"``: every block gets ``drop_prob``.

    Args:
        drop_prob: Largest probability of dropping, in [0, 1].
        depth: Number of blocks, at least 1.
        rule: ``"linear"`` or ``"uniform"``.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        Huang et al., "Deep Networks with Stochastic Depth" (2016), arXiv:1603.09382, section 3.

    Example:
        >>> depth_rates(0.5, 3)
        [0.0, 0.25, 0.5]
        >>> depth_rates(0.5, 3, rule="uniform")
        [0.5, 0.5, 0.5]
    """
    drop_prob = check_probability(drop_prob, "drop_prob")
    if not isinstance(depth, int) or isinstance(depth, bool) or depth < 1:
        raise ValueError(f"Expected `depth` to be a number of blocks, at least 1, but got {depth!r}.")
    if rule not in get_args(DepthRule):
        raise ValueError(f"Expected `rule` to be one of {get_args(DepthRule)}, but got {rule!r}.")
    if rule == "uniform":
        return [drop_prob] * depth
    return [drop_prob * (block / max(depth - 1, 1)) for block in range(depth)]

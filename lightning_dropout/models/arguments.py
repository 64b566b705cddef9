"""What the models' constructors ask of their arguments, said once. No layers here."""

import operator
from collections.abc import Sequence
from typing import SupportsIndex, get_args

from lightning_dropout.nn import depth_rates
from lightning_dropout.nn.depth_rules import DepthRule
from lightning_dropout.probability import check_probability

__all__ = ["block_rates", "check_count", "check_image_shape", "check_shape", "check_weights"]

_MOST_WEIGHTS = 2**33  # 32 GiB in float32; the largest vision transformers have a quarter of it


def check_count(value: SupportsIndex, name: str) -> int:
    """Return ``value`` as an int of at least 1 that torch can count to.

    Raises:
        ValueError: If it is none; ``name`` stands in the message.
    """
    try:
        count = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        count = 0
    if not 1 <= count < 2**63:
        limit = "at least 1" if count < 1 else "less than 2**63"
        raise ValueError(f"Expected `{name}` to be a whole number of {limit}, but got {value!r}.")
    return count


def check_shape(shape: Sequence[int], name: str = "input_shape") -> tuple[int, ...]:
    """Return the shape of one sample (no batch dimension) as a tuple of ints.

    Raises:
        ValueError: If it is no sequence of whole numbers of at least 1, or empty.
    """
    # Configs hand over lists of their own kind, so whatever can be iterated is welcome.
    if isinstance(shape, str) or not hasattr(shape, "__iter__") or not list(shape):
        raise ValueError(f"Expected `{name}` to be the shape of one sample, such as (3, 32, 32), but got {shape!r}.")
    return tuple(check_count(size, f"{name}[{index}]") for index, size in enumerate(shape))


def check_image_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """Return ``input_shape`` as (channels, height, width).

    Raises:
        ValueError: If it is not of that form.
    """
    sizes = check_shape(shape)
    if len(sizes) != 3:
        raise ValueError(
            f"Expected `input_shape` to be (channels, height, width), but got {sizes}; for tables use the MLP."
        )
    return sizes[0], sizes[1], sizes[2]


def block_rates(drop_path: float, depth: int, depth_rule: DepthRule) -> list[float]:
    """Return the stochastic-depth rate of each of ``depth`` blocks.

    Raises:
        ValueError: If ``drop_path`` is no probability, ``depth_rule`` is unknown, or the rule leaves nothing to drop.
    """
    drop_path = check_probability(drop_path, "drop_path")
    if depth_rule not in get_args(DepthRule):
        raise ValueError(f"Expected `depth_rule` to be one of {get_args(DepthRule)}, but got {depth_rule!r}.")
    rates = depth_rates(drop_path, depth, depth_rule)
    if drop_path > 0.0 and not any(rates):
        raise ValueError(
            f"Expected `depth` to be at least 2 with `depth_rule='linear'`, whose first block is never dropped, "
            f"but got {depth} with `drop_path={drop_path}`; use `depth_rule='uniform'`."
        )
    return rates


def check_weights(number: int, **sizes: int) -> None:
    """Refuse a model that no memory holds before its layers are made: they would be filled until the process is killed.

    Args:
        number: How many weights the model has, roughly.
        sizes: The arguments that it grows with; the largest stands in the message.

    Raises:
        ValueError: If it has more than 2**33 weights.
    """
    if number > _MOST_WEIGHTS:
        name = max(sizes, key=lambda size: sizes[size])
        raise ValueError(
            f"Expected `{name}` to make a model of at most {_MOST_WEIGHTS:.0e} weights, but got {sizes[name]} and with "
            f"it {float(min(number, 10**300)):.0e}; lower it."
        )

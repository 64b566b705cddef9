"""What counts as a probability: the one check behind every rate that enters the package.

The topmost room: imports nothing of the package, no torch. Values are refused, never clipped.
"""

import numbers

__all__ = ["check_probability"]


def check_probability(value: object, name: str) -> float:
    """Return ``value`` as a Python float if it is a probability.

    Args:
        value: Any real number (int, float, numpy scalar) in [0, 1]; booleans and strings are no numbers here.
        name: What the value is called where the user wrote it; stands in the message.

    Returns:
        A plain ``float``, so that it may go into a checkpoint that is loaded with ``weights_only=True``.

    Raises:
        ValueError: If ``value`` is no real number, is NaN or lies outside [0, 1].

    Example:
        >>> check_probability(1, "p")
        1.0
        >>> check_probability(1.5, "p")
        Traceback (most recent call last):
        ...
        ValueError: Expected `p` to be a probability of dropping, a number in [0, 1], but got 1.5.
    """
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        number = float(value)
        if 0.0 <= number <= 1.0:  # not so for NaN; asking for it by name would break a compiled graph
            return number
    raise ValueError(f"Expected `{name}` to be a probability of dropping, a number in [0, 1], but got {value!r}.")

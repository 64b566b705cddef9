"""Refuse bad numbers in the constructors of the data modules: shares of rows, counts, sizes.

Checks only: nothing here is clipped, rounded or given a default.
"""

import math
import numbers

__all__ = ["check_count", "check_fraction", "check_held_out", "check_positive"]


def check_fraction(value: object, name: str, *, allow_zero: bool = False, allow_one: bool = False) -> float:
    """Return ``value`` as a Python float if it is a share of rows.

    Args:
        value: Any real number above 0 and below 1; booleans and strings are no numbers here.
        name: What the value is called where the user wrote it; stands in the message.
        allow_zero: Whether 0 is a share too.
        allow_one: Whether 1 is a share too.

    Raises:
        ValueError: If ``value`` is no real number, is NaN or lies outside the interval.

    Example:
        >>> check_fraction(1, "train_fraction", allow_one=True)
        1.0
        >>> check_fraction(10, "val_fraction")
        Traceback (most recent call last):
        ...
        ValueError: Expected `val_fraction` to be a share of rows, a number in (0, 1), but got 10.
    """
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        number = float(value)
        if 0.0 < number < 1.0 or (allow_zero and number == 0.0) or (allow_one and number == 1.0):
            return number
    interval = f"{'[' if allow_zero else '('}0, 1{']' if allow_one else ')'}"
    raise ValueError(f"Expected `{name}` to be a share of rows, a number in {interval}, but got {value!r}.")


def check_held_out(
    val_fraction: object, test_fraction: object, *, allow_zero_test: bool = False
) -> tuple[float, float]:
    """Return the shares of all rows for validation and test, if they leave rows for training.

    Raises:
        ValueError: If one is no share, or their sum is 1 or more.

    Example:
        >>> check_held_out(0.5, 0.5)
        Traceback (most recent call last):
        ...
        ValueError: Expected `val_fraction` + `test_fraction` to be below 1, but got 0.5 + 0.5; lower one of them.
    """
    val = check_fraction(val_fraction, "val_fraction")
    test = check_fraction(test_fraction, "test_fraction", allow_zero=allow_zero_test)
    if val + test >= 1.0:
        raise ValueError(
            f"Expected `val_fraction` + `test_fraction` to be below 1, but got {val} + {test}; lower one of them."
        )
    return val, test


def check_count(value: object, name: str, minimum: int, maximum: int = 2**63 - 1) -> int:
    """Return ``value`` as a Python int if it is a whole number from ``minimum`` to ``maximum``.

    Args:
        value: An int or numpy integer; booleans, strings and floats (also 3.0) are refused.
        name: What the value is called where the user wrote it; stands in the message.
        minimum: The smallest number that makes sense.
        maximum: The largest that a machine can be asked for; by default what torch can count to.

    Raises:
        ValueError: If ``value`` is no whole number, too small or too large.

    Example:
        >>> check_count(0, "batch_size", minimum=1)
        Traceback (most recent call last):
        ...
        ValueError: Expected `batch_size` to be a whole number of at least 1, but got 0.
    """
    if isinstance(value, numbers.Integral) and not isinstance(value, bool) and minimum <= int(value) <= maximum:
        return int(value)
    too_large = isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) > maximum
    limit = f"at most {maximum}" if too_large else f"at least {minimum}"
    raise ValueError(f"Expected `{name}` to be a whole number of {limit}, but got {value!r}.")


def check_positive(value: object, name: str) -> float:
    """Return ``value`` as a Python float if it is a finite number above 0.

    Args:
        value: Any real number; booleans and strings are no numbers here.
        name: What the value is called where the user wrote it; stands in the message.

    Raises:
        ValueError: If ``value`` is no real number, is not finite or is not above 0.

    Example:
        >>> check_positive(2, "frequency")
        2.0
    """
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        number = float(value)
        if math.isfinite(number) and number > 0.0:
            return number
    raise ValueError(f"Expected `{name}` to be a finite number above 0, but got {value!r}.")

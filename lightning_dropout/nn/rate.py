"""The rate of a layer as an attribute: a plain float that is checked whenever it is set.

A rate is no parameter and no buffer: it belongs to training, so it stays out of ``state_dict`` and is never cast.
"""

from typing import TYPE_CHECKING, Any, overload

from lightning_dropout.probability import check_probability

__all__ = ["Rate"]


class Rate:
    """Descriptor of a probability of dropping, in [0, 1], kept under its own name in the instance's ``__dict__``.

    Raises:
        ValueError: When it is set to no probability.

    Example:
        >>> class Layer:
        ...     p = Rate()
        >>> layer = Layer()
        >>> layer.p = 1
        >>> layer.p
        1.0
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    if TYPE_CHECKING:  # only: Python finds the value by itself, and torch.compile before 2.13 has no end with a getter

        @overload
        def __get__(self, instance: None, owner: type) -> "Rate": ...

        @overload
        def __get__(self, instance: object, owner: type) -> float: ...

        def __get__(self, instance: Any, owner: type) -> Any: ...

    def __set__(self, instance: Any, value: float) -> None:
        instance.__dict__[self._name] = check_probability(value, self._name)

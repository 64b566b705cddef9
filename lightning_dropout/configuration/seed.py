"""The seed of a run, checked before anything is seeded with it."""

from lightning_dropout.configuration.errors import ConfigError

__all__ = ["check_seed"]

_LARGEST = 2**32 - 1  # numpy takes no more


def check_seed(seed: object, key: str = "seed") -> int:
    """Return a seed that torch, numpy and Python all take.

    Args:
        seed: A whole number in [0, 2**32 - 1].
        key: Where it stands in the config.

    Raises:
        ConfigError: If it is anything else.

    Example:
        >>> check_seed(0)
        0
    """
    if isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed <= _LARGEST:
        return seed
    raise ConfigError(f"Expected a whole number from 0 to {_LARGEST}; the default is 0.", key, seed)

"""Where a batch holds its labels: a guess, a path, or the user's own function. Reads a batch and changes nothing."""

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["labels_of"]

_KEYS = ("labels", "label", "y", "target", "targets")  # of dictionaries, in this order


def labels_of(batch: Any, where: str | Callable[[Any], Any]) -> Any:
    """Return what stands in ``batch`` where its labels should be; ``None`` if a guess finds nothing.

    Args:
        batch: As the data loader gives it.
        where: ``"auto"``: the second entry of a tuple or list, or one of the usual keys; a dotted path of keys and
            positions such as ``"1"`` or ``"target.class"``; or a function of the batch.

    Raises:
        ValueError: If a path leads nowhere.

    Example:
        >>> labels_of({"x": 0, "target": {"class": 3}}, "target.class"), labels_of(("x", 3), "auto")
        (3, 3)
    """
    if callable(where):
        return where(batch)
    if where != "auto":
        return _follow(batch, where)
    if isinstance(batch, Mapping):
        return next((batch[key] for key in _KEYS if key in batch), None)
    return batch[1] if isinstance(batch, list | tuple) and len(batch) > 1 else None


def _follow(batch: Any, path: str) -> Any:
    for part in path.split("."):
        try:
            batch = batch[int(part)] if part.isdigit() and isinstance(batch, list | tuple) else batch[part]
        except (KeyError, IndexError, TypeError):
            raise ValueError(
                f"Expected `labels` to be a path into the batch, but got {path!r}, which ends at {part!r}; "
                f"the batch is a {type(batch).__name__}."
            ) from None
    return batch

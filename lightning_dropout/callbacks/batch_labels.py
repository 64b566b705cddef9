"""Where a batch holds its labels and inputs: a guess, a path, or the user's own function. Changes nothing."""

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["inputs_of", "labels_of"]

# Of dictionaries, in this order.
_KEYS = ("labels", "label", "y", "target", "targets")
_INPUT_KEYS = ("pixel_values", "images", "image", "inputs", "input", "x")


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


def inputs_of(batch: Any) -> Any:
    """Return what is probably the input: a lone tensor, the first entry, or one of the usual keys; ``None`` if none is.

    Example:
        >>> inputs_of(("x", "y")), inputs_of({"image": "x", "id": 3}), inputs_of({"id": 3})
        ('x', 'x', None)
    """
    if isinstance(batch, Mapping):
        return next((batch[key] for key in _INPUT_KEYS if key in batch), None)
    if isinstance(batch, list | tuple):
        return batch[0] if batch else None
    return batch


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

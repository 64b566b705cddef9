"""The names of a model's modules, as its user would write them, and patterns of names.

Wrappers such as DDP, FSDP, checkpointing and ``torch.compile`` leave no trace in a name.
"""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

__all__ = ["Patterns", "check_patterns", "join", "matches", "walk"]

Patterns = str | Sequence[str]

# Wrappers put these between a module and its children; nobody writes them into a pattern.
_WRAPPER_NAMES = frozenset({"_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod"})
_WRAPPERS_BY_CHILD = (nn.DataParallel, nn.parallel.DistributedDataParallel)  # their only child is called "module"


def walk(model: nn.Module) -> Iterator[tuple[str, nn.Module, list[nn.Module]]]:
    """Yield (canonical name, module, ancestors nearest first) for every place, so a shared module more than once."""

    def visit(module: nn.Module, path: tuple[str, ...], ancestors: list[nn.Module]) -> Iterator[Any]:
        if any(module is ancestor for ancestor in ancestors):  # a child that points back at its parent
            return
        wrapped = _WRAPPER_NAMES.intersection(module._modules.keys())  # TorchScript's cannot be iterated over
        is_wrapper = bool(wrapped) or isinstance(module, _WRAPPERS_BY_CHILD)
        if not is_wrapper:
            yield ".".join(path), module, ancestors
        above = ancestors if is_wrapper else [module, *ancestors]
        for child_name, child in module._modules.items():
            if child is not None:
                yield from visit(child, path if is_wrapper else (*path, child_name), above)

    yield from visit(model, (), [])


def join(name: str, attribute: str) -> str:
    """Return the dotted name of a part, without a dot where one of the two is empty."""
    return f"{name}.{attribute}" if name and attribute else name or attribute


def check_patterns(patterns: object, argument: str) -> None:
    """Raise unless ``patterns``, which the user has passed as ``argument``, is a pattern or a list of them."""
    if not isinstance(patterns, str) and not (
        isinstance(patterns, Sequence) and all(isinstance(pattern, str) for pattern in patterns)
    ):
        raise ValueError(
            f'Expected `{argument}` to be a pattern or a list of patterns such as "blocks.*", but got {patterns!r}.'
        )


def matches(name: str, patterns: Patterns) -> bool:
    """Tell whether a dotted name matches one of the glob patterns, each of which may begin at any dot.

    Example:
        >>> matches("net.blocks.0.drop", "blocks.*"), matches("net.blocks.0.drop", "locks.*")
        (True, False)
    """
    patterns = (patterns,) if isinstance(patterns, str) else patterns
    return any(fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}") for pattern in patterns)

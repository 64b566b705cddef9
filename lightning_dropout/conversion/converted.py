"""The class of a module whose branches were rewritten: its own class in all but ``forward``.

Names, weights, ``isinstance``, copies and pickles stay as they were. Which modules get one is decided elsewhere.
"""

import inspect
import types
from collections.abc import Mapping
from functools import cache
from typing import Any

from torch import nn

from lightning_dropout.conversion.branches import Rewriting, rewrite

__all__ = ["CONVERTED", "converted_class", "original_class", "rewritings", "runs_branches"]

CONVERTED = "_branches_are_functions"  # set in classes made here


class _Converted:
    """Mixed into the class: a copy or a pickle is made of the original class and of what was rewritten."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        cls = type(self)
        return _restored, (original_class(cls), *cls._made_of), self.__getstate__()  # type: ignore[attr-defined]


def original_class(cls: type) -> type:
    """Return the class that ``cls`` was made of, or itself."""
    return cls.__bases__[1] if CONVERTED in vars(cls) else cls


def rewritings(cls: type, paths: tuple[str, ...], insert: bool = False) -> Mapping[str, Rewriting]:
    """Return, for each method of ``cls`` that calls one of the drop paths, what becomes of it.

    With ``insert``: what becomes of ``forward`` if its residual sums get drop paths.
    """
    return _rewritings(tuple(_methods(original_class(cls)).items()), paths, insert)


@cache  # by its methods: those of a class may be replaced
def _rewritings(
    named: tuple[tuple[str, types.FunctionType], ...], paths: tuple[str, ...], insert: bool
) -> Mapping[str, Rewriting]:
    methods = dict(named)
    if insert:
        rewriting = rewrite(methods["forward"], paths, insert) if "forward" in methods else Rewriting()
        return {"forward": rewriting} if rewriting.inserted else {}
    names = {name: _names(inspect.unwrap(each).__code__) for name, each in methods.items()}
    used = {name: [path for path in paths if path in names[name]] for name in names}
    found = {name: rewrite(each, used[name]) for name, each in methods.items() if used[name]}
    return {name: rewriting for name, rewriting in found.items() if rewriting.done or rewriting.left}


def runs_branches(cls: type, path: str) -> bool:
    """Tell whether the methods of ``cls`` give their branches to the drop path ``path`` by themselves."""
    return any({path, "residual"} <= _names(each.__code__) for each in _methods(cls).values())


def _methods(cls: type) -> dict[str, types.FunctionType]:
    """Return what an instance runs by name, without what builds it."""
    found: dict[str, Any] = {}
    for base in cls.__mro__[: cls.__mro__.index(nn.Module)]:
        found = {**vars(base), **found}
    functions = {name: each for name, each in found.items() if isinstance(each, types.FunctionType)}
    return {name: _within(each) for name, each in functions.items() if name != "__init__"}


def _within(method: types.FunctionType) -> types.FunctionType:
    """Return the method without the checkpointing that transformers wraps around it, and around that of a subclass."""
    if method.__globals__.get("__name__") == "transformers.modeling_layers":
        inner: types.FunctionType = getattr(method, "__wrapped__", method)
        return inner
    return method


def _names(code: types.CodeType) -> set[str]:
    inner = (each for each in code.co_consts if isinstance(each, types.CodeType))
    return {*code.co_names}.union(*map(_names, inner))


def converted_class(cls: type, paths: tuple[str, ...], insert: bool = False) -> type:
    """Return a subclass of ``cls`` whose methods are those of :func:`rewritings`."""
    original = original_class(cls)
    return _converted_class(original, tuple(_methods(original).items()), paths, insert)


@cache  # one for each class, since another type is another graph
def _converted_class(
    cls: type, named: tuple[tuple[str, types.FunctionType], ...], paths: tuple[str, ...], insert: bool
) -> type:
    found = _rewritings(named, paths, insert)
    methods = {name: each.function for name, each in found.items() if each.function is not None}
    members = {
        **methods,
        CONVERTED: True,
        "_made_of": (paths, insert),
        "__module__": cls.__module__,
        "__doc__": cls.__doc__,
    }
    members["__qualname__"] = cls.__qualname__
    return type(cls.__name__, (_Converted, cls), members)


def _restored(cls: type, paths: tuple[str, ...], insert: bool) -> Any:
    made: Any = converted_class(cls, paths, insert)
    return made.__new__(made)

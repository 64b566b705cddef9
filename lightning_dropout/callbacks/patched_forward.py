"""Lend modules another ``forward`` for a while: the call is ours, what runs inside it is the module as it was.

Works on instances, in their ``__dict__``, and knows nothing of sampling. No forward is wrapped by ``functools.wraps``:
that would copy a compiled forward's markers, and the compiler would pass us by. A copy of a module, or a pickle, has
nothing of ours: our forward would call that of the original. So ``__reduce_ex__``, which both ask for, is lent as well.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn

__all__ = ["PatchedForwards"]

_ABSENT = object()
# What runs when a module is called; the second hides the first once a module was compiled in place.
_CALLED = ("forward", "_compiled_call_impl")

Run = Callable[[Callable[..., Any], Sequence[Any], Mapping[str, Any]], Any]


class PatchedForwards:
    """Attributes of modules that stand in for others until :meth:`give_back`.

    Example:
        >>> layer, forwards = nn.Linear(1, 1), PatchedForwards()
        >>> forwards.patch(layer, lambda original, args, kwargs: "ours")
        >>> layer(torch.ones(1))
        'ours'
        >>> forwards.give_back()
        >>> "forward" in vars(layer)
        False
    """

    def __init__(self) -> None:
        self._lent: list[tuple[dict[str, Any], str, Any, Any]] = []  # whose, name, what was there, what is there now

    def patch(self, module: nn.Module, run: Run) -> None:
        """Let every call of ``module`` be ``run(original, args, kwargs)``.

        Inside it nothing is patched, here or elsewhere: compiled code is met as its compiler has left it, so it neither
        breaks into parts around our wrappers nor compiles anew.
        """
        for name in _CALLED:
            original = getattr(module, name, None)
            if original is not None:
                self.lend(module, name, self._around(original, run))

    def lend(self, module: nn.Module, name: str, value: Callable[..., Any]) -> None:
        """Let ``module.name`` be ``value``."""
        held = vars(module)
        if not any(each is held for each, *_ in self._lent):
            self._lend(held, "__reduce_ex__", self._plain(module))
        self._lend(held, name, value)

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Give everything back until the block is left."""
        self._put_back()
        try:
            yield
        finally:
            for held, name, _, value in self._lent:
                held[name] = value

    def give_back(self) -> None:
        """Give everything back for good."""
        self._put_back()
        self._lent = []

    def _lend(self, held: dict[str, Any], name: str, value: Callable[..., Any]) -> None:
        self._lent.append((held, name, held.get(name, _ABSENT), value))
        held[name] = value

    def _plain(self, module: nn.Module) -> Callable[..., Any]:
        """Return the ``__reduce_ex__`` of ``module``, of what it holds without us."""

        def reduce(protocol: Any) -> tuple[Any, ...]:
            with self.suspended():
                parts = type(module).__reduce_ex__(module, protocol)
                return tuple({**part} if part is vars(module) else part for part in parts)

        return reduce

    def _put_back(self) -> None:
        for held, name, before, _ in reversed(self._lent):
            if before is _ABSENT:
                held.pop(name, None)
            else:
                held[name] = before

    def _around(self, original: Callable[..., Any], run: Run) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.suspended():
                return run(original, args, kwargs)

        with suppress(TypeError, ValueError):  # transformers' `generate` reads there what it may pass on
            call.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
        # Around compiled code, never part of it: the compiler can follow neither seeds nor flags.
        return torch.compiler.disable(call)  # type: ignore[no-untyped-call, no-any-return]

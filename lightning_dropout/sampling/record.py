"""The record of a pass: what it did before its first random draw, watched once and replayed often.

While it is watched, global module hooks and a function mode see every call. A call that has returned is an event; what
is still alive at the first draw is kept, since nothing else can be used after it. In a replay each event gives out what
it returned, and the code between events runs as always. Whether a replay may be trusted is decided in ``reuse.py``.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import MethodWrapperType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    _global_forward_hooks_with_kwargs,
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.overrides import TorchFunctionMode, _get_current_function_mode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten
from torch.utils.weak import TensorWeakRef

from lightning_dropout.randomness import OwnGenerator, all_states
from lightning_dropout.sampling.activation import lend_forward
from lightning_dropout.sampling.witness import same_values
from lightning_dropout.sites.observation import drop_rate

__all__ = ["PLAIN", "DivergedError", "Knowledge", "Record"]

# Functions that draw whatever their arguments are. One that is missing here is found by the state that it moves, which
# costs two more passes.
_DRAWS = frozenset(
    [
        "bernoulli",
        "bernoulli_",
        "binomial",
        "cauchy_",
        "exponential_",
        "geometric_",
        "log_normal_",
        "multinomial",
        "normal",
        "normal_",
        "poisson",
        "rand",
        "rand_like",
        "randint",
        "randint_like",
        "randn",
        "randn_like",
        "randperm",
        "random_",
        "uniform_",
    ]
)
PLAIN = (type(None), bool, int, float, complex, str, torch.dtype, torch.device, torch.layout, torch.memory_format)
_WATCHING = -1


@dataclass
class Knowledge:
    """What has been learned about one model and its drawing layers."""

    # Sequences of events that were replayed and compared, with the kept tensors that passes change in place.
    changed: dict[tuple[Any, ...], frozenset[int]] = field(default_factory=dict)
    last_look: int | None = None  # where to stop watching, since what draws behind it cannot be seen
    searching: bool = False  # for that place
    open: set[int] = field(default_factory=set)  # modules that keep tensors to themselves: they run in every pass
    note: str = ""  # why its passes run in full from now on


class _Position(int):
    """Where a tensor stands among all that the events returned; the same one whatever else is alive."""


@dataclass
class _Event:
    """A call that had returned before the first draw: of a module, or of a torch function between modules."""

    source: Any  # the module, or the function
    leaves: list[Any]  # of what it returned; tensors by weak reference while watching
    spec: TreeSpec | None  # None: a single leaf
    # What was made inside a module and still lives, with the modules around it.
    made: list[tuple[TensorWeakRef, tuple[int, ...]]] = field(default_factory=list)
    runs: bool = False  # without a tensor in its arguments or result, such as setting the grad mode: it runs every time


class DivergedError(Exception):
    """A replayed pass did something else than the watched one."""


class _Gone(Tensor):
    """Stands for a tensor that nothing needs after the first draw: all that can be done is to hand it on."""

    @staticmethod
    def __new__(cls) -> "_Gone":
        gone: _Gone = Tensor._make_wrapper_subclass(cls, (0,))
        return gone

    @classmethod
    def __torch_dispatch__(cls, *_: Any, **__: Any) -> Any:
        raise DivergedError("code that cannot be watched, such as a scripted function, runs before the first draw")


_GONE = _Gone()


class Record(TorchFunctionMode):
    """What one pass did before its first draw: watched once, replayed often."""

    def __init__(
        self,
        drawing: frozenset[int],
        generators: Sequence[torch.Generator],
        own: Sequence[OwnGenerator],
        knowledge: Knowledge,
    ) -> None:
        super().__init__()
        self._drawing, self._generators, self._own, self._knowledge = drawing, generators, own, knowledge
        self.seconds = self.prefix_seconds = 0.0
        self.usable = False  # from the first draw on, unless something has drawn unseen or changed what is kept
        self.verified = False
        self._events: list[_Event] = []
        self._kept: dict[int, Tensor] = {}  # alive at the first draw, by position
        self._changed: frozenset[int] = frozenset()  # positions of those that passes change in place
        self._last_lent: nn.Module | None = None  # the first module that is called once drawing has begun
        self._next = _WATCHING  # event to be replayed

    # --- watching ---------------------------------------------------------------------------------------------------

    def watch(self, forward: Callable[[], Any]) -> Any:
        """Run a pass in full and remember what came before its first draw."""
        self._open: list[tuple[nn.Module, int]] = []  # modules that run, and the number of events before each
        self._hooked: set[int] = set()  # positions in `_open` of modules in which hooks run: these run every time
        self._looks = 0
        self._busy = self._ended = False
        self._thread = threading.get_ident()
        self._states = all_states(self._generators, self._own)
        self._started = time.perf_counter()
        with ExitStack() as self._hooks:
            self._hooks.callback(register_module_forward_pre_hook(self._enter_module).remove)
            self._hooks.callback((hook := register_module_forward_hook(self._leave_module, with_kwargs=True)).remove)
            self._hooks.callback(_global_forward_hooks_with_kwargs.pop, hook.id, None)  # torch forgets to
            with self._pushed():
                output = forward()
        self.seconds = time.perf_counter() - self._started
        if self.usable:
            with torch._C.DisableTorchFunction():
                self._note_changes(self._kept)
        return output

    @contextmanager
    def _pushed(self) -> Iterator[None]:
        with ExitStack() as self._pushes:
            # Under a function mode, a function that the model has compiled would be compiled anew, or for ever skipped.
            if "torch._dynamo" in sys.modules:
                self._pushes.enter_context(torch.compiler.set_stance("force_eager"))
            self._pushes.enter_context(self)
            yield

    def _pop(self) -> None:
        """Leave the stack of function modes, on which every function would go on to cost a look."""
        if _get_current_function_mode() is self:  # type: ignore[no-untyped-call]
            self._pushes.close()

    def _passes_by(self) -> bool:
        return self._ended or self._busy or threading.get_ident() != self._thread

    def _enter_module(self, module: nn.Module, inputs: Any) -> None:
        if not self._passes_by():
            if id(module) in self._drawing:
                self._end()
            elif not self._look():
                if module._forward_hooks or module._forward_pre_hooks:
                    self._hooked.update(range(len(self._open) + 1))
                self._open.append((module, len(self._events)))
        if self._ended and threading.get_ident() == self._thread:
            self._last_lent = module
            self._hooks.close()
            self._pop()

    def _leave_module(
        self, module: nn.Module, inputs: tuple[Any, ...], named_inputs: dict[str, Any], output: Any
    ) -> None:
        if self._passes_by() or self._look():
            return
        while self._open:  # an exception that the model has caught leaves some behind
            opened, start = self._open.pop()
            hooked = len(self._open) in self._hooked
            self._hooked.discard(len(self._open))
            if opened is module:
                # One event in place of all that happened inside, unless it may have left something in its arguments.
                closed = not hooked and id(module) not in self._knowledge.open
                closed = closed and all(map(_is_value, (*inputs, *named_inputs.values())))
                event = self._event(module, output) if closed else None
                if event is not None:
                    for inner in self._events[start:]:
                        for leaf in inner.leaves:
                            if type(leaf) is TensorWeakRef and leaf() is not None:
                                event.made.append((leaf, (id(module),)))
                        for made, modules in inner.made:
                            if made() is not None:
                                event.made.append((made, (*modules, id(module))))
                    self._events[start:] = [event]
                return

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._next != _WATCHING:
            return self._replay_function(func, args, kwargs)
        if self._passes_by():
            return func(*args, **kwargs)
        if _draws(func, args, kwargs):
            self._end()
        if self._ended or self._look():
            return func(*args, **kwargs)
        self._busy = True
        try:
            result = func(*args, **kwargs)
            event = self._event(_function(func), result)
            if (event is None or result is None) and not any(
                isinstance(leaf, Tensor) for leaf in tree_leaves((args, kwargs))
            ):
                event = _Event(_function(func), [], None, runs=True)
        finally:
            self._busy = False
        if event is None:  # it cannot be given out again, so it runs in every pass, and so does what follows it
            self._end()
        else:
            self._events.append(event)
        return result

    def _event(self, source: Any, output: Any) -> _Event | None:
        """Return the event of a call; ``None`` if its output holds more than tensors and plain values."""
        if type(output) is Tensor:
            return _Event(source, [TensorWeakRef(output)], None)
        if isinstance(output, PLAIN):
            return _Event(source, [output], None)
        was, self._busy = self._busy, True
        leaves, spec = tree_flatten(output)
        self._busy = was
        if not all(isinstance(leaf, PLAIN) or type(leaf) in (Tensor, nn.Parameter) for leaf in leaves):
            return None
        return _Event(source, [TensorWeakRef(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec)

    def _look(self) -> bool:
        """Tell whether watching ends here: behind this place, something draws that cannot be seen."""
        if self._knowledge.last_look == self._looks or (self._knowledge.searching and self._has_drawn()):
            self._end()
        else:
            self._looks += 1
        return self._ended

    def _has_drawn(self) -> bool:
        with torch._C.DisableTorchFunction():  # our own look at a state is none of the model's calls
            return all_states(self._generators, self._own) != self._states

    def _end(self) -> None:
        """Stop watching, since the first draw comes now; keep what is alive."""
        self.prefix_seconds = time.perf_counter() - self._started
        self._ended = True
        self._open = []
        knowledge = self._knowledge
        if not self._has_drawn():
            with torch._C.DisableTorchFunction():
                self._keep()
        elif knowledge.searching:  # the last look was the last place behind which nothing had drawn
            knowledge.searching, knowledge.last_look = False, self._looks - 1
        elif knowledge.last_look is None:
            knowledge.searching = True
        else:
            knowledge.note = "something draws at random that cannot be seen"

    def _keep(self) -> None:
        positions: dict[int, _Position] = {}
        place = 0
        for event in self._events:
            for index, leaf in enumerate(event.leaves):
                place += 1
                if isinstance(leaf, TensorWeakRef):
                    tensor = leaf()
                    if tensor is None or isinstance(tensor, nn.Parameter):
                        event.leaves[index] = _GONE if tensor is None else tensor
                    else:
                        event.leaves[index] = position = positions.setdefault(id(tensor), _Position(place))
                        self._kept[position] = tensor
        changed = self._knowledge.changed.get(self._signature)
        self.verified = changed is not None
        self._changed = changed or frozenset()
        # What follows in this pass may change the others. In inference mode it would leave no trace on them.
        copied = {
            position: tensor
            for position, tensor in self._kept.items()
            if changed is None or position in changed or tensor.is_inference()
        }
        try:
            keepers = self._keepers()
            self._kept |= _copies(copied)
        except Exception as error:
            self._knowledge.note = f"what is needed after the first draw cannot be copied: {error}"
            return
        if keepers - self._knowledge.open:  # what follows may change what they keep; watched anew, they are open
            self._knowledge.open |= keepers
            return
        self._versions = _versions(self._kept, self._changed)
        self.usable = True

    def _keepers(self) -> set[int]:
        """Return the modules that keep a tensor made inside them which is no part of what they returned."""
        memory = {tensor.untyped_storage()._cdata for tensor in self._kept.values()}
        alive = ((reference(), modules) for event in self._events for reference, modules in event.made)
        return {
            module
            for tensor, modules in alive
            if tensor is not None and tensor.untyped_storage()._cdata not in memory
            for module in modules
        }

    def _note_changes(self, given: Mapping[int, Tensor]) -> None:
        """Remember which of the tensors that a pass was given it has changed: other passes get copies of them."""
        memory = {
            given[position].untyped_storage()._cdata
            for position, version in self._versions.items()
            if given[position]._version != version
            # What numpy writes is not counted; so once, before they are trusted, the values are compared as well.
            or (given[position] is not self._kept[position] and not same_values(given[position], self._kept[position]))
        }
        if memory:
            self.usable = not self.verified  # else it was no copy
            self._changed |= {p for p, tensor in given.items() if tensor.untyped_storage()._cdata in memory}
            if self.verified:
                self._knowledge.changed[self._signature] = self._changed

    # --- replaying --------------------------------------------------------------------------------------------------

    @property
    def _signature(self) -> tuple[Any, ...]:
        return tuple(
            id(event.source) if isinstance(event.source, nn.Module) else event.source for event in self._events
        )

    def accept(self) -> None:
        """Take replayed passes for equal to those that run in full, from now on and for other batches."""
        self.verified = True
        self._knowledge.changed[self._signature] = self._changed

    def replay(self, forward: Callable[[], Any]) -> Any:
        """Run a pass from its first draw on.

        Raises:
            DivergedError: If it comes to another sequence of calls.
        """
        with torch._C.DisableTorchFunction():
            copied = {p: tensor for p, tensor in self._kept.items() if not self.verified or p in self._changed}
            self._given = self._kept | _copies(copied)
            self._versions = _versions(self._given, self._changed)
        self._next, self._diverged = 0, False
        modules = {id(event.source): event.source for event in self._events if isinstance(event.source, nn.Module)}
        if self._last_lent is not None:  # there, a replay can leave the stack of function modes
            modules[id(self._last_lent)] = self._last_lent
        with ExitStack() as stack:
            for module in modules.values():
                self._lend_forward(module, stack)
            with self._pushed():
                output = forward()
        if self._diverged or self._next < len(self._events):
            raise DivergedError("a pass called other functions before its first draw than the one before it")
        with torch._C.DisableTorchFunction():
            self._note_changes(self._given)
        self._given = {}
        return output

    def _lend_forward(self, module: nn.Module, stack: ExitStack) -> None:
        original = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() == self._thread:
                if self._next == len(self._events):
                    self._pop()
                elif self._events[self._next].source is module:
                    return self._give_out(self._take(module))
            return original(*args, **kwargs)  # maybe watched inside: called as `forward`, or with a list to write into

        lend_forward(stack, module, forward)

    def _replay_function(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if self._next == len(self._events):
            return func(*args, **kwargs)
        event = self._take(_function(func))
        return func(*args, **kwargs) if event.runs else self._give_out(event)

    def _take(self, source: Any) -> _Event:
        """Return the next event; it must be one of ``source``."""
        event = self._events[self._next]
        if event.source is not source and event.source != source:
            self._diverged = True  # whoever catches the error: the pass is void
            raise DivergedError("a pass called other functions before its first draw than the one before it")
        self._next += 1
        return event

    def _give_out(self, event: _Event) -> Any:
        leaves = [self._given[leaf] if type(leaf) is _Position else leaf for leaf in event.leaves]
        return leaves[0] if event.spec is None else tree_unflatten(leaves, event.spec)


def _is_value(argument: Any) -> bool:
    """Tell whether a module cannot put anything into an argument; into a list or a key-value cache it can."""
    if isinstance(argument, tuple):
        return all(map(_is_value, argument))
    return isinstance(argument, PLAIN) or type(argument) in (Tensor, nn.Parameter)


def _draws(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Tell whether a call of a torch function draws; in doubt it does."""
    if getattr(func, "__name__", "") in _DRAWS or kwargs.get("generator") is not None:
        return True
    try:
        return drop_rate(func, args, kwargs) is not None
    except Exception:  # the name of a function that drops, and other arguments
        return True


def _function(func: Callable[..., Any]) -> Any:
    # The getter of a property, such as `shape`, is bound anew at each use.
    return func.__self__ if isinstance(func, MethodWrapperType) else func


def _copies(tensors: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Copy tensors together with the memory that they share, so that a change of one is a change of the others."""
    memory: dict[int, torch.UntypedStorage] = {}
    copies = {}
    with torch.inference_mode(False):  # made in inference mode, they would not count their changes
        for position, tensor in tensors.items():
            storage = tensor.untyped_storage()
            if storage._cdata not in memory:
                memory[storage._cdata] = storage.clone()  # type: ignore[no-untyped-call]
            twin = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(
                memory[storage._cdata], tensor.storage_offset(), tensor.size(), tensor.stride()
            )
            twin = twin.conj() if tensor.is_conj() else twin
            copies[position] = twin._neg_view() if tensor.is_neg() else twin
    return copies


def _versions(tensors: Mapping[int, Tensor], but: frozenset[int]) -> dict[int, int]:
    return {position: tensor._version for position, tensor in tensors.items() if position not in but}

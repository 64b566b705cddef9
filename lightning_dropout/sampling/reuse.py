"""Prefix reuse: what runs before the first random draw of a pass is the same in every pass, so it runs once.

The first pass of a batch is watched until its first draw. What its modules and functions have returned by then is given
out again in the later passes, in the same order, while the code between them runs as always. Nothing here knows what
an output means. Where a replay cannot be shown to equal a pass that runs in full, the pass runs in full.
"""

import copy
import random
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import MethodWrapperType
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.module import (
    _global_forward_hooks,
    _global_forward_hooks_with_kwargs,
    _global_forward_pre_hooks,
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.overrides import TorchFunctionMode, _get_current_function_mode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten
from torch.utils.weak import TensorWeakRef

from lightning_dropout.randomness import random_states
from lightning_dropout.sampling.witness import same_values
from lightning_dropout.sites import Site
from lightning_dropout.sites.compilation import compiled_roots
from lightning_dropout.sites.observation import drop_rate

__all__ = ["PrefixReuse", "Reuse", "obstacle_of"]

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
_PLAIN = (type(None), bool, int, float, complex, str, torch.dtype, torch.device, torch.layout, torch.memory_format)
# Layers that draw inside one call, though they have children or several functions in them.
_DRAWING_LAYERS = (nn.MultiheadAttention, nn.RNNBase)
_MAX_SIGNATURES = 64  # of one model: more means that its control flow never repeats
_MAX_WATCHED = 3  # passes of one batch: to see that something drew unseen, to find where, and to stop there
_DISTRIBUTED = ("torch.nn.parallel.distributed", "torch.distributed.")  # modules whose forward talks to other ranks
_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
_WATCHING = -1
_ABSENT = object()


@dataclass(frozen=True)
class Reuse:
    """What prefix reuse has saved in one prediction.

    Args:
        share: Part of a full pass's time that was spent before its first random draw, in [0, 1].
        passes: How many passes were spared that part.
        seconds: Time that they would have spent there.
        note: Why passes ran in full; empty if nothing stood in the way.
    """

    share: float = 0.0
    passes: int = 0
    seconds: float = 0.0
    note: str = ""


@dataclass
class _Knowledge:
    """What has been learned about one model and its drawing layers."""

    # Sequences of events that were replayed and compared, with the kept tensors that passes change in place.
    changed: dict[tuple[Any, ...], frozenset[int]] = field(default_factory=dict)
    last_look: int | None = None  # where to stop watching, since what draws behind it cannot be seen
    searching: bool = False  # for that place
    note: str = ""  # why its passes run in full from now on


# By the model, and there by the layers that draw.
_KNOWLEDGE: "weakref.WeakKeyDictionary[nn.Module, dict[frozenset[int], _Knowledge]]" = weakref.WeakKeyDictionary()


class _Position(int):
    """Where a tensor stands among all that the events returned; the same one whatever else is alive."""


@dataclass
class _Event:
    """A call that had returned before the first draw: of a module, or of a torch function between modules."""

    source: Any  # the module, or the function
    leaves: list[Any]  # of what it returned; tensors by weak reference while watching
    spec: TreeSpec | None  # None: a single leaf
    runs: bool = False  # without a tensor in its arguments or result, such as setting the grad mode: it runs every time


class _DivergedError(Exception):
    """A replayed pass did something else than the watched one."""


class _Gone(Tensor):
    """Stands for a tensor that nothing needs after the first draw: all that can be done is to hand it on."""

    @staticmethod
    def __new__(cls) -> "_Gone":
        gone: _Gone = Tensor._make_wrapper_subclass(cls, (0,))
        return gone

    @classmethod
    def __torch_dispatch__(cls, *_: Any, **__: Any) -> Any:
        raise _DivergedError("code that cannot be watched, such as a scripted function, runs before the first draw")


_GONE = _Gone()


def obstacle_of(model: nn.Module) -> str:
    """Return why the passes of ``model`` must run in full, or nothing."""
    if compiled_roots(model):
        return "compiled code cannot be watched"
    if any(isinstance(part, nn.DataParallel) for part in model.modules()):
        return "DataParallel runs the model on several threads"
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1 and _communicates(model):
        return "the ranks of a distributed model must run the same passes"
    return ""


def _communicates(model: nn.Module) -> bool:
    wrapped = any(type(part).__module__.startswith(_DISTRIBUTED) for part in model.modules())
    return wrapped or any(hasattr(parameter, "device_mesh") for parameter in model.parameters())


class PrefixReuse:
    """The passes of one batch: the first in full, the others from their first draw on.

    Args:
        model: Whose passes they are.
        sites: The places that draw, with the rates that they have in these passes.
        generators: torch's global generators that the model may draw from.

    Example:
        >>> from lightning_dropout.sites import find_sites
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Dropout(0.5))
        >>> reuse = PrefixReuse(model, find_sites(model), [torch.default_generator])
        >>> x = torch.ones(1, 2)
        >>> for seed in range(4):
        ...     _ = reuse.run(lambda: torch.manual_seed(seed), lambda: model(x))
        >>> reuse.report.passes, reuse.report.note  # one was watched, one ran in full and was compared
        (2, '')
    """

    def __init__(self, model: nn.Module, sites: Sequence[Site], generators: Sequence[torch.Generator]) -> None:
        users = [user for site in sites if site.rate > 0.0 for user in site.users]
        # Entering one of these is the first draw, also where it moves no global state: it may have its own generator.
        self._drawing = frozenset(
            id(user.module)
            for user in users
            if isinstance(user.module, _DRAWING_LAYERS) or next(user.module.children(), None) is None
        )
        self._knowledge = _KNOWLEDGE.setdefault(model, {}).setdefault(self._drawing, _Knowledge())
        self._model, self._generators = model, generators
        self._note = ""
        self._record: _Record | None = None
        self._watched = self._replayed = 0
        self._seconds = self._prefix_seconds = 0.0

    @property
    def report(self) -> Reuse:
        """What was saved so far."""
        note = self._knowledge.note or self._note
        if not self._replayed:
            return Reuse(note=note)
        share = self._prefix_seconds / self._seconds
        return Reuse(share, self._replayed, self._prefix_seconds * self._replayed, note)

    def run(self, prepare: Callable[[], object], forward: Callable[[], Any]) -> Any:
        """Return the output of one pass.

        Args:
            prepare: Seeds the pass; called twice where a pass is repeated.
            forward: Calls the model.
        """
        record, self._record = self._record, None
        failure: Exception | None = None
        if record is not None and record.verified:
            try:
                prepare()
                output = record.replay(forward)
            except Exception as error:
                failure = error
            else:
                self._replayed += 1
                self._record = record if record.usable else None
                return output
        if record is not None and not record.verified:
            return self._verify(record, prepare, forward)
        prepare()
        if failure is None and not self._knowledge.note and self._watched < _MAX_WATCHED:
            return self._watch(forward)
        output = forward()
        if failure is not None:  # an error of the model's own has come again by now
            self._give_up(failure)
        return output

    def _watch(self, forward: Callable[[], Any]) -> Any:
        if _global_forward_hooks or _global_forward_pre_hooks:
            self._note = "hooks on all modules run in every pass"
            return forward()
        self._watched += 1
        record = _Record(self._drawing, self._generators, self._knowledge)
        output = record.watch(forward)
        self._seconds, self._prefix_seconds = record.seconds, record.prefix_seconds
        if record.usable:
            self._record = record
        return output

    def _verify(self, record: "_Record", prepare: Callable[[], object], forward: Callable[[], Any]) -> Any:
        """Run a pass in full, and compare it with the same pass replayed."""
        own = _own_generators(self._model)
        try:
            copies = copy.deepcopy([held[name] for held, name in own])  # they draw the same again
        except Exception as error:
            self._give_up(error)
            prepare()
            return forward()
        prepare()
        output = forward()
        try:
            with _lent(own, copies):
                prepare()
                self._require_equal(output, record.replay(forward))
        except Exception as error:
            self._give_up(error)
        else:
            record.accept()
            self._record = record
        return output

    def _require_equal(self, output: Any, again: Any) -> None:
        if not _same(output, again):
            raise _DivergedError("the outputs of a replayed pass were others")
        if len(self._knowledge.changed) >= _MAX_SIGNATURES:
            raise _DivergedError("passes begin in too many different ways")

    def _give_up(self, error: Exception) -> None:
        reason = (str(error).splitlines() or [""])[0]
        reason = reason if isinstance(error, _DivergedError) else f"{type(error).__name__}: {reason}"
        self._knowledge.note = f"reusing what comes before the first draw failed: {reason}"


class _Record(TorchFunctionMode):
    """What one pass did before its first draw: watched once, replayed often."""

    def __init__(self, drawing: frozenset[int], generators: Sequence[torch.Generator], knowledge: _Knowledge) -> None:
        super().__init__()
        self._drawing, self._generators, self._knowledge = drawing, generators, knowledge
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
        self._states = random_states(self._generators)
        self._started = time.perf_counter()
        with ExitStack() as self._hooks:
            self._hooks.callback(register_module_forward_pre_hook(self._enter_module).remove)
            leaving = register_module_forward_hook(self._leave_module, with_kwargs=True)
            self._hooks.callback(_global_forward_hooks_with_kwargs.pop, leaving.id, None)  # torch forgets to
            self._hooks.callback(leaving.remove)
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
                closed = not hooked and all(map(_is_value, (*inputs, *named_inputs.values())))
                event = self._event(module, output) if closed else None
                if event is not None:
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
        if isinstance(output, _PLAIN):
            return _Event(source, [output], None)
        was, self._busy = self._busy, True
        leaves, spec = tree_flatten(output)
        self._busy = was
        if not all(isinstance(leaf, _PLAIN) or type(leaf) in (Tensor, nn.Parameter) for leaf in leaves):
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
            return random_states(self._generators) != self._states

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
            self._kept |= _copies(copied)
        except Exception as error:
            self._knowledge.note = f"what is needed after the first draw cannot be copied: {error}"
            return
        self._versions = _versions(self._kept, self._changed)
        self.usable = True

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
            _DivergedError: If it comes to another sequence of calls.
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
            raise _DivergedError("a pass called other functions before its first draw than the one before it")
        with torch._C.DisableTorchFunction():
            self._note_changes(self._given)
        self._given = {}
        return output

    def _lend_forward(self, module: nn.Module, stack: ExitStack) -> None:
        original, held = module.forward, vars(module)
        before = held.get("forward", _ABSENT)
        if before is _ABSENT:
            stack.callback(held.pop, "forward", None)
        else:
            stack.callback(held.__setitem__, "forward", before)

        def forward(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() == self._thread:
                if self._next == len(self._events):
                    self._pop()
                elif self._events[self._next].source is module:
                    return self._give_out(self._take(module))
            return original(*args, **kwargs)  # maybe watched inside: called as `forward`, or with a list to write into

        held["forward"] = forward

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
            raise _DivergedError("a pass called other functions before its first draw than the one before it")
        self._next += 1
        return event

    def _give_out(self, event: _Event) -> Any:
        leaves = [self._given[leaf] if type(leaf) is _Position else leaf for leaf in event.leaves]
        return leaves[0] if event.spec is None else tree_unflatten(leaves, event.spec)


def _own_generators(model: nn.Module) -> list[tuple[dict[str, Any], str]]:
    """Return where modules hold generators of their own, which no seed of a pass reaches."""
    held = (vars(module) for module in model.modules())
    return [
        (attributes, name) for attributes in held for name in attributes if isinstance(attributes[name], _GENERATORS)
    ]


@contextmanager
def _lent(places: Sequence[tuple[dict[str, Any], str]], values: Sequence[Any]) -> Iterator[None]:
    with ExitStack() as stack:
        for (held, name), value in zip(places, values, strict=True):
            stack.callback(held.__setitem__, name, held[name])
            held[name] = value
        yield


def _is_value(argument: Any) -> bool:
    """Tell whether a module cannot put anything into an argument; into a list or a key-value cache it can."""
    if isinstance(argument, tuple):
        return all(map(_is_value, argument))
    return isinstance(argument, _PLAIN) or type(argument) in (Tensor, nn.Parameter)


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


def _same(one: Any, other: Any) -> bool:
    """Tell whether two outputs are equal in everything that they hold."""
    (leaves, spec), (others, other_spec) = tree_flatten(one), tree_flatten(other)
    return spec == other_spec and all(_same_leaf(leaf, twin) for leaf, twin in zip(leaves, others, strict=True))


def _same_leaf(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return same_values(one, other)
    if isinstance(one, _PLAIN):
        return repr(one) == repr(other)  # so NaN equals NaN
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    return one is other or (bool(vars(one)) and _same(vars(one), vars(other)))

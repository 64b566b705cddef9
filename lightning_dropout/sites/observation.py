"""The observer: what a forward really drops and draws, and whose code does it.

Sees, while it happens, every torch function that drops or draws, and between the modules of the model what is no torch
function (TorchScript, numpy, Python's ``random``). It only looks: nothing is computed differently, drawn or kept. What
the events mean for the sites of a model is said in ``comparison.py``.
"""

import inspect
import numbers
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from lightning_dropout.randomness import generators_of, random_states, torch_states

__all__ = ["HIDDEN_FROM_TORCH", "Event", "Observer", "drop_rate"]

# The operation of an event of which only the moved generator is known: that of ...
HIDDEN_FROM_TORCH = "hidden draw (torch)"
_HIDDEN = (HIDDEN_FROM_TORCH, "hidden draw (numpy)", "hidden draw (random)")

_TORCH_FOLDER = str(Path(torch.__file__).parent)
_INIT_FILE = str(Path(torch.nn.init.__file__))
# Modules whose code calls torch functions only: no need to look for hidden draws around them.
_OPEN_LIBRARIES = ("torch.nn.", "lightning_dropout.")
# Half of all calls. They compute nothing, so they draw nothing.
_LOOKS = frozenset({"__get__", "size", "dim"})
_WITH_FAST_PATH = (nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.MultiheadAttention)


@dataclass(frozen=True)
class Event:
    """One way in which a forward dropped or drew.

    Args:
        module: The module of the model whose code did it.
        operation: Name of the torch function; ``"hidden draw (torch)"``, ``(numpy)`` or ``(random)`` if it was none.
        rate: The probability that the function was given, in [0, 1] (for ``bernoulli`` it may be that of keeping);
            ``None`` for a draw that has none, such as ``rand``.
        file: Where the call stands, empty if unknown; of a hidden draw, where the module's forward does.
        line: Its line.
    """

    module: nn.Module
    operation: str
    rate: float | None
    file: str
    line: int


class Observer(TorchFunctionMode):
    """Records what ``model`` drops and draws while the observer is entered.

    Calls of other threads are left out, but their draws from the generators that all threads share may look like hidden
    ones. A ``numpy.random.Generator`` of the model's own cannot be seen. Entered again, it adds to what it has.

    Args:
        model: Whose modules the events are attributed to. Must not be compiled, or run with
            ``torch.compiler.set_stance("force_eager")``: functions inside compiled code cannot be seen.

    Attributes:
        events: How often each event happened.
        called: Identities (``id``) of the modules that were called.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1))
        >>> with Observer(model) as observer:
        ...     _ = model(torch.ones(1, 2))
        >>> [(event.operation, event.rate, event.module is model[1]) for event in observer.events]
        [('dropout', 0.1, True)]
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.events: Counter[Event] = Counter()
        self.called: set[int] = set()

    def __enter__(self) -> "Observer":
        self._thread = threading.get_ident()
        # A Linear patched with a forward of its own is no longer torch's.
        modules = list(self.model.modules())
        self._watched = {
            id(module): "forward" in vars(module) or not f"{type(module).__module__}.".startswith(_OPEN_LIBRARIES)
            for module in modules
        }
        self._running: list[nn.Module] = []
        self._busy = False  # in a torch function: what that calls, as a backward does, is no forward of the model
        self._unseen: tuple[nn.Module, Any] | None = None
        self._generators = generators_of(modules)
        self._torch_state, *self._other_states = random_states(self._generators)
        self._stack = ExitStack()
        if any(type(module).__module__ == "torch._dynamo.eval_frame" for module in modules):
            self._stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", "Using `torch.compile.module.` when there are global hooks")
        # Global hooks: with any of their own, torch's Transformer layers leave their fast path.
        self._stack.callback(register_module_forward_pre_hook(self._before).remove)
        self._stack.callback(register_module_forward_hook(self._after, always_call=True).remove)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, traceback)  # type: ignore[no-untyped-call]
        self._see_again()
        self._stack.close()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _LOOKS:
            return func(*args, **kwargs)
        self._busy = True
        try:
            self._note_torch(sys._getframe(1))
            result = func(*args, **kwargs)
            before, self._torch_state = self._torch_state, torch_states(self._generators)
            rate = drop_rate(func, args, kwargs)
            if rate is not None or before != self._torch_state or kwargs.get("generator") is not None:
                self._record(name, rate, sys._getframe(1))
        finally:
            self._busy = False
        return result

    def _before(self, module: nn.Module, inputs: Any) -> None:
        if not self._concerns(module):
            return
        self.called.add(id(module))
        if self._watched[id(module)]:
            self._note_hidden()
            self._running.append(module)
        if self._unseen is None and _may_be_fast(module):
            # A function mode would keep it off its fast path, which gives other outputs where padding is.
            self._unseen = module, torch._C.DisableTorchFunction()
            self._unseen[1].__enter__()

    def _after(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if not self._concerns(module):
            return
        if self._unseen is not None and self._unseen[0] is module:
            self._see_again()
        if self._running and self._running[-1] is module:
            self._note_hidden()
            self._running.pop()

    def _concerns(self, module: nn.Module) -> bool:
        return id(module) in self._watched and not self._busy and threading.get_ident() == self._thread

    def _see_again(self) -> None:
        if self._unseen is not None:
            self._unseen[1].__exit__(None, None, None)
            self._unseen = None

    def _note_torch(self, frame: FrameType) -> None:
        """Record a draw that has happened since the last look, by the code that makes the present call."""
        before, self._torch_state = self._torch_state, torch_states(self._generators)
        if before != self._torch_state and self._running:
            self._record(HIDDEN_FROM_TORCH, None, frame)

    def _note_hidden(self) -> None:
        """Record draws that have happened since the last look, by the innermost module that runs."""
        before = self._torch_state, *self._other_states
        with torch._C.DisableTorchFunction():  # our own look at a state is none of the model's calls
            self._torch_state, *self._other_states = random_states(self._generators)
        after = self._torch_state, *self._other_states
        if before == after or not self._running:  # outside of its modules it was, again, who calls the model
            return
        module = self._running[-1]
        code = getattr(inspect.unwrap(module.forward), "__code__", None)
        where = (code.co_filename, code.co_firstlineno) if code is not None else ("", 0)
        for operation, old, new in zip(_HIDDEN, before, after, strict=True):
            if old != new:
                self.events[Event(module, operation, None, *where)] += 1

    def _record(self, operation: str, rate: float | None, frame: FrameType | None) -> None:
        """Record an event at the innermost module whose code stands above ``frame``: its first argument is the module.

        Whatever that argument is called: functions outside of classes are handed the module they work for, too.
        """
        place: FrameType | None = None
        while frame is not None:
            code = frame.f_code
            if code.co_filename == _INIT_FILE:  # a parameter that is created now
                return
            first = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
            belongs = id(first) in self._watched
            if place is None and (belongs or not code.co_filename.startswith(_TORCH_FOLDER)):
                place = frame
            if belongs:
                break
            frame = frame.f_back
        if frame is None and rate is None:  # a draw of who calls the model: a mixup, another callback
            return
        owner: Any = self.model if frame is None else first
        where = (place.f_code.co_filename, place.f_lineno) if place is not None else ("", 0)
        self.events[Event(owner, operation, rate, *where)] += 1


def _may_be_fast(module: nn.Module) -> bool:
    """Tell whether torch may run ``module`` in one fused call, in which nothing drops."""
    if not isinstance(module, _WITH_FAST_PATH):
        return False
    layer = module.layers[0] if isinstance(module, nn.TransformerEncoder) else module
    differentiated = torch.is_grad_enabled() and all(parameter.requires_grad for parameter in module.parameters())
    return not (layer.training or differentiated)


def drop_rate(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> float | None:
    """Return the rate at which this call of a torch function drops, ``None`` if it drops nothing.

    Example:
        >>> from torch.nn.functional import dropout
        >>> drop_rate(dropout, (torch.ones(2), 0.1), {"training": True})
        0.1
        >>> drop_rate(dropout, (torch.ones(2), 0.1, False), {})
    """
    rate = _DROPS.get(getattr(func, "__name__", ""))
    return rate(args, kwargs) if rate is not None else None


# Known drops: from the arguments of a call the rate at which it drops, or None if it does not.

_Rate = Callable[[Sequence[Any], Mapping[str, Any]], float | None]


def _argument(args: Sequence[Any], kwargs: Mapping[str, Any], position: int, *names: str) -> Any:
    return args[position] if len(args) > position else next((kwargs[name] for name in names if name in kwargs), None)


def _dropout(args: Sequence[Any], kwargs: Mapping[str, Any]) -> float | None:
    drops = _argument(args, kwargs, 2, "training", "train")
    return float(_argument(args, kwargs, 1, "p")) or None if drops else None


def _fused_attention(args: Sequence[Any], kwargs: Mapping[str, Any]) -> float | None:
    return float(_argument(args, kwargs, 4, "dropout_p") or 0.0) or None


def _attention(args: Sequence[Any], kwargs: Mapping[str, Any]) -> float | None:
    drops = _argument(args, kwargs, 13, "training")
    return float(_argument(args, kwargs, 10, "dropout_p")) or None if drops else None


def _recurrent(args: Sequence[Any], kwargs: Mapping[str, Any]) -> float | None:
    # (input, hidden, weights, ...) or packed (data, batch sizes, hidden, weights, ...), then both alike.
    weights = next(index for index, argument in enumerate(args) if isinstance(argument, list))
    _, num_layers, rate, training = args[weights + 1 : weights + 5]
    return float(rate) or None if training and num_layers > 1 else None


def _bernoulli(args: Sequence[Any], kwargs: Mapping[str, Any]) -> float | None:
    p = _argument(args, kwargs, 1, "p")
    return float(p) if isinstance(p, numbers.Real) else None  # else a tensor of probabilities


_DROPS: Mapping[str, _Rate] = {
    **dict.fromkeys(("scaled_dot_product_attention",), _fused_attention),
    **dict.fromkeys(("multi_head_attention_forward",), _attention),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _recurrent),
    **dict.fromkeys(("bernoulli", "bernoulli_"), _bernoulli),
    **{
        f"{family}{ending}": _dropout
        for family in ("dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout")
        for ending in ("", "_")
    },
    **dict.fromkeys(("dropout1d", "dropout2d", "dropout3d", "native_dropout"), _dropout),
}

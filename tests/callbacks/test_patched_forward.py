"""Another ``forward`` for a while: ours is called, the module inside is as it was, and everything comes back."""

import copy
import inspect
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from lightning_dropout.callbacks.patched_forward import PatchedForwards


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + 1  # type: ignore[no-any-return]


def passes_by(original: Any, args: Any, kwargs: Any) -> Any:
    return original(*args, **kwargs)


def test_a_call_is_ours_and_inside_it_nothing_is_patched() -> None:
    module, forwards, calls = Outer(), PatchedForwards(), []
    for part in (module, module.inner):

        def run(original: Any, args: Any, kwargs: Any, part: nn.Module = part) -> Any:
            calls.append(part)
            assert "forward" not in vars(module)
            assert "forward" not in vars(module.inner)
            return original(*args, **kwargs)

        forwards.patch(part, run)
    x = torch.ones(1, 2)
    result = module(x)
    assert calls == [module]
    module.inner(x)
    module.forward(x=x)
    assert calls == [module, module.inner, module]
    forwards.give_back()
    assert torch.equal(result, module(x))
    assert calls == [module, module.inner, module]


def test_what_was_there_comes_back() -> None:
    module, forwards = Outer(), PatchedForwards()
    module.forward = own = lambda x: x  # type: ignore[method-assign, assignment]
    before = {name: dict(vars(part)) for name, part in module.named_modules()}
    forwards.patch(module, passes_by)
    forwards.patch(module.inner, passes_by)
    forwards.lend(module, "step", lambda: "lent")
    assert module.step() == "lent"  # type: ignore[operator]
    forwards.give_back()
    assert {name: dict(vars(part)) for name, part in module.named_modules()} == before
    assert module.forward is own
    forwards.give_back()  # nothing to do


class Own(nn.Linear):
    """Says itself what is copied."""

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "notes": "copied"}


class LendsForwardOnly(PatchedForwards):
    """A planted bug: a copy takes our forward along."""

    def _plain(self, module: nn.Module) -> Any:
        return lambda protocol: type(module).__reduce_ex__(module, protocol)


def pickled(module: Any) -> Any:
    return pickle.loads(pickle.dumps(module))


def check_copy(forwards: PatchedForwards, make: Any) -> None:
    net = nn.Sequential(Own(2, 2), Outer())
    for part in net.modules():
        forwards.patch(part, passes_by)
    forwards.lend(net, "step", lambda: "lent")
    before = {name: {**vars(part)} for name, part in net.named_modules()}
    for part, expected in ((net, 1.0), (net[0], 0.0), (net[1], 1.0)):
        copied = make(part)
        assert [*map(type, copied.modules())] == [*map(type, part.modules())]
        assert all(map(torch.equal, copied.parameters(), part.parameters()))
        with torch.no_grad():
            for weights in copied.parameters():
                weights.zero_()
        assert copied(torch.ones(1, 2)).tolist() == [[expected] * 2]  # of its own weights, not those of the original
        assert not any({"forward", "step", "__reduce_ex__"} & vars(each).keys() for each in copied.modules())
    assert make(net[0]).notes == "copied"
    assert {name: {**vars(part)} for name, part in net.named_modules()} == before


@pytest.mark.parametrize("make", [copy.deepcopy, pickled])
def test_a_copy_has_nothing_of_ours(make: Any) -> None:
    check_copy(PatchedForwards(), make)


def test_that_check_fails_for_a_copy_of_the_patch() -> None:
    with pytest.raises(AssertionError):
        check_copy(LendsForwardOnly(), copy.deepcopy)


def test_a_copy_keeps_a_forward_of_the_users_own() -> None:
    module, forwards = Outer(), PatchedForwards()
    module.forward = own = lambda x: x  # type: ignore[method-assign, assignment]
    forwards.patch(module, passes_by)
    forwards.patch(module, passes_by)
    assert copy.deepcopy(module).forward is own
    assert copy.copy(module).forward is own
    forwards.give_back()
    assert module.forward is own


@pytest.mark.parametrize("error", [RuntimeError("planted"), KeyboardInterrupt()])
def test_after_an_error_the_patch_is_still_there_and_can_be_given_back(error: BaseException) -> None:
    module, forwards = Outer(), PatchedForwards()

    def run(original: Any, args: Any, kwargs: Any) -> Any:
        raise error

    forwards.patch(module, run)
    forwards.patch(module.inner, passes_by)
    for _ in range(2):
        with pytest.raises(type(error)):
            module(torch.ones(1, 2))
    forwards.give_back()
    assert not any("forward" in vars(part) for part in module.modules())


def test_giving_back_inside_a_call_is_for_good() -> None:
    module, forwards = Outer(), PatchedForwards()

    def run(original: Any, args: Any, kwargs: Any) -> Any:
        forwards.give_back()
        return original(*args, **kwargs)

    forwards.patch(module, run)
    module(torch.ones(1, 2))
    assert "forward" not in vars(module)


class StaysPatched(PatchedForwards):
    """A planted bug: the wrappers of children are met inside compiled code."""

    @contextmanager
    def suspended(self) -> Iterator[None]:
        yield


def graphs_and_calls(forwards: PatchedForwards, style: str) -> tuple[int, int]:
    """Compile the outer module as a whole, call it twice, and return how many graphs that made and calls it took."""
    torch._dynamo.reset()
    backend, module = CompileCounterWithBackend("eager"), Outer()
    calls = []

    def run(original: Any, args: Any, kwargs: Any) -> Any:
        calls.append(original)
        return original(*args, **kwargs)

    if style == "in place":
        module.compile(backend=backend, fullgraph=True)
    else:
        module.forward = torch.compile(module.forward, backend=backend, fullgraph=True)  # type: ignore[method-assign]
    forwards.patch(module, run)
    forwards.patch(module.inner, run)
    for _ in range(2):
        module(torch.ones(1, 2))
    forwards.give_back()
    assert (getattr(module, "_compiled_call_impl", None) is not None) == (style == "in place")
    return backend.frame_count, len(calls)


@pytest.mark.parametrize("style", ["in place", "forward"])
def test_compiled_code_is_called_and_stays_whole(style: str) -> None:
    assert graphs_and_calls(PatchedForwards(), style) == (1, 2)


@pytest.mark.parametrize("style", ["in place", "forward"])
def test_that_check_fails_for_wrappers_inside(style: str) -> None:
    with pytest.raises(RuntimeError):  # there is no whole graph
        graphs_and_calls(StaysPatched(), style)


def test_eager_parts_of_a_compiled_module_that_is_not_patched_are_still_ours() -> None:
    """Where the compiler meets a wrapper it goes around it."""
    torch._dynamo.reset()
    module, forwards = Outer(), PatchedForwards()
    forwards.patch(module.inner, lambda original, args, kwargs: torch.zeros(1, 2))
    compiled = torch.compile(module, backend="eager")
    assert compiled(torch.ones(1, 2)).tolist() == [[1.0, 1.0]]
    forwards.give_back()


def test_the_signature_is_that_of_the_forward() -> None:
    layer, forwards = nn.Linear(1, 1), PatchedForwards()
    forwards.patch(layer, lambda original, args, kwargs: original(*args, **kwargs))
    try:
        assert list(inspect.signature(layer.forward).parameters) == ["input"]
    finally:
        forwards.give_back()

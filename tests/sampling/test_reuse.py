"""Prefix reuse changes no number: everything here is compared bit by bit with passes that all run in full.

The models are small and nasty. Each is sampled over several batches, since what was learned from one serves the next,
in and out of inference mode, in which tensors do not count their changes. Planted bugs show that the checks can fail.
"""

import contextlib
import copy
import dataclasses
import functools
import gc
import pickle
import random
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from lightning_dropout.nn import Dropout
from lightning_dropout.sampling import MCPrediction, mc_sample, record, reuse
from lightning_dropout.sampling.activation import dropping
from lightning_dropout.sampling.reuse import PrefixReuse, Reuse, obstacle_of
from lightning_dropout.sites import find_sites, register_adapter
from lightning_dropout.sites.adapters import registry

pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated:FutureWarning",
    "ignore:The PyTorch API of nested tensors:UserWarning",
)

Forward = Callable[..., Any]


class Kit(nn.Module):
    """Layers, and a forward given from outside."""

    def __init__(self, run: Forward) -> None:
        super().__init__()
        self.run = run
        self.l1, self.l2, self.l3, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.relu, self.relu_ = nn.ReLU(), nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.later = nn.Dropout(0.3)
        self.block = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.ReLU(), nn.Linear(8, 8)), nn.LayerNorm(8))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(self, *args, **kwargs)


class Part(nn.Module):
    """A module around a function."""

    def __init__(self, function: Forward) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


def part(model: Kit, name: str, function: Forward) -> nn.Module:
    """Return the part of this name, made at the first call."""
    if name not in model._modules:
        model.add_module(name, Part(function))
    return model.get_submodule(name)


@dataclasses.dataclass(frozen=True)
class Case:
    run: Forward
    reused: bool
    arguments: Mapping[str, Any]


CASES: dict[str, Case] = {}


def case(*, reused: bool = True, **arguments: Any) -> Callable[[Forward], Forward]:
    def add(run: Forward) -> Forward:
        CASES[run.__name__] = Case(run, reused, arguments)
        return run

    return add


# Modules that are called often, or otherwise than usual.


@case()
def one_relu_everywhere(m: Kit, x: Tensor) -> Tensor:
    return m.head(m.relu(m.l3(m.drop(m.relu(m.l2(m.relu(m.l1(x))))))))


@case()
def one_layer_everywhere(m: Kit, x: Tensor) -> Tensor:
    for _ in range(3):
        x = m.relu(m.l1(x))
    x = m.drop(x)
    for _ in range(3):
        x = m.later(m.relu(m.l1(x)))
    return m.head(x)


@case()
def called_as_forward(m: Kit, x: Tensor) -> Tensor:
    return m.head(m.l1.forward(m.drop.forward(m.l1.forward(m.l1(x)))))


@case()
def nested_blocks(m: Kit, x: Tensor) -> Tensor:
    return m.head(m.block(m.drop(m.block[1](m.block(m.block[0](x))))))


@case()
def nothing_before_the_first_draw(m: Kit, x: Tensor) -> Tensor:
    return m.head(m.l2(m.l1(m.drop(x))))


@case()
def functions_between(m: Kit, x: Tensor) -> Tensor:
    h = F.gelu(m.l1(x)) * 2 + x.mean(0, keepdim=True)
    h = torch.cat([h[:, :4], m.l2(h)[:, 4:]], 1)
    return m.head(m.drop(h) + h)


@case()
def skip_over_the_first_draw(m: Kit, x: Tensor) -> Tensor:
    a = m.l1(x)
    b = m.relu(m.l2(a))
    return m.head(m.drop(b) + a * b)


@case()
def a_forward_of_its_own(m: Kit, x: Tensor) -> Tensor:
    if "forward" not in vars(m.l1):  # as accelerate does
        m.l1.forward = lambda x, forward=m.l1.forward: forward(x) * 3
    return m.head(m.drop(m.l1(x)))


@case()
def an_error_that_is_caught(m: Kit, x: Tensor) -> Tensor:
    def fail(h: Tensor) -> None:
        m.l2(h)
        raise ValueError

    h = m.l1(x)
    try:
        h = part(m, "failing", fail)(h)
    except ValueError:
        h = m.l3(h)
    return m.head(m.drop(h))


# Control flow.


@case()
def flow_on_values(m: Kit, x: Tensor) -> Tensor:
    h = m.l1(x)
    if h.mean().item() > 0 or bool(x[0, 0] > 0):
        h = m.l2(h)
    for i in range(len(h)):
        h = h + i
    return m.head(m.drop(h))


@case()
def flow_on_shapes(m: Kit, x: Tensor) -> Tensor:
    h = m.l1(x)
    if x.shape[0] < 4:
        h = m.l2(h)
    return m.head(m.drop(h))


@case()
def flow_on_a_coin(m: Kit, x: Tensor) -> Tensor:
    h = m.l1(x)
    if torch.rand(()) < 0.5:
        h = m.l2(h)
    return m.head(m.drop(h) if h.sum() > -100 else h)


# In place.


def keep(m: Kit, x: Tensor) -> Tensor:
    """Keep what was computed in a module, in an attribute of it."""
    m.l1.kept = torch.relu(m.l2(x))
    return m.l3(m.l1.kept + 1)  # type: ignore[no-any-return]


def change_what_is_kept(m: Kit, h: Tensor) -> Tensor:
    d = m.drop(h)
    if m.batch > 0:
        m.l1.kept.add_(d)
    return m.head(d + m.l1.kept)  # type: ignore[no-any-return]


@case()
def kept_by_a_module_and_changed_in_a_later_batch(m: Kit, x: Tensor) -> Tensor:
    return change_what_is_kept(m, part(m, "keeper", functools.partial(keep, m))(x))


@case()
def kept_by_a_module_within_a_module(m: Kit, x: Tensor) -> Tensor:
    inner = part(m, "inner", functools.partial(keep, m))
    return change_what_is_kept(m, part(m, "outer", lambda x: m.l2(inner(m.l2(x))) * 2)(x))


@case()
def in_place_before(m: Kit, x: Tensor) -> Tensor:
    h = m.relu_(m.l1(x)).add_(1.0)
    h[:, 0] = 3.0
    h[h > 2] = 0.0
    h += 1
    return m.head(m.drop(h) + h)


@case()
def in_place_after(m: Kit, x: Tensor) -> Tensor:
    h = m.l1(x)
    d = m.drop(h)
    h.add_(d)
    h[:, 0] = d[:, 1]
    return m.head(h)


@case()
def in_place_layer_after(m: Kit, x: Tensor) -> Tensor:
    h = m.l1(x)
    d = m.drop(h)
    return m.head(m.relu_(h) + d)


@case()
def in_place_through_a_view(m: Kit, x: Tensor) -> Tensor:
    h = m.l1(x)
    flat, turned, left = h.view(-1), h.t(), h[:, :4]
    d = m.drop(h)
    flat.mul_(2)
    turned.add_(1)
    left.sub_(d[:, 4:])
    return m.head(h + d)


@case()
def in_place_through_a_later_view(m: Kit, x: Tensor) -> Tensor:
    h = m.l1(x)
    d = m.drop(h)
    h.detach()[1:].mul_(2)
    return m.head(h + d)


@case()
def in_place_behind_the_counter(m: Kit, x: Tensor) -> Tensor:
    h, g = m.l1(x), m.l2(x)
    array = g.numpy()
    d = m.drop(h)
    h.data.add_(1)
    array += 1
    return m.head(h + d + g)


@case()
def in_place_if_a_coin_falls(m: Kit, x: Tensor) -> Tensor:
    """The passes that are compared may not show it."""
    h = m.l1(x)
    d = m.drop(h)
    if d[0, 0] == 0 and d[0, 1] == 0:
        h.add_(1)
    return m.head(h + d)


@case()
def in_place_in_later_batches_only(m: Kit, x: Tensor) -> Tensor:
    h = m.l1(x)
    d = m.drop(h)
    if x[0, 0] > 5:
        h.clamp_(max=0.0)
    return m.head(h + d)


@case()
def in_place_without_effect_at_first(m: Kit, x: Tensor) -> Tensor:
    h = m.l1(x)
    d = m.drop(h)
    h.clamp_(max=2.0)
    return m.head(h + d)


@case()
def out(m: Kit, x: Tensor) -> Tensor:
    h = m.l1(x)
    o = torch.empty_like(h)
    torch.mul(h, 2, out=o)
    d = m.drop(o)
    torch.add(h, d, out=o)
    return m.head(o + h)


@case()
def in_place_dropout(m: Kit, x: Tensor) -> Tensor:
    h = m.l1(x)
    g = F.dropout(m.l2(x), 0.0, True)
    F.dropout(h, 0.5, True, inplace=True)
    return m.head(m.drop(h) + g)


@case()
def one_row_for_all(m: Kit, x: Tensor) -> Tensor:
    h = m.l1(x)[:1].expand(len(x), -1)
    d = m.drop(h)
    return m.head(h + d)


# What functions and modules return.


@case()
def several_results(m: Kit, x: Tensor) -> Tensor:
    a, b = m.l1(x).chunk(2, 1)
    first, *_ = m.l2(x).unbind(0)
    values, indices = m.l3(x).max(1)
    both = m.l2(x).max(1)
    parts = m.l1(x).split([2, 6], 1)
    h = torch.cat([a, b], 1) + first + values[:, None] + indices[:, None] + torch.cat(list(parts), 1)
    return m.head(m.drop(h) + both.values[:, None] + torch.linalg.qr(m.l3.weight).Q.sum() + len(parts))


class Pair(NamedTuple):
    a: Tensor
    b: Tensor


@dataclasses.dataclass
class Record:
    a: Tensor
    b: Tensor


@case()
def structures(m: Kit, x: Tensor) -> Tensor:
    nested = part(m, "nested", lambda h: {"a": h * 2, "b": (h + 1, [h - 1]), "c": None, "d": 3})
    features = part(m, "features", lambda h: [h, m.l2(h), m.l3(h)])
    pair, record = part(m, "pair", lambda h: Pair(h, h * 2)), part(m, "record", lambda h: Record(m.l2(h), h))
    n, p, r, f = nested(m.l1(x)), pair(x), record(x), features(x)
    f.append(f[-1] * 2)
    return m.head(m.drop(n["a"]) + n["b"][0] * n["d"] + n["b"][1][0] + p.a + p.b + r.a + r.b + sum(f))


@case()
def a_list_to_write_into(m: Kit, x: Tensor) -> Tensor:
    def write(features: list[Tensor], scale: float) -> Tensor:
        features.append(m.l2(features[-1]) * scale)
        return features[-1]

    features = [m.l1(x)]
    h = part(m, "write", write)(features, scale=2.0)
    return m.head(m.drop(h) + features[-1] + len(features))


class Cache:
    def __init__(self) -> None:
        self.keys: list[Tensor] = []


@case(output="0")
def a_cache_in_the_output(m: Kit, x: Tensor) -> Any:
    def attend(h: Tensor, cache: Cache) -> Tensor:
        cache.keys.append(m.l2(h))
        return h + sum(cache.keys)

    attention = part(m, "attend", attend)
    cache = Cache()
    h = attention(attention(m.l1(x), cache), cache)
    return m.head(attention(m.drop(h), cache)), cache.keys


@case(output=lambda outputs: outputs.a)
def an_unknown_class_returned(m: Kit, x: Tensor) -> Any:
    h = m.l1(x)
    return Record(m.head(m.drop(h)), h)


@case(output=lambda outputs: outputs.a)
def not_a_number_in_an_unknown_class(m: Kit, x: Tensor) -> Any:
    h = m.l1(x)
    return Record(m.head(m.drop(h)), h * float("nan"))


@case(reused=False, output=lambda outputs: outputs.a)
def something_else_in_an_unknown_class(m: Kit, x: Tensor) -> Any:
    left: list[Tensor] = vars(m).setdefault("left", [])

    def leave(h: Tensor) -> Tensor:
        left.append(h)
        return h * 2

    h = m.drop(part(m, "leave", leave)(m.l1(x)))
    return Record(m.head(h), left.pop() if left else x)


@case(output="0")
def a_part_of_the_prefix_returned(m: Kit, x: Tensor) -> Any:
    h = m.l1(x)
    return m.head(m.drop(h)), h


@case()
def parameters_returned(m: Kit, x: Tensor) -> Tensor:
    weight = part(m, "weight", lambda: m.l2.weight)()
    assert isinstance(weight, nn.Parameter)
    d = m.drop(m.l1(x))
    assert isinstance(weight, nn.Parameter)
    return m.head(d @ weight)


# What is no ordinary tensor.


@case(reused=False)
def sparse(m: Kit, x: Tensor) -> Tensor:
    adjacency = torch.eye(len(x)).to_sparse()
    h = m.drop(torch.sparse.mm(adjacency, m.l1(x)))
    return m.head(torch.sparse.mm(adjacency, h))


@case(reused=False)
def nested_tensors(m: Kit, x: Tensor) -> Tensor:
    h = m.l1(x)
    n = torch.nested.nested_tensor([h[:1], h[1:]])
    d = m.drop(h)
    return m.head(n.to_padded_tensor(0.0).sum((0, 1)) + d)


@case()
def complex_numbers(m: Kit, x: Tensor) -> Tensor:
    c = torch.fft.fft(m.l1(x)).conj()
    imaginary = c.imag
    d = m.drop(m.l2(x))
    return m.head(torch.fft.ifft(c * d).real + imaginary)


@case()
def numpy_and_back(m: Kit, x: Tensor) -> Tensor:
    h = torch.from_numpy(m.l1(x).numpy() * 2)
    return m.head(m.drop(m.l2(h) + torch.tensor(h.tolist())))


# Code that function modes do not see, or see otherwise.


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 2


@case()
def autograd_functions(m: Kit, x: Tensor) -> Tensor:
    return m.head(Twice.apply(m.drop(Twice.apply(m.l1(x)))))


@case()
def operators(m: Kit, x: Tensor) -> Tensor:
    return m.head(torch.ops.aten.mul.Tensor(m.drop(torch.ops.aten.add(m.l1(x), 1)), 2))


SCRIPTS: dict[str, Any] = {}


@pytest.fixture(scope="module", autouse=True)
def _scripts() -> None:
    SCRIPTS["double"] = torch.jit.script(_double)
    SCRIPTS["dropout"] = torch.jit.script(_dropout)
    SCRIPTS["module"] = torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.ReLU()).requires_grad_(False))


def _double(x: Tensor) -> Tensor:
    return x * 2 + 1


def _dropout(x: Tensor) -> Tensor:
    return torch.dropout(x, 0.5, True)


@case(reused=False)
def scripted_function_between(m: Kit, x: Tensor) -> Tensor:
    return m.head(SCRIPTS["double"](m.drop(SCRIPTS["double"](m.l1(x)))))


@case()
def scripted_function_of_what_is_kept(m: Kit, x: Tensor) -> Tensor:
    h = m.l1(x)
    return m.head(m.drop(m.l2(SCRIPTS["double"](h))) + h)


@case()
def scripted_module(m: Kit, x: Tensor) -> Tensor:
    return m.head(SCRIPTS["module"](m.drop(SCRIPTS["module"](m.l1(x)))))


@case()
def recorded_for_the_profiler(m: Kit, x: Tensor) -> Tensor:
    with torch.autograd.profiler.record_function("forward"):
        h = m.drop(m.l2(m.l1(x)))
    return m.head(h)


@case()
def checkpointed(m: Kit, x: Tensor) -> Tensor:
    h = torch.utils.checkpoint.checkpoint(m.block, x, use_reentrant=False)
    return m.head(torch.utils.checkpoint.checkpoint(m.drop, h, use_reentrant=False))


@case()
def other_weights(m: Kit, x: Tensor) -> Tensor:
    def scaled(factor: float) -> Tensor:
        weights = {name: weight * factor for name, weight in m.l1.named_parameters()}
        return torch.func.functional_call(m.l1, weights, (x,))

    h = scaled(1.0)
    d = m.drop(h)
    return m.head(d + scaled(2.0))


@case(reused=False)
def vectorised(m: Kit, x: Tensor) -> Tensor:
    def row(r: Tensor) -> Tensor:
        h = m.l1(r)
        return m.drop(h) + h

    return m.head(torch.vmap(row, randomness="different")(x))


# Contexts that begin before the first draw and end after it.


@case()
def gradient_modes(m: Kit, x: Tensor) -> Tensor:
    with torch.no_grad():
        h = m.l1(x)
    with torch.enable_grad():
        h = m.drop(m.l2(h) * (2 if torch.is_grad_enabled() else 3))
        h = m.l3(h)
        h = h * (2.0 if h.requires_grad else 3.0)
    torch.set_grad_enabled(True)
    h = m.later(h)
    h = m.l2(h) * (2.0 if torch.is_grad_enabled() else 3.0)
    torch.set_grad_enabled(False)
    return m.head(h)


@case()
def inference_within(m: Kit, x: Tensor) -> Tensor:
    with torch.inference_mode():
        h = m.l1(x)
        d = m.l2(m.drop(h))
        h.add_(d)
    return m.head(h)


@case()
def autocast(m: Kit, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h = m.l2(m.drop(m.l1(x)))
    return m.head(h.float())


@case()
def a_default_device(m: Kit, x: Tensor) -> Tensor:
    with torch.device("cpu"):
        h = m.drop(m.l1(x) + torch.zeros(8))
    return m.head(h)


# State outside of the tensors.


@case()
def made_on_the_fly(m: Kit, x: Tensor) -> Tensor:
    h = m.l1(x)
    m.positions = torch.arange(8) / 8
    return m.head(m.drop(h + m.positions) + m.positions)


@case()
def a_list_filled_and_emptied(m: Kit, x: Tensor) -> Tensor:
    m.cache = [m.l1(x)]
    m.cache.append(m.l2(m.cache[-1]))
    h = m.drop(m.cache[-1])
    return m.head(h + m.cache.pop() + m.cache.pop())


@case()
def left_by_a_module(m: Kit, x: Tensor) -> Tensor:
    def leave(h: Tensor) -> Tensor:
        m.seen = h * 3
        return h * 2

    h = m.drop(part(m, "leave", leave)(m.l1(x)))
    return m.head(h + m.seen)


@case()
def left_by_a_module_and_changed(m: Kit, x: Tensor) -> Tensor:
    def leave(h: Tensor) -> Tensor:
        m.seen = h * 3
        return h * 2

    h = m.drop(part(m, "leave", leave)(m.l1(x)))
    return m.head(m.seen.add_(h))


@case(reused=False)
def left_by_a_module_and_taken_away(m: Kit, x: Tensor) -> Tensor:
    left: list[Tensor] = vars(m).setdefault("left", [])

    def leave(h: Tensor) -> Tensor:
        left.append(h)
        return h * 2

    h = m.drop(part(m, "leave", leave)(m.l1(x)))
    return m.head(h + left.pop())


@case(reused=False)
def a_scratch_pad(m: Kit, x: Tensor) -> Tensor:
    pad: Tensor = vars(m).setdefault("pads", {}).setdefault(len(x), torch.zeros_like(x))
    pad.copy_(m.l1(x))
    pad.add_(m.drop(pad))
    return m.head(pad)


# Draws before the first site.


@case()
def noise_first(m: Kit, x: Tensor) -> Tensor:
    return m.head(m.drop(m.l2(m.l1(x) + torch.randn_like(x))))


@case()
def a_generator_by_name(m: Kit, x: Tensor) -> Tensor:
    h = m.l1(x)
    generator = torch.Generator().manual_seed(3)
    return m.head(m.drop(h + torch.empty(8).normal_(generator=generator)))


@case()
def rate_0_first(m: Kit, x: Tensor) -> Tensor:
    return m.head(m.drop(m.l2(F.dropout(m.l1(x), 0.0, True))))


@case()
def hidden_in_numpy(m: Kit, x: Tensor) -> Tensor:
    return m.head(m.drop(m.l2(m.relu(m.l1(x)) + float(np.random.rand()))))  # noqa: NPY002


@case()
def hidden_in_python(m: Kit, x: Tensor) -> Tensor:
    return m.head(m.drop(m.l2(m.relu(m.l1(x)) * random.random())))


@case()
def hidden_in_a_script(m: Kit, x: Tensor) -> Tensor:
    return m.head(m.drop(m.l2(SCRIPTS["dropout"](m.relu(m.l1(x))))))


@case()
def hidden_in_a_function(m: Kit, x: Tensor) -> Tensor:
    return m.head(m.drop(F.gumbel_softmax(m.l2(m.l1(x)))))


@case()
def hidden_at_the_very_beginning(m: Kit, x: Tensor) -> Tensor:
    factor = random.random()
    return m.head(m.drop(m.l2(m.l1(x)) * factor))


@case()
def hidden_in_a_module(m: Kit, x: Tensor) -> Tensor:
    noisy = part(m, "noisy", lambda h: m.l2(h) + m.l3(h * random.random()))
    return m.head(m.drop(noisy(m.l1(x))))


@case()
def the_state_put_back(m: Kit, x: Tensor) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        noise = torch.randn(8)
    return m.head(m.drop(m.l1(x) + noise) + torch.rand(8))


# The check.


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    first, second, ragged, high = (torch.randn(n, 8, generator=generator) for n in (5, 5, 3, 5))
    first[0, 0], second[0, 0] = -1.0, 1.0  # what the control flow looks at
    return [first, second * 2, ragged, high + 10]


def in_full(sample: Callable[[], Any]) -> Any:
    """Run without reuse."""

    def run(self: PrefixReuse, prepare: Callable[[], object], forward: Callable[[], Any]) -> Any:
        prepare()
        return forward()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PrefixReuse, "run", run)
        return sample()


def sample_batches(
    make: Callable[[], nn.Module], context: Callable[[], Any], num_samples: int = 7, **arguments: Any
) -> list[MCPrediction]:
    torch.manual_seed(0)
    model = make().eval()
    predictions = []
    for number, x in enumerate(batches()):
        model.batch = number
        with context():
            predictions.append(
                mc_sample(model, x, num_samples=num_samples, task="raw", seed=number, return_samples=True, **arguments)
            )
    return predictions


def check_equal(one: MCPrediction, other: MCPrediction) -> None:
    assert one.samples is not None
    assert other.samples is not None
    assert torch.equal(one.samples, other.samples), "samples differ"
    assert torch.equal(one.mean, other.mean), "means differ"
    assert torch.equal(one.variance, other.variance), "variances differ"


def check_clean(model: nn.Module | None = None) -> None:
    """Nothing is left on torch or the model."""
    hooks = [
        torch_module._global_forward_hooks,
        torch_module._global_forward_pre_hooks,
        torch_module._global_forward_hooks_with_kwargs,
        torch_module._global_forward_hooks_always_called,
    ]
    assert not any(hooks)
    assert _get_current_function_mode_stack() == []
    assert torch.is_grad_enabled()
    for part in model.modules() if model is not None else ():
        assert "forward" not in vars(part)
        assert not part.training


def check(make: Callable[[], nn.Module], context: Callable[[], Any], reused: bool, **arguments: Any) -> None:
    with_reuse = sample_batches(make, context, **arguments)
    check_clean()
    without = in_full(lambda: sample_batches(make, context, **arguments))
    for one, other in zip(with_reuse, without, strict=True):
        check_equal(one, other)
        assert one.reuse is not None
        assert other.reuse == Reuse()
        assert (one.reuse.passes > 0) == reused, f"{one.reuse}"
        assert (one.reuse.note == "") == reused
        assert 0.0 <= one.reuse.share <= 1.0


CONTEXTS = {"plain": contextlib.nullcontext, "inference mode": torch.inference_mode}


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("name", CASES)
def test_numbers_are_those_of_passes_that_run_in_full(name: str, context: str) -> None:
    case = CASES[name]
    check(lambda: Kit(case.run), CONTEXTS[context], case.reused, **case.arguments)


# Hooks: they run in every pass.


class Noted(nn.Module):
    """A model whose hooks note what they see."""

    def __init__(self) -> None:
        super().__init__()
        self.l1, self.block = nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(8, 3)
        self.notes: Counter[str] = Counter()
        self.seen: list[Tensor] = []
        self.register_forward_pre_hook(lambda module, args: self.notes.update(["pass"]))
        self.l1.register_forward_hook(self.double)
        self.block.register_forward_pre_hook(self.shift, with_kwargs=True)
        self.block[0].register_forward_hook(self.keep, always_call=True)
        self.drop.register_forward_hook(self.double)

    def double(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        self.notes["double"] += 1
        return output * 2

    def shift(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        self.notes["shift"] += 1
        return (args[0] + 1,), kwargs

    def keep(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.notes["keep"] += 1
        self.seen.append(output)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.drop(self.block(self.l1(x))))
        return output


@pytest.mark.parametrize("context", CONTEXTS)
def test_hooks_run_in_every_pass(context: str) -> None:
    check(Noted, CONTEXTS[context], reused=True)
    model, x = Noted().eval(), batches()[0]
    mc_sample(model, x, num_samples=7, task="raw")
    assert model.notes == {"pass": 8, "double": 16, "shift": 8, "keep": 8}, "one more, to compare"
    model.notes.clear()
    model.seen.clear()
    mc_sample(model, x * 2, num_samples=7, task="raw")
    assert model.notes == {"pass": 7, "double": 14, "shift": 7, "keep": 7}
    expected = model.block[0](model.l1(x * 2) + 1)
    assert all(torch.equal(seen, expected) for seen in model.seen)


@pytest.mark.parametrize(
    "register", [torch_module.register_module_forward_hook, torch_module.register_module_forward_pre_hook]
)
def test_hooks_on_all_modules_run_in_every_pass(register: Any) -> None:
    model, x, calls = Noted().eval(), batches()[0], Counter[str]()
    handle = register(lambda module, *_: calls.update([type(module).__name__]))
    try:
        prediction = mc_sample(model, x, num_samples=7, task="raw", return_samples=True)
    finally:
        handle.remove()
    assert prediction.reuse == Reuse(note="hooks on all modules run in every pass")
    assert calls["Linear"] == 3 * 9, "two more, to see that they give the same"
    again = mc_sample(model, x, num_samples=7, task="raw", return_samples=True)
    check_equal(again, prediction)
    assert again.reuse is not None
    assert again.reuse.passes == 5, "it is no judgement on the model"


@pytest.mark.parametrize(
    "wrap",
    [
        lambda layer: nn.utils.weight_norm(layer),
        nn.utils.parametrizations.weight_norm,
        lambda layer: nn.utils.spectral_norm(layer),
        nn.utils.parametrizations.spectral_norm,
    ],
    ids=["weight_norm of old", "weight_norm", "spectral_norm of old", "spectral_norm"],
)
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("context", CONTEXTS)
def test_weights_that_are_computed(wrap: Callable[[nn.Module], nn.Module], context: str) -> None:
    def make() -> nn.Module:
        kit = Kit(CASES["one_layer_everywhere"].run).eval()
        kit.l1 = wrap(kit.l1)
        return kit

    check(make, CONTEXTS[context], reused=True)


# Generators of the model's own: passes seed them, too.


class OwnGenerator(nn.Module):
    def __init__(self, generator: Any) -> None:
        super().__init__()
        self.p, self.generator = 0.5, generator

    def coins(self, shape: torch.Size) -> Tensor:
        if isinstance(self.generator, torch.Generator):
            return torch.rand(shape, generator=self.generator)
        if isinstance(self.generator, random.Random):
            return torch.tensor([self.generator.random() for _ in range(shape.numel())]).view(shape)
        return torch.from_numpy(self.generator.uniform(size=tuple(shape))).float()

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.coins(x.shape) >= self.p) / (1 - self.p) if self.training else x


class OwnNoise(nn.Module):
    """No site: it draws in evaluation, too."""

    def __init__(self, generator: Any) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        return x + OwnGenerator.coins(self, x.shape)  # type: ignore[arg-type]


GENERATORS: dict[str, Callable[[], Any]] = {
    "torch": lambda: torch.Generator().manual_seed(3),
    "numpy": lambda: np.random.default_rng(3),
    "numpy of old": lambda: np.random.RandomState(3),
    "random": lambda: random.Random(3),
}


@pytest.fixture
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters registered in the test are forgotten after it."""
    monkeypatch.setattr(registry, "_ADAPTERS", {key: list(adapters) for key, adapters in registry._ADAPTERS.items()})
    register_adapter(OwnGenerator, attribute="p", kind="dropout")


def with_own_generator(name: str) -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), OwnGenerator(GENERATORS[name]()), nn.Linear(8, 3), nn.Dropout(0.2))


@pytest.mark.usefixtures("_own_registry")
@pytest.mark.parametrize("name", GENERATORS)
def test_sites_with_a_generator_of_their_own(name: str) -> None:
    check(lambda: with_own_generator(name), torch.no_grad, reused=True)


@pytest.mark.parametrize("name", GENERATORS)
def test_generators_hidden_in_modules(name: str) -> None:
    """Their draws are seen by the state that they move."""
    check(
        lambda: nn.Sequential(nn.Linear(8, 8), OwnNoise(GENERATORS[name]()), nn.Linear(8, 3), nn.Dropout(0.5)),
        torch.no_grad,
        reused=True,
    )


# After an error, everything is as before.


class Failing(nn.Module):
    """Raises in one of its calls, or from then on in each."""

    def __init__(self) -> None:
        super().__init__()
        self.at, self.always, self.error = 0, False, RuntimeError
        self._calls = Counter[str]()  # an error puts a plain number back

    @property
    def calls(self) -> int:
        return self._calls["forward"]

    @calls.setter
    def calls(self, calls: int) -> None:
        self._calls["forward"] = calls

    def forward(self, x: Tensor) -> Tensor:
        self.note()
        return x + 0

    def note(self, *_: Any) -> None:
        self.calls += 1
        if self.calls == self.at or (self.always and self.calls > self.at):
            raise self.error(f"call {self.calls}")


def failing(place: str) -> tuple[nn.Module, Failing]:
    bad = Failing()
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    if place == "a hook before":
        model[1].register_forward_hook(bad.note)
    elif place == "a hook on what draws":
        model[2].register_forward_pre_hook(bad.note)
    elif place == "before":
        model.insert(1, bad)
    else:
        model.append(bad)
    return model.eval(), bad


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("at", [1, 2, 3, 4])  # watched, in full, compared, replayed
@pytest.mark.parametrize("place", ["before", "after", "a hook before", "a hook on what draws"])
def test_errors_leave_nothing_behind(place: str, at: int, error: type[BaseException]) -> None:
    model, bad = failing(place)
    x = batches()[0]
    expected = in_full(lambda: mc_sample(model, x, num_samples=6, task="raw", return_samples=True))
    bad.calls, bad.at, bad.error = 0, at, error  # type: ignore[assignment]
    bad.always = True  # replays leave out what runs before
    state = torch.get_rng_state()
    try:
        prediction = mc_sample(model, x, num_samples=6, task="raw", return_samples=True)
    except error:
        assert bad.calls >= at
    else:
        assert place == "before", "replays do without it"
        assert at > 2
        check_equal(prediction, expected)
    assert torch.equal(torch.get_rng_state(), state)
    check_clean(model)
    bad.at, bad.always = 0, False
    for _ in range(2):
        check_equal(mc_sample(model, x, num_samples=6, task="raw", return_samples=True), expected)


def test_an_error_in_a_replay_alone_is_made_up_for() -> None:
    model, bad = failing("after")
    x = batches()[0]
    expected = in_full(lambda: mc_sample(model, x, num_samples=6, task="raw", return_samples=True))
    bad.calls, bad.at = 0, 4
    prediction = mc_sample(model, x, num_samples=6, task="raw", return_samples=True)
    check_equal(prediction, expected)
    assert prediction.reuse is not None
    assert prediction.reuse.note == "reusing what comes before the first draw failed: RuntimeError: call 4"
    check_clean(model)


def test_an_error_of_the_model_says_nothing_about_reuse() -> None:
    model, bad = failing("after")
    x = batches()[0]
    mc_sample(model, x, num_samples=6, task="raw")
    bad.calls, bad.at, bad.always = 0, 3, True
    with pytest.raises(RuntimeError, match="call 4"):  # in the replay first, then in full
        mc_sample(model, x, num_samples=6, task="raw")
    bad.at, bad.always = 0, False
    reuse = mc_sample(model, x, num_samples=6, task="raw").reuse
    assert reuse is not None
    assert (reuse.passes, reuse.note) == (5, "")


# Company: other threads, samplers, modes and contexts.


def test_other_threads_are_none_of_its_business() -> None:
    kit, other = Kit(CASES["skip_over_the_first_draw"].run).eval(), Kit(CASES["nested_blocks"].run).eval()
    x = batches()[0]
    expected, expected_of_other = in_full(lambda: mc_sample(kit, x, task="raw", return_samples=True)), other(x)
    stop, wrong = threading.Event(), []

    def run_other() -> None:
        with torch.no_grad():
            while not stop.is_set():
                if not torch.equal(other(x), expected_of_other):
                    wrong.append(1)

    thread = threading.Thread(target=run_other)
    thread.start()
    try:
        for _ in range(5):
            prediction = mc_sample(kit, x, task="raw", return_samples=True)
            check_equal(prediction, expected)
            assert prediction.reuse is not None
            assert prediction.reuse.passes >= 28
    finally:
        stop.set()
        thread.join()
    assert not wrong


def test_modules_that_the_model_runs_on_other_threads() -> None:
    def run(m: Kit, x: Tensor) -> Tensor:
        h, results = m.l1(x), []

        def job() -> None:
            with torch.no_grad():
                results.append(m.l1(h) + m.l2(h))

        thread = threading.Thread(target=job)
        thread.start()
        thread.join()
        return m.head(m.drop(m.l1(h)) + results[0] + h)

    check(lambda: Kit(run), contextlib.nullcontext, reused=True)


def test_sampling_within_a_pass() -> None:
    """A hook, and a forward, that sample another model."""
    inner = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)).eval()

    def run(m: Kit, x: Tensor) -> Tensor:
        h = m.l1(x)
        h = h + mc_sample(inner, h, num_samples=4, task="raw").mean
        d = m.drop(h)
        return m.head(d + mc_sample(inner, h, num_samples=4, task="raw").std)

    def make() -> nn.Module:
        kit = Kit(run)
        kit.l1.register_forward_hook(
            lambda module, args, output: mc_sample(inner, output, num_samples=4, task="raw").mean
        )
        return kit

    check(make, contextlib.nullcontext, reused=False)
    check(make, torch.inference_mode, reused=False)


def test_two_at_a_time() -> None:
    """Passes of two batches of one model that take turns."""
    kit = Kit(CASES["one_layer_everywhere"].run).eval()
    sites = find_sites(kit)
    generators = [torch.default_generator]
    one, other = batches()[:2]

    def outputs(x: Tensor, seeds: range, reuse: PrefixReuse | None) -> Iterator[Tensor]:
        for seed in seeds:
            if reuse is None:
                torch.manual_seed(seed)
                yield kit(x)
            else:
                yield reuse.run(lambda seed=seed: torch.manual_seed(seed), lambda: kit(x))

    with torch.no_grad(), dropping(sites):
        reuses = [PrefixReuse(kit, sites, generators) for _ in range(2)]
        turns = zip(outputs(one, range(6), reuses[0]), outputs(other, range(6), reuses[1]), strict=True)
        plain = zip(outputs(one, range(6), None), outputs(other, range(6), None), strict=True)
        for pair, expected in zip(list(turns), list(plain), strict=True):
            assert torch.equal(pair[0], expected[0])
            assert torch.equal(pair[1], expected[1])
    assert [reuse.report.passes for reuse in reuses] == [4, 4], "each was compared"


def test_a_part_of_a_model_and_the_whole() -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kit, self.last = Kit(CASES["structures"].run), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.last(self.kit(x))
            return output

    torch.manual_seed(0)
    whole, x = Whole().eval(), batches()[0]
    for model in (whole.kit, whole, whole.kit):
        prediction = mc_sample(model, x, task="raw", return_samples=True)
        check_equal(prediction, in_full(lambda model=model: mc_sample(model, x, task="raw", return_samples=True)))
        assert prediction.reuse is not None
        assert prediction.reuse.passes >= 28


class Doubling(TorchFunctionMode):
    """Somebody else's mode: it notes each linear layer and doubles its output."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func.__name__] += 1
        output = func(*args, **(kwargs or {}))
        return output * 2 if func is F.linear else output


@pytest.mark.parametrize(
    "context",
    [
        lambda: torch.device("cpu"),
        torch.no_grad,
        torch.enable_grad,
        torch.inference_mode,
        Doubling,
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    ],
    ids=["cpu", "no_grad", "enable_grad", "inference_mode", "function mode", "autocast"],
)
@pytest.mark.parametrize("name", ["skip_over_the_first_draw", "in_place_through_a_view", "nested_blocks"])
def test_contexts_around(name: str, context: Callable[[], Any]) -> None:
    check(lambda: Kit(CASES[name].run), context, reused=True)
    with context():
        model = Kit(CASES[name].run)
        inputs = torch.randn(4, 8).requires_grad_()
    if not inputs.is_meta and not inputs.is_inference():
        check(lambda: Kit(lambda m, x: CASES[name].run(m, x * inputs[0])), context, reused=True)
    assert all(parameter.grad is None for parameter in model.parameters())


class Field(nn.Module):
    """A force: the gradient of an energy, computed in the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.l1, self.drop, self.l2 = nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.clone().requires_grad_()
            energy = self.l2(self.drop(torch.tanh(self.l1(x)))).sum()
            return torch.autograd.grad(energy, x)[0]


def test_gradients_in_the_forward_run_in_full() -> None:
    check(Field, contextlib.nullcontext, reused=False)


# Kinds of inputs.


@pytest.mark.parametrize("context", CONTEXTS)
def test_several_inputs(context: str) -> None:
    def run(m: Kit, x: Tensor, scale: Any, *, others: dict[str, Tensor], mode: str = "add") -> Any:
        h = m.l1(x) * scale
        h = h + m.l2(others["y"]) if mode == "add" else h
        return {"logits": m.head(m.drop(h)), "features": h}

    def sample() -> MCPrediction:
        torch.manual_seed(0)
        kit, x = Kit(run).eval(), batches()[0]
        with CONTEXTS[context]():
            return mc_sample(
                kit, x, 2.0, others={"y": x + 1}, mode="add", num_samples=7, task="raw", return_samples=True
            )

    prediction = sample()
    check_equal(prediction, in_full(sample))
    assert prediction.reuse is not None
    assert prediction.reuse.passes == 5


# What falls back at once.


def test_compiled_models_run_in_full() -> None:
    kit = Kit(CASES["nested_blocks"].run).eval()
    x = batches()[0]
    expected = in_full(lambda: mc_sample(kit, x, num_samples=3, task="raw", return_samples=True))
    for model in (torch.compile(kit, backend="eager"), kit):
        if model is kit:
            kit.compile(backend="eager")
        prediction = mc_sample(model, x, num_samples=3, task="raw", return_samples=True)
        torch._dynamo.reset()
        check_equal(prediction, expected)
        assert prediction.reuse == Reuse(note="compiled code cannot be watched")


def test_a_compiled_function_cannot_be_known_beforehand() -> None:
    def run(m: Kit, x: Tensor) -> Tensor:
        h = compiled(m.l1(x))
        return m.head(compiled(m.drop(m.l2(h))))

    compiled = torch.compile(lambda h: h.relu() * 2, backend="eager")
    check(lambda: Kit(run), torch.no_grad, reused=True)
    graphs = Counter[str]()

    def backend(module: Any, inputs: Any) -> Any:
        graphs["compiled"] += 1
        return module.forward

    compiled = torch.compile(lambda h: h.relu() * 2, backend=backend, fullgraph=True)
    check(lambda: Kit(run), torch.no_grad, reused=True)
    torch._dynamo.reset()
    assert 1 <= graphs["compiled"] <= 3, "with shapes that vary, and never under a function mode"


def test_data_parallel_runs_in_full() -> None:
    model = nn.DataParallel(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))).eval()
    prediction = mc_sample(model, batches()[0], num_samples=3, task="raw")
    assert prediction.reuse == Reuse(note="DataParallel runs the model on several threads")


def test_distributed_data_parallel(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kit, x = Kit(CASES["nested_blocks"].run).eval(), batches()[0]
    expected = in_full(lambda: mc_sample(kit, x, num_samples=7, task="raw", return_samples=True))
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(kit).eval()
        prediction = mc_sample(model, x, num_samples=7, task="raw", return_samples=True)
        check_equal(prediction, expected)
        assert prediction.reuse is not None
        assert prediction.reuse.passes == 5
        sources = [event.source for event in record_of(model, x)._events]
        assert kit.block in sources, "the mark for the profiler is no end"
        monkeypatch.setattr(dist, "get_world_size", lambda: 2)
        note = "the ranks of a distributed model must run the same passes"
        assert obstacle_of(model, compiled=False) == note
        assert obstacle_of(kit, compiled=False) == ""
        kit.l1.weight.device_mesh = None  # type: ignore[assignment]  # as sharded parameters have one
        assert obstacle_of(kit, compiled=False) == note
    finally:
        dist.destroy_process_group()


def test_a_model_that_begins_in_ever_new_ways_runs_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reuse, "_MAX_SIGNATURES", 3)

    def run(m: Kit, x: Tensor) -> Tensor:
        h = m.l1(x)
        for _ in range(len(x)):
            h = h + 1
        return m.head(m.drop(h))

    kit = Kit(run).eval()
    notes = []
    for rows in range(1, 6):
        report = mc_sample(kit, torch.ones(rows, 8), num_samples=4, task="raw").reuse
        assert report is not None
        notes.append(report.note)
    assert notes[:3] == [""] * 3
    assert all("begin in too many different ways" in note for note in notes[3:])


# The model is left alone.


def plain_model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(8, 3)).eval()


def test_nothing_is_stored_on_the_model() -> None:
    model, x = plain_model(), batches()[0]
    before = [dict(vars(part)) for part in model.modules()]
    expected = mc_sample(model, x, task="raw", return_samples=True)
    assert [dict(vars(part)) for part in model.modules()] == before
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        prediction = mc_sample(twin, x, task="raw", return_samples=True)
        check_equal(prediction, expected)
        assert prediction.reuse is not None
        assert prediction.reuse.passes == 28, "a copy is another model"


@pytest.mark.parametrize("name", ["structures", "autograd_functions", "sparse"])
def test_models_and_tensors_are_let_go(name: str) -> None:
    kit = Kit(CASES[name].run).eval()
    prediction = mc_sample(kit, batches()[0], task="raw")
    known, gone = len(reuse._KNOWLEDGE), weakref.ref(kit)
    del kit, prediction
    gc.collect()
    assert gone() is None
    assert len(reuse._KNOWLEDGE) < known


# Memory.


def record_of(model: nn.Module, x: Tensor, passes: int = 3) -> Any:
    """Return what is kept while the passes of a batch run."""
    sites = find_sites(model)
    with torch.no_grad(), dropping(sites):
        prefix = PrefixReuse(model, sites, [torch.default_generator])
        for seed in range(passes):
            prefix.run(lambda seed=seed: torch.manual_seed(seed), lambda: model(x))
    assert prefix._record is not None
    return prefix._record


class Watcher(nn.Module):
    """Notes which of the tensors that went through it are still there."""

    def __init__(self, seen: list["weakref.ref[Tensor]"]) -> None:
        super().__init__()
        self.seen = seen

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(weakref.ref(x))
        return x + 1


def test_only_what_is_alive_at_the_first_draw_is_kept() -> None:
    seen: list[weakref.ref[Tensor]] = []
    layers = [layer for _ in range(10) for layer in (nn.Linear(64, 64), Watcher(seen), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(64, 16), nn.Dropout(0.5), nn.Linear(16, 3)).eval()
    x = torch.randn(8, 64)
    for _ in range(2):
        seen.clear()
        record = record_of(model, x)
        assert [tuple(tensor.shape) for tensor in record._kept.values()] == [(8, 16)]
        assert not any(reference() is not None for reference in seen), "what went through the layers is gone"


def test_what_is_kept_does_not_grow_with_the_number_of_passes() -> None:
    kit = Kit(CASES["in_place_through_a_view"].run).eval()
    few, many = (record_of(kit, batches()[0], passes) for passes in (4, 40))
    assert [tensor.shape for tensor in few._kept.values()] == [tensor.shape for tensor in many._kept.values()]
    assert many._given == {}, "copies last for a pass"


def test_a_skip_connection_is_kept_once() -> None:
    record = record_of(Kit(CASES["in_place_through_a_view"].run).eval(), batches()[0])
    memory = {tensor.untyped_storage().data_ptr() for tensor in record._kept.values()}
    assert (len(record._kept), len(memory)) == (4, 1)


# What is reported.


def test_the_report() -> None:
    model = nn.Sequential(*[nn.Linear(256, 256) for _ in range(20)], nn.Dropout(0.5), nn.Linear(256, 3)).eval()
    x = torch.randn(64, 256)
    first, second, one = (mc_sample(model, x, num_samples=n, task="raw").reuse for n in (10, 10, 1))
    assert first is not None
    assert second is not None
    assert (first.passes, second.passes) == (8, 9), "passes are compared once for each model"
    assert second.share > 0.5
    assert second.seconds > 0
    assert one == Reuse()


def test_other_rates_are_other_first_draws() -> None:
    model, x = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.0), nn.Linear(8, 8), nn.Dropout(0.5)).eval(), batches()[0]

    def sample(rates: float | None) -> MCPrediction:
        return mc_sample(model, x, num_samples=6, task="raw", rates=rates, return_samples=True)

    for rates in (None, 0.3, None, 0.3):
        prediction = sample(rates)
        check_equal(prediction, in_full(lambda rates=rates: sample(rates)))
        assert prediction.reuse is not None
        assert prediction.reuse.passes >= 4


def test_own_dropout_is_a_first_draw_too() -> None:
    check(lambda: nn.Sequential(nn.Linear(8, 8), Dropout(0.5), nn.Linear(8, 3)), torch.no_grad, reused=True)


# Planted bugs.


def ignore(*_: Any) -> None: ...


def out_of_order(self: Any, event: Any) -> Any:
    kept = list(self._given.values())
    leaves = [kept[0] if type(leaf) is record._Position else leaf for leaf in event.leaves]
    return leaves[0] if event.spec is None else leaves


MUTANTS: dict[str, tuple[Any, str, Any, str]] = {
    "copies that are none": (record, "_copies", dict, "in_place_after"),
    "changes overlooked": (record.Record, "_note_changes", ignore, "in_place_after"),
    "changes overlooked later": (record.Record, "_note_changes", ignore, "in_place_in_later_batches_only"),
    "counters not read": (record, "_versions", lambda tensors, but: {}, "in_place_in_later_batches_only"),
    "values not read": (record, "same_values", lambda one, other: True, "in_place_behind_the_counter"),
    "outputs in the wrong order": (record.Record, "_give_out", out_of_order, "structures"),
    "no comparison": (reuse, "_same", lambda one, other: True, "a_scratch_pad"),
    "no comparison of unknown classes": (
        reuse,
        "_same_leaf",
        lambda one, other: not isinstance(one, Tensor) or torch.equal(one, other),
        "something_else_in_an_unknown_class",
    ),
    "hidden draws overlooked": (record.Record, "_has_drawn", lambda self: False, "hidden_in_python"),
    "hidden draws not searched": (reuse, "_MAX_WATCHED", 1, "hidden_in_python"),
    "what modules keep overlooked": (
        record.Record,
        "_keepers",
        lambda self: set(),
        "kept_by_a_module_and_changed_in_a_later_batch",
    ),
    "arguments taken for values": (record, "_is_value", lambda argument: True, "a_list_to_write_into"),
}


@pytest.mark.parametrize("bug", MUTANTS)
def test_every_planted_bug_is_found(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    holder, attribute, mutant, name = MUTANTS[bug]
    monkeypatch.setattr(holder, attribute, mutant)
    case = CASES[name]
    with pytest.raises((AssertionError, RuntimeError)):
        check(lambda: Kit(case.run), contextlib.nullcontext, case.reused, **case.arguments)

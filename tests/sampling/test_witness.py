"""The guards of a pass: what they see, what they say, and that they put everything back."""

import copy
import math
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_dropout.sampling.witness import Counters, Witness, same_values

pytestmark = pytest.mark.filterwarnings(
    "ignore:The PyTorch API of nested tensors:UserWarning", "ignore:Sparse CSR tensor support is in beta:UserWarning"
)

BUFFER = r"^Expected passes that change nothing, but got a changed buffer `{}` \(put back\); call `model\.eval\(\)`"
INPUT = r"^Expected passes that change nothing, but got a changed input \(put back\)"


def model_with_buffers() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model.register_buffer("own", torch.arange(3.0))
    model.register_buffer("none", None)
    return model


def watch(model: nn.Module, inputs: Any, change: Callable[[], object]) -> None:
    with torch.no_grad(), Witness(model, inputs) as witness:
        change()
        witness.check()


def test_passes_that_change_nothing_are_no_trouble() -> None:
    model, x = model_with_buffers().eval(), torch.randn(4, 3)
    model.register_buffer("adjacency", torch.eye(3).to_sparse())  # of a graph
    watch(model, {"x": x, "more": [x * 2, (None, 3, "text")], "sparse": model.adjacency * 2}, lambda: model(x))
    assert model.own is next(iter(model.buffers(recurse=False)))


def normalise(model: nn.Module) -> None:
    model.train()(torch.randn(4, 3))


def assign(model: nn.Module) -> None:
    model.own = model.own + 1


def write(model: nn.Module) -> None:
    model.own[1] = math.nan


def reshape(model: nn.Module) -> None:
    model.own = torch.zeros(1)


def take_away(model: nn.Module) -> None:
    del model.own


def clear(model: nn.Module) -> None:
    model.own = None


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (normalise, "1.running_mean"),
        (assign, "own"),
        (write, "own"),
        (reshape, "own"),
        (take_away, "own"),
        (clear, "own"),
    ],
)
def test_a_changed_buffer_is_named_and_put_back(change: Callable[[nn.Module], None], name: str) -> None:
    model = model_with_buffers()
    buffers, values = dict(model.named_buffers()), {key: value.clone() for key, value in model.named_buffers()}
    with pytest.raises(RuntimeError, match=BUFFER.format(name)):
        watch(model, (), lambda: change(model))
    for key, buffer in model.named_buffers():
        assert buffer is buffers[key]
        assert torch.equal(buffer, values[key])
    assert set(buffers) == set(dict(model.named_buffers()))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_a_changed_input_is_put_back(context: Callable[[], Any]) -> None:
    with context():
        x, y = torch.ones(3), torch.tensor([1, 2])
        for tensor in (x, y):
            before = tensor.clone()
            with pytest.raises(RuntimeError, match=INPUT):
                watch(nn.ReLU(), {"x": [x], "y": y}, lambda tensor=tensor: tensor.zero_())
            assert torch.equal(tensor, before)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_no_change_behind(error: type[BaseException]) -> None:
    model, x = model_with_buffers(), torch.randn(4, 3)
    values, before = {key: value.clone() for key, value in model.named_buffers()}, x.clone()

    def fail() -> None:
        normalise(model)
        x.zero_()
        raise error

    with pytest.raises(error):
        watch(model, x, fail)
    assert torch.equal(x, before)
    assert all(torch.equal(buffer, values[key]) for key, buffer in model.named_buffers())


def test_values_are_compared_and_not_counters() -> None:
    """What batch normalisation writes, and numpy, moves no version of a tensor."""
    x = torch.ones(3)
    with pytest.raises(RuntimeError, match=INPUT):
        watch(nn.ReLU(), x, lambda: x.numpy().fill(0))
    watch(nn.ReLU(), x, lambda: x.add_(1).sub_(1))


# Equality.


def sparse(values: list[float]) -> Tensor:
    return torch.diag(torch.tensor(values)).to_sparse()


def nested(*values: list[float]) -> Tensor:
    return torch.nested.nested_tensor([torch.tensor(row) for row in values])


NAN = math.nan
SAME: dict[str, tuple[Tensor, Tensor]] = {
    "floats": (torch.tensor([1.0, NAN, -math.inf]), torch.tensor([1.0, NAN, -math.inf])),
    "zeros": (torch.tensor(0.0), torch.tensor(-0.0)),
    "complex": (torch.tensor([complex(NAN, 1)]), torch.tensor([complex(NAN, 1)])),
    "conjugates": (torch.tensor([1 + 2j]).conj(), torch.tensor([1 - 2j])),
    "integers": (torch.tensor([1, 2]), torch.tensor([1, 2])),
    "eight bits": (torch.ones(2).to(torch.float8_e4m3fn), torch.ones(2).to(torch.float8_e4m3fn)),
    "nothing in it": (torch.empty(0, 3), torch.empty(0, 3)),
    "sparse": (sparse([1.0, NAN]), sparse([1.0, NAN])),
}
DIFFERENT: dict[str, tuple[Tensor | None, Tensor]] = {
    "missing": (None, torch.ones(2)),
    "floats": (torch.tensor([1.0, NAN]), torch.tensor([NAN, 1.0])),
    "the last bit": (torch.tensor(1.0), torch.tensor(1.0 + 2**-23)),
    "shapes": (torch.ones(2), torch.ones(2, 1)),
    "that broadcast": (torch.ones(1), torch.ones(3)),
    "complex": (torch.tensor([1 + 2j]), torch.tensor([1 - 2j])),
    "integers": (torch.tensor([1, 2]), torch.tensor([1, 3])),
    "sparse values": (sparse([1.0, 2.0]), sparse([1.0, 3.0])),
    "sparse places": (sparse([1.0, 0.0]), sparse([0.0, 1.0])),
    "sparse shapes": (sparse([1.0]), sparse([1.0, 0.0])),
    "layouts": (sparse([1.0, 2.0]), sparse([1.0, 2.0]).to_dense()),
}


@pytest.mark.parametrize("name", SAME)
def test_same_values(name: str) -> None:
    assert same_values(*SAME[name])
    assert same_values(*reversed(SAME[name]))


@pytest.mark.parametrize("name", DIFFERENT)
def test_different_values(name: str) -> None:
    assert not same_values(*DIFFERENT[name])


def test_compressed_sparse_rows() -> None:
    rows = sparse([1.0, 2.0]).to_sparse_csr()
    assert same_values(rows, rows.clone())
    assert not same_values(rows, rows * 2)


def test_nested_tensors() -> None:
    assert same_values(nested([1.0], [2.0, NAN]), nested([1.0], [2.0, NAN]))
    assert not same_values(nested([1.0], [2.0, 3.0]), nested([1.0], [2.0, 4.0]))
    assert not same_values(nested([1.0], [2.0, 3.0]), nested([1.0]))


# At no cost: what torch counts.


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_counters_show_what_was_written(context: Any) -> None:
    model, x = nn.BatchNorm1d(3).eval(), torch.randn(4, 3)
    with context():
        counters = Counters([model._buffers], ({"x": x}, 1))
        model(x)
        assert not counters.have_moved()
        x.nan_to_num_()
        assert counters.have_moved(), "also where it changes no value"
        counters = Counters([model._buffers], (x,))
        model.train()(x)
        assert counters.have_moved()
        counters = Counters([model._buffers], (x,))
        model.running_mean = torch.zeros(3)
        assert counters.have_moved()


def test_tensors_made_in_inference_mode_count_nothing() -> None:
    with torch.inference_mode():
        x = torch.ones(2)
        counters = Counters([], (x,))
        x.add_(1)
        assert not counters.have_moved()


# What modules hold.


def test_an_error_leaves_the_attributes_as_they_were() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model.names, model.table, model.state = ["a"], {"b": 1}, torch.zeros(2)
    layer = model[0]
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    with suppress(KeyboardInterrupt), Witness(model, ()):
        model.names.append("c")
        model.table.clear()
        model.state += 1
        model.state, model.fresh = torch.ones(3), 1
        model[0] = nn.ReLU()
        layer.register_forward_hook(lambda *_: None)
        raise KeyboardInterrupt
    assert {name: dict(vars(module)) for name, module in model.named_modules()} == before
    assert (model.names, model.table, model.state.tolist()) == (["a"], {"b": 1}, [0.0, 0.0])
    assert model[0] is layer
    assert not layer._forward_hooks


@pytest.mark.parametrize("container", [deque([1]), {1}, [1], Counter("a"), defaultdict(int, a=1), OrderedDict(a=1)])
def test_an_error_leaves_what_containers_hold(container: Any) -> None:
    model = nn.Sequential()
    model.kept, expected = container, copy.copy(container)
    with suppress(KeyboardInterrupt), Witness(model, ()):
        container.clear()
        model.register_buffer("late", torch.zeros(1), persistent=False)
        raise KeyboardInterrupt
    assert model.kept is container
    assert container == expected
    assert not model._non_persistent_buffers_set
    assert not hasattr(model, "late")


@pytest.mark.parametrize("change", [lambda state: state.resize_(5), lambda state: state.set_(torch.zeros(3))])
def test_a_tensor_that_cannot_be_filled_again_is_replaced_and_the_error_stays(change: Any) -> None:
    model = nn.Sequential()
    model.state = torch.ones(2)
    model.register_buffer("buffer", torch.ones(2))
    with pytest.raises(KeyError, match="its own"), Witness(model, ()):  # noqa: PT012
        change(model.state)
        change(model.buffer)
        raise KeyError("its own")
    assert model.state.tolist() == model.buffer.tolist() == [1.0, 1.0]


def test_tensors_of_inference_mode_are_filled_again() -> None:
    model = nn.Sequential()
    with torch.inference_mode():
        model.state = torch.ones(2)
    with pytest.raises(KeyError), Witness(model, ()):  # noqa: PT012
        with torch.inference_mode():
            model.state.zero_()
        raise KeyError
    assert model.state.tolist() == [1.0, 1.0]


def test_success_leaves_what_the_model_noted() -> None:
    model = nn.Sequential()
    with Witness(model, ()):
        model.fresh = 1
    assert model.fresh == 1

"""What a pass is given: containers of its own, and as many samples as a trial asks for."""

import random
import threading
import types
from collections import OrderedDict, UserDict, deque
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

from lightning_dropout.sampling import mc_sample
from lightning_dropout.sampling.inputs import batch_size_of, copied, resized, signature_of


class Cache:
    """Grows with each call, as a key-value cache does."""

    def __init__(self) -> None:
        self.keys: list[Tensor] = []


def grow(x: Tensor, cache: Cache) -> Tensor:
    cache.keys.append(x)
    return x * len(cache.keys)


def pop(x: Tensor, options: dict[str, float]) -> Tensor:
    return x * options.pop("scale", 0.0)


def drain(x: Tensor, scales: list[float]) -> Tensor:
    return x * (scales.pop() if scales else 0.0)


class Using(nn.Module):
    """Changes what it is given, before the first draw or behind it."""

    def __init__(self, use: Any, before: bool) -> None:
        super().__init__()
        self.use, self.before = use, before
        self.first, self.drop, self.last = nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 2)

    def forward(self, x: Tensor, given: Any) -> Tensor:
        x = self.use(self.first(x), given) if self.before else self.first(x)
        x = self.drop(x)
        y: Tensor = self.last(x if self.before else self.use(x, given))
        return y


GIVEN: dict[str, tuple[Any, Any, Any]] = {
    "an object that fills": (grow, Cache, lambda cache: cache.keys == []),
    "a dictionary that loses a key": (pop, lambda: {"scale": 2.0}, lambda options: options == {"scale": 2.0}),
    "a list that empties": (drain, lambda: [2.0, 3.0], lambda scales: scales == [2.0, 3.0]),
    "an object of a library's own": (
        lambda x, cache: cache.update(x[:, None, None], x[:, None, None], 0)[0].sum((1, 2)),
        transformers.DynamicCache,
        lambda cache: cache.get_seq_length() == 0,
    ),
    "a dictionary within an object within a list": (
        lambda x, given: pop(x, given[0].options),
        lambda: [types.SimpleNamespace(options={"scale": 2.0})],
        lambda given: given[0].options == {"scale": 2.0},
    ),
}


@pytest.mark.parametrize("before", [True, False], ids=["before the draw", "behind it"])
@pytest.mark.parametrize("name", GIVEN)
def test_each_pass_has_inputs_of_its_own(name: str, before: bool) -> None:
    use, make, is_untouched = GIVEN[name]
    torch.manual_seed(0)
    model, x, given = Using(use, before).eval(), torch.randn(3, 4), make()
    samples = mc_sample(model, x, given, num_samples=4, task="raw", return_samples=True).samples
    assert samples is not None
    assert is_untouched(given)
    for number, sample in enumerate(samples):
        fresh = mc_sample(model, x, make(), num_samples=number + 1, task="raw", return_samples=True).samples
        assert fresh is not None
        assert torch.equal(fresh[number], sample)
    assert not torch.equal(samples[0], samples[1])


@pytest.mark.parametrize("name", GIVEN)
def test_one_container_for_all_passes_is_killed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_dropout.sampling.batch.copied", lambda inputs: inputs)
    with pytest.raises((AssertionError, RuntimeError)):
        test_each_pass_has_inputs_of_its_own(name, before=False)


class Sentinel:
    """Known by who it is."""

    name = "missing"


def test_what_holds_data_or_nothing_is_no_copy() -> None:
    data = (torch.ones(2), np.ones(2), nn.ReLU(), torch.Generator(), random.Random(0))
    others = (len, int, "x", None, Sentinel(), object(), threading.Lock(), memoryview(b"x"), {}.keys(), torch.float32)
    for one, other in zip((*data, *others), copied((*data, *others)), strict=True):
        assert one is other
    holder = types.SimpleNamespace(x=data[0], rng=data[3])
    twin = copied(holder)
    assert twin is not holder
    assert (twin.x, twin.rng) == (holder.x, holder.rng)


def test_objects_that_refer_to_each_other_are_copied_once() -> None:
    one, other = types.SimpleNamespace(past=[]), types.SimpleNamespace(past=[])
    one.other, other.other = other, one
    twin, again = copied((one, one))
    assert twin is again
    assert twin.other.other is twin
    assert twin.other is not other


@pytest.mark.parametrize("container", [UserDict(a=[1]), deque([1]), {1}, [1], {"a": 1}])
def test_containers_of_any_class_are_copied(container: Any) -> None:
    twin = copied(container)
    assert twin == container
    twin.clear()
    assert len(container) == 1


def test_containers_are_copied_at_every_depth() -> None:
    inputs = {"a": [OrderedDict(b=(torch.ones(1), [2]))]}
    twin = copied(inputs)
    twin["a"][0]["b"][1].append(3)
    twin["a"].append(4)
    assert inputs["a"][0]["b"][1] == [2]
    assert len(inputs["a"]) == 1
    assert twin["a"][0]["b"][0] is inputs["a"][0]["b"][0]


def test_what_can_be_used_once_is_refused_by_its_type() -> None:
    torch.manual_seed(0)
    model = Using(lambda x, rows: x + next(rows), before=True).eval()
    with pytest.raises(ValueError, match="inputs that every pass can read from their beginning, but got generator"):
        mc_sample(model, torch.randn(3, 4), (torch.ones(4) for _ in range(9)), num_samples=2, task="raw")


@pytest.mark.parametrize("size", [1, 3])
def test_an_array_that_a_pass_changes_is_refused_and_put_back(size: int) -> None:
    def bump(x: Tensor, scales: Any) -> Tensor:
        scales += 1
        return x * float(scales[0])

    scales = np.zeros(size)
    with pytest.raises(RuntimeError, match="got a changed input"):
        mc_sample(Using(bump, before=True).eval(), torch.randn(3, 4), scales, num_samples=2, task="raw")
    assert not scales.any()


def test_a_generator_within_an_object_is_no_fresh_one_in_every_pass() -> None:
    """It cannot be seeded there, and a copy would draw the same numbers again and again."""
    model = Using(lambda x, given: x + torch.randn(4, generator=given.rng), before=True).eval()
    given = types.SimpleNamespace(rng=torch.Generator(), past=[])
    with pytest.raises(RuntimeError, match="draws from a generator that no seed reaches"):
        mc_sample(model, torch.randn(3, 4), given, num_samples=4, task="raw")


# Other numbers of samples.


def test_more_or_fewer_samples() -> None:
    inputs = {"x": torch.randn(3, 2, 2), "mask": torch.tensor([True, False, True]), "size": torch.tensor(3), "n": 3}
    more, fewer = resized(inputs, 3, 12), resized(inputs, 3, 2)
    assert torch.equal(more["x"], torch.cat([inputs["x"]] * 4))  # type: ignore[list-item]
    assert torch.equal(fewer["x"], inputs["x"][:2])  # type: ignore[index]
    assert fewer["mask"].tolist() == [True, False]
    assert resized(inputs, 3, 5)["mask"].tolist() == [True, False, True, True, False]
    for changed in (more, fewer):
        assert changed["size"] is inputs["size"]
        assert changed["n"] == 3
    assert resized(inputs, 3, 3) is inputs


def test_weights_beside_the_batch_are_no_batch() -> None:
    x, weight = torch.ones(2, 3), torch.ones(3, 2)
    assert batch_size_of((x, weight)) == 2
    more = resized((x, weight), 2, 10)
    assert more[0].shape == (10, 3)
    assert more[1] is weight


def test_what_may_choose_another_way_is_another_kind_of_call() -> None:
    x, double = torch.ones(2, 3), torch.ones(2, 3).double()
    kinds = [
        signature_of((x,), {}),
        signature_of((double,), {}),
        signature_of((x[0],), {}),
        signature_of((x, x), {}),
        signature_of((x,), {"mask": x}),
        signature_of((x, None), {}),
        signature_of((x, True), {}),
        signature_of((x, False), {}),
        signature_of((x, "mean"), {}),
        signature_of((x, "max"), {}),
        signature_of(({"x": x},), {}),
    ]
    assert len(set(kinds)) == len(kinds)
    assert signature_of((x, 1, ["a text"]), {"size": 2.0}) == signature_of((x[:1], 2, ["another"]), {"size": 3.0})


@pytest.mark.parametrize("inputs", [(), (1, "x"), (torch.tensor(1.0),)])
def test_inputs_without_a_batch(inputs: Any) -> None:
    with pytest.raises(ValueError, match="a tensor with a batch dimension among the inputs, but got none"):
        batch_size_of(inputs)

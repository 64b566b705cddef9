"""Seeds of the passes, and that nobody outside notices them."""

import copy
import itertools
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_dropout import randomness
from lightning_dropout.randomness import (
    derive_seed,
    generators_of,
    isolated_generators,
    isolated_randomness,
    numpy_state,
    own_generators_of,
    own_states,
    random_states,
    seed_everywhere,
    torch_states,
)

Z_LIMIT = 4.71


def draw_from_everywhere() -> tuple[float, float, float]:
    return torch.rand(()).item(), np.random.rand(), random.random()  # noqa: NPY002  (the global state is what this is about)


# Derived seeds.


def test_seeds_are_the_same_on_every_machine() -> None:
    assert derive_seed(0) == 4_761_921_975_702_974_394 == derive_seed(np.int64(0))
    assert derive_seed(0, 1) == 1_506_311_409_109_703_068


def check_distinct(derive: Callable[..., int]) -> None:
    """No two (seed, rank, batch, pass) of a grid share a seed."""
    grid = list(itertools.product(range(12), repeat=4))
    assert len({derive(*parts) for parts in grid}) == len(grid)


def test_no_two_places_share_a_seed() -> None:
    check_distinct(derive_seed)
    assert derive_seed(1, 23) != derive_seed(12, 3)
    assert derive_seed(1) != derive_seed(1, 0)
    assert derive_seed(-1) != derive_seed(1)
    assert all(0 <= derive_seed(number) < 2**63 for number in range(1000))


@pytest.mark.parametrize(
    "derive",
    [
        lambda *parts: sum(parts),
        lambda *parts: int("".join(str(part) for part in parts)),
        lambda *parts: derive_seed(*sorted(parts)),
        lambda *parts: derive_seed(*parts[1:]),
    ],
    ids=["sum", "glued", "no order", "a part forgotten"],
)
def test_careless_seeds_are_killed(derive: Callable[..., int]) -> None:
    with pytest.raises(AssertionError):
        check_distinct(derive)


def test_masks_of_neighbouring_seeds_are_independent() -> None:
    p, size = 0.3, 2000
    masks = []
    for number in range(200):
        seed_everywhere(derive_seed(0, number))
        masks.append((torch.rand(size) < p).double() - p)
    centred = torch.stack(masks)
    for lag in (1, 2, 7):
        products = centred[:-lag] * centred[lag:]
        z = products.sum() / (p * (1 - p) * products.numel() ** 0.5)
        assert abs(z) < Z_LIMIT


@pytest.mark.parametrize("seed", [None, 1.5, "1", torch.tensor(1)], ids=repr)
def test_a_seed_is_a_whole_number(seed: Any) -> None:
    with pytest.raises(ValueError, match=r"^Expected `seed` to be a whole number, but got"):
        derive_seed(0, seed)


# All generators.


def test_every_generator_is_seeded() -> None:
    seed_everywhere(5)
    first = draw_from_everywhere()
    seed_everywhere(5)
    assert draw_from_everywhere() == first
    seed_everywhere(6)
    assert all(one != other for one, other in zip(draw_from_everywhere(), first, strict=True))
    seed_everywhere(2**63 - 1)  # numpy takes 32 bits only


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_every_generator_is_given_back(error: type[BaseException] | None) -> None:
    def leave() -> None:
        if error is not None:
            raise error

    model = nn.Linear(2, 2)
    seed_everywhere(1)
    expected = draw_from_everywhere(), draw_from_everywhere()
    seed_everywhere(1)
    assert draw_from_everywhere() == expected[0]
    with suppress(error or ()), isolated_randomness(model):
        seed_everywhere(99)
        draw_from_everywhere()
        leave()
    assert draw_from_everywhere() == expected[1]


def test_isolation_nests() -> None:
    seed_everywhere(1)
    expected = draw_from_everywhere()
    seed_everywhere(1)
    model = nn.Identity()
    with isolated_randomness(model):
        seed_everywhere(2)
        with isolated_randomness(model):
            seed_everywhere(3)
        inner = draw_from_everywhere()
        seed_everywhere(2)
        assert draw_from_everywhere() == inner
    assert draw_from_everywhere() == expected


def test_models_on_no_device_are_no_trouble() -> None:
    with isolated_randomness(nn.Linear(2, 2, device="meta")), isolated_randomness(nn.LazyLinear(2)):
        pass


@pytest.mark.parametrize(("device", "index"), [("cuda:1", 1), ("cuda", 0), ("xpu:0", 0), ("mps:0", 0)])
@pytest.mark.parametrize("holds", ["model", "inputs"])
def test_only_the_accelerators_that_compute_are_given_back(
    device: str, index: int, holds: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Generators:
        default_generators = (torch.Generator(), torch.Generator(), torch.Generator())

        @classmethod
        def _get_default_mps_generator(cls) -> torch.Generator:
            return cls.default_generators[0]

    where = torch.device(device)

    class There(Tensor):
        device = where  # type: ignore[assignment]

    monkeypatch.setattr(randomness.torch, "get_device_module", lambda _: Generators)
    tensor = torch.ones(1).as_subclass(There)
    model = nn.Module()
    if holds == "model":
        model.register_buffer("there", tensor)
    found = generators_of(model.modules(), [tensor, "no tensor"] if holds == "inputs" else ())
    assert found == [torch.default_generator, Generators.default_generators[index]]
    others = [generator.get_state() for generator in Generators.default_generators]
    with isolated_generators(found):
        seed_everywhere(3, found)
        assert found[1].initial_seed() == 3
    assert all(
        torch.equal(generator.get_state(), before)
        for generator, before in zip(Generators.default_generators, others, strict=True)
    )


# Looking at states.


DRAWS: dict[str, Callable[[], object]] = {
    "torch": lambda: torch.rand(()),
    "numpy": np.random.rand,
    "random": random.random,
}


@pytest.mark.parametrize("library", DRAWS)
def test_a_draw_moves_the_state_of_its_library_alone(library: str) -> None:
    before = random_states([torch.default_generator])
    assert random_states([torch.default_generator]) == before, "looking is no draw"
    DRAWS[library]()
    moved = [old != new for old, new in zip(before, random_states([torch.default_generator]), strict=True)]
    assert moved == [library == name for name in DRAWS]


def test_a_state_that_is_put_back_is_the_same() -> None:
    before = random_states([torch.default_generator])
    with isolated_randomness(nn.Identity()):
        draw_from_everywhere()
        assert random_states([torch.default_generator]) != before
    assert random_states([torch.default_generator]) == before


def test_a_state_is_no_view_of_the_generator() -> None:
    before = random_states([torch.default_generator])
    kept = copy.deepcopy(before)
    draw_from_everywhere()
    assert before == kept


def test_every_generator_that_is_asked_for_counts() -> None:
    own = torch.Generator()
    before = random_states([torch.default_generator, own])
    torch.rand((), generator=own)
    assert random_states([torch.default_generator, own]) != before
    assert random_states([torch.default_generator]) == (torch_states([torch.default_generator]), *before[1:])


def test_another_bit_generator_of_numpys_global_one_is_watched_too() -> None:
    usual = np.random.get_bit_generator()  # type: ignore[attr-defined]
    np.random.set_bit_generator(np.random.PCG64(3))  # type: ignore[attr-defined]
    try:
        before = numpy_state()
        assert numpy_state() == before
        np.random.rand()  # noqa: NPY002
        assert numpy_state() != before
    finally:
        np.random.set_bit_generator(usual)  # type: ignore[attr-defined]


# Generators that modules hold.


OWN: dict[str, tuple[Callable[[], Any], Callable[[Any], float]]] = {
    "torch": (lambda: torch.Generator().manual_seed(1), lambda own: torch.rand((), generator=own).item()),
    "numpy": (lambda: np.random.default_rng(1), lambda own: own.random()),
    "numpy, Mersenne": (lambda: np.random.Generator(np.random.MT19937(1)), lambda own: own.random()),
    "numpy of old": (lambda: np.random.RandomState(1), lambda own: own.rand()),
    "numpy of old, of other bits": (lambda: np.random.RandomState(np.random.PCG64(1)), lambda own: own.normal()),
    "numpy of old, normal": (lambda: np.random.RandomState(1), lambda own: own.normal()),  # draws two, keeps one
    "random": (lambda: random.Random(1), lambda own: own.random()),
}


@pytest.mark.parametrize("name", OWN)
def test_own_generators_are_seeded_each_for_itself_and_given_back(name: str) -> None:
    make, draw = OWN[name]
    own = [make(), make()]
    untouched = make()
    before = own_states(own)
    draws = []
    with isolated_generators([], own):
        for seed in (5, 5, 6, 2**63 - 1):
            seed_everywhere(seed, [], own)
            draws.append([draw(each) for each in own])
            assert own_states(own) != before
    assert own_states(own) == before
    assert [draw(each) for each in own] == [draw(untouched)] * 2
    assert draws[0] == draws[1]
    assert len({*itertools.chain(*draws)}) == 6, "other seeds, and other generators, draw other numbers"


@pytest.mark.parametrize("name", OWN)
def test_a_draw_of_an_own_generator_is_seen(name: str) -> None:
    make, draw = OWN[name]
    own = [make(), make()]
    before = own_states(own)
    assert own_states(own) == before, "looking is no draw"
    draw(own[1])
    assert [one != other for one, other in zip(own_states(own), before, strict=True)] == [False, True]


def test_own_generators_are_found_at_any_place_once() -> None:
    layer, other = nn.Identity(), nn.Identity()
    one, two, three = torch.Generator(), np.random.default_rng(), random.Random(0)
    layer.one, layer.again, layer.more = one, one, {"two": two, "secret": random.SystemRandom()}
    other.one, other.long = one, [0] * 10**6
    other.itself = {"loop": other.__dict__}
    assert own_generators_of([layer, other], {"g": [three]}) == [one, two, three]

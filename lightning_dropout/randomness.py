"""Randomness: where a pass gets its seed, and how nobody else notices what is drawn.

``torch``'s dropout draws from the global generators and takes no generator of its own, so a pass seeds the global ones
and gives them back as they were. Python's and numpy's are treated alike, since layers exist that draw from them, and so
are generators that modules hold for themselves.
"""

import ctypes
import hashlib
import numbers
import random
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

__all__ = [
    "OwnGenerator",
    "all_states",
    "derive_seed",
    "generators_of",
    "isolated_generators",
    "isolated_randomness",
    "numpy_state",
    "own_generators_of",
    "own_states",
    "random_states",
    "seed_everywhere",
    "seeded_generators",
    "torch_states",
]

_MT19937_BYTES = 2500  # 624 words and a position
_COMMON = frozenset([bool, int, float, str, type(None)])
_CONTAINERS = frozenset([dict, OrderedDict, list, tuple])
_LONGEST = 1000  # entries of a list that is looked through; longer ones hold data

_KINDS = (np.random.Generator, np.random.RandomState, random.Random, torch.Generator)
OwnGenerator = torch.Generator | np.random.Generator | np.random.RandomState | random.Random


def derive_seed(*parts: int) -> int:
    """Return a seed in [0, 2**63) that depends on every part and on their order.

    Unlike a sum or a tuple's ``hash`` it is the same on every machine and gives unrelated seeds for neighbours, so
    that (seed 0, pass 1) and (seed 1, pass 0) share nothing.

    Raises:
        ValueError: If a part is no whole number.

    Example:
        >>> derive_seed(0, 1) == derive_seed(0, 1), derive_seed(0, 1) == derive_seed(1, 0)
        (True, False)
    """
    for part in parts:
        if not isinstance(part, numbers.Integral):
            raise ValueError(f"Expected `seed` to be a whole number, but got {part!r}.")
    digest = hashlib.blake2b(",".join(str(int(part)) for part in parts).encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "big") >> 1


def seed_everywhere(
    seed: int, generators: Sequence[torch.Generator] | None = None, own: Sequence[OwnGenerator] = ()
) -> None:
    """Seed numpy's and Python's global generators, and torch's: those of all devices, or only ``generators``.

    Those of modules (``own``) get other seeds, each its own: with one and the same, two layers would draw one mask.
    """
    if generators is None:
        torch.manual_seed(seed)
    for generator in generators or ():
        generator.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  (layers that draw from numpy use the global state)
    random.seed(seed)
    for index, each in enumerate(own):
        part = derive_seed(seed, index)
        if isinstance(each, torch.Generator):
            each.manual_seed(part)
        elif isinstance(each, random.Random):
            each.seed(part)
        else:
            bits = type(_bit_generator(each))(part)
            _give_back(each, _state(type(each)(bits)))


def isolated_randomness(model: nn.Module) -> AbstractContextManager[None]:
    """Give every global generator back as it was: on the CPU and on the accelerators that hold ``model``."""
    return isolated_generators(generators_of(model.modules()))


@contextmanager
def isolated_generators(generators: Sequence[torch.Generator], own: Sequence[OwnGenerator] = ()) -> Iterator[None]:
    """Give torch's ``generators``, those of modules, numpy's and Python's back as they were."""
    states = [(each, _state(each)) for each in (*generators, *own)]
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002

    def give_back() -> None:
        for each, state in states:
            _give_back(each, state)
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002

    with (stack := ExitStack()), stack:
        stack.callback(give_back)
        stack.callback(give_back)  # once more: an interrupt may have hit the first, or the way out
        yield


@contextmanager
def seeded_generators(seed: int) -> Iterator[None]:
    """Draw on the CPU from generators that are seeded for it, and give them back as they were.

    Example:
        >>> with seeded_generators(5):
        ...     first = torch.rand(1)
        >>> with seeded_generators(5):
        ...     print(torch.rand(1) == first)
        tensor([True])
    """
    with isolated_generators([torch.default_generator]):
        seed_everywhere(seed, [torch.default_generator])
        yield


def _state(generator: OwnGenerator) -> Any:
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.RandomState):
        return generator.get_state(legacy=False)  # the only form for another bit generator than the usual one
    return generator.bit_generator.state if isinstance(generator, np.random.Generator) else generator.get_state()


def _give_back(generator: OwnGenerator, state: Any) -> None:
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    else:
        generator.set_state(state)


def own_generators_of(modules: Iterable[nn.Module], inputs: object = ()) -> list[OwnGenerator]:
    """Return the generators that modules hold in an attribute, or in a short list or dictionary, and those in a call.

    Python's ``SystemRandom`` is none of them, since nothing can seed it.

    Example:
        >>> layer = nn.Identity()
        >>> layer.noise = [torch.Generator(), random.SystemRandom()]
        >>> own_generators_of([layer])
        [<torch._C.Generator object at 0x...>]
    """
    held = (entry for module in modules for entry in _entries(vars(module).values()))
    found = (
        each
        for each in (*held, *tree_leaves(inputs))
        if isinstance(each, _KINDS) and not isinstance(each, random.SystemRandom)
    )
    return [*{id(each): each for each in found}.values()]


def _entries(attributes: Iterable[Any]) -> Iterator[Any]:
    """Yield attributes that may be generators, and the entries of short lists and dictionaries among them."""
    for attribute in attributes:
        kind = type(attribute)
        if kind in _COMMON:
            continue
        if kind not in _CONTAINERS:
            yield attribute
        elif 0 < len(attribute) <= _LONGEST:
            yield from attribute.values() if isinstance(attribute, dict) else attribute


def generators_of(modules: Iterable[nn.Module], inputs: Iterable[object] = ()) -> list[torch.Generator]:
    """Return torch's global generators that a forward of these modules, given these tensors, may draw from."""
    held = (tensor for module in modules for tensor in (*module._parameters.values(), *module._buffers.values()))
    devices = {tensor.device for tensor in (*held, *inputs) if isinstance(tensor, torch.Tensor)}
    generators = [torch.default_generator]
    for device in devices:
        if device.type not in ("cpu", "meta"):
            of_type: Any = torch.get_device_module(device)
            if device.type == "mps":
                generators.append(of_type._get_default_mps_generator())
            else:
                generators += getattr(of_type, "default_generators", ())[device.index or 0 :][:1]
    return generators


def random_states(generators: Sequence[torch.Generator]) -> tuple[object, ...]:
    """Return the states of torch's ``generators`` together, of numpy's and of Python's: one differs once it is drawn.

    Example:
        >>> before = random_states([torch.default_generator])
        >>> _ = torch.rand(1)
        >>> [state == old for state, old in zip(random_states([torch.default_generator]), before)]
        [False, True, True]
    """
    return torch_states(generators), numpy_state(), random.getstate()


def own_states(own: Sequence[OwnGenerator]) -> Sequence[object]:
    """Return the states of modules' own generators in a form that can be compared."""
    return [_comparable_state(each) for each in own]


def all_states(generators: Sequence[torch.Generator], own: Sequence[OwnGenerator]) -> tuple[object, ...]:
    """Return what :func:`random_states` does, and behind it the states of modules' own generators together."""
    return *random_states(generators), own_states(own)


def torch_states(generators: Sequence[torch.Generator]) -> Sequence[bytes]:
    """Return what the states of torch's ``generators`` hold."""
    return [generator.get_state().numpy().tobytes() for generator in generators]


def numpy_state() -> object:
    """Return what the state of numpy's global generator holds."""
    return _bits(np.random.get_bit_generator())  # type: ignore[attr-defined]


def _comparable_state(generator: OwnGenerator) -> object:
    if isinstance(generator, torch.Generator):
        return torch_states([generator])
    if isinstance(generator, random.Random):
        return generator.getstate()
    return _bits(_bit_generator(generator))


def _bit_generator(generator: Any) -> Any:
    return generator.bit_generator if isinstance(generator, np.random.Generator) else generator._bit_generator


def _bits(generator: Any) -> object:
    if isinstance(generator, np.random.MT19937):  # its `state` takes 40 µs to build, its memory none
        return ctypes.string_at(generator.ctypes.state_address, _MT19937_BYTES)
    return repr(generator.state)

"""Randomness: where a pass gets its seed, and how nobody else notices what is drawn.

``torch``'s dropout draws from the global generators and takes no generator of its own, so a pass seeds the global ones
and gives them back as they were. Python's and numpy's are treated alike, since layers exist that draw from them.
"""

import ctypes
import hashlib
import numbers
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

__all__ = [
    "derive_seed",
    "generators_of",
    "isolated_generators",
    "isolated_randomness",
    "numpy_state",
    "random_states",
    "seed_everywhere",
    "torch_states",
]

_MT19937_BYTES = 2500  # 624 words and a position


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


def seed_everywhere(seed: int, generators: Sequence[torch.Generator] | None = None) -> None:
    """Seed numpy's and Python's global generators, and torch's: those of all devices, or only ``generators``."""
    if generators is None:
        torch.manual_seed(seed)
    for generator in generators or ():
        generator.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  (layers that draw from numpy use the global state)
    random.seed(seed)


def isolated_randomness(model: nn.Module) -> AbstractContextManager[None]:
    """Give every global generator back as it was: on the CPU and on the accelerators that hold ``model``."""
    return isolated_generators(generators_of(model.modules()))


@contextmanager
def isolated_generators(generators: Sequence[torch.Generator]) -> Iterator[None]:
    """Give torch's ``generators``, numpy's and Python's back as they were."""
    states = [generator.get_state() for generator in generators]
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002


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


def torch_states(generators: Sequence[torch.Generator]) -> Sequence[bytes]:
    """Return what the states of torch's ``generators`` hold."""
    return [generator.get_state().numpy().tobytes() for generator in generators]


def numpy_state() -> object:
    """Return what the state of numpy's global generator holds."""
    generator = np.random.get_bit_generator()  # type: ignore[attr-defined]
    if isinstance(generator, np.random.MT19937):  # its `state` takes 40 µs to build, its memory none
        return ctypes.string_at(generator.ctypes.state_address, _MT19937_BYTES)
    return repr(generator.state)

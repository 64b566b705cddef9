"""Randomness: where a pass gets its seed, and how nobody else notices what is drawn.

``torch``'s dropout draws from the global generators and takes no generator of its own, so a pass seeds the global ones
and gives them back as they were. Python's and numpy's are treated alike, since layers exist that draw from them.
"""

import hashlib
import numbers
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

__all__ = ["derive_seed", "isolated_randomness", "seed_everywhere"]


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


def seed_everywhere(seed: int) -> None:
    """Seed the global generators of torch (all devices), numpy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  (layers that draw from numpy use the global state)
    random.seed(seed)


@contextmanager
def isolated_randomness(model: nn.Module) -> Iterator[None]:
    """Give every global generator back as it was: on the CPU and on the accelerators that hold ``model``."""
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    accelerators = sorted({device.index or 0 for device in devices if device.type not in ("cpu", "meta")})
    device_type = next((device.type for device in devices if device.type not in ("cpu", "meta")), "cuda")
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=accelerators, device_type=device_type):
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002

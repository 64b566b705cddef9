"""What all ranks agree on without waiting for each other: the largest number that one of them brings.

A process group of its own (gloo, on the CPU), so that nothing here queues up behind gradients or synchronises a GPU.
It dies with the process: a rank that is gone is an error of the next call, never a hang.
"""

import time
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["RankAgreement"]


_MOST_CALLS = 64  # between two questions


class RankAgreement:
    """Find the largest or smallest number of all ranks, at once or a little later.

    Every rank makes the group together and calls equally often, in the same order. With one process the answer is the
    number itself.

    Args:
        period: Seconds between two questions of ``soon``, about; the calls between them cost nothing.

    Example:
        >>> RankAgreement().soon(3)
        3
    """

    def __init__(self, period: float = 0.5) -> None:
        many = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self._group: Any = dist.new_group(backend="gloo") if many else None
        self._period = period
        self._asked: tuple[Tensor, Any] | None = None
        self._answer = 0
        self._calls = 0  # since the last question
        self._calls_between = 1
        self._since = time.monotonic()  # when it was asked

    def soon(self, value: int) -> int:
        """Return the largest ``value`` as of an earlier call, 0 at first: the ranks talk while they compute."""
        if self._group is None:
            return value
        self._calls += 1
        if self._calls < self._calls_between:
            return self._answer
        if self._asked is not None:
            tensor, work = self._asked
            work.wait()
            self._answer, least = tensor.tolist()
            self._calls_between = -least
        now = time.monotonic()
        calls = int(self._period * self._calls / max(now - self._since, 1e-6))
        self._calls, self._since = 0, now
        # All ranks ask again after equally many calls: the fewest that one of them proposes.
        tensor = torch.tensor([value, -min(max(calls, 1), _MOST_CALLS)], device="cpu")
        self._asked = tensor, dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return self._answer

    def hurry(self) -> None:
        """Ask at the next call of ``soon``: what follows takes another time; all ranks say so together."""
        self._calls, self._calls_between, self._since = 0, 1, time.monotonic()

    def largest(self, value: int) -> int:
        """Return the largest ``value`` of this call, when all ranks have made it."""
        return self._now(value, dist.ReduceOp.MAX)

    def smallest(self, value: int) -> int:
        """Return the smallest ``value`` of this call, when all ranks have made it."""
        return self._now(value, dist.ReduceOp.MIN)

    def _now(self, value: int, operation: Any) -> int:
        if self._group is None:
            return value
        tensor = torch.tensor(value, device="cpu")
        dist.all_reduce(tensor, operation, group=self._group)
        return int(tensor)

"""The order of the training rows: a function of seed and epoch, gone on with in the middle of an epoch.

Nothing is drawn from the global generators, and no state of a generator is stored: a loader that is made anew for a
resumed run is where the old one was, whatever has been drawn since.
"""

import warnings
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DistributedSampler
from torchdata.stateful_dataloader import StatefulDataLoader

__all__ = ["TrainingLoader", "TrainingOrder"]


class TrainingLoader(StatefulDataLoader):  # type: ignore[misc]
    """torchdata's loader, which begins only when the first batch is asked for.

    Lightning makes the iterator before it has restored its counters or set the epoch, and where the length of the run
    is asked for in ``configure_optimizers`` or ``setup``, it never loads the state of the loader.

    Args:
        Those of :class:`torchdata.stateful_dataloader.StatefulDataLoader`.
    """

    trainer: Any = None
    """Of the training, if one reads from this loader."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with warnings.catch_warnings():  # of what torchdata 0.11 calls in torch 2.14
            warnings.filterwarnings("ignore", "'set_vital' is deprecated", UserWarning)
            super().__init__(*args, **kwargs)

    def __iter__(self) -> Iterator[Any]:
        if self.trainer is not None:
            self.trainer.fit_loop._load_combined_loader_states()
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """Return the position; before the first batch the one that was loaded, which torchdata would begin for it."""
        if self._iterator is None:
            return self.next_iter_state or {}
        state: dict[str, Any] = super().state_dict()
        return state


class TrainingOrder(DistributedSampler[Any]):
    """All rows in an order that each epoch has for itself, this process's part of them.

    Rows are given as ``(epoch + 1) * rows + row``, so that a data set, in a worker process too, knows the epoch that it
    reads for. Outside of a trainer, which sets the epoch, each complete pass moves on to the next.

    Args:
        Those of :class:`torch.utils.data.DistributedSampler`.

    Example:
        >>> order = TrainingOrder(range(4), num_replicas=1, rank=0)
        >>> [row % 4 for row in order], [row % 4 for row in order]
        ([0, 1, 3, 2], [1, 3, 2, 0])
    """

    def __iter__(self) -> Iterator[int]:
        first = (self.epoch + 1) * len(self.dataset)  # type: ignore[arg-type]
        return _Pass(self, [first + row for row in super().__iter__()])


class _Pass(Iterator[int]):
    """One epoch's rows; torchdata asks for its state with each batch, so that prefetched ones are not counted."""

    def __init__(self, order: TrainingOrder, rows: list[int]) -> None:
        self._order, self._rows = order, rows
        self._epoch, self._given = order.epoch, 0

    def __next__(self) -> int:
        if self._given == len(self._rows):
            self._order.set_epoch(self._epoch + 1)
            raise StopIteration
        self._given += 1
        return self._rows[self._given - 1]

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self._epoch, "given": self._given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        if state["epoch"] == self._epoch:  # else of an epoch that is over: Lightning may hand it to the next
            self._given = state["given"]

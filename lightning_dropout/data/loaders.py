"""What every data module of this room shares: rows chosen from a store, and the loaders over them.

How rows are read and split belongs to the subclasses; nothing is read from disk or downloaded here.
"""

import itertools
import os
from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_dropout.data.arguments import check_count
from lightning_dropout.data.order import TrainingLoader, TrainingOrder
from lightning_dropout.data.splits import stratified_subset
from lightning_dropout.randomness import derive_seed, seeded_generators

__all__ = ["Rows", "RowsDataModule", "Store", "strata_of"]

Sample = tuple[Tensor, Tensor]


class Store(Protocol):
    """Anything that turns row numbers ``(batch,)`` into one tensor ``(batch, ...)``: a tensor, or files on disk."""

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        """Read the given rows."""


class Rows(Dataset[Sample]):
    """Chosen rows of a store with their targets, transformed a batch at a time.

    A loader asks for all rows of a batch at once, so indexing and transform run once per batch and not once per row.
    Positions beyond the last row are rows of a training epoch, as :class:`TrainingOrder` gives them: what the transform
    then draws follows from ``seed``, epoch and row, whichever process reads them.
    The transform must therefore draw its random numbers per row.

    Args:
        inputs: Store of all rows.
        targets: Targets of all rows of the store.
        rows: The row numbers that belong to this data set, in order.
        transform: Maps ``(batch, ...)`` to what the model reads; None leaves the rows as they are. A module-level
            function or an object (no lambda), so that worker processes can receive it.

    Shape:
        One item is ``(x, y)``: ``x`` without the batch dimension, ``y`` one row of ``targets``.

    Example:
        >>> rows = Rows(torch.arange(10.0), torch.arange(10), rows=torch.tensor([3, 5]))
        >>> len(rows), rows[1]
        (2, (tensor(5.), tensor(5)))
    """

    def __init__(
        self, inputs: Store, targets: Tensor, rows: Tensor, transform: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        self.inputs = inputs
        self.targets = targets
        self.rows = rows
        self.transform = transform
        self.seed = 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> Sample:
        return self.__getitems__([range(len(self))[position]])[0]

    def __getitems__(self, positions: list[int]) -> list[Sample]:
        """Read several rows at once; PyTorch's loaders call this with the positions of a whole batch."""
        rows = self.rows[[position % len(self) for position in positions]]
        inputs = self.inputs[rows]
        if self.transform is not None:
            with self._randomness(positions[0]):
                inputs = self.transform(inputs)
        return list(zip(inputs, self.targets[rows], strict=True))

    def _randomness(self, first: int) -> AbstractContextManager[None]:
        """Seed the transform of a training batch by the batch alone: no worker process draws what another would have.

        In an epoch each row is the first of one batch at most, on one process.
        """
        return seeded_generators(derive_seed(self.seed, first)) if first >= len(self) else nullcontext()

    def subset(self, positions: Tensor, transform: Callable[[Tensor], Tensor] | None) -> "Rows":
        """Return the rows at ``positions`` of the same store under another transform."""
        return Rows(self.inputs, self.targets, self.rows[positions], transform)


def strata_of(targets: Tensor) -> Tensor:
    """Return the class of each row, or one stratum for all rows of real-valued (regression) targets.

    Shape:
        ``(rows, ...)`` to ``(rows,)``.

    Example:
        >>> strata_of(torch.tensor([[0.5], [0.7]]))
        tensor([0, 0])
    """
    return torch.zeros(len(targets), dtype=torch.long) if targets.is_floating_point() else targets


def equal_batches(rows: int, processes: int, batch_size: int) -> int:
    """Return a batch size near ``batch_size`` with which all processes have equally many batches of their own rows.

    Process r has the rows r, r + processes, ...: some processes have one row more than the others, which must not
    become a batch more. Ranks of a sharded model, and of a DDP model in training, wait for each other in every forward.

    Args:
        rows: Number of rows, at least one for each process.
        processes: Number of processes, at least 1.
        batch_size: What is wished for, at least 1: the next smaller size that fits is taken, or else the next larger.

    Example:
        >>> equal_batches(65, 2, batch_size=32)  # 33 rows are 31 + 2, 32 rows are 31 + 1
        31
        >>> equal_batches(64, 2, batch_size=32)
        32
    """
    fewest, some_have_more = divmod(rows, processes)
    sizes = itertools.chain(range(batch_size, 0, -1), itertools.count(batch_size + 1))
    return next(size for size in sizes if not some_have_more or fewest % size)


class RowsDataModule(LightningDataModule):
    """Loaders over training, validation and test rows, and over a fixed part of the training rows.

    In training ``train_dataloader`` yields shuffled (and, if asked for, augmented) rows. ``val_dataloader`` returns a
    list: the validation rows, then the *gap rows*, a fixed subset of the training rows without augmentation, as many
    as there are validation rows (or all, if there are fewer). The difference of the two losses, both in evaluation
    mode, is the generalisation gap ``val/gap``. Testing and prediction read the test rows; where a subclass has
    out-of-distribution sets, ``test_dataloader`` returns a list: the test rows, then those of each name in
    ``ood_names``, whose labels are -100, which torch's losses leave out.

    In a distributed run every process evaluates rows of its own, and all together each row once: no sampler repeats
    some to make the shares equal, as Lightning's would. The number of batches is equal all the same, for which they
    may be a row or so smaller. Sets of fewer rows than processes are left to Lightning.

    Batches are pairs ``(x, y)``. Splits depend on ``seed`` alone, so all processes of a distributed run agree on them;
    ``setup`` may be called any number of times. Nothing goes into ``hparams``.

    Args:
        batch_size: Rows per batch and process, at least 1; may exceed the number of rows.
        num_workers: Worker processes per loader, at least 0; 0 reads in the main process.
        pin_memory: Whether batches are put into page-locked memory, which speeds up the copy to a GPU.
        seed: Seed of the splits, at least 0; independent of the seed of the training.
        gap_loader: Whether ``val_dataloader`` yields the second loader.

    Raises:
        ValueError: If an argument is out of range; in ``setup``, if a set is empty.
    """

    train_set: Rows
    val_set: Rows | None  # None: the subclass was told to keep no validation rows
    test_set: Rows
    gap_set: Rows | None
    ood_sets: Mapping[str, Rows]
    ood_names: tuple[str, ...] = ()
    """Of the test loaders after the first: data sets that the model is not trained for."""

    def __init__(
        self,
        batch_size: int = 64,
        num_workers: int = 0,
        pin_memory: bool = False,
        seed: int = 0,
        gap_loader: bool = True,
    ) -> None:
        super().__init__()
        self.batch_size = check_count(batch_size, "batch_size", minimum=1)
        self.num_workers = check_count(num_workers, "num_workers", minimum=0, maximum=1024)
        self.pin_memory = pin_memory
        self.seed = check_count(seed, "seed", minimum=0)
        self.gap_loader = gap_loader
        self._is_set_up = False

    @abstractmethod
    def make_sets(self) -> tuple[Rows, Rows | None, Rows]:
        """Return training, validation and test rows; called once per process."""

    @abstractmethod
    def cure_of_empty(self, name: str) -> str:
        """Say what the user can do when the set ``"training"``, ``"validation"`` or ``"test"`` has no rows."""

    def make_ood_sets(self, test: Rows) -> Mapping[str, Rows]:
        """Return the rows of each of ``ood_names``, which may be made of the test rows; called once per process."""
        return {}

    def plain_transform(self) -> Callable[[Tensor], Tensor] | None:
        """Return the transform without augmentation: what validation, test and gap rows go through."""
        return None

    def setup(self, stage: str | None = None) -> None:
        """Read and split the data, whatever the stage: an empty test set should end the run before the training."""
        if self._is_set_up:
            return
        train, val, test = self.make_sets()
        for name, rows in (("training", train), ("validation", val), ("test", test)):
            if rows is not None and len(rows) == 0:
                raise ValueError(
                    f"Expected the {name} set to have at least one row, but got none; {self.cure_of_empty(name)}."
                )
        self.ood_sets = self.make_ood_sets(test)
        self.train_set, self.val_set, self.test_set = train, val, test
        self.gap_set = None
        if val is not None and self.gap_loader:
            strata = strata_of(train.targets[train.rows])
            positions = stratified_subset(strata, min(len(train), len(val)), self.seed)
            self.gap_set = train.subset(positions, self.plain_transform())
        self._is_set_up = True

    def train_dataloader(self) -> DataLoader[Sample]:
        """Return shuffled training batches; a last batch of one row is left out, since BatchNorm cannot train on it."""
        self._expect_setup()
        seed = int(os.environ.get("PL_GLOBAL_SEED") or 0)  # equal on all ranks, as Lightning's own samplers have it
        part = (self.trainer and self.trainer.distributed_sampler_kwargs) or {"num_replicas": 1, "rank": 0}
        self.train_set.seed = seed
        order = TrainingOrder(self.train_set, **part, seed=seed)  # padded up to equal parts
        leaves_one = len(order) > self.batch_size and len(order) % self.batch_size == 1
        loader = TrainingLoader(self.train_set, sampler=order, drop_last=leaves_one, **self._loading())
        loader.trainer = self.trainer
        return loader

    def val_dataloader(self) -> list[DataLoader[Sample]]:
        """Return ``[validation loader, gap loader]``, without the second if ``gap_loader`` is False."""
        self._expect_setup()
        return [self._in_order(rows) for rows in (self.val_set, self.gap_set) if rows is not None]

    def test_dataloader(self) -> DataLoader[Sample] | list[DataLoader[Sample]]:
        """Return the test rows in order; with ``ood_names`` a list, in which their loaders follow."""
        test = self.predict_dataloader()
        others = [self._in_order(self.ood_sets[name]) for name in self.ood_names]
        return [test, *others] if others else test

    def predict_dataloader(self) -> DataLoader[Sample]:
        """Return the test rows in order."""
        self._expect_setup()
        return self._in_order(self.test_set)

    def _expect_setup(self) -> None:
        if not self._is_set_up:
            raise RuntimeError("Expected `setup` to be called before a loader is asked for; call `setup()` first.")

    def _in_order(self, rows: Rows) -> DataLoader[Sample]:
        share = self._share
        if share is None or len(rows) < share["num_replicas"]:
            return self._loader(rows)
        sampler = UnrepeatedDistributedSampler(rows, shuffle=False, **share)
        return self._loader(
            rows, sampler=sampler, batch_size=equal_batches(len(rows), share["num_replicas"], self.batch_size)
        )

    @property
    def _share(self) -> dict[str, Any] | None:
        """Which of how many shares this process evaluates; None if it is alone, or if Lightning is to see to it."""
        trainer: Any = self.trainer
        if trainer is None or trainer.overfit_batches or not trainer._accelerator_connector.use_distributed_sampler:
            return None
        share: dict[str, Any] | None = trainer.distributed_sampler_kwargs
        return share

    def _loader(self, rows: Rows, **how: Any) -> DataLoader[Sample]:
        return DataLoader(rows, **{**self._loading(), **how})

    def _loading(self) -> dict[str, Any]:
        return {
            "batch_size": self.batch_size,
            "num_workers": self.num_workers,
            "pin_memory": self.pin_memory,
            "persistent_workers": self.num_workers > 0,
        }

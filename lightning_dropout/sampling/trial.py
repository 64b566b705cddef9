"""Trials: what a model must show before its passes are trusted. Samples stay apart, and a pass gives the same again.

Each costs a few runs more, once for a model and its sites for as long as it lives. Their number is the same on all
ranks, since runs of a distributed model wait for each other. Nothing here seeds, folds or draws.
"""

import weakref
from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_dropout.sampling.activation import resting
from lightning_dropout.sampling.batch import Batch
from lightning_dropout.sampling.outputs import select
from lightning_dropout.sampling.prediction import Outputs
from lightning_dropout.sampling.witness import Witness

if TYPE_CHECKING:
    from lightning_dropout.sampling.sample import Sampler

__all__ = ["Trial"]

# What each model has shown.
_SHOWN: "weakref.WeakKeyDictionary[nn.Module, set[Hashable]]" = weakref.WeakKeyDictionary()


class Trial:
    """The trials of ``sampler`` with one batch; what was shown with another one of its kind counts.

    Args:
        sampler: Whose model and sites.
        batch: Is run; its sites must be awake but for :meth:`folds`.
    """

    def __init__(self, sampler: "Sampler", batch: Batch) -> None:
        self._sampler, self._batch = sampler, batch
        self._shown = _SHOWN.setdefault(sampler.model, set())
        places = frozenset(id(user.module) for site in sampler.sites for user in site.users)
        # A function that is written where it is used is another one in every call.
        output = sampler.output if isinstance(sampler.output, str | None) else getattr(sampler.output, "__code__", None)
        self._kind = places, output, batch.signature

    def folds(self) -> None:
        """Raise unless samples, with the sites asleep, do not see what else is in the batch.

        Raises:
            ValueError: If passes folded into the batch would mix.
        """
        size = self._batch.size
        if self._has_shown("folds"):
            return
        alone = self._asleep(size)
        try:
            # Where all of the batch comes twice, means over it stay the same.
            apart = self._agree(alone, self._asleep(2 * size - 1), size, 2 * size - 1) if size > 1 else True
        except Exception:  # a model for multiples alone
            apart = True
        try:
            apart = apart and self._agree(alone, self._asleep(2 * size), size, 2 * size)
        except Exception as error:
            raise ValueError(
                f"Expected a model that runs on {2 * size} samples as well as on {size}, but got "
                f"{type(error).__name__}: {error}; leave `chunk_size` out."
            ) from error
        if not apart and not self._batch.has_drawn():
            raise ValueError(
                "Expected a model that treats each sample by itself, so that passes can be folded into the batch, but "
                "got other outputs for other batches around the same samples, without any dropout: the first dimension "
                "of the first input is not the batch (`batch_first=False`, the nodes of a graph), or samples see each "
                "other; leave `chunk_size` out."
            )
        self._note("folds")

    def shares(self) -> None:
        """Find where the samples stand in what the sites draw, and raise unless all batches get the same masks.

        Raises:
            ValueError: If a part of the batch gets other outputs than in the whole.
        """
        batch = self._batch
        rows = batch.size - 1 if batch.size > 1 else 2
        if batch.masks is None or not batch.size or self._has_shown("shares"):
            return
        try:
            apart = self._agree(self._asleep(batch.size), self._asleep(rows), batch.size, rows)
        except Exception:  # a model, or another input, for batches of one size alone
            return
        batch.masks.learn(batch.of_rows, (batch.size, rows))
        whole, part = (self._selected(batch.of_rows(each)) for each in (batch.size, rows))
        # Where samples see each other, that says nothing about masks.
        if apart and not self._agree(whole, part, batch.size, rows):
            raise ValueError(
                f"Expected shared masks to be the same for every batch, but got other outputs for {rows} samples than "
                f"for the same in a batch of {batch.size}, though without dropout they are equal: something that drops "
                "holds the samples in another order than one behind the other (time in front of them, in one "
                'dimension); use `masks="independent"`.'
            )
        self._note("shares")

    def repeats(self, number: int, outputs: Sequence[Any]) -> None:
        """Raise unless the run from pass ``number`` on gives ``outputs`` again.

        Raises:
            RuntimeError: If the model remembers, or draws from a generator that nobody can seed.
        """
        if not self._has_shown("repeats"):
            if not self._batch.compared:
                self._repeat(number, outputs)
            if self._batch.reuse.note:  # a replay that failed may have left behind just what the run had found
                self._repeat(number, outputs)
            self._note("repeats")

    def withstands(self, outputs: Sequence[Any]) -> None:
        """Raise if the first run, which has written into a buffer or an input, finds it changed when it comes again.

        Caches that grow with the data are no change, nor are values that are written twice.

        Raises:
            RuntimeError: If values change, or the outputs do.
        """
        with Witness(self._sampler.model, self._batch.inputs) as witness:
            self._repeat(0, outputs)
            witness.check()

    def _repeat(self, number: int, outputs: Sequence[Any]) -> None:
        for one, other in zip(outputs, self._batch.repeat(number), strict=True):
            if not self._agree(self._selected(one), self._selected(other), 1, 1):
                raise RuntimeError(
                    "Expected a pass to give the same when it is run again from the same seed, but got another output: "
                    "the model keeps something from call to call in an attribute (a hidden state, a counter, a cache), "
                    "writes into its input, or draws from a generator that no seed reaches; let the forward start from "
                    "its inputs alone, and keep generators in attributes of modules."
                )

    def _selected(self, output: Any) -> Outputs:
        return select(output, self._sampler.output, self._sampler.task, self._sampler.class_dim)

    def _has_shown(self, what: str) -> bool:
        return (what, *self._kind) in self._shown

    def _note(self, what: str) -> None:
        self._shown.add((what, *self._kind))

    def _asleep(self, rows: int) -> Outputs:
        with resting(self._sampler.sites):
            return self._selected(self._batch.of_rows(rows))

    def _agree(self, one: Outputs, other: Outputs, size: int, rows: int) -> bool:
        """Tell whether outputs are equal up to rounding: of ``size`` samples, and of ``rows`` of them or repeated."""
        return all(
            self._close(leaf, twin)
            for whole, part in zip(tree_leaves(one), tree_leaves(other), strict=True)
            for leaf, twin in _of_the_same_samples(whole, part, size, rows)
        )

    def _close(self, one: Tensor, other: Tensor) -> bool:
        if one.shape != other.shape:
            return False
        # Batches of two sizes are rounded in two ways, in the coarsest type that computes: half its digits must agree.
        dtypes = {torch.float32} | {each.dtype for each in self._sampler.model.parameters() if each.is_floating_point()}
        dtypes |= {torch.get_autocast_dtype(kind) for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)}
        tolerance = max(torch.finfo(dtype).eps for dtype in dtypes) ** 0.5
        sizes = one.detach().abs()
        sizes = sizes[(sizes > 0) & sizes.isfinite()]
        usual = sizes.float().median().item() if sizes.numel() else 0.0  # the largest may be of another kind
        return torch.allclose(one, other, tolerance, tolerance * usual, equal_nan=True)


def _of_the_same_samples(one: Tensor, other: Tensor, size: int, rows: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield what can be compared: nothing if the first dimension does not hold the samples, one behind the other."""
    if size == rows:
        yield one, other
    elif one.ndim and one.shape[0] % size == 0:
        each = one.shape[0] // size
        for start in range(0, rows * each, size * each):
            yield one[: min(size, rows) * each][: rows * each - start], other[start : start + size * each]

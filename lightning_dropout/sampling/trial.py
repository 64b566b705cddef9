"""Trials: what a model must show before its passes are trusted. Samples stay apart, and a pass gives the same again.

Each costs a few runs more, once for a model and its sites for as long as it lives. Their number is the same on all
ranks, since runs of a distributed model wait for each other. Nothing here seeds, folds or draws.
"""

import itertools
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

if TYPE_CHECKING:
    from lightning_dropout.sampling.sample import Sampler

__all__ = ["Trial"]

# What each model has shown.
_SHOWN: "weakref.WeakKeyDictionary[nn.Module, set[Hashable]]" = weakref.WeakKeyDictionary()


class Trial:
    """The trials of ``sampler``: of its model with its sites.

    Args:
        sampler: Whose.
    """

    def __init__(self, sampler: "Sampler") -> None:
        self._sampler = sampler
        self._shown = _SHOWN.setdefault(sampler.model, set())
        self._places = frozenset(id(user.module) for site in sampler.sites for user in site.users)
        dtypes = {torch.float32} | {each.dtype for each in sampler.model.parameters() if each.is_floating_point()}
        dtypes |= {torch.get_autocast_dtype(kind) for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)}
        # Batches of two sizes are rounded in two ways, in the coarsest type that computes: half its digits must agree.
        self._tolerance = max(torch.finfo(dtype).eps for dtype in dtypes) ** 0.5

    def folds(self, batch: Batch) -> None:
        """Raise unless samples, with the sites asleep, do not see what else is in the batch.

        Raises:
            ValueError: If passes folded into the batch would mix.
        """
        if self._has_shown("folds"):
            return
        if not self._are_apart(batch, 2 * batch.size, "leave `chunk_size` out"):
            raise ValueError(
                "Expected a model that treats each sample by itself, so that passes can be folded into the batch, but "
                "got other outputs for the batch repeated, without any dropout: the first dimension of the first input "
                "is not the batch (`batch_first=False`, the nodes of a graph), or samples see each other; leave "
                "`chunk_size` out."
            )
        self._note("folds")

    def shares(self, batch: Batch) -> None:
        """Find where the samples stand in what the sites draw, and raise unless all batches get the same masks.

        Raises:
            ValueError: If a part of the batch gets other outputs than in the whole.
        """
        if batch.masks is None or not batch.size or self._has_shown("shares"):
            return
        rows = batch.size - 1 if batch.size > 1 else 2
        apart = self._are_apart(batch, rows, 'use `masks="independent"`')
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

    def repeats(self, batch: Batch, number: int, outputs: Sequence[Any]) -> None:
        """Raise unless the run from pass ``number`` on gives ``outputs`` again.

        Raises:
            RuntimeError: If the model remembers, or draws from a generator that nobody can seed.
        """
        if self._has_shown("repeats"):
            return
        # A replay that failed may have left behind just what the run had found: then the second run tells.
        again = [*batch.repeat(number), *(batch.repeat(number) if batch.reuse.note else ())]
        for one, other in zip(itertools.cycle(outputs), again, strict=False):
            if not self._agree(self._selected(one), self._selected(other), 1, 1):
                raise RuntimeError(
                    "Expected a pass to give the same when it is run again from the same seed, but got another output: "
                    "the model keeps something from call to call in an attribute (a hidden state, a counter, a cache), "
                    "or draws from a generator that no seed reaches; let the forward start from its inputs alone, and "
                    "keep generators in attributes of modules."
                )
        self._note("repeats")

    def _selected(self, output: Any) -> Outputs:
        return select(output, self._sampler.output, self._sampler.task, self._sampler.class_dim)

    def _has_shown(self, what: str) -> bool:
        return (what, self._places) in self._shown

    def _note(self, what: str) -> None:
        self._shown.add((what, self._places))

    def _are_apart(self, batch: Batch, rows: int, cure: str) -> bool:
        """Tell whether, with the sites asleep, ``rows`` samples give what they give in the batch."""
        with resting(self._sampler.sites):
            whole = self._selected(batch.of_rows(batch.size))
            try:
                other = self._selected(batch.of_rows(rows))
            except Exception as error:
                raise ValueError(
                    f"Expected a model that runs on {rows} samples as well as on {batch.size}, but got "
                    f"{type(error).__name__}: {error}; {cure}."
                ) from error
        return self._agree(whole, other, batch.size, rows)

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
        largest = one.abs().nan_to_num(0.0, 0.0).max().item() if one.numel() else 0.0
        return torch.allclose(one, other, self._tolerance, self._tolerance * largest, equal_nan=True)


def _of_the_same_samples(one: Tensor, other: Tensor, size: int, rows: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield what can be compared: nothing if the first dimension does not hold the samples, one behind the other."""
    if size == rows:
        yield one, other
    elif one.ndim and one.shape[0] % size == 0:
        each = one.shape[0] // size
        if rows < size:
            yield one[: rows * each], other
        else:
            for start in range(0, rows * each, size * each):
                yield one, other[start : start + size * each]

"""The runs over one batch: each is a pass, or ``chunk_size`` passes folded into the batch.

A run is seeded and gets inputs of its own and the masks of its passes. How many there are, what is made of their
outputs and whether they may be trusted is decided elsewhere.
"""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_dropout.randomness import all_states, derive_seed, generators_of, own_generators_of, seed_everywhere
from lightning_dropout.sampling.folding import unfold
from lightning_dropout.sampling.inputs import batch_size_of, copied, resized, signature_of
from lightning_dropout.sampling.masks import SharedMasks, fast_masks
from lightning_dropout.sampling.reuse import PrefixReuse, Reuse
from lightning_dropout.sampling.witness import Witness

if TYPE_CHECKING:
    from lightning_dropout.sampling.sample import Sampler

__all__ = ["Batch"]

_FIXED = (Tensor, bool, int, float, str, type(None))  # what a call alone gives a pass for itself


class Batch:
    """One batch of ``sampler``.

    Args:
        sampler: Says how.
        forward: Calls the model.
        inputs: A tuple of the arguments and a dictionary of those by name.
        seed: Parts of the seed of a run, to which the number of its first pass is added.
        witness: Is asked after the first run, if there is one.
    """

    def __init__(
        self,
        sampler: "Sampler",
        forward: Callable[..., Any],
        inputs: tuple[tuple[Any, ...], dict[str, Any]],
        seed: tuple[int, ...],
        witness: Witness | None = None,
    ) -> None:
        self.inputs, self.signature = inputs, signature_of(*inputs)
        self._may_change = not all(isinstance(each, _FIXED) for each in (*inputs[0], *inputs[1].values()))
        self._sampler, self._forward = sampler, forward
        self._witness = witness
        of_inputs = generators_of((), tree_leaves(inputs))  # of a model without parameters on a GPU
        self.generators = [*{id(each): each for each in (*sampler.generators, *of_inputs)}.values()]
        self.own = [*sampler.own, *own_generators_of((), inputs)]
        self.masks: SharedMasks | None = None
        self._seed = seed
        self.size = 0
        if sampler.masks == "shared" or sampler.chunk_size > 1:
            self.size = batch_size_of(inputs)
        self._chunk = resized(inputs, self.size, self.size * sampler.chunk_size)
        self._prefix: PrefixReuse | None = None

    @property
    def reuse(self) -> Reuse:
        """What prefix reuse has saved."""
        if self._prefix is None:
            return Reuse(note=self._sampler.obstacle)
        report = self._prefix.report
        return dataclasses.replace(report, passes=report.passes * self._sampler.chunk_size)

    @property
    def compared(self) -> bool | None:
        """Whether a pass was shown to give the same again; ``None`` if the next run will show it."""
        return False if self._prefix is None else self._prefix.compared

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Lend the sites their masks until the block is left; inside, they must be awake and at their rates."""
        sampler = self._sampler
        with ExitStack() as stack:
            if sampler.masks == "shared":
                # One thinned network for all batches: nothing but the first part of the seed may count.
                self._seed = self._seed[:1]
                self.masks = stack.enter_context(sampler.shared_masks(self._seed[0]))
                self.masks.expect(self.signature)
            elif not sampler.compiled:  # another `forward` would void the graphs of compiled code
                stack.enter_context(fast_masks(sampler.sites))
            if sampler.num_samples > sampler.chunk_size and not sampler.obstacle:
                self._prefix = PrefixReuse(sampler.model, sampler.sites, self.generators, self.own)
            yield

    def run(self, number: int) -> list[Any]:
        """Return the outputs of the passes from ``number`` on that run at a time."""
        return self._passes(number, self._prefix)

    def repeat(self, number: int) -> list[Any]:
        """Return what :meth:`run` has returned, from a run in full."""
        return self._passes(number, None)

    def of_rows(self, rows: int) -> Any:
        """Return the output of pass 0 for the first ``rows`` samples, or for all repeated until there are ``rows``."""
        return self._run(0, self._resized(rows), rows, 1, watched=True)

    def has_drawn(self) -> bool:
        """Tell whether the last run of :meth:`of_rows` has moved a generator."""
        return all_states(self.generators, self.own) != self._seeded

    def _passes(self, number: int, prefix: PrefixReuse | None) -> list[Any]:
        chunk_size, left = self._sampler.chunk_size, self._sampler.num_samples - number
        folds = min(chunk_size, left) if left > 0 else chunk_size
        if folds == chunk_size:
            outputs = self._run(number, self._chunk, self.size, folds, prefix)
        else:
            outputs = self._run(number, self._resized(self.size * folds), self.size, folds)
        return unfold(outputs, self.size, folds)

    def _resized(self, rows: int) -> Any:
        return resized(self.inputs, self.size, rows)

    def _run(
        self, number: int, inputs: Any, size: int, folds: int, prefix: PrefixReuse | None = None, watched: bool = False
    ) -> Any:
        def prepare() -> None:
            seed_everywhere(derive_seed(*self._seed, number), self.generators, self.own)
            if watched:
                self._seeded = all_states(self.generators, self.own)
            if self.masks is not None:
                self.masks.begin(number, size, folds)

        def forward() -> Any:
            args, kwargs = copied(inputs) if self._may_change else inputs
            returned = self._forward(*args, **kwargs)
            if self.masks is not None:
                self.masks.check()
            return returned

        try:
            if prefix is None:
                prepare()
                outputs = forward()
            else:
                outputs = prefix.run(prepare, forward)
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
                raise
            what, cure = "one pass", "use smaller batches"
            if folds > 1:
                what, cure = f"{folds} passes at a time", f"pass `chunk_size={folds // 2}`"
            raise RuntimeError(
                f"Expected {what} to fit into memory, but got: {str(error).splitlines()[0]}; {cure}."
            ) from error
        witness, self._witness = self._witness, None
        if witness is not None:
            witness.check()
        return outputs

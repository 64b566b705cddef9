"""What the passes of a stage cost and whether they gave values, summed over batches and ranks, in words for the user.

Counts only; the exchange between ranks is one call, made where every rank arrives.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lightning_dropout.sampling.prediction import MCPrediction

__all__ = ["PassReport"]


@dataclass
class PassReport:
    """Counts of one stage.

    Args:
        passes: Passes that ran.
        replayed: Those among them that started at their first random draw.
        share: What these were spared, in passes that run in full.
        seconds: What they were spared.
        outputs: Outputs for a single sample, over all passes.
        invalid: By loader, those among them that held NaN or infinity.
        notes: Why passes ran in full.
        said: What the user was told; only the first rank speaks, so the others leave it here.

    Example:
        >>> report = PassReport(passes=90, replayed=84, share=77.3, seconds=1.24)
        >>> list(report.lines())
        ['84 of 90 passes started at their first random draw, which spared 92 % of each, 1.2 s in all.']
    """

    passes: int = 0
    replayed: int = 0
    share: float = 0.0
    seconds: float = 0.0
    outputs: int = 0
    invalid: dict[int, Tensor | int] = field(default_factory=dict)
    notes: set[str] = field(default_factory=set)
    said: set[str] = field(default_factory=set)

    def add(self, dataloader_idx: int, prediction: MCPrediction) -> None:
        """Take in one call."""
        self.passes += prediction.num_samples
        self.outputs += prediction.num_samples * prediction.num_invalid.numel()
        # A tensor: asking for its value would wait for the device at every batch.
        self.invalid[dataloader_idx] = self.invalid.get(dataloader_idx, 0) + prediction.num_invalid.sum()
        reuse = prediction.reuse
        if reuse is not None:
            self.replayed += reuse.passes
            self.share += reuse.share * reuse.passes
            self.seconds += reuse.seconds
            self.notes |= {reuse.note} - {""}

    def over_ranks(self, trainer: Any) -> "PassReport":
        """Return the counts of all ranks together, with numbers for tensors; call it on every rank."""
        own = replace(self, invalid={loader: int(count) for loader, count in self.invalid.items()})
        ranks = [own] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(ranks, own)
        return PassReport(
            passes=sum(rank.passes for rank in ranks),
            replayed=sum(rank.replayed for rank in ranks),
            share=sum(rank.share for rank in ranks),
            seconds=sum(rank.seconds for rank in ranks),
            outputs=sum(rank.outputs for rank in ranks),
            invalid={
                loader: sum(rank.invalid.get(loader, 0) for rank in ranks)
                for loader in sorted({loader for rank in ranks for loader in rank.invalid})
            },
            notes={note for rank in ranks for note in rank.notes},
            said={line for rank in ranks for line in rank.said},
        )

    def lines(self) -> Iterator[str]:
        """Yield what is worth saying at the end."""
        yield from sorted(self.said)
        if self.replayed:
            yield (
                f"{self.replayed} of {self.passes} passes started at their first random draw, which spared "
                f"{self.share / self.replayed:.0%} of each, {self.seconds:.1f} s in all.".replace("%", " %")
            )
        for note in sorted(self.notes):
            yield f"{'Others' if self.replayed else 'Passes'} ran in full: {note}."

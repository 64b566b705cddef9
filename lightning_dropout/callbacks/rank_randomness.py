"""Different random numbers on every rank, reproducibly.

``seed_everything`` gives all ranks the same seed, so all of them draw the same dropout masks and the batch is
regularised by one rank's worth of noise. The seeds are changed after the weights exist, which must stay equal.
"""

import os
from typing import Any

import torch

from lightning_dropout.callbacks.any_callback import AnyCallback
from lightning_dropout.randomness import derive_seed, seed_everywhere

__all__ = ["RankRandomness"]


class RankRandomness(AnyCallback):
    """Seed torch, numpy and Python anew at the start of training, differently on each rank.

    Training: masks and augmentations differ between ranks and repeat between runs with the same seed and number of
    ranks. The step enters the seed too, so that a resumed run does not replay the masks of its beginning. Evaluation:
    nothing. With one process nothing is seeded at all.

    Args:
        seed: What the ranks' seeds follow from; ``None`` takes the seed of ``seed_everything``, or torch's own.

    Raises:
        ValueError: If ``seed`` is no whole number.

    Source:
        All ranks drawing equal masks: huggingface/transformers issue 31412.

    Example:
        >>> RankRandomness(seed=1)._seed_of(rank=0, step=0) != RankRandomness(seed=1)._seed_of(rank=1, step=0)
        True
    """

    def __init__(self, seed: int | None = None) -> None:
        super().__init__()
        if seed is not None:
            derive_seed(seed)  # raises unless it is a whole number
        self.seed = seed

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.world_size > 1:
            seed_everywhere(self._seed_of(trainer.global_rank, trainer.global_step))

    def _seed_of(self, rank: int, step: int) -> int:
        seed = self.seed
        if seed is None:
            seed = int(os.environ.get("PL_GLOBAL_SEED") or torch.initial_seed())
        return derive_seed(seed, rank, step)

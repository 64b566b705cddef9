"""Random numbers that follow from the position in the training: a resumed run draws what the whole one would have.

Nothing here reads or stores the state of a generator: every seed follows from counters that Lightning restores.
Evaluation alone is left to the generators as they are.
"""

import os
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn

from lightning_dropout.callbacks.any_callback import AnyCallback, release_of
from lightning_dropout.callbacks.rank_randomness import RankRandomness
from lightning_dropout.randomness import OwnGenerator, derive_seed, generators_of, own_generators_of, seed_everywhere

__all__ = ["StepRandomness"]

_BETWEEN, _WITHIN = 0, 1  # batches, a batch
_FIRST_TO_KEEP_THE_ITERATOR = (2, 5)


class StepRandomness(AnyCallback):
    """Seed all generators around each training batch from seed, position and rank: masks repeat after an interruption.

    Training: torch (CPU and the accelerator of the module), numpy, Python and generators that modules hold are seeded
    before each batch, so that masks differ between ranks and between batches, also where gradients accumulate; and
    after each batch, validation and start of an epoch, so that shuffling and augmentation repeat, too. Interrupted and
    resumed then equals uninterrupted bit by bit, with equal versions, devices and number of processes
    (:class:`ResumeCheck` tells of another), and a loader that goes on where it stopped: those of
    :mod:`lightning_dropout.data`, or, between epochs, any. Evaluation: nothing is seeded. Under Lightning 2.4 only
    checkpoints between epochs resume bit by bit: it counts a batch twice within.

    Args:
        seed: What all seeds follow from; ``None`` takes that of the checkpoint, else of ``seed_everything``, else
            torch's own.

    Raises:
        ValueError: If ``seed`` is no whole number; in ``setup``, beside a :class:`RankRandomness`.

    Source:
        Without it, resumed runs draw other masks: Lightning-AI/pytorch-lightning issues 17543 and 18098.

    Example:
        >>> StepRandomness(seed=1)
        StepRandomness(seed=1)
    """

    def __init__(self, seed: int | None = None) -> None:
        super().__init__()
        if seed is not None:
            derive_seed(seed)  # raises unless it is a whole number
        self.seed = seed

        self._used = 0  # the seed of this training; in the checkpoint, too
        self._generators: tuple[Sequence[torch.Generator], Sequence[OwnGenerator]] = (), ()
        self._first_epoch = 0

    def __repr__(self) -> str:
        return f"StepRandomness(seed={self.seed})"

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage != "fit":
            return
        if any(isinstance(each, RankRandomness) for each in trainer.callbacks):
            raise ValueError(
                "Expected `callbacks` to hold RankRandomness or StepRandomness, but got both, and each would undo the "
                "other's seeds; leave RankRandomness out (callbacks/randomness=step does)."
            )
        self._used = int(os.environ.get("PL_GLOBAL_SEED") or torch.initial_seed()) if self.seed is None else self.seed

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint["callbacks"].get(self.state_key)
        if trainer.state.fn != "fit" or saved is None:
            return
        if self.seed is None:
            self._used = saved["seed"]
        elif self.seed != saved["seed"]:
            rank_zero_warn(
                f"StepRandomness goes on with seed {self.seed} instead of {saved['seed']}: reproducible, but not bit "
                "by bit what the run would have become uninterrupted."
            )

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        modules = [*pl_module.modules()]
        self._generators = generators_of(modules), own_generators_of(modules)
        self._first_epoch = trainer.current_epoch
        loop, batches = trainer.fit_loop, trainer.fit_loop.epoch_loop.batch_progress
        if loop._combined_loader_states_to_load:  # forgotten where the length of the run was asked for early
            loop._load_combined_loader_states()
            iter(loop._data_fetcher)
        self._seed(trainer, _BETWEEN, _batches_done(trainer))
        if batches.current.ready == 0 or batches.is_last_batch:
            # Lightning has made the iterator of this epoch before anything could be seeded. If the last batch of an
            # epoch saved the checkpoint, a stateful loader's exhausted one would cost the whole next epoch.
            iter(loop._data_fetcher)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch > self._first_epoch or release_of(trainer) < _FIRST_TO_KEEP_THE_ITERATOR:
            self._seed(trainer, _BETWEEN, _batches_done(trainer))

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._seed(trainer, _WITHIN, _batches_done(trainer))  # this one included

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._seed(trainer, _BETWEEN, _batches_done(trainer))

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._seed(trainer, _BETWEEN, _batches_done(trainer))

    def state_dict(self) -> dict[str, int]:
        return {"seed": self._used}

    def _seed(self, trainer: Any, where: int, batches: int) -> None:
        seed_everywhere(derive_seed(self._used, where, batches, trainer.global_rank), *self._generators)


def _batches_done(trainer: Any) -> int:
    # Of the whole training: the number within the epoch is one too small after a resume under Lightning 2.4, and
    # optimizer steps do not tell batches apart while gradients accumulate.
    return int(trainer.fit_loop.total_batch_idx) + 1

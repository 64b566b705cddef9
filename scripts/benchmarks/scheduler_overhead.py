"""What both schedulers cost: share of a ViT training step, beside a callback written by hand.

``python scripts/benchmarks/scheduler_overhead.py`` trains the digits ViT for a few epochs and times, inside the run,
the hooks of ``DropoutScheduler`` and ``StochasticDepthScheduler`` and of the loop that people write instead (walk all
modules, set ``p``), which knows neither depth rules nor logging. Goal: under 2 % of the step.
"""

import argparse
import time
from statistics import median
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

from lightning_dropout import DropoutScheduler, Linear, StochasticDepthScheduler
from lightning_dropout.configuration import quiet_lightning
from lightning_dropout.data import DigitsDataModule
from lightning_dropout.models import ViT
from lightning_dropout.modules import Classifier
from lightning_dropout.nn import Dropout, DropPath


class ByHand(Callback):
    """The competitor: walk all modules before every batch and set their rates."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        share = trainer.global_step / trainer.estimated_stepping_batches
        for module in pl_module.modules():
            if isinstance(module, Dropout):
                module.p = 0.1 * share
            elif isinstance(module, DropPath):
                module.drop_prob = 0.1 * share


class Stopwatch(Callback):
    """Time whole steps, from the start of a batch to the start of the next."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self._started = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx > 0:  # the first of an epoch follows a validation
            self.steps.append(time.perf_counter() - self._started)
        self._started = time.perf_counter()


def timed(callback: Callback) -> list[float]:
    """Make a callback note how long its hook takes."""
    hook, seconds = callback.on_train_batch_start, []

    def on_train_batch_start(*args: Any) -> None:
        started = time.perf_counter()
        hook(*args)
        seconds.append(time.perf_counter() - started)

    callback.on_train_batch_start = on_train_batch_start  # type: ignore[method-assign]
    return seconds


def main() -> None:
    """Train, time, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--log-every-n-steps", type=int, default=10)
    arguments = parser.parse_args()
    quiet_lightning()
    seed_everything(0, verbose=False)
    data = DigitsDataModule(batch_size=32)
    net = ViT(
        data.input_shape, data.num_classes, preset="digits", p=0.1, attention_p=0.1, projection_p=0.1, drop_path=0.1
    )
    schedulers = [
        DropoutScheduler(scale=Linear(0.0, 1.0)),
        StochasticDepthScheduler(scale=Linear(0.0, 1.0)),
    ]
    by_hand, stopwatch = ByHand(), Stopwatch()
    ours = [timed(scheduler) for scheduler in schedulers]
    theirs = timed(by_hand)
    trainer = Trainer(
        max_epochs=arguments.epochs,
        accelerator="cpu",
        callbacks=[stopwatch, by_hand, *schedulers],
        log_every_n_steps=arguments.log_every_n_steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Classifier(net, data.num_classes), data)
    both = [sum(pair) for pair in zip(*ours, strict=True)]
    step = sum(stopwatch.steps) / len(stopwatch.steps)
    print(f"\ntorch {torch.__version__}, {torch.get_num_threads()} threads, {len(both)} steps")
    print("| | median, µs | mean, µs | share of a step |\n|---|---|---|---|")
    rows = (("both schedulers", both), ("the loop by hand", theirs), ("the whole step", stopwatch.steps))
    for name, seconds in rows:
        mean = sum(seconds) / len(seconds)
        print(f"| {name} | {1e6 * median(seconds):.0f} | {1e6 * mean:.0f} | {100 * mean / step:.2f} % |")


if __name__ == "__main__":
    main()

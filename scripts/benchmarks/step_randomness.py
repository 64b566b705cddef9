"""What ``StepRandomness`` costs: its share of a ViT training step.

``python scripts/benchmarks/step_randomness.py`` trains the digits ViT with and without it in turns and times, inside
the run, its two hooks of each batch and the whole steps. Goal: under 1 % of the step.
"""

import argparse
import time
from statistics import median
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything

from lightning_dropout import StepRandomness
from lightning_dropout.configuration import quiet_lightning
from lightning_dropout.data import DigitsDataModule
from lightning_dropout.models import ViT
from lightning_dropout.modules import Classifier


class Timed(StepRandomness):
    """Notes how long its hooks take."""

    def __init__(self) -> None:
        super().__init__()
        self.hooks: list[float] = []

    def _seed(self, *args: Any) -> None:
        started = time.perf_counter()
        super()._seed(*args)
        self.hooks.append(time.perf_counter() - started)


class Stopwatch(Callback):
    """Time whole steps, from the start of a batch to the start of the next."""

    def __init__(self) -> None:
        self.starts: list[float] = []

    def on_train_batch_start(self, *args: Any) -> None:
        self.starts.append(time.perf_counter())

    def step(self) -> float:
        """Return the median step in seconds."""
        return median(later - earlier for earlier, later in zip(self.starts[5:], self.starts[6:], strict=False))


def step_seconds(steps: int, *callbacks: Callback) -> float:
    """Train for some steps and return the median step."""
    seed_everything(0, verbose=False)
    stopwatch = Stopwatch()
    module = Classifier(ViT((1, 8, 8), 10, preset="digits"), num_classes=10, optimizer=torch.optim.AdamW)
    Trainer(
        accelerator="cpu",
        max_steps=steps,
        callbacks=[*callbacks, stopwatch],
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, DigitsDataModule())
    return stopwatch.step()


def main() -> None:
    """Print both figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    args = parser.parse_args()
    quiet_lightning()
    callback, ratios, steps = Timed(), [], []
    for _ in range(args.pairs):
        without, with_it = step_seconds(args.steps), step_seconds(args.steps, callback)
        steps.append(without)
        ratios.append(with_it / without)
    step, hooks = median(steps), 2 * median(callback.hooks)  # before and after each batch
    print(f"step {step * 1e3:.1f} ms; StepRandomness {hooks * 1e6:.0f} us: {hooks / step:.2%} of a step")
    print(f"whole steps, with / without, median of {args.pairs} pairs: {median(ratios):.3f}")


if __name__ == "__main__":
    main()

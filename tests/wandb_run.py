"""A training of some seconds that logs to W&B what the package can log, for the tests of what arrives there.

``python tests/wandb_run.py FOLDER DEVICES`` trains in a process of its own, on as many ranks. FOLDER gets W&B's files
and, by Lightning's own logger, the same metrics as CSV to compare with.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from lightning_dropout import DropoutScheduler, Linear, MCDropout, RunReport, StochasticDepthScheduler
from lightning_dropout.loggers import finish_wandb, wandb_logger
from lightning_dropout.modules import Classifier
from lightning_dropout.nn import DropPath

EPOCHS = 2
BATCHES = 6  # of an epoch


class Residual(nn.Module):
    """A layer that drops within a branch that drops."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Dropout(0.2))
        self.drop_path = DropPath(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.layer(x))


def train(folder: Path, logger: Any, devices: int = 1, callbacks: Sequence[lightning.Callback] = ()) -> None:
    """Fit and test, and close the run."""
    torch.manual_seed(0)
    x = torch.randn(8 * BATCHES, 4)
    labels = x.argmax(dim=1).clamp(max=2)
    data = TensorDataset(x, labels)
    loader = DataLoader(data, batch_size=8 // devices)
    noise = DataLoader(TensorDataset(5 * torch.randn(16, 4), torch.full((16,), -100)), batch_size=8 // devices)
    seen = DataLoader(Subset(data, range(16)), batch_size=8 // devices)
    trainer = lightning.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        devices=devices,
        strategy="auto" if devices == 1 else "ddp",
        logger=[logger, CSVLogger(folder, name="csv", version="")],
        callbacks=[
            DropoutScheduler(rate=Linear(0.1, 0.4), name="layers"),
            StochasticDepthScheduler(scale=Linear(0.5, 1.0)),
            MCDropout(4, task="multiclass", ood=["noise"]),
            LearningRateMonitor(logging_interval="step"),
            RunReport(samples=2),
            *callbacks,
        ],
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    optimizer = functools.partial(torch.optim.Adam, lr=0.05)  # some labels are learnt in two epochs, not all
    module = Classifier(nn.Sequential(Residual(), nn.Linear(4, 3)), num_classes=3, optimizer=optimizer)
    try:
        logger.log_hyperparams({"depth": 1, "seed": 0})
        trainer.fit(module, loader, [loader, seen])
        trainer.test(module, [loader, noise], verbose=False)
    finally:
        finish_wandb()


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # Lightning's, of ranks and tiny data
    folder, devices = Path(sys.argv[1]), int(sys.argv[2])
    train(folder, wandb_logger(save_dir=folder, project="digits"), devices)

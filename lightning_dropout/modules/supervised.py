"""What the package's LightningModules share: optimizers from partials, and the generalisation gap.

Hyper-parameters saved here are plain values. The net and the partials stay out of them, since a checkpoint that holds
an object cannot be loaded with ``weights_only=True``.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanMetric

from lightning_dropout import log_keys
from lightning_dropout.modules.fully_sharded import shard

__all__ = ["MakeOptimizer", "MakeScheduler", "SupervisedModule"]

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
MakeScheduler = Callable[..., LRScheduler]


class SupervisedModule(LightningModule):
    """A net that is trained on (input, target) batches; see :class:`Classifier` and :class:`Regressor`.

    Validation may run over two loaders: the validation set, and a fixed part of the training set. Both are seen in eval
    mode, so that ``val/gap``, the loss on the first minus the loss on the second, compares like with like.

    Args:
        net: What maps inputs to outputs.
        optimizer: Called with the parameters, e.g. ``functools.partial(torch.optim.AdamW, lr=1e-3)``, the default.
        scheduler: Called with the optimizer and ``total_steps=``, stepped every optimizer step; ``None`` keeps the
            learning rate.
    """

    def __init__(self, net: nn.Module, optimizer: MakeOptimizer | None, scheduler: MakeScheduler | None) -> None:
        super().__init__()
        self.net = net
        self._make_optimizer = optimizer or partial(torch.optim.AdamW, lr=1e-3)
        self._make_scheduler = scheduler
        # A loss of NaN makes the mean NaN; by default it would be left out of it.
        self.val_loss = MeanMetric(nan_strategy=math.nan)
        self.subset_loss = MeanMetric(nan_strategy=math.nan)  # on the fixed part of the training set, in eval mode

    def configure_model(self) -> None:
        if self.device_mesh is not None:  # of a strategy that shards; called at the start of each stage
            shard(self.net, self.device_mesh)

    @abstractmethod
    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        """Return the mean loss as evaluation reports it."""

    def forward(self, x: Tensor) -> Any:
        return self.net(x)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        x, targets = batch
        outputs = self(x)
        (self.subset_loss if dataloader_idx else self.val_loss).update(self.loss(outputs, targets), weight=len(x))
        if dataloader_idx == 0:
            self.update_validation(outputs, targets)

    def log_test_mean(self, key: str, value: Tensor, samples: int) -> None:
        """Log the mean over the samples of a batch, so that that of the test is the mean over those of all ranks."""
        # Lightning rounds the mean of the ranks' numbers of samples down, unless it is a whole number.
        self.log(key, value, batch_size=samples * self.trainer.world_size, sync_dist=True)

    @abstractmethod
    def update_validation(self, outputs: Any, targets: Tensor) -> None:
        """Take a batch of the validation set into the metrics."""

    @abstractmethod
    def log_validation(self) -> None:
        """Log the metrics of the validation set."""

    def on_validation_epoch_end(self) -> None:
        self.log(log_keys.VAL_LOSS, self.val_loss.compute(), prog_bar=True, sync_dist=True)
        self.log_validation()
        if self.subset_loss.update_count:
            gap = self.val_loss.compute() - self.subset_loss.compute()
            self.log(log_keys.VAL_GAP, gap, sync_dist=True)
        self.val_loss.reset()
        self.subset_loss.reset()

    def configure_optimizers(self) -> Any:
        optimizer = self._make_optimizer(self.parameters())
        if self._make_scheduler is None:
            return optimizer
        steps = self.trainer.estimated_stepping_batches
        if not 0 < steps < math.inf:
            raise ValueError(
                f"Expected a run of known length for the learning-rate schedule, but got {steps} steps; set "
                "`max_steps` on the trainer, or `scheduler=None` (module.scheduler=null)."
            )
        scheduler = self._make_scheduler(optimizer, total_steps=int(steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

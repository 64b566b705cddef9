"""The LightningModule for classification: any net that returns logits."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from lightning_dropout import log_keys
from lightning_dropout.modules.supervised import MakeOptimizer, MakeScheduler, SupervisedModule
from lightning_dropout.sampling.losses import IGNORED

__all__ = ["Classifier"]


class Classifier(SupervisedModule):
    """Train a net with cross-entropy; batches are ``(inputs, labels)``.

    Training: logs ``train/loss`` (with label smoothing) and ``train/accuracy``, both with dropout on. Validation: logs
    ``val/loss``, ``val/accuracy`` and, if the data yields a fixed part of the training set as second validation loader,
    ``val/gap``. Test: ``test/loss`` and ``test/accuracy``; under ``MCDropout`` they describe the mean of the passes.
    Test samples of label -100 count in neither; a loader that has no other logs neither.

    Args:
        net: Maps a batch of inputs to logits.
        num_classes: Number of classes, at least 2.
        optimizer: Called with the parameters, e.g. ``functools.partial(torch.optim.AdamW, lr=1e-3)``, the default.
        scheduler: Called with the optimizer and ``total_steps=``; ``None`` keeps the learning rate.
        label_smoothing: Share of the target spread over all classes in training, in [0, 1).

    Shape:
        Inputs as the net takes them, labels ``(batch,)``, logits ``(batch, num_classes)``.

    Raises:
        ValueError: If ``num_classes`` or ``label_smoothing`` is out of range, or the net returns another number of
            logits.

    Example:
        >>> import torch
        >>> classifier = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), num_classes=3)
        >>> classifier(torch.zeros(2, 2, 2)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        optimizer: MakeOptimizer | None = None,
        scheduler: MakeScheduler | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(net, optimizer, scheduler)
        if num_classes < 2:
            raise ValueError(f"Expected `num_classes` of at least 2, but got {num_classes}.")
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"Expected `label_smoothing` in [0, 1), but got {label_smoothing}.")
        self.save_hyperparameters({"num_classes": num_classes, "label_smoothing": label_smoothing})
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.train_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        if logits.shape[1:2] != (self.num_classes,):
            raise ValueError(
                f"Expected the net to return logits of num_classes={self.num_classes} classes, but got shape "
                f"{tuple(logits.shape)}; build both with one number."
            )
        return logits

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, labels = batch
        logits = self(x)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        self.train_accuracy(logits, labels)
        self.log(log_keys.TRAIN_LOSS, loss, prog_bar=True, batch_size=len(x))
        self.log(log_keys.TRAIN_ACCURACY, self.train_accuracy, on_step=False, on_epoch=True, batch_size=len(x))
        return loss

    def update_validation(self, outputs: Any, targets: Tensor) -> None:
        self.val_accuracy.update(outputs, targets)

    def log_validation(self) -> None:
        self.log(log_keys.VAL_ACCURACY, self.val_accuracy, prog_bar=True)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        x, labels = batch
        logits = self(x)
        counted = labels != IGNORED
        count = int(counted.sum())
        if count:  # both would be NaN of out-of-distribution data, which have no label
            accuracy = (logits.argmax(dim=1) == labels)[counted].float().mean()  # no metric object: loaders would share
            self.log_test_mean(log_keys.TEST_LOSS, self.loss(logits, labels), count)
            self.log_test_mean(log_keys.TEST_ACCURACY, accuracy, count)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        x = batch[0] if isinstance(batch, list | tuple) else batch
        probabilities: Tensor = self(x).softmax(dim=1)
        return probabilities

"""The LightningModule for regression: a Gaussian around the net's output, with fixed or learned noise."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanSquaredError

from lightning_dropout import log_keys
from lightning_dropout.modules.supervised import MakeOptimizer, MakeScheduler, SupervisedModule

__all__ = ["Regressor"]

_LEAST_VARIANCE = 1e-12  # torch's own 1e-6 would silently replace a `noise_std` below 1e-3


class Regressor(SupervisedModule):
    """Train a net with the Gaussian negative log-likelihood; batches are ``(inputs, targets)``.

    ``forward`` returns the pair (mean, log-variance) that ``MCDropout(task="gaussian")`` and ``mc_sample`` take, so the
    spread of the passes and the noise of the data are told apart whether the noise is fixed or learned.

    Training: logs ``train/loss`` with dropout on. Validation: ``val/loss``, ``val/rmse``, ``val/gap``. Test:
    ``test/loss`` and ``test/rmse``; under ``MCDropout`` they describe the mixture of the passes. All in the units of
    the targets as the data yields them.

    Args:
        net: Maps a batch to ``num_outputs`` means; with learned noise to as many log-variances behind them.
        num_outputs: Number of targets, at least 1.
        noise_std: Standard deviation of the noise, above 0, the same everywhere; ``None``: the net predicts it
            (heteroscedastic noise).
        optimizer: Called with the parameters, e.g. ``functools.partial(torch.optim.AdamW, lr=1e-3)``, the default.
        scheduler: Called with the optimizer and ``total_steps=``; ``None`` keeps the learning rate.

    Shape:
        Targets ``(batch, num_outputs)``, mean and log-variance likewise; targets ``(batch,)`` count as one column.

    Raises:
        ValueError: If an argument is out of range, or the net's outputs do not fit ``num_outputs``.

    Source:
        Learned noise: Nix & Weigend (1994); Kendall & Gal (2017), arXiv:1703.04977, eq. 5.

    Example:
        >>> import torch
        >>> mean, log_variance = Regressor(nn.Linear(4, 1), num_outputs=1, noise_std=0.1)(torch.zeros(2, 4))
        >>> mean.shape, log_variance.exp().sqrt()[0]
        (torch.Size([2, 1]), tensor([0.1000]))
    """

    def __init__(
        self,
        net: nn.Module,
        num_outputs: int = 1,
        noise_std: float | None = None,
        optimizer: MakeOptimizer | None = None,
        scheduler: MakeScheduler | None = None,
    ) -> None:
        super().__init__(net, optimizer, scheduler)
        if num_outputs < 1:
            raise ValueError(f"Expected `num_outputs` of at least 1, but got {num_outputs}.")
        if noise_std is not None and not 0.0 < noise_std < math.inf:
            raise ValueError(f"Expected `noise_std` above 0, or None to learn it, but got {noise_std}.")
        self.save_hyperparameters({"num_outputs": num_outputs, "noise_std": noise_std})
        self.num_outputs = num_outputs
        self.noise_std = noise_std
        self.val_mse = MeanSquaredError()
        self._test_errors: dict[int, MeanSquaredError] = {}  # by loader

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.net(x)
        expected = self.num_outputs * (2 if self.noise_std is None else 1)
        if outputs.shape[1:] != (expected,):
            raise ValueError(
                f"Expected the net to return {expected} values a sample for num_outputs={self.num_outputs} and "
                f"noise_std={self.noise_std}, but got shape {tuple(outputs.shape)}; learned noise needs twice as many."
            )
        if self.noise_std is None:
            mean, log_variance = outputs.chunk(2, dim=1)
            return mean.contiguous(), log_variance.contiguous()  # torchmetrics takes no views with gaps
        precise = torch.promote_types(outputs.dtype, torch.float32)  # 2 ln 0.1 in bfloat16 is 1 % off the variance
        return outputs, outputs.new_full(outputs.shape, 2.0 * math.log(self.noise_std), dtype=precise)

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        mean, log_variance = outputs
        variance = log_variance.exp()
        return F.gaussian_nll_loss(mean, targets.view_as(mean), variance, full=True, eps=_LEAST_VARIANCE)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, targets = batch
        loss = self.loss(self(x), targets)
        self.log(log_keys.TRAIN_LOSS, loss, prog_bar=True, batch_size=len(x))
        return loss

    def update_validation(self, outputs: Any, targets: Tensor) -> None:
        mean, _ = outputs
        self.val_mse.update(mean, targets.view_as(mean))

    def log_validation(self) -> None:
        self.log(log_keys.VAL_RMSE, self.val_mse.compute().sqrt(), sync_dist=True)
        self.val_mse.reset()

    def on_test_epoch_start(self) -> None:
        self._test_errors.clear()

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        x, targets = batch
        outputs = self(x)
        error = self._test_errors.setdefault(dataloader_idx, MeanSquaredError(squared=False).to(self.device))
        error.update(outputs[0], targets.view_as(outputs[0]))
        self.log_test_mean(log_keys.TEST_LOSS, self.loss(outputs, targets), len(x))

    def on_test_epoch_end(self) -> None:
        several = len(self._test_errors) > 1  # then with the ending that Lightning gives to the loss
        for index, error in self._test_errors.items():
            key = f"{log_keys.TEST_RMSE}/dataloader_idx_{index}" if several else log_keys.TEST_RMSE
            self.log(key, error.compute(), sync_dist=True, add_dataloader_idx=False)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        x = batch[0] if isinstance(batch, list | tuple) else batch
        mean: Tensor = self(x)[0]
        return mean

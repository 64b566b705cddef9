"""A training whose loss is no number any more ends at once, before it spoils its weights and its checkpoints.

Looks at losses and changes nothing. On an accelerator it asks for their values when Lightning does: asking at each step
would make the host wait for the device.
"""

from typing import Any

import torch
from torch import Tensor

from lightning_dropout.callbacks.any_callback import AnyCallback
from lightning_dropout.callbacks.rate_scheduler import schedulers_of

__all__ = ["FiniteLoss"]


class FiniteLoss(AnyCallback):
    """End a training with an error at the first loss that is NaN or infinite, and name its step and the rates there.

    On the CPU before the backward, so that the weights are those of the step before. On an accelerator at the next step
    at which Lightning logs, and always before a validation and before a checkpoint is written: none has weights of a
    step after such a loss.

    Raises:
        RuntimeError: At such a loss.

    Example:
        >>> FiniteLoss().on_before_backward(None, None, torch.tensor(1.0))
    """

    def __init__(self) -> None:
        super().__init__()
        self._losses: list[Tensor] = []  # not looked at so far

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._losses = []

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        self._losses.append(loss.detach())
        if loss.device.type == "cpu" or trainer._logger_connector.should_update_logs:
            self._look(trainer)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self._look(trainer)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self._look(trainer)

    def _look(self, trainer: Any) -> None:
        losses = self._losses
        finite = torch.stack([loss.isfinite().all() for loss in losses]).tolist() if losses else []
        if all(finite):
            self._losses = []  # else kept: whoever saves on the way out is refused, too
            return
        first = finite.index(False)
        steps = len(losses) - 1 - first
        scheduled = [(each.state_key, each.state_dict()["rates"].values()) for each in schedulers_of(trainer)]
        rates = [f"{name} at {min(values):g} to {max(values):g}" for name, values in scheduled if values]
        raise RuntimeError(
            f"Expected `loss` to be finite, but got {losses[first].float().mean().item()} at step "
            f"{trainer.global_step}{f', {steps} batches ago' if steps else ''} ({', '.join(rates) or 'no schedule'}); "
            "lower the learning rate, clip gradients (trainer.gradient_clip_val=1.0) or look at the batch, and go on "
            "from the last checkpoint (ckpt_path=...)."
        )

"""The learning-rate schedule: a share of each parameter group's own rate, a pure function of the step."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

__all__ = ["warmup_cosine"]


def warmup_cosine(
    optimizer: Optimizer, total_steps: int, warmup_fraction: float = 0.1, final_fraction: float = 0.0
) -> LRScheduler:
    """Rise linearly to the optimizer's learning rate, then fall along half a cosine; one step per optimizer step.

    Step n of N, W of them warming up: ``(n + 1) / W`` of the peak while ``n < W``, then
    ``f + (1 - f) * (1 + cos(pi * (n - W) / (N - W))) / 2``, with f the final fraction; f from step N on.

    Args:
        optimizer: The learning rates of its parameter groups are the peaks.
        total_steps: Optimizer steps of the whole run, at least 1.
        warmup_fraction: Share of the steps that warm up, in [0, 1).
        final_fraction: Learning rate at the end, as a fraction of the peak, in [0, 1].

    Raises:
        ValueError: If an argument is out of range.

    Source:
        Loshchilov & Hutter (2017), "SGDR", arXiv:1608.03983; warm-up of Goyal et al. (2017), arXiv:1706.02677.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> scheduler = warmup_cosine(optimizer, total_steps=10, warmup_fraction=0.2)
        >>> rates = []
        >>> for _ in range(10):
        ...     rates.append(round(scheduler.get_last_lr()[0], 2))
        ...     optimizer.step()
        ...     scheduler.step()
        >>> rates
        [0.5, 1.0, 1.0, 0.96, 0.85, 0.69, 0.5, 0.31, 0.15, 0.04]
    """
    if not isinstance(total_steps, int) or total_steps < 1:
        raise ValueError(
            f"Expected `total_steps` to be a whole number of at least 1, but got {total_steps!r}; "
            "set `max_epochs` or `max_steps` on the trainer."
        )
    if not 0.0 <= warmup_fraction < 1.0:
        raise ValueError(f"Expected `warmup_fraction` to be a fraction in [0, 1), but got {warmup_fraction}.")
    if not 0.0 <= final_fraction <= 1.0:
        raise ValueError(f"Expected `final_fraction` to be a fraction in [0, 1], but got {final_fraction}.")
    warmup = round(total_steps * warmup_fraction)

    def share_of_peak(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        fallen = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        return final_fraction + (1.0 - final_fraction) * (1.0 + math.cos(math.pi * fallen)) / 2.0

    return LambdaLR(optimizer, share_of_peak)

"""Learning-rate schedules, put together from torch's own."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

__all__ = ["warmup_cosine"]


def warmup_cosine(
    optimizer: Optimizer, total_steps: int, warmup_fraction: float = 0.1, final_fraction: float = 0.0
) -> LRScheduler:
    """Rise linearly to the optimizer's learning rate, then fall along half a cosine; one step per optimizer step.

    Args:
        optimizer: Its learning rates are the peaks.
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
    for name, value, ceiling in (("warmup_fraction", warmup_fraction, 0.999), ("final_fraction", final_fraction, 1.0)):
        if not 0.0 <= value <= ceiling:
            raise ValueError(
                f"Expected `{name}` to be a fraction in [0, {'1)' if ceiling < 1 else '1]'}, but got {value}."
            )
    peak = optimizer.param_groups[0]["lr"]
    warmup = round(total_steps * warmup_fraction)
    cosine = CosineAnnealingLR(optimizer, T_max=max(1, total_steps - warmup), eta_min=peak * final_fraction)
    if warmup < 2:
        return cosine
    ramp = LinearLR(optimizer, start_factor=1.0 / warmup, total_iters=warmup - 1)
    return SequentialLR(optimizer, [ramp, cosine], milestones=[warmup])

"""The stochastic-depth layer for residual branches. The maths stands in ``functional``."""

from collections.abc import Callable

from torch import Tensor, nn

from lightning_dropout.nn import functional
from lightning_dropout.nn.functional import Mode, check_mode
from lightning_dropout.nn.rate import Rate

__all__ = ["DropPath"]


class DropPath(nn.Module):
    """Drop a residual branch for some samples of the batch (stochastic depth).

    ``train()`` drops: each pass trains one shallower network of an ensemble of depths, and gradients reach early
    blocks by shorter ways. ``eval()`` uses all branches, so that predictions are deterministic; kept branches were
    already rescaled in training, so evaluation is the same function whatever the rate is or was.

    Write a residual addition as ``drop_path.residual(x, branch)`` rather than ``x + drop_path(branch(x))``: the same
    numbers, but it leaves room to run the branch for the kept samples only.

    Args:
        drop_prob: Probability of dropping, in [0, 1]. May be reassigned at any time; a plain float, not part of the
            ``state_dict``. 0 is free and keeps the layer schedulable.
        mode: ``"row"`` tosses one coin per sample, ``"batch"`` one for all samples.
        scale_by_keep: Divide kept branches by ``1 - drop_prob``, which keeps their mean.

    Shape:
        ``(batch, *)`` to the same.

    Raises:
        ValueError: If ``drop_prob`` is set to no probability, or ``mode`` is unknown.

    Source:
        Huang et al., "Deep Networks with Stochastic Depth" (2016), arXiv:1603.09382; per sample and rescaled in
        training, as is usual today.

    Example:
        >>> import torch
        >>> layer = DropPath(0.1)
        >>> layer
        DropPath(drop_prob=0.1)
        >>> layer.eval().residual(torch.ones(2), torch.neg)
        tensor([0., 0.])
        >>> layer.drop_prob = 1
        >>> layer.train().residual(torch.ones(2), torch.neg)
        tensor([1., 1.])
    """

    drop_prob = Rate()

    def __init__(self, drop_prob: float = 0.0, mode: Mode = "row", scale_by_keep: bool = True) -> None:
        super().__init__()
        check_mode(mode)
        self.drop_prob = drop_prob
        self.mode = mode
        self.scale_by_keep = scale_by_keep

    def forward(
        self,
        x: Tensor,
        branch: Callable[[Tensor], Tensor] | None = None,
        shortcut: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Return ``x`` with samples dropped, in training mode; given a ``branch``, the same as ``residual``."""
        return self.forward_at(self.drop_prob, x, branch, shortcut)

    def forward_at(
        self,
        drop_prob: float | Tensor,
        x: Tensor,
        branch: Callable[[Tensor], Tensor] | None = None,
        shortcut: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Do what ``forward`` does, at another rate; a tensor keeps one compiled graph while the rate changes."""
        if branch is None:
            return functional.drop_path(x, drop_prob, self.training, self.mode, self.scale_by_keep)
        return functional.drop_residual(
            x, branch, drop_prob, self.training, self.mode, self.scale_by_keep, shortcut=shortcut
        )

    def residual(
        self,
        x: Tensor,
        branch: Callable[[Tensor], Tensor],
        shortcut: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Return ``x + drop_path(branch(x))``, or ``shortcut(x) + drop_path(branch(x))`` if a shortcut is given.

        Raises:
            ValueError: If the branch's output cannot be added without broadcasting.
        """
        # Through __call__, not straight to the function: hooks on this layer must see that it drops.
        output: Tensor = self(x, branch, shortcut)
        return output

    def extra_repr(self) -> str:
        """Name the rate, and what differs from the default."""
        mode = f", mode={self.mode!r}" if self.mode != "row" else ""
        return f"drop_prob={self.drop_prob:g}{mode}{'' if self.scale_by_keep else ', scale_by_keep=False'}"

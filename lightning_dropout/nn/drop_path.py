"""The stochastic-depth layer for residual branches. The maths stands in ``functional``."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

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
    law, but with ``mode="subset"`` the branch is run for the kept samples only. ``StochasticDepth`` does it for a
    branch that is a module.

    Args:
        drop_prob: Probability of dropping, in [0, 1]. May be reassigned at any time; a plain float, not part of the
            ``state_dict``. 0 is free and keeps the layer schedulable.
        mode: ``"row"`` tosses one coin per sample, ``"batch"`` one for all samples, ``"subset"`` keeps a random subset
            whose size is the nominal one, rounded up or down at random. In ``residual`` the last two save what they
            drop, see ``functional.drop_residual``.
        scale_by_keep: Divide kept branches by ``1 - drop_prob``, which keeps their mean.
        min_samples: Fewest samples that a branch is run for, at least 1: 2 if batch normalisation is in it.

    Shape:
        ``(batch, *)`` to the same.

    Raises:
        ValueError: If ``drop_prob`` is set to no probability, ``mode`` is unknown or ``min_samples`` is below 1.

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

    def __init__(
        self,
        drop_prob: float = 0.0,
        mode: Mode = "row",
        scale_by_keep: bool = True,
        min_samples: int = 1,
    ) -> None:
        super().__init__()
        check_mode(mode)
        if not isinstance(min_samples, int) or isinstance(min_samples, bool) or min_samples < 1:
            raise ValueError(f"Expected `min_samples` to be a whole number of at least 1, but got {min_samples!r}.")
        self.drop_prob = drop_prob
        self.mode = mode
        self.scale_by_keep = scale_by_keep
        self.min_samples = min_samples

    def forward(
        self,
        x: Tensor,
        branch: Callable[..., Tensor] | None = None,
        shortcut: Callable[[Tensor], Tensor] | Literal[0] | None = None,
        **options: Any,
    ) -> Tensor:
        """Return ``x`` with samples dropped, in training mode; given a ``branch``, the same as ``residual``."""
        # Where the number is read later, it is no constant of a compiled graph.
        drop_prob = self.drop_prob if branch is None or self.mode == "row" else self._read_rate
        return self.forward_at(drop_prob, x, branch, shortcut, **options)

    def forward_at(
        self,
        drop_prob: float | Tensor | Callable[[], float],
        x: Tensor,
        branch: Callable[..., Tensor] | None = None,
        shortcut: Callable[[Tensor], Tensor] | Literal[0] | None = None,
        **options: Any,
    ) -> Tensor:
        """Do what ``forward`` does, at another rate; a tensor keeps one compiled graph while the rate changes."""
        if branch is None:
            drop_prob = drop_prob() if callable(drop_prob) else drop_prob
            return functional.drop_path(x, drop_prob, self.training, self.mode, self.scale_by_keep)
        return functional.drop_residual(
            x,
            branch,
            drop_prob,
            self.training,
            self.mode,
            self.scale_by_keep,
            shortcut=shortcut,
            min_samples=self.min_samples,
            **options,
        )

    def residual(
        self,
        x: Tensor,
        branch: Callable[..., Tensor],
        shortcut: Callable[[Tensor], Tensor] | Literal[0] | None = None,
        *,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        shared_inputs: Collection[str | int] = (),
        batch_dim: int = 0,
        broadcast: bool = False,
    ) -> Tensor:
        """Return ``x + drop_path(branch(x))``, or ``shortcut(x) + drop_path(branch(x))`` if a shortcut is given.

        Args:
            x: What enters both the branch and the sum.
            branch: Function or module of ``x``.
            shortcut: What takes the place of ``x`` in the sum, where the branch changes its shape; 0 for nothing.
            args: What the branch is given besides; what has one entry for each sample is dropped like ``x``.
            kwargs: The same, by name.
            shared_inputs: Names and numbers of those that are for all samples, whatever their size.
            batch_dim: Dimension of the samples, at least 0.
            broadcast: Whether the sum may broadcast, as a plain one does.

        Raises:
            ValueError: If the branch's output cannot be added without broadcasting.
        """
        # Through __call__, not straight to the function: hooks on this layer must see that it drops.
        output: Tensor = self(
            x,
            branch,
            shortcut,
            args=args,
            kwargs=kwargs,
            shared_inputs=shared_inputs,
            batch_dim=batch_dim,
            broadcast=broadcast,
        )
        return output

    def _read_rate(self) -> float:
        return self.drop_prob

    def extra_repr(self) -> str:
        """Name the rate, and what differs from the default."""
        mode = f", mode={self.mode!r}" if self.mode != "row" else ""
        fewest = f", min_samples={self.min_samples}" if self.min_samples != 1 else ""
        scale = "" if self.scale_by_keep else ", scale_by_keep=False"
        return f"drop_prob={self.drop_prob:g}{mode}{scale}{fewest}"

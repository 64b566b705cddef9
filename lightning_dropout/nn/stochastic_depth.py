"""The residual wrapper that runs its branch only for the samples that it keeps. The maths stands in ``functional``."""

from collections.abc import Callable, Collection
from typing import Any

from torch import Tensor, nn

from lightning_dropout.nn.drop_path import DropPath
from lightning_dropout.nn.functional import Mode
from lightning_dropout.nn.subset import normalises_over_batch

__all__ = ["StochasticDepth"]


class StochasticDepth(nn.Module):
    """Residual addition ``x + branch(x)`` with stochastic depth that saves what it drops.

    ``train()`` runs the branch for a random subset of the samples, so that a rate of 0.4 saves 40 % of its time and of
    the memory of its activations; the others pass by it unchanged. What is kept grows by ``1 / (1 - drop_prob)``, which
    keeps the mean. ``eval()`` runs it for all of them, unscaled: predictions are deterministic and do not depend on the
    rate.

    With batch normalisation in the branch, its statistics are those of the samples that run; at least two do.
    Several processes (``DistributedDataParallel``, FSDP) need no ``find_unused_parameters``: each runs at least one
    sample of each branch, with weight 0 if none is kept.

    Args:
        branch: Module of ``x`` and of whatever else the wrapper is called with.
        drop_prob: Probability of dropping, in [0, 1]; may be reassigned at any time.
        mode: ``"subset"`` saves; ``"row"`` runs all samples and then drops some, as other libraries do; ``"batch"``
            drops the branch for the whole batch or not at all, and then does not run it.
        shortcut: Where the branch changes the shape: what takes the place of ``x`` in the sum.
        batch_dim: Dimension of the samples, at least 0; 1 for (time, batch, features).
        shared_inputs: What else the branch is called with is cut along the samples where it has as many entries as the
            batch. Here stand the names (and the numbers of positional ones, from 0) of what is for all samples even
            then: a table of positions, a bias for each head.
        scale_by_keep: Divide what is kept by ``1 - drop_prob``.

    Shape:
        ``(batch, *)`` to the shape of the branch's output.

    Raises:
        ValueError: If ``drop_prob`` is set to no probability, ``mode`` is unknown, ``batch_dim`` is negative, or, when
            called, the branch does not return a tensor of the shape that it is added to.

    Source:
        Huang et al., "Deep Networks with Stochastic Depth" (2016), arXiv:1603.09382; subsets of the batch: Oquab et
        al., "DINOv2" (2023), arXiv:2304.07193, section 5, here with a rate that is exact for every batch size.

    Example:
        >>> import torch
        >>> layer = StochasticDepth(nn.Linear(3, 3), drop_prob=0.5)
        >>> layer(torch.rand(8, 3)).shape
        torch.Size([8, 3])
        >>> layer.drop_prob = 1.0
        >>> x = torch.rand(8, 3)
        >>> torch.equal(layer(x), x)
        True
    """

    def __init__(
        self,
        branch: nn.Module,
        drop_prob: float,
        mode: Mode = "subset",
        *,
        shortcut: Callable[[Tensor], Tensor] | None = None,
        batch_dim: int = 0,
        shared_inputs: Collection[str | int] = (),
        scale_by_keep: bool = True,
    ) -> None:
        super().__init__()
        if not isinstance(batch_dim, int) or isinstance(batch_dim, bool) or batch_dim < 0:
            raise ValueError(f"Expected `batch_dim` to be a dimension of at least 0, but got {batch_dim!r}.")
        if not callable(branch):
            raise ValueError(f"Expected `branch` to be a module, but got {branch!r}.")
        self.branch = branch
        self.shortcut = shortcut
        self.drop_path = DropPath(drop_prob, mode, scale_by_keep, min_samples=1 + normalises_over_batch(branch))
        self.batch_dim = batch_dim
        self.shared_inputs = tuple(shared_inputs)

    @property
    def drop_prob(self) -> float:
        """The probability of dropping, that of the layer ``drop_path``."""
        return self.drop_path.drop_prob

    @drop_prob.setter
    def drop_prob(self, drop_prob: float) -> None:
        self.drop_path.drop_prob = drop_prob

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the sum; the branch gets ``args`` and ``kwargs``, those with an entry for each sample cut as ``x``."""
        return self.drop_path.residual(
            x,
            self.branch,
            self.shortcut,
            args=args,
            kwargs=kwargs,
            shared_inputs=self.shared_inputs,
            batch_dim=self.batch_dim,
        )

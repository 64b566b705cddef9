"""The element and channel dropout layer. The maths stands in ``functional``; this is its rate and its mode."""

from torch import Tensor, nn

from lightning_dropout.nn import functional
from lightning_dropout.nn.functional import Granularity, check_granularity
from lightning_dropout.nn.rate import Rate

__all__ = ["Dropout"]


class Dropout(nn.Module):
    """Inverted dropout, equal to ``torch.nn.Dropout`` in law and gradient, with masks of other granularity.

    ``train()`` drops: each pass samples one thinned network of an exponentially large ensemble, so that no unit
    can rely on another. ``eval()`` does not: it is the one network with all units, whose activations approximate the
    ensemble's mean, and its predictions are deterministic. Nothing has to be rescaled there, because training already
    divides by ``1 - p`` and so keeps ``E[h'] = h``: evaluation is the same function whatever the rate is or was.

    Args:
        p: Probability of dropping, in [0, 1]. May be reassigned at any time; a plain float, not part of the
            ``state_dict``. 0 is free and keeps the layer schedulable.
        granularity: ``"element"`` tosses one coin per value, ``"channel"`` one per sample and index of dimension 1.
        shared_over_batch: One mask for all samples of the batch.

    Shape:
        ``(batch, *)`` to the same; ``"channel"`` needs ``(batch, channel, *)``.

    Raises:
        ValueError: If ``p`` is set to no probability, or ``granularity`` is unknown.

    Source:
        Srivastava et al., "Dropout" (2014), JMLR 15(56).

    Example:
        >>> import torch
        >>> layer = Dropout(p=0.25, granularity="channel")
        >>> layer
        Dropout(p=0.25, granularity='channel')
        >>> x = torch.ones(2, 3, 4, 4)
        >>> layer.eval()(x) is x
        True
        >>> layer.p = 1
        >>> layer.train()(x).sum()
        tensor(0.)
    """

    p = Rate()

    def __init__(self, p: float = 0.5, granularity: Granularity = "element", shared_over_batch: bool = False) -> None:
        super().__init__()
        check_granularity(granularity)
        self.p = p
        self.granularity = granularity
        self.shared_over_batch = shared_over_batch

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` with values dropped, in training mode; ``x`` itself otherwise."""
        return self.forward_at(self.p, x)

    def forward_at(self, p: float | Tensor, x: Tensor) -> Tensor:
        """Do what ``forward`` does, at another rate; a tensor keeps one compiled graph while the rate changes."""
        return functional.dropout(x, p, self.training, self.granularity, self.shared_over_batch)

    def extra_repr(self) -> str:
        """Name the rate, and what differs from the default."""
        granularity = f", granularity={self.granularity!r}" if self.granularity != "element" else ""
        return f"p={self.p:g}{granularity}{', shared_over_batch=True' if self.shared_over_batch else ''}"

"""Activation: inside ``dropping(sites)`` these sites drop, and nothing else in the model changes.

The flags of the owners are assigned, never ``module.train()``, which would wake the children and normalisation layers
too. Everything borrowed here (flags, rates, in-place flags, torch's fast path) is given back in ``finally``.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from lightning_dropout.nn import DropPath
from lightning_dropout.sites import Site

__all__ = ["dropping", "lend_forward", "resting", "sample_by_sample"]


@contextmanager
def dropping(sites: Sequence[Site], rates: Sequence[float] | None = None, quiet: Sequence[Site] = ()) -> Iterator[None]:
    """Make ``sites`` drop, at ``rates`` of their own if given, until the block is left.

    In-place dropout works on copies inside, since a second pass must see the same input. The fast path of torch's
    Transformer layers, which knows no dropout, is off inside.

    Args:
        sites: What to switch on.
        rates: One probability per site in [0, 1]; ``None`` leaves them as they are.
        quiet: Sites that one of the owners would switch on, too, and that nobody asked for: their rate is 0 inside.

    Example:
        >>> from lightning_dropout.sites import find_sites
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Dropout(0.5)).eval()
        >>> with dropping(find_sites(model)):
        ...     [module.training for module in model]
        [False, True]
        >>> [module.training for module in model]
        [False, False]
    """
    # Gives everything back, also where giving back one thing fails; twice, where an interrupt hits the first way out.
    with (stack := ExitStack()), stack:
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        for owner in {id(owner): owner for site in sites for owner in site.owners}.values():
            stack.callback(setattr, owner, "training", owner.training)
            owner.training = True
        for holder in [site.holder for site in sites if getattr(site.holder, "inplace", False)]:
            stack.callback(setattr, holder, "inplace", True)
            holder.inplace = False
        for site in (*(sites if rates is not None else ()), *quiet):
            stack.callback(site.give_back, site.held)
        for site, rate in zip(sites, rates or (), strict=rates is not None):
            site.rate = rate
        for site in quiet:
            site.rate = 0.0
        yield


@contextmanager
def resting(sites: Sequence[Site]) -> Iterator[None]:
    """Keep ``sites`` from dropping until the block is left, also where somebody has switched them on by hand.

    Example:
        >>> from lightning_dropout.sites import find_sites
        >>> model = torch.nn.Sequential(torch.nn.Dropout(0.5)).train()
        >>> with resting(find_sites(model)):
        ...     model(torch.ones(3))
        tensor([1., 1., 1.])
        >>> model[0].training
        True
    """
    with (stack := ExitStack()), stack:
        for owner in {id(owner): owner for site in sites for owner in site.owners}.values():
            stack.callback(setattr, owner, "training", owner.training)
            owner.training = False
        yield


@contextmanager
def sample_by_sample(sites: Sequence[Site]) -> Iterator[None]:
    """Let drop paths that draw for the batch as a whole draw for each sample by itself, until the block is left.

    The law of a sample is the same. But passes that are folded into one batch would share a draw, and so would depend
    on each other.

    Example:
        >>> from lightning_dropout.nn import DropPath
        >>> from lightning_dropout.sites import find_sites
        >>> layer = DropPath(0.5, mode="subset")
        >>> with sample_by_sample(find_sites(layer)):
        ...     layer.mode
        'row'
        >>> layer.mode
        'subset'
    """
    with (stack := ExitStack()), stack:
        for layer in {id(site.holder): site.holder for site in sites}.values():
            if isinstance(layer, DropPath) and layer.mode != "row":
                stack.callback(setattr, layer, "mode", layer.mode)
                layer.mode = "row"
        yield


def lend_forward(stack: ExitStack, module: nn.Module, forward: Callable[..., Any]) -> None:
    """Let ``module`` run ``forward`` until ``stack`` is closed; one that it holds itself is then back.

    Example:
        >>> layer = nn.ReLU()
        >>> with ExitStack() as stack:
        ...     lend_forward(stack, layer, lambda x: "lent")
        ...     layer(1)
        'lent'
        >>> "forward" in vars(layer)
        False
    """
    held = vars(module)
    if "forward" in held:
        stack.callback(held.__setitem__, "forward", held["forward"])
    else:
        stack.callback(held.pop, "forward", None)
    held["forward"] = forward

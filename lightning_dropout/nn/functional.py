"""The maths of dropping: inverted dropout and stochastic depth as plain functions of tensors.

Every mask of this package's own layers is drawn here. Nothing here keeps state, and nothing here branches on
what is inside a tensor, so all of it runs under autocast, activation checkpointing and ``torch.compile``. There a rate
that is a float is a constant of the graph; one that is a tensor may change without another compilation.

There are two ways to draw. The general one spends a float32 on each coin. On a CPU, where drawing is nearly all that
dropout costs, eager code spends 16 bits and selects with a kernel that needs no branch per value.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from lightning_dropout.nn.subset import (
    add_subset,
    can_subset,
    check_unchanged,
    draw_subset,
    draw_traced,
    leaves,
    select,
    spread_subset,
)
from lightning_dropout.probability import check_probability

__all__ = [
    "Granularity",
    "Mode",
    "check_granularity",
    "check_mode",
    "drop_path",
    "drop_residual",
    "dropout",
    "is_plain",
    "keep_above",
    "takes_16_bits",
]

Granularity = Literal["element", "channel"]
Mode = Literal["row", "batch", "subset"]


def dropout(
    x: Tensor,
    p: float | Tensor = 0.5,
    training: bool = True,
    granularity: Granularity = "element",
    shared_over_batch: bool = False,
) -> Tensor:
    """Inverted dropout: ``h' = h * m / (1 - p)`` with independent masks ``m`` in {0, 1} and ``P(m = 0) = p``.

    Training: dropped values become exactly 0, even where ``x`` is infinite or NaN; the others grow by ``1 / (1 - p)``,
    which keeps ``E[h'] = h``. Evaluation: ``x`` itself. A rate of 0 also returns ``x`` itself and draws nothing;
    a rate of 1 returns zeros, with zero gradients.

    Args:
        x: Floating-point values. The mask is as fine whatever their dtype: bfloat16 has too few digits to tell a rate
            of 0.001 from 0.
        p: Probability of dropping, in [0, 1]; resolved to float32's 2**-24. Eager code on a CPU resolves a float in
            [2**-10, 1 - 2**-10] to 2**-16: it drops with probability ``q = round(p * 2**16) / 2**16`` and scales by
            ``1 / (1 - q)``, so that the mean stays exact; only below 2048 coins it is as fine as elsewhere. A float32
            scalar tensor is taken as it is, unchecked, and always draws: looking at its value would cost a
            synchronisation or another graph.
        training: Drop (True) or pass ``x`` through (False).
        granularity: ``"element"`` tosses one coin per value, ``"channel"`` one per sample and index of dimension 1:
            a whole feature map of ``(batch, channel, height, width)``, but a whole token of ``(batch, token, dim)``.
        shared_over_batch: One mask for all samples of the batch: all of them see the same thinned network.

    Shape:
        ``(batch, *)`` to the same; ``"channel"`` needs ``(batch, channel, *)``.

    Raises:
        ValueError: If ``p`` is no probability, ``granularity`` is unknown, or ``x`` is of integers or
            has too few dimensions.

    Source:
        Srivastava et al., "Dropout" (2014), JMLR 15(56), with the scale moved from testing to training (their
        section 10); whole channels: Tompson et al. (2015), arXiv:1411.4280.

    Example:
        >>> dropout(torch.tensor([1.0, float("inf")]), p=1.0)
        tensor([0., 0.])
        >>> sorted(set(dropout(torch.ones(1000), p=0.75).tolist()))
        [0.0, 4.0]
    """
    p = p if isinstance(p, Tensor) else check_probability(p, "p")
    check_granularity(granularity)
    _check_input(x, min_dims=2 if granularity == "channel" else int(shared_over_batch))
    if not training or (isinstance(p, float) and p == 0.0):
        return x
    coins = list(x.shape)
    if granularity == "channel":
        coins[2:] = [1] * (x.ndim - 2)
    if shared_over_batch:
        coins[0] = 1
    return _drop(x, coins, p, rescale=True)


def drop_path(
    x: Tensor,
    drop_prob: float | Tensor,
    training: bool = True,
    mode: Mode = "row",
    scale_by_keep: bool = True,
) -> Tensor:
    """Stochastic depth: zero a residual branch's whole output, for some samples or for the batch.

    Training: a dropped sample is exactly 0, a kept one grows by ``1 / (1 - drop_prob)``. Evaluation: ``x`` itself.
    A rate of 0 also returns ``x`` itself and draws nothing; a rate of 1 returns zeros, with zero gradients.

    Args:
        x: Output of the branch, before it is added.
        drop_prob: Probability of dropping, in [0, 1]; resolved, and as a tensor, as in ``dropout``.
        training: Drop (True) or pass ``x`` through (False).
        mode: ``"row"`` tosses one coin per sample, ``"batch"`` one for all samples. ``"subset"`` is a way to run
            branches, see ``drop_residual``; to a finished branch it is ``"row"``.
        scale_by_keep: Rescale kept values, so that the mean is that of evaluation; False leaves them as they are.

    Shape:
        ``(batch, *)`` to the same.

    Raises:
        ValueError: If ``drop_prob`` is no probability, ``mode`` is unknown, or ``x`` is of integers or a scalar.

    Source:
        Huang et al., "Deep Networks with Stochastic Depth" (2016), arXiv:1603.09382, who drop for the batch and
        rescale at test time; here the scale belongs to training, so evaluation does not depend on the rate.

    Example:
        >>> drop_path(torch.ones(1000, 2), 0.5).unique(dim=0)
        tensor([[0., 0.],
                [2., 2.]])
    """
    drop_prob = drop_prob if isinstance(drop_prob, Tensor) else check_probability(drop_prob, "drop_prob")
    check_mode(mode)
    _check_input(x, min_dims=1)
    if not training or (isinstance(drop_prob, float) and drop_prob == 0.0):
        return x
    coins = [1] * x.ndim
    if mode != "batch":
        coins[0] = x.shape[0]
    return _drop(x, coins, drop_prob, rescale=scale_by_keep)


def drop_residual(
    x: Tensor,
    branch: Callable[..., Tensor],
    drop_prob: float | Tensor | Callable[[], float],
    training: bool = True,
    mode: Mode = "row",
    scale_by_keep: bool = True,
    *,
    shortcut: Callable[[Tensor], Tensor] | Literal[0] | None = None,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    shared_inputs: Collection[str | int] = (),
    batch_dim: int = 0,
    min_samples: int = 1,
    broadcast: bool = False,
) -> Tensor:
    """Add a residual branch that is sometimes dropped, ``x + drop_path(branch(x))``, and save what it would have cost.

    Training: ``mode="row"`` runs the branch for all samples and drops what it made of some. ``"subset"`` runs it for
    the samples that are kept alone, which saves the share ``drop_prob`` of its time and memory; ``"batch"`` runs it for
    all or not at all. In each of them a sample is dropped with probability ``drop_prob``, and what is kept grows by
    ``1 / (1 - drop_prob)``; in ``"subset"`` the number of samples kept is ``batch * (1 - drop_prob)``, rounded up or
    down at random. Evaluation, or a rate of 0: ``x + branch(x)``. A rate of 1: ``x``, with zero gradients.

    The branch of a ``"subset"`` is run for at least one sample, with weight 0 if none is kept: so every parameter has
    a gradient, which ``DistributedDataParallel`` waits for. ``"batch"`` does so only among several processes; in a
    single one the parameters of a skipped branch have no gradient, and optimizers leave them as they are.

    Under ``torch.compile`` the samples are drawn between two graphs; where there may be one only
    (``fullgraph=True``) the whole branch is run and then dropped, by the same law, with a warning; silently so under
    ``vmap`` and tracing, and where the branch is given something that cannot be taken apart (a key-value cache).

    Args:
        x: What enters both the branch and the sum; with ``shortcut``, also a list of tensors.
        branch: Function or module of ``x``; must treat every sample by itself or be batch normalisation.
        drop_prob: Probability of dropping, in [0, 1]. A tensor as in ``dropout``, but ``"subset"`` and ``"batch"`` look
            at its value: keep it on the CPU. Or a function that returns it: no constant of a compiled graph.
        training: Drop (True) or add the branch as it is (False).
        mode: ``"row"``, ``"batch"`` or ``"subset"``, see above.
        scale_by_keep: As in ``drop_path``.
        shortcut: Where the branch changes the shape: what takes the place of ``x`` in the sum, ``shortcut(x)``. Never
            dropped. 0 adds to nothing: ``drop_path(branch(x))`` alone.
        args: What the branch is given besides ``x``: masks, positions, conditioning. Tensors with as many entries along
            ``batch_dim`` as ``x`` are taken apart as ``x`` is, all others are for all samples.
        kwargs: The same, by name.
        shared_inputs: Names in ``kwargs`` and numbers in ``args`` (from 0) of what is for all samples even where its
            size is by chance that of the batch: a table of positions, a bias for each head.
        batch_dim: Dimension of the samples, at least 0.
        min_samples: Fewest samples that the branch is run for, at least 1: 2 if it holds batch normalisation, which
            cannot normalise one value. The additional ones do not count.
        broadcast: Whether the sum may broadcast, as a plain one does.

    Shape:
        ``(batch, *)`` to the shape of the branch's output.

    Raises:
        ValueError: If the branch's output cannot be added without broadcasting, or ``x`` has no dimension
            ``batch_dim``; otherwise as ``drop_path``.

    Source:
        Huang et al. (2016), arXiv:1603.09382, equation 2. Subsets: Oquab et al., "DINOv2" (2023), arXiv:2304.07193,
        section 5, there with a rounded rate.

    Example:
        >>> drop_residual(torch.ones(3), torch.exp, drop_prob=1.0)
        tensor([1., 1., 1.])
        >>> drop_residual(torch.zeros(4), lambda kept: kept + len(kept), 0.5, mode="subset").sum()
        tensor(8.)
    """
    check_mode(mode)
    lead = x[0] if isinstance(x, list | tuple) and x else x  # dense blocks are given a list of features
    # A branch of another library may be given a scalar first; that is for all samples.
    if isinstance(lead, Tensor) and not 0 <= batch_dim < lead.ndim and not (broadcast or shortcut == 0):
        raise ValueError(
            f"Expected `batch_dim` to be a dimension of `x`, counted from 0, but got {batch_dim} for the shape "
            f"{tuple(lead.shape)}."
        )
    kwargs = {} if kwargs is None else kwargs
    skip = None if shortcut == 0 else x if shortcut is None else shortcut(x)
    if training and mode != "row" and can_subset(lead, skip, batch_dim, (*args, *kwargs.values())):
        batch = num_run = lead.shape[batch_dim]
        draw = draw_traced if torch.compiler.is_compiling() else draw_subset
        subset = draw(batch, drop_prob, lead.device, mode == "batch", min_samples, scale_by_keep, skip is not None)
        if subset is None:
            residual = _of_shape(None if skip is None or broadcast else skip.shape, branch(x, *args, **kwargs))
            return residual if skip is None else skip + residual
        if subset.skipped:
            assert skip is not None  # noqa: S101  (that one is run has been asked for)
            return skip.clone()  # as a sum is: a new tensor, which its user may write into, and no view of `x`
        whole = (x, *args, *kwargs.values())
        if subset.samples is not None:
            cut = partial(select, samples=subset.samples, batch_dim=batch_dim, batch=batch)
            num_run = len(subset.samples)
            x = cut(x)
            args = [each if i in shared_inputs else cut(each) for i, each in enumerate(args)]
            kwargs = {name: each if name in shared_inputs else cut(each) for name, each in kwargs.items()}
        copies = [part for part, each in zip((x, *args, *kwargs.values()), whole, strict=True) if part is not each]
        before = leaves(copies)
        residual = branch(x, *args, **kwargs)
        check_unchanged(before, copies)
        shape = [*(_of_shape(None, residual) if skip is None else skip).shape]
        shape[batch_dim] = num_run
        if broadcast and skip is not None and [*residual.shape] != shape and residual.shape[batch_dim] == num_run:
            return skip + spread_subset(residual, subset, batch_dim, batch)
        residual = _of_shape(shape, residual)
        if skip is None:
            return spread_subset(residual, subset, batch_dim, batch)
        return add_subset(skip, residual, subset, batch_dim)
    residual = _of_shape(None if skip is None or broadcast else skip.shape, branch(x, *args, **kwargs))
    if training or not callable(drop_prob):  # a graph for evaluation must not depend on the rate
        drop_prob = drop_prob() if callable(drop_prob) else drop_prob
        first = residual.movedim(batch_dim, 0) if batch_dim else residual
        first = drop_path(first, drop_prob, training, mode, scale_by_keep)
        residual = first.movedim(0, batch_dim) if batch_dim else first
    return residual if skip is None else skip + residual


def _of_shape(shape: Sequence[int] | None, residual: Tensor) -> Tensor:
    """Return ``residual``; a branch that changes the shape must not be broadcast by the sum."""
    if not isinstance(residual, Tensor):
        raise ValueError(
            f"Expected `branch` to return a tensor, but got {type(residual).__name__}; wrap it in a function that "
            "returns what is to be added."
        )
    if not (residual.is_floating_point() or residual.is_complex()):
        raise ValueError(
            f"Expected `branch` to return a floating-point dtype, but got {residual.dtype}; drop after the embedding."
        )
    if shape is not None and residual.shape != torch.Size(shape):
        raise ValueError(
            f"Expected `branch` to return the shape that it is added to, {tuple(shape)}, but got "
            f"{tuple(residual.shape)}; give a `shortcut` that maps the input to the new shape, or, if dimension 0 does "
            "not hold the samples, `batch_dim`."
        )
    return residual


def check_granularity(granularity: object) -> None:
    """Raise ``ValueError`` unless ``dropout`` knows this ``granularity``."""
    if granularity not in get_args(Granularity):
        raise ValueError(f"Expected `granularity` to be one of {get_args(Granularity)}, but got {granularity!r}.")


def check_mode(mode: object, name: str = "mode") -> None:
    """Raise ``ValueError``, which calls it ``name``, unless ``drop_path`` knows this ``mode``."""
    if mode not in get_args(Mode):
        raise ValueError(f"Expected `{name}` to be one of {get_args(Mode)}, but got {mode!r}.")


def _drop(x: Tensor, coins: list[int], p: float | Tensor, rescale: bool) -> Tensor:
    """Zero ``x`` where a coin of shape ``coins`` (1 = shared along that dimension) says so; 0 < ``p`` <= 1."""
    # The slice only lends its memory format to the mask: a channels_last input keeps its layout, forward and backward.
    like = x.detach()[tuple(slice(size) for size in coins)]
    if isinstance(p, float) and is_plain(x) and takes_16_bits(p, like.numel()):
        lowest_kept, scale = _in_16_bits(p)
        return _select(x, _toss(like), lowest_kept, scale if rescale else 1.0)
    dropped = torch.rand_like(like, dtype=torch.float32) < p
    kept = _rescaled(x, p) if rescale else x
    # Not a product with the mask: 0 * inf is NaN.
    return torch.where(dropped, 0.0, kept)


def _rescaled(x: Tensor, p: float | Tensor) -> Tensor:
    # At p = 1 nothing is kept, and 1 / (1 - p) would only bring 0 * inf = NaN into the backward pass.
    if not isinstance(p, Tensor):
        return x * (1.0 / (1.0 - p)) if p < 1.0 else x
    keep = 1.0 - p
    scale = torch.where(keep > 0.0, 1.0 / keep.clamp_min(torch.finfo(keep.dtype).tiny), 1.0)
    # A scalar tensor would be rounded to the dtype of ``x`` first: in bfloat16 the mean would be off by 0.2 %.
    return (x.to(torch.promote_types(x.dtype, scale.dtype)) * scale).to(x.dtype)


# Sixteen bits for each coin: on a CPU, outside of everything that records, transforms or compiles.

_COARSEST = 2**-10  # rounded to 2**-16, a smaller rate would be off by more than 0.8 %
_FEWEST = 2**11  # coins; below, the general way takes fewer calls and no longer
_PIECE = 2**17  # values that, with their coins and results, stay in a core's cache from one step to the next
# (values, noise, threshold): the value where noise > threshold, else 0. Ten times as fast as `torch.where`.
_keep_above = torch.ops.aten.threshold_backward.default


def takes_16_bits(p: float, num_coins: int) -> bool:
    """Tell whether 16 bits for each coin are fine enough for ``p``, and no slower."""
    return _COARSEST <= p <= 1.0 - _COARSEST and num_coins >= _FEWEST


def _in_16_bits(p: float) -> tuple[int, float]:
    """Return the lowest coin that keeps, and what the kept values grow by."""
    num_dropping = round(p * 2**16)
    return num_dropping - 2**15, 2**16 / (2**16 - num_dropping)


def is_plain(x: Tensor) -> bool:
    """Tell whether ``x`` lives on a CPU and nothing records, transforms or compiles what is done with it."""
    return (
        not torch.compiler.is_compiling()
        and type(x) in (Tensor, nn.Parameter)
        and x.is_cpu
        and x.is_floating_point()
        and torch._C._get_tracing_state() is None
        and torch._C._functorch.maybe_current_level() is None
        and not torch._C._functorch.is_legacy_batchedtensor(x)
        and torch._C._len_torch_dispatch_stack() == 0
    )


def _toss(like: Tensor) -> Tensor:
    """Return independent coins, uniform on the int16, in the shape and layout of ``like``."""
    # All 64 bits are random only over the whole range: without bounds, the sign stays 0.
    words = torch.empty(-(-like.numel() // 4), dtype=torch.int64, device="cpu").random_(-(2**63), None)
    return words.view(torch.int16).as_strided(like.shape, torch.empty_like(like).stride())


def keep_above(x: Tensor, noise: Tensor, threshold: float, scale: float) -> Tensor:
    """Return ``scale * x`` where the float32 ``noise`` is above ``threshold``, else exactly 0; real values only."""
    kept: Tensor = _keep_above(x, noise, threshold)
    return kept.mul_(scale).to(x.dtype)


def _select(x: Tensor, coins: Tensor, lowest_kept: int, scale: float) -> Tensor:
    """Return ``scale * x`` where a coin is at least ``lowest_kept``, else exactly 0."""
    one_each = coins.numel() > _PIECE and coins.shape == x.shape and coins.stride() == x.stride()
    if one_each and is_plain(x) and forward_ad.unpack_dual(x).tangent is None:  # type: ignore[no-untyped-call]
        selected: Tensor = _InPieces.apply(x, coins, lowest_kept, scale)
        return selected
    return keep_above(x, coins.float(), lowest_kept - 0.5, scale)  # float32 has digits for every coin


class _InPieces(torch.autograd.Function):
    """``_select`` for many values: half of its time would go into fresh memory that is used once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, coins: Tensor, lowest_kept: int, scale: float) -> Tensor:
        ctx.save_for_backward(coins)
        ctx.law = lowest_kept, scale
        y = torch.empty_like(x)
        flat = [torch.split(tensor.as_strided((tensor.numel(),), (1,)), _PIECE) for tensor in (x, coins, y)]
        for values, piece, results in zip(*flat, strict=True):
            torch.mul(_keep_above(values, piece.float(), lowest_kept - 0.5), scale, out=results)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return _select(grads[0], *ctx.saved_tensors, *ctx.law), None, None, None


def _check_input(x: Tensor, min_dims: int) -> None:
    if not (x.is_floating_point() or x.is_complex()):
        raise ValueError(f"Expected `x` to be of a floating-point dtype, but got {x.dtype}; drop after the embedding.")
    if x.ndim < min_dims:
        needed = "(batch, *)" if min_dims == 1 else "(batch, channel, *)"
        raise ValueError(f"Expected `x` to have shape {needed}, but got {tuple(x.shape)}.")

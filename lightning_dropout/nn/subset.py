"""Subsets: which samples of a batch a residual branch is run for, and cutting these out of what the branch is given.

The size of a subset decides the shapes of all that follows, so it is drawn on the host, where nobody waits for it: by
torch's generator of the CPU. Which samples they are is drawn on their device. Nothing here looks into a tensor.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_dropout.probability import check_probability

__all__ = ["Subset", "add_subset", "can_subset", "draw_subset", "draw_traced", "normalises_over_batch", "select"]

_PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device, torch.Size)


class Subset(NamedTuple):
    """What was drawn for one call of a branch.

    Args:
        samples: Which are run, without repetition; None for all of them, as they stand.
        kept: Which of the samples that are run count, of bool; None if all do.
        scale: What the branch grows by.
        skipped: No sample is run at all.
    """

    samples: Tensor | None
    kept: Tensor | None
    scale: float | Tensor
    skipped: bool = False


def draw_subset(
    batch: int,
    drop_prob: float | Tensor | Callable[[], float],
    device: torch.device,
    whole: bool = False,
    min_samples: int = 1,
    scale_by_keep: bool = True,
    may_skip: bool = True,
) -> Subset | None:
    """Draw which samples of a batch are kept: ``floor(batch * keep + u)`` of them, ``u`` uniform in [0, 1).

    So the number of samples is right in expectation for every size of the batch, and each one is kept with
    probability ``keep = 1 - drop_prob``. Rounding down instead would drop 0.5 where 0.4 is asked for (batch 8).

    Args:
        batch: Number of samples.
        drop_prob: Probability of dropping, in [0, 1], or a function that returns it; a tensor is looked into.
        device: Where the samples are.
        whole: One coin for all samples.
        min_samples: Fewest samples to run; those that no coin kept do not count.
        scale_by_keep: Divide by the nominal ``keep``, not by the share that was kept.
        may_skip: If ``whole``, whether nothing need be run at all when it is dropped. It must be where several
            processes wait for each other's gradients.

    Returns:
        The subset; None where nothing is dropped.

    Example:
        >>> subset = draw_subset(8, 0.5, torch.device("cpu"))
        >>> len(subset.samples), subset.kept, subset.scale
        (4, None, 2.0)
    """
    drop_prob = drop_prob() if callable(drop_prob) else drop_prob
    drop_prob = check_probability(drop_prob.item() if isinstance(drop_prob, Tensor) else drop_prob, "drop_prob")
    if drop_prob == 0.0 or batch == 0:
        return None
    keep = 1.0 - drop_prob
    if whole:
        num_kept = 0 if float(torch.rand((), dtype=torch.float32, device="cpu")) < drop_prob else batch
        num_run = num_kept or (0 if may_skip and not _others_wait() else min(batch, min_samples))
    else:
        num_kept = math.floor(batch * keep + float(torch.rand((), dtype=torch.float64, device="cpu")))
        num_run = min(batch, max(num_kept, min_samples))
    scale = 1.0 / keep if scale_by_keep and keep > 0.0 else 1.0
    if num_run == 0:
        return Subset(None, None, scale, skipped=True)
    if num_kept == batch:
        return Subset(None, None, scale)
    order = torch.randperm(batch, device=device)
    kept = None if num_kept == num_run else torch.arange(num_run, device=device) < num_kept
    return Subset(order[:num_run], kept, scale)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def draw_traced(
    batch: int,
    drop_prob: float | Tensor | Callable[[], float],
    device: torch.device,
    whole: bool,
    min_samples: int,
    scale_by_keep: bool,
    may_skip: bool,
) -> Subset | None:
    """Do what :func:`draw_subset` does while ``torch.compile`` traces the caller: a gap between two graphs.

    What differs from call to call comes as a tensor and with a size that may change, lest it be compiled anew.

    Args:
        batch: As there.
        drop_prob: As there. Read here, what a function returns or a tensor holds is no constant of the graph.
        device: As there.
        whole: As there.
        min_samples: As there; a subset has at least 2, since torch makes a size of 1 a constant.
        scale_by_keep: As there.
        may_skip: As there.
    """
    fewest = min_samples if whole else max(2, min_samples)
    subset = draw_subset(batch, drop_prob, device, whole, fewest, scale_by_keep, may_skip)
    if subset is None and whole:
        subset = Subset(None, None, 1.0)  # no fourth graph, beside those for all, for nothing and for evaluation
    if subset is None:
        return None
    scale = torch.tensor(subset.scale, dtype=torch.float32, device=device)
    if whole:
        return subset._replace(scale=scale)
    samples = torch.arange(batch, device=device) if subset.samples is None else subset.samples.clone()
    kept = torch.ones(len(samples), dtype=torch.bool, device=device) if subset.kept is None else subset.kept
    for each in (samples, kept):
        torch._dynamo.maybe_mark_dynamic(each, 0)
    return Subset(samples, kept, scale)


def _others_wait() -> bool:
    """Tell whether other processes wait for a gradient of every parameter, or take part in every layer."""
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def can_subset(x: Tensor, skip: Tensor | None, batch_dim: int, inputs: Sequence[Any]) -> bool:
    """Tell whether samples can be taken out of ``x`` and of the other ``inputs`` of a branch that is added to ``skip``.

    Not where ``x`` holds parts of samples (windows, heads) in that dimension, not from what has a meaning of its own (a
    cache, a block mask), is in another process's keeping (a sharded tensor), or where the number of samples cannot be
    drawn: under ``vmap``, tracing, export, or in a graph that must be one.
    """
    if not all(isinstance(each, Tensor) for each in (x, x if skip is None else skip)) or x.ndim <= batch_dim:
        return False
    if skip is not None and x.shape[batch_dim : batch_dim + 1] != skip.shape[batch_dim : batch_dim + 1]:
        return False
    if torch.compiler.is_compiling():
        if torch.compiler.is_exporting() or _must_be_one_graph():
            return False
    elif (
        type(x) not in (Tensor, nn.Parameter)
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.maybe_current_level() is not None
    ):
        return False
    if not all(_is_selectable(value) for value in inputs):
        return False
    # Not one query for all samples.
    return x.shape[batch_dim] != 1 or all(value.shape[batch_dim] == 1 for value in inputs if _has(value, batch_dim))


def _has(value: Any, batch_dim: int) -> bool:
    return isinstance(value, Tensor) and value.ndim > batch_dim


@torch._dynamo.assume_constant_result  # type: ignore[untyped-decorator]
def _must_be_one_graph() -> bool:
    # Runs while the caller is traced, for real. Where torch does not tell, it will raise its own error.
    from torch._dynamo.symbolic_convert import InstructionTranslator

    try:
        tracer: Any = InstructionTranslator.current_tx()
        one_graph = bool(tracer.one_graph or getattr(tracer, "error_on_graph_break", False))
    except AttributeError:
        return False
    if one_graph:
        warnings.warn(
            'Expected `mode="subset"` or "batch" to be compiled without `fullgraph=True`, since which samples run is '
            "drawn between two graphs; now all of them run and some are dropped: the same law, but nothing is saved.",
            stacklevel=2,
        )
    return one_graph


def _is_selectable(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.layout is torch.strided and not value.is_nested
    if isinstance(value, dict):
        return type(value) is dict and all(_is_selectable(each) for each in value.values())
    if isinstance(value, _PLAIN):
        return True
    return isinstance(value, tuple | list) and all(_is_selectable(each) for each in value)


def select(value: Any, samples: Tensor, batch_dim: int, batch: int) -> Any:
    """Return the ``samples`` of a tensor that has one entry for each, also within tuples, lists and dicts.

    A tensor of another size in dimension ``batch_dim`` (a position table, a mask that broadcasts) is for all samples.

    Example:
        >>> select({"mask": torch.tensor([[1], [2], [3]]), "size": (3, 3)}, torch.tensor([2]), 0, batch=3)
        {'mask': tensor([[3]]), 'size': (3, 3)}
    """
    if isinstance(value, Tensor):
        if value.ndim <= batch_dim or value.shape[batch_dim] != batch:
            return value
        samples = samples.to(value.device)  # lengths of sequences stay on the host
        order = _memory_order(value)
        if order is None:
            return value.index_select(batch_dim, samples)
        return value.permute(order).index_select(order.index(batch_dim), samples).permute(_inverse(order))
    if isinstance(value, dict):
        items = {key: select(each, samples, batch_dim, batch) for key, each in value.items()}
        return items if any(items[key] is not each for key, each in value.items()) else value
    if isinstance(value, torch.Size) or not isinstance(value, tuple | list):
        return value
    parts = [select(each, samples, batch_dim, batch) for each in value]
    if all(part is each for part, each in zip(parts, value, strict=True)):
        return value  # the list itself: the branch may write into it
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)


def leaves(value: Any) -> list[tuple[Any, int]]:
    """Return what stands in tuples, lists and dicts, each with the number of times that it was changed in place."""
    if isinstance(value, dict):
        value = [part for item in value.items() for part in item]
    if isinstance(value, tuple | list):
        return [leaf for each in value for leaf in leaves(each)]
    counted = isinstance(value, Tensor) and not torch.compiler.is_compiling() and not value.is_inference()
    return [(value, value._version if counted else 0)]


def check_unchanged(before: Sequence[tuple[Any, int]], value: Any) -> None:
    """Complain if a branch wrote into what it was given: into a copy of some samples, which nobody else reads."""
    after = leaves(value)
    if len(after) != len(before) or any(a is not b or n != m for (a, n), (b, m) in zip(after, before, strict=True)):
        raise RuntimeError(
            "Expected `branch` to leave what it is given as it is, but it changed a tensor, list or dict in place, of "
            'which only its own samples would know; build it with `inplace=False`, or use `mode="row"`.'
        )


def add_subset(skip: Tensor, residual: Tensor, subset: Subset, batch_dim: int) -> Tensor:
    """Return ``skip`` plus what the branch made of the samples in ``subset``; one new tensor, as a plain sum would be.

    Example:
        >>> add_subset(torch.zeros(3, 1), torch.ones(1, 1), Subset(torch.tensor([1]), None, 2.0), 0)
        tensor([[0.],
                [2.],
                [0.]])
    """
    residual, alpha = _scaled(residual, subset, batch_dim)
    dtype = torch.promote_types(skip.dtype, residual.dtype)
    if subset.samples is None:
        return torch.add(skip, residual, alpha=alpha)
    skip, residual = skip.to(dtype), residual.to(dtype)
    order = _memory_order(skip)
    if order is None:
        return _index_add(skip, batch_dim, subset.samples, residual, alpha)
    skip, residual = skip.permute(order), residual.permute(order)
    return _index_add(skip, order.index(batch_dim), subset.samples, residual, alpha).permute(_inverse(order))


def spread_subset(residual: Tensor, subset: Subset, batch_dim: int, batch: int) -> Tensor:
    """Return what the branch made of the samples in ``subset`` in its place among ``batch`` samples, the others 0.

    Example:
        >>> spread_subset(torch.ones(1, 1), Subset(torch.tensor([1]), None, 2.0), 0, batch=3)
        tensor([[0.],
                [2.],
                [0.]])
    """
    residual, alpha = _scaled(residual, subset, batch_dim)
    if subset.samples is None:
        return residual if alpha == 1.0 else residual * alpha
    order = _memory_order(residual) or tuple(range(residual.ndim))
    laid = residual.permute(order)
    dim = order.index(batch_dim)
    shape = [*laid.shape]
    shape[dim] = batch
    zeros = laid.new_zeros(()).expand(shape)
    return _index_add(zeros, dim, subset.samples, laid, alpha).permute(_inverse(order))


def _index_add(skip: Tensor, dim: int, samples: Tensor, residual: Tensor, alpha: float) -> Tensor:
    if torch.compiler.is_compiling():  # keeps for the backward pass only what is read there
        return torch.index_add(skip, dim, samples, residual, alpha=alpha)
    added: Tensor = _IndexAdd.apply(skip, dim, samples, residual, alpha)
    return added


class _IndexAdd(torch.autograd.Function):
    """``torch.index_add``, which keeps what it has added until the backward pass, for its shape alone."""

    @staticmethod
    def forward(ctx: Any, skip: Tensor, dim: int, samples: Tensor, residual: Tensor, alpha: float) -> Tensor:
        ctx.save_for_backward(samples)
        ctx.save_for_forward(samples)
        ctx.dim, ctx.alpha = dim, alpha
        return torch.index_add(skip, dim, samples, residual, alpha=alpha)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, Tensor, None]:
        (samples,) = ctx.saved_tensors
        grad = grads[0].index_select(ctx.dim, samples)
        return grads[0], None, None, grad if ctx.alpha == 1.0 else grad * ctx.alpha, None

    @staticmethod
    def jvp(ctx: Any, skip: Tensor, dim: None, samples: None, residual: Tensor, alpha: None) -> Tensor:
        return torch.index_add(skip, ctx.dim, ctx.saved_tensors[0], residual, alpha=ctx.alpha)


def _scaled(residual: Tensor, subset: Subset, batch_dim: int) -> tuple[Tensor, float]:
    """Return ``residual`` without the samples that do not count, and the factor that it is still to grow by."""
    if subset.kept is not None:
        shape = [1] * residual.ndim
        shape[batch_dim] = -1
        # Not a product with the mask: 0 * inf is NaN.
        residual = torch.where(subset.kept.view(shape), residual, 0.0)
    if isinstance(subset.scale, float) and residual.dtype not in (torch.bfloat16, torch.float16):
        return residual, subset.scale
    # A scalar tensor, or `alpha`, would be rounded to the dtype of the branch: in bfloat16 the mean is off by 0.2 %.
    wide = residual.to(torch.promote_types(residual.dtype, torch.float32))
    return (wide * subset.scale).to(residual.dtype), 1.0


def _memory_order(x: Tensor) -> tuple[int, ...] | None:
    """Return the dimensions as they lie in memory, if they lie as ``channels_last``: torch's indexing forgets that."""
    for ndim, layout in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if x.ndim == ndim and not x.is_contiguous() and x.is_contiguous(memory_format=layout):
            return (0, *range(2, ndim), 1)
    return None


def _inverse(order: Sequence[int]) -> list[int]:
    return [order.index(dim) for dim in range(len(order))]


def normalises_over_batch(module: object) -> bool:
    """Tell whether a module holds batch normalisation, which cannot be trained on one value.

    Example:
        >>> normalises_over_batch(nn.Sequential(nn.BatchNorm1d(3)))
        True
    """
    return isinstance(module, nn.Module) and any(
        isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules()
    )

"""Monte-Carlo dropout on any module: T stochastic passes, their statistics, and the guards that make them honest.

Plain torch, no trainer. A pass is one call of the model with its sites switched on; the model, its buffers, its inputs
and every random generator are afterwards what they were before.
"""

import numbers
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_dropout.probability import check_probability
from lightning_dropout.randomness import derive_seed, isolated_randomness, seed_everywhere
from lightning_dropout.sampling.activation import dropping
from lightning_dropout.sampling.prediction import MCPrediction, Outputs, Statistics, Task, check_outputs, check_task
from lightning_dropout.sites import Kind, Site, find_sites, sites_of

__all__ = ["DEFAULT_KINDS", "check_num_samples", "draw_passes", "mc_sample"]

DEFAULT_KINDS: tuple[Kind, ...] = ("dropout", "attention", "recurrent")
_EXTRA_DRAWS = 100  # two DropPaths at 0.1 agree ten times running in 12 % of cases: equal passes alone prove nothing


@torch.no_grad()
def mc_sample(
    model: nn.Module,
    *args: Any,
    num_samples: int = 30,
    task: Task,
    class_dim: int = 1,
    sites: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = (),
    kinds: Sequence[Kind] = DEFAULT_KINDS,
    rates: float | None = None,
    seed: int = 0,
    return_samples: bool = False,
    **kwargs: Any,
) -> MCPrediction:
    """Run ``num_samples`` passes of ``model(*args, **kwargs)`` with dropout on, and return what they say together.

    Each pass is one thinned network of the ensemble that dropout training trains; their mean is the prediction, their
    spread its uncertainty. The sites are switched on for the passes alone and everything else stays in the mode it is
    in, so call it on a model in eval mode. Passes are seeded: the same call gives the same numbers.

    Args:
        model: Any module; no trainer, no subclassing.
        args: What the model is called with.
        num_samples: T, the number of passes, at least 1; the standard deviation needs 2.
        task: What the outputs are, in torchmetrics' words: logits for ``"binary"``, ``"multiclass"`` and
            ``"multilabel"`` (their probabilities are averaged), values for ``"regression"``; also ``"gaussian"`` (mean
            and log-variance heads, as a pair or as two halves of ``class_dim``), ``"probabilities"`` and ``"raw"``.
        class_dim: The dimension of the classes.
        sites: Glob patterns on the names of the sites to sample; ``"*"`` takes all.
        exclude: Patterns of sites, or of modules unknown to the package, to leave alone.
        kinds: Kinds of sites to sample; ``"drop_path"`` and ``"layer_drop"`` join if you name them.
        rates: One probability for every site during the passes, in [0, 1]; ``None`` samples at the rates they have.
        seed: What the masks follow from.
        return_samples: Whether to keep all passes, (T, ...), in ``samples``.
        kwargs: What the model is called with.

    Returns:
        Mean, standard deviation, entropies and votes; see :class:`MCPrediction`.

    Raises:
        ValueError: If no site matches or every rate is 0, if the outputs do not fit ``task``, or ``num_samples`` < 1.
        RuntimeError: If passes change a buffer or the input, or do not differ; the model is left as it was.

    Source:
        Gal & Ghahramani (2016), "Dropout as a Bayesian Approximation", arXiv:1506.02142.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 3)).eval()
        >>> prediction = mc_sample(net, torch.randn(2, 4), num_samples=100, task="multiclass")
        >>> prediction.mean.sum(1), prediction.std.shape, prediction.mutual_information.shape
        (tensor([1., 1.]), torch.Size([2, 3]), torch.Size([2]))
    """
    check_task(task)
    check_num_samples(num_samples)
    found = find_sites(model, sites, exclude, kinds)
    values = None if rates is None else [check_probability(rates, "rates")] * len(found)
    return draw_passes(
        lambda: model(*args, **kwargs),
        model,
        found,
        num_samples=num_samples,
        task=task,
        class_dim=class_dim,
        rates=values,
        seed=(seed,),
        inputs=(args, kwargs),
        return_samples=return_samples,
    )


def check_num_samples(num_samples: int) -> None:
    """Raise unless ``num_samples`` is a whole number of at least 1."""
    if not isinstance(num_samples, numbers.Integral) or isinstance(num_samples, bool) or num_samples < 1:
        raise ValueError(
            f"Expected `num_samples` to be a whole number of passes, at least 1, but got {num_samples!r}; "
            "30 is a common choice."
        )


def draw_passes(
    forward: Callable[[], Any],
    model: nn.Module,
    sites: Sequence[Site],
    *,
    num_samples: int,
    task: Task,
    class_dim: int,
    rates: Sequence[float] | None,
    seed: tuple[int, ...],
    inputs: Any,
    return_samples: bool = False,
    guarded: bool = True,
) -> MCPrediction:
    """Run the passes of one batch; what :func:`mc_sample` and the callback share.

    Args:
        forward: One call of the model.
        model: Whose buffers and generators are guarded.
        sites: What to switch on.
        num_samples: T.
        task: What an output means.
        class_dim: The dimension of the classes.
        rates: One probability per site for the passes, or ``None``.
        seed: Parts of the seed; the number of the pass is added.
        inputs: The tensors that ``forward`` reads, in any nesting.
        return_samples: Whether to keep all passes.
        guarded: Whether to check that passes change nothing and differ; once per data set is enough.
    """
    _refuse_silence(sites, rates)
    quiet = _others_to_keep_quiet(model, sites)
    statistics = Statistics(task, class_dim, keep_samples=return_samples)
    first: Outputs | None = None
    differs = False
    with ExitStack() as stack:
        witness = stack.enter_context(_Witness(model, inputs)) if guarded else None
        stack.enter_context(isolated_randomness(model))
        stack.enter_context(dropping(sites, rates, quiet))
        for number in range(num_samples + _EXTRA_DRAWS):
            if number >= num_samples and (differs or not guarded):
                break
            seed_everywhere(derive_seed(*seed, number))
            outputs = cast(Outputs, forward())
            if isinstance(outputs, list):
                outputs = tuple(outputs)
            if first is None:
                if witness is not None:
                    witness.check()
                first = check_outputs(outputs, task, class_dim)
            elif guarded and not differs:
                differs = not _equal(first, outputs)
            if number < num_samples:
                statistics.update(outputs)
    assert first is not None  # noqa: S101  (num_samples is at least 1)
    if guarded and not differs and not _all_nan(first):  # a diverged model says so itself: its results are NaN
        names = ", ".join(site.name for site in sites)
        raise RuntimeError(
            f"Expected passes that differ, but got {num_samples + _EXTRA_DRAWS} equal ones although these sites were "
            f"on: {names}; check that the forward calls them (fused, compiled or scripted code may not) and that what "
            "they drop reaches the output."
        )
    return statistics.result(first)


class _Witness:
    """Remembers buffers and inputs, raises if a pass has changed one, and puts back what an error leaves behind."""

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        # By the dictionary that holds it: code that assigns a new buffer leaves the old tensor as it was.
        self._buffers = [
            (f"buffer `{f'{prefix}.{name}'.lstrip('.')}`", module._buffers, name, buffer, buffer.clone())
            for prefix, module in model.named_modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        self._inputs = [(leaf, leaf.clone()) for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]

    def __enter__(self) -> "_Witness":
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is None:  # `check` has found nothing to put back
            return
        for _, holder, name, buffer, copy in self._buffers:
            holder[name] = buffer
            _put_back(buffer, copy)
        for tensor, copy in self._inputs:
            _put_back(tensor, copy)

    def check(self) -> None:
        for what, holder, name, _, copy in self._buffers:
            if not _same(holder[name], copy):
                raise RuntimeError(
                    f"Expected passes that change nothing, but got a changed {what} (put back); call `model.eval()` "
                    "before sampling, so that normalisation layers use what they have learned."
                )
        if not all(_same(tensor, copy) for tensor, copy in self._inputs):
            raise RuntimeError(
                "Expected passes that change nothing, but got a changed input (put back), so that later passes would "
                "see another one; make the layer that works in place (`inplace=True`) return a new tensor."
            )


def _put_back(tensor: Tensor, copy: Tensor) -> None:
    if not _same(tensor, copy):
        tensor.copy_(copy)


def _refuse_silence(sites: Sequence[Site], rates: Sequence[float] | None) -> None:
    if not any(rates if rates is not None else (site.rate for site in sites)):
        names = ", ".join(site.name for site in sites[:5]) + (", ..." if len(sites) > 5 else "")
        raise ValueError(
            f"Expected a rate above 0 somewhere, but got 0 at all {len(sites)} sites ({names}): every pass would be "
            "the same; pass `rates=0.1`, or train with dropout that does not end at 0."
        )


def _others_to_keep_quiet(model: nn.Module, sites: Sequence[Site]) -> list[Site]:
    """Return the sites that nobody asked for and that an owner of those asked for switches on, too.

    Layer drop in the encoder whose dropout is sampled is one.

    Raises:
        ValueError: If a site that nobody asked for drops already, since the model is in train mode.
    """
    asked = {site.key for site in sites}
    owners = {id(owner) for site in sites for owner in site.owners}
    others = [site for site in sites_of(model, strict=False) if site.key not in asked and site.rate > 0.0]
    awake = [site for site in others if site.effective_rate > 0.0 and site.owners]
    if awake:
        raise ValueError(
            f"Expected only the sites asked for to drop, but got `{awake[0].name}` ({awake[0].kind}, rate "
            f"{awake[0].rate:g}) in train mode as well; call `model.eval()` before sampling, or add its kind to "
            "`kinds`."
        )
    return [site for site in others if any(id(owner) in owners for owner in site.owners)]


def _all_nan(outputs: Outputs) -> bool:
    return all(bool(output.isnan().all().item()) for output in tree_leaves(outputs))


def _equal(first: Outputs, second: Outputs) -> bool:
    if isinstance(first, Tensor) or isinstance(second, Tensor):
        return isinstance(first, Tensor) and isinstance(second, Tensor) and _same(first, second)
    return all(_same(one, other) for one, other in zip(first, second, strict=True))


def _same(one: Tensor | None, other: Tensor) -> bool:
    """Equal in every value, NaN being equal to NaN."""
    if one is None:
        return False
    if one.shape != other.shape or not one.is_floating_point():
        return torch.equal(one, other)
    return bool(((one == other) | (one.isnan() & other.isnan())).all().item())

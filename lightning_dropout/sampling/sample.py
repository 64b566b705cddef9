"""Monte-Carlo dropout on any module: T stochastic passes, their statistics, and the guards that make them honest.

Plain torch, no trainer. A pass is one call of the model with its sites switched on; the model, its buffers, its inputs
and every random generator are afterwards what they were before.
"""

import dataclasses
import numbers
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_dropout.probability import check_probability
from lightning_dropout.randomness import generators_of, isolated_generators, own_generators_of
from lightning_dropout.sampling.activation import dropping, sample_by_sample
from lightning_dropout.sampling.batch import Batch
from lightning_dropout.sampling.folding import check_chunk_size, refuse_coins_of_the_batch
from lightning_dropout.sampling.masks import Masks, SharedMasks, check_masks
from lightning_dropout.sampling.outputs import Rest, check_output
from lightning_dropout.sampling.prediction import MCPrediction, Outputs, Statistics, Task, check_task
from lightning_dropout.sampling.reuse import communicates, obstacle_of
from lightning_dropout.sampling.trial import Trial
from lightning_dropout.sampling.witness import Counters, Witness, same_values
from lightning_dropout.sites import Kind, Site, compiled_roots, find_sites, sites_of

__all__ = ["DEFAULT_KINDS", "Sampler", "check_num_samples", "mc_sample"]

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
    masks: Masks = "independent",
    chunk_size: int = 1,
    rates: float | None = None,
    seed: int = 0,
    output: str | Callable[[Any], Any] | None = None,
    return_samples: bool = False,
    **kwargs: Any,
) -> MCPrediction:
    """Run ``num_samples`` passes of ``model(*args, **kwargs)`` with dropout on, and return what they say together.

    Each pass is one thinned network of the ensemble that dropout training trains; their mean is the prediction, their
    spread its uncertainty. The sites are switched on for the passes alone and everything else stays in the mode it is
    in, so call it on a model in eval mode. Passes are seeded: the same call gives the same numbers.

    What runs before the first random draw of a pass is the same in all of them, so it runs once; what that saved stands
    in ``reuse``. Memory does not grow with ``num_samples``.

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
        masks: ``"independent"`` draws a mask for each sample and pass. ``"shared"`` draws one thinned network for each
            pass, the same for all samples and for every batch that you sample with this ``seed``; the first dimension
            of the first tensor among the inputs is taken for the batch.
        chunk_size: How many passes run at a time, folded into the batch, at least 1. The law stays the same; on a CPU
            more than 1 is slower, on a GPU with small batches faster.
        rates: One probability for every site during the passes, in [0, 1]; ``None`` samples at the rates they have.
        seed: What the masks follow from.
        output: Where in the model's output the tensor to average stands, if it returns more than that: a dotted path
            such as ``"logits"`` or ``"1"``, or a function of the output. After a path, what else the model returns and
            cannot be averaged (a decoder's key-value cache, lists of boxes) is ``None`` in ``predictive``; without one
            it is an error. After a function ``predictive`` is the tensor alone.
        return_samples: Whether to keep all passes, (T, ...), in ``samples``.
        kwargs: What the model is called with.

    Returns:
        Mean, standard deviation, entropies and votes; see :class:`MCPrediction`.

    Raises:
        ValueError: If no site matches or every rate is 0, if the outputs do not fit ``task`` or cannot be averaged, if
            a site cannot share its masks, samples see each other and ``chunk_size`` is above 1, or ``num_samples`` or
            ``chunk_size`` < 1.
        RuntimeError: If passes change a buffer or the input, do not differ, do not give the same again from the same
            seed, or do not fit into memory; the model is left as it was.

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
    sampler = Sampler(
        model,
        found,
        num_samples=num_samples,
        task=task,
        class_dim=class_dim,
        masks=masks,
        chunk_size=chunk_size,
        output=output,
        return_samples=return_samples,
    )
    return sampler.sample(model, args, kwargs, seed=(seed,), rates=values)


def check_num_samples(num_samples: int) -> None:
    """Raise unless ``num_samples`` is a whole number of at least 1."""
    if not isinstance(num_samples, numbers.Integral) or isinstance(num_samples, bool) or num_samples < 1:
        raise ValueError(
            f"Expected `num_samples` to be a whole number of passes, at least 1, but got {num_samples!r}; "
            "30 is a common choice."
        )


class Sampler:
    """The passes of one model, batch after batch; what :func:`mc_sample` and the callback share.

    Args:
        model: Whose buffers and generators are guarded.
        sites: What to switch on.
        num_samples: T.
        task: What an output means.
        class_dim: The dimension of the classes.
        masks: ``"independent"`` or ``"shared"``.
        chunk_size: How many passes are folded into the batch.
        output: Where in an output the tensor to average stands.
        return_samples: Whether to keep all passes.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Sequence[Site],
        *,
        num_samples: int,
        task: Task,
        class_dim: int = 1,
        masks: Masks = "independent",
        chunk_size: int = 1,
        output: str | Callable[[Any], Any] | None = None,
        return_samples: bool = False,
    ) -> None:
        check_num_samples(num_samples)
        check_task(task)
        check_masks(masks)
        check_chunk_size(chunk_size)
        check_output(output)
        self.model, self.sites = model, sites
        self.num_samples, self.task, self.class_dim = num_samples, task, class_dim
        self.masks, self.chunk_size = masks, min(chunk_size, num_samples)
        self.output, self.return_samples = output, return_samples
        asked = {site.key for site in sites}
        self._others = [site for site in sites_of(model, strict=False) if site.key not in asked]
        self.generators, self.own = generators_of(model.modules()), own_generators_of(model.modules())
        self.communicates = communicates(model)
        self._buffers = [module._buffers for module in model.modules()]
        self.look_at_compilation()
        if self.chunk_size > 1:
            refuse_coins_of_the_batch(sites, masks)

    def look_at_compilation(self) -> None:
        """Take note of what is compiled; for whoever compiles a part of the model after construction."""
        self.compiled = bool(compiled_roots(self.model))
        self.obstacle = obstacle_of(self.model, self.compiled)
        self._shared: SharedMasks | None = None

    def shared_masks(self, seed: int) -> SharedMasks:
        """Return the masks of ``seed``; the same object for batch after batch, since it looks through the model."""
        if self._shared is None or self._shared.seed != seed:
            self._shared = SharedMasks(self.model, self.sites, seed)
        return self._shared

    def sample(
        self,
        forward: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        seed: tuple[int, ...],
        rates: Sequence[float] | None = None,
        guarded: bool = True,
        on_pass: Callable[[], None] | None = None,
    ) -> MCPrediction:
        """Run the passes of one batch.

        Args:
            forward: Calls the model; ``forward(*args, **kwargs)`` is one pass.
            args: Positional inputs.
            kwargs: Inputs by name.
            seed: Parts of the seed; the number of the pass is added. Shared masks follow from the first part alone.
            rates: One probability per site for the passes; ``None`` leaves the sites as they are.
            guarded: Whether to check that passes change nothing and differ; once per data set is enough.
            on_pass: Called after each of the passes that count.
        """
        _refuse_silence(self.sites, rates)
        quiet = self._others_to_keep_quiet()
        inputs = tuple(args), dict(kwargs)
        witness, counters = (Witness(self.model, inputs), None) if guarded else (None, Counters(self._buffers, inputs))
        batch = Batch(self, forward, inputs, seed, witness)
        trial = Trial(self, batch) if guarded else None
        statistics = Statistics(self.task, self.class_dim, keep_samples=self.return_samples)
        rest: Rest | None = None
        first: Outputs | None = None
        most = max(self.num_samples, 2) if self.communicates else self.num_samples + _EXTRA_DRAWS
        differs, number = not guarded, 0
        with (stack := ExitStack()), stack:  # twice: an interrupt may hit the first on its way out
            if witness is not None:
                stack.enter_context(witness)
            stack.enter_context(isolated_generators(batch.generators, batch.own))
            if self.chunk_size > 1 or self.masks == "shared":
                stack.enter_context(sample_by_sample(self.sites))
            if trial is not None and self.chunk_size > 1:
                trial.folds()
            stack.enter_context(dropping(self.sites, rates, quiet))
            stack.enter_context(batch.prepared())
            if trial is not None and self.masks == "shared":
                trial.shares()
            while number < self.num_samples or not (differs or number >= most):
                start, passes = number, batch.run(number)
                for outputs in passes:
                    with torch.no_grad():  # a step that computes gradients has no use for those of every pass
                        if rest is None:
                            rest = Rest(outputs, self.output, self.task, self.class_dim, batch.inputs)
                        counts = number < self.num_samples
                        values = rest.update(outputs) if counts else rest.select(outputs)
                        if first is None:
                            first = values
                        elif not differs:
                            differs = not _equal(first, values)
                        if counts:
                            statistics.update(values)
                            if on_pass is not None:
                                on_pass()
                        number += 1
                if trial is not None and (batch.compared is not None or number == self.num_samples):
                    trial.repeats(start, passes)
                if counters is not None and start == 0 and counters.have_moved() and not self.communicates:
                    Trial(self, batch).withstands(passes)
        assert first is not None  # noqa: S101  (num_samples is at least 1)
        assert rest is not None  # noqa: S101
        if not differs and not _all_nan(first):  # a diverged model says so itself: its results are NaN
            names = ", ".join(site.name for site in self.sites)
            message = (
                f"Expected passes that differ, but got {number} equal ones although these sites were on: {names}; "
                "check that the forward calls them (fused, compiled or scripted code may not) and that what they drop "
                "reaches the output."
            )
            if not self.communicates:
                raise RuntimeError(message)
            warnings.warn(message, stacklevel=2)  # some ranks may differ and go on, and would wait for this one
        prediction = statistics.result(first)
        return dataclasses.replace(prediction, predictive=rest.fill(prediction.predictive), reuse=batch.reuse)

    def _others_to_keep_quiet(self) -> list[Site]:
        """Return the sites that nobody asked for and that an owner of those asked for switches on, too.

        Layer drop in the encoder whose dropout is sampled is one.

        Raises:
            ValueError: If a site that nobody asked for drops already, since the model is in train mode.
        """
        others = [site for site in self._others if site.rate > 0.0]
        awake = next((site for site in others if site.effective_rate > 0.0 and site.owners), None)
        if awake is not None:
            raise ValueError(
                f"Expected only the sites asked for to drop, but got `{awake.name}` ({awake.kind}, rate "
                f"{awake.rate:g}) in train mode as well; call `model.eval()` before sampling, or add its kind to "
                "`kinds`."
            )
        owners = {id(owner) for site in self.sites for owner in site.owners}
        return [site for site in others if any(id(owner) in owners for owner in site.owners)]


def _refuse_silence(sites: Sequence[Site], rates: Sequence[float] | None) -> None:
    if not any(rates if rates is not None else (site.rate for site in sites)):
        names = ", ".join(site.name for site in sites[:5]) + (", ..." if len(sites) > 5 else "")
        raise ValueError(
            f"Expected a rate above 0 somewhere, but got 0 at all {len(sites)} sites ({names}): every pass would be "
            "the same; pass `rates=0.1`, or train with dropout that does not end at 0."
        )


def _all_nan(outputs: Outputs) -> bool:
    return all(bool(output.isnan().all().item()) for output in tree_leaves(outputs))


def _equal(first: Outputs, second: Outputs) -> bool:
    if isinstance(first, Tensor) or isinstance(second, Tensor):
        return isinstance(first, Tensor) and isinstance(second, Tensor) and same_values(first, second)
    return all(same_values(one, other) for one, other in zip(first, second, strict=True))

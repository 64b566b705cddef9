"""What T passes say: the statistics of each task, gathered pass by pass, and the prediction they make.

Tensors in, tensors out: nothing here runs a model or knows a site. ``Statistics`` sees one output per pass and keeps
sums only; ``MCPrediction`` is what a user reads.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from lightning_dropout.sampling.moments import LogMeanExp, Moments, entropy, wide

if TYPE_CHECKING:
    from lightning_dropout.sampling.reuse import Reuse

__all__ = ["MCPrediction", "Outputs", "Statistics", "Task", "check_task", "of_one_pass"]

Task = Literal["binary", "multiclass", "multilabel", "regression", "gaussian", "probabilities", "raw"]
Outputs = Tensor | tuple[Tensor, Tensor]  # a pair only for "gaussian": mean, log-variance

_LEAST_LOG = -650.0  # e^-700 is still an exact float64, also divided by the numbers of classes and passes
_MOST_FOR_QUANTILE = 2**24  # elements that torch.quantile takes at a time
_SUM_TOLERANCE = 1e-3  # how far from 1 the sums of probabilities may lie; in bfloat16 its own precision is coarser


@dataclass(frozen=True)
class MCPrediction:
    """The prediction of T stochastic passes and how far they agree.

    Args:
        task: What the model's outputs were taken for.
        num_samples: T, the number of passes.
        mean: Mean over the passes: of the probabilities for ``binary``, ``multiclass``, ``multilabel`` and
            ``probabilities``, of the outputs as they are for ``regression`` and ``raw``, of the means for ``gaussian``.
        variance: Variance over the passes of the same, with correction 1; NaN for a single pass.
        predictive: The mean prediction in the form of the model's own output, so that the code behind the model goes on
            unchanged: log-probabilities where it gave logits of classes, a logit where it gave binary logits, mean and
            log of the total variance for ``gaussian``, else the mean.
        samples: All passes, (T, ...), if they were asked for.
        num_invalid: In how many passes a sample's output held what is no value: NaN or an infinity. A logit of -inf is
            one, the probability 0 that masks ask for, unless all classes have it. The results of such a sample are NaN
            or infinite, never those of its other passes alone.
        reuse: What prefix reuse has saved, if a model was sampled.

    Shape:
        ``num_invalid``: (batch,), or () where the results are single numbers;
        ``mean``, ``std``, ``variance``, ``votes`` as the model's output (``gaussian``: as its mean head); ``entropy``,
        ``expected_entropy``, ``mutual_information`` and ``variation_ratio`` without the class dimension, elementwise
        for ``multilabel``.

    Source:
        Gal & Ghahramani (2016), arXiv:1506.02142; mutual information as in Houlsby et al. (2011), arXiv:1112.5745;
        the split of the variance as in Kendall & Gal (2017), arXiv:1703.04977, eq. 9.
    """

    task: Task
    num_samples: int
    mean: Tensor
    variance: Tensor
    predictive: Any
    samples: Tensor | None = None
    num_invalid: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.int64))
    reuse: "Reuse | None" = None
    _logits: Tensor | None = None
    _entropy: Tensor | None = None
    _expected_entropy: Tensor | None = None
    _votes: Tensor | None = None
    _variation_ratio: Tensor | None = None
    _aleatoric_variance: Tensor | None = None

    @property
    def std(self) -> Tensor:
        """Standard deviation over the passes (correction 1); NaN for a single pass."""
        return self.variance.sqrt()

    @property
    def logits(self) -> Tensor:
        """Logits of the mean probabilities, finite where these are 0 or 1 in floating point; of classes their logs."""
        return self._defined(self._logits, "logits")

    @property
    def entropy(self) -> Tensor:
        """Entropy of the mean prediction in nats: total uncertainty."""
        return self._defined(self._entropy, "entropy")

    @property
    def expected_entropy(self) -> Tensor:
        """Mean entropy of the single passes in nats: the noise that every thinned network sees (aleatoric)."""
        return self._defined(self._expected_entropy, "expected_entropy")

    @property
    def mutual_information(self) -> Tensor:
        """``entropy - expected_entropy`` in nats, at least 0: how far the thinned networks disagree (epistemic)."""
        total = self._defined(self._entropy, "mutual_information")
        return (total - self.expected_entropy).clamp_min(0.0)  # rounding can leave -1e-8

    @property
    def votes(self) -> Tensor:
        """Share of the passes that voted for each class."""
        return self._defined(self._votes, "votes")

    @property
    def variation_ratio(self) -> Tensor:
        """Share of the passes that did not vote for the most voted class."""
        return self._defined(self._variation_ratio, "variation_ratio")

    @property
    def aleatoric_variance(self) -> Tensor:
        """Mean of the predicted variances (``gaussian``)."""
        return self._defined(self._aleatoric_variance, "aleatoric_variance")

    @property
    def epistemic_variance(self) -> Tensor:
        """Variance of the predicted means over the passes (``gaussian``), correction 0 as in the mixture: 0 for one."""
        self._defined(self._aleatoric_variance, "epistemic_variance")
        if self.num_samples == 1:
            return torch.zeros_like(self.mean)
        return self.variance * (self.num_samples - 1) / self.num_samples

    @property
    def total_variance(self) -> Tensor:
        """Variance of the mixture of the passes (``gaussian``): aleatoric plus epistemic."""
        return self._defined(self._aleatoric_variance, "total_variance") + self.epistemic_variance

    def quantile(self, q: float | Sequence[float]) -> Tensor:
        """Return quantiles over the passes, interpolated linearly, of what ``mean`` is the mean of.

        Args:
            q: One probability in [0, 1], or several.

        Shape:
            As ``mean``, behind one dimension for the quantiles if ``q`` lists several.

        Raises:
            RuntimeError: If the passes were not kept.
            ValueError: If ``q`` is no probability.

        Example:
            >>> passes = torch.tensor([[0.0], [1.0], [4.0]])
            >>> prediction = MCPrediction("raw", 3, passes.mean(0), passes.var(0), passes.mean(0), samples=passes)
            >>> prediction.quantile([0.5, 0.75])
            tensor([[1.0000],
                    [2.5000]])
        """
        if self.samples is None:
            raise RuntimeError("Expected passes to take quantiles of, but got none; sample with `return_samples=True`.")
        points = torch.as_tensor(q, dtype=self.samples.dtype, device=self.samples.device)
        if points.ndim > 1 or not bool(((points >= 0) & (points <= 1)).all()):
            raise ValueError(f"Expected `q` to be one or several probabilities in [0, 1], but got {q!r}; e.g. `q=0.5`.")
        width = max(1, _MOST_FOR_QUANTILE // self.num_samples)
        columns = torch.split(self.samples.reshape(self.num_samples, -1), width, dim=1)
        values = torch.cat([torch.quantile(part, points, dim=0) for part in columns], dim=-1)
        return values.reshape(points.shape + self.mean.shape)

    def uncertainties(self) -> dict[str, Tensor]:
        """Return the uncertainties that the task defines, by name."""
        if self._entropy is not None:
            names = ["entropy", "mutual_information"]
        elif self._aleatoric_variance is not None:
            names = ["aleatoric_variance", "epistemic_variance"]
        else:
            names = []
        return {name: getattr(self, name) for name in names}

    def _defined(self, value: Tensor | None, name: str) -> Tensor:
        if value is None:
            raise AttributeError(f'`{name}` is not defined for task="{self.task}".')
        return value


class Statistics:
    """Sums over the passes of one batch, enough for an :class:`MCPrediction`.

    Args:
        task: What an output means.
        class_dim: The dimension that holds the classes (the two heads for ``gaussian``).
        keep_samples: Whether every pass is kept as well.
    """

    def __init__(self, task: Task, class_dim: int, *, keep_samples: bool = False) -> None:
        self.task, self.class_dim = task, class_dim
        self._pairs = task in ("binary", "multilabel")  # whose values are of two classes, in a dimension in front
        self._keep_samples = keep_samples
        self._samples: list[Tensor] = []
        self._values = Moments()
        self._logs: LogMeanExp | None = None  # of the probabilities, from the first pass on in which some underflow
        self._entropies = self._votes = self._noise = torch.zeros(())
        self._invalid = torch.zeros((), dtype=torch.int64)

    def update(self, outputs: Outputs) -> None:
        """Take in the output of one pass."""
        update = {
            "binary": self._update_bernoulli,
            "multilabel": self._update_bernoulli,
            "multiclass": self._update_classes,
            "probabilities": self._update_probabilities,
            "gaussian": self._update_gaussian,
        }.get(self.task, self._update_values)
        values = update(outputs)
        self._values.update(values)
        if self._keep_samples:  # a copy: models may write into what they have returned
            self._samples.append(self._of_task(values).to(result_dtype(outputs), copy=True))

    def result(self, outputs: Outputs) -> MCPrediction:
        """Return the prediction, in the precision and layout of ``outputs`` (any one pass)."""
        dtype, count = result_dtype(outputs), self._values.count
        mean, variance = self._values.mean, self._values.variance()
        logs = votes = ratio = disorder = expected = noise = None
        if self.task in ("multiclass", "probabilities", "binary", "multilabel"):
            disorder, expected = entropy(mean, 0 if self._pairs else self.class_dim), self._entropies / count
            votes = wide(self._votes) / count
            ratio = torch.minimum(votes, 1.0 - votes) if self._pairs else 1.0 - votes.amax(self.class_dim)
            if self.task != "probabilities":
                logs = mean.log() if self._logs is None else self._logs.value()
                logs = logs[1] - logs[0] if self._pairs else logs
            if self.task == "binary" and -mean[0].ndim <= self.class_dim < mean[0].ndim:
                disorder, expected, ratio = (t.squeeze(self.class_dim) for t in (disorder, expected, ratio))
        mean, variance = self._of_task(mean), self._of_task(variance)
        predictive: Outputs = (mean if logs is None else logs).to(dtype, copy=True)  # the user's, who may write to it
        if self.task == "gaussian":
            noise = self._noise / count
            spread = torch.zeros_like(mean) if count == 1 else variance
            total = noise + spread * (count - 1) / count
            heads = mean.to(dtype, copy=True), total.log().to(dtype)
            predictive = heads if isinstance(outputs, tuple) else torch.cat(heads, self.class_dim)

        def narrow(values: Tensor | None) -> Tensor | None:
            return None if values is None else values.to(dtype)

        return MCPrediction(
            task=self.task,
            num_samples=count,
            mean=mean.to(dtype, copy=True),  # of sums that go on
            variance=variance.to(dtype),
            predictive=predictive,
            samples=torch.stack(self._samples) if self._keep_samples else None,
            num_invalid=self._invalid,
            _logits=narrow(logs),
            _entropy=narrow(disorder),
            _expected_entropy=narrow(expected),
            _votes=narrow(votes),
            _variation_ratio=narrow(ratio),
            _aleatoric_variance=narrow(noise),
        )

    def _of_task(self, values: Tensor) -> Tensor:
        """Return the part of ``values`` that the task speaks of: of a binary logit's two classes the second."""
        return values[1] if self._pairs else values

    def _update_values(self, outputs: Outputs) -> Tensor:
        assert isinstance(outputs, Tensor)  # noqa: S101  (check_outputs has refused pairs)
        values = wide(outputs)
        self._count_invalid(values)
        return values

    def _update_gaussian(self, outputs: Outputs) -> Tensor:
        mean, log_variance = outputs if isinstance(outputs, tuple) else outputs.chunk(2, self.class_dim)
        mean, noise = wide(mean), wide(log_variance).exp()
        self._noise = self._noise + noise
        self._count_invalid(mean + noise)
        return mean

    def _update_probabilities(self, outputs: Outputs) -> Tensor:
        assert isinstance(outputs, Tensor)  # noqa: S101  (check_outputs has refused pairs)
        probabilities = wide(outputs)
        self._count_votes(probabilities.argmax(self.class_dim, keepdim=True), probabilities)
        self._take_entropies(entropy(probabilities, self.class_dim))
        return probabilities

    def _update_classes(self, outputs: Outputs) -> Tensor:
        assert isinstance(outputs, Tensor)  # noqa: S101  (check_outputs has refused pairs)
        logits = wide(outputs)
        top, winner = logits.max(self.class_dim, keepdim=True)
        self._count_votes(winner, logits)
        return self._softmax(logits - top, self.class_dim)

    def _update_bernoulli(self, outputs: Outputs) -> Tensor:
        """Take a logit for those of two classes, 0 and itself, so that neither probability is 1 minus the other."""
        assert isinstance(outputs, Tensor)  # noqa: S101  (check_outputs has refused pairs)
        logits = wide(outputs)
        self._votes = self._votes + (logits > 0)
        top = logits.clamp_min(0.0)
        return self._softmax(torch.stack([-top, logits - top]), 0)

    def _softmax(self, logits: Tensor, dim: int) -> Tensor:
        """Return the probabilities of ``logits``, which it overwrites and whose largest is 0, and take their entropy.

        Runs once per pass and batch: what it saves of passes over memory counts.
        """
        weights = logits.exp()
        total = weights.sum(dim, keepdim=True)
        # On a GPU the question would stall the queue, and the logarithms cost little. `not >=`: a NaN hides the others.
        if self._logs is not None or logits.device.type != "cpu" or not logits.amin().item() >= _LEAST_LOG:
            if self._logs is None:
                count = self._values.count
                self._logs = LogMeanExp(self._values.mean, count) if count else LogMeanExp()
            self._logs.update(logits - total.log())
            logits.clamp_min_(_LEAST_LOG)  # 0 * -inf would be NaN, and is 0 in an entropy
        # With p = weights / total, the entropy -sum p ln p is ln(total) - sum p * logits: no logarithm of every p.
        mean_logit = logits.mul_(weights).sum(dim, keepdim=True).div_(total)
        self._take_entropies((total.log() - mean_logit).squeeze(dim))
        return weights.div_(total)

    def _take_entropies(self, entropies: Tensor) -> None:
        self._entropies = self._entropies + entropies
        self._count_invalid(entropies)  # NaN where a probability is

    def _count_votes(self, winner: Tensor, values: Tensor) -> None:
        if self._values.count == 0:
            self._votes = torch.zeros_like(values)
        self._votes.scatter_add_(self.class_dim, winner, torch.ones_like(winner, dtype=values.dtype))

    def _count_invalid(self, values: Tensor) -> None:
        """Count the pass for the samples with a NaN or an infinity among ``values``, either of which a sum keeps."""
        if values.ndim > 1:
            values = values.flatten(1).sum(1)
        self._invalid = self._invalid + (values - values != 0)


def result_dtype(outputs: Outputs) -> torch.dtype:
    """Return float64 for float64 outputs, else float32: statistics never leave in half precision."""
    first = outputs[0] if isinstance(outputs, tuple) else outputs
    return torch.promote_types(first.dtype, torch.float32)


def check_task(task: str) -> None:
    """Raise unless ``task`` is one of the known words."""
    if task not in get_args(Task):
        raise ValueError(
            f"Expected `task` to be one of {', '.join(get_args(Task))}, but got {task!r}; there is no default, "
            "since averaging logits where probabilities are meant gives another answer."
        )


def of_one_pass(outputs: Outputs, task: Task, class_dim: int) -> MCPrediction:
    """Return the prediction that a single output makes.

    Example:
        >>> of_one_pass(torch.tensor([[0.0, 0.0]]), "multiclass", class_dim=1).mean
        tensor([[0.5000, 0.5000]])
    """
    statistics = Statistics(task, class_dim)
    statistics.update(outputs)
    return statistics.result(outputs)


def check_outputs(outputs: object, task: Task, class_dim: int) -> Outputs:
    """Return ``outputs`` if they can be what ``task`` says; a pair as a tuple.

    Raises:
        ValueError: If they are no floating tensor (a pair for ``gaussian``), hold no sample, lack the class dimension,
            or fit another task: one class, probabilities where logits are meant, or the reverse.
    """
    if task == "gaussian" and isinstance(outputs, tuple | list) and len(outputs) == 2:
        mean, log_variance = check_outputs(outputs[0], "raw", class_dim), check_outputs(outputs[1], "raw", class_dim)
        assert isinstance(mean, Tensor)  # noqa: S101  ("raw" lets nothing else through)
        assert isinstance(log_variance, Tensor)  # noqa: S101
        if mean.shape != log_variance.shape:
            raise ValueError(
                "Expected means and log-variances of one shape, but got "
                f"{tuple(mean.shape)} and {tuple(log_variance.shape)}, which would broadcast."
            )
        return mean, log_variance
    if not isinstance(outputs, Tensor) or not outputs.is_floating_point():
        kind = f"a {outputs.dtype} tensor" if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(
            f"Expected the model to return a floating tensor{' or a pair of them' if task == 'gaussian' else ''}, but "
            f"got {kind}; sample a function of it that returns the tensor to average."
        )
    if outputs.numel() == 0:
        raise ValueError(f"Expected at least one sample, but got outputs of shape {tuple(outputs.shape)}.")
    if task in ("regression", "raw"):
        return outputs
    needs_classes = task in ("multiclass", "probabilities", "gaussian")
    if needs_classes and not -outputs.ndim <= class_dim < outputs.ndim:
        raise ValueError(
            f'Expected outputs with a class dimension {class_dim} for task="{task}", but got shape '
            f'{tuple(outputs.shape)}; pass `class_dim=`, or task="binary" for one logit a sample.'
        )
    size = outputs.shape[class_dim] if -outputs.ndim <= class_dim < outputs.ndim else 1
    if task in ("multiclass", "probabilities") and size == 1:
        raise ValueError(f'Expected at least two classes for task="{task}", but got one; pass task="binary".')
    if task == "binary" and size != 1:
        raise ValueError(
            f'Expected one logit a sample for task="binary", but got shape {tuple(outputs.shape)}; '
            'pass task="multilabel" for independent labels or task="multiclass" for classes that exclude each other.'
        )
    if task == "gaussian" and size % 2:
        raise ValueError(
            f'Expected means and log-variances for task="gaussian", but got {size} outputs, an odd number.'
        )
    tolerance = max(_SUM_TOLERANCE, torch.finfo(outputs.dtype).eps)
    sums_to_one = needs_classes and bool(
        ((outputs >= 0).all() & ((outputs.float().sum(class_dim) - 1).abs() < tolerance).all()).item()
    )
    if task == "multiclass" and sums_to_one:
        raise ValueError(
            'Expected logits for task="multiclass", but got outputs that sum to 1; pass task="probabilities".'
        )
    if task == "probabilities" and not sums_to_one and not bool(outputs.isnan().any()):
        raise ValueError(
            'Expected outputs that sum to 1 for task="probabilities", but got others; '
            'pass task="multiclass" for logits.'
        )
    return outputs

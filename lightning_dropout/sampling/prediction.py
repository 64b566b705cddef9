"""What T passes say: the statistics of each task, gathered pass by pass, and the prediction they make.

Tensors in, tensors out: nothing here runs a model or knows a site. ``Statistics`` sees one output per pass and keeps
sums only; ``MCPrediction`` is what a user reads.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_dropout.sampling.moments import LogMeanExp, Moments, binary_entropy, entropy, wide

__all__ = ["MCPrediction", "Outputs", "Statistics", "Task", "check_task"]

Task = Literal["binary", "multiclass", "multilabel", "regression", "gaussian", "probabilities", "raw"]
Outputs = Tensor | tuple[Tensor, Tensor]  # a pair only for "gaussian": mean, log-variance

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

    Shape:
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
    predictive: Outputs
    samples: Tensor | None = None
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
        """Variance of the predicted means over the passes (``gaussian``), with correction 0 as in the mixture."""
        self._defined(self._aleatoric_variance, "epistemic_variance")
        if self.num_samples == 1:
            return torch.zeros_like(self.mean)
        return self.variance * (self.num_samples - 1) / self.num_samples

    @property
    def total_variance(self) -> Tensor:
        """Variance of the mixture of the passes (``gaussian``): aleatoric plus epistemic."""
        return self._defined(self._aleatoric_variance, "total_variance") + self.epistemic_variance

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
        self._keep_samples = keep_samples
        self._samples: list[Tensor] = []
        self._values = Moments()
        self._logs, self._log_complements = LogMeanExp(), LogMeanExp()
        self._entropies, self._votes, self._noise = Moments(), Moments(), Moments()

    def update(self, outputs: Outputs) -> None:
        """Take in the output of one pass."""
        update = {
            "binary": self._update_bernoulli,
            "multilabel": self._update_bernoulli,
            "multiclass": self._update_classes,
            "probabilities": self._update_classes,
            "gaussian": self._update_gaussian,
        }.get(self.task, self._update_values)
        values = update(outputs)
        self._values.update(values)
        if self._keep_samples:
            self._samples.append(values.to(result_dtype(outputs)))

    def result(self, outputs: Outputs) -> MCPrediction:
        """Return the prediction, in the precision and layout of ``outputs`` (any one pass)."""
        dtype = result_dtype(outputs)
        mean, variance = self._values.mean, self._values.variance()
        votes = ratio = disorder = expected = noise = None
        predictive: Outputs = mean.to(dtype)
        if self.task in ("multiclass", "probabilities"):
            disorder, expected, votes = entropy(mean, self.class_dim), self._entropies.mean, self._votes.mean
            ratio = 1.0 - votes.amax(self.class_dim)
            if self.task == "multiclass":
                predictive = self._logs.value().to(dtype)
        elif self.task in ("binary", "multilabel"):
            disorder, expected, votes = binary_entropy(mean), self._entropies.mean, self._votes.mean
            ratio = torch.minimum(votes, 1.0 - votes)
            predictive = (self._logs.value() - self._log_complements.value()).to(dtype)
            if self.task == "binary" and -mean.ndim <= self.class_dim < mean.ndim:
                disorder, expected, ratio = (t.squeeze(self.class_dim) for t in (disorder, expected, ratio))
        elif self.task == "gaussian":
            noise = self._noise.mean
            spread = torch.zeros_like(mean) if self._values.count == 1 else variance
            total = noise + spread * (self._values.count - 1) / self._values.count
            heads = mean.to(dtype), total.log().to(dtype)
            predictive = heads if isinstance(outputs, tuple) else torch.cat(heads, self.class_dim)

        def narrow(values: Tensor | None) -> Tensor | None:
            return None if values is None else values.to(dtype)

        return MCPrediction(
            task=self.task,
            num_samples=self._values.count,
            mean=mean.to(dtype),
            variance=variance.to(dtype),
            predictive=predictive,
            samples=torch.stack(self._samples) if self._keep_samples else None,
            _entropy=narrow(disorder),
            _expected_entropy=narrow(expected),
            _votes=narrow(votes),
            _variation_ratio=narrow(ratio),
            _aleatoric_variance=narrow(noise),
        )

    def _update_values(self, outputs: Outputs) -> Tensor:
        assert isinstance(outputs, Tensor)  # noqa: S101  (check_outputs has refused pairs)
        return wide(outputs)

    def _update_classes(self, outputs: Outputs) -> Tensor:
        values = self._update_values(outputs)
        logs = F.log_softmax(values, self.class_dim) if self.task == "multiclass" else values.log()
        probabilities = logs.exp() if self.task == "multiclass" else values
        self._logs.update(logs)
        self._entropies.update(entropy(probabilities, self.class_dim))
        winner = probabilities.argmax(self.class_dim, keepdim=True)
        self._votes.update(torch.zeros_like(probabilities).scatter_(self.class_dim, winner, 1.0))
        return probabilities

    def _update_bernoulli(self, outputs: Outputs) -> Tensor:
        logits = self._update_values(outputs)
        probabilities = logits.sigmoid()
        self._logs.update(F.logsigmoid(logits))
        self._log_complements.update(F.logsigmoid(-logits))
        self._entropies.update(binary_entropy(probabilities))
        self._votes.update((logits > 0).to(logits.dtype))
        return probabilities

    def _update_gaussian(self, outputs: Outputs) -> Tensor:
        mean, log_variance = outputs if isinstance(outputs, tuple) else outputs.chunk(2, self.class_dim)
        self._noise.update(wide(log_variance).exp())
        return wide(mean)


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

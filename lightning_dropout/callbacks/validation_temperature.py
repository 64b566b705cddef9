"""The temperature of a module's logits, fitted in each validation of a training: what ``MCDropout`` is compared with.

Looks at the outputs of the calls that a test would sample, and changes nothing: the validation runs as without it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_dropout.callbacks.comparison import Comparison
from lightning_dropout.callbacks.patched_forward import PatchedForwards
from lightning_dropout.metrics.probability_metric import ClassificationTask
from lightning_dropout.metrics.temperature import fit_temperature
from lightning_dropout.sampling.losses import IGNORED
from lightning_dropout.sampling.outputs import select
from lightning_dropout.sampling.prediction import Task, of_one_pass

if TYPE_CHECKING:
    from lightning_dropout.callbacks.mc_dropout import MCDropout

__all__ = ["ValidationTemperature", "at_temperature", "fingerprint", "has_temperature"]

# Kept of a validation, on every rank: 128 MiB of logits in float32, and no more pixels than one number can need.
_MOST_VALUES, _MOST_ROWS = 2**25, 2**17


def has_temperature(task: Task) -> bool:
    """Tell whether outputs of ``task`` are logits, or follow from some."""
    return task in ("binary", "multiclass", "multilabel", "probabilities")


def at_temperature(outputs: Tensor, temperature: float, task: Task, class_dim: int) -> Tensor:
    """Return what a model would have given with its logits divided by ``temperature``.

    Example:
        >>> at_temperature(torch.tensor([[0.2, 0.8]]), 0.5, "probabilities", class_dim=1)  # 0.04 to 0.64
        tensor([[0.0588, 0.9412]])
    """
    if task == "probabilities":
        return (outputs.log() / temperature).softmax(class_dim)
    return outputs / temperature


def fingerprint(module: nn.Module) -> float:
    """Return a number that changes with the weights of ``module``, and not with the device that they are on.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> before = fingerprint(layer)
        >>> _ = nn.init.constant_(layer.weight, 7.0)
        >>> fingerprint(layer) == before, fingerprint(layer) == fingerprint(layer)
        (False, True)
    """
    local = (getattr(weight, "to_local", lambda weight=weight: weight)() for weight in module.parameters())
    firsts = (weight.detach().flatten()[0].item() for weight in local if not is_lazy(weight) and weight.numel())
    return math.fsum(number for number in firsts if math.isfinite(number))


class ValidationTemperature:
    """Collects logits and labels of the first validation loader.

    Args:
        settings: The callback, whose arguments say where outputs and labels are.
        trainer: Runs the validation.
    """

    def __init__(self, settings: "MCDropout", trainer: Any) -> None:
        self.settings, self.trainer = settings, trainer
        self._labels = Comparison(
            settings.task,
            settings.class_dim,
            passes={},
            labels=settings.labels,
            num_loaders=0,
            device=torch.device("cpu"),
        )
        self._forwards = PatchedForwards()
        self._calls = -1  # of the step; negative outside of one
        self._values: Tensor | None = None  # of its first call
        self.weights: float | None = None
        """What tells the weights that were validated from others."""
        self._logits: list[Tensor] = []
        self._targets: list[Tensor] = []
        self._kept = 0  # rows of both
        self._generator = torch.Generator().manual_seed(0)

    def begin(self, targets: Sequence[nn.Module]) -> None:
        """Look at the calls of ``targets``, which a test would sample."""
        for target in targets:
            self._forwards.patch(target, self._record)

    def end(self) -> None:
        """Give everything back."""
        self._forwards.give_back()

    def enter_step(self) -> None:
        """Begin to look at calls: there may be any number of them outside of a step."""
        self._calls, self._values = 0, None
        self._look_at_weights()  # not before: averages of weights are swapped in at the start of the epoch

    def leave_step(self, batch: Any) -> None:
        """Take in what the step has called, if that was one call and the batch has labels for it."""
        calls, values, self._calls, self._values = self._calls, self._values, -1, None
        if calls != 1 or values is None:
            return
        with suppress(Exception):  # the test says it; a validation does not end for the sake of a baseline
            prediction = of_one_pass(values, self.settings.task, self.settings.class_dim)
            labels = self._labels.labels(batch, prediction)
            if labels is not None:
                self._keep(values, labels)

    def temperature(self) -> float:
        """Return the temperature, over all ranks: every rank calls it. NaN if nothing could be learnt."""
        self._look_at_weights()  # of a rank without a batch
        task = self.settings.task
        kind = cast(ClassificationTask, "multiclass" if task == "probabilities" else task)
        nothing = torch.zeros((0, 2) if kind == "multiclass" else (0,)), torch.zeros(0).long()
        logits, target = nothing
        with suppress(RuntimeError):  # of another number of classes in each batch
            logits, target = (torch.cat(each) for each in (self._logits, self._targets)) if self._logits else nothing
        several = self.trainer.world_size > 1
        return fit_temperature(logits, target, task=kind, **({"summed": self._summed} if several else {}))

    def _look_at_weights(self) -> None:
        if self.weights is None:
            self.weights = fingerprint(self.trainer.lightning_module)

    def _summed(self, sums: Tensor) -> Tensor:
        device = self.trainer.strategy.root_device
        summed: Tensor = self.trainer.strategy.reduce(sums.to(device, sums.dtype), reduce_op="sum")
        return summed

    def _record(self, original: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        outputs = original(*args, **kwargs)
        if self._calls >= 0:
            self._calls += 1
            self._values = self._taken(outputs) if self._calls == 1 else None
        return outputs

    def _taken(self, outputs: Any) -> Tensor | None:
        """Return a copy of the logits, which the step may write into; nothing else is held on to."""
        try:
            values = select(outputs, self.settings.output, self.settings.task, self.settings.class_dim)
            return cast(Tensor, values).detach().clone()
        except Exception:
            return None

    def _keep(self, values: Tensor, labels: Tensor) -> None:
        if self.settings.task in ("multiclass", "probabilities"):
            logits = values.log() if self.settings.task == "probabilities" else values
            logits = logits.movedim(self.settings.class_dim, -1).flatten(0, -2)
            target = labels.long().flatten()
            kept = target != IGNORED
            logits, target = logits[kept], target[kept]
        else:
            logits, target = values.flatten(), labels.flatten().long()
        batches = self.trainer.num_val_batches[0]
        most = min(_MOST_ROWS, _MOST_VALUES * len(logits) / max(1, logits.numel()))
        rows = math.ceil(most / batches if math.isfinite(batches) else max(0.0, most - self._kept))
        if rows < len(logits):  # at random: data sets are often sorted by class
            chosen = torch.randperm(len(logits), generator=self._generator)[:rows].to(logits.device)
            logits, target = logits[chosen], target[chosen]
        self._kept += len(logits)
        self._logits.append(logits.to("cpu", copy=True))
        self._targets.append(target.to("cpu"))

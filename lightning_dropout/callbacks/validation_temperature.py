"""The temperature of a module's logits, fitted in each validation of a training: what ``MCDropout`` is compared with.

Looks at the outputs of the calls that a test would sample, and changes nothing: the validation runs as without it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from lightning_dropout.callbacks.comparison import Comparison
from lightning_dropout.callbacks.patched_forward import PatchedForwards
from lightning_dropout.metrics.probability_metric import ClassificationTask
from lightning_dropout.metrics.temperature import fit_temperature
from lightning_dropout.sampling.losses import IGNORED
from lightning_dropout.sampling.outputs import select
from lightning_dropout.sampling.prediction import Statistics, Task

if TYPE_CHECKING:
    from lightning_dropout.callbacks.mc_dropout import MCDropout

__all__ = ["ValidationTemperature", "at_temperature", "has_temperature"]

_MOST_VALUES = 2**25  # logits kept of a validation, on every rank: 128 MiB in float32


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


class ValidationTemperature:
    """Collects logits and labels of the first validation loader.

    Args:
        settings: The callback, whose arguments say where outputs and labels are.
        trainer: Runs the validation.
        targets: The modules whose calls a test would sample.
    """

    def __init__(self, settings: "MCDropout", trainer: Any, targets: Sequence[nn.Module]) -> None:
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
        self._outputs: list[Any] = []  # of the step
        self._logits: list[Tensor] = []
        self._targets: list[Tensor] = []
        self._generator = torch.Generator().manual_seed(0)
        for target in targets:
            self._forwards.patch(target, self._record)

    def end(self) -> None:
        """Give everything back."""
        self._forwards.give_back()

    def enter_step(self) -> None:
        """Forget what was called outside of a step."""
        self._outputs = []

    def leave_step(self, batch: Any) -> None:
        """Take in what the step has called, if that was one call and the batch has labels for it."""
        outputs, self._outputs = self._outputs, []
        if len(outputs) != 1:
            return
        task, class_dim = self.settings.task, self.settings.class_dim
        try:
            values = select(outputs[0], self.settings.output, task, class_dim)
            statistics = Statistics(task, class_dim)
            statistics.update(values)
            labels = self._labels.labels(batch, statistics.result(values))
        except ValueError:  # the test says it, in which it is no matter of a baseline alone
            return
        if labels is not None:
            self._keep(cast(Tensor, values), labels)

    def temperature(self) -> float:
        """Return the temperature, over all ranks: every rank calls it. NaN if nothing could be learnt."""
        task = self.settings.task
        kind = cast(ClassificationTask, "multiclass" if task == "probabilities" else task)
        nothing = torch.zeros((0, 2) if kind == "multiclass" else (0,)), torch.zeros(0).long()
        logits, target = (torch.cat(each) for each in (self._logits, self._targets)) if self._logits else nothing
        several = self.trainer.world_size > 1
        return fit_temperature(logits, target, task=kind, **({"summed": self._summed} if several else {}))

    def _summed(self, sums: Tensor) -> Tensor:
        device = self.trainer.strategy.root_device
        summed: Tensor = self.trainer.strategy.reduce(sums.to(device, sums.dtype), reduce_op="sum")
        return summed

    def _record(self, original: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        outputs = original(*args, **kwargs)
        self._outputs.append(outputs)
        return outputs

    def _keep(self, values: Tensor, labels: Tensor) -> None:
        values = values.detach()
        if self.settings.task in ("multiclass", "probabilities"):
            logits = values.log() if self.settings.task == "probabilities" else values
            logits = logits.movedim(self.settings.class_dim, -1).flatten(0, -2)
            target = labels.long().flatten()
            kept = target != IGNORED
            logits, target = logits[kept], target[kept]
        else:
            logits, target = values.flatten(), labels.flatten().long()
        batches = self.trainer.num_val_batches[0]
        room = _MOST_VALUES / batches if math.isfinite(batches) else _MOST_VALUES - sum(map(Tensor.numel, self._logits))
        rows = math.ceil(max(0.0, room) * len(logits) / max(1, logits.numel()))
        if rows < len(logits):  # at random: data sets are often sorted by class
            chosen = torch.randperm(len(logits), generator=self._generator)[:rows].to(logits.device)
            logits, target = logits[chosen], target[chosen]
        self._logits.append(logits.to("cpu", copy=True))
        self._targets.append(target.to("cpu"))

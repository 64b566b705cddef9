"""What a model's output may look like: the tensor that a task is about, found in any structure, and the rest beside it.

Nothing that differs between passes may leave here unless it was averaged, and a loss is never averaged: the mean of the
passes' losses is not the loss of their mean.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_dropout.sampling.losses import Loss, find_loss
from lightning_dropout.sampling.prediction import Outputs, Task, check_outputs
from lightning_dropout.sampling.structures import children_of, filled, is_loss, leaves_of, nodes_of

__all__ = ["Rest", "check_output", "select"]

_CURE = (
    "pass `output=` a function that returns the tensor to average, or leave the field out of what the forward returns"
)


def check_output(output: object) -> None:
    """Raise unless ``output`` is a dotted path, a function or ``None``."""
    if output is not None and not isinstance(output, str) and not callable(output):
        raise ValueError(
            f'Expected `output` to be a dotted path such as "logits" or a function of what the model returns, but got '
            f"{output!r}; leave it out where the model returns one tensor."
        )


def select(outputs: Any, output: str | Callable[[Any], Any] | None, task: Task, class_dim: int) -> Outputs:
    """Return the tensor of ``outputs`` that ``task`` is about; a pair as a tuple.

    Args:
        outputs: What a model returned.
        output: Where the tensor stands: a dotted path such as ``"logits"`` or ``"0.out"``, a function of the outputs,
            or ``None`` for the output itself, its field ``logits``, or its one floating tensor besides losses.
        task: What the tensor means.
        class_dim: The dimension of the classes.

    Raises:
        ValueError: If several tensors could be meant, none is at ``output``, or it does not fit ``task``.

    Example:
        >>> select({"logits": torch.ones(2, 3), "features": torch.ones(2, 8)}, None, "multiclass", 1).shape
        torch.Size([2, 3])
    """
    chosen = output(outputs) if callable(output) else dict(nodes_of(outputs))[_place(outputs, output, task)]
    return check_outputs(chosen, task, class_dim)


class Rest:
    """What a model returns beside the tensor that a task is about, averaged over the passes of one batch.

    Floating tensors are averaged, everything else must be equal in all passes. A field called ``loss``, or ending in
    ``_loss``, is computed again from the mean prediction and the labels among the model's inputs. Where ``output`` is a
    function, the place of its result is unknown, so there is no rest.

    Args:
        outputs: What the first pass returned; it still has to be taken in by :meth:`update`.
        output: Where the tensor stands, as in :func:`select`.
        task: What the tensor means.
        class_dim: The dimension of the classes.
        inputs: What the model was called with, in any nesting: where the labels of a loss are looked for.

    Raises:
        ValueError: If no tensor can be selected, or there is a loss that follows from no labels among ``inputs``.

    Example:
        >>> first, second = ({"logits": torch.full((1, 2), x), "score": torch.tensor(x)} for x in (1.0, 3.0))
        >>> rest = Rest(first, None, "multiclass", 1, inputs=())
        >>> _ = rest.update(first), rest.update(second)
        >>> rest.fill(torch.zeros(1, 2))
        {'logits': tensor([[0., 0.]]), 'score': tensor(2.)}
    """

    def __init__(
        self, outputs: Any, output: str | Callable[[Any], Any] | None, task: Task, class_dim: int, inputs: Any
    ) -> None:
        self._output = output
        self._count = 0
        self._means: dict[str, Tensor] = {}
        self._losses: dict[str, Loss] = {}
        self._first = outputs
        self._chosen = select(outputs, output, task, class_dim)
        if callable(output):
            return
        self._place = _place(outputs, output, task)
        self._leaves = leaves_of(outputs)
        labels = [leaf for leaf in leaves_of(inputs).values() if isinstance(leaf, Tensor)]
        for path, leaf in self._leaves.items():
            if is_loss(path) and _is_floating(leaf) and not _is_inside(path, self._place):
                loss = find_loss(leaf, self._chosen, labels, task, class_dim)
                if loss is None:
                    raise ValueError(
                        f"Expected `{path}` in the output to follow from the selected tensor and labels among the "
                        "model's inputs, as cross entropy (of the next tokens, too), binary cross entropy or squared "
                        "error, but got another loss, whose mean over passes is not the loss of their mean; call the "
                        "model without labels in this step and compute the loss from its other outputs, or pass "
                        "`output=` a function that returns the tensor to average."
                    )
                self._losses[path] = loss

    def select(self, outputs: Any) -> Outputs:
        """Return the tensor, or pair, that the task is about, and take in nothing."""
        chosen = self._output(outputs) if callable(self._output) else dict(nodes_of(outputs)).get(self._place)
        shapes, found = _shapes(self._chosen), _shapes(chosen)
        if found != shapes:
            name = "the output" if callable(self._output) or not self._place else f"`{self._place}` in the output"
            raise ValueError(
                f"Expected {name} to have one shape in all passes, but got {shapes} and {found}; passes of different "
                "shape, such as lists of boxes, have no mean: pass `output=` a function that returns a tensor of fixed "
                "shape."
            )
        return tuple(chosen) if isinstance(chosen, list) else chosen  # type: ignore[return-value]

    def update(self, outputs: Any) -> Outputs:
        """Take in one pass and return the tensor, or pair, that the task is about.

        Raises:
            ValueError: If something that cannot be averaged differs from the first pass; the message names the field.
        """
        chosen = self.select(outputs)
        self._count += 1
        if callable(self._output):
            return chosen
        leaves = leaves_of(outputs)
        different = leaves.keys() ^ self._leaves.keys()
        if different:
            raise ValueError(
                f"Expected the same fields in all passes, but got `{min(different)}` in some only; {_CURE}."
            )
        for path, leaf in leaves.items():
            if path not in self._losses and not _is_inside(path, self._place):
                self._take_in(path, self._leaves[path], leaf)
        return chosen

    def fill(self, predictive: Outputs) -> Any:
        """Return an output in the model's own form, with ``predictive`` where the selected tensor stood."""
        if callable(self._output):
            return predictive
        values = dict(self._leaves)
        parts = predictive if isinstance(predictive, tuple) else (predictive,)
        values.update(zip((path for path in values if _is_inside(path, self._place)), parts, strict=True))
        values.update({path: mean.to(values[path].dtype) for path, mean in self._means.items()})
        values.update({path: loss(predictive).to(values[path].dtype) for path, loss in self._losses.items()})
        return filled(self._first, values)

    def _take_in(self, path: str, first: Any, leaf: Any) -> None:
        if not _is_floating(first) or not _is_floating(leaf):
            if not _equal(first, leaf):
                raise ValueError(
                    f"Expected `{path}` in the output to be equal in all passes, since it is no floating tensor that "
                    f"could be averaged, but got {_brief(first)} and {_brief(leaf)}, which differ; {_CURE}."
                )
        elif first.shape != leaf.shape:
            raise ValueError(
                f"Expected `{path}` in the output to have one shape in all passes, but got {tuple(first.shape)} and "
                f"{tuple(leaf.shape)}; {_CURE}."
            )
        else:
            values = leaf.to(torch.promote_types(leaf.dtype, torch.float32), copy=path not in self._means)
            mean = self._means.setdefault(path, values)
            deviation = (values - mean).masked_fill_(values == mean, 0.0)  # a mask's -inf has no deviation
            mean.add_(deviation, alpha=1 / self._count)


# --- places --------------------------------------------------------------------------------------------------------


def _place(outputs: Any, output: str | None, task: Task) -> str:
    """Return the path of the tensor, or pair, that ``task`` is about."""
    children = children_of(outputs)
    leaves = leaves_of(outputs)
    listing = ", ".join(f"`{path}` {_brief(leaf)}" for path, leaf in list(leaves.items())[:20])
    if output is not None:
        if any(_is_inside(path, output) for path in leaves):
            return output
        raise ValueError(
            f"Expected `output` to name a field of what the model returns, but got {output!r}; it returns "
            f"{type(outputs).__name__}" + (f" of {listing}." if children else ".")
        )
    if not children or (task == "gaussian" and isinstance(outputs, tuple | list) and len(outputs) == 2):
        return ""
    if "logits" in children:
        return "logits"
    candidates = [path for path, leaf in leaves.items() if _is_floating(leaf) and not is_loss(path)]
    if len(candidates) == 1:
        return candidates[0]
    raise ValueError(
        f"Expected the model to return a floating tensor{' or a pair of them' if task == 'gaussian' else ''}, but got "
        f"{type(outputs).__name__} of {listing}; pass `output=` the name of the one to average"
        + (f', such as "{candidates[0]}".' if candidates else ", or a function that returns a tensor.")
    )


def _is_inside(path: str, place: str) -> bool:
    return not place or path == place or path.startswith(f"{place}.")


def _is_floating(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _shapes(outputs: Any) -> Any:
    if isinstance(outputs, tuple | list):
        return [_shapes(part) for part in outputs]
    return tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)
    try:
        return one is other or bool(np.all(one == other))
    except (RuntimeError, TypeError, ValueError):  # arrays of two shapes, objects that compare with nothing
        return False


def _brief(leaf: Any) -> str:
    if isinstance(leaf, Tensor):
        return f"{str(leaf.dtype).removeprefix('torch.')} {tuple(leaf.shape)}"
    text = repr(leaf)
    return text if len(text) <= 40 else f"an object of {type(leaf).__name__}"

"""What a model's output may look like: the tensor that a task is about, found in any structure, and the rest beside it.

Nothing that differs between passes may leave here unless it was averaged, and a loss is never averaged: the mean of the
passes' losses is not the loss of their mean.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_dropout.sampling.losses import Loss, find_loss
from lightning_dropout.sampling.prediction import Outputs, Task, check_outputs
from lightning_dropout.sampling.structures import children_of, filled, is_loss, leaves_of, nodes_of

__all__ = ["Rest", "check_output", "select"]


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

    Floating tensors are averaged, everything else must be equal in all passes. Where ``output`` is a path, a field of
    which this is not so is ``None`` in all its parts, since the user has said what to average; else it is an error. A
    field called ``loss``, or ending in ``_loss``, is computed again from the mean prediction and the labels among the
    model's inputs. Where ``output`` is a function, the place of its result is unknown, so there is no rest.

    Args:
        outputs: What the first pass returned; it still has to be taken in by :meth:`update`.
        output: Where the tensor stands, as in :func:`select`.
        task: What the tensor means.
        class_dim: The dimension of the classes.
        inputs: What the model was called with, in any nesting: where the labels of a loss are looked for.

    Raises:
        ValueError: If no tensor can be selected, there is a loss that follows from no labels among ``inputs``, or an
            object keeps tensors to itself and ``output`` is ``None``.

    Example:
        >>> first, second = ({"logits": torch.full((1, 2), x), "score": torch.tensor(x)} for x in (1.0, 3.0))
        >>> rest = Rest(first, None, "multiclass", 1, inputs=())
        >>> _ = rest.update(first), rest.update(second)
        >>> rest.fill(torch.zeros(1, 2))
        {'logits': tensor([[0., 0.]]), 'score': tensor(2.)}
        >>> rest = Rest({**first, "tag": "a"}, "logits", "multiclass", 1, inputs=())
        >>> _ = rest.update({**first, "tag": "a"}), rest.update({**second, "tag": "b"})
        >>> rest.fill(torch.zeros(1, 2))["tag"] is None
        True
    """

    def __init__(
        self, outputs: Any, output: str | Callable[[Any], Any] | None, task: Task, class_dim: int, inputs: Any
    ) -> None:
        self._output = output
        self._count = 0
        self._means: dict[str, Tensor] = {}
        self._losses: dict[str, Loss] = {}
        self._left_out: set[str] = set()  # fields that are `None` in the end
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
                        "model without labels in this step and compute the loss from its other outputs, or leave it "
                        "out of what the forward returns."
                    )
                self._losses[path] = loss
            elif not _is_inside(path, self._place) and _hides_tensors(leaf):  # one object for all passes, perhaps
                self._leave_out(
                    path,
                    f"Expected the tensors in the output to stand where they can be averaged, but got `{path}`, "
                    f"{_brief(leaf)} that keeps those of one pass to itself",
                )

    def select(self, outputs: Any) -> Outputs:
        """Return the tensor, or pair, that the task is about, and take in nothing."""
        chosen = self._output(outputs) if callable(self._output) else dict(nodes_of(outputs)).get(self._place)
        shapes, found = _shapes(self._chosen), _shapes(chosen)
        if found != shapes:
            name = "the output" if callable(self._output) or not self._place else f"`{self._place}` in the output"
            raise ValueError(
                f"Expected {name} to have one shape in all passes, but got {shapes} and {found}; passes of different "
                "shape, such as lists of boxes, have no mean: name another tensor with `output=`, or let the forward "
                "return one of fixed shape."
            )
        return tuple(chosen) if isinstance(chosen, list) else chosen  # type: ignore[return-value]

    def update(self, outputs: Any) -> Outputs:
        """Take in one pass and return the tensor, or pair, that the task is about.

        Raises:
            ValueError: If something that cannot be averaged differs from the first pass, and is a loss or ``output``
                is ``None``; the message names the field.
        """
        chosen = self.select(outputs)
        self._count += 1
        if callable(self._output):
            return chosen
        leaves = leaves_of(outputs)
        for path in sorted(leaves.keys() ^ self._leaves.keys()):
            self._leave_out(path, f"Expected the same fields in all passes, but got `{path}` in some only")
        for path, leaf in leaves.items():
            if path not in self._losses and not _is_inside(path, self._place) and not self._is_left_out(path):
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
        values.update({path: None for path in values if self._is_left_out(path)})
        values.update({path: loss(predictive).to(values[path].dtype) for path, loss in self._losses.items()})
        return filled(self._first, values)

    def _take_in(self, path: str, first: Any, leaf: Any) -> None:
        if not _is_floating(first) or not _is_floating(leaf):
            if not _equal(first, leaf):
                self._leave_out(
                    path,
                    f"Expected `{path}` in the output to be equal in all passes, since it is no floating tensor that "
                    f"could be averaged, but got {_brief(first)} and {_brief(leaf)}, which differ",
                )
        elif first.shape != leaf.shape:
            self._leave_out(
                path,
                f"Expected `{path}` in the output to have one shape in all passes, but got {tuple(first.shape)} and "
                f"{tuple(leaf.shape)}",
            )
        else:
            values = leaf.to(torch.promote_types(leaf.dtype, torch.float32), copy=path not in self._means)
            mean = self._means.setdefault(path, values)
            deviation = (values - mean).masked_fill_(values == mean, 0.0)  # a mask's -inf has no deviation
            mean.add_(deviation, alpha=1 / self._count)

    def _leave_out(self, path: str, problem: str) -> None:
        """Give up the field around ``path``, or raise where the user has not said what to average."""
        steps = path.split(".")
        fields = [".".join(steps[:count]) for count in range(1, len(steps) + 1)]
        if is_loss(path):
            raise ValueError(f"{problem}; call the model without labels in this step, or leave the loss out.")
        if self._output is None:
            cache = ", for decoders `use_cache=False`" if "past_key_values" in steps else ""
            raise ValueError(
                f'{problem}; pass `output="{self._place}"`, after which such fields are None, or leave the field out '
                f"of what the forward returns{cache}."
            )
        self._left_out.add(next(field for field in fields if not _is_inside(self._place, field)))

    def _is_left_out(self, path: str) -> bool:
        return any(_is_inside(path, field) for field in self._left_out)


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


def _hides_tensors(leaf: Any) -> bool:
    """Tell whether an object, such as a key-value cache, has tensors among what it holds."""
    seen: dict[int, Any] = {}
    waiting = [] if isinstance(leaf, Tensor) else [leaf]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Tensor):
            return True
        if id(part) not in seen and not isinstance(part, type | ModuleType):
            seen[id(part)] = part
            children = children_of(part)
            waiting += (getattr(part, "__dict__", {}) if children is None else children).values()
    return False


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

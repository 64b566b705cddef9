"""A sheet of images with what a model says of each: for looking at what it is unsure of.

Shows images of the data as they are; whoever calls decides whether they may be shown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_dropout.reports.style import COLOURS, add_note, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["SampleTable", "draw_samples"]

_COLUMNS = 5
_CHARACTERS = 15  # of a name, so that it fits below an image after "label"
_MOST_PIXELS = 256  # of a side, of which 200 can be seen


@dataclass(frozen=True)
class SampleTable:
    """Predictions of a few samples.

    Args:
        sample: Where each stands in its data set.
        predicted: Classes.
        label: What they really are; ``None`` where unknown.
        probability: Of the predicted class, in [0, 1].
        entropy: Of the mean prediction, nats.
        mutual_information: Nats; NaN for a single pass.
    """

    sample: tuple[int, ...]
    predicted: tuple[int, ...]
    label: tuple[int | None, ...]
    probability: tuple[float, ...]
    entropy: tuple[float, ...]
    mutual_information: tuple[float, ...]


def draw_samples(
    images: Tensor | Sequence[Tensor] | npt.NDArray[Any],
    table: SampleTable,
    *,
    class_names: Sequence[str] | None = None,
    title: str = "The predictions that the model is least sure of",
) -> Figure:
    """Draw images, in the order given, with prediction, label and uncertainty below each.

    Wrong ones have a cross before the prediction and a dashed frame.

    Args:
        images: One for each row of the table, ``(channels, height, width)`` each, in any range: the darkest value of
            an image becomes black, the brightest white. Three channels are colours, other numbers are averaged.
        table: What is said of them; with the figure's file, its numbers.
        class_names: By class; without them, or beyond their end, its number is shown.
        title: Stands above, with what the letters mean.

    Returns:
        A figure of its own.

    Raises:
        ValueError: If there are not as many images as rows, or an image has not three dimensions.

    Example:
        >>> table = SampleTable((7,), (3,), (8,), (0.4,), (1.5,), (0.25,))
        >>> figure = draw_samples(torch.rand(1, 1, 8, 8), table)
        >>> print(figure.axes[0].get_xlabel())
        ✗ 3
        label 8
        p 0.40 H 1.50 MI 0.25
    """
    if len(images) != len(table.sample):
        raise ValueError(f"Expected an image for each row of `table`, but got {len(images)} for {len(table.sample)}.")
    legend = "p: probability; H: entropy, MI: mutual information, in nats; ✗ and dashes: wrong"
    rows = max(1, -(-len(images) // _COLUMNS))
    figure = new_figure(0.8 + 1.9 * rows, f"{title}\n{legend}")
    cells = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for index, axes in enumerate(cells):
        axes.set(xticks=[], yticks=[])
        if index < len(images):
            _draw_sample(axes, torch.as_tensor(images[index]), table, index, class_names)
        else:
            axes.axis("off")
    if len(images) == 0:
        add_note(cells[_COLUMNS // 2], "no sample to show")
    return figure


def _draw_sample(axes: Axes, image: Tensor, table: SampleTable, index: int, names: Sequence[str] | None) -> None:
    predicted, label = table.predicted[index], table.label[index]
    wrong = label is not None and label != predicted
    information = table.mutual_information[index]
    lines = [
        ("✗ " if wrong else "") + _name(predicted, names),
        "no label" if label is None else f"label {_name(label, names)}",
        f"p {table.probability[index]:.2f} H {table.entropy[index]:.2f}"
        + ("" if math.isnan(information) else f" MI {information:.2f}"),
    ]
    axes.imshow(_visible(image), cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
    axes.set_xlabel("\n".join(lines), fontsize="small").set_parse_math(False)
    for spine in axes.spines.values():
        spine.set(linewidth=2.5 if wrong else 0.8, linestyle="--" if wrong else "-")
        spine.set_color(COLOURS[1] if wrong else "black")


def _name(label: int, names: Sequence[str] | None) -> str:
    name = str(names[label] if names is not None and 0 <= label < len(names) else label)
    return name if len(name) <= _CHARACTERS else name[: _CHARACTERS - 1] + "…"


def _visible(image: Tensor) -> npt.NDArray[np.float32]:
    """Return an image as matplotlib takes it, from 0 to 1; one of a single value is grey."""
    if image.ndim != 3:
        raise ValueError(
            f"Expected images of shape (channels, height, width), but got {tuple(image.shape)}; only such can be shown."
        )
    step = -(-max(image.shape[1:]) // _MOST_PIXELS)
    # in numpy: on a busy machine torch's threads take longer to meet than the work of a thumbnail does
    pixels = image[:, ::step, ::step].detach().cpu().float().numpy()
    pixels = np.moveaxis(pixels, 0, -1) if len(pixels) == 3 else pixels.mean(0)
    finite = pixels[np.isfinite(pixels)]
    low, high = finite.min(initial=np.inf), finite.max(initial=-np.inf)
    if not low < high:
        return np.full_like(pixels, 0.5)
    visible: npt.NDArray[np.float32] = np.nan_to_num((pixels - low) / (high - low), nan=0.0).clip(0.0, 1.0)
    return visible

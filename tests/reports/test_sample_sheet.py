"""Sheets of images: the right pixels above the right words."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_dropout.reports import SampleTable, draw_samples

Check = Callable[[Any], Any]


def table_of(count: int, **columns: Any) -> SampleTable:
    defaults = {"sample": 0, "predicted": 1, "label": 1, "probability": 0.5, "entropy": 1.0, "mutual_information": 0.25}
    return SampleTable(**{name: columns.get(name, (value,) * count) for name, value in defaults.items()})


def shown(figure: Any, index: int = 0) -> Any:
    return np.asarray(figure.axes[index].images[0].get_array())


def test_words_below_each_image(readable: Check) -> None:
    table = SampleTable((7, 9, 2), (3, 1, 0), (8, 1, None), (0.4, 0.512, 1.0), (1.5, 2.0, 0.0), (0.25, math.nan, 0.0))
    figure = readable(draw_samples(torch.rand(3, 1, 8, 8), table))
    assert [axes.get_xlabel().split("\n") for axes in figure.axes[:3]] == [
        ["✗ 3", "label 8", "p 0.40 H 1.50 MI 0.25"],
        ["1", "label 1", "p 0.51 H 2.00"],
        ["0", "no label", "p 1.00 H 0.00 MI 0.00"],
    ]
    assert [axes.spines["left"].get_linestyle() for axes in figure.axes[:3]] == ["--", "-", "-"]
    assert [axes.axison for axes in figure.axes] == [True] * 3 + [False] * 2


def test_class_names_are_cut_and_no_formulas(readable: Check) -> None:
    names = ["Cardigan Welsh corgi", "$a_{$", "cat"]
    table = table_of(4, predicted=(0, 1, 2, 9999), label=(0, 1, 2, -100))
    figure = readable(draw_samples(torch.rand(4, 3, 8, 8), table, class_names=names))
    words = [axes.get_xlabel().split("\n")[:2] for axes in figure.axes[:4]]
    assert words == [
        ["Cardigan Welsh…", "label Cardigan Welsh…"],
        ["$a_{$", "label $a_{$"],
        ["cat", "label cat"],
        ["✗ 9999", "label -100"],
    ]


@pytest.mark.parametrize("scale", [(1.0, 0.0), (1e4, -3e3), (1e-6, 0.0)])
def test_any_range_goes_from_black_to_white(scale: tuple[float, float]) -> None:
    image = torch.arange(12.0).reshape(1, 3, 4)
    figure = draw_samples((image * scale[0] + scale[1])[None], table_of(1))
    assert shown(figure) == pytest.approx(image[0].numpy() / 11, abs=1e-3)


def test_colours_keep_their_channels() -> None:
    image = torch.zeros(3, 2, 2)
    image[0], image[1, 0, 0] = 1.0, 1.0
    assert shown(draw_samples([image], table_of(1))).tolist() == [[[1, 1, 0], [1, 0, 0]], [[1, 0, 0], [1, 0, 0]]]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (torch.full((1, 2, 2), 7.0), [[0.5, 0.5], [0.5, 0.5]]),
        (torch.full((1, 2, 2), math.nan), [[0.5, 0.5], [0.5, 0.5]]),
        (torch.tensor([[[0.0, 4.0], [math.nan, math.inf]]]), [[0.0, 1.0], [0.0, 1.0]]),
        (torch.tensor([0.0, 2.0, 4.0, 8.0]).reshape(1, 2, 2).expand(4, 2, 2), [[0.0, 0.25], [0.5, 1.0]]),
        (torch.tensor([[[0, 255]]], dtype=torch.uint8), [[0.0, 1.0]]),
        (np.array([[[1, 0]]]), [[1.0, 0.0]]),
    ],
)
def test_images_that_say_little(image: Any, expected: list[list[float]]) -> None:
    figure = draw_samples([image], table_of(1))
    assert shown(figure).tolist() == expected
    assert figure.axes[0].images[0].get_clim() == (0.0, 1.0)  # or a single grey would become black


def test_large_images_are_thinned() -> None:
    assert max(shown(draw_samples([torch.rand(3, 3000, 2000)], table_of(1))).shape) <= 256


def test_nothing_to_show(readable: Check) -> None:
    figure = readable(draw_samples(torch.zeros(0, 3, 8, 8), table_of(0)))
    assert [text.get_text() for axes in figure.axes for text in axes.texts] == ["no sample to show"]


def test_many_of_different_shapes(readable: Check) -> None:
    images: list[Tensor] = [torch.rand(1, 8 + 4 * (index % 3), 8 + 4 * (index % 2)) for index in range(23)]
    readable(draw_samples(images, table_of(23)))


def test_what_is_no_image() -> None:
    with pytest.raises(ValueError, match=r"Expected images of shape \(channels, height, width\), but got \(64,\)"):
        draw_samples(torch.rand(1, 64), table_of(1))
    with pytest.raises(ValueError, match="Expected an image for each row of `table`, but got 2 for 1"):
        draw_samples(torch.rand(2, 1, 8, 8), table_of(1))

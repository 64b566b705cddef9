"""BrierScore against scikit-learn and by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from sklearn.metrics import brier_score_loss
from torch import Tensor

from lightning_dropout.metrics import BrierScore

Draw = Callable[..., tuple[Tensor, Tensor]]


def score(task: str, probabilities: Tensor, target: Tensor) -> float:
    metric = BrierScore(task=task)  # type: ignore[arg-type]
    metric.update(probabilities, target)
    return metric.compute().item()


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_multiclass_equals_sklearn(classes: int, draw: Draw) -> None:
    probabilities, target = draw("multiclass", classes=classes)
    oracle = brier_score_loss(target, probabilities, labels=range(classes), scale_by_half=False)
    assert score("multiclass", probabilities, target) == pytest.approx(oracle, rel=1e-6)


def test_binary_and_multilabel_equal_sklearn(draw: Draw) -> None:
    probabilities, target = draw("binary")
    assert score("binary", probabilities, target) == pytest.approx(brier_score_loss(target, probabilities), rel=1e-6)
    probabilities, target = draw("multilabel")
    columns = [brier_score_loss(target[:, label], probabilities[:, label]) for label in range(target.shape[1])]
    assert score("multilabel", probabilities, target) == pytest.approx(sum(columns) / len(columns), rel=1e-6)


def test_two_classes_score_twice_the_binary_value(draw: Draw) -> None:
    probabilities, target = draw("binary")
    as_classes = torch.stack([1 - probabilities, probabilities], dim=1)
    assert score("multiclass", as_classes, target) == pytest.approx(2 * score("binary", probabilities, target))


def test_range() -> None:
    certain = torch.eye(4)
    assert score("multiclass", certain, torch.arange(4)) == 0
    assert score("multiclass", certain, torch.tensor([1, 2, 3, 0])) == 2
    assert score("multiclass", torch.full((1, 4), 0.25), torch.tensor([2])) == pytest.approx(1 - 1 / 4)
    assert score("binary", torch.tensor([1.0, 0.0]), torch.tensor([0, 1])) == 1


def test_the_input_is_left_alone(draw: Draw) -> None:
    probabilities, target = draw("multiclass")
    before = probabilities.clone()
    score("multiclass", probabilities, target)
    assert torch.equal(probabilities, before)

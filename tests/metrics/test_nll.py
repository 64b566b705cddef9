"""NegativeLogLikelihood against scikit-learn, PyTorch's losses, and where float32 ends."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import log_loss
from torch import Tensor

from lightning_dropout.metrics import NegativeLogLikelihood

Draw = Callable[..., tuple[Tensor, Tensor]]


def score(task: str, probabilities: Tensor, target: Tensor, log_input: bool = False) -> float:
    metric = NegativeLogLikelihood(task=task, log_input=log_input)  # type: ignore[arg-type]
    metric.update(probabilities, target)
    return metric.compute().item()


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_multiclass_equals_sklearn(classes: int, draw: Draw) -> None:
    probabilities, target = draw("multiclass", classes=classes)
    oracle = log_loss(target, probabilities, labels=range(classes))
    assert score("multiclass", probabilities, target) == pytest.approx(oracle, rel=1e-6)
    assert score("multiclass", probabilities.log(), target, log_input=True) == pytest.approx(oracle, rel=1e-6)


@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_binary_and_multilabel_equal_torch(task: str, draw: Draw) -> None:
    probabilities, target = draw(task)
    oracle = F.binary_cross_entropy(probabilities, target.double()).item()
    assert score(task, probabilities, target) == pytest.approx(oracle, rel=1e-6)
    assert score(task, probabilities.log(), target, log_input=True) == pytest.approx(oracle, rel=1e-6)


def test_zero_for_what_happened_is_infinite_and_not_clipped() -> None:
    assert score("multiclass", torch.tensor([[0.0, 1.0], [0.5, 0.5]]), torch.tensor([0, 0])) == math.inf
    assert score("binary", torch.tensor([0.0, 0.5]), torch.tensor([1, 1])) == math.inf
    assert score("binary", torch.tensor([1.0, 0.5]), torch.tensor([0, 1])) == math.inf
    assert score("multiclass", torch.tensor([[-math.inf, 0.0]]), torch.tensor([0]), log_input=True) == math.inf


@pytest.mark.parametrize("log_input", [False, True])
def test_certain_and_right_is_zero(log_input: bool) -> None:
    certain = torch.eye(2).log() if log_input else torch.eye(2)
    assert score("multiclass", certain, torch.arange(2), log_input) == 0  # 0 * log(0) would be NaN
    yes_no = torch.tensor([1.0, 0.0])
    assert score("binary", yes_no.log() if log_input else yes_no, torch.tensor([1, 0]), log_input) == 0


def test_logarithms_reach_beyond_float32() -> None:
    logits = torch.tensor([[300.0, 0.0]])
    assert score("multiclass", logits.softmax(1), torch.tensor([1])) == math.inf
    assert score("multiclass", logits.log_softmax(1), torch.tensor([1]), log_input=True) == pytest.approx(300)
    log_yes = F.logsigmoid(torch.tensor([300.0, -300.0]))
    assert score("binary", log_yes[1:], torch.tensor([1]), log_input=True) == pytest.approx(300)
    # a probability of "yes" that is 1 in float32, 1 - 1e-12 as a logarithm
    assert score("binary", torch.tensor([-1e-12]), torch.tensor([0]), log_input=True) == pytest.approx(
        -math.log(1e-12), rel=1e-6
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[0.2, 0.8]], r"logarithms, at most 0 \(log_input=True\), but got 0.8; take log_softmax of logits"),
        ([[-5.0, -3.0]], "sum to 1 over dimension 1, but got a sum of 0.05653; take the log_softmax"),
    ],
)
def test_what_is_no_logarithm_of_probabilities_is_refused(values: list[list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=f"Expected .*{message}"):
        score("multiclass", torch.tensor(values), torch.tensor([0]), log_input=True)

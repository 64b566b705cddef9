"""Scores of single samples: their means are what the metrics of the whole say, and each is what its name says."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_dropout.metrics.predictive import PredictiveMetrics
from lightning_dropout.metrics.sample_scores import sample_scores
from lightning_dropout.sampling.prediction import MCPrediction, Statistics, Task

N, C, T = 40, 5, 6


def predicted(task: Task, passes: int = T, shape: tuple[int, ...] = (N, C)) -> MCPrediction:
    generator = torch.Generator().manual_seed(0)
    statistics = Statistics(task, 1)
    for _ in range(passes):
        outputs: Any = 2 * torch.randn(shape, generator=generator)
        if task == "probabilities":
            outputs = outputs.softmax(1)
        if task == "gaussian":
            outputs = outputs, torch.randn(shape, generator=generator)
        statistics.update(outputs)
    return statistics.result(outputs)


def labels_of(task: Task, shape: tuple[int, ...] = (N, C)) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if task in ("multiclass", "probabilities"):
        return torch.randint(C, (N,), generator=generator)
    return torch.randint(2, shape, generator=generator) if task == "binary" else torch.randn(shape, generator=generator)


CASES: list[tuple[Task, tuple[int, ...]]] = [
    ("multiclass", (N, C)),
    ("probabilities", (N, C)),
    ("binary", (N,)),
    ("binary", (N, 1)),
    ("regression", (N, 1)),
    ("gaussian", (N, 1)),
]


@pytest.mark.parametrize(("task", "shape"), CASES)
@pytest.mark.parametrize("passes", [1, T])
def test_their_means_are_what_the_metrics_say(task: Task, shape: tuple[int, ...], passes: int) -> None:
    prediction, labels = predicted(task, passes, shape), labels_of(task, shape)
    scores = sample_scores(prediction, labels)
    metrics = PredictiveMetrics(task, spread=passes > 1)
    metrics.update(prediction, labels)
    whole = {name: value.item() for name, value in metrics.compute().items()}
    means = {name: values.double().mean().item() for name, values in scores.items()}
    for name in {"nll", "brier", "entropy", "mutual_information"} & {*whole}:
        assert means[name] == pytest.approx(whole[name], rel=1e-5), name
    if "right" in means:
        assert means["right"] == pytest.approx(whole["accuracy"])
    else:
        assert scores["error"].double().square().mean().sqrt().item() == pytest.approx(whole["rmse"], rel=1e-5)
    assert {tuple(values.shape) for values in scores.values()} == {(N,)}


def test_confidence_is_that_of_the_predicted_class() -> None:
    prediction, labels = predicted("multiclass"), labels_of("multiclass")
    scores = sample_scores(prediction, labels)
    assert torch.equal(scores["predicted"], prediction.mean.argmax(1))
    assert torch.allclose(scores["confidence"], prediction.mean.amax(1))
    assert torch.equal(scores["right"].bool(), scores["predicted"] == labels)
    binary = sample_scores(predicted("binary", shape=(N,)), labels_of("binary", (N,)))
    assert binary["confidence"].min() >= 0.5
    assert {*binary["predicted"].tolist()} == {0, 1}


def test_the_spread_of_values() -> None:
    prediction = predicted("gaussian", shape=(N, 1))
    scores = sample_scores(prediction)
    assert torch.allclose(scores["std"].square(), prediction.total_variance.flatten(), rtol=1e-4)
    assert (scores["epistemic_std"] < scores["std"]).all()
    assert torch.allclose(
        sample_scores(predicted("regression", shape=(N,)))["std"], predicted("regression", shape=(N,)).std
    )


@pytest.mark.parametrize("passes", [1, T])
def test_one_pass_does_not_disagree(passes: int) -> None:
    assert ("mutual_information" in sample_scores(predicted("multiclass", passes))) is (passes > 1)
    assert ("std" in sample_scores(predicted("regression", passes, (N, 1)))) is (passes > 1)


def test_without_labels_what_needs_none() -> None:
    assert {*sample_scores(predicted("multiclass"))} == {"predicted", "confidence", "entropy", "mutual_information"}
    assert {*sample_scores(predicted("gaussian", shape=(N, 1)))} == {"mean", "std", "epistemic_std"}


def test_ignored_labels_have_no_score() -> None:
    labels = labels_of("multiclass")
    labels[0] = -100
    scores = sample_scores(predicted("multiclass"), labels)
    assert all(scores[name][0].isnan() and not scores[name][1:].isnan().any() for name in ("right", "nll", "brier"))
    assert not scores["confidence"].isnan().any()


@pytest.mark.parametrize(
    ("task", "shape"),
    [("multiclass", (N, C, 2)), ("binary", (N, 1, 2)), ("multilabel", (N, C)), ("raw", (N, C)), ("regression", (N, 2))],
)
def test_several_answers_have_no_scores(task: Task, shape: tuple[int, ...]) -> None:
    assert sample_scores(predicted(task, shape=shape)) == {}


def test_a_probability_of_zero_has_an_infinite_loss_only_where_it_happened() -> None:
    statistics = Statistics("probabilities", 1)
    outputs = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    statistics.update(outputs)
    assert sample_scores(statistics.result(outputs), torch.tensor([0, 1]))["nll"].tolist() == [0.0, torch.inf]

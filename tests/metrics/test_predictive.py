"""The bundle behind ``test/mc/*`` and ``test/det/*``: each number by hand, for every task, from passes given here."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal
from torchmetrics import Metric

from lightning_dropout.metrics.predictive import PredictiveMetrics
from lightning_dropout.sampling import MCPrediction, Task
from lightning_dropout.sampling.prediction import Statistics

N, C, T = 11, 4, 6


def predict(task: Task, passes: Any, class_dim: int = 1) -> MCPrediction:
    statistics = Statistics(task, class_dim)
    for outputs in passes:
        statistics.update(outputs)
    return statistics.result(passes[0])


def score(task: Task, passes: Any, labels: Tensor | None, sizes: tuple[int, ...] = (4, 4, 3), **arguments: Any) -> Any:
    """Feed the samples in batches of unequal size."""
    pairs = isinstance(passes, tuple)
    metrics = PredictiveMetrics(task, spread=len(passes[0] if pairs else passes) > 1, **arguments)
    parts = [tensor.split(sizes, dim=1) for tensor in (passes if pairs else (passes,))]
    for index, size in enumerate(sizes):
        chosen = [part[index] for part in parts]
        batch = list(zip(*chosen, strict=True)) if pairs else list(chosen[0])
        start = sum(sizes[:index])
        prediction = predict(task, batch, arguments.get("class_dim", 1))
        metrics.update(prediction, None if labels is None else labels[start : start + size])
    return {name: value.item() for name, value in metrics.compute().items()}


def draw(*shape: int, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def expected_calibration_error(confidence: Tensor, right: Tensor) -> float:
    bins = (confidence * 15).long().clamp(max=14)
    gaps = [(confidence - right.double())[bins == index].sum().abs() for index in range(15)]
    return float(torch.stack(gaps).sum() / len(confidence))


def selective(confidence: Tensor, right: Tensor) -> dict[str, float]:
    """Without ties: errors among the k surest."""
    wrong = ~right[confidence.argsort(descending=True)]
    number = torch.arange(1, len(wrong) + 1)
    errors = wrong.cumsum(0).double()
    sensitive = errors - wrong.double() / 2  # trapezoids
    accepted = math.ceil(0.9 * len(wrong))
    return {
        "aurc": (errors / number).mean().item(),
        "augrc": (sensitive / len(wrong)).mean().item(),
        "accuracy_at_90": 1 - errors[accepted - 1].item() / accepted,
    }


SELECTIVE = {"aurc", "augrc", "accuracy_at_90"}


@pytest.mark.parametrize("task", ["multiclass", "probabilities"])
def test_classes(task: Task) -> None:
    logits, y = draw(T, N, C), torch.arange(N) % C
    p = logits.double().softmax(2)
    mean = p.mean(0)
    entropy = torch.special.entr(mean).sum(1).mean().item()
    single = torch.special.entr(p).sum(2).mean().item()
    expected = {
        "accuracy": (mean.argmax(1) == y).double().mean().item(),
        "nll": -mean[torch.arange(N), y].log().mean().item(),
        "brier": (mean - torch.eye(C)[y]).square().sum(1).mean().item(),
        "ece": expected_calibration_error(mean.amax(1), mean.argmax(1) == y),
        "entropy": entropy,
        "mutual_information": entropy - single,
        **selective(mean.amax(1), mean.argmax(1) == y),
    }
    outputs = logits if task == "multiclass" else p.float()
    assert score(task, outputs, y) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("task", "shape"), [("binary", (N,)), ("binary", (N, 1)), ("multilabel", (N, C))])
def test_yes_or_no(task: Task, shape: tuple[int, ...]) -> None:
    logits = draw(T, *shape)
    y = (torch.arange(logits[0].numel()) % 3 == 0).long().reshape(shape)
    p = logits.double().sigmoid()
    mean = p.mean(0)
    binary_entropy = lambda q: torch.special.entr(q) + torch.special.entr(1 - q)  # noqa: E731
    expected = {
        "accuracy": ((mean > 0.5) == y).double().mean().item(),
        "nll": -torch.where(y == 1, mean, 1 - mean).log().mean().item(),
        "brier": (mean - y).square().mean().item(),
        "entropy": binary_entropy(mean).mean().item(),
        "mutual_information": (binary_entropy(mean).mean() - binary_entropy(p).mean()).item(),
    }
    if task == "binary":
        expected["ece"] = expected_calibration_error(mean.flatten(), y.flatten())
        expected |= selective(torch.maximum(mean, 1 - mean).flatten(), ((mean > 0.5) == y).flatten())
    for labels in (y, y.bool(), y.float(), y.reshape(N, -1).squeeze(1)):
        assert score(task, logits, labels) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("shape", [(N,), (N, 1), (N, 3)])
def test_regression(shape: tuple[int, ...]) -> None:
    outputs, y = draw(T, *shape), draw(2, *shape)[1]
    mean = outputs.double().mean(0)
    expected = {
        "rmse": (mean - y).square().mean().sqrt().item(),
        "mae": (mean - y).abs().mean().item(),
        "std": outputs.double().std(0).mean().item(),
    }
    assert score("regression", outputs, y) == pytest.approx(expected, rel=1e-4)
    assert score("raw", outputs, None) == pytest.approx({"std": expected["std"]}, rel=1e-4)


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_gaussian(scale: float) -> None:
    """Also in units in which torch's own floor under the variance, 1e-6, would be the greater part of it."""
    means, log_variances, y = scale * draw(T, N, 2), draw(T, N, 2) + 2 * math.log(scale), scale * draw(2, N, 2)[1]
    mean, noise, spread = (
        means.double().mean(0),
        log_variances.double().exp().mean(0),
        means.double().var(0, correction=0),
    )
    expected = {
        "rmse": (mean - y).square().mean().sqrt().item(),
        "mae": (mean - y).abs().mean().item(),
        "nll": -Normal(mean, (noise + spread).sqrt()).log_prob(y.double()).mean().item(),
        "aleatoric_variance": noise.mean().item(),
        "epistemic_variance": spread.mean().item(),
    }
    assert score("gaussian", (means, log_variances), y) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("task", ["multiclass", "binary", "multilabel"])
def test_the_form_of_the_models_output_is_no_matter(task: Task) -> None:
    """A dictionary that holds the mean, or nothing that a metric could read."""
    prediction = predict(task, draw(T, N, 1 if task == "binary" else C))
    y = torch.arange(N) % C if task == "multiclass" else torch.ones_like(prediction.mean).long()
    scores = []
    for predictive in (prediction.predictive, {"logits": prediction.predictive}, None):
        metrics = PredictiveMetrics(task)
        metrics.update(dataclasses.replace(prediction, predictive=predictive), y)
        scores.append(metrics.compute())
    assert scores[0] == scores[1] == scores[2]


def test_one_pass_has_no_spread() -> None:
    assert score("multiclass", draw(1, N, C), None).keys() == {"entropy"}
    assert score("gaussian", (draw(1, N, 1), draw(1, N, 1)), None).keys() == {"aleatoric_variance"}
    assert score("regression", draw(1, N), None) == {}


def test_the_class_dimension_may_be_another() -> None:
    logits, y = draw(T, N, 3, C), torch.arange(N * 3).reshape(N, 3) % C
    first = score("multiclass", logits.movedim(3, 2), y)
    assert score("multiclass", logits, y, class_dim=-1) == score("multiclass", logits, y, class_dim=2)
    assert score("multiclass", logits, y, class_dim=2) == pytest.approx(first)
    flat = score("multiclass", logits.reshape(T, N * 3, C), y.flatten(), sizes=(N * 3,))
    assert first == pytest.approx({name: value for name, value in flat.items() if name not in SELECTIVE}, rel=1e-5)


@pytest.mark.parametrize("logit", [20.0, 60.0, 500.0])
def test_a_sure_mistake_costs_what_it_is_worth(logit: float) -> None:
    """Probabilities of float32 are 1 from a logit of 17 on: their likelihood would be infinite."""
    logits, wrong = torch.full((T, N, 1), logit), torch.zeros(N, 1, dtype=torch.long)
    assert score("binary", logits, wrong)["nll"] == pytest.approx(logit, rel=1e-5)
    assert score("binary", -logits, 1 - wrong)["nll"] == pytest.approx(logit, rel=1e-5)
    assert score("multilabel", -logits, 1 - wrong)["nll"] == pytest.approx(logit, rel=1e-5)
    classes = torch.cat([logits, torch.zeros(T, N, 1)], dim=2)
    assert score("multiclass", classes, torch.ones(N, dtype=torch.long))["nll"] == pytest.approx(logit, rel=1e-5)


def test_probabilities_of_half_precision() -> None:
    p, y = draw(T, N, C).softmax(2), torch.arange(N) % C
    exact = score("probabilities", p, y)
    assert score("probabilities", p.bfloat16(), y) == pytest.approx(exact, rel=0.05, abs=0.02)


@pytest.mark.parametrize(
    ("task", "shape"), [("multiclass", (N, C)), ("binary", (N,)), ("multilabel", (N, C)), ("regression", (N,))]
)
def test_a_nan_is_seen(task: Task, shape: tuple[int, ...]) -> None:
    """In every number that it touches: an average over the others would hide a model that has diverged."""
    outputs = draw(T, *shape)
    outputs[:, 9] = math.nan
    scores = score(task, outputs, torch.zeros(shape[0] if task == "multiclass" else shape).long())
    assert [name for name, value in scores.items() if not math.isnan(value)] == (
        [] if task == "regression" else ["accuracy"]  # a NaN is simply no right answer
    )


@pytest.mark.parametrize(
    "task", ["multiclass", "probabilities", "binary", "multilabel", "regression", "gaussian", "raw"]
)
def test_all_metrics_are_there_before_any_data(task: Task) -> None:
    """A rank without a batch takes part in the exchange of each: what it would make later would come too late."""
    shapes = {"binary": (N,), "regression": (N,), "gaussian": (N, 2)}
    outputs = draw(T, *shapes.get(task, (N, C)))
    outputs = outputs.softmax(-1) if task == "probabilities" else outputs
    labels = None if task == "raw" else torch.zeros(N if task != "multilabel" else (N, C)).long()
    for spread in (True, False):
        metrics = PredictiveMetrics(task, spread=spread)
        names = {*metrics._scores, *metrics._uncertainties}
        assert metrics.compute() == {}
        metrics.update(predict(task, list(outputs if spread else outputs[:1])), labels)
        assert metrics.compute().keys() == names == {*metrics._scores, *metrics._uncertainties}


def test_scores_of_some_batches_are_left_out() -> None:
    metrics, logits = PredictiveMetrics("multiclass"), draw(T, N, C)
    prediction = predict("multiclass", list(logits))
    assert metrics.compute() == {}
    metrics.update(prediction, torch.arange(N) % C)
    assert "accuracy" in metrics.compute()
    metrics.update(prediction, None)
    assert metrics.compute().keys() == {"entropy", "mutual_information"}


def test_ranks_agree(as_ranks: Callable[[list[Metric]], list[Metric]]) -> None:
    """On the numbers, and on which there are: a rank that computes one metric more would wait for ever."""
    logits, y = draw(T, N, C), torch.arange(N) % C
    whole = PredictiveMetrics("multiclass")
    whole.update(predict("multiclass", list(logits)), y)
    for labels_of_second in (y[7:], None, "no batch", torch.full((4,), -100)):
        ranks = [PredictiveMetrics("multiclass"), PredictiveMetrics("multiclass")]
        if isinstance(labels_of_second, str):
            ranks[0].update(predict("multiclass", list(logits)), y)
        else:
            ranks[0].update(predict("multiclass", list(logits[:, :7])), y[:7])
            ranks[1].update(predict("multiclass", list(logits[:, 7:])), labels_of_second)
        for name in ("_labelled", "_counted", "_ranked", "_scores", "_uncertainties"):
            first, second = (getattr(rank, name) for rank in ranks)
            if isinstance(first, Metric):
                as_ranks([first, second])
            else:
                assert first.keys() == second.keys()
                for metric in first:
                    as_ranks([first[metric], second[metric]])
        one, other = (rank.compute() for rank in ranks)
        assert one == other
        if labels_of_second is None:
            assert one.keys() == {"entropy", "mutual_information"}
        elif isinstance(labels_of_second, Tensor) and (labels_of_second == -100).all():
            expected = score("multiclass", logits, torch.cat([y[:7], labels_of_second]), sizes=(N,))
            assert {k: v.item() for k, v in one.items()} == pytest.approx(expected)
        else:
            assert one.keys() == whole.compute().keys()
            assert {k: v.item() for k, v in one.items()} == pytest.approx(
                {k: v.item() for k, v in whole.compute().items()}
            )


@pytest.mark.parametrize(
    ("task", "shape", "labels", "fits"),
    [
        ("multiclass", (N, C), torch.zeros(N).long(), True),
        ("multiclass", (N, C), torch.zeros(N), False),
        ("multiclass", (N, C), torch.full((N,), -100), True),
        ("multiclass", (N, C), torch.zeros(N, C).long(), False),
        ("multiclass", (N, C, 2), torch.zeros(N, 2).long(), True),
        ("multiclass", (N, C), torch.zeros(N + 1).long(), False),
        ("binary", (N, 1), torch.zeros(N), True),
        ("binary", (N,), torch.ones(N, 1).bool(), True),
        ("binary", (N,), torch.zeros(N + 1), False),
        ("multilabel", (N, C), torch.ones(N, C).long(), True),
        ("multilabel", (N, C), torch.ones(N).long(), False),
        ("regression", (N,), torch.full((N, 1), 7.5), True),
        ("regression", (N, 2), torch.zeros(N), False),
        ("regression", (N, 2), torch.zeros(2, N), False),
    ],
)
def test_what_can_be_labels(task: Task, shape: tuple[int, ...], labels: Tensor, fits: bool) -> None:
    assert PredictiveMetrics.fits(predict(task, list(draw(T, *shape))), labels) is fits


@pytest.mark.parametrize("task", ["multiclass", "probabilities"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_ignored_labels_count_in_no_score(task: Task, shape: tuple[int, ...]) -> None:
    """Scores are those of the others alone, in batches of which one has none at all; uncertainties are of all."""
    logits = draw(T, N, C, *shape)
    y = (torch.arange(N * math.prod(shape)) % C).reshape(N, *shape)
    ignored = torch.arange(y.numel()).reshape(y.shape) % 3 == 0
    ignored[4:8] = True  # the second batch
    outputs = logits if task == "multiclass" else logits.softmax(2)
    scores = score(task, outputs, y.masked_fill(ignored, -100))
    others = outputs.movedim(2, -1)[:, ~ignored]
    expected = score(task, others, y[~ignored], sizes=(others.shape[1],))
    if shape:  # of several labels a sample none is kept
        expected = {name: value for name, value in expected.items() if name not in SELECTIVE}
    uncertain = ["entropy", "mutual_information"]
    expected |= {name: value for name, value in score(task, outputs, None).items() if name in uncertain}
    assert scores == pytest.approx(expected, rel=1e-5)
    assert scores["accuracy"] != pytest.approx(score(task, outputs, y)["accuracy"], rel=1e-3)  # it can fail
    last = score(task, outputs.movedim(2, -1), y.masked_fill(ignored, -100), class_dim=-1)
    assert last == pytest.approx(scores, rel=1e-5)


def test_where_all_labels_are_ignored_there_is_no_score() -> None:
    scores = score("multiclass", draw(T, N, C), torch.full((N,), -100))
    assert scores.keys() == {"entropy", "mutual_information"}
    assert not any(map(math.isnan, scores.values()))


@pytest.mark.parametrize(
    ("task", "shape", "labels", "message"),
    [
        ("multiclass", (N, C), torch.full((N,), C), "Expected labels from 0 to 3 for 4 classes, or -100 .* but got 4;"),
        ("multiclass", (N, C), torch.full((N,), -1), "but got -1; pass `labels=` the place .*, or `labels=None` if"),
        ("multiclass", (N, C), torch.full((N,), 156, dtype=torch.uint8), "but got 156;"),  # -100 in eight bits
        ("multiclass", (N, C, 2), torch.arange(N * 2).reshape(N, 2), "but got 4;"),
        ("probabilities", (N, C), torch.full((N,), C), "but got 4;"),
        ("binary", (N,), torch.full((N,), 2), 'Expected labels of 0 or 1 for task="binary", but got 2;'),
        ("binary", (N, 1), torch.full((N,), -100), "but got -100;"),
        ("multilabel", (N, C), torch.full((N, C), 0.5), 'for task="multilabel", but got 0.5;'),
        ("multilabel", (N, C), torch.full((N, C), math.nan), "but got nan;"),
    ],
)
def test_labels_that_are_no_targets_are_refused(
    task: Task, shape: tuple[int, ...], labels: Tensor, message: str
) -> None:
    outputs = draw(T, *shape)
    prediction = predict(task, list(outputs.softmax(2) if task == "probabilities" else outputs))
    assert PredictiveMetrics.fits(prediction, labels)
    with pytest.raises(ValueError, match=message):
        PredictiveMetrics.check(prediction, labels)


@pytest.mark.parametrize(
    ("task", "shape", "labels"),
    [
        ("multiclass", (N, C), torch.tensor([-100, *range(C)] * 2 + [0])),
        ("multiclass", (N, 300), torch.full((N,), 250, dtype=torch.uint8)),
        ("binary", (N, 1), torch.ones(N).bool()),
        ("multilabel", (N, C), torch.zeros(N, C)),
        ("regression", (N,), torch.full((N,), 7.5)),
    ],
)
def test_labels_that_are_targets_are_not(task: Task, shape: tuple[int, ...], labels: Tensor) -> None:
    PredictiveMetrics.check(predict(task, list(draw(T, *shape))), labels)


def test_a_class_of_eight_bits_is_not_taken_for_an_ignored_one() -> None:
    logits, y = draw(T, N, 300), torch.full((N,), 156, dtype=torch.uint8)  # 256 - 100
    assert score("multiclass", logits, y) == score("multiclass", logits, y.long())
    assert "nll" in score("multiclass", logits, y)

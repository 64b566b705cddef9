"""Metrics of both sides for each loader: all there from the start, labels found or refused."""

import pytest
import torch
from torch import Tensor

from lightning_dropout.callbacks.comparison import Comparison
from lightning_dropout.sampling import MCPrediction, Task
from lightning_dropout.sampling.prediction import Statistics


def predict(task: Task = "multiclass", num_samples: int = 5, n: int = 6) -> MCPrediction:
    statistics = Statistics(task, 1)
    for number in range(num_samples):
        statistics.update(torch.randn(n, 3, generator=torch.Generator().manual_seed(number)))
    return statistics.result(torch.zeros(n, 3))


def comparison(task: Task = "multiclass", labels: object = "auto", num_loaders: int = 2) -> Comparison:
    arguments = {"passes": {"mc": 5, "det": 1}, "num_loaders": num_loaders, "device": torch.device("cpu")}
    return Comparison(task, 1, labels=labels, **arguments)  # type: ignore[arg-type]


Y = torch.arange(6) % 3


def test_each_side_of_each_loader() -> None:
    both = comparison()
    both.update(0, {"mc": predict(), "det": predict(num_samples=1)}, Y)
    both.update(1, {"mc": predict(), "det": predict(num_samples=1)}, None)
    names: dict[tuple[int, str], set[str]] = {}
    for dataloader_idx, side, name, _ in both.compute():
        names.setdefault((dataloader_idx, side), set()).add(name)
    scores = {"accuracy", "nll", "brier", "ece", "aurc", "augrc", "accuracy_at_90"}
    assert names == {
        (0, "mc"): scores | {"entropy", "mutual_information"},
        (0, "det"): scores | {"entropy"},
        (1, "mc"): {"entropy", "mutual_information"},
        (1, "det"): {"entropy"},
    }


def test_a_loader_without_a_batch_has_no_values() -> None:
    both = comparison()
    both.update(1, {"mc": predict(), "det": predict(num_samples=1)}, Y)
    assert {dataloader_idx for dataloader_idx, *_ in both.compute()} == {1}
    assert list(comparison().compute()) == []


@pytest.mark.parametrize("batch", [(0, Y), {"x": 0, "target": Y}])
def test_labels_that_fit(batch: object) -> None:
    found = comparison().labels(batch, predict())
    assert found is Y


@pytest.mark.parametrize("labels", [Y.float(), Y[:-1], "words", None])
def test_a_guess_that_does_not_fit_is_none(labels: Tensor) -> None:
    assert comparison().labels((0, labels), predict()) is None


@pytest.mark.parametrize("labels", ["auto", "1"])
def test_labels_that_are_no_classes_are_an_error_and_ignored_ones_are_not(labels: str) -> None:
    with pytest.raises(ValueError, match=r"Expected labels from 0 to 2 for 3 classes, or -100 .* but got 7;"):
        comparison(labels=labels).labels((0, Y + 7), predict())
    ignored = Y.masked_fill(Y == 1, -100)
    assert comparison(labels=labels).labels((0, ignored), predict()) is ignored


def test_a_batch_may_be_said_to_have_none() -> None:
    assert comparison(labels=None).labels((0, Y + 7), predict()) is None


def test_a_place_of_the_users_own_that_does_not_fit_is_an_error() -> None:
    assert comparison(labels="0").labels((Y, 0), predict()) is Y
    with pytest.raises(ValueError, match=r"Expected `labels` to lead to.*got \(6,\) for predictions of shape \(6, 3\)"):
        comparison(labels="0").labels((Y.float(), 0), predict())


def test_raw_outputs_have_no_labels() -> None:
    assert comparison("raw", labels="0").labels((Y, 0), predict("raw")) is None

"""RankedMetric: what it takes, and the reason it gives for a NaN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_dropout.metrics.ranked_metric import RankedMetric


class Highest(RankedMetric):
    """The simplest of its kind: whether the highest score is a yes."""

    def update(self, scores: Tensor, flags: Tensor) -> None:
        self._take(surprise=scores, caught=flags)

    def _value(self, scores: Tensor, flags: Tensor) -> Tensor:
        return flags[scores.argmax()]


@pytest.mark.parametrize("flags", [torch.tensor([0, 1]), torch.tensor([0.0, 1.0]), torch.tensor([False, True])])
def test_a_yes_may_have_any_dtype(flags: Tensor) -> None:
    metric = Highest()
    metric.update(torch.tensor([-torch.inf, 30.0]), flags)
    assert metric.compute() == 1
    assert metric.compute().dtype == torch.float32


def test_samples_may_have_any_shape() -> None:
    metric = Highest()
    metric.update(torch.rand(2, 3, 4), torch.zeros(2, 3, 4))
    assert metric._kept("scores").shape == metric._kept("flags").shape == (24,)


def test_kept_are_nine_bytes_a_sample() -> None:
    metric = Highest()
    metric.update(torch.rand(100).half(), torch.zeros(100))
    states = [state for kept in metric.metric_state.values() for state in kept]  # type: ignore[union-attr]
    assert sum(state.numel() * state.element_size() for state in states) == 9 * 100


@pytest.mark.parametrize(
    ("scores", "flags", "message"),
    [
        ([1, 2], [0, 1], "`surprise` to be of a floating dtype, but got torch.int64"),
        ([0.1, 0.2], [0], r"`caught` to have the shape \(2,\) of `surprise`, but got \(1,\)"),
        ([0.1, 0.2], [7, 1], "`caught` to be a yes or no, 1 or 0, for each sample, but got 7"),
        ([0.1, 0.2], [1.0, float("nan")], "`caught` to be a yes or no, .* but got nan"),
    ],
)
def test_wrong_inputs_are_named(scores: Any, flags: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"Expected {message}"):
        Highest().update(torch.tensor(scores), torch.tensor(flags))


def test_a_nan_has_its_reason() -> None:
    metric = Highest()
    metric.update(torch.tensor([0.1, torch.nan, torch.nan]), torch.tensor([1, 1, 0]))
    with pytest.warns(UserWarning, match="`Highest` is NaN, since 2 of 3 scores are NaN, which have no rank"):
        assert metric.compute().isnan()


def test_the_reason_can_be_asked_for(recwarn: pytest.WarningsRecorder) -> None:
    metric = Highest()
    assert metric.why_undefined() == "there are no samples"
    metric.update(torch.tensor([0.1]), torch.tensor([1]))
    assert metric.why_undefined() is None
    metric.update(torch.tensor([torch.nan]), torch.tensor([1]))
    assert metric.why_undefined() == "1 of 2 scores are NaN, which have no rank"
    assert not recwarn.list


def test_the_reason_is_that_of_all_ranks(as_ranks: Callable[[list[Metric]], list[Metric]]) -> None:
    ranks = [Highest(), Highest()]
    ranks[0].update(torch.tensor([0.1]), torch.tensor([1]))
    assert [rank.why_undefined() for rank in as_ranks(ranks)] == [None, None]  # of its own, the second has none

"""What all metrics of probabilities promise: sums that no batching, rank or dtype changes, and checked inputs."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_dropout.metrics import BrierScore, CalibrationError, NegativeLogLikelihood
from lightning_dropout.metrics.probability_metric import ProbabilityMetric

METRICS = [BrierScore, NegativeLogLikelihood, CalibrationError]
TASKS = ["binary", "multiclass", "multilabel"]
Draw = Callable[..., tuple[Tensor, Tensor]]

everything = pytest.mark.parametrize("metric_class", METRICS)
every_task = pytest.mark.parametrize("task", TASKS)


class MeanOfBatchMeans(BrierScore):
    """Planted bug: every batch weighs the same, so a short last batch counts too much."""

    def update(self, probabilities: Tensor, target: Tensor) -> None:
        alone = BrierScore(task=self.task)
        alone.update(probabilities, target)
        self.total += alone.compute()
        self.count += 1


class SumsInHalf(BrierScore):
    """Planted bug: sums follow the module's dtype, as they do in torchmetrics under ``.to(torch.bfloat16)``."""

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Any = "") -> nn.Module:
        return Metric._apply(self, fn, exclude_state)


def in_batches(metric: Metric, probabilities: Tensor, target: Tensor, *sizes: int) -> Tensor:
    for part, labels in zip(probabilities.split(list(sizes)), target.split(list(sizes)), strict=True):
        metric.update(part, labels)
    return metric.compute()


class TestSums:
    """One result for one set of samples."""

    @everything
    @every_task
    def test_batches_and_their_order_change_nothing(
        self, metric_class: type[ProbabilityMetric], task: str, draw: Draw
    ) -> None:
        probabilities, target = draw(task)
        whole = in_batches(metric_class(task=task), probabilities, target, 500)
        ragged = in_batches(metric_class(task=task), probabilities, target, 256, 0, 243, 1)
        backwards = in_batches(metric_class(task=task), probabilities.flip(0), target.flip(0), 3, 497)
        torch.testing.assert_close(ragged, whole, rtol=1e-6, atol=0)
        torch.testing.assert_close(backwards, whole, rtol=1e-6, atol=0)

    def test_mutant_that_averages_batches_is_seen(self, draw: Draw) -> None:
        probabilities, target = draw("multiclass")
        whole = in_batches(BrierScore(task="multiclass"), probabilities, target, 500)
        wrong = in_batches(MeanOfBatchMeans(task="multiclass"), probabilities, target, 256, 243, 1)
        assert abs(wrong - whole) > 1e-3

    @everything
    @every_task
    def test_two_ranks_make_one(
        self,
        metric_class: type[ProbabilityMetric],
        task: str,
        draw: Draw,
        as_ranks: Callable[[list[Metric]], list[Metric]],
    ) -> None:
        probabilities, target = draw(task)
        whole = in_batches(metric_class(task=task), probabilities, target, 500)
        first, second = metric_class(task=task), metric_class(task=task)
        first.update(probabilities[:401], target[:401])
        second.update(probabilities[401:], target[401:])
        merged = copy.deepcopy(first)
        merged.merge_state(second)
        torch.testing.assert_close(merged.compute(), whole, rtol=1e-6, atol=0)
        for rank in as_ranks([first, second]):
            torch.testing.assert_close(rank.compute(), whole, rtol=1e-6, atol=0)

    @everything
    @every_task
    def test_further_dimensions_are_samples(self, metric_class: type[ProbabilityMetric], task: str, draw: Draw) -> None:
        probabilities, target = draw(task, n=60)
        flat = in_batches(metric_class(task=task), probabilities, target, 60)
        shaped = probabilities.unflatten(0, (10, 2, 3))  # (10, 2, 3, ...): 10 samples, 2 x 3 pixels
        if task == "multiclass":
            shaped = shaped.movedim(-1, 1)  # (10, C, 2, 3)
        metric = metric_class(task=task)
        metric.update(shaped, target.unflatten(0, (10, 2, 3)))
        torch.testing.assert_close(metric.compute(), flat, rtol=1e-6, atol=0)

    @everything
    @every_task
    def test_forward_returns_the_batch_and_keeps_the_sum(
        self, metric_class: type[ProbabilityMetric], task: str, draw: Draw
    ) -> None:
        probabilities, target = draw(task)
        metric = metric_class(task=task)
        parts = [metric(probabilities[:100], target[:100]), metric(probabilities[100:], target[100:])]
        torch.testing.assert_close(
            parts[1], in_batches(metric_class(task=task), probabilities[100:], target[100:], 400)
        )
        torch.testing.assert_close(
            metric.compute(), in_batches(metric_class(task=task), probabilities, target, 500), rtol=1e-6, atol=0
        )
        metric.reset()
        metric.update(probabilities[:100], target[:100])
        torch.testing.assert_close(metric.compute(), parts[0])

    @everything
    def test_long_streams_of_small_numbers_keep_their_digits(
        self, metric_class: type[ProbabilityMetric], draw: Draw
    ) -> None:
        probabilities, target = draw("multiclass", n=100)
        metric = metric_class(task="multiclass")
        metric.update(probabilities, target)
        once = metric.compute()
        for name, state in metric.metric_state.items():
            setattr(metric, name, state * 2**40)  # as after 10^14 samples, of which a float32 sum would take no more
        before = {name: state.clone() for name, state in metric.metric_state.items()}
        metric.update(probabilities, target)
        assert all((state > before[name])[before[name] > 0].all() for name, state in metric.metric_state.items())
        torch.testing.assert_close(metric.compute(), once)

    @everything
    def test_samples_are_counted_exactly_in_a_half_precision_module(
        self, metric_class: type[ProbabilityMetric], draw: Draw
    ) -> None:
        # What `precision="bf16-true"` does to a module that holds the metric.
        module = nn.ModuleDict({"metric": metric_class(task="binary"), "layer": nn.Linear(1, 1)})
        for converted in (module.to(torch.bfloat16), module.half(), module.to(torch.bfloat16)):
            states = converted["metric"].metric_state.values()
            assert {state.dtype for state in states} == {torch.float64}
        probabilities, target = draw("binary", n=3)
        for _ in range(400):
            module["metric"].update(probabilities, target)
        plain = metric_class(task="binary")
        plain.update(probabilities, target)
        torch.testing.assert_close(module["metric"].compute(), plain.compute(), rtol=1e-6, atol=0)

    def test_mutant_whose_sums_follow_the_module_is_seen(self, draw: Draw) -> None:
        module = nn.ModuleDict({"metric": SumsInHalf(task="binary")}).to(torch.bfloat16)
        probabilities, target = draw("binary", n=3)
        for _ in range(400):
            module["metric"].update(probabilities, target)
        assert module["metric"].count != 3 * 400

    @everything
    def test_device_without_float64_takes_float32_sums(self, metric_class: type[ProbabilityMetric]) -> None:
        def to_mps(tensor: Tensor) -> Tensor:
            if tensor.dtype == torch.float64:
                raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
            return tensor.clone()

        metric = metric_class(task="binary")
        metric._apply(to_mps)
        assert {state.dtype for state in metric.metric_state.values()} == {torch.float32}

    @everything
    def test_survives_pickling(self, metric_class: type[ProbabilityMetric], draw: Draw) -> None:
        probabilities, target = draw("binary")
        metric = metric_class(task="binary")
        metric.update(probabilities, target)
        assert pickle.loads(pickle.dumps(metric)).compute() == metric.compute()


class TestPrecision:
    """Inputs of few bits, and inputs that are no numbers."""

    @everything
    @every_task
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    def test_half_inputs_are_summed_in_double(
        self, metric_class: type[ProbabilityMetric], task: str, dtype: torch.dtype, draw: Draw
    ) -> None:
        probabilities, target = (tensor.repeat(20, *[1] * (tensor.ndim - 1)) for tensor in draw(task))
        probabilities = probabilities.to(dtype)
        metric = metric_class(task=task)
        metric.update(probabilities, target)
        same_values = metric_class(task=task)
        # edges of bins are rounded to the dtype of the input: compare away from them
        same_values.update(probabilities.double(), target)
        tolerance = 1e-6 if metric_class is not CalibrationError else 2e-2
        torch.testing.assert_close(metric.compute(), same_values.compute(), rtol=tolerance, atol=0)
        assert metric.compute().dtype == torch.float32

    @everything
    @every_task
    @pytest.mark.parametrize("first", [True, False])
    def test_nan_comes_out_again(
        self, metric_class: type[ProbabilityMetric], task: str, first: bool, draw: Draw
    ) -> None:
        probabilities, target = draw(task, n=20)
        spoiled = probabilities.clone()
        spoiled.view(-1)[7] = torch.nan
        metric = metric_class(task=task)
        for batch in (spoiled, probabilities) if first else (probabilities, spoiled):
            metric.update(batch, target)
        assert metric.compute().isnan()

    @pytest.mark.parametrize("norm", ["l1", "l2", "max"])
    def test_nan_comes_out_of_every_norm(self, norm: Any, draw: Draw) -> None:
        probabilities, target = draw("multiclass", n=20)
        probabilities[3, 0] = torch.nan
        metric = CalibrationError(task="multiclass", norm=norm)
        metric.update(probabilities, target)
        assert metric.compute().isnan()

    @everything
    def test_no_samples_have_no_score(self, metric_class: type[ProbabilityMetric]) -> None:
        metric = metric_class(task="multiclass")
        metric.update(torch.empty(0, 3), torch.empty(0, dtype=torch.long))
        assert metric.compute().isnan()

    @everything
    def test_means_that_exceed_one_by_a_rounding_error_are_taken(self, metric_class: type[ProbabilityMetric]) -> None:
        above = torch.tensor([1.0 + 2**-23, 0.5])
        metric = metric_class(task="binary")
        metric.update(above, torch.tensor([1, 1]))
        assert metric.compute().isfinite()

    @everything
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    @pytest.mark.parametrize("classes", [2, 10, 1000, 50_000])
    def test_softmax_of_any_dtype_sums_to_one_well_enough(
        self, metric_class: type[ProbabilityMetric], dtype: torch.dtype, classes: int
    ) -> None:
        logits = torch.zeros(2, classes)  # the worst case: all are rounded the same way
        metric = metric_class(task="multiclass")
        metric.update(logits.softmax(1).to(dtype), torch.tensor([0, 1]))
        if metric_class is NegativeLogLikelihood:
            metric = metric_class(task="multiclass", log_input=True)
            metric.update(logits.log_softmax(1).to(dtype), torch.tensor([0, 1]))


class TestRefusals:
    """Wrong inputs are named, with the cure."""

    @everything
    @pytest.mark.parametrize(
        ("task", "probabilities", "target", "message"),
        [
            ("multiclass", [[2.0, -1.0]], [0], r"to lie in \[0, 1\], but got values from -1 to 2; take the softmax"),
            ("multiclass", [[0.5, 0.4]], [0], "to sum to 1 over dimension 1, but got a sum of 0.9; take the softmax"),
            ("multiclass", [[0.5, 0.5]], [2], "`target` to be integers from 0 to 1 .*, but got 2"),
            ("multiclass", [[0.5, 0.5]], [-100], "`target` to be integers from 0 to 1 .*, but got -100"),
            ("multiclass", [[0.5, 0.5]], [0.0], "`target` to be integer class indices, but got torch.float32"),
            ("multiclass", [[0.5, 0.5]], [[0, 1]], r"`target` to have the shape \(1,\) .*, but got \(1, 2\)"),
            ("multiclass", [0.5, 0.5], [0, 1], r"shape \(N, C, ...\) with C >= 2 classes, but got \(2,\)"),
            ("multiclass", [[0.5], [0.5]], [0, 1], r"with C >= 2 classes, but got \(2, 1\)"),
            ("multiclass", [[1, 0]], [0], "`probabilities` to be of a floating dtype, but got torch.int64"),
            ("binary", [3.0], [1], r"to lie in \[0, 1\], but got values from 3 to 3; take the sigmoid"),
            ("binary", [0.5], [2], '`target` to be integers from 0 to 1 for task="binary", but got 2'),
            ("binary", [0.5], [0.5], "`target` to be integers from 0 to 1"),
            ("binary", [[0.5, 0.5]], [1], r"`target` to have the shape \(1, 2\)"),
            ("multilabel", [[0.5, 0.5]], [1], r"`target` to have the shape \(1, 2\)"),
        ],
    )
    def test_values_and_shapes(
        self, metric_class: type[ProbabilityMetric], task: str, probabilities: Any, target: Any, message: str
    ) -> None:
        with pytest.raises(ValueError, match=f"Expected .*{message}"):
            metric_class(task=task).update(torch.tensor(probabilities), torch.tensor(target))

    @everything
    def test_nan_does_not_hide_a_wrong_value(self, metric_class: type[ProbabilityMetric]) -> None:
        with pytest.raises(ValueError, match=r"lie in \[0, 1\]"):
            metric_class(task="binary").update(torch.tensor([torch.nan, 7.0]), torch.tensor([0, 1]))

    @everything
    def test_an_empty_batch_is_not_the_one_that_is_checked(self, metric_class: type[ProbabilityMetric]) -> None:
        metric = metric_class(task="binary")
        metric.update(torch.empty(0), torch.empty(0))
        with pytest.raises(ValueError, match=r"lie in \[0, 1\]"):
            metric.update(torch.tensor([7.0]), torch.tensor([1]))

    @everything
    @pytest.mark.parametrize("task", ["multi-class", None, "regression"])
    def test_task(self, metric_class: type[ProbabilityMetric], task: Any) -> None:
        with pytest.raises(ValueError, match=r"`task` to be one of binary, multiclass, multilabel, but got"):
            metric_class(task=task)

    @everything
    def test_wrong_keyword_is_not_swallowed(self, metric_class: type[ProbabilityMetric]) -> None:
        with pytest.raises(ValueError, match="num_class"):
            metric_class(task="multiclass", num_class=3)

    @pytest.mark.parametrize("metric_class", [BrierScore, CalibrationError])
    def test_logarithms_are_not_taken_silently(self, metric_class: type[ProbabilityMetric]) -> None:
        with pytest.raises(ValueError, match="log_input"):
            metric_class(task="multiclass", log_input=True)


@everything
def test_plot_draws_the_value(metric_class: type[ProbabilityMetric], draw: Draw) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    metric = metric_class(task="binary")
    metric.update(*draw("binary"))
    _, axes = metric.plot()
    assert float(axes.lines[0].get_ydata()[0]) == pytest.approx(metric.compute().item())
    plt.close("all")

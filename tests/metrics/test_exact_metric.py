"""What every metric promises: one result for one set of samples, whatever batches, ranks, dtypes and modules."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_dropout.metrics import (
    AUGRC,
    AURC,
    FPR95,
    OODAUROC,
    AccuracyAtCoverage,
    CalibrationError,
    GaussianNLL,
    IntervalCoverage,
    IntervalWidth,
    MixtureNLL,
    MutualInformation,
    PredictiveEntropy,
    QuantileCalibrationError,
    Sharpness,
)
from lightning_dropout.metrics.exact_metric import ExactMetric, check_shapes
from lightning_dropout.metrics.ranked_metric import RankedMetric

Ranks = Callable[[list[Metric]], list[Metric]]
LEVELS = (0.1, 0.5, 0.9)


class Case(NamedTuple):
    """A metric, and inputs that draw from a seeded generator."""

    make: Callable[[], ExactMetric]
    draw: Callable[[torch.Generator, int], tuple[Tensor, ...]]
    dims: tuple[int, ...]
    """Dimension of the samples in each input."""


def classes(g: torch.Generator, *shape: int) -> Tensor:
    return (2 * torch.randn(*shape, generator=g)).softmax(-1)


def labels(g: torch.Generator, n: int, highest: int = 4) -> Tensor:
    return torch.randint(highest, (n,), generator=g)


def scored(g: torch.Generator, n: int) -> tuple[Tensor, ...]:
    return torch.randint(9, (n,), generator=g) - 4.0, labels(g, n, 2)  # ties, and scores of both signs


def gaussians(g: torch.Generator, *shape: int) -> tuple[Tensor, Tensor]:
    return torch.randn(*shape, generator=g), torch.rand(*shape, generator=g) + 0.1


def ends(g: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
    lower = torch.randn(n, generator=g)
    return lower, lower + torch.rand(n, generator=g)


CASES = {
    "entropy": Case(lambda: PredictiveEntropy(task="multiclass"), lambda g, n: (classes(g, n, 4),), (0,)),
    "mutual_information": Case(
        lambda: MutualInformation(task="multiclass"), lambda g, n: (classes(g, 3, n, 4),), (1,)
    ),
    "ece_mass": Case(
        lambda: CalibrationError(task="multiclass", binning="equal_mass", n_bins=7),
        lambda g, n: (classes(g, n, 4), labels(g, n)),
        (0, 0),
    ),
    "ece_by_class": Case(
        lambda: CalibrationError(task="multiclass", classwise=True, num_classes=4),
        lambda g, n: (classes(g, n, 4), labels(g, n)),
        (0, 0),
    ),
    "ece_mass_by_class": Case(
        lambda: CalibrationError(task="multiclass", binning="equal_mass", classwise=True, num_classes=4),
        lambda g, n: (classes(g, n, 4), labels(g, n)),
        (0, 0),
    ),
    "aurc": Case(AURC, scored, (0, 0)),
    "augrc": Case(AUGRC, scored, (0, 0)),
    "accuracy_at_coverage": Case(lambda: AccuracyAtCoverage(0.7), scored, (0, 0)),
    "fpr95": Case(FPR95, scored, (0, 0)),
    "ood_auroc": Case(OODAUROC, scored, (0, 0)),
    "gaussian_nll": Case(
        GaussianNLL, lambda g, n: (*gaussians(g, n), torch.randn(n, generator=g)), (0, 0, 0)
    ),
    "mixture_nll": Case(
        MixtureNLL, lambda g, n: (*gaussians(g, 3, n), torch.randn(n, generator=g)), (1, 1, 0)
    ),
    "sharpness": Case(Sharpness, lambda g, n: gaussians(g, n)[1:], (0,)),
    "interval_coverage": Case(IntervalCoverage, lambda g, n: (*ends(g, n), torch.randn(n, generator=g)), (0, 0, 0)),
    "interval_width": Case(IntervalWidth, ends, (0, 0)),
    "quantile_calibration": Case(
        lambda: QuantileCalibrationError(LEVELS),
        lambda g, n: (torch.randn(3, n, generator=g).sort(0).values, torch.randn(n, generator=g)),
        (1, 0),
    ),
}  # fmt: skip
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def drawn(case: Case, n: int = 60, seed: int = 0) -> tuple[Tensor, ...]:
    return case.draw(torch.Generator().manual_seed(seed), n)


def part(case: Case, inputs: tuple[Tensor, ...], samples: Any) -> tuple[Tensor, ...]:
    index = torch.arange(inputs[-1].shape[case.dims[-1]])[samples]
    return tuple(values.index_select(dim, index) for values, dim in zip(inputs, case.dims, strict=True))


def after(case: Case, inputs: tuple[Tensor, ...], *parts: Any) -> Tensor:
    metric = case.make()
    for samples in parts or (slice(None),):
        metric.update(*part(case, inputs, samples))
    return metric.compute()


class ForgetsEmptyRanks(AURC):
    """Planted bug: torchmetrics' own empty list of float32 for a rank without data."""

    def _sync_dist(self, *args: Any, **kwargs: Any) -> None:
        Metric._sync_dist(self, *args, **kwargs)


class KeepsTheUsersTensor(AURC):
    """Planted bug: what is kept is what the user goes on writing to."""

    def _keep(self, name: str, values: Tensor) -> None:
        getattr(self, name).append(values)


class TestOneResult:
    """The samples decide, and nothing else."""

    @every_case
    def test_batches_and_their_order(self, case: Case) -> None:
        inputs = drawn(case)
        whole = after(case, inputs)
        assert whole.isfinite()
        assert whole.dtype == torch.float32
        torch.testing.assert_close(
            after(case, inputs, slice(0, 33), slice(0, 0), slice(33, 60)), whole, rtol=1e-6, atol=0
        )
        shuffled = torch.randperm(60, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(after(case, inputs, shuffled[:7], shuffled[7:]), whole, rtol=1e-6, atol=0)

    @every_case
    @pytest.mark.parametrize("cut", [41, 60], ids=["both", "one_empty"])
    def test_ranks(self, case: Case, cut: int, as_ranks: Ranks) -> None:
        inputs = drawn(case)
        first, second = case.make(), case.make()
        first.update(*part(case, inputs, slice(0, 30)))
        first.update(*part(case, inputs, slice(30, cut)))
        if cut < 60:
            second.update(*part(case, inputs, slice(cut, 60)))
            merged = copy.deepcopy(first)
            merged.merge_state(second)
            torch.testing.assert_close(merged.compute(), after(case, inputs), rtol=1e-6, atol=0)
        second._update_count = 1  # else torchmetrics warns of the rank without data
        for rank in as_ranks([first, second]):
            torch.testing.assert_close(rank.compute(), after(case, inputs), rtol=1e-6, atol=0)

    def test_mutant_that_forgets_empty_ranks_is_seen(self, as_ranks: Ranks) -> None:
        ranks = [ForgetsEmptyRanks(), ForgetsEmptyRanks()]
        ranks[0].update(*drawn(CASES["aurc"]))
        ranks[1]._update_count = 1
        with pytest.raises(AssertionError):
            as_ranks([*ranks])[1].compute()

    @every_case
    def test_forward_reset_and_pickle(self, case: Case) -> None:
        inputs = drawn(case)
        metric = case.make()
        metric(*part(case, inputs, slice(0, 20)))
        of_batch = metric(*part(case, inputs, slice(20, 60)))
        torch.testing.assert_close(of_batch, after(case, inputs, slice(20, 60)))
        torch.testing.assert_close(metric.compute(), after(case, inputs), rtol=1e-6, atol=0)
        assert torch.equal(pickle.loads(pickle.dumps(metric)).compute(), metric.compute())
        metric.reset()
        metric.update(*part(case, inputs, slice(0, 20)))
        torch.testing.assert_close(metric.compute(), after(case, inputs, slice(0, 20)))

    @pytest.mark.parametrize(("metric", "safe"), [(AURC(), True), (KeepsTheUsersTensor(), False)])
    def test_later_writes_of_the_user_reach_nothing(self, metric: AURC, safe: bool) -> None:
        scores = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
        metric.update(scores, torch.tensor([True, False, False]))
        scores.neg_()
        assert (metric.compute() == pytest.approx((0 + 1 / 2 + 2 / 3) / 3)) == safe


class TestPrecision:
    """Few bits in, float64 in between."""

    @every_case
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_inputs_are_those_numbers_in_double(self, case: Case, dtype: torch.dtype) -> None:
        rounded = tuple(v.to(dtype) if v.is_floating_point() else v for v in drawn(case))
        same = tuple(v.double() if v.is_floating_point() else v for v in rounded)
        # edges of equal widths are rounded to the dtype of the input, and some probabilities lie on them
        tolerance = 0.05 if case is CASES["ece_by_class"] else 1e-6
        torch.testing.assert_close(after(case, rounded), after(case, same), rtol=tolerance, atol=0)

    @every_case
    def test_states_keep_their_digits_in_a_half_precision_module(self, case: Case) -> None:
        inputs = drawn(case)
        module = nn.ModuleDict({"metric": case.make()})
        module["metric"].update(*part(case, inputs, slice(0, 30)))
        module.to(torch.bfloat16)
        module["metric"].update(*part(case, inputs, slice(30, 60)))
        assert torch.equal(module["metric"].compute(), after(case, inputs))

    @every_case
    def test_nan_comes_out_again(self, case: Case) -> None:
        inputs = drawn(case)
        inputs[0].view(-1)[7] = torch.nan
        metric = case.make()
        metric.update(*part(case, inputs, slice(0, 30)))
        metric.update(*part(case, inputs, slice(30, 60)))
        if isinstance(metric, RankedMetric):
            with pytest.warns(UserWarning, match="is NaN, since 1 of 60 scores are NaN"):
                assert metric.compute().isnan()
        else:
            assert metric.compute().isnan()

    @every_case
    def test_no_samples_have_no_value(self, case: Case) -> None:
        metric = case.make()
        metric.update(*drawn(case, n=0))
        if isinstance(metric, RankedMetric):
            with pytest.warns(UserWarning, match="is NaN, since there are no samples"):
                assert metric.compute().isnan()
        else:
            assert metric.compute().isnan()


def test_device_without_float64_takes_float32_states() -> None:
    def to_mps(tensor: Tensor) -> Tensor:
        if tensor.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return tensor.clone()

    metric = AURC()
    metric.update(torch.tensor([0.5]), torch.tensor([1]))
    metric._apply(to_mps)
    assert [state[0].dtype for state in metric.metric_state.values()] == [torch.float32, torch.bool]


def test_shapes_are_not_broadcast() -> None:
    check_shapes(mean=torch.zeros(2, 1), target=torch.zeros(2, 1))
    with pytest.raises(
        ValueError, match=r"Expected `target` to have the shape \(2, 1\) of `mean`, but got \(2,\); shapes"
    ):
        check_shapes(mean=torch.zeros(2, 1), target=torch.zeros(2))


@every_case
def test_plot_draws_the_value(case: Case) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    metric = case.make()
    metric.update(*drawn(case))
    _, axes = metric.plot()
    assert float(axes.lines[0].get_ydata()[0]) == pytest.approx(metric.compute().item())
    plt.close("all")

"""What passes say together: every statistic against float64 formulas over all passes, and outputs that fit no task."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_dropout.sampling import MCPrediction, Task
from lightning_dropout.sampling import prediction as prediction_file
from lightning_dropout.sampling.prediction import Statistics, check_outputs, check_task

T = 20


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def predict(passes: Any, task: Task, class_dim: int = 1, **arguments: Any) -> MCPrediction:
    statistics = Statistics(task, class_dim, **arguments)
    for outputs in passes:
        statistics.update(outputs)
    return statistics.result(passes[0])


def logits(*shape: int, dtype: torch.dtype = torch.float64, scale: float = 2.0) -> Tensor:
    return (torch.randn(T, *shape, dtype=torch.float64) * scale).to(dtype)


def close(actual: Tensor, expected: Any, atol: float = 1e-12) -> None:
    np.testing.assert_allclose(actual.double().numpy(), np.asarray(expected), rtol=0, atol=atol)


# Classes that exclude each other.


@pytest.mark.parametrize(("shape", "class_dim"), [((8, 5), 1), ((8, 5), -1), ((2, 5, 3, 4), 1), ((2, 3, 5), 2)])
def test_multiclass(shape: tuple[int, ...], class_dim: int) -> None:
    passes = logits(*shape)
    axis = class_dim if class_dim < 0 else class_dim + 1  # the passes come first
    probabilities = special.softmax(passes.numpy(), axis=axis)
    prediction = predict(passes, "multiclass", class_dim, keep_samples=True)
    close(prediction.mean, probabilities.mean(0))
    close(prediction.variance, probabilities.var(0, ddof=1))
    close(prediction.std, probabilities.std(0, ddof=1))
    close(prediction.entropy, stats.entropy(probabilities.mean(0), axis=class_dim))
    close(prediction.expected_entropy, stats.entropy(probabilities, axis=axis).mean(0))
    assert prediction.samples is not None
    close(prediction.samples, probabilities)
    winners = np.expand_dims(probabilities.argmax(axis), axis)
    votes = np.zeros_like(probabilities)
    np.put_along_axis(votes, winners, 1.0, axis)
    close(prediction.votes, votes.mean(0))
    close(prediction.variation_ratio, 1 - votes.mean(0).max(class_dim))
    close(prediction.votes.sum(class_dim), np.ones(prediction.entropy.shape))
    assert prediction.num_samples == T


def check_split(prediction: MCPrediction, num_classes: int, atol: float = 1e-12) -> None:
    """Total = expected + mutual information, and 0 <= mutual information <= min(ln C, ln T)."""
    information = prediction.mutual_information
    torch.testing.assert_close(
        prediction.entropy, prediction.expected_entropy + information, rtol=0, atol=atol, check_dtype=False
    )
    assert (information >= 0).all()
    assert (information <= math.log(min(num_classes, prediction.num_samples)) + atol).all()


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 1e-6)])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 100.0])
@pytest.mark.parametrize("num_samples", [1, 2, T])
def test_total_uncertainty_is_the_sum_of_its_parts(
    dtype: torch.dtype, atol: float, scale: float, num_samples: int
) -> None:
    passes = logits(500, 5, dtype=dtype, scale=scale)[:num_samples]
    check_split(predict(passes, "multiclass"), 5, atol)
    check_split(
        predict(passes.double().softmax(-1).to(dtype), "probabilities"), 5, 1e-2 if dtype.itemsize == 2 else atol
    )
    check_split(predict(passes, "multilabel"), 2, atol)


def with_entropies(change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Callable[[Tensor], MCPrediction]:
    def changed(passes: Tensor) -> MCPrediction:
        prediction = predict(passes, "multiclass")
        total, expected = change(prediction.entropy, prediction.expected_entropy)
        return replace(prediction, _entropy=total, _expected_entropy=expected)

    return changed


SPLIT_MUTANTS: dict[str, Callable[[Tensor], MCPrediction]] = {
    "swapped": with_entropies(lambda total, expected: (expected, total)),
    "expected entropy in bits": with_entropies(lambda total, expected: (total, expected / math.log(2))),
    "sum over the passes": with_entropies(lambda total, expected: (total, expected * T)),
    "entropies of the logits' mean": lambda passes: replace(
        predict(passes.mean(0, keepdim=True), "multiclass"), _expected_entropy=predict(passes, "multiclass").entropy
    ),
    "no expected entropy": with_entropies(lambda total, expected: (total + math.log(2), expected * 0)),
}


@pytest.mark.parametrize("bug", SPLIT_MUTANTS)
def test_every_planted_bug_breaks_the_split(bug: str) -> None:
    with pytest.raises(AssertionError):
        check_split(SPLIT_MUTANTS[bug](logits(500, 5)), 5)


def test_mutual_information_reaches_its_bound() -> None:
    """Passes that are sure of another class each disagree as much as T passes can."""
    certain = torch.eye(4, dtype=torch.float64) * 1e3
    close(predict([row[None] for row in certain], "multiclass").mutual_information, [math.log(4)])
    close(predict([row[None] for row in certain[:2]], "multiclass").mutual_information, [math.log(2)])
    close(predict([certain[:1]] * 4, "multiclass").mutual_information, [0.0])


# Enumeration: at p = 1/4 a thinned network with k of n places kept is run 3^k times among 4^n, so nothing is random.


def thinned(num_bits: int = 5) -> tuple[Tensor, Tensor]:
    """Return the outputs of every thinned network for a batch of 3, and how many of the 4^n passes run it."""
    kept = torch.tensor(list(itertools.product([0.0, 1.0], repeat=num_bits)), dtype=torch.float64)
    weight, head = torch.randn(num_bits, 6, dtype=torch.float64), torch.randn(6, 8, dtype=torch.float64)
    x = torch.randn(3, num_bits, dtype=torch.float64)
    outputs = torch.tanh((kept[:, None] * x / 0.75) @ weight) @ head / 2
    return outputs, 3 ** kept.sum(1).long()


def check_enumeration(task: Task, sample: Callable[[Tensor, Task], MCPrediction]) -> None:
    outputs, times = thinned()
    prediction = sample(outputs.repeat_interleave(times, 0), task)
    weights = (times / times.sum())[:, None, None]
    count = int(times.sum())
    if task == "gaussian":
        means, noise = outputs[..., :4], outputs[..., 4:].exp()
        mean = (weights * means).sum(0)
        spread = (weights * (means - mean) ** 2).sum(0)
        expected = {
            "mean": mean,
            "variance": spread * count / (count - 1),
            "aleatoric_variance": (weights * noise).sum(0),
            "epistemic_variance": spread,
            "total_variance": (weights * (noise + means**2)).sum(0) - mean**2,
        }
    else:
        p = outputs.softmax(2) if task == "multiclass" else outputs.sigmoid()
        mean = (weights * p).sum(0)

        def entropy(p: Tensor) -> Tensor:
            if task == "multiclass":
                return torch.special.entr(p).sum(-1)
            return torch.special.entr(p) + torch.special.entr(1 - p)

        single = (weights.reshape(-1, *[1] * (entropy(p).ndim - 1)) * entropy(p)).sum(0)
        expected = {
            "mean": mean,
            "variance": (weights * (p - mean) ** 2).sum(0) * count / (count - 1),
            "entropy": entropy(mean),
            "expected_entropy": single,
            "mutual_information": entropy(mean) - single,
            "logits": mean.log() if task == "multiclass" else mean.logit(),
        }
    assert prediction.num_samples == 4**5
    for name, value in expected.items():
        close(getattr(prediction, name), value)


EXACT: list[Task] = ["multiclass", "multilabel", "gaussian"]


@pytest.mark.parametrize("task", EXACT)
def test_all_thinned_networks_together_are_exact(task: Task) -> None:
    check_enumeration(task, predict)


def every_other(passes: Tensor, task: Task) -> MCPrediction:
    return replace(predict(passes[::2], task), num_samples=len(passes))


def one_missing(passes: Tensor, task: Task) -> MCPrediction:
    return replace(predict(passes[1:], task), num_samples=len(passes))


def in_single_precision(passes: Tensor, task: Task) -> MCPrediction:
    return predict(passes.float(), task)


def of_the_mean_output(passes: Tensor, task: Task) -> MCPrediction:
    one = predict(passes.mean(0, keepdim=True), task)
    return replace(predict(passes, task), mean=one.mean, _aleatoric_variance=one._aleatoric_variance)


def correction_0(passes: Tensor, task: Task) -> MCPrediction:
    prediction = predict(passes, task)
    return replace(prediction, variance=prediction.variance * (len(passes) - 1) / len(passes))


@pytest.mark.parametrize("task", EXACT)
@pytest.mark.parametrize("bug", [every_other, one_missing, in_single_precision, of_the_mean_output, correction_0])
def test_every_planted_bug_differs_from_the_enumeration(
    task: Task, bug: Callable[[Tensor, Task], MCPrediction]
) -> None:
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        check_enumeration(task, bug)


def test_averaging_logits_is_killed() -> None:
    passes = logits(8, 5)
    assert not np.allclose(passes.mean(0).softmax(1), predict(passes, "multiclass").mean, atol=1e-2)


@pytest.mark.parametrize("task", ["multiclass", "probabilities"])
def test_single_precision_is_as_good_as_it_can_be(task: Task) -> None:
    passes = logits(8, 5) if task == "multiclass" else logits(8, 5).softmax(2)
    exact, single = predict(passes, task), predict(passes.float(), task)
    for name in ("mean", "std", "entropy", "expected_entropy", "votes"):
        torch.testing.assert_close(getattr(single, name).double(), getattr(exact, name), rtol=1e-6, atol=1e-6)


def test_probabilities_are_taken_as_they_are() -> None:
    passes = logits(8, 5).softmax(2)
    prediction, same = predict(passes, "probabilities"), predict(passes.log(), "multiclass")
    for name in ("mean", "variance", "entropy", "expected_entropy", "votes", "variation_ratio"):
        close(getattr(prediction, name), getattr(same, name))
    assert prediction.predictive is prediction.predictive
    close(prediction.predictive, prediction.mean)


def test_impossible_classes_are_no_trouble() -> None:
    masked = logits(4, 3)
    masked[..., 0] = -math.inf
    certain = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    for prediction in (predict(masked, "multiclass"), predict([certain, certain], "probabilities")):
        assert prediction.entropy.isfinite().all()
        assert prediction.std.isfinite().all()
        assert (prediction.mean[:, 0] == 0).all()


def check_underflow(places: tuple[int, ...], task: Task = "multiclass", beside: float = 0.0) -> None:
    """Log-probabilities down to -10 000 at ``places`` among the passes, ``beside`` a masked class or a lost sample."""
    passes = logits(6, 5)
    passes[:, 1] += 1e4 if task == "multiclass" else 0.0
    for place in places:
        passes[place, 0, 2] = -1e4 - place
        passes[place, 3] *= 500
        passes[place, 4, 0] = beside
    if task == "multiclass":
        expected = special.logsumexp(special.log_softmax(passes.numpy(), 2), axis=0) - math.log(T)
    else:
        logs = [special.logsumexp(-np.logaddexp(0, -sign * passes.numpy()), axis=0) for sign in (1, -1)]
        expected = logs[0] - logs[1]
    np.testing.assert_allclose(predict(passes, task).logits, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
@pytest.mark.parametrize("places", [(), (0,), (7,), (T - 1,), tuple(range(T))], ids=str)
@pytest.mark.parametrize("beside", [0.0, -math.inf, math.nan])
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # scipy, of NaN
def test_logits_of_the_mean_are_exact_where_probabilities_underflow(
    places: tuple[int, ...], task: Task, beside: float
) -> None:
    check_underflow(places, task, beside)


class Forgetful(prediction_file.LogMeanExp):
    """Knows nothing of the passes before the first underflow."""

    def __init__(self, mean: Tensor | None = None, count: int = 0) -> None:
        super().__init__()


@pytest.mark.parametrize(("name", "bug", "begin"), [("_LEAST_LOG", -math.inf, 0), ("LogMeanExp", Forgetful, 7)])
def test_underflow_that_nobody_sees_and_passes_that_are_forgotten_are_killed(
    name: str, bug: Any, begin: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction_file, name, bug)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        check_underflow(tuple(range(begin, T)))


class Operations(TorchDispatchMode):
    """Notes each operation that reads or writes a tensor of some size."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.names = size, []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(isinstance(value, Tensor) and value.numel() >= self.size for value in (*args, result)):
            self.names.append(func.overloadpacket.__name__)
        return result


def test_a_pass_of_classes_goes_over_memory_few_times() -> None:
    """With one exponential and no logarithm for each class, unless one underflows."""
    statistics, outputs = Statistics("multiclass", 1), logits(64, 100, dtype=torch.float32)

    def of_pass(number: int, scale: float = 1.0) -> list[str]:
        with Operations(6400) as operations:
            statistics.update(outputs[number] * scale)
        return operations.names[1:]  # but for the scaling

    of_pass(0)
    names = of_pass(1)
    assert len(names) <= 14
    assert names.count("exp") == 1
    assert not {"log", "log_softmax", "_log_softmax", "logaddexp", "xlogy", "special_entr"} & set(names)
    assert "logaddexp" in of_pass(2, scale=1e3)


# One or several binary decisions.


@pytest.mark.parametrize(("task", "shape"), [("binary", (8,)), ("binary", (8, 1)), ("multilabel", (8, 3))])
def test_bernoulli(task: Task, shape: tuple[int, ...]) -> None:
    passes = logits(*shape)
    probabilities = special.expit(passes.numpy())
    prediction = predict(passes, task)
    close(prediction.mean, probabilities.mean(0))
    close(prediction.variance, probabilities.var(0, ddof=1))
    close(prediction.votes, (passes.numpy() > 0).mean(0))
    pairs = np.stack([probabilities, 1 - probabilities])
    without_class = shape[:1] if task == "binary" else shape
    close(prediction.entropy, stats.entropy(pairs.mean(1)).reshape(without_class))
    close(prediction.expected_entropy, stats.entropy(pairs).mean(0).reshape(without_class))
    minority = np.minimum(prediction.votes.numpy(), 1 - prediction.votes.numpy())
    close(prediction.variation_ratio, minority.reshape(without_class))
    check_split(prediction, 2)


def test_binary_is_multiclass_with_two_classes() -> None:
    passes = logits(8, 1)
    binary = predict(passes, "binary")
    two = predict(torch.cat([torch.zeros_like(passes), passes], 2), "multiclass")
    close(binary.mean[:, 0], two.mean[:, 1])
    close(binary.mutual_information, two.mutual_information)


def test_binary_maps_without_a_class_dimension() -> None:
    prediction = predict(logits(2, 6, 6), "binary", class_dim=3)
    assert prediction.entropy.shape == prediction.mean.shape == (2, 6, 6)
    assert predict(logits(2, 1, 6, 6), "binary").entropy.shape == (2, 6, 6)


# Values.


@pytest.mark.parametrize("task", ["raw", "regression"])
@pytest.mark.parametrize("shape", [(8,), (8, 3), (2, 3, 4)])
def test_values(task: Task, shape: tuple[int, ...]) -> None:
    passes = logits(*shape)
    prediction = predict(passes, task, keep_samples=True)
    close(prediction.mean, passes.numpy().mean(0))
    close(prediction.std, passes.numpy().std(0, ddof=1))
    assert isinstance(prediction.predictive, Tensor)
    close(prediction.predictive, prediction.mean)
    assert prediction.samples is not None
    assert torch.equal(prediction.samples, passes)
    assert prediction.uncertainties() == {}
    for name in ("entropy", "expected_entropy", "mutual_information", "votes", "variation_ratio", "total_variance"):
        with pytest.raises(AttributeError, match=rf'^`{name}` is not defined for task="{task}"'):
            getattr(prediction, name)


# Mean and log-variance heads.


@pytest.mark.parametrize("num_samples", [1, 2, T])
def test_total_variance_is_that_of_the_mixture(num_samples: int) -> None:
    means, log_variances = logits(8, 3)[:num_samples], logits(8, 3)[:num_samples]
    prediction = predict(list(zip(means, log_variances, strict=True)), "gaussian")
    second_moment = (log_variances.exp() + means.square()).mean(0)  # of the mixture, directly
    close(prediction.mean, means.mean(0))
    close(prediction.total_variance, second_moment - means.mean(0).square())
    close(prediction.aleatoric_variance, log_variances.exp().mean(0))
    close(prediction.epistemic_variance, means.numpy().var(0))
    close(prediction.total_variance, prediction.aleatoric_variance + prediction.epistemic_variance)
    assert set(prediction.uncertainties()) == {"aleatoric_variance", "epistemic_variance"}
    # The unbiased variance in its place would break the law of total variance.
    if num_samples > 1:
        wrong = prediction.aleatoric_variance + prediction.variance
        assert not np.allclose(wrong, second_moment - means.mean(0).square(), atol=1e-3)


@pytest.mark.parametrize("class_dim", [1, -1, 2])
def test_two_halves_are_a_pair(class_dim: int) -> None:
    means, log_variances = logits(4, 6, 2), logits(4, 6, 2)
    dim = class_dim if class_dim < 0 else class_dim + 1
    pair = predict(list(zip(means, log_variances, strict=True)), "gaussian", class_dim)
    halves = predict(torch.cat([means, log_variances], dim), "gaussian", class_dim)
    for name in ("mean", "variance", "total_variance"):
        assert torch.equal(getattr(pair, name), getattr(halves, name))
    assert isinstance(pair.predictive, tuple)
    assert isinstance(halves.predictive, Tensor)
    assert torch.equal(torch.cat(pair.predictive, class_dim), halves.predictive)


# The predictive in the form of the model's own output.


def test_predictive_in_the_models_form_means_the_mean() -> None:
    for shape in [(8, 5), (3, 5, 4)]:
        prediction = predict(logits(*shape), "multiclass")
        assert isinstance(prediction.predictive, Tensor)
        close(prediction.predictive.exp(), prediction.mean)
        close(prediction.predictive.softmax(1), prediction.mean)
        assert torch.equal(prediction.predictive.argmax(1), prediction.mean.argmax(1))
    for task in ("binary", "multilabel"):
        prediction = predict(logits(8, 1), task)
        assert isinstance(prediction.predictive, Tensor)
        close(prediction.predictive.sigmoid(), prediction.mean)
    prediction = predict(list(zip(logits(8, 1), logits(8, 1), strict=True)), "gaussian")
    mean, log_variance = prediction.predictive
    close(mean, prediction.mean)
    close(log_variance.exp(), prediction.total_variance)


@pytest.mark.parametrize("task", ["multiclass", "binary"])
def test_predictive_stays_finite_where_probabilities_underflow(task: Task) -> None:
    outputs = torch.tensor([[500.0, -500.0]]) if task == "multiclass" else torch.tensor([[500.0]])
    prediction = predict([outputs, outputs], task)
    assert isinstance(prediction.predictive, Tensor)
    assert prediction.predictive.isfinite().all()
    expected = [[0.0, -1000.0]] if task == "multiclass" else [[500.0]]
    close(prediction.predictive, expected)


def test_cross_entropy_of_the_predictive_is_the_negative_log_likelihood_of_the_mean() -> None:
    prediction = predict(logits(8, 5), "multiclass")
    labels = torch.randint(0, 5, (8,))
    expected = -prediction.mean[torch.arange(8), labels].log().mean()
    assert isinstance(prediction.predictive, Tensor)
    torch.testing.assert_close(torch.nn.functional.cross_entropy(prediction.predictive, labels), expected)


# One pass, precision.


@pytest.mark.parametrize(
    "task", ["multiclass", "binary", "multilabel", "regression", "raw", "probabilities", "gaussian"]
)
def test_one_pass_has_no_spread(task: Task) -> None:
    outputs = torch.randn(4, 1 if task == "binary" else 2)
    prediction = predict([outputs.softmax(1) if task == "probabilities" else outputs], task)
    assert prediction.std.isnan().all()
    assert prediction.variance.isnan().all()
    assert prediction.mean.isfinite().all()
    assert torch.as_tensor(prediction.predictive).isfinite().all()
    if task == "gaussian":
        assert not prediction.epistemic_variance.any()
    elif task not in ("raw", "regression"):
        close(prediction.mutual_information, torch.zeros_like(prediction.entropy))
        assert not prediction.variation_ratio.any()


@pytest.mark.parametrize("task", ["multiclass", "binary", "multilabel", "regression", "raw", "gaussian"])
@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
    ids=str,
)
def test_statistics_never_leave_in_half_precision(task: Task, dtype: torch.dtype, expected: torch.dtype) -> None:
    passes = logits(4, 1 if task == "binary" else 2, dtype=dtype)
    prediction = predict(passes, task, keep_samples=True)
    tensors = {name: value for name, value in vars(prediction).items() if isinstance(value, Tensor)}
    assert tensors.pop("num_invalid").dtype == torch.int64
    assert {"mean", "variance", "predictive", "samples"} <= set(tensors)
    assert {name: tensor.dtype for name, tensor in tensors.items()} == dict.fromkeys(tensors, expected)
    assert (prediction.variance > 0).all()


def check_small_spread(variance: Callable[[Tensor], Tensor]) -> None:
    passes = logits(50, 2, dtype=torch.bfloat16, scale=0.02) + 1
    expected = passes.double().numpy().var(0, ddof=1)
    np.testing.assert_allclose(variance(passes).double(), expected, rtol=1e-5)


def test_variance_of_bfloat16_outputs() -> None:
    check_small_spread(lambda passes: predict(passes, "raw").variance)
    with pytest.raises(AssertionError):
        check_small_spread(lambda passes: passes.var(0))
    with pytest.raises(AssertionError):
        check_small_spread(lambda passes: passes.square().mean(0) - passes.mean(0).square())


def test_nan_outputs_give_nan_and_are_not_dropped() -> None:
    passes = logits(3, 4)
    passes[1, 0, 0] = math.nan
    prediction = predict(passes, "multiclass")
    assert prediction.mean.isnan().any(1).tolist() == [True, False, False]
    assert prediction.entropy.isnan().tolist() == [True, False, False]


NAN, INF = math.nan, math.inf
INVALID: dict[str, tuple[Task, list[Any], list[int]]] = {  # passes of a batch of 2, and how many each sample lost
    "NaN": ("multiclass", [[[0.0, NAN], [1.0, 0.0]], [[0.0, NAN], [0.0, 1.0]]], [2, 0]),
    "an overflow": ("multiclass", [[[0.0, INF], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]], [1, 0]),
    "a masked class": ("multiclass", [[[0.0, -INF], [1.0, 0.0]], [[0.0, -INF], [0.0, 1.0]]], [0, 0]),
    "all classes masked": ("multiclass", [[[0.0, -INF], [-INF, -INF]], [[0.0, 1.0], [0.0, 1.0]]], [0, 1]),
    "one pixel": ("multiclass", [[[[0.0, NAN], [0.0, 1.0]], [[0.0, 0.0], [1.0, 1.0]]]], [1, 0]),
    "binary": ("binary", [[NAN, 1.0], [0.0, INF], [-INF, 0.0]], [1, 1]),
    "a column": ("binary", [[[NAN], [1.0]], [[0.0], [1.0]]], [1, 0]),
    "multilabel": ("multilabel", [[[0.0, INF], [0.0, -INF]], [[NAN, NAN], [0.0, 0.0]]], [2, 0]),
    "values": ("regression", [[[0.0, 1.0], [NAN, 1.0]], [[-INF, 1.0], [INF, -INF]]], [1, 2]),
    "raw": ("raw", [[-INF, 0.0], [0.0, 1.0]], [1, 0]),
    "probabilities": ("probabilities", [[[0.5, 0.5], [NAN, 1.0]], [[0.0, 1.0], [INF, -INF]]], [0, 2]),
    "log-variances": ("gaussian", [[[0.0, NAN], [0.0, 1e4]], [[0.0, -INF], [INF, -INF]]], [1, 2]),
}


def check_invalid(name: str) -> None:
    task, passes, expected = INVALID[name]
    tensors = [torch.tensor(outputs, dtype=torch.float64) for outputs in passes]
    prediction = predict(tensors, task)
    assert prediction.num_invalid.tolist() == expected
    assert prediction.num_invalid.dtype == torch.int64
    spread = predict([*tensors, tensors[-1].nan_to_num(0.0, 0.0, 0.0)], task).variance.reshape(2, -1)
    log_variances = prediction.total_variance.reshape(2, -1) if task == "gaussian" else spread
    lost = ~(spread.isfinite() & log_variances.isfinite()).all(1)
    assert lost.tolist() == [count > 0 for count in expected], "what is counted is what is lost"


@pytest.mark.parametrize("name", INVALID)
def test_what_is_no_value_is_counted_for_each_sample_and_makes_its_results_nan(name: str) -> None:
    check_invalid(name)


@pytest.mark.parametrize(
    ("bug", "name"),
    [
        (lambda self, values: None, "NaN"),
        (lambda self, values: setattr(self, "_invalid", self._invalid + values.isnan().flatten(1).sum(1)), "values"),
        (lambda self, values: setattr(self, "_invalid", self._invalid + ~values.isfinite().all()), "NaN"),
    ],
    ids=["nothing", "elements", "batches"],
)
def test_another_count_is_killed(bug: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Statistics, "_count_invalid", bug)
    with pytest.raises(AssertionError):
        check_invalid(name)


def test_single_numbers_are_counted_together() -> None:
    assert predict([torch.tensor(NAN), torch.tensor(1.0)], "raw").num_invalid.tolist() == 1
    assert predict([torch.tensor([NAN, 1.0])] * 2, "multiclass", 0).num_invalid.tolist() == 2
    assert predict([torch.tensor([[NAN, 1.0, 1.0], [1.0, 1.0, 1.0]])] * 2, "multiclass", 0).num_invalid.tolist() == [
        2, 0, 0,
    ]  # fmt: skip


# Quantiles.


@pytest.mark.parametrize("q", [0.0, 0.3, 1, [0.5], [0.1, 0.5, 0.9], torch.tensor([0.25, 1.0])], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("most", [2**24, T * 7, 1], ids=["one piece", "ragged pieces", "columns"])
def test_quantiles_are_numpys(q: Any, dtype: torch.dtype, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction_file, "_MOST_FOR_QUANTILE", most)
    prediction = predict(logits(6, 5, dtype=dtype), "multiclass", keep_samples=True)
    assert prediction.samples is not None
    quantiles = prediction.quantile(q)
    assert quantiles.dtype == prediction.mean.dtype
    close(quantiles, np.quantile(prediction.samples.double().numpy(), np.asarray(q), axis=0), atol=1e-6)


@pytest.mark.parametrize("shape", [(), (3,), (2, 1, 3)])
def test_quantiles_have_the_shape_of_the_mean(shape: tuple[int, ...]) -> None:
    prediction = predict(list(logits(*shape)), "raw", keep_samples=True)
    assert prediction.quantile(0.5).shape == shape
    assert prediction.quantile([0.1, 0.9]).shape == (2, *shape)
    assert predict([torch.ones(shape)], "raw", keep_samples=True).quantile(0.3).equal(torch.ones(shape))


def test_quantiles_need_samples_and_probabilities() -> None:
    passes = logits(3, 4)
    with pytest.raises(
        RuntimeError, match=r"Expected passes to take quantiles of, but got none; .*return_samples=True"
    ):
        predict(passes, "raw").quantile(0.5)
    prediction = predict(passes, "raw", keep_samples=True)
    for q in (-0.1, 1.1, math.nan, [0.5, 2.0], [[0.5]]):
        with pytest.raises(ValueError, match="Expected `q` to be one or several probabilities"):
            prediction.quantile(q)  # type: ignore[arg-type]


def test_nan_has_no_quantiles() -> None:
    passes = logits(3, 4)
    passes[1, 0, 0] = math.nan
    assert predict(passes, "raw", keep_samples=True).quantile(0.5).isnan().sum() == 1


# What others write to.


@pytest.mark.parametrize("task", ["multiclass", "multilabel", "probabilities", "raw", "gaussian"])
def test_a_prediction_is_nobody_elses(task: Task) -> None:
    """Not the model's, which may return one buffer in all passes, nor the sums', nor the user's."""
    passes = logits(4, 6).softmax(2) if task == "probabilities" else logits(4, 6)
    expected, statistics, buffer = (
        predict(passes, task, keep_samples=True),
        Statistics(task, 1, keep_samples=True),
        None,
    )
    buffer = torch.empty_like(passes[0])
    for outputs in passes:
        statistics.update(buffer.copy_(outputs))
    prediction = statistics.result(buffer)
    assert buffer.equal(passes[-1])
    statistics.update(buffer.zero_())
    prediction.predictive.fill_(7.0)
    names = [name for name, value in vars(expected).items() if isinstance(value, Tensor) and name != "predictive"]
    assert {"mean", "variance", "samples", "num_invalid"} <= set(names)
    for name in names:
        torch.testing.assert_close(getattr(prediction, name), getattr(expected, name), rtol=0, atol=0)


def test_logits_of_the_mean_by_name() -> None:
    prediction = predict(logits(3, 4), "multiclass")
    assert prediction.logits.equal(prediction.predictive)
    filled = replace(prediction, predictive={"logits": prediction.predictive})
    assert filled.logits.equal(prediction.predictive)
    for task in ("probabilities", "raw", "gaussian"):
        with pytest.raises(AttributeError, match=rf'^`logits` is not defined for task="{task}"'):
            _ = predict(logits(3, 4).softmax(2), task).logits


def test_uncertainties_by_name() -> None:
    prediction = predict(logits(3, 4), "multiclass")
    assert set(prediction.uncertainties()) == {"entropy", "mutual_information"}
    assert prediction.uncertainties()["entropy"] is prediction.entropy
    for name in ("aleatoric_variance", "epistemic_variance", "total_variance"):
        with pytest.raises(AttributeError, match=rf'^`{name}` is not defined for task="multiclass"'):
            getattr(prediction, name)


# Outputs that fit no task, or another.

ONE, TWO, FIVE = torch.randn(4, 1), torch.randn(4, 2), torch.randn(4, 5)


@pytest.mark.parametrize(
    ("outputs", "task", "message"),
    [
        (ONE, "multiclass", 'at least two classes for task="multiclass", but got one; pass task="binary"'),
        (ONE.sigmoid(), "probabilities", 'at least two classes for task="probabilities", but got one'),
        (FIVE.softmax(1), "multiclass", 'Expected logits .* but got outputs that sum to 1; pass task="probabilities"'),
        (FIVE, "probabilities", 'Expected outputs that sum to 1 .* pass task="multiclass" for logits'),
        (FIVE.log_softmax(1), "probabilities", 'Expected outputs that sum to 1 .* pass task="multiclass"'),
        (TWO, "binary", r'one logit a sample .* but got shape \(4, 2\); pass task="multilabel" .* task="multiclass"'),
        (ONE[:, 0], "multiclass", r'a class dimension 1 for task="multiclass", but got shape \(4,\); pass `class_dim='),
        (ONE[:, 0], "gaussian", 'a class dimension 1 for task="gaussian"'),
        (FIVE, "gaussian", 'means and log-variances for task="gaussian", but got 5 outputs, an odd number'),
        ((ONE, ONE[:, 0]), "gaussian", r"of one shape, but got \(4, 1\) and \(4,\), which would broadcast"),
        ((ONE, ONE, ONE), "gaussian", "a floating tensor or a pair of them, but got tuple"),
        ((ONE, "log-variance"), "gaussian", "but got str"),
        ((ONE, ONE), "regression", "a floating tensor, but got tuple"),
        ({"logits": FIVE}, "multiclass", "a floating tensor, but got dict; sample a function of it that returns"),
        (FIVE.argmax(1), "multiclass", "a floating tensor, but got a torch.int64 tensor"),
        (FIVE > 0, "raw", "a floating tensor, but got a torch.bool tensor"),
        (torch.ones(2, dtype=torch.complex64), "raw", "a floating tensor, but got a torch.complex64 tensor"),
        (None, "raw", "a floating tensor, but got NoneType"),
        (torch.empty(0, 5), "multiclass", r"Expected at least one sample, but got outputs of shape \(0, 5\)"),
        (torch.empty(0), "raw", r"Expected at least one sample, but got outputs of shape \(0,\)"),
    ],
)
def test_outputs_that_do_not_fit_are_refused(outputs: Any, task: Task, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_outputs(outputs, task, 1)


@pytest.mark.parametrize(
    ("outputs", "task", "class_dim"),
    [
        (FIVE, "multiclass", 1),
        (FIVE.log_softmax(1), "multiclass", 1),  # log-probabilities are logits
        (torch.zeros(4, 5), "multiclass", 1),  # a head initialised to zero
        (FIVE.softmax(1), "probabilities", 1),
        (FIVE.softmax(1), "raw", 1),
        (FIVE.softmax(1), "multilabel", 1),
        (FIVE.T.softmax(0), "probabilities", 0),
        (torch.full((2, 3), math.nan), "probabilities", 1),  # diverged, which the result says
        (ONE, "binary", 1),
        (ONE[:, 0], "binary", 1),
        (TWO, "gaussian", 1),
        ((ONE, ONE), "gaussian", 1),
        (ONE[:, 0], "regression", 1),
        (torch.tensor(1.0), "raw", 1),
    ],
)
def test_outputs_that_fit_come_back_as_they_are(outputs: Any, task: Task, class_dim: int) -> None:
    assert check_outputs(outputs, task, class_dim) is outputs or task == "gaussian"


def test_a_list_of_two_heads_is_a_pair() -> None:
    pair = check_outputs([ONE, ONE], "gaussian", 1)
    assert isinstance(pair, tuple)
    assert pair[0] is ONE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("num_classes", [2, 10, 1000])
def test_probabilities_are_recognised_in_every_precision(dtype: torch.dtype, num_classes: int) -> None:
    probabilities = (torch.randn(4000, num_classes) * 3).softmax(1).to(dtype)
    assert check_outputs(probabilities, "probabilities", 1) is probabilities
    with pytest.raises(ValueError, match='pass task="probabilities"'):
        check_outputs(probabilities, "multiclass", 1)


def test_a_single_sample_that_sums_to_1_among_others_is_no_probability() -> None:
    outputs = torch.tensor([[0.3, 0.7], [0.3, 0.9]])
    assert check_outputs(outputs, "multiclass", 1) is outputs


@pytest.mark.parametrize("task", ["classification", "Multiclass", "", None, ["raw"]], ids=repr)
def test_an_unknown_task_is_refused(task: Any) -> None:
    with pytest.raises(ValueError, match=r"^Expected `task` to be one of binary, multiclass, .* there is no default"):
        check_task(task)

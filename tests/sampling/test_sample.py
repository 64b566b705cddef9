"""Sampling tested as statistics, each check with the bugs it kills; then the guards, and what is given back.

Statistics run from fixed seeds; under fresh seeds each z-value has a chance of a false alarm of about 2.5e-6.
"""

import functools
import itertools
import random
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pytest
import timm.layers
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_dropout.models import MLP, Net, ResNet, ViT
from lightning_dropout.nn import Dropout, DropPath, StochasticDepth
from lightning_dropout.randomness import derive_seed
from lightning_dropout.sampling import MCPrediction, mc_sample
from lightning_dropout.sampling import batch as batch_file
from lightning_dropout.sampling import sample as sample_file
from lightning_dropout.sampling import witness as witness_file
from lightning_dropout.sampling.prediction import Statistics
from lightning_dropout.sites import find_sites, register_adapter
from lightning_dropout.sites.adapters import registry

Z_LIMIT = 4.71

Sampler = Callable[..., MCPrediction]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters registered in the test are forgotten after it."""
    monkeypatch.setattr(registry, "_ADAPTERS", {key: list(adapters) for key, adapters in registry._ADAPTERS.items()})


# Closed form: for y = W (m * x) / (1 - p) + b, E[y] = W x + b and Var[y] = p / (1 - p) * sum (w x)^2.


def check_linear_closed_form(sample: Sampler, p: float) -> None:
    num_samples, rows = 10, 20_000
    linear = nn.Linear(8, 3).double()
    model = nn.Sequential(nn.Dropout(p), linear).eval()
    x = torch.randn(8, dtype=torch.float64)
    prediction = sample(model, x.expand(rows, -1), num_samples=num_samples, task="raw")
    terms = linear.weight.detach() * x / (1 - p)  # what each input adds while it is kept
    keep = 1 - p
    variance = p * keep * terms.square().sum(1)
    # Cumulants add up; the fourth of a coin is k (1 - k) (1 - 6 k (1 - k)).
    fourth = p * keep * (1 - 6 * p * keep) * terms.pow(4).sum(1) + 3 * variance.square()
    mean_error = prediction.mean.mean(0) - linear(x).detach()
    z_mean = mean_error / (variance / (rows * num_samples)).sqrt()
    assert z_mean.abs().max() < Z_LIMIT, f"mean is off, z={z_mean}"
    spread = (fourth - variance.square() * (num_samples - 3) / (num_samples - 1)) / num_samples
    z_variance = (prediction.variance.mean(0) - variance) / (spread / rows).sqrt()
    assert z_variance.abs().max() < Z_LIMIT, f"variance is off, z={z_variance}"


@pytest.mark.parametrize("p", [0.05, 0.3, 0.5, 0.9])
def test_a_linear_layer_has_the_moments_of_the_closed_form(p: float) -> None:
    check_linear_closed_form(mc_sample, p)


def with_rate(change: Callable[[float], float]) -> Sampler:
    def sample(model: Any, *args: Any, **arguments: Any) -> MCPrediction:
        return mc_sample(model, *args, rates=change(model[0].p), **arguments)

    return sample


def one_mask_for_all_passes(model: nn.Module, x: Tensor, num_samples: int, task: Any) -> MCPrediction:
    model[0].training = True  # type: ignore[index]
    torch.manual_seed(0)
    outputs = model(x)
    statistics = Statistics(task, 1)
    for _ in range(num_samples):
        statistics.update(outputs.detach())
    return statistics.result(outputs)


def biased(*args: Any, **arguments: Any) -> MCPrediction:
    prediction = mc_sample(*args, **arguments)
    factor = (prediction.num_samples - 1) / prediction.num_samples
    return MCPrediction("raw", prediction.num_samples, prediction.mean, prediction.variance * factor, prediction.mean)


CLOSED_FORM_MUTANTS: dict[str, Sampler] = {
    "rate 5 % too high": with_rate(lambda p: p * 1.05),
    "p and 1 - p swapped": with_rate(lambda p: 1 - p),
    "no masks between passes": one_mask_for_all_passes,
    "correction 0": biased,
    "eval mode": lambda model, x, **_: MCPrediction("raw", 1, model(x).detach(), torch.zeros(len(x), 3), x),
}


@pytest.mark.parametrize("bug", CLOSED_FORM_MUTANTS)
def test_every_planted_bug_breaks_the_closed_form(bug: str) -> None:
    with pytest.raises(AssertionError):
        check_linear_closed_form(CLOSED_FORM_MUTANTS[bug], 0.3)


# Enumeration: with 12 coins all 4096 thinned networks can be run.


class TwoPlaces(nn.Module):
    """Five coins before the first layer, seven before the second, and both masks can be given from outside."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.drop1, self.fc1 = nn.Dropout(p), nn.Linear(5, 7)
        self.drop2, self.fc2 = nn.Dropout(p), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.fc2(self.drop2(torch.tanh(self.fc1(self.drop1(x)))))
        return output

    def thinned(self, x: Tensor, kept: Tensor, p: float) -> Tensor:
        first, second = kept[:, :5] / (1 - p), kept[:, 5:] / (1 - p)
        output: Tensor = self.fc2(torch.tanh(self.fc1(x * first)) * second)
        return output


def two_places(p: float) -> tuple[TwoPlaces, Tensor, Tensor, Tensor]:
    """Return a model, an input, the probabilities of all its thinned networks' classes, and how likely each is."""
    model = TwoPlaces(p).double().eval()
    with torch.no_grad():
        model.fc2.weight.mul_(4)
    x = torch.randn(5, dtype=torch.float64)
    kept = torch.tensor(list(itertools.product([0.0, 1.0], repeat=12)), dtype=torch.float64)
    weights = ((1 - p) ** kept * p ** (1 - kept)).prod(1)
    probabilities = model.thinned(x, kept, p).softmax(1).detach()
    return model, x, probabilities, weights


def entropy(probabilities: Tensor) -> Tensor:
    return torch.special.entr(probabilities).sum(-1)


def check_against_enumeration(sample: Sampler, p: float) -> None:
    """Mean, variance, entropy, expected entropy and mutual information by z-test with exact standard errors."""
    num_samples, rows = 1500, 8
    model, x, probabilities, weights = two_places(p)

    def expect(values: Tensor) -> Tensor:
        return (weights[:, None] * values.reshape(len(values), -1)).sum(0)

    mean = expect(probabilities)
    deviations = probabilities - mean
    variance, fourth = expect(deviations**2), expect(deviations**4)
    entropies = entropy(probabilities)
    # Influence of one pass on the entropy of the mean; its variance is that of the estimate, times T.
    influence = -(deviations * (mean.log() + 1)).sum(1)
    about = {
        "mean": (mean, variance),
        "variance": (variance, fourth - variance**2),
        "entropy": (entropy(mean), expect(influence**2)),
        "expected_entropy": (expect(entropies), expect(entropies**2) - expect(entropies) ** 2),
        "mutual_information": (
            entropy(mean) - expect(entropies),
            expect((influence - (entropies - expect(entropies))) ** 2),
        ),
    }
    prediction = sample(model, x.expand(rows, -1), num_samples=num_samples, task="multiclass")
    for name, (exact, spread) in about.items():
        z = (getattr(prediction, name) - exact) / (spread / num_samples).sqrt()
        assert z.abs().max() < Z_LIMIT, f"{name} is off, z={z}"
        pooled = (getattr(prediction, name).mean(0) - exact) / (spread / num_samples / rows).sqrt()
        assert pooled.abs().max() < Z_LIMIT, f"{name} is off over all rows, z={pooled}"


@pytest.mark.parametrize("p", [0.2, 0.5])
def test_passes_agree_with_the_enumeration_of_all_thinned_networks(p: float) -> None:
    check_against_enumeration(mc_sample, p)


ENUMERATION_MUTANTS: dict[str, Sampler] = {
    "only the first place": lambda *args, **arguments: mc_sample(*args, sites="drop1", **arguments),
    "only the second place": lambda *args, **arguments: mc_sample(*args, sites="drop2", **arguments),
    "rate 10 % too high": lambda model, *args, **arguments: mc_sample(
        model, *args, rates=model.drop1.p * 1.1, **arguments
    ),
}


@pytest.mark.parametrize("bug", ENUMERATION_MUTANTS)
def test_every_planted_bug_differs_from_the_enumeration(bug: str) -> None:
    with pytest.raises(AssertionError):
        check_against_enumeration(ENUMERATION_MUTANTS[bug], 0.2)


def test_statistics_over_all_thinned_networks_are_exact() -> None:
    """At p = 1/2 all masks are equally likely, so the 4096 of them are a sample without error."""
    _, _, probabilities, weights = two_places(0.5)
    assert torch.allclose(weights, weights[0])
    statistics = Statistics("multiclass", 1)
    for row in probabilities:
        statistics.update(row.log()[None])
    prediction = statistics.result(probabilities[:1])
    mean = (weights[:, None] * probabilities).sum(0)
    exact = {
        "mean": mean,
        "variance": (weights[:, None] * (probabilities - mean) ** 2).sum(0) * 4096 / 4095,
        "entropy": entropy(mean),
        "expected_entropy": (weights * entropy(probabilities)).sum(),
        "mutual_information": entropy(mean) - (weights * entropy(probabilities)).sum(),
    }
    for name, value in exact.items():
        torch.testing.assert_close(getattr(prediction, name)[0], value, rtol=0, atol=1e-12)


# Convergence.


def check_convergence(sample: Sampler) -> None:
    """The error of the mean falls as the square root of the number of passes."""
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(16, 4)).double().eval()
    x = torch.randn(1000, 16, dtype=torch.float64)
    counts = [2**power for power in range(2, 10)]
    errors = [
        (sample(model, x, num_samples=count, task="raw").mean - model(x)).square().mean().sqrt().item()
        for count in counts
    ]
    slope = np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(slope + 0.5) < 0.05, f"slope {slope:.2f}"


def test_the_error_falls_as_one_over_the_root_of_the_passes() -> None:
    check_convergence(mc_sample)


def test_seeds_that_come_again_are_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_file, "derive_seed", lambda seed, number: derive_seed(seed, number % 8))
    with pytest.raises(AssertionError, match="slope"):
        check_convergence(mc_sample)


def test_a_pass_does_not_depend_on_how_many_follow() -> None:
    model, x = nn.Sequential(nn.Dropout(0.5)).eval(), torch.ones(4, 6)
    few, many = (mc_sample(model, x, num_samples=n, task="raw", return_samples=True).samples for n in (3, 9))
    assert few is not None
    assert many is not None
    assert torch.equal(few, many[:3])


@pytest.mark.parametrize("chunk_size", [1, 3])
def test_only_passes_that_count_are_told(chunk_size: int) -> None:
    model, x = nn.Sequential(nn.Dropout(0.05)).eval(), torch.ones(1, 1)
    sampler = sample_file.Sampler(model, find_sites(model), num_samples=4, task="raw", chunk_size=chunk_size)
    told: list[int] = []
    prediction = sampler.sample(model, (x,), {}, seed=(0,), on_pass=lambda: told.append(1))
    assert prediction.variance.item() == 0.0  # so there were extra draws, to see that passes differ
    assert len(told) == 4


def test_masks_differ_between_passes_samples_places_and_seeds() -> None:
    model = nn.ModuleDict({"one": nn.Dropout(0.5), "two": nn.Dropout(0.5)}).eval()
    both = nn.Module()
    both.parts, both.forward = model, lambda x: torch.cat([model["one"](x), model["two"](x)])
    samples = [
        mc_sample(both, torch.ones(3, 64), num_samples=4, task="raw", seed=seed, return_samples=True).samples
        for seed in range(3)
    ]
    rows = torch.stack([sample for sample in samples if sample is not None]).reshape(-1, 64)
    assert len(rows) == 3 * 4 * 6
    assert len(rows.unique(dim=0)) == len(rows)


# The snippet of the textbooks.


def textbook(model: nn.Module, x: Tensor) -> Tensor:
    model.train()
    with torch.no_grad():
        outputs = torch.stack([model(x) for _ in range(100)])
    model.eval()
    return outputs


def check_same_law(one: Tensor, other: Tensor) -> None:
    """Means and variances of (draws, outputs) agree by two-sample z-tests."""

    def moments(draws: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        draws = draws.double()
        deviations = draws - draws.mean(0)
        variance = deviations.square().mean(0)
        n = len(draws)
        return draws.mean(0), variance / n, variance, (deviations.pow(4).mean(0) - variance.square()) / n

    mean1, mean_spread1, variance1, variance_spread1 = moments(one)
    mean2, mean_spread2, variance2, variance_spread2 = moments(other)
    z_mean = (mean1 - mean2) / (mean_spread1 + mean_spread2).sqrt()
    z_variance = (variance1 - variance2) / (variance_spread1 + variance_spread2).sqrt()
    assert z_mean.abs().max() < Z_LIMIT, f"means differ, z={z_mean}"
    assert z_variance.abs().max() < Z_LIMIT, f"variances differ, z={z_variance}"


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    model = Net((1, 8, 8), hidden=64).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)  # away from outputs of almost nothing
    return model


def copies(num: int = 64) -> Tensor:
    """One image many times over: rows of a pass are independent draws of the same thing."""
    return torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(3)).expand(num, -1, -1, -1)


def draws_of(net: Net, **arguments: Any) -> Tensor:
    samples = mc_sample(net, copies(), task="raw", num_samples=100, return_samples=True, **arguments).samples
    assert samples is not None
    return samples.flatten(0, 1)


def test_the_textbook_snippet_and_mc_sample_agree_in_law(net: Net) -> None:
    outputs = textbook(net, copies())
    check_same_law(outputs.flatten(0, 1), draws_of(net))


def test_they_agree_in_the_numbers_too(net: Net) -> None:
    """What ``mean(0)`` and ``std(0)`` of the stacked passes give is what the prediction says."""
    prediction = mc_sample(net, copies(4), task="raw", num_samples=100, return_samples=True)
    assert prediction.samples is not None
    torch.testing.assert_close(prediction.mean, prediction.samples.mean(0))
    torch.testing.assert_close(prediction.std, prediction.samples.std(0))
    assert prediction.mean.shape == prediction.std.shape == (4, 10)


@pytest.mark.parametrize("arguments", [{"sites": "dropout1"}, {"sites": "dropout2"}, {"rates": 0.35}], ids=str)
def test_another_law_is_killed(net: Net, arguments: dict[str, Any]) -> None:
    outputs = textbook(net, copies())
    with pytest.raises(AssertionError, match="differ"):
        check_same_law(outputs.flatten(0, 1), draws_of(net, **arguments))


# Everything is given back.


class Everything(nn.Module):
    """Buffers that train mode would change, all kinds of sites, and generators besides torch's."""

    def __init__(self, fail_at: int | None = None, error: type[BaseException] = RuntimeError) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.5, inplace=True)
        self.own = Dropout(0.2)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.path = DropPath(0.3)
        self.calls, self.fail_at, self.error = 0, fail_at, error

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.fail_at is not None and self.calls >= self.fail_at:
            raise self.error
        x = self.own(self.drop(x)) + random.random() + np.random.rand()  # noqa: NPY002
        return self.path(self.encoder(self.norm(x)[:, None])[:, 0])


def snapshot(model: nn.Module) -> dict[str, Any]:
    kind, keys, position, *rest = np.random.get_state()  # noqa: NPY002
    return {
        "modes": {name: module.training for name, module in model.named_modules()},
        "inplace": {name: getattr(module, "inplace", None) for name, module in model.named_modules()},
        "rates": [site.rate for site in find_sites(model)],
        "tensors": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "attributes": {name: set(vars(module)) for name, module in model.named_modules()},
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "grad": torch.is_grad_enabled(),
        "torch": torch.get_rng_state(),
        "numpy": (kind, keys.tolist(), position, *rest),
        "python": random.getstate(),
    }


def check_given_back(sample: Sampler, model: nn.Module, error: type[BaseException] | None = None) -> None:
    model.eval()
    model.norm.train(False)
    x = torch.randn(16, 8)
    kept = x.clone()
    before = snapshot(model)
    with suppress(error or ()):
        sample(model, x, num_samples=5, task="raw", rates=0.4, kinds=("dropout", "attention", "drop_path"))
        assert error is None, "the error did not come through"
    after = snapshot(model)
    torch.backends.mha.set_fastpath_enabled(True)  # for the tests that come after a bug
    for name, value in before.items():
        if name == "tensors":
            assert all(torch.equal(value[key], after[name][key]) for key in value), "a buffer or parameter has changed"
        elif name == "torch":
            assert torch.equal(value, after[name]), "torch's generator has moved"
        else:
            assert value == after[name], f"{name} have changed"
    assert torch.equal(x, kept), "the input has changed"


def test_everything_is_given_back_after_success() -> None:
    check_given_back(mc_sample, Everything())


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("fail_at", [1, 2, 5])
def test_everything_is_given_back_after_an_error(fail_at: int, error: type[BaseException]) -> None:
    check_given_back(mc_sample, Everything(fail_at, error), error)


@contextmanager
def no_finally(sites: Any, rates: Any, quiet: Any) -> Any:
    for site in sites:
        for owner in site.owners:
            owner.training = True
    yield
    for site in sites:
        for owner in site.owners:
            owner.training = False


@contextmanager
def nothing(*_: Any) -> Any:
    yield


@pytest.mark.parametrize(
    ("bugs", "message"),
    [
        # After an error, what modules hold is put back twice: by who lent it, and by the guard of the first batch.
        ({(sample_file, "dropping"): no_finally, (witness_file._Attributes, "put_back"): nothing}, "modes"),
        ({(sample_file, "isolated_generators"): nothing}, "torch's generator"),
    ],
)
def test_leaks_are_killed(bugs: dict[Any, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for (where, name), bug in bugs.items():
        monkeypatch.setattr(where, name, bug)
    with pytest.raises(AssertionError, match=f"{message} ha"):
        check_given_back(mc_sample, Everything(2), RuntimeError)


def test_training_the_whole_model_is_killed() -> None:
    def careless(model: nn.Module, x: Tensor, **_: Any) -> None:
        model.train()
        for _ in range(5):
            model(x.clone())
        model.eval()

    with pytest.raises(AssertionError, match="a buffer or parameter has changed"):
        check_given_back(careless, Everything())  # type: ignore[arg-type]


def test_gradients_are_off_inside_only() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).eval()
    assert not mc_sample(model, torch.randn(2, 4, requires_grad=True), task="raw").mean.requires_grad
    assert torch.is_grad_enabled()


# Reproducible.


def test_the_same_call_gives_the_same_numbers_and_other_seeds_others(net: Net) -> None:
    x = copies(2)
    first = mc_sample(net, x, num_samples=4, task="multiclass")
    torch.rand(5), random.random(), np.random.rand()  # noqa: NPY002
    again = mc_sample(net, x, num_samples=4, task="multiclass")
    other = mc_sample(net, x, num_samples=4, task="multiclass", seed=1)
    for name in ("mean", "variance", "entropy", "mutual_information"):
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert not torch.equal(getattr(first, name), getattr(other, name))


def test_rates_of_ones_own_are_used() -> None:
    model = nn.Sequential(nn.Dropout(0.0)).eval()
    samples = mc_sample(model, torch.ones(1000), num_samples=2, task="raw", rates=0.9, return_samples=True).samples
    assert samples is not None
    assert 0.85 < (samples == 0).float().mean() < 0.95
    assert model[0].p == 0.0


def test_positional_and_keyword_inputs_reach_the_model() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x: Tensor, *, offset: dict[str, Tensor]) -> Tensor:
            return self.drop(x) + offset["by"]

    prediction = mc_sample(Two().eval(), torch.zeros(3) + 1, offset={"by": torch.tensor(10.0)}, task="raw")
    assert (prediction.mean >= 10).all()


# Guards: nothing may change.


class Rebinding(nn.Module):
    """Normalisation written by hand, which assigns its running mean anew."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running", torch.zeros(4))
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.running = 0.9 * self.running + 0.1 * x.mean(0)
        return self.drop(x - self.running)


@pytest.mark.parametrize(
    "layers",
    [
        lambda: [nn.BatchNorm1d(4)],
        lambda: [nn.Unflatten(1, (2, 2)), nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten()],
        lambda: [Rebinding()],
        lambda: [nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))],
    ],
    ids=["BatchNorm", "InstanceNorm", "assigned anew", "spectral norm"],
)
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_a_model_whose_buffers_change_is_refused_and_mended(layers: Any, context: Any) -> None:
    model = nn.Sequential(*layers(), nn.Dropout(0.5)).train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    identities = {name: id(buffer) for name, buffer in model.named_buffers()}
    with (
        context(),
        pytest.raises(
            RuntimeError, match=r"change nothing, but got a changed buffer `\d[\w.]*` \(put back\).*eval\(\)"
        ),
    ):
        mc_sample(model, torch.randn(16, 4), task="raw")
    assert {name: id(buffer) for name, buffer in model.named_buffers()} == identities
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name])
    mc_sample(model.eval(), torch.randn(16, 4), task="raw")  # the cure


def test_a_forward_that_fails_half_way_leaves_no_changed_buffer() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5)).train()
    with pytest.raises(ValueError, match="more than 1 value per channel"):  # after it has counted the batch
        mc_sample(model, torch.randn(1, 4), task="raw")
    assert model[0].num_batches_tracked == 0


def test_comparing_versions_of_buffers_would_miss_it() -> None:
    norm = nn.BatchNorm1d(4).train()
    running, version = norm.running_mean, norm.running_mean._version
    norm(torch.randn(8, 4))
    assert running.any()
    assert running._version == version


@pytest.mark.parametrize("nested", [False, True])
def test_a_model_that_changes_its_input_is_refused_and_the_input_mended(nested: bool) -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, batch: Any) -> Tensor:
            return self.drop((batch["x"][0] if nested else batch).relu_())

    x = torch.randn(4, 4)
    kept = x.clone()
    with pytest.raises(RuntimeError, match=r"got a changed input \(put back\).*inplace=True"):
        mc_sample(InPlace().eval(), {"x": [x]} if nested else x, task="raw")
    assert torch.equal(x, kept)


def test_in_place_dropout_is_safe() -> None:
    x = torch.ones(1000)
    prediction = mc_sample(nn.Sequential(nn.Dropout(0.2, inplace=True)).eval(), x, num_samples=200, task="raw")
    assert torch.equal(x, torch.ones(1000))
    assert abs(prediction.mean.mean() - 1) < Z_LIMIT * (0.25 / 200_000) ** 0.5


def test_nan_in_buffers_and_inputs_is_no_change() -> None:
    model = nn.Sequential(nn.Dropout(0.5)).eval()
    model.register_buffer("unset", torch.tensor([float("nan"), float("inf")]))
    x = torch.tensor([[1.0, float("nan"), 2.0, 3.0, 4.0, 5.0]])
    assert mc_sample(model, x, task="raw").mean.isnan().tolist() == [[False, True, False, False, False, False]]


def test_a_model_that_has_diverged_says_nan() -> None:
    prediction = mc_sample(nn.Sequential(nn.Dropout(0.5)).eval(), torch.full((2, 3), float("nan")), task="multiclass")
    assert prediction.mean.isnan().all()
    assert prediction.entropy.isnan().all()


# Guards: passes must differ.


class Unused(nn.Module):
    """Calls its dropout and forgets the result."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.calls = Counter[str]()

    def forward(self, x: Tensor) -> Tensor:
        self.calls["forward"] += 1
        self.drop(x)
        return x


@pytest.mark.parametrize("num_samples", [1, 2, 30])
def test_passes_that_never_differ_are_an_error_that_names_the_sites(num_samples: int) -> None:
    model = Unused().eval()
    with pytest.raises(RuntimeError, match=rf"got {num_samples + 100} equal ones although these sites were on: drop;"):
        mc_sample(model, torch.ones(3), num_samples=num_samples, task="raw")
    assert model.calls["forward"] == num_samples + 100 + 1, "one is run again, to see that it gives the same"


@pytest.mark.parametrize("num_samples", [1, 2, 5])
def test_rarely_firing_sites_are_no_false_alarm(num_samples: int) -> None:
    """Two branches at 0.1 for one sample: several passes in a row agree quite often."""
    model = nn.Sequential(DropPath(0.1), DropPath(0.1)).eval()
    equal = 0
    for seed in range(40):
        prediction = mc_sample(
            model, torch.ones(1, 2), num_samples=num_samples, task="raw", kinds=["drop_path"], seed=seed
        )
        equal += int(not (prediction.variance > 0).any())
    assert equal > 5, "they always differed, so the test shows nothing"


def test_the_extra_draws_are_what_prevents_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_file, "_EXTRA_DRAWS", 0)
    with pytest.raises(RuntimeError, match="got 2 equal ones"):
        test_rarely_firing_sites_are_no_false_alarm(2)


def test_no_more_passes_are_run_than_needed() -> None:
    for num_samples in (2, 30):
        model = Everything().eval()
        mc_sample(model, torch.randn(4, 8), num_samples=num_samples, task="raw")
        assert model.calls == num_samples + 1  # one is replayed once, to see that this changes nothing
        model.calls = 0
        mc_sample(model, torch.randn(4, 8), num_samples=num_samples, task="raw")
        assert model.calls == num_samples
    model = Everything().eval()
    mc_sample(model, torch.randn(4, 8), num_samples=1, task="raw")
    assert model.calls == 3  # one more, to see that it differs, and one again, to see that it does not


def test_extra_draws_do_not_count() -> None:
    model = nn.Sequential(Dropout(0.5)).eval()
    one = mc_sample(model, torch.ones(100), num_samples=1, task="raw")
    assert set(one.mean.tolist()) == {0.0, 2.0}
    assert one.std.isnan().all()
    assert one.num_samples == 1


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.parametrize("name", ["attention", "layer", "encoder"])
def test_attention_drops_in_spite_of_torchs_fast_path(name: str, context: Any) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True)

    class SelfAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.attention(x, x, x)[0]
            return output

    model = {"attention": SelfAttention(), "layer": layer, "encoder": nn.TransformerEncoder(layer, 2)}[name].eval()
    x = torch.randn(4, 5, 8)
    with context():
        for site in find_sites(model):
            samples = mc_sample(model, x, num_samples=8, task="raw", sites=site.name, return_samples=True).samples
            assert samples is not None
            assert len(samples.flatten(1).unique(dim=0)) == 8, site.name


@pytest.mark.parametrize(
    "model",
    [
        lambda: MLP((4,), 3, dim=8, p=0.2),
        lambda: Net((1, 8, 8), hidden=16),
        lambda: ResNet((1, 8, 8), depth=20, p=0.2),
        lambda: ViT((1, 8, 8), preset="digits", dim=16, depth=2, num_heads=2, attention_p=0.2),
    ],
    ids=["MLP", "Net", "ResNet", "ViT"],
)
def test_our_models_can_be_sampled(model: Any) -> None:
    built = model().eval()
    x = torch.randn(3, 4) if isinstance(built, MLP) else torch.randn(3, 1, 8, 8)
    prediction = mc_sample(built, x, num_samples=5, task="multiclass")
    assert (prediction.std > 0).all()
    torch.testing.assert_close(prediction.votes.sum(1), torch.ones(3))
    torch.testing.assert_close(prediction.mean.sum(1), torch.ones(3))


# Guards: what is asked for, and what drops besides.


def test_all_rates_0_is_an_error() -> None:
    model = nn.Sequential(nn.Dropout(0.0), Dropout(0.0)).eval()
    with pytest.raises(ValueError, match=r"got 0 at all 2 sites \(0, 1\): .*pass `rates=0\.1`"):
        mc_sample(model, torch.ones(3), task="raw")
    with pytest.raises(ValueError, match="got 0 at all 1 sites"):
        mc_sample(nn.Sequential(nn.Dropout(0.5)).eval(), torch.ones(3), task="raw", rates=0.0)
    mc_sample(model, torch.ones(30), task="raw", rates=0.1)


def test_no_site_is_an_error() -> None:
    with pytest.raises(ValueError, match="Expected Sequential to drop somewhere, but got no site"):
        mc_sample(nn.Sequential(nn.Linear(2, 2)), torch.ones(1, 2), task="raw")


def test_only_drop_path_is_an_error_that_names_the_kind() -> None:
    model = nn.Sequential(DropPath(0.5)).eval()
    with pytest.raises(ValueError, match=r"kinds=\('dropout', 'attention', 'recurrent'\).*is of kind drop_path"):
        mc_sample(model, torch.ones(8, 2), task="raw")
    assert (mc_sample(model, torch.ones(8, 2), task="raw", kinds=["drop_path"]).std > 0).all()


def scale_by_noise(x: Tensor, p: float, on: bool) -> Tensor:
    return F.dropout(x, p, on)


class Functional(nn.Module):
    """A user's model with functional dropout."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.training)


class Hidden(Functional):
    """The same behind a function that hides what it does with the rate."""

    def forward(self, x: Tensor) -> Tensor:
        on = self.training
        return scale_by_noise(x, self.p, bool(on))


def test_functional_dropout_is_sampled() -> None:
    model = nn.Sequential(Functional()).eval()
    assert mc_sample(model, torch.ones(8, 2), task="raw").std.any()
    assert not model[0].training


def test_foreign_stochastic_depth_is_sampled_where_it_is_named() -> None:
    model = nn.Sequential(timm.layers.DropPath(0.5)).eval()
    with pytest.raises(ValueError, match=r"what matches is of kind drop_path"):
        mc_sample(model, torch.ones(8, 2), task="raw")
    assert mc_sample(model, torch.ones(8, 2), task="raw", kinds="drop_path").std.any()


def test_what_cannot_be_explained_is_refused_by_name_never_sampled_to_0() -> None:
    alone, beside = nn.Sequential(Hidden()).eval(), nn.Sequential(Hidden(), nn.Dropout(0.5)).eval()
    for model in (alone, beside):
        with pytest.raises(ValueError, match=r"`0` \(.*Hidden\): it reads `p=0\.5`, .*; call `register_adapter"):
            mc_sample(model, torch.ones(8, 2), task="raw")
    with pytest.raises(ValueError, match="got no site in it"):
        mc_sample(alone, torch.ones(8, 2), task="raw", exclude="0")
    assert mc_sample(beside, torch.ones(8, 2), task="raw", exclude="0").std.any()


@pytest.mark.usefixtures("own_registry")
def test_a_registered_layer_is_sampled() -> None:
    register_adapter(Hidden, "p")
    model = nn.Sequential(Hidden(), timm.layers.DropPath(0.5)).eval()
    for kinds in (["dropout"], ["drop_path"]):
        assert (mc_sample(model, torch.ones(64, 2), task="raw", kinds=kinds).std > 0).all()


def test_what_drops_without_being_asked_is_an_error() -> None:
    model = nn.Sequential(nn.Dropout(0.5), DropPath(0.2)).train()
    with pytest.raises(ValueError, match=r"but got `1` \(drop_path, rate 0\.2\) in train mode .*eval\(\).*`kinds`"):
        mc_sample(model, torch.ones(8, 2), task="raw")
    assert [module.training for module in model] == [True, True]
    mc_sample(model, torch.ones(8, 2), task="raw", kinds=["dropout", "drop_path"])
    mc_sample(model.eval(), torch.ones(8, 2), task="raw")
    model.train()[1].drop_prob = 0.0
    mc_sample(model, torch.ones(8, 2), task="raw")


class Both(nn.Module):
    """One flag for dropout, which gives 0 or 2, and for stochastic depth, which gives 0 or 1.25 times that."""

    def __init__(self) -> None:
        super().__init__()
        self.rate, self.drop_path_rate = 0.5, 0.2

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(x, self.rate, self.training)
        return timm.layers.drop_path(x, self.drop_path_rate, self.training)


def values_of_passes(sites: str | list[str]) -> set[float]:
    model = nn.Sequential(Both()).eval()
    passes = mc_sample(model, torch.ones(64, 2), task="raw", num_samples=10, kinds=sites, return_samples=True)  # type: ignore[arg-type]
    assert (model[0].rate, model[0].drop_path_rate, model[0].training) == (0.5, 0.2, False)
    assert passes.samples is not None
    return set(passes.samples.flatten().tolist())


@pytest.mark.usefixtures("own_registry")
def test_an_owner_turns_on_only_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    register_adapter(Both, "rate")
    register_adapter(Both, "drop_path_rate", kind="drop_path")
    assert values_of_passes("dropout") == {0.0, 2.0}
    assert values_of_passes("drop_path") == {0.0, 1.25}
    assert values_of_passes(["dropout", "drop_path"]) == {0.0, 2.5}
    monkeypatch.setattr(sample_file.Sampler, "_others_to_keep_quiet", lambda self: [])  # a planted bug
    assert values_of_passes("dropout") == {0.0, 2.5}


# Passes folded into the batch.


folded = functools.partial(mc_sample, chunk_size=4)  # of 10 passes, the last two come in a chunk of their own


@pytest.mark.parametrize("p", [0.3, 0.9])
def test_folded_passes_have_the_moments_of_the_closed_form(p: float) -> None:
    check_linear_closed_form(folded, p)


def test_folded_passes_that_share_a_mask_break_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # The passes of a chunk are the same rows.
    monkeypatch.setattr(batch_file, "resized", lambda inputs, size, rows: inputs)
    monkeypatch.setattr(batch_file, "unfold", lambda outputs, size, number: [outputs] * number)
    monkeypatch.setattr(sample_file.Trial, "folds", lambda *_: None)  # which would find it
    with pytest.raises(AssertionError, match="is off"):
        check_linear_closed_form(folded, 0.3)


def test_folded_passes_agree_with_the_enumeration() -> None:
    check_against_enumeration(folded, 0.4)


@pytest.mark.parametrize("chunk_size", [2, 3, 7, 50])
def test_every_pass_of_every_chunk_counts_once(chunk_size: int) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)).eval()
    x = torch.randn(5, 8)
    prediction = mc_sample(model, x, num_samples=7, chunk_size=chunk_size, task="raw", return_samples=True)
    assert prediction.num_samples == 7
    assert prediction.samples is not None
    assert prediction.samples.shape == (7, 5, 8)
    assert len(prediction.samples.flatten(1).unique(dim=0)) == 7
    whole = model(x) / 0.5
    assert bool(((prediction.samples == 0) | (prediction.samples == whole)).all()), "rows of another sample"
    torch.testing.assert_close(prediction.mean, prediction.samples.mean(0))


def test_reuse_counts_passes_and_not_chunks() -> None:
    model, x = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)).eval(), torch.randn(5, 8)
    for _ in range(2):  # in the first call one pass is compared instead of reused
        reuse = mc_sample(model, x, num_samples=13, chunk_size=3, task="raw").reuse
    assert reuse is not None
    assert (reuse.passes, reuse.note) == (9, "")  # one chunk is watched, the last one is too small


class Pair(nn.Module):
    """Two inputs and a constant that is no batch; two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor, scale: Tensor, *, shift: Tensor) -> Any:
        assert len(x) == len(shift)
        return {"logits": self.drop(x * scale), "shift": shift}


def test_only_what_belongs_to_the_batch_is_folded() -> None:
    shift = torch.arange(6.0)[:, None]
    prediction = mc_sample(
        Pair().eval(), torch.ones(6, 3), torch.tensor([1.0, 2.0]).prod(), shift=shift, task="raw", chunk_size=10
    )
    assert set(prediction.predictive) == {"logits", "shift"}
    assert torch.equal(prediction.predictive["shift"], shift)
    assert prediction.mean.shape == (6, 3)


class Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Any) -> Tensor:
        return self.drop(torch.as_tensor(x, dtype=torch.float32)).sum()


@pytest.mark.parametrize(
    ("model", "x", "message"),
    [
        (nn.Sequential(Dropout(0.5, shared_over_batch=True)), torch.ones(3, 4), "`0`, which drops for the whole batch"),
        (nn.Sequential(Dropout(0.5), DropPath(0.5, mode="batch")), torch.ones(3, 4), "`1`, which drops for the whole"),
        (Sum(), torch.ones(3, 4), r"an output with 12 rows, 3 for each of 4 folded passes, but got \[\(\)\]"),
        (Sum(), [1.0, 2.0], "Expected a tensor with a batch dimension among the inputs"),
    ],
)
def test_what_cannot_be_folded_is_refused(model: nn.Module, x: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mc_sample(model.eval(), x, task="raw", chunk_size=4, num_samples=8, kinds=["dropout", "drop_path"])
    assert not any(module.training for module in model.modules())


class Small(nn.Module):
    """A model on a machine that holds eight samples."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.drop, self.error = nn.Dropout(0.5), error

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 8:
            raise self.error
        return self.drop(x)


OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nSee the manual.")


@pytest.mark.parametrize(
    "error", [OUT_OF_MEMORY, RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")]
)
def test_out_of_memory_names_the_chunk_size_to_try(error: Exception) -> None:
    model, x = Small(error).eval(), torch.ones(2, 3)
    tried = [20]
    while tried[-1] > 4:
        with pytest.raises(RuntimeError, match=f"Expected {tried[-1]} passes at a time to fit into memory") as raised:
            mc_sample(model, x, task="raw", num_samples=40, chunk_size=tried[-1])
        assert raised.value.__cause__ is error
        tried.append(int(str(raised.value).rpartition("`chunk_size=")[2].rstrip("`.")))
    mc_sample(model, x, task="raw", num_samples=40, chunk_size=tried[-1])
    assert tried == [20, 10, 5, 2]
    with pytest.raises(RuntimeError, match=r"Expected one pass to fit into memory, .*; use smaller batches\."):
        mc_sample(model, torch.ones(9, 3), task="raw")


def test_other_errors_come_through_as_they_are() -> None:
    error = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(RuntimeError) as raised:
        mc_sample(Small(error).eval(), torch.ones(9, 3), task="raw", chunk_size=2)
    assert raised.value is error


# Guards: arguments and outputs.


@pytest.mark.parametrize("num_samples", [0, -1, True, 2.5, "30", None, 2.0], ids=repr)
def test_num_samples_is_a_whole_number_of_at_least_1(num_samples: Any) -> None:
    with pytest.raises(
        ValueError, match=r"^Expected `num_samples` to be a whole number of passes, at least 1, but got"
    ):
        mc_sample(nn.Sequential(nn.Dropout(0.5)), torch.ones(3), num_samples=num_samples, task="raw")


def test_numpys_whole_numbers_are_whole_numbers() -> None:
    assert (
        mc_sample(nn.Sequential(nn.Dropout(0.5)), torch.ones(30), num_samples=np.int64(3), task="raw").num_samples == 3
    )


@pytest.mark.parametrize("rates", [1.5, -0.1, float("nan"), "0.5", True], ids=repr)
def test_rates_are_probabilities(rates: Any) -> None:
    with pytest.raises(ValueError, match=r"^Expected `rates` to be a probability"):
        mc_sample(nn.Sequential(nn.Dropout(0.5)), torch.ones(3), rates=rates, task="raw")


def test_the_task_has_no_default_and_is_checked_first() -> None:
    model = Unused()
    with pytest.raises(TypeError, match="task"):
        mc_sample(model, torch.ones(3))  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="Expected `task` to be one of"):
        mc_sample(model, torch.ones(3), task="classify")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Expected `seed` to be a whole number, but got None"):
        mc_sample(model, torch.ones(3), task="raw", seed=None)  # type: ignore[arg-type]
    assert not model.calls


class Ending(nn.Module):
    """A network with dropout whose output passes through any function."""

    def __init__(self, end: Callable[[Tensor], Any], num_outputs: int = 4) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, num_outputs))
        self.end = end

    def forward(self, x: Tensor) -> Any:
        return self.end(self.body(x))


@pytest.mark.parametrize(
    ("end", "task", "message"),
    [
        (lambda y: y.softmax(1), "multiclass", 'sum to 1; pass task="probabilities"'),
        (lambda y: y, "probabilities", 'pass task="multiclass" for logits'),
        (lambda y: y[:, :1], "multiclass", 'pass task="binary"'),
        (lambda y: y, "binary", r"one logit a sample"),
        (lambda y: y.argmax(1), "raw", r"but got a torch\.int64 tensor"),
        (lambda y: [y, y], "raw", "a floating tensor, but got "),
    ],
)
def test_outputs_that_fit_another_task_are_refused_after_one_pass(end: Any, task: Any, message: str) -> None:
    model = Ending(end).eval()
    with pytest.raises(ValueError, match=message):
        mc_sample(model, torch.randn(3, 6), task=task)
    assert not any(module.training for module in model.modules())


def test_log_probabilities_are_logits() -> None:
    model = Ending(lambda y: y).eval()
    x = torch.randn(3, 6)
    logits = mc_sample(model, x, task="multiclass")
    model.end = lambda y: y.log_softmax(1)
    torch.testing.assert_close(mc_sample(model, x, task="multiclass").mean, logits.mean)


@pytest.mark.parametrize("form", [tuple, list, torch.cat])
def test_gaussian_heads_come_as_a_pair_or_as_two_halves(form: Any) -> None:
    model, x = Ending(lambda y: y).eval(), torch.randn(3, 6)
    halves = mc_sample(model, x, task="gaussian", return_samples=True)
    assert halves.samples is not None
    assert halves.samples.shape == (30, 3, 2)
    model.end = (lambda y: y) if form is torch.cat else (lambda y: form((y[:, :2], y[:, 2:])))
    other = mc_sample(model, x, task="gaussian")
    for name in ("mean", "variance", "aleatoric_variance", "epistemic_variance", "total_variance"):
        assert torch.equal(getattr(other, name), getattr(halves, name))
    torch.testing.assert_close(
        other.total_variance, other.aleatoric_variance + other.variance * 29 / 30, rtol=1e-6, atol=0
    )
    assert isinstance(other.predictive, Tensor if form is torch.cat else form)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_models_give_single_precision_statistics(dtype: torch.dtype) -> None:
    model = Ending(lambda y: y).eval().to(dtype)
    prediction = mc_sample(model, torch.randn(3, 6, dtype=dtype), task="multiclass")
    for name in ("mean", "std", "entropy", "mutual_information", "votes", "predictive"):
        assert getattr(prediction, name).dtype == torch.float32
    torch.testing.assert_close(prediction.mean.sum(1), torch.ones(3))
    torch.testing.assert_close(prediction.votes.sum(1), torch.ones(3))


def test_autocast_is_respected() -> None:
    model = Ending(lambda y: y).eval()
    with torch.autocast("cpu", torch.bfloat16):
        prediction = mc_sample(model, torch.randn(3, 6), task="raw", return_samples=True)
    assert prediction.samples is not None
    assert torch.equal(prediction.samples, prediction.samples.bfloat16().float())


@pytest.mark.parametrize(
    "wrap", [lambda net: torch.compile(net, backend="eager"), nn.DataParallel], ids=["compile", "DP"]
)
def test_wrapped_models_give_the_same_numbers(net: Net, wrap: Any) -> None:
    expected = mc_sample(net, copies(2), num_samples=3, task="multiclass")
    actual = mc_sample(wrap(net), copies(2), num_samples=3, task="multiclass")
    torch.testing.assert_close(actual.mean, expected.mean)
    torch.testing.assert_close(actual.std, expected.std)


# Stochastic depth that runs a subset of the batch.


def kept_in_each_ten_passes(**arguments: Any) -> Tensor:
    """How many of ten consecutive passes keep the branch of one sample, at a rate of 0.5."""
    net = nn.Sequential(StochasticDepth(nn.Linear(3, 3), 0.5)).eval()
    x = torch.randn(1, 3)
    prediction = mc_sample(net, x, num_samples=2000, task="raw", kinds=("drop_path",), return_samples=True, **arguments)
    assert prediction.samples is not None
    return (prediction.samples[:, 0] != x).any(-1).double().view(-1, 10).sum(1)


def is_binomial(kept: Tensor) -> bool:
    near = 4.71 * (2.5 / len(kept)) ** 0.5
    return abs(float(kept.mean()) - 5.0) < near and abs(float(kept.var()) / 2.5 - 1.0) < 4.71 * (2 / len(kept)) ** 0.5


@pytest.mark.parametrize("chunk_size", [1, 10])
@pytest.mark.parametrize("masks", ["independent", "shared"])
def test_passes_that_run_subsets_are_independent(chunk_size: int, masks: str) -> None:
    assert is_binomial(kept_in_each_ten_passes(chunk_size=chunk_size, masks=masks))


def test_one_subset_for_folded_passes_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def as_they_are(sites: Any) -> Any:
        yield

    monkeypatch.setattr(sample_file, "sample_by_sample", as_they_are)
    assert set(kept_in_each_ten_passes(chunk_size=10).tolist()) == {5.0}


def test_a_pass_runs_its_branches_for_the_kept_samples_only() -> None:
    layer = StochasticDepth(nn.Linear(3, 3), 0.75)
    sizes: list[int] = []
    layer.branch.register_forward_hook(lambda module, args, output: sizes.append(len(output)))
    mc_sample(layer.eval(), torch.randn(8, 3), num_samples=5, task="raw", kinds=("drop_path",))
    assert set(sizes) == {2}

"""Entropy and mutual information against scipy, and against what passes of known disagreement share."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import entropy as scipy_entropy
from torch import Tensor

from lightning_dropout.metrics import MutualInformation, PredictiveEntropy, mutual_information, predictive_entropy
from lightning_dropout.sampling.prediction import Statistics

TASKS = ["binary", "multiclass", "multilabel"]
every_task = pytest.mark.parametrize("task", TASKS)


def draw(task: Any, *lead: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if task == "multiclass":
        return (3 * torch.randn(*lead, 5, generator=generator, dtype=torch.float64)).softmax(-1)
    shape = lead if task == "binary" else (*lead, 5)
    return (3 * torch.randn(shape, generator=generator, dtype=torch.float64)).sigmoid()


def distributions(task: Any, probabilities: Tensor) -> np.ndarray:
    """As numpy, the classes last: for bits no and yes."""
    values = probabilities if task == "multiclass" else torch.stack([1 - probabilities, probabilities], dim=-1)
    return values.numpy()


def value(metric: Any, probabilities: Tensor) -> float:
    metric.update(probabilities)
    return metric.compute().item()


class MeanOfEntropies(PredictiveEntropy):
    """Planted bug: the mean entropy of the passes, in place of the entropy of their mean."""

    def update(self, samples: Tensor) -> None:
        super().update(samples.flatten(0, 1))


class Swapped(MutualInformation):
    """Planted bug: passes and samples change places."""

    def update(self, samples: Tensor) -> None:
        super().update(samples.transpose(0, 1))


class TestOracles:
    """scipy and the expected divergence from the mean."""

    @every_task
    def test_entropy(self, task: Any) -> None:
        probabilities = draw(task, 50)
        expected = scipy_entropy(distributions(task, probabilities), axis=-1)
        np.testing.assert_allclose(predictive_entropy(probabilities, task), expected, rtol=1e-12)
        assert value(PredictiveEntropy(task=task), probabilities) == pytest.approx(expected.mean(), rel=1e-6)

    @every_task
    def test_mutual_information_is_the_mean_divergence_from_the_mean(self, task: Any) -> None:
        samples = draw(task, 7, 50)
        passes = distributions(task, samples)
        expected = np.mean([scipy_entropy(one, passes.mean(0), axis=-1) for one in passes], axis=0)
        np.testing.assert_allclose(mutual_information(samples, task), expected, atol=1e-14)
        ours = value(MutualInformation(task=task), samples)
        assert ours == pytest.approx(expected.mean(), rel=1e-6)
        assert ours > 0.1
        assert value(Swapped(task=task), samples) != pytest.approx(ours, rel=1e-2)

    def test_total_is_noise_plus_disagreement(self) -> None:
        samples = draw("multiclass", 7, 50)
        total = value(PredictiveEntropy(task="multiclass"), samples.mean(0))
        noise = value(MeanOfEntropies(task="multiclass"), samples)
        assert total - noise == pytest.approx(value(MutualInformation(task="multiclass"), samples), rel=1e-5)
        assert total != pytest.approx(noise, rel=1e-2)

    @every_task
    def test_the_same_as_a_prediction_has(self, task: Any) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (7, 20, 5) if task != "binary" else (7, 20)
        logits = torch.randn(shape, generator=generator, dtype=torch.float64)
        statistics = Statistics(task, class_dim=1)
        for one in logits:
            statistics.update(one)
        prediction = statistics.result(logits[0])
        samples = logits.softmax(2) if task == "multiclass" else logits.sigmoid()
        torch.testing.assert_close(predictive_entropy(samples.mean(0), task), prediction.entropy)
        torch.testing.assert_close(mutual_information(samples, task), prediction.mutual_information)

    def test_further_dimensions_are_samples(self) -> None:
        samples = draw("multiclass", 3, 12)
        shaped = samples.unflatten(1, (2, 2, 3)).movedim(-1, 2)  # (T, N, C, 2, 3)
        assert mutual_information(shaped, "multiclass").shape == (2, 2, 3)
        for metric, flat, full in (
            (MutualInformation, samples, shaped),
            (PredictiveEntropy, samples[0], shaped[0]),
        ):
            assert value(metric(task="multiclass"), full) == pytest.approx(value(metric(task="multiclass"), flat))


class TestExtremes:
    """Ends of the range."""

    @pytest.mark.parametrize("classes", [2, 10_000])
    def test_ends_of_the_range(self, classes: int) -> None:
        uniform, certain = torch.full((3, classes), 1 / classes), torch.eye(2, classes)
        assert value(PredictiveEntropy(task="multiclass"), uniform) == pytest.approx(math.log(classes), rel=1e-5)
        assert value(PredictiveEntropy(task="multiclass"), certain) == 0
        assert value(MutualInformation(task="multiclass"), uniform.expand(4, 3, classes)) == 0

    def test_as_many_sure_passes_as_classes_disagree_most(self) -> None:
        assert value(MutualInformation(task="multiclass"), torch.eye(5)[:, None]) == pytest.approx(math.log(5))

    def test_one_pass_agrees_with_itself(self) -> None:
        assert value(MutualInformation(task="multiclass"), draw("multiclass", 1, 20)) == 0

    @every_task
    def test_means_that_leave_their_range_by_a_rounding_error(self, task: Any) -> None:
        beyond = torch.tensor([[1 + 2e-7, -1e-9]])
        assert value(PredictiveEntropy(task=task), beyond if task != "binary" else beyond[0]) == pytest.approx(
            0, abs=1e-5
        )

    def test_disagreement_is_never_negative(self) -> None:
        same = draw("multiclass", 1, 1000).expand(30, 1000, 5).clone()
        assert mutual_information(same, "multiclass").min() >= 0


class TestRefusals:
    """Wrong inputs are named, with the cure."""

    @pytest.mark.parametrize(
        ("task", "shape", "wanted"),
        [
            ("multiclass", (4, 3), r"\(T, N, C, ...\)"),
            ("binary", (4,), r"\(T, N, ...\)"),
            ("multiclass", (0, 4, 3), r"\(T, N, C, ...\)"),
        ],
    )
    def test_no_passes(self, task: Any, shape: tuple[int, ...], wanted: str) -> None:
        message = rf"Expected `samples` to have the shape {wanted} with T >= 1 .* pass the probabilities of every pass"
        with pytest.raises(ValueError, match=message):
            MutualInformation(task=task).update(torch.rand(shape))

    @pytest.mark.parametrize(
        ("probabilities", "message"),
        [
            ([[3.0, -2.0]], r"lie in \[0, 1\], but got values from -2 to 3; take the softmax"),
            ([[0.1, 0.2]], "to sum to 1 over dimension 1"),
            ([[1, 0]], "to be of a floating dtype"),
            ([[1.0]], "C >= 2 classes"),
        ],
    )
    def test_no_probabilities(self, probabilities: Any, message: str) -> None:
        with pytest.raises(ValueError, match=f"Expected .*{message}"):
            PredictiveEntropy(task="multiclass").update(torch.tensor(probabilities))
        with pytest.raises(ValueError, match=f"Expected .*{message}"):
            MutualInformation(task="multiclass").update(torch.tensor([probabilities]))

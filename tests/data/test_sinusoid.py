"""The sine with a gap: where the rows lie, how large the noise is, and that a seed fixes both."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

from lightning_dropout.data import SinusoidDataModule, sinusoid


def check_law(module: ModuleType) -> None:
    data = module.SinusoidDataModule(num_samples=20000, num_test=2001, noise_std=0.2, frequency=2.0)
    data.setup()
    x, y = data.train_set.inputs, data.train_set.targets
    assert x.abs().min() >= 1.5
    assert x.abs().max() <= 4.0
    # Uniform on both intervals: half on each side, and quarters of equal size (5 standard errors).
    assert abs((x > 0).float().mean().item() - 0.5) < 5 * 0.5 / 20000**0.5
    quarters = torch.histc(x.abs(), bins=4, min=1.5, max=4.0) / 20000
    assert (quarters - 0.25).abs().max() < 5 * (0.25 * 0.75 / 20000) ** 0.5
    grid = data.test_set.inputs
    assert grid[0].item() == -6
    assert grid[-1].item() == 6
    assert (grid.diff(dim=0) > 0).all()
    for inputs, targets in ((x, y), (grid, data.test_set.targets)):
        noise = (targets - torch.sin(2.0 * inputs)).double()
        count = noise.numel()
        assert abs(noise.mean().item()) < 5 * 0.2 / count**0.5
        assert abs(noise.var().item() - 0.04) < 5 * 0.04 * (2 / count) ** 0.5
        assert abs((noise[1:] * noise[:-1]).mean().item()) < 5 * 0.04 / count**0.5


def test_law() -> None:
    check_law(sinusoid)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("self.gap + (self.support - self.gap) *", "self.support *"),
        ("torch.randn(t.shape, generator=generator)", "torch.randn(1, generator=generator)"),
        ("self.noise_std * torch", "self.noise_std**2 * torch"),
        ("torch.linspace(-self.extent, self.extent", "torch.linspace(-self.support, self.support"),
    ],
    ids=["no gap", "one noise for all", "variance for deviation", "test within the data"],
)
def test_planted_bugs(mutate: Callable[..., ModuleType], old: str, new: str) -> None:
    with pytest.raises(AssertionError):
        check_law(mutate(sinusoid, (old, new)))


def ready(**kwargs: Any) -> SinusoidDataModule:
    data = SinusoidDataModule(**kwargs)
    data.setup()
    return data


def test_seed_fixes_everything() -> None:
    torch.manual_seed(1)
    first = ready()
    torch.manual_seed(2)
    again, other = ready(), ready(seed=1)
    assert again.train_set.inputs.equal(first.train_set.inputs)
    assert again.test_set.targets.equal(first.test_set.targets)
    assert again.train_set.rows.equal(first.train_set.rows)
    assert not other.train_set.inputs.equal(first.train_set.inputs)


def test_shapes_and_split() -> None:
    data = ready(batch_size=1000)
    assert (data.input_shape, data.num_features, data.num_targets, data.num_outputs) == ((1,), 1, 1, 1)
    assert (data.target_mean, data.target_std) == (0.0, 1.0)
    rows = torch.cat([data.train_set.rows, data.val_set.rows])
    assert rows.sort().values.equal(torch.arange(250))
    ((x, y),) = data.predict_dataloader()
    assert x.shape == y.shape == (401, 1)
    assert x.dtype == y.dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gap": 4.0}, "Expected `gap` < `support` < `extent`, but got 4.0, 4.0 and 6.0"),
        ({"extent": 3.0}, "Expected `gap` < `support` < `extent`"),
        ({"noise_std": 0}, "`noise_std`"),
        ({"num_samples": 1}, "`num_samples`"),
        ({"num_test": 1}, "`num_test`"),
        ({"frequency": float("nan")}, "`frequency`"),
        ({"val_fraction": 0}, "`val_fraction`"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SinusoidDataModule(**arguments)


def test_empty_validation_set() -> None:
    with pytest.raises(ValueError, match=r"the validation set .* none; raise `num_samples`, or raise `val_fraction`"):
        ready(num_samples=2, val_fraction=0.1)

"""The regressor: its likelihood against torch.distributions, with fixed and with learned noise."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.distributions import Normal
from torch.utils.data import DataLoader, TensorDataset

from lightning_dropout.modules import Regressor

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
]
MakeTrainer = Callable[..., Trainer]


def data(targets: Callable[[Tensor], Tensor], size: int = 30) -> DataLoader[Any]:
    x = torch.randn(size, 4, generator=torch.Generator().manual_seed(3))
    return DataLoader(TensorDataset(x, targets(x)), batch_size=8)


def two_columns(x: Tensor) -> Tensor:
    return x[:, :2] * 2


def one_column_flat(x: Tensor) -> Tensor:
    return x.sum(1)


@pytest.mark.parametrize("noise_std", [None, 1e-4, 0.1, 1.0, 30.0])
@pytest.mark.parametrize(("targets", "num_outputs"), [(two_columns, 2), (one_column_flat, 1)])
def test_the_loss_is_the_likelihood(
    make_trainer: MakeTrainer, noise_std: float | None, targets: Any, num_outputs: int
) -> None:
    net = nn.Linear(4, num_outputs * (1 if noise_std else 2))
    module, loader = Regressor(net, num_outputs, noise_std), data(targets)
    x, y = loader.dataset.tensors
    y = y.reshape(30, num_outputs).double()
    outputs = net(x).detach().double()
    mean, std = (outputs, noise_std) if noise_std else (outputs[:, :num_outputs], (outputs[:, num_outputs:] / 2).exp())
    nll = -Normal(mean, std).log_prob(y).mean().item()
    rmse = (mean - y).square().mean().sqrt().item()
    trainer = make_trainer()
    (validated,) = trainer.validate(module, loader, verbose=False)
    (tested,) = trainer.test(module, loader, verbose=False)
    assert validated == pytest.approx({"val/loss": nll, "val/rmse": rmse}, rel=1e-4)
    assert tested == pytest.approx({"test/loss": nll, "test/rmse": rmse}, rel=1e-4)
    prediction = torch.cat(trainer.predict(module, loader))  # type: ignore[arg-type]
    torch.testing.assert_close(prediction.double(), mean, atol=1e-5, rtol=1e-5)


def test_forward_is_the_pair_that_sampling_takes() -> None:
    mean, log_variance = Regressor(nn.Identity(), 4, noise_std=0.5)(torch.randn(3, 4))
    assert mean.shape == log_variance.shape == (3, 4)
    assert torch.equal(log_variance, torch.full((3, 4), 2 * math.log(0.5)))
    x = torch.randn(3, 4)
    mean, log_variance = Regressor(nn.Identity(), 2)(x)
    assert torch.equal(torch.cat([mean, log_variance], 1), x)


def test_fixed_noise_is_exact_behind_a_net_of_half_precision() -> None:
    _, log_variance = Regressor(nn.Identity(), 4, noise_std=0.1)(torch.zeros(2, 4, dtype=torch.bfloat16))
    torch.testing.assert_close(log_variance.exp().sqrt(), torch.full((2, 4), 0.1))


def test_training_learns_the_mean(make_trainer: MakeTrainer, memory: Any) -> None:
    loader = data(one_column_flat)
    module = Regressor(nn.Linear(4, 1), 1, 0.5, partial(torch.optim.Adam, lr=0.1))
    trainer = make_trainer(max_epochs=30, logger=memory)
    trainer.fit(module, loader, [loader, loader])
    losses = memory.trace("train/loss")
    assert losses[-1] < losses[0] - 1
    assert trainer.callback_metrics["val/rmse"] < 0.1
    assert trainer.callback_metrics["val/gap"] == 0.0  # the same rows twice


def test_learned_noise_learns_the_noise(make_trainer: MakeTrainer) -> None:
    """Loud where the first feature is positive, quiet where it is not."""

    def noisy(x: Tensor) -> Tensor:
        std = torch.where(x[:, 0] > 0, 1.0, 0.1)
        return torch.randn(len(x), generator=torch.Generator().manual_seed(4)) * std

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            positive = (x[:, :1] > 0).float()
            return self.head(torch.cat([positive, 1 - positive], 1))  # type: ignore[no-any-return]

    loader = data(noisy, size=2000)
    loader = DataLoader(loader.dataset, batch_size=500)
    module = Regressor(Net(), 1, optimizer=partial(torch.optim.Adam, lr=0.1))
    make_trainer(max_epochs=40).fit(module, loader)
    with torch.no_grad():
        _, log_variance = module(torch.tensor([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]]))
    assert log_variance.exp().sqrt().flatten().tolist() == pytest.approx([1.0, 0.1], rel=0.1)


def test_two_test_sets_do_not_mix(make_trainer: MakeTrainer) -> None:
    sets = [data(two_columns), data(lambda x: x[:, :2] + 10)]
    module, trainer = Regressor(nn.Linear(4, 2), 2, 1.0), make_trainer()
    alone = [trainer.test(module, each, verbose=False)[0]["test/rmse"] for each in sets]
    first, second = trainer.test(module, sets, verbose=False)
    assert first["test/rmse/dataloader_idx_0"] == alone[0]
    assert (first | second)["test/rmse/dataloader_idx_1"] == alone[1]


def test_an_interrupted_test_does_not_enter_the_next(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, trainer = Regressor(nn.Linear(4, 2), 2, 1.0), make_trainer()
    (expected,) = trainer.test(module, data(two_columns), verbose=False)

    def fail(*args: Any) -> None:
        raise RuntimeError("planted")

    with monkeypatch.context() as patch:
        patch.setattr(module, "on_test_batch_end", fail)
        with pytest.raises(RuntimeError, match="planted"):
            trainer.test(module, data(lambda x: x[:, :2] + 10), verbose=False)
    assert trainer.test(module, data(two_columns), verbose=False) == [expected]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_outputs": 0}, "Expected `num_outputs` of at least 1, but got 0"),
        ({"noise_std": 0.0}, r"Expected `noise_std` above 0, or None to learn it, but got 0\.0"),
        ({"noise_std": math.inf}, "Expected `noise_std`"),
        ({"noise_std": math.nan}, "Expected `noise_std`"),
    ],
)
def test_impossible_arguments(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Regressor(nn.Identity(), **arguments)


@pytest.mark.parametrize(("width", "noise_std", "expected"), [(1, None, 2), (2, 0.1, 1), (4, None, 2)])
def test_a_net_that_does_not_fit(width: int, noise_std: float | None, expected: int) -> None:
    message = rf"Expected the net to return {expected} values a sample for num_outputs=1.*learned noise needs twice"
    with pytest.raises(ValueError, match=message):
        Regressor(nn.Linear(4, width), 1, noise_std)(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="Expected the net to return"):
        Regressor(nn.Flatten(0), 1, noise_std)(torch.zeros(3, 4))

"""What both modules share: optimizers from partials, checkpoints that load safely, and the generalisation gap."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_dropout.modules import Classifier, Regressor, warmup_cosine

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
]
MakeTrainer = Callable[..., Trainer]


def loader(offset: int, size: int = 10) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(offset)
    x = torch.randn(size, 4, generator=generator)
    return DataLoader(TensorDataset(x, torch.randint(0, 3, (size,), generator=generator)), batch_size=4)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.9), nn.Linear(16, 3))


def loss_in_eval_mode(module: Classifier, data: DataLoader[Any]) -> float:
    x, y = data.dataset.tensors
    with torch.no_grad():
        return float(F.cross_entropy(module.net.eval()(x), y))


def test_gap_is_validation_minus_training_loss_both_in_eval_mode(make_trainer: MakeTrainer) -> None:
    """Seen as whole sets: the last batch is smaller, and a mean of batches would weigh it like the others."""
    module, train, val = Classifier(net(), 3), loader(0, size=9), loader(1)
    trainer = make_trainer(max_epochs=2)
    trainer.fit(module, train, [val, train])
    expected = loss_in_eval_mode(module, val) - loss_in_eval_mode(module, train)
    assert trainer.callback_metrics["val/gap"].item() == pytest.approx(expected, abs=1e-6)
    assert trainer.callback_metrics["val/loss"].item() == pytest.approx(loss_in_eval_mode(module, val), abs=1e-6)
    x, y = val.dataset.tensors
    accuracy = (module.net(x).argmax(1) == y).double().mean().item()
    assert trainer.callback_metrics["val/accuracy"].item() == pytest.approx(accuracy)  # of the first loader alone


def test_overfitting_makes_the_gap_positive(make_trainer: MakeTrainer) -> None:
    wide = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 3))
    train, val = loader(0), loader(1)  # labels are noise: nothing to learn but the rows themselves
    trainer = make_trainer(max_epochs=30)
    trainer.fit(Classifier(wide, 3, partial(torch.optim.Adam, lr=0.02)), train, [val, train])
    assert trainer.callback_metrics["val/gap"] > 0.5


def test_no_gap_without_a_second_loader(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(max_epochs=1)
    trainer.fit(Classifier(net(), 3), loader(0), loader(1))
    assert {"val/loss", "val/accuracy"} <= trainer.callback_metrics.keys()
    assert "val/gap" not in trainer.callback_metrics


def test_the_sanity_check_does_not_enter_the_first_validation(make_trainer: MakeTrainer) -> None:
    module, val = Classifier(net(), 3), loader(1)
    trainer = make_trainer(max_epochs=1, num_sanity_val_steps=2)
    trainer.fit(module, loader(0), [val, loader(0)])
    assert trainer.callback_metrics["val/loss"].item() == pytest.approx(loss_in_eval_mode(module, val), abs=1e-6)


def test_a_diverged_batch_makes_the_loss_nan(make_trainer: MakeTrainer) -> None:
    """Not left out, as torchmetrics would, so that early stopping and people see it."""
    val = loader(1)
    val.dataset.tensors[0][9] = math.nan
    (metrics,) = make_trainer().validate(Classifier(net(), 3), val, verbose=False)
    assert math.isnan(metrics["val/loss"])


def test_optimizer_and_scheduler_come_from_partials(make_trainer: MakeTrainer, memory: Any) -> None:
    rates: list[float] = []

    class Watched(Classifier):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            rates.append(self.optimizers().param_groups[0]["lr"])

    optimizer = partial(torch.optim.SGD, lr=0.5, momentum=0.9)
    module = Watched(net(), 3, optimizer, partial(warmup_cosine, warmup_fraction=0.5))
    trainer = make_trainer(max_epochs=2)
    trainer.fit(module, loader(0))
    assert isinstance(trainer.optimizers[0], torch.optim.SGD)
    # one scheduler step an optimizer step: after step n of 6 stands the rate of step n + 1
    assert rates == pytest.approx([0.5 * share for share in (2 / 3, 1, 1, 0.75, 0.25, 0)])

    make_trainer(max_epochs=1).fit(default := Classifier(net(), 3), loader(0))
    assert isinstance(default.optimizers().optimizer, torch.optim.AdamW)


def test_the_schedule_counts_optimizer_steps_under_accumulation(make_trainer: MakeTrainer) -> None:
    module = Classifier(net(), 3, partial(torch.optim.SGD, lr=1.0), warmup_cosine)
    trainer = make_trainer(max_epochs=2, accumulate_grad_batches=2)
    trainer.fit(module, loader(0))
    assert trainer.global_step == 4
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0)  # walked to its end


def test_a_schedule_needs_a_length(make_trainer: MakeTrainer) -> None:
    module = Classifier(net(), 3, scheduler=warmup_cosine)
    message = r"Expected a run of known length for the learning-rate schedule, but got inf steps; set `max_steps`"
    with pytest.raises(ValueError, match=message):
        make_trainer(max_epochs=-1).fit(module, loader(0))


@pytest.mark.parametrize(
    "make",
    [
        partial(Classifier, num_classes=3, label_smoothing=0.1),
        partial(Regressor, num_outputs=3, noise_std=0.5),
    ],
)
def test_checkpoints_load_safely_and_hold_no_objects(
    make_trainer: MakeTrainer, memory: Any, tmp_path: Path, make: Any
) -> None:
    def some_optimizer(parameters: Any) -> torch.optim.Optimizer:  # a local function: nothing can pickle it
        return torch.optim.SGD(parameters, lr=0.1)

    x, y = loader(0).dataset.tensors
    data = DataLoader(TensorDataset(x, y if make.func is Classifier else x[:, :3]), batch_size=4)
    module = make(net(), optimizer=some_optimizer, scheduler=lambda optimizer, total_steps: warmup_cosine(optimizer, 9))
    trainer = make_trainer(max_epochs=1, logger=memory)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    checkpoint = torch.load(tmp_path / "end.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"] == dict(module.hparams) == make.keywords
    assert memory.hparams == make.keywords

    twin = type(module).load_from_checkpoint(tmp_path / "end.ckpt", net=net(), optimizer=some_optimizer)
    assert dict(twin.hparams) == make.keywords
    module.eval(), twin.eval()
    for one, other in zip(
        torch.utils._pytree.tree_leaves(module(x)), torch.utils._pytree.tree_leaves(twin(x)), strict=True
    ):
        assert torch.equal(one, other)
    make_trainer(max_epochs=2).fit(make(net(), optimizer=some_optimizer), data, ckpt_path=tmp_path / "end.ckpt")

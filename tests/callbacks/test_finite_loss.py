"""A training whose loss is no number ends with weights and checkpoints that are some."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_dropout.callbacks import DropoutScheduler, FiniteLoss

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]
MakeTrainer = Callable[..., Any]
BAD = 4  # the batch, of three in an epoch, whose loss is spoilt


class AsOnAnAccelerator(FiniteLoss):
    """Sees losses that are not on the CPU, where asking for a value is free."""

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        super().on_before_backward(trainer, pl_module, loss.detach().as_subclass(Elsewhere))


class Elsewhere(Tensor):
    device = torch.device("meta")  # type: ignore[assignment]


def diverge(
    make_trainer: MakeTrainer, module: Any, loader: DataLoader[Any], folder: Path, value: float, *callbacks: Any
) -> None:
    step, seen = module.training_step, []

    def spoilt(batch: Any, batch_idx: int) -> Tensor:
        seen.append(batch)
        loss: Tensor = step(batch, batch_idx)
        return loss * value if len(seen) == BAD + 1 else loss

    module.training_step = spoilt
    checkpoint = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    make_trainer(*callbacks, checkpoint, max_epochs=3, log_every_n_steps=100).fit(module, loader)


def checkpoints(folder: Path) -> dict[str, bool]:
    """Return for each checkpoint whether its weights are finite."""
    states = {path.stem: torch.load(path, weights_only=True)["state_dict"] for path in folder.glob("*.ckpt")}
    return {name: all(bool(each.isfinite().all()) for each in state.values()) for name, state in states.items()}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("callback", [FiniteLoss, AsOnAnAccelerator])
@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_the_run_ends_with_step_and_rates_and_finite_checkpoints(
    make_trainer: MakeTrainer,
    make_recorder: Callable[..., Any],
    loader: DataLoader[Any],
    tmp_path: Path,
    callback: type[FiniteLoss],
    value: float,
) -> None:
    module = make_recorder()
    with pytest.raises(RuntimeError, match=f"got {value} at step [45].*DropoutScheduler at 0.25 to 0.25.*ckpt_path="):
        diverge(make_trainer, module, loader, tmp_path, value, DropoutScheduler(rate=0.25), callback())
    assert checkpoints(tmp_path) == {f"step={step}": True for step in range(1, BAD + 1)}
    if callback is FiniteLoss:
        assert all(bool(weight.isfinite().all()) for weight in module.parameters())
    again = make_recorder()
    path = tmp_path / "step=3.ckpt"  # the end of an epoch
    make_trainer(DropoutScheduler(rate=0.25), callback(), max_epochs=3).fit(again, loader, ckpt_path=path)
    assert again.trainer.global_step >= 9  # the recovery command works; Lightning 2.4 counts one step twice


@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_without_it_weights_and_checkpoints_are_spoilt(
    make_trainer: MakeTrainer, make_recorder: Callable[..., Any], loader: DataLoader[Any], tmp_path: Path
) -> None:
    diverge(make_trainer, make_recorder(), loader, tmp_path, float("nan"))
    assert [*checkpoints(tmp_path).values()].count(False) == 9 - BAD


def test_a_finite_loss_passes(make_trainer: MakeTrainer, make_recorder: Callable[..., Any], loader: Any) -> None:
    make_trainer(FiniteLoss(), max_epochs=1).fit(make_recorder(), loader)


def test_whoever_saves_on_the_way_out_is_refused_too(
    make_trainer: MakeTrainer, make_recorder: Callable[..., Any], loader: Any, tmp_path: Path
) -> None:
    class OnTheWayOut(ModelCheckpoint):
        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
            with pytest.raises(RuntimeError, match="Expected `loss` to be finite"):
                trainer.save_checkpoint(tmp_path / "late.ckpt")

    with pytest.raises(RuntimeError, match="Expected `loss` to be finite"):
        diverge(
            make_trainer, make_recorder(), loader, tmp_path, float("nan"), AsOnAnAccelerator(), OnTheWayOut(tmp_path)
        )
    assert all(checkpoints(tmp_path).values())

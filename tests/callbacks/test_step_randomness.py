"""Interrupted and resumed equals uninterrupted, bit by bit; and what is missing from it without each part."""

import random
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning import __version__
from lightning.pytorch import Callback, LightningModule, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchdata.stateful_dataloader import StatefulDataLoader

from lightning_dropout.callbacks import DropoutScheduler, GracefulStop, RankRandomness, StepRandomness
from lightning_dropout.data.loaders import Rows, RowsDataModule
from lightning_dropout.nn import StochasticDepth
from lightning_dropout.schedules import Linear

OLD = __version__.startswith("2.4.")
Maker = Callable[[], list[Any]]


class Jitter(nn.Module):
    """Noise from numpy, Python and a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.noise = torch.Generator()

    def forward(self, x: Tensor) -> Tensor:
        own = torch.rand((), generator=self.noise).item()
        return x * (1 + 0.1 * (own + random.random() + np.random.rand()))  # noqa: NPY002


class Module(LightningModule):
    """A tiny net with every kind of randomness, Adam and a learning rate that moves; it notes what it did."""

    def __init__(self) -> None:
        super().__init__()
        branch = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.2))
        self.net = nn.Sequential(
            nn.Linear(4, 8), Jitter(), nn.Dropout(0.5), StochasticDepth(branch, 0.3), nn.Linear(8, 3)
        )
        self.trace: dict[int, tuple[Tensor, Tensor, float]] = {}  # by batch of the run: loss, batch, rate

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.trace[self.trainer.fit_loop.total_batch_idx] = loss.detach(), batch[0], self.net[2].p
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        torch.rand(3)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), 0.01)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Noisy(Dataset[Any]):
    """Ten samples that draw from every global generator when they are read."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        drawn = torch.rand(()).item() + random.random() + np.random.rand()  # noqa: NPY002
        return torch.full((4,), row + drawn), row % 3


def noisy(x: Tensor) -> Tensor:
    return x + torch.rand_like(x) + random.random() + np.random.rand()  # noqa: NPY002


class Data(RowsDataModule):
    """Ours: rows that are shuffled and augmented."""

    def make_sets(self) -> tuple[Rows, Rows, Rows]:
        rows = torch.arange(10)
        x, y = rows.float()[:, None].expand(10, 4), rows % 3
        return Rows(x, y, rows, noisy), Rows(x, y, rows), Rows(x, y, rows)

    def cure_of_empty(self, name: str) -> str:
        return "none"


def ours(num_workers: int = 0) -> dict[str, Any]:
    return {"datamodule": Data(batch_size=2, num_workers=num_workers, gap_loader=False)}


def users(loader: Any = DataLoader, shuffle: bool = True) -> dict[str, Any]:
    return {
        "train_dataloaders": loader(Noisy(), batch_size=2, shuffle=shuffle),
        "val_dataloaders": DataLoader(Noisy(), batch_size=5),
    }


class Saving(Callback):
    """Saves at every moment at which checkpoints are saved, between optimizer steps."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, trainer: Any, moment: str) -> None:
        if not trainer.fit_loop._should_accumulate():
            trainer.save_checkpoint(self.folder / f"{trainer.fit_loop.total_batch_idx}-{moment}.ckpt")

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self.save(trainer, "batch")

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.save(trainer, "validation")

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.save(trainer, "epoch")


def step() -> list[Any]:
    return [StepRandomness(3)]


def train(make_trainer: Any, callbacks: Maker, data: dict[str, Any], *more: Any, **arguments: Any) -> Module:
    """Train two epochs of five batches, from a checkpoint if `ckpt_path` is given, in what stands for a process."""
    ckpt_path = arguments.pop("ckpt_path", None)
    seed_everything(1, verbose=False)
    module = Module()
    torch.rand(0 if ckpt_path is None else 5)  # nothing says that both processes have drawn alike
    trainer = make_trainer(
        *callbacks(),
        DropoutScheduler(rate=Linear(0.5, 0.1)),
        *more,
        **{"max_epochs": 2, "num_sanity_val_steps": 0, **arguments},
    )
    trainer.fit(module, **data, ckpt_path=ckpt_path)
    return module


def same(left: Any, right: Any) -> bool:
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return torch.equal(left, right) if isinstance(left, Tensor) else bool(left == right)


def equal_runs(whole: Module, resumed: Module) -> bool:
    """Whether weights, optimizer, learning rate, and loss, batch and rate of every step are the same, bit by bit."""
    first = min(resumed.trace, default=len(whole.trace))
    return (
        same({batch: seen for batch, seen in whole.trace.items() if batch >= first}, resumed.trace)
        and same(whole.state_dict(), resumed.state_dict())
        and same(whole.optimizers().state_dict(), resumed.optimizers().state_dict())
    )


def resume_everywhere(
    make_trainer: Any, folder: Path, callbacks: Maker, data: Callable[[], Any], **arguments: Any
) -> dict[str, bool]:
    """Return for each moment at which a checkpoint was saved whether the run that goes on there is the whole one."""
    whole = train(make_trainer, callbacks, data(), Saving(folder), **arguments)
    paths = sorted(folder.glob("*.ckpt"), key=lambda path: int(path.stem.split("-")[0]))
    assert len(paths) >= 6
    return {
        path.stem: equal_runs(whole, train(make_trainer, callbacks, data(), ckpt_path=path, **arguments))
        for path in paths
    }


def moments(result: dict[str, bool], equal: bool) -> set[str]:
    return {moment for moment, was_equal in result.items() if was_equal is equal}


@pytest.fixture(autouse=True)
def _no_global_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")  # that `seed_everything` sets, to be taken back


WITHIN_EPOCHS = {"0-batch", "1-batch", "2-batch", "3-batch", "5-batch", "6-batch", "7-batch", "8-batch"}


def check_equal(result: dict[str, bool]) -> None:
    different = moments(result, equal=False)
    if OLD:  # Lightning 2.4 counts the batch after which it was interrupted once more
        different = {moment for moment in different if moment.endswith("epoch")}
    assert different == set()


@pytest.mark.parametrize(
    "arguments", [{}, {"val_check_interval": 2}, {"accumulate_grad_batches": 2}, {"limit_train_batches": 4}], ids=str
)
def test_a_resumed_run_equals_the_whole_one(make_trainer: Any, tmp_path: Path, arguments: dict[str, Any]) -> None:
    result = resume_everywhere(make_trainer, tmp_path, step, ours, **arguments)
    check_equal(result)


@pytest.mark.slow
def test_a_resumed_run_equals_the_whole_one_with_worker_processes(make_trainer: Any, tmp_path: Path) -> None:
    check_equal(resume_everywhere(make_trainer, tmp_path, step, lambda: ours(num_workers=2)))


class Told(Callback):
    """A signal in the validation behind the first epoch."""

    def on_validation_batch_start(self, trainer: Any, *args: Any) -> None:
        signal.raise_signal(signal.SIGTERM)


def test_a_checkpoint_of_a_validation_that_is_done_again_takes_no_epoch_away(make_trainer: Any, tmp_path: Path) -> None:
    whole = train(make_trainer, step, ours(), max_epochs=3)
    with pytest.raises(SystemExit):
        train(make_trainer, lambda: [*step(), GracefulStop(dirpath=str(tmp_path)), Told()], ours(), max_epochs=3)
    saving = ModelCheckpoint(tmp_path / "more", save_top_k=-1)
    resumed = train(make_trainer, lambda: [*step(), saving], ours(), ckpt_path=tmp_path / "stopped.ckpt", max_epochs=3)
    assert [*resumed.trace] == [*whole.trace][5:]
    assert equal_runs(whole, resumed)


@pytest.mark.parametrize("way", [list, lambda: [RankRandomness(3)]], ids=["nothing", "ranks"])
def test_it_differs_without(make_trainer: Any, tmp_path: Path, way: Maker) -> None:
    result = resume_everywhere(make_trainer, tmp_path, way, ours)
    assert moments(result, equal=True) <= {"9-batch", "9-validation", "9-epoch"}  # nothing is left to do


@pytest.mark.skipif(OLD, reason="Lightning 2.4 counts the batch after which it was interrupted once more")
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        # A stateful loader with augmentation in this process. A checkpoint of an epoch's last batch has not counted it,
        # and Lightning makes one iterator more, so that the first batch is augmented by other numbers.
        (lambda: users(StatefulDataLoader, shuffle=False), {"4-batch"}),
        (users, WITHIN_EPOCHS | {"4-batch"}),  # torch's own loader begins its epoch again
    ],
    ids=["stateful", "plain"],
)
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch")
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
def test_loaders_of_others(make_trainer: Any, tmp_path: Path, data: Callable[[], Any], expected: set[str]) -> None:
    result = resume_everywhere(make_trainer, tmp_path, step, data)
    assert moments(result, equal=False) == expected & result.keys()


class OnlyAtBatchStart(StepRandomness):
    """Mutant: what is drawn between batches is left to chance."""

    def _seed(self, trainer: Any, where: int, batches: int) -> None:
        if where:
            super()._seed(trainer, where, batches)


class IteratorLeftAlone(StepRandomness):
    """Mutant: the first iterator after a resume is drawn by whatever came before."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        self._seed(trainer, 0, 0)


@pytest.mark.skipif(OLD, reason="Lightning 2.4 makes another iterator")
@pytest.mark.parametrize("mutant", [OnlyAtBatchStart, IteratorLeftAlone])
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch")
def test_what_is_drawn_between_batches_counts(make_trainer: Any, tmp_path: Path, mutant: type[StepRandomness]) -> None:
    result = resume_everywhere(make_trainer, tmp_path, lambda: [mutant(3)], users)
    assert "4-epoch" in moments(result, equal=False)


class ByGlobalStep(StepRandomness):
    """Mutant: micro batches of one optimizer step get one seed."""

    def _seed(self, trainer: Any, where: int, batches: int) -> None:
        super()._seed(trainer, where, trainer.global_step)


class Masks(Module):
    def __init__(self) -> None:
        super().__init__()
        self.masks: list[tuple[bool, ...]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.masks.append(tuple((nn.functional.dropout(torch.ones(64)) > 0).tolist()))
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize(("kind", "different"), [(StepRandomness, 10), (ByGlobalStep, 6)])
def test_micro_batches_have_masks_of_their_own(make_trainer: Any, kind: type[StepRandomness], different: int) -> None:
    module = Masks()
    make_trainer(kind(3), max_epochs=2, accumulate_grad_batches=2).fit(module, **ours())
    assert len(module.masks) == 10
    assert len(set(module.masks)) == different


def draws(rank: int = 0, batches: int = 0, where: int = 1, seed: int = 0) -> tuple[float, ...]:
    callback = StepRandomness(seed)
    own = torch.Generator()
    trainer = SimpleNamespace(
        callbacks=[], world_size=2, global_rank=rank, fit_loop=SimpleNamespace(total_batch_idx=batches - 1)
    )
    callback.setup(trainer, None, "fit")
    callback._generators = [torch.default_generator], [own]
    callback._seed(trainer, where, batches)
    return (
        torch.rand(()).item(),
        torch.rand((), generator=own).item(),
        random.random(),
        float(np.random.rand()),  # noqa: NPY002
    )


def test_every_generator_differs_between_seeds_ranks_batches_and_places() -> None:
    places = [
        {"rank": rank, "batches": batches, "where": where, "seed": seed}
        for rank in range(2)
        for batches in range(3)
        for where in range(2)
        for seed in range(2)
    ]
    drawn = [draws(**place) for place in places]
    assert all(len(set(column)) == len(places) for column in zip(*drawn, strict=True))
    assert drawn == [draws(**place) for place in places]


def test_evaluation_is_left_alone(make_trainer: Any) -> None:
    data = Data(batch_size=2, gap_loader=False)
    trainer = make_trainer(StepRandomness(3), max_epochs=1)
    for run in (trainer.validate, trainer.test):
        torch.manual_seed(0)
        module = Module()
        module.test_step = lambda batch, batch_idx: None  # type: ignore[method-assign]
        run(module, datamodule=data, verbose=False)
        with_callback = torch.rand(())
        torch.manual_seed(0)
        module = Module()
        module.test_step = lambda batch, batch_idx: None  # type: ignore[method-assign]
        getattr(make_trainer(max_epochs=1), run.__name__)(module, datamodule=data, verbose=False)
        assert torch.rand(()) == with_callback


def test_beside_rank_randomness(make_trainer: Any) -> None:
    with pytest.raises(ValueError, match="RankRandomness or StepRandomness, but got both"):
        make_trainer(StepRandomness(), RankRandomness(), max_epochs=1).fit(Module(), **ours())


def test_a_seed_is_a_whole_number() -> None:
    with pytest.raises(ValueError, match=r"Expected `seed` to be a whole number, but got 0\.5"):
        StepRandomness(0.5)  # type: ignore[arg-type]


def test_the_seed_of_the_checkpoint_wins_over_that_of_the_process(
    make_trainer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resumed(seed: int | None, process: str) -> Module:
        module = Module()
        monkeypatch.setenv("PL_GLOBAL_SEED", process)
        make_trainer(StepRandomness(seed), DropoutScheduler(rate=0.1), max_epochs=2).fit(
            module, **users(), ckpt_path=tmp_path / "4-epoch.ckpt"
        )
        return module

    train(make_trainer, lambda: [StepRandomness()], users(), Saving(tmp_path))
    state = torch.load(tmp_path / "4-epoch.ckpt", weights_only=True)["callbacks"]["StepRandomness"]
    assert state == {"seed": 1}
    first = resumed(None, "1")
    assert same(first.trace, resumed(None, "2").trace)
    with pytest.warns(UserWarning, match="goes on with seed 5 instead of 1: reproducible, but not bit by bit"):
        assert not same(first.trace, resumed(5, "1").trace)
    make_trainer(StepRandomness(5), DropoutScheduler(rate=0.1)).validate(
        Module(), users()["val_dataloaders"], ckpt_path=tmp_path / "4-epoch.ckpt", verbose=False
    )  # says nothing

"""What test_ranks.py has several processes do: ``python ranks.py <folder> <strategy> <processes> <part>``.

Every rank writes what it has seen into a file of its own. The functions also run in one process, for the numbers that
several must come to.
"""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_dropout import (
    DropoutScheduler,
    Linear,
    MCDropout,
    RankRandomness,
    StochasticDepthScheduler,
    find_sites,
)
from lightning_dropout.callbacks import gather_predictions
from lightning_dropout.data.loaders import Rows, RowsDataModule
from lightning_dropout.modules import Classifier, FullyShardedStrategy
from lightning_dropout.nn import StochasticDepth

T = 4


class Net(nn.Module):
    """Two blocks that only some samples run through, and a batch normalisation, whose buffers DDP sends around."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16))
        branches = (nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Dropout(0.3)) for _ in range(2))
        self.blocks = nn.ModuleList(StochasticDepth(branch, drop_prob=0.5) for branch in branches)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)  # type: ignore[no-any-return]


class Points(RowsDataModule):
    """With 2 ranks, batches of 4 would be one more on the first of them: of 5 and 4 rows, and of 33 and 32."""

    def __init__(self) -> None:
        super().__init__(batch_size=4)

    def make_sets(self) -> tuple[Rows, Rows, Rows]:
        generator = torch.Generator().manual_seed(0)
        x, y = torch.randn(106, 4, generator=generator), torch.randint(0, 3, (106,), generator=generator)
        train, val, test = torch.arange(106).split([32, 9, 65])
        return Rows(x, y, train), Rows(x, y, val), Rows(x, y, test)

    def cure_of_empty(self, name: str) -> str:
        return "never"


class Noting(Classifier):
    """Notes how many rows each step has, and how many of them each block runs."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(Net(), num_classes=3, optimizer=partial(torch.optim.SGD, lr=0.1))
        self.kept: list[int] = []
        self.rows: dict[str, list[int]] = {"validate": [], "test": []}
        for block in self.net.blocks:  # type: ignore[union-attr]
            block.branch[0].register_forward_pre_hook(self.note)

    def note(self, layer: nn.Module, args: tuple[Tensor]) -> None:
        if self.training:
            self.kept.append(len(args[0]))

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.rows["validate"].append(len(batch[0]))
        super().validation_step(batch, batch_idx, dataloader_idx)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.rows["test"].append(len(batch[0]))
        super().test_step(batch, batch_idx, dataloader_idx)


@contextmanager
def no_communication() -> Iterator[None]:
    names = ("all_reduce", "all_gather", "all_gather_object", "broadcast", "broadcast_object_list", "barrier")
    patches = [mock.patch(f"torch.distributed.{name}", side_effect=AssertionError(name)) for name in names]
    for patch in patches:
        patch.start()
    yield
    for patch in patches:
        patch.stop()


class SilentDropoutScheduler(DropoutScheduler):
    def on_train_batch_start(self, *args: Any) -> None:
        with no_communication():
            super().on_train_batch_start(*args)


class SilentDepthScheduler(StochasticDepthScheduler):
    def on_train_batch_start(self, *args: Any) -> None:
        with no_communication():
            super().on_train_batch_start(*args)


def make_trainer(strategy: str, processes: int, *callbacks: Any, **arguments: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=processes,
        strategy=FullyShardedStrategy() if strategy == "fsdp" else strategy,
        callbacks=[*callbacks],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **arguments,
    )


def train(strategy: str, processes: int) -> dict[str, Any]:
    module = Noting()
    schedulers = [
        SilentDropoutScheduler(rate=Linear(0.5, 0.1)),
        SilentDepthScheduler(scale=Linear(0.0, 1.0)),
    ]
    rates: list[dict[str, float]] = []

    trainer = make_trainer(strategy, processes, *schedulers, RankRandomness(seed=1), max_epochs=2)
    original = module.training_step

    def training_step(batch: Any, batch_idx: int) -> Tensor:
        rates.append({site.kind: float(site.rate) for site in find_sites(module.net)})
        return original(batch, batch_idx)

    module.training_step = training_step  # type: ignore[method-assign]
    trainer.fit(module, Points())
    weights = [getattr(weight, "full_tensor", lambda weight=weight: weight)() for weight in module.parameters()]
    return {
        "rates": rates,
        "kept": module.kept,
        "validated": module.rows["validate"],
        "logged": {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("val/")},
        "sharded": [type(weight).__name__ == "DTensor" for weight in module.parameters()],
        "weights": torch.cat([weight.detach().flatten() for weight in weights]).tolist(),
    }


def evaluate(strategy: str, processes: int) -> dict[str, Any]:
    result: dict[str, Any] = {}
    module = Noting()
    mc = partial(MCDropout, T, task="multiclass", masks="shared", kinds=("dropout", "drop_path"))
    result["own"] = make_trainer(strategy, processes, mc()).test(module, Points(), verbose=False)[0]
    result["tested"] = module.rows["test"]

    # loaders of the user's, for which Lightning repeats samples: the seventh of rank 1 is a batch by itself, or not
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(13, 4, generator=generator), torch.randint(0, 3, (13,), generator=generator)
    far = torch.randn(7, 4, generator=generator) * 5
    loaders = [DataLoader(TensorDataset(x, y), 6), DataLoader(TensorDataset(far, torch.zeros(7).long()), 6)]
    callback = mc(ood=["far"])
    seen: dict[int, list[float]] = {0: [], 1: []}

    def observe(dataloader_idx: int, batch: Any, sides: Any, labels: Any) -> None:
        assert len(batch[0]) == len(sides["mc"].entropy) == len(sides["det"].mean)
        assert labels is None or len(labels) == len(batch[0])
        seen[dataloader_idx] += batch[0][:, 0].tolist()

    callback.observers.append(observe)
    trainer = make_trainer(strategy, processes, callback)
    found = trainer.test(Noting(), loaders, verbose=False)
    result["users"] = {key: value for part in found for key, value in part.items() if "/test_" not in key}
    result["seen"] = seen
    x[0] = torch.nan  # the one that is repeated
    loader = DataLoader(TensorDataset(x, y), 6)
    result["invalid"] = make_trainer(strategy, processes, mc(labels=None)).test(Noting(), loader, verbose=False)[0]

    trainer = make_trainer(strategy, processes, mc(return_uncertainty=True))
    batches = trainer.predict(Noting(), Points())
    result["batches"] = len(batches or [])
    gathered = gather_predictions(trainer, batches)
    result["predicted"] = gathered
    return result


class Ones(LightningModule):
    """Writes its masks down."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.dropout = nn.Dropout(0.3)
        self.masks: list[Tensor] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        kept = self.dropout(torch.ones(16384)) != 0
        self.masks.append(kept)
        return self.weight * kept.float().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def masks(strategy: str, processes: int) -> dict[str, Any]:
    result = {}
    for name, callbacks in (("without", []), ("with", [RankRandomness(seed=1)])):
        torch.manual_seed(0)
        module = Ones()
        trainer = make_trainer(strategy, processes, *callbacks, max_steps=2)
        trainer.fit(module, DataLoader(torch.zeros(2 * processes)))  # type: ignore[arg-type]
        result[name] = torch.stack(module.masks)
    return result


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    folder, strategy, processes, parts = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4:]
    found = {part: {"train": train, "evaluate": evaluate, "masks": masks}[part](strategy, processes) for part in parts}
    torch.save(found, folder / f"{torch.distributed.get_rank()}.pt")

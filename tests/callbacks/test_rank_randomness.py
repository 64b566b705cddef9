"""Masks that differ between ranks: seeds in one process, real masks in two."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lightning_dropout.callbacks import RankRandomness

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
]


def draws(callback: RankRandomness, rank: int = 0, step: int = 0, world_size: int = 2) -> tuple[float, ...]:
    """Return what the generators give after the start of a training, all having been seeded alike before."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    callback.on_train_start(SimpleNamespace(world_size=world_size, global_rank=rank, global_step=step), None)
    return torch.rand(()).item(), float(np.random.rand()), random.random()  # noqa: NPY002


@pytest.fixture(autouse=True)
def _no_global_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)


@pytest.mark.parametrize("seed", [None, 0, 7])
def test_every_generator_differs_between_ranks_and_repeats(seed: int | None) -> None:
    callback = RankRandomness(seed)
    by_rank = [draws(callback, rank) for rank in range(4)]
    for generator in zip(*by_rank, strict=True):
        assert len(set(generator)) == 4
    assert by_rank == [draws(RankRandomness(seed), rank) for rank in range(4)]


def test_a_resumed_run_does_not_replay_its_beginning() -> None:
    assert draws(RankRandomness(0), step=0) != draws(RankRandomness(0), step=100)


def test_the_seed_is_the_argument_else_that_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert draws(RankRandomness(0)) != draws(RankRandomness(1))
    of_torch = draws(RankRandomness())
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    assert draws(RankRandomness()) == draws(RankRandomness(5)) != of_torch
    assert draws(RankRandomness(1)) != draws(RankRandomness(5))


def test_one_process_is_left_alone(make_trainer: Any, make_recorder: Any, loader: Any) -> None:
    untouched = draws(SimpleNamespace(on_train_start=lambda *args: None))  # type: ignore[arg-type]
    assert draws(RankRandomness(3), world_size=1) == untouched
    weights = []
    for callbacks in ([], [RankRandomness(3)]):
        torch.manual_seed(0)
        module = make_recorder()
        make_trainer(*callbacks, max_epochs=1).fit(module, loader)
        weights.append(torch.cat([parameter.detach().flatten() for parameter in module.parameters()]))
    assert torch.equal(*weights)


def test_a_seed_is_a_whole_number() -> None:
    with pytest.raises(ValueError, match=r"Expected `seed` to be a whole number, but got 0\.5"):
        RankRandomness(0.5)  # type: ignore[arg-type]


TWO_RANKS = """
import json, sys, warnings
from pathlib import Path
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from lightning_dropout import DropoutScheduler, Linear, MCDropout, RankRandomness

warnings.filterwarnings("ignore")


class Module(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 32), nn.Dropout(0.5), nn.Linear(32, 3))
        self.masks, self.rates, self.tested = [], [], []
        self.net[1].register_forward_hook(self.note)

    def note(self, layer, args, output):
        if layer.training:
            (self.masks if self.training else self.tested).append((output != 0).int().flatten()[:64].tolist())
            self.rates.append(layer.p)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def test_step(self, batch, batch_idx):
        self(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


if __name__ == "__main__":
    folder, with_callback = Path(sys.argv[1]), sys.argv[2] == "with"
    seed_everything(1, verbose=False)
    module = Module()
    x, y = torch.randn(16, 4), torch.randint(0, 3, (16,))
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
        callbacks=[DropoutScheduler(rate=Linear(0.8, 0.2)), MCDropout(3, task="multiclass")]
        + [RankRandomness()] * with_callback,
    )
    trainer.fit(module, DataLoader(TensorDataset(x, y), batch_size=4))
    trained, rates = list(module.masks), list(module.rates)
    metrics = trainer.test(module, DataLoader(TensorDataset(x, y), batch_size=4), verbose=False)[0]
    result = {"masks": trained, "rates": rates, "tested": module.tested, "metrics": metrics}
    result["weights"] = module.net[0].weight.flatten().tolist()
    (folder / f"{trainer.global_rank}.json").write_text(json.dumps(result))
"""


def run_two_ranks(folder: Path, way: str) -> tuple[dict[str, Any], dict[str, Any]]:
    folder.mkdir()
    script = folder / "two_ranks.py"
    script.write_text(TWO_RANKS)
    environment = {key: value for key, value in os.environ.items() if key != "PL_GLOBAL_SEED"}
    subprocess.run(
        [sys.executable, str(script), str(folder), way],
        env={**environment, "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=240,
        cwd=folder,
    )
    first, second = (json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1))
    return first, second


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    without = run_two_ranks(tmp_path / "without", "without")
    assert without[0]["masks"] == without[1]["masks"]  # why the callback is there

    one, other = run_two_ranks(tmp_path / "first", "with")
    assert len(one["masks"]) == len(other["masks"]) == 4  # two epochs of two batches on each rank
    for mask, others_mask in zip(one["masks"], other["masks"], strict=True):
        assert mask != others_mask
    assert one["rates"] == other["rates"]
    assert one["rates"] == pytest.approx([0.8, 0.65, 0.5, 0.35])
    assert one["weights"] == other["weights"]
    assert run_two_ranks(tmp_path / "second", "with") == (one, other)

    # Monte-Carlo dropout: masks of its own on each rank, one result
    # One pass is run twice, to see that reuse changes nothing.
    assert len({tuple(mask) for mask in one["tested"]}) == 2 * 3
    assert not [mask for mask in one["tested"] if mask in other["tested"]]
    assert one["metrics"] == other["metrics"]
    assert one["metrics"]["test/mc/accuracy"] * 16 == pytest.approx(round(one["metrics"]["test/mc/accuracy"] * 16))

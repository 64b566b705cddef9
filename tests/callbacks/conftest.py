"""Tiny modules and quiet trainers, for both packages that Lightning is published as."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_dropout.nn import DropPath
from lightning_dropout.sites import Site, find_sites

MakeTrainer = Callable[..., Any]


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    torch.manual_seed(0)
    interrupt = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, interrupt)  # Lightning ignores Ctrl-C for good once it has seen one


@pytest.fixture
def make_trainer(tmp_path: Path) -> MakeTrainer:
    """Build a trainer for the CPU that prints and writes nothing."""

    def make(*callbacks: Any, package: Any = lightning.pytorch, **arguments: Any) -> Any:
        quiet = {
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "enable_checkpointing": any(isinstance(each, package.callbacks.ModelCheckpoint) for each in callbacks),
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "log_every_n_steps": 1,
            "default_root_dir": tmp_path,
        }
        return package.Trainer(callbacks=list(callbacks), **quiet | arguments)

    return make


@pytest.fixture
def loader() -> DataLoader[Any]:
    """Three batches of four samples with labels of three classes."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 4, generator=generator), torch.randint(0, 3, (12,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=4)


def recorder_class(package: Any) -> Any:
    """Return a module class of ``package`` that notes the rates its layers work with."""

    class Recorder(package.LightningModule):  # type: ignore[misc]
        def __init__(self, net: nn.Module | None = None, fail_in_step: int | None = None) -> None:
            super().__init__()
            self.net = net or nn.Sequential(
                nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 8), nn.Dropout(0.2), DropPath(0.1), nn.Linear(8, 3)
            )
            self.fail_in_step = fail_in_step
            self.error: BaseException = RuntimeError("planted")
            self.trained: list[dict[str, float]] = []  # for each forward in training: rates by name of the site
            self.evaluated: dict[str, list[dict[str, float]]] = {}  # for each forward in evaluation, by stage
            self.outputs: list[torch.Tensor] = []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rates = {site.name: site.rate for site in self.sites()}
            if self.training:
                self.trained.append(rates)
            elif self._trainer is not None:
                self.evaluated.setdefault(str(self.trainer.state.fn.value), []).append(rates)
                self.outputs.append(self.net(x).detach())
            return self.net(x)  # type: ignore[no-any-return]

        def sites(self) -> list[Site]:
            return find_sites(self.net)

        def trace(self, name: str = "1") -> list[float]:
            return [rates[name] for rates in self.trained]

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
            if len(self.trained) == self.fail_in_step:
                raise self.error
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self(batch[0])

        test_step = validation_step

        def predict_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return self(batch[0])  # type: ignore[no-any-return]

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Recorder


@pytest.fixture
def make_recorder() -> Callable[..., Any]:
    """Build a recorder, of ``lightning`` unless told otherwise."""

    def make(*args: Any, package: Any = lightning.pytorch, **kwargs: Any) -> Any:
        return recorder_class(package)(*args, **kwargs)

    return make

"""The plugin in trainers of both packages: whole files, sums beside them, and nothing loaded that should not be."""

import copy
import importlib.util
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from lightning.pytorch.plugins import AsyncCheckpointIO, TorchCheckpointIO
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_dropout.checkpoints import (
    CorruptCheckpointError,
    SafeCheckpointIO,
    newest_checkpoint,
    safe_checkpoint_io,
    verify_checkpoint,
)

Make = Callable[..., dict[str, Any]]
PACKAGES = pytest.mark.parametrize("package", [lightning.pytorch, pytorch_lightning], ids=["lightning", "pl"])


def trained(package: Any, folder: Path, plugin: Any = None, ckpt_path: Any = None, **options: Any) -> Any:
    """Train for some epochs; return the trainer."""

    class Module(package.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(2, 1)

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return self.net(batch[0]).square().mean()  # type: ignore[no-any-return]

        test_step = training_step

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters())

    save = package.callbacks.ModelCheckpoint(folder, "last", enable_version_counter=False)
    trainer = package.Trainer(
        accelerator="cpu",
        callbacks=[save],
        plugins=[plugin or SafeCheckpointIO()],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **{"max_epochs": 2, **options},
    )
    loader = DataLoader(TensorDataset(torch.randn(4, 2)), batch_size=2)
    trainer.fit(Module(), loader, ckpt_path=ckpt_path)
    trainer.test(ckpt_path=str(folder / "last.ckpt"), dataloaders=loader, verbose=False)
    return trainer


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@PACKAGES
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_trainer_saves_resumes_and_tests(package: Any, tmp_path: Path) -> None:
    trained(package, tmp_path)
    assert names(tmp_path) == {"last.ckpt", "last.ckpt.sha256"}
    last = newest_checkpoint(tmp_path)
    assert last == tmp_path / "last.ckpt"
    assert trained(package, tmp_path, ckpt_path=last, max_epochs=3).global_step == 6
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 6
    verify_checkpoint(tmp_path / "last.ckpt")
    flipped = bytearray(last.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    last.write_bytes(flipped)
    with pytest.raises(CorruptCheckpointError, match="There is no whole checkpoint"):
        trained(package, tmp_path, ckpt_path=last, max_epochs=4)


def test_it_can_be_wrapped_to_save_beside_the_training(tmp_path: Path) -> None:
    trained(lightning.pytorch, tmp_path, AsyncCheckpointIO(SafeCheckpointIO()))
    assert names(tmp_path) == {"last.ckpt", "last.ckpt.sha256"}


def test_removing_takes_the_sum_along(tmp_path: Path, content: Make) -> None:
    plugin = SafeCheckpointIO()
    for name in ("a.ckpt", "b.ckpt"):
        plugin.save_checkpoint(content(1), tmp_path / name)
    plugin.remove_checkpoint(str(tmp_path / "a.ckpt"))
    assert names(tmp_path) == {"b.ckpt", "b.ckpt.sha256"}
    plugin.remove_checkpoint(tmp_path / "a.ckpt")  # gone already
    (tmp_path / "sharded.ckpt").mkdir()
    plugin.remove_checkpoint(tmp_path / "sharded.ckpt")
    assert names(tmp_path) == {"b.ckpt", "b.ckpt.sha256"}


@pytest.mark.parametrize("weights_only", [None, True])
def test_code_is_never_run(wicked: Path, weights_only: bool | None) -> None:
    with pytest.raises(CorruptCheckpointError, match=r"posix\.system"):
        SafeCheckpointIO().load_checkpoint(wicked, weights_only=weights_only)


def test_loading_without_weights_only_is_refused_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"None or True, but got False.*add_safe_globals"):
        SafeCheckpointIO().load_checkpoint(tmp_path / "a.ckpt", weights_only=False)


def test_torch_is_not_talked_into_unpickling(wicked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(CorruptCheckpointError, match=r"posix\.system"):
        SafeCheckpointIO().load_checkpoint(wicked)


def test_a_corrupt_checkpoint_is_refused_with_the_name_of_the_next_best(tmp_path: Path, content: Make) -> None:
    plugin = SafeCheckpointIO()
    for step, name in ((1, "a"), (2, "b"), (3, "c")):
        plugin.save_checkpoint(content(step), tmp_path / f"{name}.ckpt")
    (tmp_path / "c.ckpt").write_bytes((tmp_path / "c.ckpt").read_bytes()[:-10])
    with pytest.raises(CorruptCheckpointError) as caught:
        plugin.load_checkpoint(str(tmp_path / "c.ckpt"))
    line = str(caught.value)
    assert f"but got {tmp_path / 'c.ckpt'}: it was cut short" in line
    assert line.endswith(f"The newest whole checkpoint there is {tmp_path / 'b.ckpt'}.")
    assert len(line.splitlines()) == 1


def test_a_checkpoint_of_lightning_itself_loads(tmp_path: Path, content: Make) -> None:
    TorchCheckpointIO().save_checkpoint(content(1), tmp_path / "a.ckpt")
    assert SafeCheckpointIO().load_checkpoint(tmp_path / "a.ckpt")["global_step"] == 1
    SafeCheckpointIO().save_checkpoint(content(2), tmp_path / "b.ckpt")
    assert TorchCheckpointIO().load_checkpoint(tmp_path / "b.ckpt")["global_step"] == 2


def test_map_location_is_passed_on(tmp_path: Path, content: Make) -> None:
    SafeCheckpointIO().save_checkpoint(content(1), f"file://{tmp_path}/a.ckpt")
    loaded = SafeCheckpointIO().load_checkpoint(f"file://{tmp_path}/a.ckpt", map_location="meta")  # type: ignore[arg-type]
    assert loaded["state_dict"]["w"].is_meta
    assert names(tmp_path) == {"a.ckpt", "a.ckpt.sha256"}


def test_files_elsewhere_are_lightnings_but_run_no_code(wicked: Path, content: Make) -> None:
    plugin, memory = SafeCheckpointIO(), fsspec.filesystem("memory")
    plugin.save_checkpoint(content(1), "memory://runs/a.ckpt")
    assert plugin.load_checkpoint("memory://runs/a.ckpt")["global_step"] == 1
    assert memory.ls("/runs", detail=False) == ["/runs/a.ckpt"]
    memory.pipe_file("/runs/wicked.ckpt", wicked.read_bytes())
    with pytest.raises(CorruptCheckpointError, match=r"posix\.system"):
        plugin.load_checkpoint("memory://runs/wicked.ckpt")
    plugin.remove_checkpoint("memory://runs")
    assert not memory.exists("/runs")


@pytest.mark.parametrize("address", ["http://127.0.0.1/a.ckpt", "https://127.0.0.1/a.ckpt"])
def test_addresses_are_refused(address: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"Expected `path` to be a file, but got {address}")):
        SafeCheckpointIO().load_checkpoint(address)


def test_wrong_paths_keep_lightnings_words(tmp_path: Path, content: Make) -> None:
    with pytest.raises(FileNotFoundError, match=r"^Checkpoint file not found: .*a\.ckpt"):
        SafeCheckpointIO().load_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(TypeError, match=r"storage_options.*SafeCheckpointIO"):
        SafeCheckpointIO().save_checkpoint(content(1), tmp_path / "a.ckpt", storage_options={})
    assert names(tmp_path) == set()


def test_it_survives_copying_and_pickling() -> None:
    for twin in (copy.deepcopy(SafeCheckpointIO()), pickle.loads(pickle.dumps(SafeCheckpointIO()))):
        assert isinstance(twin, SafeCheckpointIO)


def test_works_where_only_lightning_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    spec = safe_checkpoint_io.__spec__
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.SafeCheckpointIO.__mro__[1].__bases__ == (TorchCheckpointIO,)

"""One base for both packages: their trainers and command lines test for their own class."""

import copy
import importlib.util
import pickle
import warnings
from pathlib import Path
from typing import Any

import lightning
import lightning.pytorch
import pytest
import pytorch_lightning
import torch

from lightning_dropout.callbacks import (
    DropoutScheduler,
    MCDropout,
    RankRandomness,
    StepRandomness,
    StochasticDepthScheduler,
    any_callback,
)
from lightning_dropout.callbacks.any_callback import AnyCallback, load_missed_state, release_of

CALLBACKS = [
    DropoutScheduler(rate=0.1),
    StochasticDepthScheduler(scale=0.5),
    MCDropout(task="multiclass"),
    RankRandomness(),
    StepRandomness(),
]


@pytest.mark.parametrize("callback", CALLBACKS, ids=lambda callback: type(callback).__name__)
def test_every_callback_is_one_of_both_packages(callback: AnyCallback) -> None:
    assert isinstance(callback, lightning.pytorch.Callback)
    assert isinstance(callback, pytorch_lightning.Callback)


@pytest.mark.parametrize("callback", CALLBACKS, ids=lambda callback: type(callback).__name__)
def test_every_callback_survives_copying_and_pickling(callback: AnyCallback) -> None:
    for twin in (copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))):
        assert vars(twin) == vars(callback)
        assert twin.state_key == callback.state_key


def fresh_copy_of_the_file() -> Any:
    """Run the file once more, beside the real module."""
    spec = any_callback.__spec__
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_works_where_only_lightning_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert fresh_copy_of_the_file().AnyCallback.__bases__ == (lightning.pytorch.Callback,)


@pytest.mark.parametrize(("version", "warned"), [("2.4.0", True), ("2.6.5", True), ("2.6.6", False), ("2.10.0", False)])
def test_releases_with_a_known_hole_are_told(monkeypatch: pytest.MonkeyPatch, version: str, warned: bool) -> None:
    monkeypatch.setattr(lightning, "__version__", version)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fresh_copy_of_the_file()
    assert [f"lightning {version}" in str(warning.message) for warning in caught] == [True] * warned


@pytest.mark.parametrize("package", [lightning, pytorch_lightning])
def test_the_release_is_that_of_the_trainers_own_package(monkeypatch: pytest.MonkeyPatch, package: Any) -> None:
    class Users(getattr(package, "pytorch", package).Trainer):  # type: ignore[misc]
        def __init__(self) -> None: ...

    monkeypatch.setattr(lightning, "__version__", "0.0.1")
    monkeypatch.setattr(pytorch_lightning, "__version__", "0.0.1")
    monkeypatch.setattr(package, "__version__", "2.10.1.post0")
    assert release_of(Users()) == (2, 10, 1)


class Stateful(AnyCallback):
    """Keeps the state that it is given."""

    state: dict[str, Any] | None = None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.state = state_dict


@pytest.mark.parametrize(("version", "loaded"), [("2.4.0", {"a": 1}), ("2.5.0", None), ("2.10.0", None)])
def test_a_state_is_loaded_here_where_lightning_does_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str, loaded: dict[str, int] | None
) -> None:
    def state(path: Path | None) -> dict[str, int] | None:
        trainer.ckpt_path, callback = path, Stateful()
        load_missed_state(callback, trainer)
        return callback.state

    monkeypatch.setattr(lightning, "__version__", version)
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    torch.save({"callbacks": {"Stateful": {"a": 1}, "Other": {"a": 2}}}, tmp_path / "of callbacks.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "weights.ckpt")
    assert state(tmp_path / "of callbacks.ckpt") == loaded
    assert state(tmp_path / "weights.ckpt") is None
    assert state(None) is None

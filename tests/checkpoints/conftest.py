"""Small checkpoints, sound and wicked, and a second file system."""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

Content = dict[str, Any]


@pytest.fixture
def content() -> Callable[..., Content]:
    """Return a function that makes what Lightning would save after so many steps; the weights tell the step."""

    def make(step: int, size: int = 10) -> Content:
        weights = {"w": torch.full((size,), float(step))}
        return {"global_step": step, "epoch": 0, "state_dict": weights, "optimizer_states": [{}]}

    return make


class _RunsCode:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)


@pytest.fixture
def wicked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A checkpoint that runs code when it is unpickled, and the proof afterwards that none ran."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "wicked.ckpt"
    torch.save({"global_step": 9, "optimizer_states": [], "callbacks": _RunsCode()}, path)
    yield path
    assert not Path("executed").exists()


@pytest.fixture
def other_file_system(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system than ``tmp_path``."""
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK) or shared.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("/dev/shm is no other file system here")
    with tempfile.TemporaryDirectory(dir=shared) as folder:
        yield Path(folder)

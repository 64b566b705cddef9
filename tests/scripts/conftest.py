"""Running the scripts as a user types them, in this process: importing torch again for each would take minutes."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hydra.core.global_hydra import GlobalHydra

from lightning_dropout.configuration import run_main

SCRIPTS = Path(__file__).parents[2] / "scripts"
QUIET = ["trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "trainer.enable_model_summary=false"]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"script_{name}", SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run_script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., int]]:
    """Return a function that runs a script with arguments in an empty folder and returns its exit code."""
    monkeypatch.setenv("LIGHTNING_DROPOUT_STAMP", "stamp")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)

    def run(script: str, *arguments: str) -> int:
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *arguments])
        try:
            run_main(load(script).main)
        except SystemExit as exit_:
            return exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
        return 0

    yield run
    GlobalHydra.instance().clear()

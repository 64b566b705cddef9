"""A toy Hydra app in a folder of its own: run in this process, or as the script that a user would start."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_dropout.configuration import allowlist

RATE = "lightning_dropout.probability.check_probability"
CONFIGS = {
    "train.yaml": """
defaults:
  - _self_
  - model: net
  - optional experiment: null
  - override hydra/job_logging: none
  - override hydra/hydra_logging: none
trainer: {max_epochs: 1, seed: 3}
required: ???
callbacks: {}
""",
    # A target that imports neither torch nor Lightning: the processes below start in half a second.
    "model/net.yaml": f"{{_target_: {RATE}, value: 0.5, name: value}}",
    "model/vit.yaml": f"{{_target_: {RATE}, value: 0.1, name: value}}",
    "model/resnet.yaml": f"{{_target_: {RATE}, value: 0.2, name: value}}",
    "model/misspelled.yaml": f"{{_target_: {RATE}, valeu: 0.5, name: value}}",
    "model/unknown.yaml": "{_target_: lightning_dropout.probability.chek_probability}",
    "model/evil.yaml": "{_target_: os.system, command: touch canary}",
    "model/broken.yaml": "_target_: torch.nn.Dropout\np: [0.5\nq: 1\n",
    "experiment/lost.yaml": "# @package _global_\ndefaults:\n  - override /model: nte\n",
}
APP = """
import os
import hydra
from lightning_dropout.configuration import build, build_each, check_targets, run_main

@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg):
    action = os.environ.get("TOY_ACTION", "build")
    if action == "bug":
        raise ZeroDivisionError("a bug")
    if action == "bug in one job" and cfg.model.value == 0.7:
        raise ZeroDivisionError("a bug")
    if action == "interrupt":
        raise KeyboardInterrupt
    if action == "interrupted trainer":  # what Lightning's Trainer does with Ctrl-C
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            exit(1)
    if action == "exit":
        raise SystemExit(7)
    if action == "required":
        print(cfg.required)
    if action == "build":
        check_targets(cfg)
        build(cfg, "model")
        build_each(cfg, "callbacks")
    print("finished", cfg.model.value)

if __name__ == "__main__":
    run_main(main)
"""


@pytest.fixture
def app_folder(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    for name, text in CONFIGS.items():
        file = tmp_path / "conf" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path


@pytest.fixture
def run_app(app_folder: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Start the app as a user does: its own process, its own folder."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "app.py", *arguments],
            cwd=app_folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


@pytest.fixture(autouse=True)
def own_allowlist(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test allows, the next one does not."""
    monkeypatch.setattr(allowlist, "_added", [])

"""The room opens quickly: `--help` and wrong words must answer at once."""

import subprocess
import sys

import lightning_dropout.configuration as room


def test_import_brings_neither_torch_nor_lightning() -> None:
    wanted = "[name for name in ('torch', 'lightning', 'wandb') if name in sys.modules]"
    code = f"import sys, lightning_dropout.configuration; print({wanted})"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout == "[]\n"


def test_all_names_exist() -> None:
    assert [name for name in room.__all__ if not hasattr(room, name)] == []

"""The public face: every promised name is there, and importing the package costs nothing."""

import subprocess
import sys

import pytest

import lightning_dropout


@pytest.mark.parametrize("name", lightning_dropout.__all__)
def test_public_names_exist(name: str) -> None:
    assert getattr(lightning_dropout, name).__name__ == name


def test_the_imports_of_the_readme() -> None:
    from lightning_dropout import metrics, schedules
    from lightning_dropout.data import DigitsDataModule, ImageFolderDataModule, TabularDataModule
    from lightning_dropout.models import MLP, Block, Net, ResBlock, ResNet, ViT
    from lightning_dropout.modules import Classifier, Regressor
    from lightning_dropout.nn import Dropout, DropPath, depth_rates

    assert all((metrics, schedules, DigitsDataModule, ImageFolderDataModule, TabularDataModule, MLP, Block, Net))
    assert all((ResBlock, ResNet, ViT, Classifier, Regressor, Dropout, DropPath, depth_rates))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'DropoutSheduler'"):
        lightning_dropout.DropoutSheduler  # noqa: B018


def test_import_is_lazy() -> None:
    code = "import sys, lightning_dropout; print([m for m in ('torch', 'lightning', 'wandb') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"

"""Data: one LightningDataModule per source, each with ``input_shape`` known before the model is built.

Importing this room imports no torchvision; no module here downloads anything unless it is told to.
"""

from lightning_dropout.data.cifar10 import CIFAR10DataModule
from lightning_dropout.data.digits import DigitsDataModule
from lightning_dropout.data.images import ImageFolderDataModule
from lightning_dropout.data.sinusoid import SinusoidDataModule
from lightning_dropout.data.tabular import TabularDataModule

__all__ = [
    "CIFAR10DataModule",
    "DigitsDataModule",
    "ImageFolderDataModule",
    "SinusoidDataModule",
    "TabularDataModule",
]

"""One ``Callback`` base that the trainers and command lines of every installed Lightning package accept.

``lightning`` and ``pytorch_lightning`` ship the same class twice, and each package's CLI refuses the other's. Rooms
below never test a trainer or a module with ``isinstance`` against a Lightning class, for the same reason.
"""

import importlib.util
import warnings
from typing import TYPE_CHECKING

import lightning
from lightning.pytorch import Callback

__all__ = ["AnyCallback"]

_FIRST_SAFE_RELEASE = (2, 6, 6)

if tuple(int(part) for part in lightning.__version__.split(".")[:3] if part.isdigit()) < _FIRST_SAFE_RELEASE:
    warnings.warn(
        f"lightning {lightning.__version__} can run code from a checkpoint's hyper-parameters; upgrade to 2.6.6.",
        stacklevel=2,
    )

if TYPE_CHECKING:

    class AnyCallback(Callback):
        """A callback for any trainer."""

else:
    _bases = [Callback]
    if importlib.util.find_spec("pytorch_lightning") is not None:
        from pytorch_lightning import Callback as _PytorchLightningCallback

        _bases.append(_PytorchLightningCallback)

    class AnyCallback(*_bases):
        """A callback for any trainer."""

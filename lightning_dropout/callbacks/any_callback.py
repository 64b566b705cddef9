"""One ``Callback`` base that the trainers and command lines of every installed Lightning package accept.

``lightning`` and ``pytorch_lightning`` ship the same class twice, and each package's CLI refuses the other's. Rooms
below never test a trainer or a module with ``isinstance`` against a Lightning class, for the same reason. What old
releases leave undone for every callback is made good here.
"""

import importlib.util
import sys
import warnings
from typing import TYPE_CHECKING, Any

import lightning
from lightning.pytorch import Callback

__all__ = ["AnyCallback", "load_missed_state", "release_of"]

_FIRST_SAFE_RELEASE = (2, 6, 6)
_FIRST_TO_RESTORE_FOR_EVALUATION = (2, 5)


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3] if part.isdigit())


if _release(lightning.__version__) < _FIRST_SAFE_RELEASE:
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


def release_of(trainer: Any) -> tuple[int, ...]:
    """Return the release that ``trainer`` is of, e.g. ``(2, 6, 6)``; two packages may be installed in two releases.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> release_of(Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)) >= (2, 4)
        True
    """
    packages = {base.__module__.partition(".")[0] for base in type(trainer).__mro__}
    (package,) = packages & {"lightning", "pytorch_lightning"}
    return _release(sys.modules[package].__version__)


def load_missed_state(callback: Callback, trainer: Any) -> None:
    """Load the state of ``callback`` from the checkpoint under evaluation, unless Lightning has; every rank calls it.

    Lightning 2.4 restores callbacks in a fit only: test, validate and predict load weights and nothing else.
    """
    if trainer.ckpt_path and release_of(trainer) < _FIRST_TO_RESTORE_FOR_EVALUATION:
        checkpoint = trainer.strategy.load_checkpoint(trainer.ckpt_path)
        callback.on_load_checkpoint(trainer, trainer.lightning_module, checkpoint)
        states = checkpoint.get("callbacks", {})
        if callback.state_key in states:
            callback.load_state_dict(states[callback.state_key])

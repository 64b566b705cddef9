"""What Lightning prints that is no news to anybody: advertisements and deprecations inside its own code.

Listed one by one; nothing is hidden by category.
"""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator

__all__ = ["quiet_lightning", "quiet_trainer", "say_idle_gpus"]

_PACKAGES = ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric")
_NO_NEWS = ("GPU available", "TPU available", "HPU available", "Loading `train_dataloader`", "`Trainer.fit` stopped")


def quiet_lightning() -> None:
    """Leave out lines that no user can act on, for the rest of the process.

    The tips advertise other packages (through the logger of whichever Lightning package was imported last). The
    deprecation is between Lightning and torch, at every call of a train step.
    """
    for logger in _loggers():
        logger.addFilter(_is_no_tip)  # once, however often it is called
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
    # evaluate.py leaves the callbacks out that only training has.
    warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`, callbacks used to create")


@contextlib.contextmanager
def quiet_trainer() -> Iterator[None]:
    """Leave out what a trainer says that trains nothing: of devices, of loading data and of why it stops."""
    for logger in _loggers():
        logger.addFilter(_is_news)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="GPU available but not used")
            warnings.filterwarnings("ignore", message="The '.*' does not have many workers")
            yield
    finally:
        for logger in _loggers():
            logger.removeFilter(_is_news)


def _loggers() -> list[logging.Logger]:
    return [logging.getLogger(f"{package}.utilities.rank_zero") for package in _PACKAGES]


def _is_no_tip(record: logging.LogRecord) -> bool:
    return "Tip: " not in record.getMessage()


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_NO_NEWS)


def say_idle_gpus(available: int, used: int) -> None:
    """Say in one line how to use the GPUs that a run leaves idle; one device is the default.

    Example:
        >>> say_idle_gpus(available=4, used=1)
        4 GPUs are here, 1 used: add `trainer=ddp`.
        >>> say_idle_gpus(available=0, used=1)
    """
    if available > used and "LOCAL_RANK" not in os.environ:  # a rank that was started by another has nothing to add
        print(f"{available} GPUs are here, {used} used: add `trainer=ddp`.")

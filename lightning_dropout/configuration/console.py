"""What Lightning prints that is no news to anybody: advertisements and deprecations inside its own code.

Listed one by one; nothing is hidden by category.
"""

import logging
import os
import warnings

__all__ = ["quiet_lightning", "say_idle_gpus"]


def quiet_lightning() -> None:
    """Leave out lines that no user can act on, for the rest of the process.

    The tips advertise other packages (through the logger of whichever Lightning package was imported last). The
    deprecation is between Lightning and torch, at every call of a train step.
    """
    for package in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric"):
        logging.getLogger(f"{package}.utilities.rank_zero").addFilter(_is_no_tip)  # once, however often it is called
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
    # evaluate.py leaves the callbacks out that only training has.
    warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`, callbacks used to create")


def _is_no_tip(record: logging.LogRecord) -> bool:
    return "Tip: " not in record.getMessage()


def say_idle_gpus(available: int, used: int) -> None:
    """Say in one line how to use the GPUs that a run leaves idle; one device is the default.

    Example:
        >>> say_idle_gpus(available=4, used=1)
        4 GPUs are here, 1 used: add `trainer=ddp`.
        >>> say_idle_gpus(available=0, used=1)
    """
    if available > used and "LOCAL_RANK" not in os.environ:  # a rank that was started by another has nothing to add
        print(f"{available} GPUs are here, {used} used: add `trainer=ddp`.")

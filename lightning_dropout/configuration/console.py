"""What Lightning prints that is no news to anybody: advertisements and deprecations inside its own code.

Listed one by one; nothing is hidden by category.
"""

import logging
import warnings

__all__ = ["quiet_lightning"]


def quiet_lightning() -> None:
    """Leave out lines that no user can act on, for the rest of the process.

    The tips advertise other packages (through the logger of whichever Lightning package was imported last). The
    deprecation is between Lightning and torch, at every call of a train step.
    """
    for package in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric"):
        logging.getLogger(f"{package}.utilities.rank_zero").addFilter(_is_no_tip)  # once, however often it is called
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")


def _is_no_tip(record: logging.LogRecord) -> bool:
    return "Tip: " not in record.getMessage()

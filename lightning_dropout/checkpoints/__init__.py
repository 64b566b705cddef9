"""Checkpoints that survive kills, full disks and bad copies: written safely, proven whole before they are loaded.

Knows files only; when to save, and what to do after a stop, is the business of callbacks and scripts. POSIX systems.
"""

from lightning_dropout.checkpoints.newest import newest_checkpoint
from lightning_dropout.checkpoints.safe_checkpoint_io import SafeCheckpointIO
from lightning_dropout.checkpoints.whole import CorruptCheckpointError, verify_checkpoint

__all__ = ["CorruptCheckpointError", "SafeCheckpointIO", "newest_checkpoint", "verify_checkpoint"]

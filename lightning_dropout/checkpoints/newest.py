"""Which checkpoint of a folder to go on from: the one with the most steps that is whole.

Neither names nor times of files decide: names are the user's, and times change when a folder is copied.
"""

import os
from collections.abc import Callable
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn

from lightning_dropout.checkpoints.whole import CorruptCheckpointError, read, verify_checkpoint

__all__ = ["newest_checkpoint", "newest_sentence"]


def newest_checkpoint(folder: str | os.PathLike[str]) -> Path | None:
    """Return the whole checkpoint with the most optimizer steps, of those that training can resume from.

    The steps are read inside the files, without their tensors; among equals the one saved last wins. What is passed
    over on the way is said in a line each: corrupt ones, those of weights alone, files of other programs, and
    folders (sharded checkpoints, which have no sum).

    Args:
        folder: Where a run keeps its ``*.ckpt`` files.

    Returns:
        The path, ``None`` if there is no such checkpoint or no such folder.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for step, name in enumerate(["z", "b", "a"]):
        ...         torch.save({"global_step": step, "optimizer_states": []}, f"{folder}/{name}.ckpt")
        ...     newest_checkpoint(folder).name
        'a.ckpt'
    """
    return _newest(folder, rank_zero_warn)


def newest_sentence(folder: Path) -> str:
    """Say which checkpoint of a folder can be used instead of one that cannot be saved or loaded."""
    path = _newest(folder, lambda line: None)
    return f"The newest whole checkpoint there is {path}." if path else "There is no whole checkpoint to resume from."


def _newest(folder: str | os.PathLike[str], say: Callable[[str], None]) -> Path | None:
    found = []
    for path in sorted(Path(folder).glob("*.ckpt")):
        try:
            found.append((_steps(path), path.stat().st_mtime_ns, path))
        except (CorruptCheckpointError, OSError) as error:
            say(f"Passing over {path.name}: {error}")
    for *_, path in sorted(found, reverse=True):
        try:
            verify_checkpoint(path)
        except (CorruptCheckpointError, OSError) as error:
            say(f"Passing over {path.name}: {error}")
        else:
            return path
    return None


def _steps(path: Path) -> int:
    try:
        with path.open("rb") as file:
            checkpoint = read(file, path, "meta")
    except (CorruptCheckpointError, OSError):
        raise
    except Exception as error:
        verify_checkpoint(path)  # says it better
        raise CorruptCheckpointError(f"{type(error).__name__} when it was read") from error
    steps = checkpoint.get("global_step") if isinstance(checkpoint, dict) else None
    if not isinstance(steps, int):
        raise CorruptCheckpointError("it is no checkpoint of Lightning")
    if "optimizer_states" not in checkpoint:
        raise CorruptCheckpointError("it holds weights alone, from which training cannot be resumed")
    return steps

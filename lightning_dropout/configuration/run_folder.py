"""The folder of a run over its whole life: one process writes to it, and a second run goes on with it or stays out.

Which checkpoint is whole and newest is the business of the room ``checkpoints``.
"""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from lightning_dropout.configuration.errors import ConfigError

__all__ = ["checkpoint_to_resume", "command_to_resume", "exclusive_folder"]

_LOCK = ".lock"
_CHECKPOINTS = "checkpoints"  # where conf/callbacks puts them


@contextmanager
def exclusive_folder(folder: Path, key: str = "hydra.run.dir") -> Iterator[None]:
    """Keep other runs out of a folder for as long as this one lasts; to be entered by one process of a run.

    The operating system holds the lock, so it ends with the process, also with one that is killed; the empty file
    ``.lock`` stays and means nothing.

    Args:
        folder: The output folder, which exists.
        key: What the user sets to move it; stands in the message.

    Raises:
        ConfigError: If another process is in it.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with exclusive_folder(folder), exclusive_folder(folder):
        ...     pass
        Traceback (most recent call last):
        ...
        lightning_dropout.configuration.errors.ConfigError: hydra.run.dir=...: Expected a folder for this run alone, ...
    """
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(
            f"Expected a folder for this run alone, but another one is writing to it; wait for it, or choose another "
            f"with {key}=....",
            key,
            str(folder),
        ) from None
    except (NotImplementedError, OSError) as error:  # a network file system without locks
        print(f"{folder} cannot be locked ({error}): see to it that no other run writes to it.")
    try:
        yield
    finally:
        lock.release()


def checkpoint_to_resume(cfg: DictConfig, folder: Path) -> Path | str | None:
    """Return the checkpoint that a training starts from, None for new weights. Every process of a run finds the same.

    Args:
        cfg: The config of the run: ``resume`` is ``auto`` or null, ``ckpt_path`` a checkpoint or null.
        folder: The output folder of the run.

    Returns:
        With ``resume=auto`` the newest checkpoint of the folder that is whole; where there is none, and with null,
        ``ckpt_path``.

    Raises:
        ConfigError: If ``resume`` is something else; null, and the folder has checkpoints that would be replaced; or
            auto, and none of them is whole.
    """
    if cfg.resume not in (None, "auto"):
        raise ConfigError(
            "Expected auto (go on from the newest checkpoint in the run's folder) or null; for a checkpoint of your "
            "choice pass ckpt_path=....",
            "resume",
            cfg.resume,
        )
    checkpoints = folder / _CHECKPOINTS
    if cfg.resume is None:
        if next(checkpoints.glob("*.ckpt"), None) is not None:
            raise ConfigError(
                "Expected a folder without a run, but it has checkpoints, which this run would replace; pass "
                "resume=auto to go on with that run, or choose another folder.",
                "hydra.run.dir",
                str(folder),
            )
        return cfg.ckpt_path  # type: ignore[no-any-return]

    from lightning_dropout.checkpoints import newest_checkpoint  # imports torch

    found = newest_checkpoint(checkpoints)
    if found is None and next(checkpoints.glob("*.ckpt"), None) is not None:
        raise ConfigError(
            f"Expected a checkpoint to go on from, but {checkpoints} has none that is whole; move them away to begin "
            "anew there, or choose another folder.",
            "resume",
            cfg.resume,
        )
    return found or cfg.ckpt_path


def command_to_resume(folder: Path) -> str:
    """Return the command line that goes on with the job of Hydra that is running, also one of a multirun.

    Args:
        folder: The output folder of the run.
    """
    words = HydraConfig.get().overrides.task
    kept = [word for word in words if not word.startswith("resume=")]
    return shlex.join(["python", sys.argv[0], *kept, f"hydra.run.dir={folder}", "resume=auto"])

"""Whether a checkpoint is what was saved: its SHA-256 beside it, or the checksums inside it where there is none.

Reads only. Nothing of a checkpoint is unpickled but tensors and plain values, here or anywhere in this room.
"""

import hashlib
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any

import torch

__all__ = ["CorruptCheckpointError", "open_whole", "read", "sha256_of", "sums_path", "verify_checkpoint"]

_AT_ONCE = 1 << 20  # bytes
_SUM = re.compile(rb"^([0-9a-f]{64})  ", re.MULTILINE)
_REFUSED = re.compile(r"(?:GLOBAL|Unsupported (?:class|global:) (?:GLOBAL )?)\s*([\w.]+)")


class CorruptCheckpointError(RuntimeError):
    """A checkpoint that is not loaded: cut short, changed since it was saved, or holding more than tensors and values.

    The message is one line with the file, what is wrong with it and the cure.
    """


def verify_checkpoint(path: str | os.PathLike[str]) -> None:
    """Prove that a checkpoint is as it was saved.

    With a ``<file>.sha256`` beside it (behind a link: beside the file that the link leads to) its SHA-256 must be the
    one that stands there. Without, as another program wrote it, the checksums that ``torch.save`` puts inside must
    hold; they cover the tensors, not every byte.

    Args:
        path: The file, on this machine.

    Raises:
        CorruptCheckpointError: If it is anything else.
        OSError: If there is no such file, or it cannot be read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"state_dict": {}}, f"{folder}/a.ckpt")
        ...     verify_checkpoint(f"{folder}/a.ckpt")
        ...     Path(f"{folder}/a.ckpt.sha256").write_text("0" * 64 + "  a.ckpt")
        ...     verify_checkpoint(f"{folder}/a.ckpt")
        Traceback (most recent call last):
        ...
        lightning_dropout.checkpoints.whole.CorruptCheckpointError: Expected a checkpoint as it was saved, but got ...
    """
    with open_whole(Path(path)):
        pass


@contextmanager
def open_whole(path: Path) -> Iterator[IO[bytes]]:
    """Open a checkpoint that is as it was saved; what is read from the file is what was proven."""
    while True:
        with path.open("rb") as file:
            problem = _problem(file, path)
            if problem is None:
                file.seek(0)
                yield file
                return
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                raise CorruptCheckpointError(f"Expected a checkpoint as it was saved, but got {path}: {problem}")
        # A running job has replaced it meanwhile, and the sum that was read belongs to the newer one.


def read(
    file: IO[bytes], path: object, map_location: Callable[..., Any] | torch.device | str | dict[str, str] | None
) -> dict[str, Any]:
    """Load the tensors and plain values of an open checkpoint.

    Raises:
        CorruptCheckpointError: If it holds anything else; nothing of that is run.
    """
    try:
        checkpoint: dict[str, Any] = torch.load(file, map_location=map_location, weights_only=True)
    except UnpicklingError as error:
        name = _REFUSED.search(str(error))
        raise CorruptCheckpointError(
            f"Expected a checkpoint of tensors and plain values, but got {path} with "
            f"{name[1] if name else 'something else'}, and nothing of it was run; choose another, or, if you trust "
            "whoever wrote it, allow its classes with torch.serialization.add_safe_globals."
        ) from error
    return checkpoint


def sums_path(checkpoint: Path) -> Path:
    """Return where the SHA-256 of a checkpoint stands."""
    return checkpoint.with_name(f"{checkpoint.name}.sha256")


def sha256_of(file: IO[bytes]) -> str:
    """Return the SHA-256 of all that is left of a file, as ``sha256sum`` writes it."""
    digest = hashlib.sha256()
    while chunk := file.read(_AT_ONCE):
        digest.update(chunk)
    return digest.hexdigest()


def _problem(file: IO[bytes], path: Path) -> str | None:
    sums = sums_path(path.resolve())
    if not sums.is_file():
        damage = _damage(file)
        return damage and f"{damage}; choose another checkpoint."
    digest = sha256_of(file)
    # Read last: a job that saves puts the new sum there before the new checkpoint. Two lines: see `write.py`.
    if digest.encode() in _SUM.findall(sums.read_bytes()):
        return None
    damage = _damage(file) or "it was changed or replaced"
    return (
        f"{damage}, since its SHA-256 is not the one in {sums.name}; choose another checkpoint, or delete {sums.name} "
        "if another program has replaced the checkpoint on purpose."
    )


def _damage(file: IO[bytes]) -> str | None:
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
            is_checkpoint = any(name.endswith("/data.pkl") for name in archive.namelist())
    except Exception as error:  # zipfile raises a dozen kinds for bytes that are no archive
        return f"it was cut short or is no checkpoint ({type(error).__name__}: {error})"
    if damaged is not None:
        return f"{damaged} in it was changed"
    return None if is_checkpoint else "it is an archive, but no checkpoint"

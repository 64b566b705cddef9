"""Writing a checkpoint so that a kill at any instant leaves a whole one: the older or the newer, with its SHA-256.

Local files only. Loading, and what a checkpoint holds, are not decided here.
"""

import errno
import fcntl
import hashlib
import io
import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch

from lightning_dropout.checkpoints.newest import newest_sentence
from lightning_dropout.checkpoints.whole import sha256_of, sums_path

__all__ = ["write_checkpoint"]

_TEMPORARY = ".saving-"  # then host and a random number; never the name of the checkpoint, see _NUMBERED
# Lightning finds the newest of these by all digits behind the last "ckpt_" of any file: those of a ".sha256" beside
# would count. The checksums inside the file must do.
_NUMBERED = "hpc_ckpt_"
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_BLOCK = 1 << 22  # bytes; torch.save writes pieces of a few, and each block is handed to another thread


def write_checkpoint(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint and ``<file>.sha256``.

    Args:
        checkpoint: What ``torch.save`` takes.
        path: Where; its folder is made if there is none.

    Raises:
        OSError: If that is not possible; with the path, the cure, and the bytes needed if there is no room. What was
            there before is still there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        _write(checkpoint, path)
    except OSError as error:
        raise OSError(error.errno, _explanation(error, checkpoint, path)) from error


def _write(checkpoint: Mapping[str, Any], path: Path) -> None:
    with _temporary_file(path.parent) as file:
        digest = _save(checkpoint, file)
        _to_disk(file)
        if path.name.startswith(_NUMBERED):
            _replace(file, path)
            return
        # Two files cannot be renamed at once. So the sums come first, the new one and below it the older: whichever
        # checkpoint a kill leaves, its sum is there. Cutting the older line off is one step of the file system too.
        # The folder goes to the disk in between, since after a power cut the renames could stand in any order.
        sums, line = sums_path(path), f"{digest}  {path.name}\n".encode()
        with _temporary_file(path.parent) as sums_file:
            sums_file.write(line + _older_lines(path))
            _to_disk(sums_file)
            _replace(sums_file, sums)
        _replace(file, path)
        os.truncate(sums, len(line))


def _older_lines(path: Path) -> bytes:
    if (sums := sums_path(path)).is_file():
        return sums.read_bytes()
    if not path.exists():
        return b""
    with path.open("rb") as file:  # of another program; with a sum beside it, it would need one itself
        return f"{sha256_of(file)}  {path.name}\n".encode()


def _replace(file: IO[bytes], path: Path) -> None:
    Path(file.name).replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems know no such thing
            raise
    finally:
        os.close(folder)


def _to_disk(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def _temporary_file(folder: Path) -> Iterator[IO[bytes]]:
    """Open a new hidden file, locked while it is open, and remove it unless it was renamed."""
    while True:
        path = folder / f"{_own_prefix()}{secrets.token_hex(8)}"
        file = path.open("xb")  # not tempfile, whose files nobody else may read
        with suppress(OSError):  # no locks on this file system: then nothing is swept either
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            break
        file.close()  # another job has swept it before it was locked
    try:
        yield file
    finally:
        path.unlink(missing_ok=True)
        with suppress(OSError):  # a full disk says so again
            file.close()


def _sweep(folder: Path) -> None:
    """Remove what killed writers have left.

    The lock of a file ends with its writer, also by SIGKILL. Locks may not reach from host to host, so only files of
    this host are looked at.
    """
    for path in folder.iterdir():
        if path.name.startswith(_own_prefix()):
            with suppress(OSError), path.open("r+b") as file:  # network file systems lock files open for writing only
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises if its writer lives
                path.unlink()


def _own_prefix() -> str:
    return f"{_TEMPORARY}{socket.gethostname()}-"


class _HashedFile(io.RawIOBase):
    """A file, and the SHA-256 of what is written to it, taken beside the writing."""

    def __init__(self, file: IO[bytes], pool: ThreadPoolExecutor) -> None:
        self.digest = hashlib.sha256()
        self.error: BaseException | None = None
        self._file = file
        self._pool = pool

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        try:
            hashing = self._pool.submit(self.digest.update, data)
            try:
                self._file.write(data)
            finally:
                hashing.result()  # the memory is the caller's again when this returns
        except BaseException as error:
            self.error = error
            raise
        return len(data)


def _save(checkpoint: Mapping[str, Any], file: IO[bytes]) -> str:
    with ThreadPoolExecutor(max_workers=1) as pool:
        hashed = _HashedFile(file, pool)
        blocks = io.BufferedWriter(hashed, _BLOCK)
        try:
            torch.save(checkpoint, blocks)
            blocks.flush()
        except RuntimeError:
            if hashed.error is not None:  # torch finishes its archive all the same, and complains of its positions
                raise hashed.error from None
            raise
        finally:
            with suppress(OSError):  # a full disk says so again
                blocks.close()
    return hashed.digest.hexdigest()


class _Count:
    size = 0

    def write(self, data: memoryview) -> int:
        self.size += len(data)
        return len(data)

    def flush(self) -> None: ...


def _explanation(error: OSError, checkpoint: Mapping[str, Any], path: Path) -> str:
    if error.errno in _NO_ROOM:
        torch.save(checkpoint, count := _Count())  # type: ignore[arg-type]
        wanted, cure = f"have room for a checkpoint of {count.size:,} bytes", "make room there"
    else:
        wanted, cure = "be a file that can be written", "make it writable"
    return (
        f"Expected `path` to {wanted}, but got {str(path)!r}: {error.strerror}; {cure}, or choose another folder. "
        f"{newest_sentence(path.parent)}"
    )

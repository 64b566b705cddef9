"""The plugin that makes a trainer save and load through this room.

Holds no state. What a checkpoint contains stays Lightning's business.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from lightning.pytorch.plugins import TorchCheckpointIO

from lightning_dropout.checkpoints.newest import newest_sentence
from lightning_dropout.checkpoints.whole import CorruptCheckpointError, open_whole, read, sums_path
from lightning_dropout.checkpoints.write import write_checkpoint

__all__ = ["SafeCheckpointIO"]

if TYPE_CHECKING:

    class _AnyCheckpointIO(TorchCheckpointIO):
        pass

else:  # each of the two packages refuses the other's plugins, as with callbacks
    _bases = [TorchCheckpointIO]
    if importlib.util.find_spec("pytorch_lightning") is not None:
        from pytorch_lightning.plugins import TorchCheckpointIO as _PytorchLightningCheckpointIO

        _bases.append(_PytorchLightningCheckpointIO)

    class _AnyCheckpointIO(*_bases):
        pass


def _same_place(storage: Any, location: str) -> Any:
    return storage


class SafeCheckpointIO(_AnyCheckpointIO):
    """Save so that nothing is lost, load only what is whole: ``Trainer(plugins=[SafeCheckpointIO()])``.

    Saving: into a hidden file in the same folder, to the disk, then renamed; a kill at any instant leaves the older or
    the newer checkpoint whole. ``best.ckpt.sha256`` stands beside ``best.ckpt``; ``sha256sum -c`` checks it too.

    Loading: always with ``weights_only=True``, and only if the SHA-256 is right; a checkpoint without one was written
    by another program and is checked by the checksums inside it.

    Files of other systems (``s3://``, ``gs://``) are written by Lightning as ever and loaded with
    ``weights_only=True``; they have no sum. Addresses (``http://``, ``https://``) are refused. Folders, the sharded
    checkpoints of FSDP, are written and read by Lightning's strategy, which does not ask this plugin; nor does FSDP for
    loading a file. Files that Lightning numbers itself under SLURM (``hpc_ckpt_1.ckpt``) have no sum, since Lightning
    would take it for a number.

    Raises:
        CorruptCheckpointError: When a checkpoint is loaded that is not whole, or holds more than tensors and plain
            values; names the newest whole one beside it.
        OSError: When there is no room or no permission to save.
        ValueError: When ``weights_only=False`` or an address is given.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     SafeCheckpointIO().save_checkpoint({"global_step": 3}, f"{folder}/last.ckpt")
        ...     print(SafeCheckpointIO().load_checkpoint(f"{folder}/last.ckpt"))
        ...     print(sorted(path.name for path in Path(folder).iterdir()))
        {'global_step': 3}
        ['last.ckpt', 'last.ckpt.sha256']
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        local = _local(path)
        if local is None or storage_options is not None:  # the options are refused there, by name
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            write_checkpoint(checkpoint, local)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = _same_place,
        weights_only: bool | None = None,  # Lightning before 2.6 passes none
    ) -> dict[str, Any]:
        if weights_only is False:
            raise ValueError(
                "Expected `weights_only` to be None or True, but got False, with which a checkpoint can run any code; "
                "allow the classes that it needs with torch.serialization.add_safe_globals, or do without "
                "SafeCheckpointIO."
            )
        if str(path).startswith(("http://", "https://")):
            raise ValueError(
                f"Expected `path` to be a file, but got {path}, whose SHA-256 cannot be checked; download it, with its "
                ".sha256 if it has one, and pass the file."
            )
        local = _local(path)
        if local is None:
            file_system, name = url_to_fs(str(path))
            with file_system.open(name, "rb") as file:
                return read(file, path, map_location)
        if not local.exists():
            raise FileNotFoundError(f"Checkpoint file not found: {path}")  # Lightning's words
        try:
            with open_whole(local) as file:
                return read(file, path, map_location)
        except CorruptCheckpointError as error:
            raise CorruptCheckpointError(f"{error} {newest_sentence(local.parent)}") from error

    def remove_checkpoint(self, path: str | Path) -> None:
        super().remove_checkpoint(path)
        local = _local(path)
        if local is not None:
            sums_path(local).unlink(missing_ok=True)


def _local(path: str | Path) -> Path | None:
    file_system, name = url_to_fs(str(path))
    return Path(name) if isinstance(file_system, LocalFileSystem) else None

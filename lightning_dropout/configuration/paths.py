"""Where a run may write: checked in the first second, not after the first epoch.

One rule: everything that a run writes lies in its output folder, and only ``hydra.run.dir`` and ``hydra.sweep.dir``
choose that. What could lead out of it is refused, never cleaned up.
"""

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from lightning_dropout.configuration.errors import ConfigError, join

__all__ = ["check_inside", "check_name", "check_output_dir", "check_writes"]

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
# Arguments of Lightning's and of ours that name what is written; a class of one's own is held to them, too.
_FOLDERS = (
    *("default_root_dir", "dirpath", "exclude_batches_path", "folder", "log_dir", "nvme_path", "root_dir", "save_dir"),
)
_BELOW = ("version", "sub_dir", "filename", "filename_suffix")
_TEMPLATE = re.compile(r"\{[\w/-]+(:[\w.]*)?\}")  # "{epoch}-{val/loss:.2f}"; no attributes of what is formatted
_EXPANDED = re.compile(
    r"[~$\\:{}]"
)  # by Lightning (home, variables) and fsspec (protocols), or parts of a path elsewhere
_LONGEST_PART = 200  # bytes; most file systems take 255, and suffixes are added


def check_output_dir(path: str | os.PathLike[str], key: str = "hydra.run.dir") -> Path:
    """Create the folder and prove that a file can be written there.

    A folder that is read-only, full or gone would otherwise be noticed at the first checkpoint.

    Args:
        path: The output folder; parents are created too.
        key: What the user sets to move it; stands in the message.

    Returns:
        The absolute path.

    Raises:
        ConfigError: If the folder cannot be created, or no file can be written there.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     check_output_dir(folder + "/run/1").name
        '1'
    """
    folder = Path(path).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".write-probe-") as probe:  # its own name for every rank
            probe.write(b"can this be written?")
    except OSError as error:
        raise ConfigError(
            f"Expected a folder that can be written to, but got {error.strerror or error}; "
            f"choose another with {key}=..., or free it.",
            key,
            str(folder),
        ) from error
    return folder


def check_name(name: object, key: str = "name") -> str:
    """Return a name of a run or experiment if it is safe as the name of a file or folder.

    Args:
        name: 1 to 128 letters, digits, ``_``, ``-`` and ``.``, not beginning with a dot: no path can hide in it.
        key: Where the name stands in the config.

    Raises:
        ConfigError: If it is anything else.

    Example:
        >>> check_name("vit_digits-2.1")
        'vit_digits-2.1'
    """
    if isinstance(name, str) and _NAME.fullmatch(name):
        return name
    raise ConfigError(
        "Expected a name of 1 to 128 letters, digits, `_`, `-` or `.`, not beginning with a dot, "
        f"but got {str(name)[:160]!r}; folders are chosen elsewhere (hydra.run.dir=...).",
        key,
        name,
    )


def check_inside(path: str | os.PathLike[str], folder: str | os.PathLike[str], key: str) -> Path:
    """Return a path if it lies in a folder when every link is followed.

    Args:
        path: Absolute, or relative to the working directory.
        folder: The output folder of the run.
        key: Where the path stands in the config.

    Raises:
        ConfigError: If it lies elsewhere, or is no plain path on this machine.

    Example:
        >>> check_inside("/runs/1/report", "/runs/1", "callbacks.report.folder").name
        'report'
    """
    if _lies_inside(os.fspath(path), folder):
        return Path(path)
    raise _outside(key, path, folder)


def check_writes(arguments: Mapping[str, object], key: str, folder: str | os.PathLike[str]) -> None:
    """Check the arguments of one node that say where its object writes.

    Args:
        arguments: All of the node's, by name; what is no text is passed over.
        key: Where the node stands in the config.
        folder: The output folder of the run.

    Raises:
        ConfigError: As ``check_inside``.

    Example:
        >>> check_writes({"save_dir": "/runs/1", "name": "../../x"}, "logger.csv", "/runs/1")
        Traceback (most recent call last):
        ...
        lightning_dropout.configuration.errors.ConfigError: logger.csv.name=../../x: Expected a plain path inside of...
    """
    path = os.fspath(folder)
    for name in _FOLDERS:
        value = arguments.get(name)
        if isinstance(value, str | os.PathLike):
            path = os.fspath(check_inside(value, folder, join(key, name)))
    named = "save_dir" in arguments and "project" not in arguments  # elsewhere, as in W&B, a name is no folder
    for name in (*(("name",) if named else ()), *_BELOW):
        value = arguments.get(name)
        if isinstance(value, str):
            path = os.path.join(path, _TEMPLATE.sub("", value))  # noqa: PTH118 - absolute values win here as they do later
            if ".." in Path(value).parts or not _lies_inside(path, folder):
                raise _outside(join(key, name), value, folder)


def _lies_inside(path: str, folder: str | os.PathLike[str]) -> bool:
    base = os.path.realpath(folder)
    if not path.isprintable() or _EXPANDED.search(path.removeprefix(os.fspath(folder))):
        return False
    real = Path(os.path.realpath(path))
    return real.is_relative_to(base) and all(len(part.encode()) <= _LONGEST_PART for part in real.parts)


def _outside(key: str, value: object, folder: str | os.PathLike[str]) -> ConfigError:
    return ConfigError(
        f"Expected a plain path inside of the run's folder {os.path.realpath(folder)}, since only hydra.run.dir=... "
        "and hydra.sweep.dir=... choose where a run writes.",
        key,
        value,
    )

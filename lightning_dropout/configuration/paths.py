"""Where a run may write: checked in the first second, not after the first epoch.

Nothing here decides where; names that could lead out of the output folder are refused, never cleaned up.
"""

import os
import re
import tempfile
from pathlib import Path

from lightning_dropout.configuration.errors import ConfigError

__all__ = ["check_name", "check_output_dir"]

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")


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

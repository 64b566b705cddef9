"""A figure and the numbers behind it, side by side in a folder: both whole, or the ones that were there before."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from lightning_dropout.reports.predictions import write_table
from lightning_dropout.reports.style import DPI

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["json_of", "save_figure"]


def save_figure(figure: Figure, numbers: object, folder: str | Path, name: str) -> Path:
    """Write ``<name>.png``, and beside it the numbers as ``<name>.csv`` or ``<name>.json``.

    Columns of numbers or words, equally long, are a table and go to CSV; everything else goes to JSON, in which NaN is
    ``null`` and infinities are the strings ``"Infinity"`` and ``"-Infinity"``, since JSON has no such numbers.

    Files are written whole and then given their names: a full disk leaves no half ones, and those of an earlier call
    as they were.

    Args:
        figure: Of any function of this room, or any other of matplotlib.
        numbers: What it shows: a dataclass, or anything nested of mappings, sequences, arrays, tensors and numbers.
        folder: Is made if it is missing.
        name: Of both files, without an ending: letters, digits, ``_`` and ``-``.

    Returns:
        The path of the PNG.

    Raises:
        ValueError: If ``name`` holds other characters.
        OSError: If the files cannot be written.

    Example:
        >>> from matplotlib.figure import Figure
        >>> with TemporaryDirectory() as folder:
        ...     path = save_figure(Figure(), {"mc": {"aurc": math.nan}}, folder, "risk_coverage")
        ...     path.name, path.with_suffix(".json").read_text()
        ('risk_coverage.png', '{"mc": {"aurc": null}}')
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ValueError(f"Expected `name` to be of letters, digits, _ and - only, but got {name!r}.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    values = plain(numbers)
    # In the folder itself: only on one file system is giving a name a single step.
    with TemporaryDirectory(dir=folder, prefix=f".{name}-") as unfinished:
        written = [_write_numbers(values, Path(unfinished, name)), Path(unfinished, f"{name}.png")]
        figure.savefig(written[1], dpi=DPI)
        for path in written:
            path.replace(folder / path.name)
    return folder / f"{name}.png"


def json_of(value: object) -> str:
    """Return whatever figures are made of as JSON, which has no NaN and no infinities: ``null`` and their names.

    Example:
        >>> json_of({"aurc": Tensor([0.5, math.nan])})
        '{"aurc": [0.5, null]}'
    """
    return json.dumps(_finite(plain(value)), allow_nan=False, ensure_ascii=False)


def plain(value: object) -> Any:
    """Return dictionaries, lists, Python's numbers and strings for whatever figures are made of.

    Example:
        >>> plain({"mc": (Tensor([0.5]), np.float32(2), None)})
        {'mc': [[0.5], 2.0, None]}
    """
    if isinstance(value, Tensor):
        return value.detach().cpu().tolist()
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(one) for one in value]
    return value


def _write_numbers(values: Any, stem: Path) -> Path:
    if _is_table(values):
        return write_table(values, stem.with_suffix(".csv"))
    path = stem.with_suffix(".json")
    path.write_text(json_of(values), encoding="utf-8")
    return path


def _is_table(values: Any) -> bool:
    columns = list(values.values()) if isinstance(values, dict) else []
    return (
        bool(columns)
        and all(isinstance(column, list) for column in columns)
        and len({len(column) for column in columns}) == 1
        and not any(isinstance(cell, list | dict) for column in columns for cell in column)
    )


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value

"""Mutants of a source file, tiny image folders, and loaders that fail."""

import inspect
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def mutate() -> Callable[..., ModuleType]:
    """Return a copy of a module in which pieces of the source are replaced: a planted bug."""

    def build(module: ModuleType, *replacements: tuple[str, str]) -> ModuleType:
        source = inspect.getsource(module)
        for old, new in replacements:
            assert source.count(old) == 1, f"{old!r} occurs {source.count(old)} times in {module.__name__}"
            source = source.replace(old, new)
        mutant = ModuleType(module.__name__)
        exec(compile(source, f"<mutant of {module.__name__}>", "exec"), mutant.__dict__)
        return mutant

    return build


@pytest.fixture
def drain() -> Callable[[Iterable[Any]], None]:
    """Read all batches; after an error let go of the worker processes at once.

    The frames of the traceback hold the iterator in a cycle. When the garbage collector comes for it, in whatever test
    runs then, PyTorch waits five seconds per worker.
    """

    def read(loader: Iterable[Any]) -> None:
        iterator = iter(loader)
        try:
            for _ in iterator:
                pass
        except Exception as error:
            traceback.clear_frames(error.__traceback__)
            del iterator
            raise

    return read


@pytest.fixture
def make_images() -> Callable[..., list[Path]]:
    """Write ``count`` lossless random images into a folder."""

    def write(folder: Path, count: int, size: tuple[int, int] = (8, 8), seed: int = 0) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        generator = np.random.default_rng(seed)
        paths = [folder / f"{number:03d}.png" for number in range(count)]
        for path in paths:
            Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
        return paths

    return write


@pytest.fixture
def image_root(tmp_path: Path, make_images: Callable[..., list[Path]]) -> Path:
    """Two classes: 20 and 10 training images, 4 and 2 test images of 8x8 pixels, no validation folder."""
    for seed, (name, train, test) in enumerate((("ant", 20, 4), ("bee", 10, 2))):
        make_images(tmp_path / "train" / name, train, seed=seed)
        make_images(tmp_path / "test" / name, test, seed=10 + seed)
    return tmp_path

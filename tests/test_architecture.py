"""The house: rooms import only rooms above them, and every file has its test."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "lightning_dropout"

# From the top: a room may import those before it, and itself.
ROOMS = [
    "probability",
    "log_keys",
    "schedules",
    "clock",
    "randomness",
    "nn",
    "sites",
    "conversion",
    "sampling",
    "metrics",
    "reports",
    "checkpoints",
    "callbacks",
    "models",
    "modules",
    "data",
    "loggers",
    "configuration",
    "zoo",
    "cli",
]
# Above in the list, and yet none of their business.
FORBIDDEN = {"models": {"callbacks", "sampling", "sites"}, "data": {"models", "modules", "callbacks"}}
# What a room must be usable without.
WITHOUT = {
    "probability": {"torch", "lightning"},
    "schedules": {"torch", "lightning"},
    "clock": {"torch", "lightning"},
    "randomness": {"lightning"},
    "nn": {"lightning", "hydra", "wandb"},
    "sites": {"lightning", "timm", "torchvision", "transformers"},
    "conversion": {"lightning", "timm", "torchvision", "transformers"},
    "sampling": {"lightning", "torchmetrics"},
    "reports": {"lightning", "wandb", "wandb_workspaces", "matplotlib"},
    "zoo": {"lightning", "timm", "torchvision", "transformers"},
    "models": {"lightning", "timm", "torchvision", "transformers"},
    "configuration": {"torch", "lightning", "wandb"},
}


def imports(source: str, module: str) -> Iterator[str]:
    """Yield the dotted names that a file imports when it is imported."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def top_level_imports(source: str, module: str) -> Iterator[str]:
    tree = ast.parse(source)
    tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    yield from imports(ast.unparse(tree), module)


def room_of(dotted: str) -> str | None:
    parts = dotted.split(".")
    return parts[1] if parts[0] == "lightning_dropout" and len(parts) > 1 else None


def violations(source: str, room: str) -> list[str]:
    allowed = {*ROOMS[: ROOMS.index(room) + 1]} - FORBIDDEN.get(room, set())
    wrong = [name for name in imports(source, room) if (target := room_of(name)) is not None and target not in allowed]
    wrong += [name for name in top_level_imports(source, room) if name.split(".")[0] in WITHOUT.get(room, ())]
    return wrong


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room_of_file(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    assert room_of_file(path) in ROOMS, "a new room needs its place in the list"
    assert violations(path.read_text(), room_of_file(path)) == []


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("sites", "from lightning_dropout.sampling import mc_sample"),
        ("models", "from lightning_dropout.callbacks import MCDropout"),
        ("schedules", "import torch"),
        ("nn", "def f():\n    from lightning_dropout import callbacks"),
        ("configuration", "import torch.nn"),
    ],
)
def test_the_check_sees_a_wrong_import(room: str, source: str) -> None:
    assert violations(source, room)


def test_every_source_file_has_its_test() -> None:
    sources = {
        path.relative_to(PACKAGE)
        for path in FILES
        if path.name != "__init__.py" and path.name not in {"own.py"}  # tested with the sites it registers
    }
    expected = {Path("tests") / path.with_name(f"test_{path.name}") for path in sources}
    missing = sorted(str(path) for path in expected if not (ROOT / path).is_file())
    assert missing == []


def test_no_file_is_a_drawer() -> None:
    assert not [path for path in ROOT.glob("[!.]*/**/*.py") if path.stem in {"utils", "helpers", "misc", "common"}]

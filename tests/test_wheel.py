"""The wheel: every room and every config is in it, and it works outside the checkout."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

LOOK = """
import importlib.metadata, pathlib, pkgutil, sys
sys.path.insert(0, sys.argv[1])
import lightning_dropout
assert pathlib.Path(lightning_dropout.__file__).is_relative_to(sys.argv[1]), lightning_dropout.__file__
for room in pkgutil.walk_packages(lightning_dropout.__path__, "lightning_dropout."):
    importlib.import_module(room.name)
from hydra import compose, initialize_config_module
from lightning_dropout.data import DigitsDataModule
with initialize_config_module("lightning_dropout.conf", version_base="1.3"):
    for experiment in sys.argv[2:]:
        cfg = compose("train", [f"experiment={experiment}"])
        assert cfg.model._target_.startswith(("lightning_dropout.models.", "torch.nn."))
    assert compose("evaluate").stage == "test"
assert DigitsDataModule().num_classes == 10
(wheel,) = importlib.metadata.distributions(path=[sys.argv[1]])
(command,) = wheel.entry_points.select(group="console_scripts", name="lightning-dropout")
command.load()(["audit", "model=net", "--check", "--json"])
print("complete")
"""


@pytest.mark.slow
def test_the_wheel_is_complete(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
        names = set(archive.namelist())
    sources = {f"lightning_dropout/{p.relative_to(ROOT / 'lightning_dropout')}" for p in tracked("lightning_dropout")}
    configs = {f"lightning_dropout/conf/{path.relative_to(ROOT / 'conf')}" for path in tracked("conf")}
    assert sources | configs <= names
    assert not any(name.startswith(("tests/", "scripts/")) for name in names)
    experiments = [path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml")]
    look = subprocess.run(
        [sys.executable, "-c", LOOK, str(installed), *experiments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert look.stdout.splitlines()[-1:] == ["complete"], look.stderr


def tracked(folder: str) -> list[Path]:
    """Return the files of a folder that belong into a wheel."""
    unwanted = {".pyc"}
    return [p for p in (ROOT / folder).rglob("*") if p.is_file() and p.suffix not in unwanted]

"""Trainings that are killed for good and go on: a few points of what the benchmark does a hundred times."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.slow
def test_killed_trainings_resume_to_the_bit(tmp_path: Path) -> None:
    pytest.importorskip("lightning_dropout.checkpoints")
    shared = Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system")
    output = tmp_path / "counts.json"
    options = {"points": 4, "inside": 2, "across": 1, "plain": 3, "terms": 0, "folder": tmp_path, "output": output}
    command = [sys.executable, str(ROOT / "scripts" / "benchmarks" / "kill_and_resume.py")]
    command += [f"--{name}={value}" for name, value in options.items()]
    subprocess.run(command, check=True, timeout=280, cwd=ROOT)
    counts = json.loads(output.read_text())
    assert counts["points"] == counts["bit_equal"] == 4
    assert counts["last_checkpoint_unreadable"] == 0
    assert counts["plain_lightning"]["bit_equal"] < 3  # the comparison can tell runs apart

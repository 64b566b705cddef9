"""scripts/benchmarks/ddp_throughput.py: every side trains, in turns."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmarks" / "ddp_throughput.py"


@pytest.mark.slow
def test_every_side_trains(tmp_path: Path) -> None:
    words = ["--turns=1", "--steps=2", "--batch-size=8", "--dim=16", "--depth=2", f"--json={tmp_path}/found.json"]
    environment = {key: value for key, value in os.environ.items() if key != "PL_GLOBAL_SEED"}
    subprocess.run([sys.executable, str(SCRIPT), *words], check=True, timeout=200, cwd=tmp_path, env=environment)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["independent"]["share"] == 1.0
    assert all(side["samples_per_second"] > 0 for side in found.values())
    assert len(found) > 1

"""The benchmark of the safe write: complete numbers, of checkpoints as large as they say, with ``fsync`` given back."""

import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmarks" / "checkpoint_write.py"


@pytest.fixture
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("script_checkpoint_write", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_short_run_is_complete(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fsync = os.fsync
    monkeypatch.setattr(os, "sync", lambda: None)
    arguments = ["--megabytes", "0.5", "2", "--tensors", "3", "--repetitions", "2", "--json", str(tmp_path / "a.json")]
    monkeypatch.setattr(sys, "argv", ["checkpoint_write.py", *arguments, "--folder", str(tmp_path)])
    benchmark.main()
    records = json.loads((tmp_path / "a.json").read_text())["records"]
    assert [record["megabytes"] for record in records] == pytest.approx([0.5, 2], rel=0.05)
    for record in records:
        assert record["tensors"] == 9
        assert record["Lightning: ratio"] == 1
        assert all(record[way] > 0 for way in benchmark.WAYS)
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(table) == 4
    assert len({line.count("|") for line in table}) == 1
    assert os.fsync is fsync
    assert {path.name for path in tmp_path.iterdir()} == {"a.json"}

"""The benchmark of the report: what it prints and writes is complete, and it takes the time of what it names."""

import importlib.util
import json
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
from torch import nn

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmarks" / "report_cost.py"
pytestmark = [
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("script_report_cost", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "script_report_cost", module)
    spec.loader.exec_module(module)
    return module


def test_what_is_printed_and_written(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = benchmark.Case(lambda: nn.Sequential(nn.Linear(4, 10), nn.Dropout(0.5)), (4,), 64)
    monkeypatch.setattr(benchmark, "CASES", {"a line": case})
    file = tmp_path / "numbers.json"
    monkeypatch.setattr(
        sys, "argv", ["", "--quick", "--repetitions", "1", "--samples", "50", "--classes", "3", "--json", str(file)]
    )
    benchmark.main()
    printed = capsys.readouterr().out
    *records, share = json.loads(file.read_text())["records"]
    parts = ["figures", "their files", "paired intervals", "the whole report", "the metrics at the end"]
    assert [record["part"] for record in records] == parts
    assert all(f"| {part} |" in printed for part in parts)
    assert sum(record["seconds"] for record in records[:3]) == pytest.approx(records[3]["seconds"])
    assert "| a line | 4 |" in printed
    assert 0.0 < share["share"] < 1.0
    assert min(share[part] for part in ("predictions", "metrics", "rows", "end", "report")) > 0.0


def test_methods_are_timed_and_given_back(benchmark: ModuleType) -> None:
    class Sleeper:
        def sleep(self, seconds: float) -> float:
            time.sleep(seconds)
            return seconds

    original = Sleeper.sleep
    with benchmark.timed({"sleep": (Sleeper, "sleep"), "never": (Sleeper, "__repr__")}, "cpu") as seconds:
        assert Sleeper().sleep(0.02) == 0.02
    assert seconds["sleep"] >= 0.02
    assert seconds["never"] == 0.0
    assert Sleeper.sleep is original

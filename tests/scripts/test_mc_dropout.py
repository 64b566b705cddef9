"""The benchmark of sampling: its checks see what they are for, and what it writes is complete."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmarks" / "mc_dropout.py"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("script_mc_dropout", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "script_mc_dropout", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "PEERS", {"a peer": "not_installed_anywhere"})
    return module


def test_what_is_printed_and_written(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "numbers.json"
    monkeypatch.setattr(sys, "argv", ["", "net", "--quick", "--repetitions", "1", "--json", str(file)])
    benchmark.main()
    printed = capsys.readouterr().out
    assert "a peer is skipped: ModuleNotFoundError: No module named 'not_installed_anywhere'" in printed
    records = json.loads(file.read_text())["records"]
    assert [record["way"] for record in records] == [
        name for name, way in benchmark.WAYS.items() if not way.peer and name != benchmark.STILL
    ]
    assert all(record["seconds"] > 0 and record["speedup"] > 0 and record["floors"] > 0 for record in records)
    assert all(f"| {record['way']} |" in printed for record in records)


def test_an_unknown_part_is_refused(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["", "nets"])
    with pytest.raises(SystemExit):
        benchmark.main()


@pytest.mark.parametrize("name", ["net", "resnet_head", "vit_head", "resnet_paths"])
def test_a_floor_is_its_model(benchmark: ModuleType, name: str) -> None:
    torch.manual_seed(0)
    case = benchmark.CASES[name]
    model = case.build().eval()
    before, after = case.split(model)
    x = torch.randn(2, *case.shape)
    with torch.no_grad(), benchmark.awake(case.owners(model)):
        torch.manual_seed(1)
        expected = model(x)
        torch.manual_seed(1)
        torch.testing.assert_close(after(before(x)), expected)
        assert not torch.equal(model(x), expected)
    assert not any(module.training for module in model.modules())


def draws(p: float = 0.3, shift: float = 0.0) -> Tensor:
    """Return 50 passes of 64 rows and 3 classes."""
    return nn.functional.dropout(torch.full((50, 64, 3), 1.0 + shift), p)


@pytest.mark.parametrize(
    ("passes", "said"),
    [
        (lambda: draws(), ""),
        (lambda: torch.ones(50, 64, 3), "samples nothing"),
        (lambda: draws() * 0.7, "mean off"),  # not rescaled by 1 / (1 - p)
        (lambda: draws(p=0.1), "variance"),
        (lambda: draws(shift=1.0), "mean off"),
    ],
    ids=["the same law", "no draws", "unscaled", "another rate", "another model"],
)
def test_faults_are_seen(benchmark: ModuleType, passes: object, said: str) -> None:
    torch.manual_seed(0)
    loop, result = draws(), passes()  # type: ignore[operator]
    found = benchmark.faults((result.mean(0), result.var(0)), (loop.mean(0), loop.var(0)), 50, limit=2.0)
    assert (found == []) if not said else found[0].startswith(said)


def test_ratios_are_those_of_neighbours(benchmark: ModuleType) -> None:
    assert benchmark.ratio([2.0, 4.0, 30.0], [1.0, 2.0, 10.0]) == 2.0

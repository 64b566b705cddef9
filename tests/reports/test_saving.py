"""Figures and their numbers on disk: what was shown comes back, and what fails leaves nothing behind."""

import csv
import errno
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure
from PIL import Image

from lightning_dropout.metrics import CalibrationError
from lightning_dropout.reports import RiskCoverage, SampleTable, draw_reliability, draw_risk_coverage, save_figure
from lightning_dropout.reports.saving import plain


def test_a_figure_and_its_numbers(tmp_path: Path) -> None:
    sides = {"mc": RiskCoverage.of([0.5, 1.0], [0.0, 0.1], math.nan)}
    before = pyplot.get_fignums()
    path = save_figure(draw_risk_coverage(sides), sides, tmp_path / "run" / "report", "risk_coverage")
    assert pyplot.get_fignums() == before
    assert path == tmp_path / "run" / "report" / "risk_coverage.png"
    assert sorted(one.name for one in path.parent.iterdir()) == ["risk_coverage.json", "risk_coverage.png"]
    with Image.open(path) as image:
        assert image.width == 1080
    assert json.loads(path.with_suffix(".json").read_text()) == {
        "mc": {"coverage": [0.5, 1.0], "risk": [0.0, 0.1], "aurc": None}
    }


def test_numbers_of_tensors_come_back_to_the_last_bit(tmp_path: Path) -> None:
    metric = CalibrationError(task="multiclass", n_bins=5)
    metric.update(torch.rand(50, 3).softmax(1), torch.randint(3, (50,)))
    bins = {"det": metric.bins()}
    path = save_figure(draw_reliability(bins), bins, tmp_path, "reliability")
    read = json.loads(path.with_suffix(".json").read_text())["det"]
    assert [float("nan") if one is None else one for one in read["accuracy"]] == pytest.approx(
        bins["det"].accuracy.tolist(), abs=0.0, nan_ok=True
    )
    assert read["count"] == bins["det"].count.tolist()


def test_a_table_is_csv(tmp_path: Path) -> None:
    table = SampleTable((7, 9), (1, 2), (1, None), (0.5, 0.25), (1.0, math.inf), (0.1, math.nan))
    path = save_figure(Figure(), table, tmp_path, "samples").with_suffix(".csv")
    with path.open(newline="") as file:
        rows = [*csv.reader(file)]
    assert rows[0] == ["sample", "predicted", "label", "probability", "entropy", "mutual_information"]
    assert rows[1:] == [["7", "1", "1", "0.5", "1.0", "0.1"], ["9", "2", "", "0.25", "inf", "nan"]]


@pytest.mark.parametrize(
    ("numbers", "ending"),
    [
        ({"a": [1, 2], "b": torch.tensor([1.0, 2.0])}, "csv"),
        ({"a": (), "b": ()}, "csv"),
        ({"a": [1, 2], "b": [1]}, "json"),
        ({"a": [[1], [2]]}, "json"),
        ({"a": [1], "b": 2}, "json"),
        ({"a": {"b": [1]}}, "json"),
        ([1, 2], "json"),
        ({}, "json"),
        (None, "json"),
    ],
)
def test_tables_and_what_is_none(numbers: Any, ending: str, tmp_path: Path) -> None:
    save_figure(Figure(), numbers, tmp_path, "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([f"x.{ending}", "x.png"])


def test_json_is_valid_whatever_the_numbers(tmp_path: Path) -> None:
    numbers = {
        "a": math.inf,
        "b": [np.float32("-inf"), torch.tensor(math.nan)],
        "c": "naïve",
        "d": True,
        5: np.int64(3),
    }
    path = save_figure(Figure(), numbers, tmp_path, "x").with_suffix(".json")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    read = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    assert read == {"a": "Infinity", "b": ["-Infinity", None], "c": "naïve", "d": True, "5": 3}
    assert float(read["a"]) == math.inf  # as Python reads it; so does JavaScript's Number
    with pytest.raises(AssertionError, match="Infinity"):  # the check sees what json writes by itself
        json.loads(json.dumps(math.inf), parse_constant=refuse)


@pytest.mark.parametrize("name", ["", "a/b", "../x", ".hidden", "a.png", "a b", "a\n", "ä"])
def test_names(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Expected `name` to be of letters, digits, _ and - only, but got"):
        save_figure(Figure(), {}, tmp_path, name)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("what", ["figure", "numbers"])
def test_a_full_disk_leaves_the_old_files_and_no_half_ones(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_figure(Figure(), {"a": 1}, tmp_path, "x")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*arguments: Any, **options: Any) -> None:
        target = arguments[1] if what == "figure" else arguments[0]
        assert Path(target).parent.parent == tmp_path  # on the same disk: only there is a rename a single step
        with Path(target).open("wb") as file:
            file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((Figure, "savefig") if what == "figure" else (Path, "write_text")), full)
    with pytest.raises(OSError, match="No space left"):
        save_figure(Figure(figsize=(1, 1)), {"a": 2}, tmp_path, "x")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_plain_values_stay_what_they_are() -> None:
    assert plain({"a": True, "b": None, "c": "word", "d": 1}) == {"a": True, "b": None, "c": "word", "d": 1}
    assert plain(np.array([[1, 2]])) == [[1, 2]]

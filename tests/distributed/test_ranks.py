"""Training, testing and predicting on several processes, against the same in one."""

import importlib.util
import itertools
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

RANKS = Path(__file__).with_name("ranks.py")
OURS = ("test/mc/", "test/det/", "test/ood/")


def load() -> ModuleType:
    specification = importlib.util.spec_from_file_location("ranks", RANKS)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def run(folder: Path, strategy: str, processes: int, *parts: str) -> list[dict[str, Any]]:
    """Return what each rank has seen."""
    environment = {key: value for key, value in os.environ.items() if key != "PL_GLOBAL_SEED"}
    subprocess.run(
        [sys.executable, str(RANKS), str(folder), strategy, str(processes), *parts],
        env={**environment, "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=200,  # a rank that waits for another waits for good
        cwd=folder,
    )
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(processes)]


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """Return the numbers of one process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: dict[str, Any] = load().evaluate("auto", 1)
    return found


def check_training(ranks: list[dict[str, Any]], sharded: bool) -> None:
    one, other = (rank["train"] for rank in ranks)
    assert one["rates"] == other["rates"]
    steps = 8
    assert len(one["rates"]) == steps
    for step, rates in enumerate(one["rates"]):
        assert rates == pytest.approx({"dropout": 0.5 - 0.4 * step / steps, "drop_path": 0.5 * step / steps})
    assert one["kept"] != other["kept"]  # the branches ran for another number of samples, and nobody waited for good
    assert len(one["kept"]) == len(other["kept"]) == 2 * steps
    assert one["weights"] == other["weights"]
    assert all(math.isfinite(weight) for weight in one["weights"])
    assert one["logged"] == other["logged"]
    assert all(any(rank["train"]["sharded"]) is sharded for rank in ranks)  # the rest is gathered since validation
    # 9 rows, and as many of the training set: each once, in equally many batches
    assert [rank["train"]["validated"] for rank in ranks] == [[3, 2, 3, 2] * 2, [3, 1, 3, 1] * 2]


def check_evaluation(ranks: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    found = [rank["evaluate"] for rank in ranks]
    assert [sum(rank["tested"]) for rank in found] == [33, 32]
    assert [len(rank["tested"]) for rank in found] == [11, 11]
    for rank in found:
        assert rank["own"] == pytest.approx(alone["own"], rel=1e-4)
        users = {key: value for key, value in alone["users"].items() if key.startswith(OURS)}
        assert len(users) >= 30
        assert {key: rank["users"][key] for key in users} == pytest.approx(users, rel=1e-4)
        assert rank["invalid"]["test/mc/num_invalid"] == alone["invalid"]["test/mc/num_invalid"] == 4
        assert rank["predicted"].keys() == {"prediction", "mean", "std", "entropy", "mutual_information"}
        for name, values in alone["predicted"].items():
            torch.testing.assert_close(rank["predicted"][name], values, rtol=1e-4, atol=1e-5)
    for loader, rows in alone["seen"].items():
        assert sorted(row for rank in found for row in rank["seen"][loader]) == sorted(rows)
    # Lightning's own numbers of these loaders count the repeats: they would be seen
    key = "test/loss/dataloader_idx_0"
    assert found[0]["users"][key] != pytest.approx(alone["users"][key], rel=1e-4)


def test_two_processes(tmp_path: Path, alone: dict[str, Any]) -> None:
    ranks = run(tmp_path, "ddp", 2, "train", "evaluate")
    check_training(ranks, sharded=False)
    check_evaluation(ranks, alone)


@pytest.mark.slow
def test_fully_sharded(tmp_path: Path, alone: dict[str, Any]) -> None:
    (tmp_path / "fsdp").mkdir()
    (tmp_path / "ddp").mkdir()
    ranks = run(tmp_path / "fsdp", "fsdp", 2, "train", "evaluate")
    check_training(ranks, sharded=True)
    check_evaluation(ranks, alone)
    replicated, _ = run(tmp_path / "ddp", "ddp", 2, "train")
    assert ranks[0]["train"]["weights"] == pytest.approx(replicated["train"]["weights"], rel=1e-4, abs=1e-6)


@pytest.mark.slow
def test_masks_of_four_ranks_are_independent(tmp_path: Path) -> None:
    ranks = [rank["masks"] for rank in run(tmp_path, "ddp", 4, "masks")]
    first = ranks[0]["without"]
    assert all(rank["without"].equal(first) for rank in ranks)  # why the callback is there
    # two independent masks of rate p agree in p² + (1 - p)² of the places
    expected, places = 0.3**2 + 0.7**2, first[0].numel()
    drawn = [mask for rank in ranks for mask in rank["with"]]  # of every rank and step
    assert len(drawn) == 8
    for one, other in itertools.combinations(drawn, 2):
        agreement = (one == other).double().mean().item()
        assert abs(agreement - expected) < 4.8 * math.sqrt(expected * (1 - expected) / places)

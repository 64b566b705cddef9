"""The table of faults is whole and names tests that exist; and the faults that no other test tries."""

import ast
import os
import signal
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_dropout.callbacks import MCDropout

ROOT = Path(__file__).parent.parent
TABLE: Any = sys.modules["faults"]  # conftest.py has loaded it: it speaks at the end of the session


@cache
def functions(path: str) -> set[str]:
    """Return the names of the tests in a file."""
    tree = ast.parse((ROOT / path).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def dead(tests: tuple[str, ...]) -> list[str]:
    return [test for test in tests if test.partition("::")[2] not in functions(test.partition("::")[0])]


def test_every_fault_has_its_row() -> None:
    assert [fault.id for fault in TABLE.FAULTS] == [f"F{number}" for number in range(1, 57)]


@pytest.mark.parametrize("fault", TABLE.FAULTS, ids=lambda fault: fault.id)
def test_a_row_names_tests_that_exist_or_why_there_are_none(fault: Any) -> None:
    assert bool(fault.tests) != bool(fault.not_tried)
    assert dead(fault.tests) == []
    assert {*fault.without} < {*TABLE.ASKED}
    assert all(fault.without.values())


def test_that_check_sees_a_dead_reference() -> None:
    assert dead(("tests/test_faults.py::test_that_nobody_wrote",))


def test_what_the_session_says() -> None:
    row = TABLE.Fault
    table = [
        row("F1", "a", tests=("a.py::test_a", "b.py::test_b")),
        row("F2", "two", tests=("a.py::test_a", "c.py::test_c")),
        row("F3", "c", tests=("a.py::test_a", "d.py::test_d")),
        row("F4", "d", not_tried="no machine"),
    ]
    outcomes = [
        ("a.py::test_a[1]", "passed"),
        ("b.py::Class::test_b", "passed"),
        ("c.py::test_c[1-x::y]", "passed"),
        ("c.py::test_c[2]", "failed"),
        ("d.py::test_d", "skipped"),
    ]
    assert [*TABLE.summary(outcomes, table)] == [
        "faults: 1 of 4 passed",
        "  failed: F2 (two)",
        "  not run here: F3",
        "  not tried: F4 (no machine)",
    ]


# --- faults that no other test tries ----------------------------------------------------------------------------------


class Module(LightningModule):
    """Somebody's module."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.net(batch[0])


def make_trainer(tmp_path: Path) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[MCDropout(3, task="multiclass")],
    )


def rows(number: int, batch_size: int = 4) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(number, 4, generator=generator), torch.randint(0, 3, (number,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=batch_size)


class KillsItsWorker(Dataset[Any]):
    """Its last row is the end of whoever reads it."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if index == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.randn(4), torch.tensor(0)


def test_a_killed_worker_leaves_nothing_and_the_next_run_works(tmp_path: Path) -> None:
    module = Module()
    flags = [part.training for part in module.modules()]
    loader = DataLoader(KillsItsWorker(), batch_size=4, num_workers=1, multiprocessing_context="fork")
    with pytest.raises(RuntimeError, match=r"exited unexpectedly|is killed by signal"):
        make_trainer(tmp_path).test(module, loader, verbose=False)
    assert [part.training for part in module.modules()] == flags
    assert "forward" not in vars(module)
    make_trainer(tmp_path).test(module, rows(4), verbose=False)


def test_an_empty_loader_is_told(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="is zero"):
        assert make_trainer(tmp_path).test(Module(), rows(0), verbose=False) == []


def test_one_sample_and_batch_normalisation(tmp_path: Path) -> None:
    module = Module()
    buffers = [buffer.clone() for buffer in module.buffers()]
    ((metrics),) = make_trainer(tmp_path).test(module, rows(3, batch_size=1), verbose=False)
    assert metrics["test/mc/mutual_information"] > 0
    assert all(torch.equal(buffer, before) for buffer, before in zip(module.buffers(), buffers, strict=True))

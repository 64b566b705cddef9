"""Whole jobs of several processes, started as users start them: two nodes, ranks that fail, and evaluations."""

import csv
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

TRAIN = Path(__file__).with_name("train_with.py")
EVALUATE = Path(__file__).parents[2] / "scripts" / "evaluate.py"
LIMIT = 30.0  # seconds between a fault and the end of the job
TINY = [
    "model=vit",
    "model.depth=2",
    "model.dim=16",
    "model.num_heads=2",
    "model.drop_path=0.5",
    "callbacks/stochastic_depth=linear",
    "callbacks.mc_dropout.num_samples=3",
    "callbacks.mc_dropout.masks=shared",
    "callbacks.report=null",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=4",
    "trainer.log_every_n_steps=1",
    "trainer.enable_progress_bar=false",
    "logger=csv",
]

pytestmark = pytest.mark.slow


def start(folder: Path, *command: str, **environment: str) -> subprocess.Popen[str]:
    kept = {name: value for name, value in os.environ.items() if name != "PL_GLOBAL_SEED"}
    settings = {"NOTES": str(folder), "OMP_NUM_THREADS": "1", "LIGHTNING_DROPOUT_STAMP": "run", **environment}
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env={**kept, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str], timeout: float = 200.0) -> str:
    """Return what a process and the ranks that it has started print; end it if it does not end."""
    try:
        return process.communicate(timeout=timeout)[0]
    finally:
        process.kill()


def rates(folder: Path, rank: int) -> list[str]:
    return (folder / f"rates-{rank}").read_text().splitlines()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # the parent is gone, so an init that does not reap may leave a zombie
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def rows_of(path: Path) -> list[dict[str, float]]:
    with path.open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def test_two_nodes_make_one_run(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", "--master_addr=127.0.0.1"]
    words = ["trainer=ddp_sim", "trainer.devices=1", "trainer.num_nodes=2", *TINY]
    nodes = [
        start(tmp_path, *launcher, f"--master_port={port}", f"--node_rank={rank}", str(TRAIN), *words)
        for rank in (0, 1)
    ]
    printed = [finish(node) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], printed
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["run"]
    folder = tmp_path / "outputs" / "run"
    assert json.loads((folder / "metrics.json").read_text())["steps"] == 4
    assert len(list(folder.glob("csv/**/metrics.csv"))) == 1
    assert rates(tmp_path, 0) == rates(tmp_path, 1)
    assert len(set(rates(tmp_path, 0))) == 4


@pytest.mark.parametrize(("fault", "rank"), [("raise", 1), ("kill", 0)])
def test_a_rank_that_fails_ends_the_job(tmp_path: Path, fault: str, rank: int) -> None:
    job = start(tmp_path, str(TRAIN), "trainer=ddp_sim", *TINY, FAULT=fault, FAULTY_RANK=str(rank))
    printed = finish(job)  # of both ranks: it ends when the last of them has ended
    assert time.time() - float((tmp_path / "planted").read_text()) < LIMIT
    assert job.returncode in (1, -signal.SIGKILL), printed  # Lightning kills the first rank for the death of another
    if fault == "raise":
        first = re.search(r"^.*Error: .*$", printed, re.MULTILINE)
        assert first is not None
        assert f"ZeroDivisionError: planted on rank {rank}" in first[0]
        assert "train_with.py" in printed[: first.start()]


def test_a_rank_that_stalls_ends_the_job_after_the_timeout(tmp_path: Path) -> None:
    timeout = ["trainer.strategy.timeout.minutes=0", "+trainer.strategy.timeout.seconds=30"]
    job = start(tmp_path, str(TRAIN), "trainer=ddp_sim", *timeout, *TINY, FAULT="stall", FAULTY_RANK="1")
    printed = finish(job)
    assert time.time() - float((tmp_path / "planted").read_text()) < 30.0 + LIMIT
    assert job.returncode == 1
    assert "Timed out" in printed
    assert not is_alive(int((tmp_path / "pid").read_text()))  # it sleeps for longer


def test_a_sharded_training_is_evaluated_by_one_process_and_by_two(tmp_path: Path) -> None:
    job = start(tmp_path, str(TRAIN), "trainer=fsdp_sim", *TINY)
    printed = finish(job)
    assert job.returncode == 0, printed
    trained = json.loads((tmp_path / "outputs" / "run" / "metrics.json").read_text())
    assert rates(tmp_path, 0) == rates(tmp_path, 1)
    checkpoint = f"ckpt_path={tmp_path / 'outputs' / 'run' / 'checkpoints' / 'best.ckpt'}"
    again: dict[str, Any] = {}
    for devices in (1, 2):
        for stage in ("test", "predict"):
            words = [checkpoint, f"stage={stage}", f"+run.trainer.devices={devices}", f"hydra.run.dir=on-{devices}"]
            job = start(tmp_path, str(EVALUATE), *words)
            printed = finish(job)
            assert job.returncode == 0, printed
            assert len(re.findall("^(Metrics|Predictions): ", printed, re.MULTILINE)) == 1
        again[f"test {devices}"] = json.loads((tmp_path / f"on-{devices}" / "evaluation.json").read_text())
        again[f"predict {devices}"] = rows_of(tmp_path / f"on-{devices}" / "predictions.csv")
    one = again["test 1"]
    assert {"test/accuracy", "test/mc/nll", "test/det/nll", "test/loss"} <= one.keys()
    for found in (again["test 2"], trained):
        assert {key: found[key] for key in one} == pytest.approx(one, rel=1e-4, abs=1e-5)
    assert one["test/accuracy"] * 359 == pytest.approx(round(one["test/accuracy"] * 359), abs=1e-3)
    assert len(again["predict 1"]) == 359
    for row, other in zip(again["predict 1"], again["predict 2"], strict=True):
        assert other == pytest.approx(row, rel=1e-4, abs=1e-5)
    entropies = [row["entropy"] for row in again["predict 1"]]
    assert len(set(entropies)) > 300  # another order would be seen

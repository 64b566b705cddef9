"""One number of all ranks: alone, in two processes of different speed, and where one of them is gone."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from lightning_dropout.callbacks import rank_agreement
from lightning_dropout.callbacks.rank_agreement import RankAgreement


def test_alone_the_answer_is_the_number_itself() -> None:
    agreement = RankAgreement()
    assert [agreement.soon(value) for value in (0, 2, 0)] == [0, 2, 0]
    assert agreement.largest(3) == agreement.smallest(3) == 3


TWO_RANKS = """
import runpy, sys, time
import torch.distributed as dist

rank, folder, fails = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "fails"
RankAgreement = runpy.run_path(sys.argv[4])["RankAgreement"]  # without Lightning, which takes long to import
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
agreement = RankAgreement(period=0.0)
answers = []
for step, value in enumerate([0, 0, 1 + rank, 0, 0]):
    if step == 3 and rank == 1 and fails:
        raise ValueError("planted")
    time.sleep(0.05 * rank)
    answers.append(agreement.soon(value))
print(answers, agreement.largest(rank), agreement.smallest(rank))
rarely = RankAgreement(period=0.1)
answers = []
for step in range(120):
    time.sleep(0.001 * (1 + rank))  # each would ask at another pace
    answers.append(rarely.soon(int(step >= 20)))
print(answers)
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", ["works", "fails"])
def test_two_processes_hear_of_it_at_the_same_call(tmp_path: Path, way: str) -> None:
    arguments = [str(tmp_path), way, rank_agreement.__file__]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_RANKS, str(rank), *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for rank in (0, 1)
    ]
    started = time.monotonic()
    try:
        outputs = [rank.communicate(timeout=120) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    if way == "works":
        # One call behind: the number of the third call is known at the fourth, to both.
        (first, rarely), (second, too) = (output.decode().splitlines() for output, _ in outputs)
        assert first == second == "[0, 0, 0, 2, 0] 1 0"
        assert rarely == too
        assert rarely.endswith("1]")
    else:
        assert time.monotonic() - started < 60
        assert all(rank.returncode for rank in ranks)  # an error on the rank that is left, no hang
        assert b"ValueError: planted" in outputs[1][1]

"""Counts of passes: summed over batches, loaders and ranks, and what is said of them."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_dropout.callbacks.pass_report import PassReport
from lightning_dropout.sampling import MCPrediction
from lightning_dropout.sampling.reuse import Reuse

ALONE = SimpleNamespace(world_size=1)


def prediction(reuse: Reuse | None, num_invalid: Any = (0, 0), num_samples: int = 10) -> MCPrediction:
    zeros = torch.zeros(2)
    return MCPrediction("raw", num_samples, zeros, zeros, zeros, num_invalid=torch.tensor(num_invalid), reuse=reuse)


def test_sums() -> None:
    report = PassReport()
    report.add(0, prediction(Reuse(0.5, 8, 1.0), (1, 2)))
    report.add(1, prediction(Reuse(0.75, 8, 3.0)))
    report.add(1, prediction(Reuse(note="because")))
    total = report.over_ranks(ALONE)
    assert total == PassReport(30, 16, 10.0, 4.0, 60, {0: 3, 1: 0}, {"because"})
    assert list(total.lines()) == [
        "16 of 30 passes started at their first random draw, which spared 62 % of each, 4.0 s in all.",
        "Others ran in full: because.",
    ]


@pytest.mark.parametrize(
    ("reuse", "lines"),
    [
        (None, []),
        (Reuse(), []),  # nothing comes before the first draw
        (Reuse(note="compiled code cannot be watched"), ["Passes ran in full: compiled code cannot be watched."]),
    ],
)
def test_what_is_worth_saying(reuse: Reuse | None, lines: list[str]) -> None:
    report = PassReport()
    report.add(0, prediction(reuse))
    report.add(0, prediction(reuse))
    assert list(report.lines()) == lines


def test_ranks_come_to_one_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """One saw a loader that the other did not, and fell back where the other did not."""
    own, other = PassReport(said={"a"}), PassReport(10, 8, 4.0, 1.0, 20, {1: 5}, {"because"}, {"b"})
    own.add(0, prediction(Reuse(0.5, 8, 1.0), (1, 0)))

    def gather(into: list[Any], mine: PassReport) -> None:
        into[:] = [mine, other]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    total = own.over_ranks(SimpleNamespace(world_size=2))
    assert total == PassReport(20, 16, 8.0, 2.0, 40, {0: 1, 1: 5}, {"because"}, {"a", "b"})
    assert list(total.lines())[:2] == ["a", "b"]
    assert list(total.invalid) == [0, 1]  # the order in which all ranks log


def test_a_rank_without_a_batch_has_a_report() -> None:
    assert PassReport().over_ranks(ALONE) == PassReport()
    assert list(PassReport().lines()) == []

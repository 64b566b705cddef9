"""Rows come out as they came in, by loader and side, on one rank and on several."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_dropout.callbacks import sample_table
from lightning_dropout.callbacks.sample_table import SampleScores
from lightning_dropout.sampling.prediction import MCPrediction, Statistics


def predicted(rows: int, seed: int = 0, task: Any = "multiclass", passes: int = 3) -> MCPrediction:
    generator = torch.Generator().manual_seed(seed)
    statistics = Statistics(task, 1)
    for _ in range(passes):
        statistics.update(outputs := torch.randn(rows, 1 if task == "regression" else 4, generator=generator))
    return statistics.result(outputs)


def labels(rows: int) -> Tensor:
    return torch.arange(rows) % 4


def test_batches_become_columns() -> None:
    table = SampleScores(class_dim=1)
    for rows, seed in ((5, 0), (3, 1)):
        table.add(0, None, {"mc": predicted(rows, seed), "det": predicted(rows, seed, passes=1)}, labels(rows))
    table.add(1, None, {"mc": predicted(2)}, None)
    assert table.columns(0, "mc")["label"].tolist() == [0, 1, 2, 3, 0, 0, 1, 2]
    assert "mutual_information" in table.columns(0, "mc")
    assert "mutual_information" not in table.columns(0, "det")
    assert {*table.columns(1, "mc")} == {"predicted", "confidence", "entropy", "mutual_information"}
    assert table.columns(2, "mc") == {}


def test_a_batch_without_labels_takes_them_from_all() -> None:
    table = SampleScores(class_dim=1)
    table.add(0, None, {"mc": predicted(5)}, labels(5))
    table.add(0, None, {"mc": predicted(5)}, None)
    columns = table.columns(0, "mc")
    assert "label" not in columns
    assert len(columns["confidence"]) == 10


@pytest.mark.parametrize(
    ("batch", "kept"),
    [([torch.arange(4.0)[:, None], 0], True), ([torch.zeros(4, 2), 0], False), (torch.arange(4.0), True), ({}, False)],
)
def test_the_input_of_a_regression_of_one_input(batch: Any, kept: bool) -> None:
    table = SampleScores(class_dim=1)
    table.add(0, batch, {"mc": predicted(4, task="regression")}, None)
    columns = table.columns(0, "mc")
    assert ("input" in columns) is kept
    if kept:
        assert columns["input"].tolist() == [0.0, 1.0, 2.0, 3.0]


def test_all_ranks_together(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = [SampleScores(class_dim=1) for _ in range(3)]
    ranks[0].add(0, None, {"mc": predicted(2)}, labels(2))
    ranks[2].add(0, None, {"mc": predicted(3, 1)}, labels(3))  # the one between has got no batch

    def gather(into: list[Any], own: Any) -> None:
        into[:] = [(None, dict(each._batches)) for each in ranks]

    monkeypatch.setattr(sample_table.torch.distributed, "all_gather_object", gather)
    joined = ranks[1].over_ranks(type("Trainer", (), {"world_size": 3})())
    assert joined.columns(0, "mc")["label"].tolist() == [0, 1, 0, 1, 2]
    alone = ranks[0].over_ranks(type("Trainer", (), {"world_size": 1})())
    assert alone.columns(0, "mc")["label"].tolist() == [0, 1]


def test_rows_that_are_missing_are_no_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    table = SampleScores(class_dim=1)
    table.add(0, None, {"mc": predicted(2)}, labels(2))
    for error in (RuntimeError("planted"), KeyError()):
        table.error = error
        with pytest.raises(RuntimeError, match=f"{type(error).__name__}: "):
            table.over_ranks(type("Trainer", (), {"world_size": 1})())


def test_what_a_loader_fills_again_is_kept_as_it_was() -> None:
    table, batch, target = SampleScores(class_dim=1), torch.arange(4.0), torch.arange(4)
    table.add(0, batch, {"mc": predicted(4, task="regression")}, target.float())
    table.add(1, batch, {"mc": predicted(4)}, target)
    batch.zero_()
    target.zero_()
    assert table.columns(0, "mc")["input"].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert table.columns(1, "mc")["label"].tolist() == [0, 1, 2, 3]

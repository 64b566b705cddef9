"""What is noted of a fit, where it was resumed, and that a checkpoint may hold it."""

from pathlib import Path

import pytest
import torch

from lightning_dropout.callbacks import run_history
from lightning_dropout.callbacks.run_history import RunHistory


def test_only_the_keys_asked_for_are_noted() -> None:
    history = RunHistory()
    metrics = {
        "dropout/mean": torch.tensor(0.5),
        "drop_path/all": 0.25,
        "val/loss": 2.0,
        "val/gap": -1.0,
        "train/loss": 3.0,
    }
    history.add(metrics, at=0, keys=RunHistory.rates)
    history.add(metrics, at=3, keys=RunHistory.validation)
    assert history.values == {
        "dropout/mean": ([0], [0.5]),
        "drop_path/all": ([0], [0.25]),
        "val/loss": ([3], [2.0]),
        "val/gap": ([3], [-1.0]),
    }
    history.add(metrics, at=4, keys=RunHistory.training)
    assert history.values["train/loss"] == ([4], [3.0])
    assert history.values["val/loss"] == ([3], [2.0])


def test_what_is_repeated_counts_as_it_was_last() -> None:
    history = RunHistory()
    for at, value in [(0, 1.0), (1, 2.0), (2, 3.0), (1, 20.0)]:  # resumed after 0
        history.add({"val/loss": value}, at=at, keys=RunHistory.validation)
    assert history.values == {"val/loss": ([0, 1], [1.0, 20.0])}


def test_a_checkpoint_holds_it(tmp_path: Path) -> None:
    history, other = RunHistory(), RunHistory()
    history.add({"val/loss": 2.0}, at=1, keys=RunHistory.validation)
    torch.save(history.state(), tmp_path / "state.pt")
    other.load(torch.load(tmp_path / "state.pt", weights_only=True))
    other.add({"val/loss": 1.0}, at=2, keys=RunHistory.validation)
    assert other.values == {"val/loss": ([1, 2], [2.0, 1.0])}
    assert history.values == {"val/loss": ([1], [2.0])}


def test_a_long_run_keeps_its_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_history, "_MOST_PLACES", 10)
    history = RunHistory()
    for at in range(1000):
        history.add({"val/loss": 2.0 * at}, at=at, keys=RunHistory.validation)
        places, values = history.values["val/loss"]
        assert len(places) <= 10
        assert (places[0], places[-1]) == (0, at)
        assert values == [2.0 * place for place in places]
        assert places == sorted(places)

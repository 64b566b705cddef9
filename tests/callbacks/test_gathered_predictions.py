"""Predictions of all ranks in the order of the data set; several processes are in tests/distributed."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_dropout import MCDropout
from lightning_dropout.callbacks import gather_predictions
from lightning_dropout.callbacks.gathered_predictions import _joined
from lightning_dropout.reports.predictions import prediction_table

pytestmark = [
    pytest.mark.filterwarnings("ignore:Your `predict_dataloader`'s sampler has shuffling enabled"),
    pytest.mark.filterwarnings("ignore:Couldn't infer the batch indices"),
]
ROWS = torch.arange(10.0).view(5, 2)


def test_ranks_are_put_in_order_and_repeats_left_out() -> None:
    # of 3 ranks, the second and third with a repeat, in ragged batches
    numbers = [[0, 3], [6], [1, 4], [0], [2, 5], [1]]
    batches = [{"mean": torch.tensor(rows) * 10.0, "pair": (torch.tensor(rows), None)} for rows in numbers]
    for place in (3, 5):
        batches[place]["mean"] += 1  # another mask for the repeat: the first counts
    joined = _joined(numbers, batches)
    assert joined["mean"].tolist() == [0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0]
    assert joined["pair"][0].tolist() == list(range(7))
    assert joined["pair"][1] is None


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_one_process(make_trainer: Any, make_recorder: Any, shuffle: bool, num_workers: int) -> None:
    module = make_recorder(nn.Identity())
    loader = DataLoader(list(ROWS.split(1)), 2, shuffle=shuffle, num_workers=num_workers)  # type: ignore[arg-type]
    module.predict_step = lambda batch, batch_idx: 2 * batch
    trainer = make_trainer(limit_predict_batches=2)
    found = gather_predictions(trainer, trainer.predict(module, loader))
    assert len(found) == 4
    rows = found[:, 0, 0].tolist()
    assert rows == sorted(rows)
    assert rows == [0.0, 4.0, 8.0, 12.0] or shuffle


def test_several_loaders_and_what_mc_dropout_returns(make_trainer: Any, make_recorder: Any, loader: Any) -> None:
    module = make_recorder()
    module.predict_step = lambda batch, batch_idx, dataloader_idx: module(batch[0])
    trainer = make_trainer(MCDropout(3, task="multiclass", return_uncertainty=True))
    predictions = trainer.predict(module, [loader, loader])
    first, second = gather_predictions(trainer, predictions)
    assert prediction_table([first]) == prediction_table(predictions[0])
    assert first["mean"].shape == second["mean"].shape == (12, 3)


@dataclass
class Answer:
    mean: Tensor
    unit: str = "mm"


def test_predictions_of_ones_own(make_trainer: Any, make_recorder: Any, loader: Any) -> None:
    module = make_recorder()
    module.predict_step = lambda batch, batch_idx: Answer(module.net(batch[0]))
    trainer = make_trainer()
    predictions = trainer.predict(module, loader)
    found = gather_predictions(trainer, predictions)
    assert isinstance(found, Answer)
    assert found.mean.equal(torch.cat([each.mean for each in predictions]))
    assert found.unit == "mm"


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Any:
        return iter(ROWS)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (lambda batch: batch.mean(), "one row a sample, but got \\(\\) at 'the top'"),
        (lambda batch: {"x": batch, "first": batch[:1]}, "one row a sample, but got \\(1, 1, 2\\) at 'first'"),
        (lambda batch: (batch, str(batch[0])), "the same in all batches, but got .* at '1'"),
    ],
)
def test_what_has_no_row_a_sample_is_refused(make_trainer: Any, make_recorder: Any, step: Any, words: str) -> None:
    module = make_recorder()
    module.predict_step = lambda batch, batch_idx: step(batch)
    trainer = make_trainer()
    predictions = trainer.predict(module, DataLoader(list(ROWS.split(1)), 2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=words):
        gather_predictions(trainer, predictions)


def test_samples_without_numbers_are_refused(make_trainer: Any, make_recorder: Any) -> None:
    module = make_recorder()
    module.predict_step = lambda batch, batch_idx: batch
    trainer = make_trainer()
    loader = DataLoader(Stream(), 2)
    predictions = trainer.predict(module, loader)
    with pytest.raises(ValueError, match=r"samples have numbers, but got DataLoader over Stream; use a map-style"):
        gather_predictions(trainer, predictions)


def test_nothing_is_refused(make_trainer: Any, make_recorder: Any, loader: Any) -> None:
    trainer = make_trainer()
    predictions = trainer.predict(make_recorder(), loader, return_predictions=False)
    with pytest.raises(ValueError, match="but got none"):
        gather_predictions(trainer, predictions)

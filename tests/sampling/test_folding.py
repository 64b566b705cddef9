"""Folding passes into the batch and taking them apart again: what is repeated, and what is left alone."""

from dataclasses import dataclass
from typing import Any

import pytest
import timm.layers
import torch
import torchvision
from torch import nn

from lightning_dropout.nn import Dropout, DropPath
from lightning_dropout.sampling import mc_sample
from lightning_dropout.sampling.folding import refuse_coins_of_the_batch, unfold
from lightning_dropout.sampling.inputs import resized
from lightning_dropout.sites import find_sites


def test_folding_is_undone_by_unfolding() -> None:
    inputs = {"x": torch.randn(3, 2, 2), "mask": torch.tensor([True, False, True]), "size": torch.tensor(3), "n": 3}
    for part in unfold(resized(inputs, 3, 12), 3, 4):
        assert torch.equal(part["x"], inputs["x"])
        assert torch.equal(part["mask"], inputs["mask"])


def test_the_first_rows_are_the_first_pass() -> None:
    rows = torch.arange(6)
    assert [part.tolist() for part in unfold(rows, 2, 3)] == [[0, 1], [2, 3], [4, 5]]


def test_one_fold_is_the_batch_itself() -> None:
    inputs = (torch.ones(2),)
    assert unfold(inputs, 2, 1) == [inputs]


def test_outputs_without_the_rows() -> None:
    with pytest.raises(ValueError, match=r"6 rows, 2 for each of 3 folded passes, but got \[\(5, 2\), 'int'\]"):
        unfold((torch.ones(5, 2), 1), 2, 3)


@dataclass
class Own:
    logits: torch.Tensor
    name: str


def test_outputs_of_any_form_come_apart() -> None:
    parts = unfold(Own(torch.arange(4.0), "net"), 2, 2)
    assert [part.logits.tolist() for part in parts] == [[0.0, 1.0], [2.0, 3.0]]
    assert {type(part) for part in parts} == {Own}
    assert {part.name for part in parts} == {"net"}


def test_a_loss_of_all_passes_is_none_of_one() -> None:
    with pytest.raises(ValueError, match="but got `loss`, one loss for 2 folded passes; call the model without labels"):
        unfold({"logits": torch.ones(4, 3), "loss": torch.tensor(1.0)}, 2, 2)
    assert len(unfold({"logits": torch.ones(4, 3), "loss": None}, 2, 2)) == 2
    assert unfold({"logits": torch.ones(4, 3), "loss": torch.arange(4.0)}, 2, 2)[1]["loss"].tolist() == [2.0, 3.0]


@pytest.mark.parametrize(
    ("layer", "refused"),
    [
        (Dropout(0.5), []),
        (DropPath(0.5), []),
        (Dropout(0.5, shared_over_batch=True), ["independent"]),
        (DropPath(0.5, mode="batch"), ["independent"]),
        (timm.layers.DropBlock2d(0.5), ["independent", "shared"]),
        (torchvision.ops.DropBlock2d(0.5, 3), ["independent", "shared"]),
    ],
)
def test_coins_of_the_batch(layer: nn.Module, refused: list[str]) -> None:
    for masks in ("independent", "shared"):
        if masks in refused:
            with pytest.raises(ValueError, match="`0`, which drops for the whole batch"):
                refuse_coins_of_the_batch(find_sites(nn.Sequential(layer)), masks)
        else:
            refuse_coins_of_the_batch(find_sites(nn.Sequential(layer)), masks)


@pytest.mark.parametrize("chunk_size", [0, -1, True, 2.0, "4", None], ids=repr)
def test_chunk_size_is_a_whole_number_of_at_least_1(chunk_size: Any) -> None:
    with pytest.raises(ValueError, match="Expected `chunk_size` to be a whole number of passes, at least 1, but got"):
        mc_sample(nn.Sequential(nn.Dropout()), torch.ones(2, 2), task="raw", chunk_size=chunk_size)

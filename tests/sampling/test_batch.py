"""The runs over one batch: what each is seeded with and given, and what may be compared with what."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_dropout.randomness import derive_seed, seed_everywhere
from lightning_dropout.sampling.activation import dropping
from lightning_dropout.sampling.batch import Batch
from lightning_dropout.sampling.sample import Sampler
from lightning_dropout.sampling.witness import Witness
from lightning_dropout.sites import find_sites


def batch_of(model: nn.Module, x: Tensor, **arguments: Any) -> Batch:
    sampler = Sampler(model, find_sites(model), **{"num_samples": 5, "task": "raw"} | arguments)
    inputs = ((x,), {})
    return Batch(sampler, model, inputs, (3, 1), Witness(model, inputs))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 2)).eval()


@torch.no_grad()
def test_a_run_follows_from_its_seed_and_number_alone(model: nn.Module) -> None:
    x = torch.randn(3, 4)
    batch = batch_of(model, x)
    with dropping(find_sites(model)), batch.prepared():
        outputs = [batch.run(number)[0] for number in (0, 1, 2, 1)]
        repeated = batch.repeat(1)[0]
        seed_everywhere(derive_seed(3, 1, 2))
        assert torch.equal(model(x), outputs[2])
    assert torch.equal(outputs[1], outputs[3])
    assert torch.equal(outputs[1], repeated)
    assert not torch.equal(outputs[0], outputs[1])
    assert batch.reuse.passes > 0
    assert batch.compared


@torch.no_grad()
def test_chunks_end_with_the_passes(model: nn.Module) -> None:
    batch = batch_of(model, torch.randn(3, 4), chunk_size=2)
    with dropping(find_sites(model)), batch.prepared():
        assert [len(batch.run(number)) for number in (0, 2, 4)] == [2, 2, 1]
        assert len(batch.run(5)) == 2, "passes beyond the last are not counted, only compared"
        assert len(batch.repeat(2)) == 2


@torch.no_grad()
def test_a_part_of_the_batch_is_pass_0_of_it(model: nn.Module) -> None:
    batch = batch_of(model, torch.randn(3, 4), masks="shared")
    with dropping(find_sites(model)), batch.prepared():
        whole = batch.run(0)[0]
        torch.testing.assert_close(batch.of_rows(2), whole[:2])
        torch.testing.assert_close(batch.of_rows(6), whole.repeat(2, 1))


def test_whether_a_pass_repeats_is_unknown_until_it_was_compared(model: nn.Module) -> None:
    batch = batch_of(model, torch.randn(3, 4))
    assert batch.compared is False
    with torch.no_grad(), dropping(find_sites(model)), batch.prepared():
        batch.run(0)
        assert batch.compared is None
        batch.run(1)
        assert batch.compared is True


def test_the_witness_is_asked_after_the_first_run_alone() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5))
    batch = batch_of(model, torch.randn(3, 4))
    with batch.prepared(), pytest.raises(RuntimeError, match=r"a changed buffer `0\.running_mean`"):
        batch.run(0)
    model.eval()
    x = torch.randn(3, 4)
    batch = batch_of(model, x)
    with dropping(find_sites(model)), batch.prepared():
        batch.run(0)
        x.zero_()
        batch.run(1)

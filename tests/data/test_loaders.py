"""The loaders that all data modules share."""

import copy
import pickle
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from lightning_dropout.data.loaders import Rows, RowsDataModule, equal_batches, strata_of


def double(x: Tensor) -> Tensor:
    return 2 * x


def noisy(x: Tensor) -> Tensor:
    return 2 * x + torch.rand_like(x)


class Line(RowsDataModule):
    """Row i is the number i, its class i % 2; training rows are doubled with noise, the others doubled."""

    def __init__(self, train: int = 10, val: int | None = 4, test: int = 3, **kwargs: Any) -> None:
        super().__init__(**{"batch_size": 4, **kwargs})
        self.sizes = train, val, test
        self.times_read = 0

    def plain_transform(self) -> Any:
        return double

    def make_sets(self) -> tuple[Rows, Rows | None, Rows]:
        self.times_read += 1
        train, val, test = self.sizes
        rows = torch.arange(train + (val or 0) + test)
        x, y = rows.float().unsqueeze(1), rows % 2
        val_rows = None if val is None else Rows(x, y, rows[train : train + val], double)
        return Rows(x, y, rows[:train], noisy), val_rows, Rows(x, y, rows[len(rows) - test :], double)

    def cure_of_empty(self, name: str) -> str:
        return f"give the {name} set rows"


def ready(*args: Any, **kwargs: Any) -> Line:
    data = Line(*args, **kwargs)
    data.setup("fit")
    return data


def sizes(loader: Any) -> list[int]:
    return [len(y) for _, y in loader]


@pytest.mark.parametrize(
    ("rows", "batch_size", "expected"),
    [
        (9, 4, [4, 4]),  # 1 left over: left out
        (10, 4, [4, 4, 2]),
        (8, 4, [4, 4]),
        (3, 64, [3]),
        (1, 64, [1]),  # all there is
        (4, 1, [1, 1, 1, 1]),  # asked for
    ],
)
def test_last_training_batch(rows: int, batch_size: int, expected: list[int]) -> None:
    assert sizes(ready(train=rows, batch_size=batch_size).train_dataloader()) == expected


@pytest.mark.parametrize(("rows", "drops"), [(17, True), (18, True), (15, False), (20, False)])
def test_last_training_batch_counts_per_process(rows: int, drops: bool) -> None:
    data = ready(train=rows)
    data.trainer = SimpleNamespace(distributed_sampler_kwargs={"num_replicas": 2, "rank": 0})
    # 17 and 18 rows: 9 per process, the first time with one repeated
    assert data.train_dataloader().drop_last is drops


def test_evaluation_never_drops_rows() -> None:
    data = ready(train=9, val=9, test=9)
    for loader in (*data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        assert sizes(loader) == [4, 4, 1]


def on_rank(data: Line, rank: int, ranks: int, **trainer: Any) -> Line:
    connector = SimpleNamespace(use_distributed_sampler=trainer.pop("use_distributed_sampler", True))
    share = {"num_replicas": ranks, "rank": rank} if ranks > 1 else None
    settings = {"distributed_sampler_kwargs": share, "overfit_batches": 0.0, "_accelerator_connector": connector}
    data.trainer = SimpleNamespace(**settings | trainer)
    return data


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("batch_size", [1, 2, 4, 32, 100])
@pytest.mark.parametrize("rows", [4, 5, 9, 12, 65])
def test_ranks_share_the_rows_of_an_evaluation(ranks: int, batch_size: int, rows: int) -> None:
    shares = [on_rank(ready(val=9, test=rows, batch_size=batch_size), rank, ranks) for rank in range(ranks)]
    for name in ("val_dataloader", "test_dataloader", "predict_dataloader"):
        loaders = [getattr(share, name)() for share in shares]
        loaders = [each[0] if isinstance(each, list) else each for each in loaders]
        found = torch.cat([x.flatten() for loader in loaders for x, _ in loader])
        alone = ready(val=9, test=rows)
        expected = alone.val_set if name == "val_dataloader" else alone.test_set
        assert sorted(found.tolist()) == [x.item() for x, _ in expected]  # type: ignore[union-attr]
        assert len({len(loader) for loader in loaders}) == 1  # who waits for the others in each step waits not for good
        assert max(size for loader in loaders for size in sizes(loader)) <= batch_size or batch_size < 4


def test_batches_are_as_large_as_they_can_be() -> None:
    assert equal_batches(64, 2, 32) == equal_batches(67, 2, 32) == 32
    assert equal_batches(65, 2, 32) == 31
    assert equal_batches(13, 2, 3) == 4  # 6 rows: neither 3 nor 2 nor 1
    assert equal_batches(3, 2, 1) == 2


def test_what_lightning_is_to_share_is_left_to_it() -> None:
    for data in (
        on_rank(ready(test=3), 0, 4),  # a rank would have none
        on_rank(ready(), 0, 2, use_distributed_sampler=False),
        on_rank(ready(), 0, 2, overfit_batches=1.0),
    ):
        assert type(data.test_dataloader().sampler).__name__ == "SequentialSampler"  # type: ignore[union-attr]
    assert isinstance(on_rank(ready(), 0, 2).test_dataloader().sampler, DistributedSampler)  # type: ignore[union-attr]


def test_training_rows_are_shuffled_and_complete() -> None:
    data = ready(train=40)
    torch.manual_seed(0)
    loader = data.train_dataloader()
    first, second = (torch.cat([x for x, _ in loader]).div(2).floor() for _ in range(2))
    assert not first.equal(second)
    assert first.flatten().sort().values.equal(torch.arange(40.0))


def test_second_validation_loader_is_a_fixed_plain_part_of_the_training_rows() -> None:
    data = ready(train=30, val=10)
    val, gap = data.val_dataloader()
    assert torch.cat([x for x, _ in val]).flatten().tolist() == [2.0 * i for i in range(30, 40)]
    seen = torch.cat([x for x, _ in gap]).flatten() / 2
    assert len(seen) == 10
    assert set(seen.tolist()) <= set(range(30))  # training rows, and exact: without the noise of training
    assert int((seen % 2).sum()) == 5  # stratified
    assert torch.cat([x for x, _ in gap]).flatten().div(2).equal(seen)
    torch.manual_seed(99)
    assert ready(train=30, val=10).gap_set.rows.equal(data.gap_set.rows)
    assert not ready(train=30, val=10, seed=1).gap_set.rows.equal(data.gap_set.rows)


def test_second_validation_loader_takes_all_training_rows_if_they_are_few() -> None:
    assert len(ready(train=3, val=10).gap_set) == 3


def test_second_validation_loader_can_be_switched_off() -> None:
    data = ready(gap_loader=False)
    assert data.gap_set is None
    assert len(data.val_dataloader()) == 1


def test_no_validation_rows_on_purpose() -> None:
    data = ready(val=None)
    assert data.val_dataloader() == []


@pytest.mark.parametrize(("name", "argument"), [("training", "train"), ("validation", "val"), ("test", "test")])
@pytest.mark.parametrize("stage", ["fit", "test", None])
def test_empty_set_is_an_error_at_any_stage(name: str, argument: str, stage: str | None) -> None:
    data = Line(**{argument: 0})
    with pytest.raises(ValueError, match=f"Expected the {name} set to have .* none; give the {name} set rows"):
        data.setup(stage)


def test_setup_reads_once() -> None:
    data = ready()
    rows = data.train_set
    data.setup("test")
    assert data.times_read == 1
    assert data.train_set is rows


def test_loader_before_setup() -> None:
    for name in ("train", "val", "test", "predict"):
        with pytest.raises(RuntimeError, match="call `setup"):
            getattr(Line(), f"{name}_dataloader")()


@pytest.mark.parametrize("argument", [{"batch_size": 0}, {"num_workers": -1}, {"seed": -1}, {"batch_size": 2.5}])
def test_bad_arguments(argument: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"Expected `{next(iter(argument))}` to be a whole number"):
        Line(**argument)


def test_worker_processes_read_the_same() -> None:
    plain, workers = ready(), ready(num_workers=1)
    assert workers.val_dataloader()[0].persistent_workers
    assert not plain.val_dataloader()[0].persistent_workers
    for expected, loader in zip(plain.val_dataloader(), workers.val_dataloader(), strict=True):
        assert torch.cat([x for x, _ in loader]).equal(torch.cat([x for x, _ in expected]))


def test_rows_survive_the_way_to_a_worker() -> None:
    data = ready()
    copied = pickle.loads(pickle.dumps(data.val_set))
    assert copied[1][0].equal(data.val_set[1][0])
    assert len(copy.deepcopy(data).train_set) == 10


def test_transform_runs_once_per_batch_and_a_plain_loader_can_read_rows() -> None:
    calls = []

    def counted(x: Tensor) -> Tensor:
        calls.append(len(x))
        return x + 1

    rows = Rows(torch.arange(10.0).unsqueeze(1), torch.arange(10), torch.tensor([7, 3, 5]), counted)
    ((x, y),) = DataLoader(rows, batch_size=8)
    assert calls == [3]
    assert x.tolist() == [[8.0], [4.0], [6.0]]
    assert y.tolist() == [7, 3, 5]
    assert rows[1][0].tolist() == [4.0]
    with pytest.raises(IndexError):
        rows[3]


def test_strata() -> None:
    assert strata_of(torch.tensor([2, 0])).tolist() == [2, 0]
    assert strata_of(torch.rand(3, 2)).tolist() == [0, 0, 0]


def test_nothing_goes_into_hyper_parameters() -> None:
    assert dict(ready().hparams) == {}


class Probe(pl.LightningModule):
    """Notes which batch came from which validation loader."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 2)
        self.seen: dict[int, list[float]] = {0: [], 1: []}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return torch.nn.functional.cross_entropy(self.layer(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.seen[dataloader_idx] += batch[0].flatten().tolist()

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.seen[2] = batch[0].flatten().tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*")
def test_a_trainer_gets_both_validation_loaders() -> None:
    trainer = pl.Trainer(
        max_epochs=1,
        num_sanity_val_steps=0,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model, data = Probe(), Line()
    trainer.fit(model, data)
    trainer.test(model, data, verbose=False)
    assert model.seen[0] == [20.0, 22.0, 24.0, 26.0]
    assert len(model.seen[1]) == 4
    assert max(model.seen[1]) <= 18
    assert model.seen[2] == [28.0, 30.0, 32.0]


class WithOthers(Line):
    """Two sets more: the test rows turned round, and none of them, so to say."""

    ood_names = ("negative", "zero")

    def make_ood_sets(self, test: Rows) -> dict[str, Rows]:
        return {
            name: Rows(factor * test.inputs[test.rows], test.targets, torch.arange(len(test)), test.transform)
            for name, factor in (("zero", 0), ("negative", -1))  # not in the order of the names
        }


def test_other_data_sets_follow_the_test_rows_in_the_order_of_their_names() -> None:
    data = WithOthers()
    data.setup()
    rows = [torch.cat([x for x, _ in loader]).flatten() for loader in data.test_dataloader()]
    assert len(rows) == 3
    assert rows[1].equal(-rows[0])
    assert rows[2].equal(torch.zeros(3))
    assert torch.cat([x for x, _ in data.predict_dataloader()]).flatten().equal(rows[0])
    assert isinstance(ready().test_dataloader(), DataLoader)

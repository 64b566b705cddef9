"""Which loaders are out-of-distribution, and how well they are told apart: numbers against pairs counted by hand."""

import inspect
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_dropout.callbacks import MCDropout, ood_scores
from lightning_dropout.modules import Classifier, Regressor
from lightning_dropout.sampling.prediction import MCPrediction, Statistics, Task

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:MCDropout. .* outputs held NaN or infinity"),
]
MakeTrainer = Callable[..., Any]
T = 5
SCORES = {"max_probability", "entropy", "mutual_information", "det_max_probability", "det_entropy"}
CPU = torch.device("cpu")


def predicted(rows: int, seed: int, task: Task = "multiclass", passes: int = 3, scale: float = 1.0) -> MCPrediction:
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(rows, 1 if task == "binary" else 4, generator=generator) * scale
    statistics = Statistics(task, 1)
    for _ in range(passes):
        outputs = centre + torch.randn(centre.shape, generator=generator)
        statistics.update(outputs.softmax(1) if task == "probabilities" else outputs)
    return statistics.result(outputs)


def by_hand(sides: dict[str, MCPrediction]) -> dict[str, list[float]]:
    """Return each score of each sample, higher meaning less sure."""
    scores: dict[str, list[float]] = {}
    for prefix, side in (("", "mc"), ("det_", "det")):
        p = sides[side].mean.double()
        p = torch.cat([1 - p, p], 1) if p.shape[1] == 1 else p
        scores[f"{prefix}max_probability"] = (-p.max(1).values).tolist()
        scores[f"{prefix}entropy"] = (-(p * p.log()).sum(1)).tolist()
    scores["mutual_information"] = sides["mc"].mutual_information.flatten().tolist()
    return scores


def auroc_by_hand(inside: list[float], outside: list[float]) -> float:
    pairs = [(a, b) for a in inside for b in outside]
    return sum((b > a) + 0.5 * (b == a) for a, b in pairs) / len(pairs)


def fpr95_by_hand(inside: list[float], outside: list[float]) -> float:
    passing = next(t for t in sorted(inside) if sum(a <= t for a in inside) >= 0.95 * len(inside))
    return sum(b <= passing for b in outside) / len(outside)


def check_numbers(module: ModuleType, task: Task = "multiclass") -> None:
    """Three loaders of unequal length, in batches: each number of each data set and score is that of its samples."""
    names = ["noise", "svhn"]
    found = module.OODScores(names, 1, passes={"mc": 3, "det": 1, "temperature": 1}, device=CPU)
    expected: list[dict[str, list[float]]] = []
    for loader, (rows, scale) in enumerate(((40, 4.0), (31, 0.5), (23, 2.0))):
        expected.append({})
        for batch in range(2):
            seed = 10 * loader + batch
            sides = {
                "mc": predicted(rows, seed, task, scale=scale),
                "det": predicted(rows, seed + 100, task, passes=1, scale=scale),
            }
            found.update(loader, {**sides, "temperature": predicted(rows, seed + 200, task, passes=1)})
            for score, values in by_hand(sides).items():
                expected[-1].setdefault(score, []).extend(values)
    values = {key: value.item() for key, value, problem in found.compute() if problem is None}
    assert values.keys() == {f"test/ood/{m}/{s}/{name}" for m in ("auroc", "fpr95") for s in SCORES for name in names}
    for number, name in enumerate(names, start=1):
        for score in SCORES:
            inside, outside = expected[0][score], expected[number][score]
            assert values[f"test/ood/auroc/{score}/{name}"] == pytest.approx(auroc_by_hand(inside, outside), abs=2e-3)
            assert values[f"test/ood/fpr95/{score}/{name}"] == pytest.approx(fpr95_by_hand(inside, outside), abs=0.02)


@pytest.mark.parametrize("task", ["multiclass", "probabilities", "binary"])
def test_numbers(task: Task) -> None:
    assert ood_scores.has_ood_scores(task)
    check_numbers(ood_scores, task)


MUTANTS = {
    "the first loader is foreign": [
        ("metric.update(inside, torch.zeros_like(inside))", "metric.update(inside, torch.ones_like(inside))"),
        ("metric.update(outside, torch.ones_like(outside))", "metric.update(outside, torch.zeros_like(outside))"),
    ],
    "sure of it is foreign": [
        ('log_keys.MAX_PROBABILITY: ("confidence", -1.0)', 'log_keys.MAX_PROBABILITY: ("confidence", 1.0)')
    ],
    "the sides are swapped": [("sample_scores(sides[side]", 'sample_scores(sides["det" if side == "mc" else "mc"]')],
    "only the plain forward": [("sample_scores(sides[side]", 'sample_scores(sides["det"]')],
    "the temperature for the plain forward": [("    log_keys.DET: {", "    log_keys.TEMPERATURE: {")],
    "a loader too early": [("start=1", "start=0")],
    "the last batch only": [("torch.cat([torch.empty(0), *batches])", "batches[-1]")],
    "one metric for both": [("(log_keys.FPR95, FPR95())", "(log_keys.FPR95, OODAUROC())")],
}


@pytest.mark.parametrize("name", MUTANTS)
def test_that_check_fails_for_planted_bugs(name: str) -> None:
    source = inspect.getsource(ood_scores)
    for old, new in MUTANTS[name]:
        assert source.count(old) == 1
        source = source.replace(old, new)
    mutant = ModuleType("mutant")
    exec(compile(source, "<mutant>", "exec"), mutant.__dict__)
    with pytest.raises((AssertionError, KeyError)):
        check_numbers(mutant)


def test_the_scores_follow_from_the_settings() -> None:
    def scores(**passes: int) -> set[str]:
        return set(ood_scores.OODScores(["a"], 1, passes=passes, device=CPU).scores)

    assert scores(mc=2, det=1, temperature=1) == scores(mc=2, det=1) == SCORES
    assert scores(mc=1, det=1) == SCORES - {"mutual_information"}
    assert scores(mc=2) == {"max_probability", "entropy", "mutual_information"}


# --- in a test ------------------------------------------------------------------------------------------------------


def loader(rows: int, seed: int = 0, scale: float = 1.0, classes: int = 3) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 4, generator=generator) * scale
    return DataLoader(TensorDataset(x, torch.randint(classes, (rows,), generator=generator)), batch_size=8)


def unlabelled(rows: int, seed: int = 0, scale: float = 1.0) -> DataLoader[Any]:
    x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed)) * scale
    return DataLoader(TensorDataset(x, torch.full((rows,), -100)), batch_size=8)


def small_net(outputs: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, outputs))


def classifier() -> Classifier:
    return Classifier(small_net(), num_classes=3)


class Data(LightningDataModule):
    """Two sets, of which the second is foreign."""

    ood_names = ("noise",)

    def train_dataloader(self) -> Any:
        return loader(16)

    def test_dataloader(self) -> Any:
        return [loader(20), unlabelled(12)]


def ood_keys(metrics: dict[str, float]) -> set[str]:
    return {key for key in metrics if "/ood/" in key}


def test_both_sides_are_logged_as_they_were_sampled(make_trainer: MakeTrainer) -> None:
    callback = MCDropout(T, task="multiclass", ood=["near", "far"])
    seen: dict[int, list[dict[str, list[float]]]] = {}
    labels: dict[int, set[bool]] = {}

    def observe(index: int, batch: Any, sides: Any, found: Tensor | None) -> None:
        seen.setdefault(index, []).append(by_hand(sides))
        labels.setdefault(index, set()).add(found is not None)

    callback.observers.append(observe)
    sets = [loader(60), unlabelled(20, seed=1), unlabelled(30, seed=2, scale=0.2)]
    found = make_trainer(callback).test(classifier(), sets, verbose=False)[0]
    columns = {
        index: {score: [value for batch in batches for value in batch[score]] for score in SCORES}
        for index, batches in seen.items()
    }
    assert ood_keys(found) == {
        f"test/ood/{m}/{s}/{d}" for m in ("auroc", "fpr95") for s in SCORES for d in ("near", "far")
    }
    for number, name in enumerate(("near", "far"), start=1):
        for score in SCORES:
            expected = auroc_by_hand(columns[0][score], columns[number][score])
            assert found[f"test/ood/auroc/{score}/{name}"] == pytest.approx(expected, abs=2e-3)
    assert labels == {0: {True}, 1: {False}, 2: {False}}


def test_a_single_data_set_needs_no_name_in_its_keys(make_trainer: MakeTrainer) -> None:
    callback = MCDropout(T, task="multiclass", ood=["noise"], compare=False)
    found = make_trainer(callback).test(classifier(), [loader(20), unlabelled(12)], verbose=False)[0]
    scores = ("max_probability", "entropy", "mutual_information")
    assert ood_keys(found) == {f"test/ood/{metric}/{score}" for metric in ("auroc", "fpr95") for score in scores}


def test_labels_of_foreign_data_are_not_looked_at(make_trainer: MakeTrainer) -> None:
    class OnlyCalls(Classifier):
        def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self(batch[0])

    sets = [loader(20), loader(12, classes=9)]  # of nine classes, which the module knows nothing of
    trainer = make_trainer(MCDropout(T, task="multiclass", labels="1", ood=["noise"]))
    metrics = {k: v for each in trainer.test(OnlyCalls(small_net(), 3), sets, verbose=False) for k, v in each.items()}
    foreign = {key.split("/")[2] for key in metrics if key.endswith("dataloader_idx_1")}
    assert foreign == {"entropy", "mutual_information"}
    assert "test/mc/nll" in metrics
    trainer = make_trainer(MCDropout(T, task="multiclass", labels="1", ood=()))
    with pytest.raises(ValueError, match="Expected labels from 0 to 2 for 3 classes"):
        trainer.test(OnlyCalls(small_net(), 3), sets, verbose=False)


def test_the_data_say_what_is_foreign_but_only_of_their_own_loaders(make_trainer: MakeTrainer) -> None:
    data, module = Data(), classifier()
    trainer = make_trainer(MCDropout(T, task="multiclass"), max_epochs=1)
    trainer.fit(module, datamodule=data)
    assert "test/ood/auroc/entropy" in trainer.test(module, datamodule=data, verbose=False)[0]
    others = trainer.test(module, dataloaders=[loader(20), loader(12, seed=1)], verbose=False)
    assert not ood_keys(others[0])
    assert "test/mc/nll/dataloader_idx_1" in others[1]
    assert not ood_keys(trainer.test(module, dataloaders=[loader(20)], verbose=False)[0])
    told = make_trainer(MCDropout(T, task="multiclass", ood=()))
    assert not ood_keys(told.test(module, datamodule=data, verbose=False)[0])


@pytest.mark.parametrize(
    ("ood", "loaders", "message"),
    [
        (
            ["a", "b"],
            2,
            r"`ood` to name each of the 1 test loaders after the first.* but the list has 2: a, b; pass one",
        ),
        (["a"], 1, "each of the 0 test loaders .* has 1: a"),
        (["a"], 3, "each of the 2 test loaders .* has 1: a"),
    ],
)
def test_a_name_for_each_further_loader(make_trainer: MakeTrainer, ood: Any, loaders: int, message: str) -> None:
    trainer = make_trainer(MCDropout(T, task="multiclass", ood=ood))
    module = classifier()
    with pytest.raises(ValueError, match=message):
        trainer.test(module, [loader(8)] * loaders, verbose=False)
    assert "forward" not in vars(module)


def test_data_whose_names_do_not_fit_are_named() -> None:
    source = SimpleNamespace(ood_names=("a", "b"))
    trainer = SimpleNamespace(
        test_loop=SimpleNamespace(_data_source=SimpleNamespace(instance=source)), num_test_batches=[3, 3]
    )
    with pytest.raises(ValueError, match="but the `ood_names` of SimpleNamespace has 2: a, b"):
        ood_scores.ood_names(trainer, "auto")
    source.ood_names = ("a",)
    assert ood_scores.ood_names(trainer, "auto") == ("a",)


@pytest.mark.parametrize("ood", ["svhn", ["a", "a"], [""], ["a/b"], [3], None])
def test_impossible_names(ood: Any) -> None:
    with pytest.raises(ValueError, match="Expected `ood` to list different names"):
        MCDropout(T, task="multiclass", ood=ood)


@pytest.mark.parametrize(("word", "ood"), [("auto", "auto"), ('["a", "b"]', ["a", "b"]), ("[]", [])])
def test_a_command_line_can_name_them(word: str, ood: Any) -> None:
    jsonargparse = pytest.importorskip("jsonargparse")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(MCDropout, "mc")
    assert parser.parse_args(["--mc.task=multiclass", f"--mc.ood={word}"]).mc.ood == ood


def test_tasks_without_classes(make_trainer: MakeTrainer) -> None:
    with pytest.raises(
        ValueError, match=r"Expected `ood` to be empty or \"auto\" for task=\"gaussian\", whose .*\['a'\]"
    ):
        MCDropout(T, task="gaussian", ood=["a"])

    class Values(Data):
        def test_dataloader(self) -> Any:
            return [DataLoader(TensorDataset(torch.randn(8, 4), torch.randn(8, 1)), batch_size=4)] * 2

    class Silent(Regressor):  # before 2.5.3 Lightning took no metric object for two loaders
        def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self(batch[0])

    found = make_trainer(MCDropout(T, task="gaussian")).test(Silent(small_net(2)), datamodule=Values(), verbose=False)
    assert "test/mc/nll" in found[0]
    assert not ood_keys(found[0])


class Pixels(LightningModule):
    """A class for each of two pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Unflatten(1, (3, 2)))

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.net(batch[0])


def test_samples_of_several_answers_have_no_score(make_trainer: MakeTrainer) -> None:
    callback = MCDropout(T, task="multiclass", labels=None)
    found = make_trainer(callback).test(Pixels(), datamodule=Data(), verbose=False)[0]
    assert "test/mc/entropy" in found
    assert not ood_keys(found)


def nan_loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.full((3, 4), torch.nan), torch.full((3,), -100)), batch_size=8)


@pytest.mark.filterwarnings("ignore:Total length of `DataLoader` across ranks is zero")
@pytest.mark.parametrize(
    ("sets", "reason"),
    [
        (lambda: [loader(20), unlabelled(0)], "none of 20 samples is out-of-distribution"),
        (lambda: [loader(20), nan_loader()], "3 of 23 scores are NaN, which have no rank"),
    ],
)
def test_what_is_undefined_is_nan_with_a_reason(
    sets: Any, reason: str, make_trainer: MakeTrainer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        trainer = make_trainer(MCDropout(T, task="multiclass", ood=["noise"]))
        found = trainer.test(classifier(), sets(), verbose=False)[0]
    keys = ood_keys(found)
    assert len(keys) == 2 * len(SCORES)
    assert all(found[key] != found[key] for key in keys)
    assert found["test/mc/nll"] == found["test/mc/nll"]
    lines = [record.getMessage() for record in caplog.records if "told apart" in record.getMessage()]
    assert lines == [f"MCDropout: how noise is told apart is NaN, since {reason}."]


RANKS = """
import json, os, sys
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_dropout.callbacks import MCDropout


class Module(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 3))

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        self.net(batch)


class Some(IterableDataset):
    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


if __name__ == "__main__":
    folder, world_size = Path(sys.argv[1]), int(sys.argv[2])
    seed_everything(1, verbose=False)
    module = Module()
    sets = [torch.randn(41, 4) * 2, torch.randn(30, 4), torch.randn(20, 4) * 0.3]
    trainer = Trainer(
        accelerator="cpu", devices=world_size, strategy="ddp" if world_size > 1 else "auto", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[MCDropout(6, task="multiclass", masks="shared", labels=None, ood=["near", "far"])],
    )
    # rank 1 has some of the first set, a single batch of the second, nothing of the third
    parts = [slice(None)] * 3 if world_size == 1 else [
        [slice(0, 8), slice(0, 26), slice(None)], [slice(8, None), slice(26, None), slice(0, 0)]
    ][int(os.environ.get("LOCAL_RANK", 0))]
    loaders = [DataLoader(Some(list(rows[part])), 4) for rows, part in zip(sets, parts)]
    found = trainer.test(module, loaders, verbose=False)[0]
    (folder / f"{trainer.global_rank}.json").write_text(json.dumps(found))
"""


def run_ranks(folder: Path, world_size: int) -> list[dict[str, float]]:
    folder.mkdir()
    (folder / "ranks.py").write_text(RANKS)
    environment = {key: value for key, value in os.environ.items() if key != "PL_GLOBAL_SEED"}
    command = [sys.executable, "ranks.py", str(folder), str(world_size)]
    environment["OMP_NUM_THREADS"] = "1"
    subprocess.run(command, env=environment, check=True, timeout=240, cwd=folder, capture_output=True)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world_size)]


@pytest.mark.slow
def test_ranks_compare_the_samples_of_all(tmp_path: Path) -> None:
    (alone,) = run_ranks(tmp_path / "1", 1)
    keys = ood_keys(alone)
    assert len(keys) == 20
    for rank in run_ranks(tmp_path / "2", 2):
        assert {key: rank[key] for key in keys} == pytest.approx({key: alone[key] for key in keys}, abs=1e-5)

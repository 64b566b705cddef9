"""A run leaves its figures, their numbers and a table; whatever fails in them costs no run its results."""

import functools
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_dropout import log_keys
from lightning_dropout.callbacks import DropoutScheduler, MCDropout, RunReport, run_report
from lightning_dropout.modules import Classifier, Regressor
from lightning_dropout.schedules import Linear

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]
MakeTrainer = Callable[..., Any]
T = 5


class Images:
    """A logger that takes images, in the part that trainers ask for."""


def data(rows: int = 60, seed: int = 0) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(rows, 1, 4, 4, generator=generator)
    unclear = x.flatten(1)[:, :3] + 0.3 * torch.randn(rows, 3, generator=generator)
    return DataLoader(TensorDataset(x, unclear.argmax(1)), batch_size=20)


def classifier() -> Classifier:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.Dropout(0.5), nn.Linear(32, 3))
    return Classifier(net, num_classes=3, optimizer=functools.partial(torch.optim.Adam, lr=0.05))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_run_of_classes(make_trainer: MakeTrainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "report"
    trainer = make_trainer(
        DropoutScheduler(rate=Linear(0.0, 0.5)),
        MCDropout(T, task="multiclass"),
        RunReport(str(folder), samples=7),
        max_epochs=2,
    )
    module = classifier()
    trainer.fit(module, data(), [data(seed=1), data()])
    assert names(folder) == {"rates.png", "rates.json", "gap.png", "gap.json"}
    found = trainer.test(module, data(seed=2), verbose=False)[0]
    both = {"reliability", "risk_coverage", "entropy"}
    assert names(folder) >= {f"{name}.{ending}" for name in both for ending in ("png", "json")}
    assert {"most_uncertain.png", "most_uncertain.csv", "comparison.json"} <= names(folder)

    report = json.loads((folder / "comparison.json").read_text())
    assert report["metrics"]["test/mc/nll"] == pytest.approx(found["test/mc/nll"])
    paired = report["paired"]["nll"]
    assert paired["values"]["mc"] == pytest.approx(found["test/mc/nll"], rel=1e-5)
    assert paired["values"]["temperature"] == pytest.approx(found["test/temperature/nll"], rel=1e-5)
    difference = found["test/mc/nll"] - found["test/det/nll"]
    assert paired["differences"]["det"][0] == pytest.approx(difference, abs=1e-6)
    assert "mc beside its baselines" in capsys.readouterr().out.replace("Monte-Carlo dropout", "mc")

    rows = (folder / "most_uncertain.csv").read_text().splitlines()[1:]
    entropies = [float(row.split(",")[4]) for row in rows]
    assert len(rows) == 7
    assert entropies == sorted(entropies, reverse=True)
    rates = json.loads((folder / "rates.json").read_text())[0]
    assert rates["mean"][:3] == pytest.approx([0.5 * step / 6 for step in range(3)])
    losses = json.loads((folder / "gap.json").read_text())["losses"]
    assert losses["train"]["at"] == losses["validation"]["at"] == [0.0, 1.0]


def test_the_images_are_the_least_sure_of_all_and_asked_for(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    module = classifier()
    loader = data(seed=2)
    for samples in (0, 4):
        folder = tmp_path / str(samples)
        callback = MCDropout(T, task="multiclass")
        every: list[float] = []
        callback.observers.append(lambda index, batch, sides, labels: every.extend(sides["mc"].entropy.tolist()))  # noqa: B023
        make_trainer(callback, RunReport(str(folder), samples=samples)).test(module, loader, verbose=False)
        assert ("most_uncertain.png" in names(folder)) is (samples > 0)
    table = [line.split(",") for line in (tmp_path / "4" / "most_uncertain.csv").read_text().splitlines()[1:]]
    order = sorted(range(60), key=lambda place: -every[place])[:4]
    assert [int(row[0]) for row in table] == order


def test_a_regression_of_one_input(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    x = torch.linspace(-1, 1, 80)[:, None]
    loader = DataLoader(TensorDataset(x, x.sin()), batch_size=16)
    module = Regressor(nn.Sequential(nn.Linear(1, 16), nn.Dropout(0.2), nn.Linear(16, 2)))
    trainer = make_trainer(MCDropout(T, task="gaussian"), RunReport(str(tmp_path / "report")), max_epochs=1)
    trainer.fit(module, loader, loader)
    trainer.test(module, loader, verbose=False)
    assert {"regression_band.png", "interval_calibration.png", "comparison.json"} <= names(tmp_path / "report")
    band = json.loads((tmp_path / "report" / "regression_band.json").read_text())
    assert band["num_data"] == 80
    assert len(band["x"]) == 80


@pytest.mark.parametrize("with_passes", [True, False])
def test_labels_and_passes_need_not_be_there(with_passes: bool, make_trainer: MakeTrainer, tmp_path: Path) -> None:
    passes = [MCDropout(T, task="multiclass", labels=None)] if with_passes else []
    make_trainer(*passes, RunReport(str(tmp_path / "report"))).test(classifier(), data(), verbose=False)
    assert not (tmp_path / "report" / "comparison.json").exists()
    assert not list(tmp_path.glob("report/*.png"))


@pytest.mark.parametrize("place", ["save_figure", "draw_evaluation", "baseline_rows"])
def test_what_fails_is_a_line(
    place: str,
    make_trainer: MakeTrainer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space\nleft on device")

    monkeypatch.setattr(run_report, place, fail)
    trainer = make_trainer(MCDropout(T, task="multiclass"), RunReport(str(tmp_path / "report")))
    with caplog.at_level(logging.INFO):
        assert "test/mc/nll" in trainer.test(classifier(), data(), verbose=False)[0]
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("RunReport")]
    assert "RunReport: the report could not be finished ([Errno 28] No space left on device); the run goes on." in lines


def test_a_file_in_the_way_is_a_line(
    make_trainer: MakeTrainer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "report").write_text("")
    with caplog.at_level(logging.INFO):
        make_trainer(MCDropout(T, task="multiclass"), RunReport(str(tmp_path / "report"))).test(
            classifier(), data(), verbose=False
        )
    assert sum("could not be finished" in record.getMessage() for record in caplog.records) == 2


def test_nothing_stays_after_an_exception(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    class Failing(Classifier):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            super().test_step(batch, batch_idx)
            raise RuntimeError("planted")

    passes, report = MCDropout(T, task="multiclass"), RunReport(str(tmp_path))
    module = Failing(classifier().net, num_classes=3)
    with pytest.raises(RuntimeError, match="planted"):
        make_trainer(passes, report).test(module, data(), verbose=False)
    assert passes.observers == []
    make_trainer(passes, report).test(classifier(), data(), verbose=False)
    assert passes.observers == []
    assert len(json.loads((tmp_path / "entropy.json").read_text())["mc"]["counts"]["right"]) == 30


def test_the_default_folder_is_that_of_the_run(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    make_trainer(MCDropout(T, task="multiclass"), RunReport()).test(classifier(), data(), verbose=False)
    assert (tmp_path / "report" / "reliability.png").is_file()


def test_a_trial_run_leaves_nothing(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(MCDropout(T, task="multiclass"), RunReport(str(tmp_path / "report")), fast_dev_run=True)
    trainer.test(classifier(), data(), verbose=False)
    assert not (tmp_path / "report").exists()


def test_the_curves_of_a_resumed_run_begin_where_it_began(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint

    def trainer_of(folder: str, epochs: int, *more: Any) -> Any:
        return make_trainer(*more, DropoutScheduler(rate=0.1, total="4ep"), RunReport(folder), max_epochs=epochs)

    saving = ModelCheckpoint(tmp_path, filename="last")
    trainer_of(str(tmp_path / "first"), 2, saving).fit(classifier(), data(), data())
    trainer_of(str(tmp_path / "second"), 4).fit(classifier(), data(), data(), ckpt_path=tmp_path / "last.ckpt")
    losses = json.loads((tmp_path / "second" / "gap.json").read_text())["losses"]
    assert losses["validation"]["at"] == [0.0, 1.0, 2.0, 3.0]
    first = json.loads((tmp_path / "first" / "gap.json").read_text())["losses"]
    assert losses["validation"]["value"][:2] == first["validation"]["value"]


def losses_of(folder: Path) -> dict[str, dict[str, list[float]]]:
    losses: dict[str, dict[str, list[float]]] = json.loads((folder / "gap.json").read_text())["losses"]
    return losses


def test_epochs_without_a_validation_have_no_point(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(RunReport(str(tmp_path)), max_epochs=4, check_val_every_n_epoch=2)
    trainer.fit(classifier(), data(), data())
    losses = losses_of(tmp_path)
    assert losses["train"]["at"] == [0.0, 1.0, 2.0, 3.0]
    assert losses["validation"]["at"] == [1.0, 3.0]


def test_of_several_validations_in_an_epoch_the_last_counts(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(
        RunReport(str(tmp_path)), max_epochs=2, val_check_interval=1 / 3, num_sanity_val_steps=2, limit_val_batches=1
    )
    trainer.fit(module := classifier(), data(), data())
    losses = losses_of(tmp_path)
    assert losses["validation"]["at"] == losses["train"]["at"] == [0.0, 1.0]
    found = trainer.validate(module, data(), verbose=False)[0]
    assert losses["validation"]["value"][-1] == pytest.approx(found["val/loss"])


def test_rates_while_gradients_accumulate(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(
        DropoutScheduler(rate=Linear(0.0, 0.5)), RunReport(str(tmp_path)), max_epochs=2, accumulate_grad_batches=3
    )
    trainer.fit(classifier(), data(), data())
    (curve,) = json.loads((tmp_path / "rates.json").read_text())
    assert curve["at"] == [0.0, 0.5, 1.0]


def test_a_second_fit_shows_its_own_training_data(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    module = Regressor(nn.Sequential(nn.Linear(1, 16), nn.Dropout(0.2), nn.Linear(16, 2)))
    report = RunReport(str(tmp_path))
    for rows in (80, 32):
        x = torch.linspace(-1, 1, rows)[:, None]
        loader = DataLoader(TensorDataset(x, x.sin()), batch_size=16)
        make_trainer(MCDropout(T, task="gaussian"), report, max_epochs=1).fit(module, loader, loader)
    make_trainer(MCDropout(T, task="gaussian"), report).test(module, loader, verbose=False)
    assert json.loads((tmp_path / "regression_band.json").read_text())["num_data"] == 32


class OfDictionaries(Classifier):
    """Batches have names, and images are in half precision."""

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self(batch["image"].float())


def test_images_of_dictionaries_in_half_precision(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    x = torch.rand(12, 1, 4, 4).bfloat16()
    loader: Any = DataLoader([{"label": 1, "image": image} for image in x], batch_size=4)  # type: ignore[arg-type]
    trainer = make_trainer(MCDropout(T, task="multiclass"), RunReport(str(tmp_path), samples=2))
    trainer.test(OfDictionaries(classifier().net, num_classes=3), loader, verbose=False)
    assert len((tmp_path / "most_uncertain.csv").read_text().splitlines()) == 3
    assert (tmp_path / "most_uncertain.png").is_file()


def test_rows_that_cannot_be_had_are_a_line(
    make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = make_trainer(MCDropout(T, task="multiclass")).test(module := classifier(), data(), verbose=False)
    seen: list[int] = []

    def fail(*args: Any) -> None:
        seen.append(1)
        raise IndexError("planted")

    monkeypatch.setattr("lightning_dropout.callbacks.sample_table.sample_scores", fail)
    with caplog.at_level(logging.INFO):
        trainer = make_trainer(MCDropout(T, task="multiclass"), RunReport(str(tmp_path / "report")))
        assert trainer.test(module, data(), verbose=False) == expected
    assert len(seen) == 1
    assert [line for line in caplog.messages if line.startswith("RunReport")] == [
        "RunReport: the report could not be finished (IndexError: planted); the run goes on."
    ]
    assert not (tmp_path / "report").exists()


def test_the_numbers_are_json_whatever_they_are(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    module = classifier()
    torch.nn.init.constant_(module.net[1].weight, torch.nan)  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="held NaN or infinity"):
        make_trainer(MCDropout(T, task="multiclass"), RunReport(str(tmp_path))).test(module, data(), verbose=False)

    def refuse(name: str) -> None:
        raise ValueError(name)

    report = json.loads((tmp_path / "comparison.json").read_text(), parse_constant=refuse)
    assert report["metrics"]["test/mc/nll"] is None


def test_each_figure_goes_to_the_loggers_under_its_key(
    make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: list[str] = []
    monkeypatch.setattr(run_report, "log_figure", lambda trainer, key, draw: keys.append(key))
    make_trainer(MCDropout(T, task="multiclass"), RunReport(str(tmp_path))).test(classifier(), data(), verbose=False)
    assert keys == [log_keys.REPORT_RELIABILITY, log_keys.REPORT_RISK_COVERAGE, log_keys.REPORT_ENTROPY]


@pytest.mark.parametrize("samples", [-1, 1.5, True])
def test_a_wrong_number_of_images(samples: Any) -> None:
    with pytest.raises(ValueError, match=r"`samples` to be a whole number of at least 0, but got"):
        RunReport(samples=samples)


def foreign(rows: int, scale: float) -> DataLoader[Any]:
    x = torch.rand(rows, 1, 4, 4, generator=torch.Generator().manual_seed(5)) * scale
    return DataLoader(TensorDataset(x, torch.full((rows,), -100)), batch_size=20)


def test_entropies_of_other_data_sets(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    passes = MCDropout(T, task="multiclass", ood=["small", "large"])
    sets = [data(seed=2), foreign(30, 0.0), foreign(40, 9.0)]
    for callbacks in ([passes, RunReport(str(tmp_path / "a"))], [RunReport(str(tmp_path / "b")), passes]):
        found = make_trainer(*callbacks).test(classifier(), sets, verbose=False)[0]
    numbers = json.loads((tmp_path / "b" / "ood_entropy.json").read_text())
    assert (tmp_path / "a" / "ood_entropy.png").is_file()
    for side, prefix in (("det", "det_"), ("mc", "")):
        assert {name: sum(counts) for name, counts in numbers[side]["counts"].items()} == {
            "in-distribution": 60,
            "small": 30,
            "large": 40,
        }
        assert numbers[side]["auroc"] == pytest.approx(
            {name: found[f"test/ood/auroc/{prefix}entropy/{name}"] for name in ("small", "large")}
        )


@pytest.mark.filterwarnings("ignore:Total length of `DataLoader` across ranks is zero")
def test_an_empty_data_set_costs_no_figure(
    make_trainer: MakeTrainer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    passes = MCDropout(T, task="multiclass", ood=["empty", "large"])
    with caplog.at_level(logging.INFO):
        sets = [data(), foreign(0, 1.0), foreign(40, 9.0)]
        make_trainer(passes, RunReport(str(tmp_path))).test(classifier(), sets, verbose=False)
    assert not [record for record in caplog.records if "could not be finished" in record.getMessage()]
    assert list(json.loads((tmp_path / "ood_entropy.json").read_text())["mc"]["auroc"]) == ["large"]


# --- two ranks ------------------------------------------------------------------------------------------------------

RANKS = """
import json, sys
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_dropout.callbacks import MCDropout, RunReport, run_report


class Module(LightningModule):
    # Logs nothing in evaluation: for a rank without a batch Lightning would wait for good, with or without us.
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 3))

    def on_train_start(self):
        torch.manual_seed(0)  # ranks are seeded anew when they join: other masks than those of one process

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.net(batch[0])

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Part(IterableDataset):
    # What a rank has: some rows of all, or none.
    def __init__(self, rows, chosen):
        self.rows, self.chosen = rows, chosen

    def __iter__(self):
        return iter([tuple(each[i] for each in self.rows.tensors) for i in self.chosen])


def rows(count, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 4, generator=generator)
    return TensorDataset(x, torch.randint(3, (count,), generator=generator))


if __name__ == "__main__":
    folder, world_size = Path(sys.argv[1]), int(sys.argv[2])
    written, save = [], run_report.save_figure
    run_report.save_figure = lambda *given: written.append(given[3]) or save(*given)
    result = {}
    # the first rank has most, the first all, the second all
    for name, split in (("uneven", 50), ("second empty", 64), ("first empty", 0)):
        seed_everything(1, verbose=False)
        written.clear()
        callback = MCDropout(4, task="multiclass", masks="shared", seed=3)
        trainer = Trainer(
            accelerator="cpu", devices=world_size, strategy="ddp" if world_size > 1 else "auto", logger=False,
            max_epochs=1, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=folder / name, callbacks=[callback, RunReport(samples=2)],
        )
        rank = trainer.global_rank if world_size > 1 else None
        chosen = range(64) if rank is None else range(split) if rank == 0 else range(split, 64)
        module = Module()
        # the same rows on each rank, so that a fit on two ranks is the fit on one
        train = DataLoader(Part(rows(16, 0), range(16)), batch_size=8)
        trainer.fit(module, train, DataLoader(Part(rows(64, 1), chosen), batch_size=16))
        found = trainer.test(module, DataLoader(Part(rows(64, 2), chosen), batch_size=16), verbose=False)
        found = {key: value for part in found for key, value in part.items()}
        result[name] = {"temperature": callback._temperature, "found": found, "written": list(written)}
    (folder / f"{trainer.global_rank}.json").write_text(json.dumps(result))
"""


def run_ranks(folder: Path, world_size: int) -> list[dict[str, Any]]:
    folder.mkdir()
    script = folder / "ranks.py"
    script.write_text(RANKS)
    environment = {key: value for key, value in os.environ.items() if key != "PL_GLOBAL_SEED"}
    subprocess.run(
        [sys.executable, str(script), str(folder), str(world_size)],
        env={**environment, "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=120,  # a rank that waits for another waits for good
        cwd=folder,
    )
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world_size)]


@pytest.mark.slow
def test_two_ranks_report_as_one_of_all_rows(tmp_path: Path) -> None:
    (alone,) = run_ranks(tmp_path / "1", 1)
    one, other = run_ranks(tmp_path / "2", 2)
    for name, expected in alone.items():
        assert one[name]["temperature"] == other[name]["temperature"]
        assert one[name]["temperature"] == pytest.approx(expected["temperature"], rel=1e-4)
        sides = expected["found"]
        assert one[name]["found"] == other[name]["found"] or name != "uneven"  # a rank lists the loaders it has seen
        assert {"test/mc/aurc", "test/mc/augrc", "test/det/accuracy_at_90", "test/temperature/nll"} <= sides.keys()
        assert {**other[name]["found"], **one[name]["found"]} == pytest.approx(sides, rel=1e-4)

        assert one[name]["written"] == expected["written"] == ["gap", "reliability", "risk_coverage", "entropy"]
        assert other[name]["written"] == []
        for file in ("risk_coverage.json", "entropy.json", "comparison.json"):
            two, single = (json.loads((tmp_path / ranks / name / "report" / file).read_text()) for ranks in ("2", "1"))
            if file == "comparison.json":
                two, single = (each["paired"]["nll"]["values"] for each in (two, single))
                assert two == pytest.approx(single, rel=1e-4)
            elif file == "risk_coverage.json":
                assert two["mc"]["aurc"] == pytest.approx(single["mc"]["aurc"], rel=1e-4)
            else:
                assert two["mc"]["counts"] == single["mc"]["counts"]


def test_samples_that_are_single_numbers_do_not_end_a_training(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    module = Regressor(nn.Sequential(nn.Linear(1, 4), nn.Dropout(0.2), nn.Linear(4, 1)))
    callback = RunReport(str(tmp_path))
    trainer = make_trainer(callback)
    callback.on_train_batch_start(trainer, module, (torch.tensor(0.5), torch.tensor(1.0)), 0)
    assert callback._train["input"] == []

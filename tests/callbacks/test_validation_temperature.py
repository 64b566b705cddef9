"""The column of one temperature: fitted in a validation, kept in checkpoints, applied to the plain forward."""

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_dropout.callbacks import MCDropout, validation_temperature
from lightning_dropout.callbacks.validation_temperature import at_temperature, has_temperature
from lightning_dropout.metrics.temperature import fit_temperature
from lightning_dropout.sampling.prediction import Task

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]
MakeTrainer = Callable[..., Any]


class Sure(LightningModule):
    """Gives logits that are too large; the task decides what stands in them."""

    def __init__(self, task: Task = "multiclass", classes: int = 3) -> None:
        super().__init__()
        self.task = task
        self.net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, classes))

    def forward(self, x: Tensor) -> Tensor:
        logits = 30 * self.net(x)
        return logits.softmax(1) if self.task == "probabilities" else logits

    def training_step(self, batch: Any, index: int) -> Tensor:
        outputs = self(batch[0])
        if self.task in ("binary", "multilabel"):
            return F.binary_cross_entropy_with_logits(outputs, batch[1].float())
        return F.cross_entropy(outputs, batch[1])

    def validation_step(self, batch: Any, index: int, dataloader_idx: int = 0) -> None:
        self(batch[0])

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def data(task: Task = "multiclass", rows: int = 90, seed: int = 0) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 4, generator=generator)
    with torch.no_grad():  # what the module says, drawn with an eighth of its sureness
        logits = 30 * module_of(task).eval().net(x) / 8
    if task in ("binary", "multilabel"):
        target = torch.bernoulli(logits.sigmoid(), generator=generator)
    else:
        target = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return DataLoader(TensorDataset(x, target.long()), batch_size=20)


def module_of(task: Task = "multiclass") -> Sure:
    torch.manual_seed(0)
    return Sure(task, classes=1 if task == "binary" else 3)


def plain(module: Sure, loader: DataLoader[Any]) -> tuple[Tensor, Tensor]:
    module.eval()
    with torch.no_grad():
        outputs, targets = zip(*((module(x), y) for x, y in loader), strict=True)
    return torch.cat(outputs), torch.cat(targets)


@pytest.mark.parametrize("task", ["multiclass", "probabilities", "binary", "multilabel"])
def test_the_column_is_that_of_one_temperature(task: Task, make_trainer: MakeTrainer) -> None:
    module, validation, test = module_of(task), data(task), data(task, seed=1)
    trainer = make_trainer(MCDropout(5, task=task), max_epochs=1)
    trainer.fit(module, data(task), validation)
    found = trainer.test(module, test, verbose=False)[0]

    outputs, target = plain(module, validation)
    logits = outputs.log() if task == "probabilities" else outputs
    kind: Any = "multiclass" if task == "probabilities" else task
    temperature = fit_temperature(logits, target, task=kind)
    assert 3.0 < temperature < 20.0  # the model is much too sure
    outputs, target = plain(module, test)
    scaled = (outputs.log() if task == "probabilities" else outputs) / temperature
    nll = (
        F.binary_cross_entropy_with_logits(scaled, target.float())
        if task in ("binary", "multilabel")
        else F.cross_entropy(scaled, target)
    )
    assert found["test/temperature/nll"] == pytest.approx(nll.item(), rel=1e-4)
    assert found["test/temperature/nll"] < found["test/det/nll"]
    assert found["test/temperature/accuracy"] == found["test/det/accuracy"]
    assert "test/temperature/mutual_information" not in found


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_it_comes_back_with_the_weights_that_it_was_fitted_to(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
    trainer = make_trainer(saving, MCDropout(5, task="multiclass"), max_epochs=2, enable_checkpointing=True)
    module = module_of()
    trainer.fit(module, data(), data())
    paths = sorted(tmp_path.glob("*.ckpt"))
    assert len(paths) == 2
    seen = {}
    for path in paths:
        # Another number of passes, for other stages: what it was trained with matters not.
        other = MCDropout(3, task="multiclass", stages=["test"])
        seen[path] = make_trainer(other).test(module_of(), data(seed=1), ckpt_path=path, verbose=False)[0]
        stored = torch.load(path, weights_only=True)["lightning_dropout_temperatures"]
        assert stored == {"auto:": (other._temperature, other._weights)}
    first, second = (values["test/temperature/nll"] for values in seen.values())
    assert first != second


def test_without_a_validation_there_is_no_column(make_trainer: MakeTrainer) -> None:
    found = make_trainer(MCDropout(5, task="multiclass")).test(module_of(), data(), verbose=False)[0]
    assert "test/det/nll" in found
    assert not [key for key in found if "temperature" in key]


def test_a_validation_of_its_own_fits_it_too(make_trainer: MakeTrainer) -> None:
    module, callback = module_of(), MCDropout(5, task="multiclass")
    make_trainer(callback).validate(module, data(), verbose=False)
    outputs, target = plain(module, data())
    assert callback._temperature == pytest.approx(fit_temperature(outputs, target, task="multiclass"))


@pytest.mark.parametrize("arguments", [{}, {"compare": False}, {"temperature": False}])
def test_no_comparison_no_temperature(arguments: dict[str, bool], make_trainer: MakeTrainer) -> None:
    callback = MCDropout(5, task="multiclass", **arguments)  # type: ignore[arg-type]
    module = module_of()
    make_trainer(callback).validate(module, data(), verbose=False)
    assert (callback._temperature is None) is bool(arguments)
    found = make_trainer(callback).test(module, data(seed=1), verbose=False)[0]
    assert ("test/temperature/nll" in found) is not bool(arguments)


def test_only_the_first_loader_counts(make_trainer: MakeTrainer) -> None:
    module, callback = module_of(), MCDropout(5, task="multiclass")
    make_trainer(callback).validate(module, [data(), data(seed=7)], verbose=False)
    outputs, target = plain(module, data())
    assert callback._temperature == pytest.approx(fit_temperature(outputs, target, task="multiclass"))


def test_labels_that_are_ignored_do_not_count(make_trainer: MakeTrainer) -> None:
    dataset: Any = data().dataset
    x, y = dataset.tensors
    spoilt = DataLoader(TensorDataset(torch.cat([x, x]), torch.cat([y, torch.full_like(y, -100)])), batch_size=30)
    module, callback = module_of(), MCDropout(5, task="multiclass")
    make_trainer(callback).validate(module, spoilt, verbose=False)
    outputs, target = plain(module, data())
    assert callback._temperature == pytest.approx(fit_temperature(outputs, target, task="multiclass"))


@pytest.mark.parametrize(("limit", "most"), [("_MOST_VALUES", 900), ("_MOST_ROWS", 300)])
def test_what_is_too_much_is_thinned_at_random(
    limit: str, most: int, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, callback = module_of(), MCDropout(5, task="multiclass")
    loader = data(rows=900)
    outputs, target = plain(module, loader)
    whole = fit_temperature(outputs, target, task="multiclass")
    monkeypatch.setattr(validation_temperature, limit, most)  # a third
    sizes = []
    monkeypatch.setattr(
        validation_temperature,
        "fit_temperature",
        lambda logits, *given, **named: sizes.append(logits.numel()) or fit_temperature(logits, *given, **named),
    )
    make_trainer(callback).validate(module, loader, verbose=False)
    assert 900 <= sizes[0] <= 1100
    assert callback._temperature == pytest.approx(whole, rel=0.3)


def test_an_exception_in_a_validation_leaves_nothing(make_trainer: MakeTrainer) -> None:
    class Failing(Sure):
        def validation_step(self, batch: Any, index: int, dataloader_idx: int = 0) -> None:
            super().validation_step(batch, index)
            raise RuntimeError("planted")

    module = Failing()
    with pytest.raises(RuntimeError, match="planted"):
        make_trainer(MCDropout(5, task="multiclass")).validate(module, data(), verbose=False)
    assert "forward" not in vars(module)
    assert "forward" not in vars(module.net)


@pytest.mark.parametrize(("task", "expected"), [("multiclass", True), ("regression", False), ("raw", False)])
def test_which_tasks_have_one(task: Task, expected: bool) -> None:
    assert has_temperature(task) is expected


def test_probabilities_are_scaled_as_their_logits() -> None:
    logits = torch.randn(5, 3)
    assert torch.allclose(at_temperature(logits.softmax(1), 2.5, "probabilities", 1), (logits / 2.5).softmax(1))
    assert torch.equal(at_temperature(logits, 2.5, "multiclass", 1), logits / 2.5)


@pytest.mark.parametrize("determined", [True, False])
def test_without_errors_there_is_a_line_instead(
    determined: bool, make_trainer: MakeTrainer, caplog: pytest.LogCaptureFixture
) -> None:
    module = module_of()
    x = data().dataset.tensors[0]  # type: ignore[attr-defined]
    right = plain(module, data())[0].argmax(1)
    target = right if not determined else torch.where(torch.arange(len(x)) < 9, (right + 1) % 3, right)
    callback = MCDropout(5, task="multiclass")
    trainer = make_trainer(callback)
    trainer.validate(module, DataLoader(TensorDataset(x, target), batch_size=30), verbose=False)
    with caplog.at_level("INFO"):
        found = trainer.test(module, data(seed=1), verbose=False)[0]
    assert ("test/temperature/nll" in found) is determined
    assert any("no test/temperature/*" in record.getMessage() for record in caplog.records) is not determined


def test_other_weights_than_those_validated_have_no_column(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    callback, module = MCDropout(3, task="multiclass"), module_of()
    checkpoints = ModelCheckpoint(tmp_path, save_weights_only=True, save_top_k=-1, filename="{epoch}")
    trainer = make_trainer(callback, checkpoints, max_epochs=3)
    trainer.fit(module, data(), data(seed=1))
    assert "test/temperature/nll" in trainer.test(module, data(seed=2))[0]
    # without the callbacks' states, so what is in memory is of the last epoch
    assert "test/temperature/nll" not in trainer.test(module, data(seed=2), ckpt_path=str(tmp_path / "epoch=0.ckpt"))[0]
    assert "test/temperature/nll" in trainer.test(module, data(seed=2), ckpt_path=str(tmp_path / "epoch=2.ckpt"))[0]


class Busy(Sure):
    """Calls itself outside of the step, writes into what it got."""

    def on_validation_epoch_start(self) -> None:
        self.bank = [weakref.ref(self(torch.ones(2, 4))) for _ in range(3)]

    def validation_step(self, batch: Any, index: int, dataloader_idx: int = 0) -> None:
        assert not any(output() is not None for output in self.bank)
        self(batch[0]).mul_(10.0)


def test_nothing_is_held_and_logits_are_those_of_the_call(make_trainer: MakeTrainer) -> None:
    callback, module = MCDropout(3, task="multiclass"), Busy().eval()
    make_trainer(callback).validate(module, data(seed=1))
    outputs, target = plain(module, data(seed=1))
    assert callback._temperature == pytest.approx(fit_temperature(outputs, target, task="multiclass"))


def test_a_second_callback_without_labels_leaves_the_temperature_in_the_checkpoint(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    first, second = MCDropout(3, task="multiclass"), MCDropout(3, task="multiclass", stages=["predict"], labels=None)
    trainer = make_trainer(first, second, max_epochs=1)
    trainer.fit(module_of(), data(), data(seed=1))
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    stored = torch.load(tmp_path / "two.ckpt", weights_only=True)["lightning_dropout_temperatures"]
    assert stored["auto:"][0] == first._temperature


@pytest.mark.parametrize("settings", [{"labels": lambda batch: batch["target"]}, {"module": "head"}])
def test_what_fits_the_test_only_does_not_end_a_fit(settings: Any, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(MCDropout(3, task="multiclass", **settings), max_epochs=1)
    trainer.fit(module_of(), data(), data(seed=1))
    assert trainer.global_step

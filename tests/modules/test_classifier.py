"""The classifier: what it learns, logs and predicts."""

import inspect
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_dropout.modules import Classifier, classifier

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
]
MakeTrainer = Callable[..., Trainer]


@pytest.fixture
def blobs() -> DataLoader[Any]:
    """Three classes around three corners; the last batch is smaller than the others."""
    labels = torch.arange(3).repeat(10)
    x = F.one_hot(labels, 4).float() * 3 + torch.randn(30, 4)
    return DataLoader(TensorDataset(x, labels), batch_size=8)


def small_net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3))


def test_training_learns(make_trainer: MakeTrainer, blobs: DataLoader[Any], memory: Any) -> None:
    module = Classifier(small_net(), 3, partial(torch.optim.Adam, lr=0.02))
    trainer = make_trainer(max_epochs=15, logger=memory)
    trainer.fit(module, blobs, blobs)
    losses = memory.trace("train/loss")
    assert sum(losses[-4:]) < sum(losses[:4]) / 3
    assert memory.trace("train/accuracy")[-1] > 0.9
    (metrics,) = trainer.test(module, blobs, verbose=False)
    assert metrics["test/accuracy"] > 0.9
    assert metrics["test/loss"] < 0.4


def test_the_test_is_over_samples_not_batches(make_trainer: MakeTrainer, blobs: DataLoader[Any]) -> None:
    module = Classifier(small_net(), 3)
    (metrics,) = make_trainer().test(module, blobs, verbose=False)
    x, y = blobs.dataset.tensors
    logits = module.eval()(x)
    assert metrics["test/loss"] == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-5)
    assert metrics["test/accuracy"] == pytest.approx((logits.argmax(1) == y).double().mean().item())


def test_two_test_sets_do_not_mix(make_trainer: MakeTrainer, blobs: DataLoader[Any]) -> None:
    module = Classifier(small_net(), 3)
    x = blobs.dataset.tensors[0]
    right = module.eval()(x).argmax(1)
    sets = [DataLoader(TensorDataset(x, labels), batch_size=8) for labels in (right, (right + 1) % 3)]
    first, second = make_trainer().test(module, sets, verbose=False)
    assert first["test/accuracy/dataloader_idx_0"] == 1.0
    assert second["test/accuracy/dataloader_idx_1"] == 0.0


def test_labels_are_smoothed_in_training_only(make_trainer: MakeTrainer, blobs: DataLoader[Any], memory: Any) -> None:
    module = Classifier(net := nn.Linear(4, 3), 3, partial(torch.optim.SGD, lr=0.0), label_smoothing=0.3)
    trainer = make_trainer(max_epochs=1, logger=memory)
    trainer.fit(module, blobs, blobs)
    x, y = blobs.dataset.tensors
    with torch.no_grad():
        plain = F.cross_entropy(net(x), y).item()
        smoothed = [F.cross_entropy(net(a), b, label_smoothing=0.3).item() for a, b in blobs]
    assert memory.trace("train/loss") == pytest.approx(smoothed)
    assert trainer.callback_metrics["val/loss"].item() == pytest.approx(plain)
    assert trainer.test(module, blobs, verbose=False)[0]["test/loss"] == pytest.approx(plain)


def test_predictions_are_probabilities_with_or_without_labels(
    make_trainer: MakeTrainer, blobs: DataLoader[Any]
) -> None:
    module, x = Classifier(small_net(), 3), blobs.dataset.tensors[0]
    expected = module.eval()(x).softmax(1)
    bare = DataLoader(x, batch_size=8)  # type: ignore[arg-type]
    for data in (blobs, bare):
        torch.testing.assert_close(torch.cat(make_trainer().predict(module, data)), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 1}, "Expected `num_classes` of at least 2, but got 1"),
        ({"num_classes": 3, "label_smoothing": 1.0}, r"Expected `label_smoothing` in \[0, 1\), but got 1\.0"),
        ({"num_classes": 3, "label_smoothing": -0.1}, "Expected `label_smoothing`"),
        ({"num_classes": 3, "label_smoothing": float("nan")}, "Expected `label_smoothing`"),
    ],
)
def test_impossible_arguments(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Classifier(nn.Identity(), **arguments)


def test_a_net_with_another_number_of_classes_is_noticed(make_trainer: MakeTrainer, blobs: DataLoader[Any]) -> None:
    for stage in ("fit", "validate", "test"):
        with pytest.raises(ValueError, match=r"logits of num_classes=3 classes, but got shape \(8, 5\)"):
            getattr(make_trainer(max_epochs=1), stage)(Classifier(nn.Linear(4, 5), 3), blobs)


def check_what_counts(make_trainer: MakeTrainer, module: Classifier, blobs: DataLoader[Any]) -> None:
    """Samples of label -100 are left out of both numbers; a loader of nothing else has none, and no NaN."""
    x, y = blobs.dataset.tensors
    y = y.masked_fill(torch.arange(30) % 5 < 2, -100)
    y[8:16] = -100  # a whole batch
    sets = [TensorDataset(x, y), TensorDataset(x, torch.full_like(y, -100))]
    first, second = make_trainer().test(module, [DataLoader(each, batch_size=8) for each in sets], verbose=False)
    counted = y != -100
    logits = module.eval()(x)[counted]
    expected = {
        "test/loss/dataloader_idx_0": F.cross_entropy(logits, y[counted]).item(),
        "test/accuracy/dataloader_idx_0": (logits.argmax(1) == y[counted]).double().mean().item(),
    }
    assert first == pytest.approx(expected, rel=1e-5)
    assert second == {}


def test_samples_without_a_label_do_not_count(make_trainer: MakeTrainer, blobs: DataLoader[Any]) -> None:
    check_what_counts(make_trainer, Classifier(small_net(), 3), blobs)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("        if count:", "        if True:"),
        ("== labels)[counted]", "== labels)"),
        ("self.loss(logits, labels), count", "self.loss(logits, labels), len(x)"),
        ("accuracy, count)", "accuracy, len(x))"),
    ],
)
def test_that_check_fails_for_planted_bugs(
    make_trainer: MakeTrainer, blobs: DataLoader[Any], old: str, new: str
) -> None:
    source = inspect.getsource(classifier)
    assert source.count(old) == 1
    mutant = ModuleType("mutant")
    exec(compile(source.replace(old, new), "<mutant>", "exec"), mutant.__dict__)
    with pytest.raises(AssertionError):
        check_what_counts(make_trainer, mutant.Classifier(small_net(), 3), blobs)

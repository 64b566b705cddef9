"""A resumed run that is another one than it was: said in one line, or refused."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_dropout import DropoutScheduler, Late, Linear, MCDropout
from lightning_dropout.callbacks import ResumeCheck, resume_check
from lightning_dropout.schedules import Schedule

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


@dataclass(frozen=True)
class OfFunction(Schedule):
    """A schedule that holds something without a lasting name."""

    function: object

    def __call__(self, progress: float) -> float:
        return 0.5


def written(make_trainer: Any, make_recorder: Any, loader: Any, tmp_path: Path) -> Path:
    """Return a checkpoint of one epoch."""
    callbacks = [
        ResumeCheck(),
        DropoutScheduler(rate=Linear(0.0, 0.5)),
        MCDropout(30, task="raw"),
        ModelCheckpoint(tmp_path, filename="one"),
    ]
    make_trainer(*callbacks, max_epochs=1).fit(make_recorder(), loader)
    return tmp_path / "one.ckpt"


def resume(make_trainer: Any, module: Any, loader: Any, path: Path, *callbacks: Any) -> list[str]:
    """Go on for an epoch, and return what was said."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_trainer(*callbacks, max_epochs=2).fit(module, loader, ckpt_path=path)
    return [str(each.message) for each in caught if "ResumeCheck" in str(each.message)]


def test_the_same_run_goes_on_without_a_word(
    make_trainer: Any, make_recorder: Any, loader: Any, tmp_path: Path
) -> None:
    path = written(make_trainer, make_recorder, loader, tmp_path)
    same = [ResumeCheck(strict=True), DropoutScheduler(rate=Linear(0.0, 0.5)), MCDropout(30, task="raw")]
    assert resume(make_trainer, make_recorder(), loader, path, *same) == []


def test_other_passes_and_schedules_are_named_in_one_line(
    make_trainer: Any, make_recorder: Any, loader: Any, tmp_path: Path
) -> None:
    path = written(make_trainer, make_recorder, loader, tmp_path)
    others = [DropoutScheduler(rate=Late(0.5, begin=0.5)), MCDropout(10, task="raw")]
    (line,) = resume(make_trainer, make_recorder(), loader, path, ResumeCheck(), *others)
    assert "test/predict num_samples 10 instead of 30" in line
    assert "DropoutScheduler rate *: Late(peak=0.5, begin=0.5" in line
    assert "instead of rate *: Linear(start=0.0, end=0.5)" in line
    with pytest.raises(
        RuntimeError, match=r"Expected `ckpt_path` to be of a run like this one, but got .*num_samples 10"
    ):
        resume(make_trainer, make_recorder(), loader, path, ResumeCheck(strict=True), *others)


def test_other_batches_and_processes_are_named(
    make_trainer: Any, make_recorder: Any, loader: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(make_trainer, make_recorder, loader, tmp_path)
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["lightning_dropout_run"]["facts"]["processes"] = "4"
    torch.save(checkpoint, path)
    larger = torch.utils.data.DataLoader(loader.dataset, batch_size=loader.batch_size * 2)
    (line,) = resume(make_trainer, make_recorder(), larger, path, ResumeCheck())
    assert "processes 1 instead of 4" in line
    assert f"batch size {larger.batch_size} instead of {loader.batch_size}" in line


def test_a_newer_version_is_refused_in_fit_and_read_in_a_test(
    make_trainer: Any, make_recorder: Any, loader: Any, tmp_path: Path
) -> None:
    path = written(make_trainer, make_recorder, loader, tmp_path)
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["lightning_dropout_run"]["version"] = "99.1"
    torch.save(checkpoint, path)
    with pytest.raises(RuntimeError, match=r"Expected `ckpt_path` to be a checkpoint of lightning-dropout .* 99\.1"):
        resume(make_trainer, make_recorder(), loader, path, ResumeCheck())
    make_trainer(ResumeCheck()).validate(make_recorder(), loader, ckpt_path=path, verbose=False)


def test_checkpoints_without_the_callback_are_resumed(
    make_trainer: Any, make_recorder: Any, loader: Any, tmp_path: Path
) -> None:
    make_trainer(ModelCheckpoint(tmp_path, filename="one"), max_epochs=1).fit(make_recorder(), loader)
    assert resume(make_trainer, make_recorder(), loader, tmp_path / "one.ckpt", ResumeCheck(strict=True)) == []


def test_a_plan_reads_alike_in_every_process() -> None:
    held = OfFunction(object())
    assert " at 0x" in repr(held)
    assert " at 0x" not in DropoutScheduler(rate=held).plan


def test_a_copy_that_is_not_installed_compares_no_versions(
    make_trainer: Any, make_recorder: Any, loader: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> str:
        raise resume_check.PackageNotFoundError(name)

    path = written(make_trainer, make_recorder, loader, tmp_path)
    monkeypatch.setattr(resume_check, "version", missing)
    assert resume(make_trainer, make_recorder(), loader, path, ResumeCheck()) == []
    path = written(make_trainer, make_recorder, loader, tmp_path / "copy")
    monkeypatch.undo()
    assert resume(make_trainer, make_recorder(), loader, path, ResumeCheck()) == []

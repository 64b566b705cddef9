"""Who borrows is asked first when a stage fails, and nobody else notices; what is left then is in test_leaks.py."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

from lightning_dropout.callbacks import DropoutScheduler, MCDropout
from lightning_dropout.callbacks.borrower import Borrower

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:Found 1 module.s. in eval mode at the start of training"),
]
MakeTrainer = Callable[..., Any]


class Lender(Borrower):
    """Notes when it is asked, and fails if told."""

    def __init__(self, name: str, asked: list[str], error: Exception | None = None) -> None:
        self.name, self.asked, self.error = name, asked, error

    @property
    def state_key(self) -> str:
        return self.name

    def give_back(self) -> None:
        self.asked.append(self.name)
        if self.error is not None:
            raise self.error


class Listener(Callback):
    """Somebody else's callback: notes what the trainer has, and that it was asked."""

    def __init__(self, asked: list[str], fails: bool = False) -> None:
        self.asked, self.fails = asked, fails
        self.lists: list[Any] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.lists.append([*trainer.callbacks])

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.asked.append("listener")
        if self.fails:
            raise OSError("clumsy")


@pytest.mark.parametrize("package", [lightning.pytorch, pytorch_lightning])
def test_borrowers_are_asked_before_anybody_else(
    make_trainer: MakeTrainer, make_recorder: Callable[..., Any], loader: DataLoader[Any], package: Any
) -> None:
    asked: list[str] = []
    trainer = make_trainer(Listener(asked), Lender("a", asked), Lender("b", asked), max_epochs=1)
    with pytest.raises(RuntimeError, match="planted"):
        trainer.fit(make_recorder(fail_in_step=1), loader)
    assert {*asked[:2]} == {"a", "b"}
    assert asked[2:] == ["listener", "a", "b"]  # in their own turn there is nothing left to do


def test_one_that_fails_keeps_no_other_from_giving_back(
    make_trainer: MakeTrainer, make_recorder: Callable[..., Any], loader: DataLoader[Any]
) -> None:
    asked: list[str] = []
    error = ValueError("cannot")
    lenders = Lender("a", asked, error), Lender("b", asked, error), Lender("c", asked)
    with pytest.raises(ValueError, match="cannot"):
        make_trainer(*lenders, max_epochs=1).fit(make_recorder(fail_in_step=1), loader)
    assert {*asked} == {"a", "b", "c"}


def test_one_that_fails_in_the_end_is_asked_again(
    make_trainer: MakeTrainer, make_recorder: Callable[..., Any], loader: DataLoader[Any]
) -> None:
    asked: list[str] = []
    trainer = make_trainer(Listener(asked, fails=True), Lender("a", asked, ValueError("cannot")), max_epochs=1)
    with pytest.raises(ValueError, match="cannot"):
        trainer.fit(make_recorder(), loader)
    assert asked == ["a", "a"]


def test_the_users_list_of_callbacks_is_back_after_a_stage(
    make_trainer: MakeTrainer, make_recorder: Callable[..., Any], loader: DataLoader[Any], tmp_path: Path
) -> None:
    asked: list[str] = []
    listener, checkpoint = Listener(asked), ModelCheckpoint(tmp_path)
    trainer = make_trainer(Lender("a", asked), listener, checkpoint, Lender("b", asked), max_epochs=1)
    own = trainer.callbacks
    members = [*own]
    trainer.fit(make_recorder(), loader)
    (during,) = listener.lists
    assert during[1:] == members  # in their order: one more in front, however many borrow
    assert trainer.callbacks is own
    assert own == members
    assert trainer.checkpoint_callback is checkpoint
    states = torch.load(checkpoint.best_model_path, weights_only=True)["callbacks"]
    assert {*states} == {checkpoint.state_key}  # the one in front has no state


def test_what_the_user_adds_during_a_stage_stays(
    make_trainer: MakeTrainer, make_recorder: Callable[..., Any], loader: DataLoader[Any]
) -> None:
    added = Callback()

    class Adds(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            trainer.callbacks.append(added)

    trainer = make_trainer(Lender("a", []), Adds(), max_epochs=1)
    members = [*trainer.callbacks]
    trainer.fit(make_recorder(), loader)
    assert trainer.callbacks == [*members, added]


def test_callbacks_can_be_copied_in_the_middle_of_a_stage(
    make_trainer: MakeTrainer, make_recorder: Callable[..., Any], loader: DataLoader[Any]
) -> None:
    copies: list[Any] = []

    class Copies(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            first, ours, *_ = trainer.callbacks
            # Lightning gives the others the module's `log` for a stage, and a pickle of them the module.
            copies.extend([*copy.deepcopy([first, ours]), pickle.loads(pickle.dumps(first))])

    trainer = make_trainer(MCDropout(2, task="multiclass"), Copies(), max_epochs=1)
    trainer.fit(make_recorder(), loader)
    first, ours, pickled = copies
    assert type(ours) is MCDropout
    assert vars(first) == vars(pickled) == {}  # a copy of one is no copy of all


def flags_after_a_failed_test(make_trainer: MakeTrainer, recorder: Any, loader: Any, early: bool) -> list[bool]:
    """Test once in train mode, then again in eval mode with an error; return the flags."""

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("planted")

    trainer = make_trainer(Lender("a", []))
    trainer.test(recorder, loader)
    recorder.eval()
    setattr(recorder, "setup" if early else "on_test_end", fail)
    with pytest.raises(RuntimeError, match="planted"):
        trainer.test(recorder, loader)
    return [part.training for part in recorder.modules()]


@pytest.mark.parametrize("early", [False, True])
def test_flags_are_those_of_this_evaluation_not_of_an_earlier_one(
    make_trainer: MakeTrainer, make_recorder: Callable[..., Any], loader: DataLoader[Any], early: bool
) -> None:
    assert not any(flags_after_a_failed_test(make_trainer, make_recorder(), loader, early))


def test_a_failed_validation_leaves_a_model_that_can_be_trained_on(
    make_trainer: MakeTrainer, make_recorder: Callable[..., Any], loader: DataLoader[Any]
) -> None:
    module = make_recorder(nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), nn.BatchNorm1d(3).eval()))
    flags = [part.training for part in module.modules()]
    step, module.validation_step = module.validation_step, lambda *args: 1 / 0
    scheduler = DropoutScheduler(rate=0.25)
    for sanity_steps in (2, 0):
        with pytest.raises(ZeroDivisionError):
            make_trainer(scheduler, max_epochs=1, num_sanity_val_steps=sanity_steps).fit(module, loader, loader)
        assert [part.training for part in module.modules()] == flags
    module.validation_step = step
    make_trainer(scheduler, max_epochs=1).fit(module, loader, loader)

"""The plan is what the run then does, and making it leaves nothing behind."""

import copy
import random
from collections.abc import Callable
from typing import Any, ClassVar

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import nn
from torch.utils.data import DataLoader

from lightning_dropout.callbacks import DropoutScheduler, StochasticDepthScheduler
from lightning_dropout.callbacks.rate_plan import plan
from lightning_dropout.log_keys import DROP_PATH, DROPOUT
from lightning_dropout.reports import RateCurve
from lightning_dropout.schedules import Late, Linear

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:Found . module.s. in eval mode at the start of training"),
]

MakeTrainer = Callable[..., Any]
MakeRecorder = Callable[..., Any]
Loader = DataLoader[Any]
PACKAGES = [lightning.pytorch, pytorch_lightning]
RAMP = Linear(0.0, 0.75)


def trained_with(curve: RateCurve, done: float) -> float:
    """Return the rate in force where the fraction ``done`` of the run is over."""
    return curve.mean[max(index for index, at in enumerate(curve.at) if at <= done + 1e-9)]


SCHEDULERS: dict[str, Callable[[], Any]] = {
    "steps": lambda: DropoutScheduler(rate=RAMP),
    "epochs": lambda: DropoutScheduler(rate=RAMP, unit="epoch"),
    "a window": lambda: DropoutScheduler(rate=RAMP, begin="2step", end="2ep"),
    "a jump": lambda: DropoutScheduler(rate=Late(0.5, begin=0.5)),
}
LIMITS: dict[str, dict[str, Any]] = {
    "epochs": {"max_epochs": 3},
    "steps": {"max_epochs": -1, "max_steps": 7},
    "half": {"max_epochs": 2, "limit_train_batches": 2},
}


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("limit", LIMITS)
def test_the_run_does_what_the_plan_says(
    make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader, package: Any, scheduler: str, limit: str
) -> None:
    trainer = make_trainer(SCHEDULERS[scheduler](), package=package, **LIMITS[limit])
    module = make_recorder(package=package)
    (curve,), length = plan(trainer, module, loader)
    trainer.fit(module, loader)
    steps = len(module.trace())
    assert length.steps == steps
    assert module.trace() == [trained_with(curve, step / steps) for step in range(steps)]


@pytest.mark.parametrize("callback", [False, True], ids=["argument", "callback"])
def test_accumulated_batches_are_counted_as_in_the_run(
    make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader, callback: bool
) -> None:
    scheduler = DropoutScheduler(rate=RAMP)
    accumulation = [GradientAccumulationScheduler({0: 3})] if callback else []
    trainer = make_trainer(scheduler, *accumulation, max_epochs=4, accumulate_grad_batches=1 if callback else 3)
    module = make_recorder()
    (curve,), length = plan(trainer, module, loader)
    assert length.steps == 4
    trainer.fit(module, loader)
    assert module.trace() == [trained_with(curve, batch // 3 / 4) for batch in range(12)]


def test_all_schedulers_and_groups_are_in_it(
    make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader
) -> None:
    groups = {"1": Linear(0.0, 0.5), "3": 0.25}
    trainer = make_trainer(DropoutScheduler(rate=groups), StochasticDepthScheduler(scale=1.0), max_epochs=2)
    curves, length = plan(trainer, make_recorder(), loader)
    assert [(curve.family, curve.label, curve.sites) for curve in curves] == [
        (DROPOUT, "1", 1),
        (DROPOUT, "3", 1),
        (DROP_PATH, "all", 1),
    ]
    assert set(curves[1].mean) == {0.25}
    assert set(curves[2].mean) == {0.1}
    assert (length.steps, length.epochs) == (6, 2)


def test_a_shorter_total_holds_its_last_rate(
    make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader
) -> None:
    short = DropoutScheduler(rate={"1": Linear(0.0, 0.5)}, total="3step", name="short")
    trainer = make_trainer(short, DropoutScheduler(rate={"3": Linear(0.0, 0.5)}), max_epochs=2)
    module = make_recorder()
    curves, length = plan(trainer, module, loader)
    assert length.steps == 6
    trainer.fit(module, loader)
    for curve in curves:
        assert module.trace(curve.label) == [trained_with(curve, step / 6) for step in range(6)]


def test_a_modules_own_schedulers_are_in_it(
    make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader
) -> None:
    module = make_recorder()
    module.configure_callbacks = lambda: [DropoutScheduler(rate=0.25)]
    trainer = make_trainer(StochasticDepthScheduler(rate=0.5), max_epochs=1)
    callbacks = list(trainer.callbacks)
    curves, _ = plan(trainer, module, loader)
    assert [(curve.family, curve.mean[0]) for curve in curves] == [(DROP_PATH, 0.5), (DROPOUT, 0.25)]
    assert trainer.callbacks == callbacks


# --- nothing is trained, nothing is left ----------------------------------------------------------------------------


class Loud(lightning.pytorch.Callback):
    """Notes every hook that is called, on a copy too."""

    called: ClassVar[list[str]] = []

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("on_") or name in ("setup", "teardown"):
            self.called.append(name)
        return super().__getattribute__(name)


class Closed(lightning.pytorch.loggers.logger.DummyLogger):
    """A logger that nobody may start."""

    started = False

    @property
    def experiment(self) -> Any:
        self.started = True
        return super().experiment


def state_of(trainer: Any, module: Any) -> dict[str, Any]:
    """Return everything that a plan might disturb."""
    return {
        "weights": copy.deepcopy(module.state_dict()),
        "gradients": [parameter.grad for parameter in module.parameters()],
        "modes": [part.training for part in module.modules()],
        "rates": [site.rate for site in module.sites()],
        "layers": [type(part) for part in module.modules()],
        "hooks": [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules()],
        "callbacks": list(trainer.callbacks),
        "loggers": list(trainer.loggers),
        "sanity": trainer.num_sanity_val_steps,
        "counters": (trainer.global_step, trainer.current_epoch, trainer.max_epochs),
        "schedulers": [callback.state_dict() for callback in trainer.callbacks],
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "grad": torch.is_grad_enabled(),
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    for name, value in before.items():
        if name == "weights":
            assert all(torch.equal(value[key], after[name][key]) for key in value)
        elif name == "torch":
            assert torch.equal(value, after[name])
        else:
            assert value == after[name], name


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_nothing_is_trained_and_everything_is_as_before(
    make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader, package: Any
) -> None:
    loud, closed = Loud(), Closed()
    both = [DropoutScheduler(rate=RAMP, audit=True), StochasticDepthScheduler(rate=0.5)]
    trainer = make_trainer(*both, max_epochs=2, logger=True, num_sanity_val_steps=2, package=package)
    trainer.callbacks.append(loud)
    trainer.loggers = [closed]
    module = make_recorder(package=package)
    module.net[3].eval()
    module.val_dataloader = lambda: loader  # for a sanity check
    loud.called.clear()
    before = state_of(trainer, module)
    plan(trainer, module, loader)
    assert_same(before, state_of(trainer, module))
    assert module.trained == module.outputs == []
    assert loud.called == []
    assert not closed.started


def test_a_fit_is_the_same_with_and_without_a_plan(
    make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader
) -> None:
    first = make_recorder()
    shuffled = DataLoader(loader.dataset, batch_size=4, shuffle=True)
    weights, traces = [], []
    for is_planned in (False, True):
        module = copy.deepcopy(first)
        trainer = make_trainer(DropoutScheduler(rate=RAMP), max_epochs=2)
        torch.manual_seed(1)
        if is_planned:
            plan(trainer, module, shuffled)
        trainer.fit(module, shuffled)
        assert trainer.state.finished
        weights.append(module.state_dict())
        traces.append(module.trace())
    assert traces[0] == traces[1]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_rates_of_an_earlier_fit_are_still_those_of_a_test(
    make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader
) -> None:
    trainer = make_trainer(DropoutScheduler(rate=0.25), max_epochs=1)
    module = make_recorder()
    trainer.fit(module, loader)
    plan(make_trainer(*trainer.callbacks, max_epochs=5), module, loader)
    trainer.test(module, loader, verbose=False)
    assert {rates["1"] for rates in module.evaluated["test"]} == {0.25}


def test_what_a_plan_puts_into_the_model_is_taken_out_again(
    make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader
) -> None:
    timm = pytest.importorskip("timm")
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), timm.create_model("test_vit", num_classes=3).blocks)
    kinds = [type(part) for part in net.modules()]
    scheduler = StochasticDepthScheduler(rate=0.1, fill_identity=True)
    (curve,), _ = plan(make_trainer(scheduler, max_epochs=1), make_recorder(net), loader)
    assert curve.sites > 0
    assert [type(part) for part in net.modules()] == kinds


# --- what cannot be planned -----------------------------------------------------------------------------------------


def test_a_plan_that_fails_gives_everything_back(
    make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader
) -> None:
    trainer = make_trainer(DropoutScheduler(rate=0.25), DropoutScheduler(rate=0.5, name="second"), max_epochs=1)
    module = make_recorder()
    before = state_of(trainer, module)
    with pytest.raises(ValueError, match=r"Expected one scheduler for each site, but got `net\.1` in both"):
        plan(trainer, module, loader)
    assert_same(before, state_of(trainer, module))


def test_without_a_scheduler(make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader) -> None:
    trainer = make_trainer(max_epochs=1)
    with pytest.raises(ValueError, match=r"Expected `trainer` to have a DropoutScheduler .* callbacks/dropout=linear"):
        plan(trainer, make_recorder(), loader)


@pytest.mark.parametrize("nothing", [{"max_epochs": 0}, {"max_steps": 0}, {"limit_train_batches": 0}], ids=str)
def test_without_a_batch(
    make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader, nothing: dict[str, int]
) -> None:
    trainer = make_trainer(DropoutScheduler(rate=RAMP), **{"max_epochs": 1} | nothing)
    with pytest.raises(
        ValueError, match=rf"Expected `trainer` to train at least one batch, but got .*{next(iter(nothing))}=0"
    ):
        plan(trainer, make_recorder(), loader)


def test_an_unknown_length_is_told_as_in_a_fit(
    make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader
) -> None:
    trainer = make_trainer(DropoutScheduler(rate=RAMP), max_epochs=-1)
    with pytest.raises(ValueError, match=r'pass e\.g\. `total="5000step"`'):
        plan(trainer, make_recorder(), loader)

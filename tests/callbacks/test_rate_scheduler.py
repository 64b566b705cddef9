"""What reaches the modules, when, and what is left behind; whole runs of real trainers."""

import contextlib
import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import lightning.pytorch
import numpy as np
import pytest
import pytorch_lightning
import timm.layers
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from lightning.pytorch.loggers.logger import Logger
from torch import nn
from torch.utils.data import DataLoader

from lightning_dropout.callbacks import DropoutScheduler, MCDropout, StochasticDepthScheduler
from lightning_dropout.nn import DropPath
from lightning_dropout.schedules import Constant, Cosine, Early, Late, Linear, Schedule

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create"),
    pytest.mark.filterwarnings("ignore:Found . module.s. in eval mode at the start of training"),
]

MakeTrainer = Callable[..., Any]
MakeRecorder = Callable[..., Any]
Loader = DataLoader[Any]
RAMP = Linear(0.0, 0.75)
LIGHTNING_2_4 = lightning.__version__.startswith("2.4.")


class NaiveScheduler(Callback):
    """A planted bug: sets the rate where examples on the web set it, at the start of the epoch."""

    def __init__(self, *, rate: Schedule, unit: str = "step") -> None:
        self.schedule = rate

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        for site in pl_module.sites():
            if site.kind == "dropout":
                site.rate = self.schedule(trainer.current_epoch / trainer.max_epochs)


# --- the rate that the modules see ----------------------------------------------------------------------------------


def expected_progress(unit: str, accumulate: int, epochs: int, batches: int = 3) -> list[float]:
    """Return the progress at every batch, counted by hand."""
    if unit == "epoch":
        return [epoch / epochs for epoch in range(epochs) for _ in range(batches)]
    steps = -(-batches // accumulate)
    return [
        (epoch * steps + batch // accumulate) / (epochs * steps) for epoch in range(epochs) for batch in range(batches)
    ]


CASES = [("step", 1), ("step", 2), ("step", 3), ("epoch", 1), ("epoch", 2)]
SCHEDULES = [RAMP, Cosine(0.5, 0.0), Early(0.5, until=0.5), Late(0.5, begin=0.5), Constant(0.25)]


def trace_equals_schedule(
    scheduler: Any, module: Any, trainer: Any, loader: Loader, schedule: Schedule, progress: list[float]
) -> bool:
    trainer.fit(module, loader)
    return bool(module.trace() == [schedule(at) for at in progress])


@pytest.mark.parametrize(("unit", "accumulate"), CASES)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
def test_every_forward_sees_the_schedule_exactly(
    make_trainer: MakeTrainer,
    make_recorder: MakeRecorder,
    loader: Loader,
    unit: Any,
    accumulate: int,
    schedule: Schedule,
) -> None:
    scheduler = DropoutScheduler(rate=schedule, unit=unit)
    trainer = make_trainer(scheduler, max_epochs=2, accumulate_grad_batches=accumulate)
    progress = expected_progress(unit, accumulate, epochs=2)
    module = make_recorder()
    assert trace_equals_schedule(scheduler, module, trainer, loader, schedule, progress)
    assert module.trace("1") == module.trace("3")
    assert module.trace("4") == [0.1] * 6  # the drop path is the other scheduler's


@pytest.mark.parametrize(("unit", "accumulate"), [("step", 1), ("step", 2)])
def test_the_check_above_fails_for_a_rate_set_at_the_start_of_the_epoch(
    make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader, unit: str, accumulate: int
) -> None:
    scheduler = NaiveScheduler(rate=RAMP)
    trainer = make_trainer(scheduler, max_epochs=2, accumulate_grad_batches=accumulate)
    progress = expected_progress(unit, accumulate, epochs=2)
    assert not trace_equals_schedule(scheduler, make_recorder(), trainer, loader, RAMP, progress)


def test_a_constant_needs_no_length(make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader) -> None:
    module = make_recorder()
    callbacks = DropoutScheduler(rate={"1": 0.75, "3": Constant(0.25)}), MCDropout(task="multiclass", num_samples=2)
    make_trainer(*callbacks, max_epochs=-1, max_time="00:00:00:01").fit(module, loader)
    assert set(module.trace("1")) == {0.75}
    assert set(module.trace("3")) == {0.25}


@pytest.mark.parametrize("nothing", [{"max_epochs": 0}, {"limit_train_batches": 0}], ids=str)
def test_a_fit_of_nothing_changes_nothing(
    make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader, nothing: Any
) -> None:
    module = make_recorder()
    make_trainer(DropoutScheduler(rate=RAMP, begin="5ep"), **{"max_epochs": 1} | nothing).fit(module, loader)
    assert module.trained == []
    assert [site.rate for site in module.sites()] == [0.5, 0.2, 0.1]


def test_window_and_total(make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader) -> None:
    module = make_recorder()
    scheduler = DropoutScheduler(rate=Linear(0.0, 0.5), begin="1ep", end="5step")
    make_trainer(scheduler, max_epochs=2).fit(module, loader)
    assert module.trace() == [0, 0, 0, 0, 0.25, 0.5]

    module = make_recorder()
    make_trainer(DropoutScheduler(rate=Linear(0.0, 0.5), total="4step"), max_epochs=2).fit(module, loader)
    assert module.trace() == [0, 0.125, 0.25, 0.375, 0.5, 0.5]  # clamped beyond the end


def test_a_run_of_unknown_length_is_refused(
    make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader
) -> None:
    module = make_recorder()
    with pytest.raises(ValueError, match=r"Expected a run of known length.*max_epochs=-1.*`total=\"5000step\"`"):
        make_trainer(DropoutScheduler(rate=RAMP), max_epochs=-1).fit(module, loader)
    assert [site.rate for site in module.sites()] == [0.5, 0.2, 0.1]


def test_validation_inside_fit_sees_the_current_rate_but_drops_nothing(
    make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader
) -> None:
    module = make_recorder()
    make_trainer(DropoutScheduler(rate=RAMP), max_epochs=2, num_sanity_val_steps=1).fit(module, loader, loader)
    sanity, *during = [rates["1"] for rates in module.evaluated["fit"]]
    assert sanity == 0.5  # before the first batch: the model's own
    assert during == [RAMP(2 / 6)] * 3 + [RAMP(5 / 6)] * 3
    for x, y in zip(module.outputs[-3:], [module.net.eval()(batch) for batch, _ in loader], strict=True):
        assert torch.equal(x, y)


# --- groups, ratios, patterns ---------------------------------------------------------------------------------------


def test_scale_keeps_the_ratios_of_the_layers(
    make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader
) -> None:
    module = make_recorder()
    make_trainer(DropoutScheduler(scale=Linear(2.0, 0.0)), max_epochs=1).fit(module, loader)
    assert module.trace("1") == [Linear(2.0, 0.0)(step / 3) * 0.5 for step in range(3)]
    assert module.trace("3") == [Linear(2.0, 0.0)(step / 3) * 0.2 for step in range(3)]


def test_a_mapping_makes_groups(make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader) -> None:
    module = make_recorder()
    make_trainer(DropoutScheduler(rate={"net.1": RAMP, "3": 0.125}), max_epochs=1).fit(module, loader)
    assert module.trace("1") == [RAMP(step / 3) for step in range(3)]
    assert module.trace("3") == [0.125] * 3


def test_exclude_and_sites(make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader) -> None:
    for arguments in ({"exclude": "3"}, {"sites": "net.1"}, {"sites": ["1", "3"], "exclude": ["net.3"]}):
        module = make_recorder()
        make_trainer(DropoutScheduler(rate=0.0, **arguments), max_epochs=1).fit(module, loader)
        assert set(module.trace("1")) == {0.0}
        assert set(module.trace("3")) == {0.2}


def test_sites_built_with_0_stay_0_under_scale_and_are_listed(
    make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader, caplog: pytest.LogCaptureFixture
) -> None:
    module = make_recorder(nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.0), nn.Dropout(0.5)))
    with caplog.at_level("INFO"):
        make_trainer(DropoutScheduler(scale=0.5), max_epochs=1).fit(module, loader)
    assert (module.trace("1"), module.trace("2")) == ([0.0] * 3, [0.25] * 3)
    assert "DropoutScheduler: built with rate 0, they stay 0 under `scale`: net.1" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": 0.5}, r"Expected `scale` to find a rate above 0.*0 at all 2 sites \(net\.1, net\.2\).*`rate=`"),
        ({"rate": 0.5, "sites": "3"}, r"Expected a site that matches, but got none for sites='3'"),
        ({"rate": 0.5, "exclude": "*"}, r"Expected a site that matches"),
        ({"rate": {"1": 0.1, "net.*": 0.2}}, r"Expected one schedule for each site.*two patterns.*`net\.1`"),
        ({"rate": 0.5, "begin": "2ep"}, r"Expected `begin` to lie before `end`"),
    ],
)
def test_what_a_fit_refuses_at_its_start(
    make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader, arguments: Any, message: str
) -> None:
    module = make_recorder(nn.Sequential(nn.Linear(4, 3), nn.Dropout(0), nn.Dropout(0.0)))
    with pytest.raises(ValueError, match=message):
        make_trainer(DropoutScheduler(**arguments), max_epochs=1).fit(module, loader)
    assert module.trained == []
    assert [site.rate for site in module.sites()] == [0.0, 0.0]


def test_a_factor_that_leaves_the_range_is_refused_before_the_first_batch(
    make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader
) -> None:
    with pytest.raises(
        ValueError, match=r"Expected `scale` to keep rates in \[0, 1\], but got 2\.5 × 0\.5 at `net\.1`"
    ):
        make_trainer(DropoutScheduler(scale=Linear(0.0, 2.5)), max_epochs=1).fit(make_recorder(), loader)


def test_two_schedulers_on_one_site_are_refused(
    make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader
) -> None:
    schedulers = DropoutScheduler(rate=0.1, name="a"), DropoutScheduler(rate=0.2, sites="3", name="b")
    module = make_recorder()
    with pytest.raises(
        ValueError, match=r"`net\.3` in both DropoutScheduler\[a\] and DropoutScheduler\[b\]; narrow their `sites`"
    ):
        make_trainer(*schedulers, max_epochs=1).fit(module, loader)
    assert [site.rate for site in module.sites()] == [0.5, 0.2, 0.1]


def test_two_schedulers_share_a_trainer_under_names(
    make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader
) -> None:
    module = make_recorder()
    schedulers = [
        DropoutScheduler(rate=RAMP, sites="1", name="first"),
        DropoutScheduler(scale=0.5, sites="3", name="second"),
        StochasticDepthScheduler(rate=0.25),
    ]
    make_trainer(*schedulers, max_epochs=1).fit(module, loader)
    assert module.trace("1") == [RAMP(step / 3) for step in range(3)]
    assert module.trace("3") == [0.1] * 3
    assert module.trace("4") == [0.25] * 3
    with pytest.raises(RuntimeError, match="state_key"):  # Lightning's own
        make_trainer(DropoutScheduler(rate=0.1, sites="1"), DropoutScheduler(rate=0.1, sites="3"))


# --- giving back ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [None, RuntimeError("planted"), KeyboardInterrupt()])
def test_the_models_own_rates_are_back_after_a_run(
    make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader, error: BaseException | None
) -> None:
    module = make_recorder(fail_in_step=2 if error else None)
    module.error = error
    trainer = make_trainer(DropoutScheduler(rate=0.75), StochasticDepthScheduler(rate=0.75), max_epochs=1)
    if error is None:
        trainer.fit(module, loader)
    else:
        with pytest.raises((RuntimeError, SystemExit)):
            trainer.fit(module, loader)
    assert module.trained[-1] == {"1": 0.75, "3": 0.75, "4": 0.75}
    assert [site.rate for site in module.sites()] == [0.5, 0.2, 0.1]


def test_a_second_fit_starts_from_the_models_own_rates(
    make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader
) -> None:
    module, scheduler = make_recorder(), DropoutScheduler(scale=Linear(1.0, 0.25))
    for _ in range(2):
        make_trainer(scheduler, max_epochs=1).fit(module, loader)
    assert module.trace()[:3] == module.trace()[3:] == [0.5 * Linear(1.0, 0.25)(step / 3) for step in range(3)]


def test_evaluation_has_the_trained_rates_and_gives_them_back(
    make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader
) -> None:
    module, scheduler = make_recorder(), DropoutScheduler(rate=Linear(0.75, 0.0))
    trainer = make_trainer(scheduler, max_epochs=1)
    trainer.fit(module, loader)
    for stage in (trainer.test, trainer.predict, trainer.validate):
        stage(module, loader)
        assert [site.rate for site in module.sites()] == [0.5, 0.2, 0.1]
    expected = [{"1": 0.25, "3": 0.25, "4": 0.1}] * 3  # as in the last step; drop path is not this scheduler's
    assert module.evaluated == {"test": expected, "predict": expected, "validate": expected}
    make_trainer(DropoutScheduler(rate=0.9), max_epochs=1).test(module, loader)  # has trained nothing
    assert module.evaluated["test"][-1] == {"1": 0.5, "3": 0.2, "4": 0.1}


def test_an_exception_in_evaluation_gives_them_back_too(
    make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = make_recorder()
    trainer = make_trainer(DropoutScheduler(rate=0.75), max_epochs=1)
    trainer.fit(module, loader)

    def fail(*args: Any) -> None:
        assert [site.rate for site in module.sites()] == [0.75, 0.75, 0.1]
        raise RuntimeError("planted")

    monkeypatch.setattr(module, "test_step", fail)
    with pytest.raises(RuntimeError, match="planted"):
        trainer.test(module, loader)
    assert [site.rate for site in module.sites()] == [0.5, 0.2, 0.1]


# --- checkpoints ----------------------------------------------------------------------------------------------------


def every_step(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)


def every_epoch(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder, filename="{step}", every_n_epochs=1, save_top_k=-1, save_on_train_epoch_end=True)


def interrupted_trace(
    make_trainer: MakeTrainer,
    make_recorder: MakeRecorder,
    loader: Loader,
    folder: Path,
    scheduler: Callable[[], Any],
    checkpoint: Callable[[Path], ModelCheckpoint],
    step: int,
) -> list[float]:
    """Break a run in the batch after ``step`` and go on from its last checkpoint, with new objects throughout."""
    first, second = make_recorder(fail_in_step=step + 1), make_recorder()
    with pytest.raises(RuntimeError, match="planted"):
        make_trainer(scheduler(), checkpoint(folder), max_epochs=3).fit(first, loader)
    path = folder / f"step={step}.ckpt"
    torch.load(path, weights_only=True)
    make_trainer(scheduler(), max_epochs=3).fit(second, loader, ckpt_path=path)
    return list(first.trace()[:step] + second.trace())


@pytest.mark.parametrize("unit", ["step", "epoch"])
@pytest.mark.parametrize(("checkpoint", "step"), [(every_step, 4), (every_step, 3), (every_epoch, 3)])
def test_a_resumed_run_sees_the_rates_of_an_unbroken_one(
    make_trainer: MakeTrainer,
    make_recorder: MakeRecorder,
    loader: Loader,
    tmp_path: Path,
    unit: Any,
    checkpoint: Any,
    step: int,
) -> None:
    def trace(scheduler: Callable[[], Any]) -> list[float]:
        return interrupted_trace(make_trainer, make_recorder, loader, tmp_path, scheduler, checkpoint, step)

    expected = [RAMP(at) for at in expected_progress(unit, accumulate=1, epochs=3)]
    if LIGHTNING_2_4 and checkpoint is every_step:
        # 2.4 saves before it counts the batch as done, and runs it again: all that follows is one batch late.
        expected = [*expected, RAMP(1.0)] if unit == "step" else [*expected[:step], *expected[step - 1 :]]
    assert trace(lambda: DropoutScheduler(rate=RAMP, unit=unit)) == expected


@pytest.mark.skipif(LIGHTNING_2_4, reason="2.4 calls on_train_epoch_start on a resume inside an epoch, too")
def test_the_check_above_fails_for_a_rate_that_waits_for_the_start_of_an_epoch(
    make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader, tmp_path: Path
) -> None:
    def naive() -> NaiveScheduler:
        return NaiveScheduler(rate=RAMP)

    unbroken = [RAMP(at) for at in expected_progress("epoch", accumulate=1, epochs=3)]
    trace = interrupted_trace(make_trainer, make_recorder, loader, tmp_path, naive, every_step, step=4)
    assert trace != unbroken  # a resume inside an epoch skips its start


def test_a_fresh_trainer_tests_with_the_rates_of_the_checkpoint(
    make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader, tmp_path: Path
) -> None:
    def schedulers() -> list[Any]:
        return [DropoutScheduler(rate=RAMP, name="all"), StochasticDepthScheduler(scale=Linear(0.0, 1.0))]

    make_trainer(*schedulers(), every_step(tmp_path), max_epochs=1).fit(make_recorder(), loader)
    module = make_recorder()
    trainer = make_trainer(*schedulers())
    for step in (2, 3, 1):
        trainer.test(module, loader, ckpt_path=tmp_path / f"step={step}.ckpt")
        at = (step - 1) / 3  # of the last batch before it
        assert module.evaluated["test"][-1] == {"1": RAMP(at), "3": RAMP(at), "4": at * 0.1}
        assert [site.rate for site in module.sites()] == [0.5, 0.2, 0.1]


@dataclass(frozen=True)
class OfNumpy(Constant):
    """Written as users write it: what it returns is no Python float."""

    def __call__(self, progress: float) -> float:
        return np.float64(self.value)


def test_the_state_is_plain_and_names_version_and_places(
    make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader, tmp_path: Path
) -> None:
    trainer = make_trainer(DropoutScheduler(rate=OfNumpy(0.25), name="a"), max_epochs=1)
    trainer.fit(make_recorder(), loader)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    state = torch.load(tmp_path / "end.ckpt", weights_only=True)["callbacks"]["DropoutScheduler[a]"]
    assert state == {"version": 1, "rates": {"net.1:p": 0.25, "net.3:p": 0.25}, "steps": 3.0}
    assert all(type(number) is float for number in (*state["rates"].values(), state["steps"]))
    with pytest.raises(ValueError, match="Expected a state of version 1 at most, but got 2; upgrade"):
        DropoutScheduler(rate=0.1).load_state_dict({"version": 2})
    with pytest.raises(ValueError, match=r"Expected `net\.1:p` to be a probability"):
        DropoutScheduler(rate=0.1).load_state_dict({"version": 1, "rates": {"net.1:p": 1.5}})


def test_another_model_than_the_trained_one_is_refused(
    make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader
) -> None:
    scheduler = DropoutScheduler(rate=0.75)
    make_trainer(scheduler, max_epochs=1).fit(make_recorder(), loader)
    other = make_recorder(nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)))
    with pytest.raises(ValueError, match=r"Expected the sites that DropoutScheduler has trained.*without net\.3:p"):
        make_trainer(scheduler).test(other, loader)
    assert other.net[1].p == 0.5


# --- owners in eval mode --------------------------------------------------------------------------------------------


def test_a_site_left_in_eval_mode_is_refused(
    make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader
) -> None:
    module = make_recorder()
    module.net[3].eval()
    with pytest.raises(ValueError, match=r"Expected `net\.3` in train mode during fit.*call `\.train\(\)`"):
        make_trainer(DropoutScheduler(rate=0.5), max_epochs=1).fit(module, loader)
    assert module.trained == []
    assert [site.rate for site in module.sites()] == [0.5, 0.2, 0.1]
    make_trainer(DropoutScheduler(rate=0.5, exclude="3"), max_epochs=1).fit(module, loader)
    assert not module.net[3].training  # nobody wakes it either


def test_frozen_parts_may_sleep(make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader) -> None:
    frozen = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).eval().requires_grad_(False)
    module = make_recorder(nn.Sequential(frozen, nn.Dropout(0.5), nn.Linear(4, 3)))
    logger = Memory()
    make_trainer(DropoutScheduler(rate=0.5), max_epochs=1, logger=logger).fit(module, loader)
    assert logger.rows[-1]["dropout/min"] == 0.0  # what it drops, not what it was told
    assert logger.rows[-1]["dropout/max"] == 0.5
    module.net[1].eval()  # its neighbours are trained
    with pytest.raises(ValueError, match=r"Expected `net\.1` in train mode"):
        make_trainer(DropoutScheduler(rate=0.5), max_epochs=1).fit(module, loader)


# --- what is logged -------------------------------------------------------------------------------------------------


class Memory(Logger):
    """Keeps every row."""

    name, version = "memory", 0

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append({**metrics, "step": float(step or 0)})

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def trace(self, key: str) -> list[float]:
        return [row[key] for row in self.rows if key in row]


def test_logged_are_the_effective_rates_of_each_group(
    make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader
) -> None:
    logger = Memory()
    schedulers = DropoutScheduler(scale={"net.1": 1.0, "3": Linear(0.0, 3.0)}), StochasticDepthScheduler(rate=0.25)
    make_trainer(*schedulers, max_epochs=1, logger=logger).fit(make_recorder(), loader)
    assert logger.trace("dropout/net_1") == [0.5] * 3
    assert logger.trace("dropout/3") == pytest.approx([0.0, 0.2, 0.4])
    assert logger.trace("dropout/mean") == pytest.approx([0.25, 0.35, 0.45])
    assert logger.trace("dropout/min") == pytest.approx([0.0, 0.2, 0.4])
    assert logger.trace("dropout/max") == [0.5] * 3
    assert logger.trace("drop_path/mean") == logger.trace("drop_path/max") == [0.25] * 3


class Sleeper(Callback):
    """Puts a dropout to sleep behind the scheduler's back."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        pl_module.net[3].train(batch_idx == 0)


def test_logged_is_what_the_modules_do_not_what_they_were_told(
    make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader
) -> None:
    logger = Memory()
    make_trainer(Sleeper(), DropoutScheduler(rate=0.5, name="all"), max_epochs=1, logger=logger).fit(
        make_recorder(), loader
    )
    assert logger.trace("dropout/all") == [0.5, 0.25, 0.25]


def test_several_schedulers_log_one_mean_over_all_their_sites(
    make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader
) -> None:
    logger = Memory()
    schedulers = DropoutScheduler(rate=0.5, sites="1", name="a"), DropoutScheduler(rate=0.0, sites="3", name="b")
    make_trainer(*schedulers, max_epochs=1, logger=logger).fit(make_recorder(), loader)
    assert logger.rows[-1].items() >= {"dropout/a": 0.5, "dropout/b": 0.0, "dropout/mean": 0.25}.items()
    assert logger.rows[-1].items() >= {"dropout/min": 0.0, "dropout/max": 0.5}.items()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_logged_as_often_as_lightning_writes(
    make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader, accumulate: int
) -> None:
    logger = Memory()
    trainer = make_trainer(
        DropoutScheduler(rate=RAMP),
        max_epochs=4,
        logger=logger,
        log_every_n_steps=2,
        accumulate_grad_batches=accumulate,
    )
    trainer.fit(make_recorder(), loader)
    steps = 4 * -(-3 // accumulate)
    assert logger.trace("dropout/mean") == [pytest.approx(RAMP(step / steps)) for step in range(steps) if step % 2 == 1]


def test_rates_are_logged_under_manual_optimization_with_two_optimizers(
    make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader
) -> None:
    recorder = type(make_recorder())

    class Manual(recorder):  # type: ignore[misc, valid-type]
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            loss = super().training_step(batch, batch_idx)
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()

        def configure_optimizers(self) -> list[torch.optim.Optimizer]:
            return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.net[0], self.net[2])]

    logger, module = Memory(), Manual()
    trainer = make_trainer(DropoutScheduler(rate=RAMP), max_epochs=2, logger=logger, log_every_n_steps=2)
    trainer.fit(module, loader)
    assert module.trace() == [RAMP(batch / 6) for batch in range(6)]
    assert logger.trace("dropout/mean") == [pytest.approx(RAMP(batch / 6)) for batch in (1, 3, 5)]


def test_rates_reach_callback_metrics_without_a_logger(
    make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader
) -> None:
    trainer = make_trainer(DropoutScheduler(rate=0.5), max_epochs=1)
    trainer.fit(make_recorder(), loader)
    assert trainer.callback_metrics["dropout/mean"] == 0.5


# --- the rest of Lightning ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module_package", [lightning.pytorch, pytorch_lightning])
def test_both_packages(
    make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader, module_package: Any
) -> None:
    module = make_recorder(package=module_package)
    trainer = make_trainer(
        DropoutScheduler(rate=RAMP), StochasticDepthScheduler(rate=RAMP), max_epochs=1, package=module_package
    )
    trainer.fit(module, loader)
    assert module.trace() == module.trace("4") == [RAMP(step / 3) for step in range(3)]


def test_accumulation_that_changes_needs_a_total(
    make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader
) -> None:
    accumulation = GradientAccumulationScheduler({0: 2, 1: 1})
    with pytest.raises(ValueError, match=r"`total=\"5000step\"`"):
        make_trainer(accumulation, DropoutScheduler(rate=RAMP), max_epochs=2).fit(make_recorder(), loader)
    module = make_recorder()
    make_trainer(accumulation, DropoutScheduler(rate=RAMP, total="5step"), max_epochs=2).fit(module, loader)
    assert module.trace() == [RAMP(step / 5) for step in (0, 0, 1, 2, 3, 4)]


def test_gradients_are_those_of_the_rate_under_activation_checkpointing(
    make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader
) -> None:
    class Checkpointed(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.utils.checkpoint.checkpoint(super().forward, x, use_reentrant=False)  # type: ignore[no-any-return]

    weights = []
    for cls in (nn.Sequential, Checkpointed):
        torch.manual_seed(0)
        module = make_recorder(cls(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)))
        make_trainer(DropoutScheduler(rate=RAMP), max_epochs=2).fit(module, loader)
        weights.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
    assert torch.equal(*weights)


def test_a_model_built_in_configure_model(
    make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader
) -> None:
    class Lazy(type(make_recorder())):  # type: ignore[misc]
        def configure_model(self) -> None:
            if not isinstance(self.net, nn.Sequential):
                self.net = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), DropPath(0.5))

    module = Lazy(nn.Identity())
    make_trainer(DropoutScheduler(rate=RAMP), max_epochs=1).fit(module, loader)
    assert module.trace() == [RAMP(step / 3) for step in range(3)]


@pytest.mark.parametrize("position", ["before", "after"])
@pytest.mark.parametrize("name", ["EMAWeightAveraging", "StochasticWeightAveraging", "LearningRateFinder"])
def test_beside_callbacks_that_copy_weights_or_run_steps_of_their_own(
    make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader, name: str, position: str
) -> None:
    arguments: dict[str, Any] = {
        "EMAWeightAveraging": {},
        "StochasticWeightAveraging": {"swa_lrs": 0.1, "swa_epoch_start": 1},
        "LearningRateFinder": {"num_training_steps": 4, "update_attr": False},
    }
    if name == "EMAWeightAveraging" and lightning.__version__.startswith(("2.4.", "2.5.")):
        pytest.skip("it came with 2.6")
    other = getattr(lightning.pytorch.callbacks, name)(**arguments[name])
    callbacks = [DropoutScheduler(rate=RAMP), other]
    module = make_recorder()
    module.lr = 0.1  # wanted by the finder
    make_trainer(*(callbacks if position == "before" else callbacks[::-1]), max_epochs=2).fit(module, loader)
    if name == "LearningRateFinder":
        assert set(module.trace()[:4]) == {0.5}  # its trials are no part of the run
        module.trained = module.trained[4:]
    # Under 2.4 the run goes on in its data where the finder's trials stopped: behind the first of three batches.
    steps = 5 if LIGHTNING_2_4 and name == "LearningRateFinder" else 6
    assert module.trace()[:6] == [RAMP(step / 6) for step in range(steps)]
    assert [site.rate for site in module.sites()] == [0.5, 0.2, 0.1]


def test_fast_dev_run_tries_settings_made_for_a_longer_run(
    make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader
) -> None:
    module = make_recorder()
    make_trainer(DropoutScheduler(rate=RAMP, begin="50ep"), fast_dev_run=True).fit(module, loader)
    assert module.trace() == [0.0]


@pytest.mark.parametrize("way", [copy.deepcopy, lambda callback: pickle.loads(pickle.dumps(callback))])
def test_copies_go_on_where_the_original_stood(
    make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader, way: Callable[[Any], Any]
) -> None:
    scheduler = DropoutScheduler(rate={"1": RAMP, "3": 0.5}, unit="step")
    make_trainer(way(scheduler), max_epochs=1).fit(module := make_recorder(), loader)
    assert module.trace() == [RAMP(step / 3) for step in range(3)]
    scheduler.load_state_dict({"version": 1, "rates": {"net.1:p": 0.25}})
    assert way(scheduler).state_dict() == scheduler.state_dict() == {"version": 1, "rates": {"net.1:p": 0.25}}


def test_a_built_rate_that_may_not_be_set_is_given_back(
    make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader
) -> None:
    net = nn.Sequential(nn.Unflatten(1, (2, 2)), timm.layers.PatchDropout(0.5), nn.Flatten(), nn.LazyLinear(3))
    net.eval()(torch.zeros(1, 4))
    net[1].prob, net[1].num_prefix_tokens = 1, 0
    module = make_recorder(net.train())
    with contextlib.suppress(RuntimeError):  # the number of patches that are left fits no linear layer
        make_trainer(DropoutScheduler(rate=0.25), max_epochs=1).fit(module, loader)
    assert net[1].prob == 1

"""The figure of a run's rates reaches the loggers that take images, and stops no run."""

import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import lightning.pytorch
import pytest
import pytorch_lightning
import wandb
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger, Logger
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_dropout.callbacks import DropoutScheduler, StochasticDepthScheduler
from lightning_dropout.callbacks import log_plan as module_under_test
from lightning_dropout.callbacks.log_plan import log_plan
from lightning_dropout.clock import RunLength
from lightning_dropout.log_keys import DROP_PATH, DROPOUT, RATE_PLAN
from lightning_dropout.loggers import finish_wandb, wandb_logger
from lightning_dropout.reports import RateCurve
from lightning_dropout.schedules import Late, Linear, Schedule

MakeTrainer = Callable[..., Any]
pytestmark = [
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
]


class Images(Logger):
    """Takes images as Lightning's W&B logger does."""

    name = "images"
    version = "0"

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.error = error
        self.taken: list[dict[str, Any]] = []

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        if self.error is not None:
            raise self.error
        self.taken.append({"key": key, "images": images, "step": step})

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        pass

    def log_hyperparams(self, params: Any) -> None:
        pass


class Writer:
    """Takes figures as TensorBoard's writer does."""

    def __init__(self) -> None:
        self.taken: list[tuple[Any, ...]] = []

    def add_figure(self, tag: str, figure: Figure, global_step: int) -> None:
        self.taken.append((tag, figure, global_step))


def trainer_of(*loggers: Any, is_global_zero: bool = True, step: int = 0) -> Any:
    attributes = {"loggers": list(loggers), "is_global_zero": is_global_zero, "global_step": step}
    return type("Trainer", (), attributes)()


@dataclass(frozen=True)
class Stub:
    """A scheduler of a run of two epochs of three steps."""

    family: str
    schedule: Schedule

    @property
    def run_length(self) -> RunLength:
        return RunLength(Fraction(6), Fraction(2))

    def curves(self) -> list[RateCurve]:
        at = tuple(step / 6 for step in range(7))
        rates = tuple(map(self.schedule, at))
        return [RateCurve(self.family, "all", 1, at, rates, rates, rates)]


SCHEDULERS = [Stub(DROPOUT, Late(0.4, begin=0.5)), Stub(DROP_PATH, Linear(0.0, 0.2))]


def test_each_logger_gets_it_in_its_own_way() -> None:
    images, writer = Images(), Writer()
    board = type("Board", (), {"experiment": writer})()
    log_plan(trainer_of(images, board, step=7), SCHEDULERS)
    (taken,) = images.taken
    assert (taken["key"], taken["step"]) == (RATE_PLAN, 7)
    ((tag, figure, step),) = writer.taken
    assert (tag, step) == (RATE_PLAN, 7)
    assert taken["images"] == [figure]  # drawn once
    dropout, depth = figure.axes
    assert [*dropout.get_lines()[0].get_ydata()] == [0.0, 0.0, 0.0, 0.4, 0.4, 0.4, 0.4]
    assert depth.get_lines()[0].get_ydata()[:6] == pytest.approx([0.2 * step / 6 for step in range(6)])
    assert dropout.get_xlim() == (0.0, 2.0)


@pytest.mark.parametrize("logger", [None, "csv", DummyLogger()], ids=["none", "csv", "fast_dev_run"])
def test_nothing_is_drawn_where_no_logger_takes_an_image(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, logger: Any
) -> None:
    monkeypatch.setattr(module_under_test, "draw_rates", forbidden)
    given = CSVLogger(tmp_path) if logger == "csv" else logger
    log_plan(trainer_of(*([] if given is None else [given])), SCHEDULERS)


def forbidden(*args: Any, **kwargs: Any) -> Any:
    pytest.fail("drawn")  # no Exception, so nobody catches it


def test_on_rank_zero_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_under_test, "draw_rates", forbidden)
    log_plan(trainer_of(Images(), is_global_zero=False), SCHEDULERS)


def test_what_a_logger_raises_is_one_line_and_the_others_get_it(caplog: pytest.LogCaptureFixture) -> None:
    class Gone:
        @property
        def experiment(self) -> Any:
            raise ConnectionError

    last = Images()
    with caplog.at_level(logging.INFO):
        log_plan(trainer_of(Images(OSError("no\nroom")), Gone(), last), SCHEDULERS)
    assert [record.getMessage() for record in caplog.records] == [
        "Images: rates/plan could not be logged (no room); the run goes on.",
        "Gone: rates/plan could not be logged (ConnectionError); the run goes on.",
    ]
    assert len(last.taken) == 1


def test_a_figure_that_cannot_be_drawn_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module_under_test, "draw_rates", lambda *args, **kwargs: 1 / 0)
    with caplog.at_level(logging.INFO):
        log_plan(trainer_of(Images()), SCHEDULERS)
    assert "division by zero" in caplog.text


@pytest.mark.parametrize("package", [lightning.pytorch, pytorch_lightning], ids=lambda package: package.__name__)
@pytest.mark.parametrize("error", [None, RuntimeError("planted")], ids=["works", "fails"])
def test_a_whole_run(
    make_trainer: MakeTrainer, make_recorder: Callable[..., Any], loader: Any, package: Any, error: Exception | None
) -> None:
    logger = type("Own", (Images, package.loggers.logger.Logger), {})(error)
    both = [DropoutScheduler(rate=Linear(0.0, 0.5)), StochasticDepthScheduler(rate=Linear(0.0, 0.2))]
    trainer = make_trainer(*both, max_epochs=2, logger=logger, package=package)
    module = make_recorder(package=package)
    trainer.fit(module, loader)
    assert trainer.global_step == 6
    if error is None:
        (taken,) = logger.taken  # once, not by each scheduler
        (figure,) = taken["images"]
        assert taken["step"] == 0
        assert figure.axes[0].get_lines()[0].get_ydata()[:6] == pytest.approx(module.trace())
        assert len(figure.axes) == 2


def test_tensorboard_shows_it(
    make_trainer: MakeTrainer, make_recorder: Callable[..., Any], loader: Any, tmp_path: Path
) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="")
    make_trainer(DropoutScheduler(rate=0.1), max_epochs=1, logger=logger).fit(make_recorder(), loader)
    events = EventAccumulator(str(tmp_path)).Reload()
    (image,) = events.Images(RATE_PLAN)
    assert (image.step, image.width > 1000) == (0, True)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # what wandb's client leaves open
def test_wandb_shows_it(
    make_trainer: MakeTrainer,
    make_recorder: Callable[..., Any],
    loader: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for variable in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    logger = wandb_logger(save_dir=tmp_path, mode="offline")
    try:
        make_trainer(DropoutScheduler(rate=0.1), max_epochs=1, logger=logger).fit(make_recorder(), loader)
    finally:
        finish_wandb()
        wandb.teardown()
        gc.collect()  # here, where such a warning is expected
    (path,) = tmp_path.glob("wandb/offline-run-*/files/media/images/rates/plan_*.png")
    with Image.open(path) as image:
        assert image.width > 1000

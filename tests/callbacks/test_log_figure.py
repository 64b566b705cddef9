"""A figure reaches the loggers that take images, drawn once, and stops no run; real loggers: ``test_log_plan.py``."""

import logging
from typing import Any

import pytest
from lightning.pytorch.loggers.logger import DummyLogger
from matplotlib.figure import Figure

from lightning_dropout.callbacks.log_figure import log_figure, log_table


class Images:
    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.taken = error, list[Any]()

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        if self.error is not None:
            raise self.error
        self.taken.append((key, images, step))


class Writer:
    def __init__(self) -> None:
        self.taken: list[Any] = []

    def add_figure(self, tag: str, figure: Figure, global_step: int) -> None:
        self.taken.append((tag, [figure], global_step))


def trainer_of(*loggers: Any, is_global_zero: bool = True) -> Any:
    attributes = {"loggers": list(loggers), "is_global_zero": is_global_zero, "global_step": 7}
    return type("Trainer", (), attributes)()


def test_it_is_drawn_once_for_all() -> None:
    images, writer, drawn = Images(), Writer(), list[Figure]()

    def draw() -> Figure:
        drawn.append(Figure())
        return drawn[-1]

    log_figure(trainer_of(images, type("Board", (), {"experiment": writer})()), "report/gap", draw)
    assert images.taken == writer.taken == [("report/gap", drawn, 7)]
    assert len(drawn) == 1


@pytest.mark.parametrize(
    "trainer", [trainer_of(), trainer_of(DummyLogger()), trainer_of(Images(), is_global_zero=False)]
)
def test_nothing_is_drawn_for_nobody(trainer: Any) -> None:
    log_figure(trainer, "report/gap", lambda: pytest.fail("drawn"))


def test_an_error_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    last = Images()
    with caplog.at_level(logging.INFO):
        log_figure(trainer_of(Images(OSError("no\nspace")), last), "report/gap", Figure)
    assert [record.getMessage() for record in caplog.records] == [
        "Images: report/gap could not be logged (no space); the run goes on."
    ]
    assert len(last.taken) == 1


class Tables(Images):
    def log_table(self, key: str, columns: list[str], data: list[list[Any]]) -> None:
        if self.error is not None:
            raise self.error
        self.taken.append((key, columns, data))


def test_a_table_goes_to_those_that_take_one(caplog: pytest.LogCaptureFixture) -> None:
    tables, columns = Tables(), {"label": [1, None], "entropy": [0.5, 0.25]}
    with caplog.at_level(logging.INFO):
        log_table(trainer_of(Images(), Tables(OSError("gone")), DummyLogger(), tables), "report/samples", columns)
    assert tables.taken == [("report/samples", ["label", "entropy"], [[1, 0.5], [None, 0.25]])]
    assert [record.getMessage() for record in caplog.records] == [
        "Tables: report/samples could not be logged (gone); the run goes on."
    ]
    other = Tables()
    log_table(trainer_of(other, is_global_zero=False), "report/samples", columns)
    assert other.taken == []

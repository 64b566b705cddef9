"""The passes are seen while they run, under every bar, and nothing in a bar stops a stage."""

import io
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import lightning.pytorch
import pytest
import pytorch_lightning
import rich
import torch
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from rich.console import Console
from rich.progress import Progress
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_dropout.callbacks import MCDropout, pass_progress, sampled_stage
from lightning_dropout.callbacks.pass_progress import PassProgress

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]
MakeTrainer = Callable[..., Any]
T = 6


@pytest.fixture(autouse=True)
def _own_console() -> Iterator[None]:
    """Give back rich's global console, into which Lightning prints its tables: a bar with arguments changes it."""
    console = rich.get_console()
    before = console.__dict__
    yield
    console.__dict__ = before


@pytest.fixture(autouse=True)
def _draw_every_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pass_progress, "_BETWEEN", 0.0)


@pytest.fixture(autouse=True)
def _old_bars_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    # Lightning 2.4 clears a display that is not there, at which rich raises since 14.1.
    clear_live = Console.clear_live

    def clear_live_if_any(self: Console) -> None:
        with suppress(IndexError):
            clear_live(self)

    monkeypatch.setattr(Console, "clear_live", clear_live_if_any)


def bar_of(package: Any = lightning.pytorch) -> Any:
    """Return a bar that draws into a string, whatever the terminal of the tests is."""
    return package.callbacks.RichProgressBar(console_kwargs={"file": io.StringIO(), "force_terminal": True})


def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float, bool]]:
    """Return a list that gets passes, total and visibility of our task at each of its updates."""
    seen: list[tuple[int, float, bool]] = []
    update = Progress.update

    def watched(self: Progress, task_id: Any, **fields: Any) -> None:
        update(self, task_id, **fields)
        (task,) = (task for task in self.tasks if task.id == task_id)
        if task.description == "Passes":
            assert task.total is not None
            seen.append((int(task.completed), task.total, task.visible))

    monkeypatch.setattr(Progress, "update", watched)
    return seen


class Endless(IterableDataset[Any]):
    """Of a length that nobody knows."""

    def __iter__(self) -> Any:
        return iter([(torch.zeros(4), 0)] * 8)


@pytest.mark.parametrize("package", [lightning.pytorch, pytorch_lightning])
@pytest.mark.parametrize("stage", ["test", "predict", "validate"])
def test_every_pass_of_all_loaders(
    stage: str,
    package: Any,
    make_trainer: MakeTrainer,
    make_recorder: Callable[..., Any],
    loader: DataLoader[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = drawn(monkeypatch)
    module = make_recorder(package=package)
    for name in ("test_step", "predict_step", "validation_step"):
        monkeypatch.setattr(module, name, lambda batch, batch_idx, dataloader_idx=0: module.net(batch[0]).mean())
    bar = bar_of(package)
    trainer = make_trainer(
        bar, MCDropout(T, task="multiclass", stages=[stage]), package=package, enable_progress_bar=True
    )
    getattr(trainer, stage)(module, [loader, loader])
    total = 2 * 3 * T
    counts = [count for count, _, visible in seen if visible]
    assert counts == list(range(1, total + 1))
    assert {of for _, of, _ in seen} == {total}
    assert seen[-1] == (total, total, False)
    screen = bar.progress.console.file.getvalue()
    assert f"/{total}" in screen.partition("Passes")[2].splitlines()[0]


def test_of_a_length_that_nobody_knows(
    make_trainer: MakeTrainer, make_recorder: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = drawn(monkeypatch)
    trainer = make_trainer(bar_of(), MCDropout(T, task="multiclass"), enable_progress_bar=True)
    trainer.test(make_recorder(), DataLoader(Endless(), batch_size=4), verbose=False)
    assert seen[-1] == (2 * T, float("inf"), False)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_it_is_gone_after_an_exception(
    error: type[BaseException],
    make_trainer: MakeTrainer,
    make_recorder: Callable[..., Any],
    loader: DataLoader[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen, module = drawn(monkeypatch), make_recorder()

    def step(batch: Any, batch_idx: int) -> None:
        module.net(batch[0])
        raise error("planted")

    monkeypatch.setattr(module, "test_step", step)
    trainer = make_trainer(bar_of(), MCDropout(T, task="multiclass"), enable_progress_bar=True)
    with pytest.raises((error, SystemExit)):
        trainer.test(module, loader, verbose=False)
    assert seen[-2:] == [(T, 3 * T, True), (T, 3 * T, False)]


@pytest.mark.parametrize("place", ["add_task", "update", "refresh"])
def test_what_fails_in_a_bar_stops_no_test(
    place: str,
    make_trainer: MakeTrainer,
    make_recorder: Callable[..., Any],
    loader: DataLoader[Any],
) -> None:
    expected = make_trainer(MCDropout(T, task="multiclass")).test(make_recorder(), loader, verbose=False)
    torch.manual_seed(0)
    calls, planted = [], pytest.MonkeyPatch()

    def fail(self: Any, *args: Any, **kwargs: Any) -> None:
        calls.append(place)
        raise OSError("planted")

    class Bar(RichProgressBar):
        """Lightning's own calls are left out, since these would raise, too."""

        def on_test_batch_start(self, *args: Any, **kwargs: Any) -> None:
            assert self.progress is not None
            planted.setattr(type(self) if place == "refresh" else type(self.progress), place, fail)

        def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
            planted.undo()

    bar = Bar(console_kwargs={"file": io.StringIO(), "force_terminal": True})
    trainer = make_trainer(bar, MCDropout(T, task="multiclass"), enable_progress_bar=True)
    assert trainer.test(make_recorder(), loader, verbose=False)[0].keys() == expected[0].keys()
    assert calls == [place]  # and never again


@pytest.mark.parametrize("bar", [None, TQDMProgressBar(), TQDMProgressBar(refresh_rate=0), RichProgressBar(0)])
def test_other_bars_stay_as_they_are(
    bar: Any, make_trainer: MakeTrainer, make_recorder: Callable[..., Any], loader: DataLoader[Any]
) -> None:
    bars = [] if bar is None else [bar]
    trainer = make_trainer(*bars, MCDropout(T, task="multiclass"), enable_progress_bar=bar is not None)
    trainer.test(make_recorder(nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5))), loader, verbose=False)


class Screen:
    """A bar whose drawings are counted."""

    is_enabled = True

    def __init__(self) -> None:
        self.progress = Progress(disable=True)
        self.refreshed = 0

    def refresh(self) -> None:
        self.refreshed += 1


def test_drawings_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pass_progress, "_BETWEEN", 0.25)
    now = [100.0]
    monkeypatch.setattr(pass_progress.time, "monotonic", lambda: now[0])
    bar = Screen()
    progress = PassProgress(bar, total=1000)
    for _ in range(1000):
        progress.advance()
        now[0] += 1 / 512  # a binary fraction: 128 passes are a quarter of a second
    assert bar.refreshed == 7
    assert bar.progress.tasks[0].completed == 897
    progress.end()
    assert bar.progress.tasks[0].completed == 1000


def test_it_makes_room_for_what_is_said() -> None:
    bar = Screen()
    progress = PassProgress(bar, total=10)
    progress.hide()  # before the first pass: nothing to hide
    assert bar.progress.tasks == []
    visible = []
    for step in (progress.advance, progress.hide, progress.advance, progress.end, progress.advance):
        step()
        visible.append(bar.progress.tasks[0].visible)
    assert visible == [True, False, True, False, False]


def test_lines_are_not_said_beneath_it(
    make_trainer: MakeTrainer,
    make_recorder: Callable[..., Any],
    loader: DataLoader[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = drawn(monkeypatch)
    before: dict[str, list[tuple[int, float, bool]]] = {}
    monkeypatch.setattr(sampled_stage, "rank_zero_info", lambda line: before.update({line: seen[-1:]}))
    trainer = make_trainer(bar_of(), MCDropout(T, task="multiclass"), enable_progress_bar=True)
    unlabelled_data: Any = [(x, "name") for x, _ in loader.dataset]  # type: ignore[attr-defined]
    trainer.test(make_recorder(), DataLoader(unlabelled_data, batch_size=4), verbose=False)
    begun, unlabelled, spared = before.items()
    assert begun[1] == []
    assert "found no labels" in unlabelled[0]
    assert unlabelled[1] == [(T, 3 * T, False)]
    assert "passes started at" in spared[0]
    assert spared[1] == [(3 * T, 3 * T, False)]

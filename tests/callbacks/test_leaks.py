"""240 ways to end an evaluation, and nothing of ours is left: flags, rates, forwards, classes, hooks, random numbers.

24 places in a stage, of three stages, in three settings: alone, beside callbacks that fail while the error is handled,
and inside another trainer's step; and 24 interrupts at random lines of the package. All our callbacks together.
"""

import random
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch.nn.modules.module as global_hooks
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.utilities.model_helpers import _ModuleMode
from torch import Tensor, nn
from torch.overrides import _len_torch_function_stack
from torch.utils._python_dispatch import _len_torch_dispatch_stack
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import Metric

import lightning_dropout
from lightning_dropout.callbacks import DropoutScheduler, MCDropout, RunReport, StochasticDepthScheduler, borrower
from lightning_dropout.callbacks.sampled_stage import SampledStage
from lightning_dropout.nn import DropPath
from lightning_dropout.randomness import seed_everywhere
from lightning_dropout.sampling import mc_sample
from lightning_dropout.schedules import Linear
from lightning_dropout.sites import find_sites

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:Found 1 module.s. in eval mode at the start of training"),
]
MakeTrainer = Callable[..., Any]
Errors = tuple[Callable[[], BaseException], ...]

STAGES = {"validate": "validation", "test": "test", "predict": "predict"}
ERRORS: Errors = (
    lambda: RuntimeError("planted"),
    lambda: torch.OutOfMemoryError("planted"),
    KeyboardInterrupt,
    lambda: SystemExit("planted"),
)
T = 40  # the second pass runs in full and again replayed, the rest are replayed from their first draw on
PLACES = [
    *(f"module: {hook}" for hook in ("on_{}_start", "on_{}_batch_start", "on_{}_epoch_end", "on_{}_end")),
    *(f"before: {hook}" for hook in ("setup", "on_{}_start", "on_{}_epoch_start", "on_{}_batch_end", "on_{}_end")),
    "before: teardown",
    *(f"after: {hook}" for hook in ("setup", "on_{}_start", "on_{}_batch_start", "on_{}_batch_end", "on_{}_end")),
    "after: teardown",
    "step before the call",
    "step after the call",
    "metric of the step",
    *(f"{part} of pass {number}" for number in (0, 1) for part in ("prefix", "suffix")),
    "suffix of pass 37",
]
SETTINGS = ["alone", "hostile", "nested"]
RUNS = [*STAGES, "fit"]


class Bomb(nn.Module):
    """Explodes from the k-th call on."""

    def __init__(self) -> None:
        super().__init__()
        self.fuse = 0
        self.error: BaseException | None = None
        self.register_buffer("calls", torch.zeros(()))  # there to be guarded; stays 0

    def forward(self, x: Tensor) -> Tensor:
        self.fuse -= 1
        if self.fuse <= 0 and self.error is not None:
            raise self.error
        return x


class ExplodingMetric(Metric):
    """Explodes when it is told."""

    error: BaseException | None = None

    def update(self, x: Tensor) -> None:
        if self.error is not None:
            raise self.error

    def compute(self) -> Tensor:
        return torch.zeros(())


class Victim(LightningModule):
    """Somebody's module, in train mode but for one frozen part."""

    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters()  # Lightning makes an attribute of it anyhow
        self.prefix, self.suffix, self.metric = Bomb(), Bomb(), ExplodingMetric()
        self.net = nn.Sequential(
            nn.Linear(4, 8),
            self.prefix,
            nn.BatchNorm1d(8).eval(),
            nn.Dropout(0.5, inplace=True),
            DropPath(0.2),
            self.suffix,
            nn.Linear(8, 3),
        )
        self.before: BaseException | None = None
        self.after: BaseException | None = None

    def forward(self, x: Tensor) -> Any:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        if self.before is not None:
            raise self.before
        outputs = self(batch[0])
        self.metric.update(outputs)
        if self.after is not None:
            raise self.after
        return outputs

    validation_step = predict_step = test_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Clumsy(Callback):
    """Fails while the trainer handles an error, which then asks no more callbacks."""

    state_key = property(lambda self: str(id(self)))

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        raise OSError("clumsy")


def exploding(owner: Any, hook: str, error: BaseException) -> None:
    def explode(*args: Any, **kwargs: Any) -> None:
        raise error

    setattr(owner, hook, explode)


def arm(place: str, stage: str, error: BaseException, victim: Victim, before: Callback, after: Callback) -> None:
    """Let ``error`` be raised at ``place``."""
    who, _, hook = place.partition(": ")
    if hook:
        exploding({"module": victim, "before": before, "after": after}[who], hook.format(STAGES[stage]), error)
    elif place.startswith("step"):
        setattr(victim, place.split()[1], error)
    elif place.startswith("metric"):
        victim.metric.error = error
    else:
        part, _, number = place.partition(" of pass ")
        bomb = victim.prefix if part == "prefix" else victim.suffix
        compared = stage != "predict"  # once without dropout before the passes
        # The second pass runs twice, so that the 37th is one more call of what comes behind the draw.
        bomb.fuse, bomb.error = 1 + int(number) + compared + (int(number) > 1), error


def callbacks(folder: Path) -> list[Callback]:
    """Return one of each of ours that touch a model; the schedulers have trained to other rates than its."""
    ours: list[Any] = [
        DropoutScheduler(rate=Linear(0.0, 0.4), compile_mode="tensor"),
        StochasticDepthScheduler(rate=Linear(0.1, 0.4), compile_mode="tensor"),
        MCDropout(T, task="multiclass", stages=list(STAGES), rates=0.75, return_uncertainty=True, temperature=True),
        RunReport(str(folder)),
    ]
    ours[0].load_state_dict({"version": 1, "rates": {"net.3:p": 0.3}})
    ours[1].load_state_dict({"version": 1, "rates": {"net.4:drop_prob": 0.3}})
    return ours


def state_of(*modules: nn.Module) -> dict[str, Any]:
    """Return all that a stage could have left changed."""
    parts = [part for module in modules for part in module.modules()]
    return {
        "flags": [part.training for part in parts],
        "classes": [type(part) for part in parts],
        "attributes": [sorted(vars(part)) for part in parts],
        "rates": [(site.held, type(site.held)) for module in modules for site in find_sites(module)],
        "in place": [getattr(part, "inplace", None) for part in parts],
        "hooks of modules": [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in parts],
        "buffers": [buffer.tolist() for part in parts for buffer in part.buffers()],
        "torch": torch.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),  # type: ignore[index, union-attr]  # noqa: NPY002
        "python": random.getstate(),
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "hooks": len(global_hooks._global_forward_hooks) + len(global_hooks._global_forward_pre_hooks),
        "function modes": _len_torch_function_stack(),
        "dispatch modes": _len_torch_dispatch_stack(),
        # Not those of Ctrl-C and SIGTERM: Lightning itself ignores the one after an interrupt, and keeps its handler of
        # the other where handling an error fails.
        "signals": [signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM)],
        "gradients": torch.is_grad_enabled(),
    }


DRAWN = ("torch", "numpy", "python")


def leaks(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [what for what in before if before[what] != after[what]]


@pytest.fixture
def data() -> DataLoader[Any]:
    """One batch, in an order that is drawn from a generator of its own."""
    own = torch.Generator().manual_seed(1)
    rows = TensorDataset(torch.randn(4, 4, generator=own), torch.randint(0, 3, (4,), generator=own))
    return DataLoader(rows, batch_size=4, generator=own)


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunReport, "_show", lambda *args: None)


@pytest.fixture(autouse=True)
def _sigterm() -> Iterator[None]:
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


class RunsInside(LightningModule):
    """A module whose step samples by itself and then runs what it is given."""

    def __init__(self, run: Callable[[], None]) -> None:
        super().__init__()
        self.save_hyperparameters(ignore="run")
        self.net = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5))
        self.head = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)).eval()
        self.run = run

    def test_step(self, batch: Any, batch_idx: int) -> None:
        outputs = self.net(batch[0])
        with torch.inference_mode(False), torch.no_grad():
            mc_sample(self.head, outputs.clone(), num_samples=2, task="raw")
        self.run()


def causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__context__


def left_behind(
    place: str, stage: str, setting: str, error: BaseException, make: MakeTrainer, data: DataLoader[Any], folder: Path
) -> list[str]:
    """Return what differs after a stage that ``error`` has ended."""
    victim, before, after = Victim(), Callback(), Callback()
    arm(place, stage, error, victim, before, after)
    clumsy = [Clumsy(), Clumsy()] if setting == "hostile" else []
    inner = make(*clumsy[:1], before, *callbacks(folder), after, *clumsy[1:])
    outer = RunsInside(lambda: getattr(inner, stage)(victim, data))
    seed_everywhere(3)
    listed = inner.callbacks
    state = state_of(victim, outer)
    around = make(MCDropout(3, task="multiclass", module="net"))
    run = partial(around.test, outer, data) if setting == "nested" else partial(getattr(inner, stage), victim, data)
    with pytest.raises((RuntimeError, SystemExit, OSError)) as raised:
        run()
    assert any(each is error for each in causes(raised.value))
    assert inner.callbacks is listed
    return leaks(state, state_of(victim, outer))


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("place", PLACES)
def test_nothing_is_left_after_an_error(
    make_trainer: MakeTrainer, data: DataLoader[Any], tmp_path: Path, place: str, stage: str, setting: str
) -> None:
    turn = PLACES.index(place) + [*STAGES].index(stage) + SETTINGS.index(setting)
    assert left_behind(place, stage, setting, ERRORS[turn % len(ERRORS)](), make_trainer, data, tmp_path) == []


def never_in_front(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant a bug: our callbacks are asked in their turn, as all others."""
    monkeypatch.setattr(borrower._FirstToHear, "stand_in_front", lambda *args: None)


def leaves_the_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant a bug: the model stays in eval mode, as Lightning leaves it."""
    monkeypatch.setattr(borrower, "_flags", lambda trainer: _ModuleMode())


def gives_nothing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant a bug: what is borrowed is left to the hooks of the end, which an error never reaches."""
    monkeypatch.setattr(borrower, "_borrowers", lambda trainer: [])
    monkeypatch.setattr(borrower.Borrower, "on_exception", lambda *args: None)


@pytest.mark.parametrize(
    ("bug", "setting", "stage", "left"),
    [
        (never_in_front, "hostile", "test", {"flags", "attributes", "rates"}),
        (never_in_front, "hostile", "validate", {"flags", "attributes", "rates"}),
        (leaves_the_flags, "alone", "predict", {"flags"}),
        (gives_nothing_back, "alone", "test", {"attributes", "rates"}),
    ],
)
def test_that_check_sees_planted_bugs(
    make_trainer: MakeTrainer,
    data: DataLoader[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bug: Callable[[pytest.MonkeyPatch], None],
    setting: str,
    stage: str,
    left: set[str],
) -> None:
    bug(monkeypatch)
    error = RuntimeError("planted")
    assert {*left_behind("step after the call", stage, setting, error, make_trainer, data, tmp_path)} == left


@pytest.mark.parametrize("run", RUNS)
def test_nothing_is_left_after_a_whole_run(
    make_trainer: MakeTrainer, data: DataLoader[Any], tmp_path: Path, run: str
) -> None:
    assert interrupted(run, 0, make_trainer, data, tmp_path)[1] == []


@pytest.mark.parametrize("run", RUNS)
def test_a_second_trainer_goes_on_with_the_same_callbacks(
    make_trainer: MakeTrainer, data: DataLoader[Any], tmp_path: Path, run: str
) -> None:
    """After an error that a hostile callback has made worse, a test gives what it gives with new callbacks."""
    victim, ours = Victim(), callbacks(tmp_path)
    fresh = make_trainer(*callbacks(tmp_path)).test(victim, data, verbose=False)
    error = victim.suffix.error = RuntimeError("planted")
    victim.suffix.fuse = 1 if run == "fit" else 2
    with pytest.raises(OSError, match="clumsy") as raised:
        getattr(make_trainer(Clumsy(), *ours, max_epochs=1), run)(victim, data)
    assert any(each is error for each in causes(raised.value))
    victim.suffix.error = None
    assert ours[2]._running is None  # type: ignore[attr-defined]
    second = make_trainer(*ours, max_epochs=1)
    if run == "fit":
        second.fit(victim, data)  # refused if sites were asleep
    else:
        assert second.test(victim, data, verbose=False) == fresh


# --- interrupts at any line of the package ----------------------------------------------------------------------------

LINES: dict[str, int] = {}  # of the package that a whole run comes by
PACKAGE = str(Path(lightning_dropout.__file__).parent)


@contextmanager
def interrupt_at(line: int) -> Iterator[list[int]]:
    """Raise a KeyboardInterrupt before the so-manieth line of the package that runs; yield the lines that have run."""
    lines = [0]

    def trace(frame: Any, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            lines[0] += 1
            if lines[0] == line:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield lines
    finally:
        sys.settrace(before)


def interrupted(run: str, line: int, make: MakeTrainer, data: DataLoader[Any], folder: Path) -> tuple[int, list[str]]:
    """Return how many lines of the package have run, and what differs afterwards."""
    victim = Victim()
    validation = {"val_dataloaders": data} if run == "fit" else {}
    trainer = make(Clumsy(), *callbacks(folder), max_epochs=1, num_sanity_val_steps=0)
    seed_everywhere(3)
    state = state_of(victim)
    with interrupt_at(line) as lines, suppress(OSError, SystemExit) if line else nullcontext():
        getattr(trainer, run)(victim, data, **validation)
    left = leaks(state, state_of(victim))
    return lines[0], [what for what in left if run != "fit" or what not in (*DRAWN, "buffers")]


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("run", RUNS)
def test_nothing_is_left_after_an_interrupt_anywhere(
    make_trainer: MakeTrainer, data: DataLoader[Any], tmp_path: Path, run: str, number: int
) -> None:
    if run not in LINES:
        LINES[run], _ = interrupted(run, 0, make_trainer, data, tmp_path)
    line = 1 + int(random.Random(f"{run} {number}").random() * LINES[run])
    reached, left = interrupted(run, line, make_trainer, data, tmp_path)
    assert left == []
    assert reached == line


def test_that_check_sees_a_loan_that_nobody_has_noted(
    make_trainer: MakeTrainer, data: DataLoader[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planted bug: the forwards of a stage are lent before the callback knows of the stage."""

    def begin(self: MCDropout, trainer: Any, pl_module: Any, stage: Any) -> None:
        running = SampledStage(self, trainer, pl_module, stage)
        running.begin()
        raise KeyboardInterrupt

    monkeypatch.setattr(MCDropout, "_begin", begin)
    assert interrupted("test", -1, make_trainer, data, tmp_path)[1] == ["attributes"]

"""Real signals to real trainings: what is left behind, with which code it ends, and that it goes on bit by bit."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.environments import SLURMEnvironment
from torch import Tensor, nn

from lightning_dropout.callbacks import GracefulStop, graceful_stop

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The `srun` command is available"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
]

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
Where = tuple[str, int, int]  # stage, epoch, batch


class Batches:
    """Six batches that know where they are, as the loaders do that Lightning can resume in the middle of an epoch."""

    def __init__(self, count: int = 6) -> None:
        self.count = count
        self.first = self.position = 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        first, self.first = self.first, 0
        return self._walk(first)

    def _walk(self, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        for index in range(first, self.count):
            self.position = index + 1
            generator = torch.Generator().manual_seed(index)
            yield torch.randn(4, 4, generator=generator), torch.randint(0, 3, (4,), generator=generator)

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.first = self.position = state["position"]


class Module(LightningModule):
    """Notes all that happens, and signals its own process in one of the batches; masks follow from the batch."""

    def __init__(self, at: Where | None = None, signum: int = signal.SIGTERM, plateau: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))
        self.at, self.signum, self.plateau = at, signum, plateau
        self.events: list[tuple[Any, ...]] = []
        self.validated: list[float] = []

    def loss(self, stage: str, batch: Any, batch_idx: int) -> Tensor:
        if self.at == (stage, self.current_epoch, batch_idx):
            os.kill(os.getpid(), self.signum)
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log(f"{stage}/loss", loss)
        return loss

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        torch.manual_seed(self.trainer.fit_loop.epoch_loop.total_batch_idx)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss("train", batch, batch_idx)
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.events.append(("train", self.current_epoch, batch_idx, loss.item(), rate))
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.events.append(("trained", self.current_epoch, batch_idx))

    def on_validation_start(self) -> None:
        self.validated = []

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.validated.append(self.loss("val", batch, batch_idx).item())

    def on_validation_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.events.append(("validated", self.current_epoch, *self.validated))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.loss("test", batch, batch_idx)

    def predict_step(self, batch: Any, batch_idx: int) -> int:
        if self.at == ("predict", 0, batch_idx):
            os.kill(os.getpid(), self.signum)
        return batch_idx

    def on_train_epoch_end(self) -> None:
        self.events.append(("epoch", self.current_epoch))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)
        if self.plateau:  # halves the rate after every epoch
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5, threshold=10.0)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val/loss"}}
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class Run(NamedTuple):
    """A fit, and what it left."""

    module: Module
    code: int
    rows: list[dict[str, str]]  # of its metrics.csv
    trainer: Trainer


def fit(folder: Path, module: Module, *callbacks: Any, ckpt_path: Path | None = None, **arguments: Any) -> Run:
    logger = CSVLogger(folder, name="csv")  # a new folder for each fit
    checkpointing = any(isinstance(each, ModelCheckpoint) for each in callbacks)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": checkpointing}
    defaults = {"max_epochs": 3, "log_every_n_steps": 1, "default_root_dir": folder, "logger": logger, **quiet}
    validates = arguments.pop("validates", True)
    trainer = Trainer(accelerator="cpu", callbacks=list(callbacks), **defaults | arguments)
    code = 0
    try:
        trainer.fit(module, Batches(), Batches(3) if validates else None, ckpt_path=ckpt_path)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else -1
    table = Path(logger.log_dir) / "metrics.csv"
    with table.open(newline="") if table.is_file() else open(os.devnull, newline="") as file:  # noqa: PTH123
        rows = [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]
    return Run(module, code, rows, trainer)


def differences(
    folder: Path, at: Where, make: Callable[[], Any] = GracefulStop, plateau: bool = False, **arguments: Any
) -> list[str]:
    """Return in what an interrupted and resumed run differs from one that nobody interrupts."""
    whole = fit(folder / "whole", Module(plateau=plateau), make(), **arguments)
    stopped = fit(folder / "stopped", Module(at, plateau=plateau), make(), **arguments)
    assert stopped.code == 143
    checkpoint = folder / "stopped" / "stopped.ckpt"
    torch.load(checkpoint, weights_only=True)
    resumed = fit(folder / "stopped", Module(plateau=plateau), make(), ckpt_path=checkpoint, **arguments)
    assert resumed.code == 0
    equal = {
        "events": stopped.module.events + resumed.module.events == whole.module.events,
        "metrics": stopped.rows + resumed.rows == whole.rows,
        "weights": all(map(torch.equal, resumed.module.parameters(), whole.module.parameters())),
    }
    return [name for name, is_equal in equal.items() if not is_equal]


CASES: dict[str, dict[str, Any]] = {
    "each epoch": {},
    "accumulation": {"accumulate_grad_batches": 4},
    "within epochs": {"val_check_interval": 2},
    "within epochs, accumulation": {"val_check_interval": 3, "accumulate_grad_batches": 2},
    "across epochs": {"check_val_every_n_epoch": None, "val_check_interval": 4},
    "no validation": {"validates": False},
    "steps": {"max_epochs": -1, "max_steps": 16},
    "plateau": {"plateau": True},
}


@pytest.mark.parametrize(
    ("case", "at"),
    [
        ("each epoch", ("train", 1, 5)),  # the last batch of an epoch: its validation is cut
        ("each epoch", ("val", 1, 1)),
        ("accumulation", ("train", 1, 1)),
        ("within epochs", ("val", 0, 0)),
        ("no validation", ("train", 0, 5)),
        ("plateau", ("train", 1, 3)),
    ],
)
def test_an_interrupted_fit_goes_on_bit_by_bit(tmp_path: Path, case: str, at: Where) -> None:
    assert differences(tmp_path, at, **CASES[case]) == []


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_wherever_the_signal_comes(tmp_path: Path, case: str) -> None:
    points: list[Where] = [("train", epoch, batch) for epoch in range(3) for batch in (0, 2, 3, 5)]
    if CASES[case].get("validates", True):
        points += [("val", epoch, batch) for epoch in range(3) for batch in (0, 2)]
    for at in points:
        if case == "steps" and at[1] == 2 and (at[0] == "val" or at[2] > 3):
            continue  # never reached
        assert differences(tmp_path / "-".join(map(str, at)), at, **CASES[case]) == [], at


class AtBatchEnd(Callback):
    """A mutant: stops in the hook that comes to mind first."""

    asked = False

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        signal.signal(signal.SIGTERM, self.note)

    def note(self, signum: int, frame: Any) -> None:
        self.asked = True

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if self.asked:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "stopped.ckpt", weights_only=False)
            raise SystemExit(143)


class AtAnyBatch(GracefulStop):
    """A mutant: leaves accumulated gradients behind."""

    def _is_whole(self, trainer: Any, pl_module: Any) -> bool:
        return True


class NeverCleared(GracefulStop):
    """A mutant: leaves Lightning's plateau schedulers out."""

    def _between_batches(self, trainer: Any, pl_module: Any) -> None:
        restarting = trainer.fit_loop._restarting
        super()._between_batches(trainer, pl_module)
        trainer.fit_loop._restarting = restarting


class Uncounted(GracefulStop):
    """A mutant: cuts a validation and leaves its counters as they are."""

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
        progress.reset = progress.increment_started = progress.increment_ready = lambda: None
        try:
            super().on_validation_batch_start(trainer, pl_module, *args)
        finally:
            del progress.reset, progress.increment_started, progress.increment_ready


@pytest.mark.parametrize(
    ("mutant", "case", "at"),
    [
        (AtBatchEnd, "each epoch", ("train", 1, 2)),
        (AtAnyBatch, "accumulation", ("train", 1, 1)),
        (NeverCleared, "plateau", ("train", 1, 3)),
        (Uncounted, "each epoch", ("val", 1, 1)),
    ],
)
def test_the_comparison_sees(tmp_path: Path, mutant: type[Callback], case: str, at: Where) -> None:
    assert differences(tmp_path, at, mutant, **CASES[case])


class Swapped(Callback):
    """Puts zeros into the model for the validation, and the weights back, as averages of weights are."""

    held: dict[str, Tensor] | None = None

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self.held = {name: value.clone() for name, value in pl_module.state_dict().items()}
        for value in pl_module.parameters():
            value.data.zero_()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        pl_module.load_state_dict(self.held)


def test_other_weights_of_a_validation_are_not_taken_for_the_models(tmp_path: Path) -> None:
    for index, order in enumerate([(GracefulStop(), Swapped()), (Swapped(), GracefulStop())]):
        whole = fit(tmp_path / f"whole{index}", Module(), *order)
        stopped = fit(tmp_path / f"{index}", Module(("val", 1, 0)), *order)
        assert stopped.module.events[-1] == ("trained", 2, 0)  # the validation was waited for
        checkpoint = tmp_path / f"{index}" / "stopped.ckpt"
        resumed = fit(tmp_path / f"{index}", Module(), *order, ckpt_path=checkpoint)
        assert stopped.module.events + resumed.module.events == whole.module.events


def test_any_parameters_will_do(tmp_path: Path) -> None:
    class Quantised(Module):
        def __init__(self) -> None:
            super().__init__(("val", 1, 0))
            self.whole = torch.nn.Parameter(torch.zeros(3, dtype=torch.uint8), requires_grad=False)

    assert fit(tmp_path, Quantised(), GracefulStop()).code == 143


# --- how it ends ------------------------------------------------------------------------------------------------------


class Witness(Callback):
    """Notes how a run ends, and who has the signals then."""

    ended: BaseException | None = None

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.ended = exception


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_codes_checkpoint_and_line(
    tmp_path: Path, signum: signal.Signals, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    witness, best = Witness(), ModelCheckpoint(tmp_path / "checkpoints")
    with caplog.at_level("INFO"):
        run = fit(tmp_path, Module(("train", 0, 3), signum), GracefulStop("do it again"), witness, best)
    assert run.code == code
    assert run.module.events[-1] == ("trained", 0, 3)  # the very batch
    assert isinstance(witness.ended, SystemExit)
    assert run.rows[-1]["step"] == "3"  # loggers were closed
    path = tmp_path / "checkpoints" / "stopped.ckpt"  # beside the others
    assert torch.load(path, weights_only=True)["global_step"] == 4
    lines = [record.getMessage() for record in caplog.records if "Stopped by" in record.getMessage()]
    assert lines == [f"Stopped by {signum.name} after step 4: {path}; to go on: do it again"]
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_the_folder_can_be_chosen(tmp_path: Path) -> None:
    fit(
        tmp_path, Module(("train", 0, 3)), GracefulStop(dirpath=str(tmp_path / "here")), ModelCheckpoint(tmp_path / "b")
    )
    assert (tmp_path / "here" / "stopped.ckpt").is_file()


def test_without_a_command_the_line_names_the_call(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        fit(tmp_path, Module(("train", 0, 3)), GracefulStop())
    assert f'to go on: Trainer.fit(..., ckpt_path="{tmp_path / "stopped.ckpt"}")' in caplog.text


def test_a_signal_in_the_sanity_check_stops_after_the_first_step(tmp_path: Path) -> None:
    run = fit(tmp_path, Module(("val", 0, 0)), GracefulStop())
    assert run.code == 143
    assert run.module.events[-1] == ("trained", 0, 0)


def test_signals_are_given_back_exactly(tmp_path: Path) -> None:
    calls: list[int] = []

    def mine(signum: int, frame: Any) -> None:
        calls.append(signum)

    held = [signal.signal(each, mine) for each in SIGNALS]
    try:
        callback = GracefulStop()
        for _ in range(2):
            assert fit(tmp_path, Module(), callback).code == 0
            assert [signal.getsignal(each) for each in SIGNALS] == [mine] * 3
        assert fit(tmp_path, Module(("train", 0, 3)), callback).code == 143
        assert fit(tmp_path, Module(("train", 0, 3)), callback).code == 143  # a second fit knows nothing of the first
        assert [signal.getsignal(each) for each in SIGNALS] == [mine] * 3
        broken = Module()
        broken.training_step = lambda *args: 1 / 0  # type: ignore[assignment,method-assign]
        with pytest.raises(ZeroDivisionError):
            fit(tmp_path, broken, callback)
        assert [signal.getsignal(each) for each in SIGNALS] == [mine] * 3
        assert calls == []  # ours stood in for it
        assert "on_advance_end" not in vars(Trainer(logger=False, accelerator="cpu").fit_loop.epoch_loop)
    finally:
        for each, handler in zip(SIGNALS, held, strict=True):
            signal.signal(each, handler)


def test_outside_of_the_main_thread_signals_are_left_alone(tmp_path: Path) -> None:
    runs: list[Run] = []
    thread = threading.Thread(target=lambda: runs.append(fit(tmp_path, Module(), GracefulStop())))
    thread.start()
    thread.join()
    assert runs[0].code == 0


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module whose signals come twice; the second counts at once."""
    once = os.kill
    monkeypatch.setattr(os, "kill", lambda pid, signum: [once(pid, signum), once(pid, signum)])


@pytest.mark.usefixtures("second")
def test_the_echo_of_a_launcher_is_no_second_signal(tmp_path: Path) -> None:
    assert fit(tmp_path, Module(("train", 0, 3), signal.SIGINT), GracefulStop()).code == 130
    assert (tmp_path / "stopped.ckpt").is_file()


@pytest.mark.usefixtures("second")
def test_a_second_ctrl_c_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graceful_stop, "_ECHO", -1.0)
    witness = Witness()
    assert fit(tmp_path, Module(("train", 0, 3), signal.SIGINT), GracefulStop(), witness).code == 1  # Lightning's
    assert isinstance(witness.ended, KeyboardInterrupt)
    assert not (tmp_path / "stopped.ckpt").exists()


@pytest.mark.parametrize("stage", ["test", "predict", "validate"])
def test_an_evaluation_ends_at_once(tmp_path: Path, stage: str) -> None:
    before = signal.getsignal(signal.SIGTERM)
    module = Module(("val" if stage == "validate" else stage, 0, 1))
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = Trainer(accelerator="cpu", default_root_dir=tmp_path, callbacks=[GracefulStop()], **quiet)
    with pytest.raises(SystemExit) as end:
        getattr(trainer, stage)(module, Batches(3))
    assert end.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before
    assert not list(tmp_path.glob("**/*.ckpt"))


# --- SLURM ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job of SLURM as Lightning sees it; returns the file in which a scontrol notes what it is told."""
    for name in ("SLURM_NTASKS", "SLURM_NNODES", "SLURM_NTASKS_PER_NODE"):
        monkeypatch.setenv(name, "1")
    for name in ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("SLURM_JOB_ID", "1234")
    monkeypatch.setenv("SLURM_JOB_NAME", "training")
    told = tmp_path / "told"
    (tmp_path / "bin").mkdir()
    for name in ("scontrol", "srun"):
        (tmp_path / "bin" / name).write_text(f'#!/bin/bash\necho "{name} $@" >> {told}\nexit ${{SCONTROL_CODE:-0}}\n')
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return told


@pytest.mark.usefixtures("slurm")
def test_slurm_requeues_once_and_the_job_goes_on(tmp_path: Path, slurm: Path) -> None:
    whole = fit(tmp_path / "whole", Module(), GracefulStop())
    stopped = fit(tmp_path, Module(("train", 1, 2), signal.SIGUSR1), GracefulStop())
    assert stopped.code == 138
    assert slurm.read_text() == "scontrol requeue 1234\n"
    assert not list(tmp_path.glob("**/hpc_ckpt*"))  # Lightning's own handler would have saved in the middle of a step
    resumed = fit(tmp_path, Module(), GracefulStop(), ckpt_path=tmp_path / "stopped.ckpt")
    assert stopped.module.events + resumed.module.events == whole.module.events
    assert all(map(torch.equal, resumed.module.parameters(), whole.module.parameters()))


def test_a_task_of_an_array_is_requeued_by_its_own_id(
    tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "1200")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "7")
    fit(tmp_path, Module(("train", 1, 2), signal.SIGUSR1), GracefulStop())
    assert slurm.read_text() == "scontrol requeue 1200_7\n"


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("SCONTROL_CODE", "3", "exit code 3"),
        ("PATH", "/nowhere", "No such file"),
        ("SLURM_JOB_ID", "1; reboot", "'1; reboot' is no job"),
    ],
)
def test_a_requeue_that_fails_is_one_line(
    tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, variable: str,
    value: str, words: str,
) -> None:  # fmt: skip
    monkeypatch.setenv(variable, value)
    with caplog.at_level("INFO"):
        assert fit(tmp_path, Module(("train", 1, 2), signal.SIGUSR1), GracefulStop()).code == 138
    assert any(words in line and "submit it again yourself" in line for line in caplog.messages)
    assert (tmp_path / "stopped.ckpt").is_file()


def test_only_slurms_signal_requeues_and_only_where_it_may(tmp_path: Path, slurm: Path) -> None:
    assert fit(tmp_path, Module(("train", 1, 2), signal.SIGTERM), GracefulStop()).code == 143  # scancel
    never = SLURMEnvironment(auto_requeue=False)
    assert fit(tmp_path, Module(("train", 1, 2), signal.SIGUSR1), GracefulStop(), plugins=[never]).code == 138
    assert not slurm.exists()
    other = SLURMEnvironment(requeue_signal=signal.SIGUSR2)
    assert fit(tmp_path, Module(("train", 1, 2), signal.SIGUSR2), GracefulStop(), plugins=[other]).code == 140
    assert slurm.read_text() == "scontrol requeue 1234\n"


# --- processes --------------------------------------------------------------------------------------------------------

JOB = """
import os, sys, time, warnings
from pathlib import Path
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from lightning_dropout.callbacks import GracefulStop

warnings.filterwarnings("ignore")


class Module(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 3)

    def training_step(self, batch, batch_idx):
        if self.global_step == 10:
            Path(f"rank{self.global_rank}").write_text(str(os.getpid()))
        time.sleep(0.02)
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


if __name__ == "__main__":
    devices, workers = int(sys.argv[1]), int(sys.argv[2])
    trainer = Trainer(
        accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", max_epochs=1000, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[GracefulStop()],
    )
    data = TensorDataset(torch.randn(4000, 4), torch.randint(0, 3, (4000,)))
    trainer.fit(Module(), DataLoader(data, batch_size=4, num_workers=workers))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "workers", "signum", "whom"),
    [
        (2, 0, signal.SIGTERM, "rank1"),
        (2, 0, signal.SIGTERM, "rank0"),
        (2, 0, signal.SIGINT, "all"),
        (1, 2, signal.SIGTERM, "all"),  # the workers of the loader too
    ],
)
def test_all_processes_stop_together(tmp_path: Path, devices: int, workers: int, signum: int, whom: str) -> None:
    (tmp_path / "job.py").write_text(JOB)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    job = subprocess.Popen(
        [sys.executable, "job.py", str(devices), str(workers)],
        cwd=tmp_path,
        env={**environment, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        ranks = [tmp_path / f"rank{rank}" for rank in range(devices)]
        deadline = time.monotonic() + 120
        while not all(rank.is_file() and rank.read_text() for rank in ranks):
            assert time.monotonic() < deadline
            assert job.poll() is None
            time.sleep(0.05)
        started = time.monotonic()
        if whom == "all":
            os.killpg(job.pid, signum)
        else:
            os.kill(int((tmp_path / whom).read_text()), signum)
        output, _ = job.communicate(timeout=60)
        assert time.monotonic() - started < 30
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
            job.wait()
    assert job.returncode == 128 + signum, output
    assert output.count("Stopped by") == 1
    assert "Traceback" not in output
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["stopped.ckpt"]
    assert torch.load(tmp_path / "stopped.ckpt", weights_only=True)["global_step"] >= 10


@pytest.mark.slow
def test_a_training_by_the_script_ends_with_143(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "scripts" / "train.py"
    words = ["model=mlp", "logger=csv", "trainer=cpu", "trainer.max_epochs=500", "trainer.enable_progress_bar=false"]
    job = subprocess.Popen(
        [sys.executable, str(script), *words],
        cwd=tmp_path,
        env={**os.environ, "LIGHTNING_DROPOUT_STAMP": "stamp", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    checkpoints = tmp_path / "outputs" / "stamp" / "checkpoints"
    try:
        deadline = time.monotonic() + 120
        while not (checkpoints / "last.ckpt").is_file():
            assert time.monotonic() < deadline
            assert job.poll() is None
            time.sleep(0.05)
        job.terminate()
        output, _ = job.communicate(timeout=60)
    finally:
        if job.poll() is None:
            job.kill()
            job.wait()
    assert job.returncode == 143, output
    assert "Traceback" not in output
    steps = {path.name: torch.load(path, weights_only=True)["global_step"] for path in checkpoints.glob("*.ckpt")}
    assert max(steps, key=lambda name: steps[name]) == "stopped.ckpt", json.dumps(steps)

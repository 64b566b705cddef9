"""A training that is told to stop keeps what it has learned: a checkpoint at the next step, then the end.

The handlers of signals only take notes here; whatever may not happen in the middle of a step (saving, talking to other
ranks, raising) waits for the place between two batches.
"""

import functools
import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any, Union

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_dropout.callbacks.any_callback import AnyCallback
from lightning_dropout.callbacks.rank_agreement import RankAgreement
from lightning_dropout.callbacks.spared_workers import release_workers, spare_workers

__all__ = ["GracefulStop"]

_REQUEUE = getattr(signal, "SIGUSR1", signal.SIGTERM)  # what SLURM sends unless its Lightning environment says other
_ECHO = 1.0  # seconds; launchers pass on a signal that the whole process group has already got
_SCONTROL_TIMEOUT = 60.0  # seconds
_JOB = re.compile(r"\d+(_\d+)?")


class GracefulStop(AnyCallback):
    """Answer SIGTERM, Ctrl-C and SLURM's SIGUSR1 with a checkpoint from which the training goes on bit by bit.

    Training: the signal is only noted. Behind the batch in which the optimizer steps next all ranks stop together
    (whichever of them was told to), save ``stopped.ckpt`` beside the other checkpoints and end with 128 + the number
    of the signal: 143 after SIGTERM, 130 after Ctrl-C, 138 after SIGUSR1. Under SLURM, SIGUSR1 also requeues the job;
    its code says that the work is not done, so that no job that waits for this one starts if the requeue fails. Ranks
    that Lightning itself started leave 0: any other code lets it kill the first one.

    A validation is cut, since it may take longer than the time that is left, and done anew when the training goes on.
    It is waited for where cutting would change something: in the middle of an accumulation, while another callback has
    put other weights into the model, when the training ends behind it, where nobody knows how many batches it has, and
    where it is due by the clock. The end of an epoch is waited for too.

    The same signal again, a second or more later, ends the process at once. In test, validate and predict SIGTERM ends
    the process with 143 and SIGUSR1 requeues the job, without a checkpoint; Ctrl-C stays what it is.

    Handlers that were there before (Lightning's own for SLURM among them) are not called in the meantime: two owners of
    one signal act twice. They are given back afterwards. Lightning does not store the running means of metrics
    logged with ``on_epoch=True``: in an epoch that was interrupted they cover the batches after the stop.

    Args:
        resume_command: What goes on with this run, said at the end; None: the call of ``Trainer.fit``.
        dirpath: Where ``stopped.ckpt`` goes; None: where the first checkpoint callback saves, or else the trainer's
            root.

    Example:
        >>> GracefulStop(resume_command="python scripts/train.py model=vit resume=auto").resume_command
        'python scripts/train.py model=vit resume=auto'
    """

    def __init__(
        self,
        resume_command: Union[str, None] = None,  # noqa: UP007  (jsonargparse reads it)
        dirpath: Union[str, None] = None,  # noqa: UP007
    ) -> None:
        super().__init__()
        self.resume_command = resume_command
        self.dirpath = dirpath
        self._requeue_signal: int | None = None  # the one that requeues the job, where there is one
        self._signals: tuple[int, ...] = ()  # in rising order of what wins if ranks get different ones
        self._received: dict[int, float] = {}  # when each signal came first, in seconds; in order
        self._handler: functools.partial[None] | None = None
        self._borrowed: dict[int, Any] = {}
        self._loop: Any = None
        self._agreement: RankAgreement | None = None
        self._step = -1  # optimizer steps before this batch; -1: none has begun since the last checkpoint
        self._validated = False  # behind this batch
        self._cuts_left = 0  # batches of this validation at which all ranks may agree to cut it
        self._weights: list[Tensor] | None = None  # their norms before the validation
        self._ending = False

    # --- when -------------------------------------------------------------------------------------------------------

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._received, self._ending = {}, False
        environment = trainer._accelerator_connector.cluster_environment
        self._requeue_signal = None
        if getattr(environment, "auto_requeue", False):
            self._requeue_signal = environment.requeue_signal
        self._signals = tuple(dict.fromkeys((signal.SIGINT, signal.SIGTERM, self._requeue_signal or _REQUEUE)))
        spare_workers(self, self._signals)

    def on_sanity_check_start(self, trainer: Any, pl_module: Any) -> None:
        self._take_over(self._signals, functools.partial(self._note, trainer))  # Lightning has set its own just before

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._take_over(self._signals, functools.partial(self._note, trainer))
        self._agreement = RankAgreement()
        self._step, self._validated = -1, False
        # No hook of Lightning's runs where a step is whole. In `on_train_batch_end` the batch does not count as done
        # (2.4 trains it again), callbacks and the module still have to run, and its metrics are not logged; in
        # `on_train_batch_start` the loader has handed out another batch.
        loop = self._loop = trainer.fit_loop.epoch_loop
        on_advance_end = loop.on_advance_end

        def on_advance_end_and_stop(data_fetcher: Any) -> None:
            self._weights = _norms(pl_module) if loop._should_check_val_fx(data_fetcher) else None
            on_advance_end(data_fetcher)
            self._between_batches(trainer, pl_module)

        loop.on_advance_end = on_advance_end_and_stop

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._step, self._validated = trainer.global_step, False

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.state.fn != "fit":
            self._leave_on_signals(trainer)
        elif self._agreement is not None:  # not a sanity check
            self._validated = True
            loop = trainer.fit_loop.epoch_loop.val_loop
            batches = (sum if loop._is_sequential else min)(trainer.num_val_batches)
            self._cuts_left = self._agreement.smallest(batches if isinstance(batches, int) else 0)
            self._agreement.hurry()

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if trainer.state.fn == "fit" and self._cuts_left > 0:
            self._cuts_left -= 1
            asked = self._asked()
            if asked and self._may_cut(trainer, pl_module):
                # As if killed in the first batch: Lightning then validates from the beginning, and only then goes on.
                progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
                progress.reset()
                progress.increment_ready()
                progress.increment_started()
                self._stop(trainer, asked)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        assert self._agreement is not None  # noqa: S101 - made in on_train_start
        asked = self._agreement.largest(max(self._asked(), self._number()))
        if asked:
            self._stop(trainer, asked)
        self._give_back()

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        self._leave_on_signals(trainer)

    def on_predict_start(self, trainer: Any, pl_module: Any) -> None:
        self._leave_on_signals(trainer)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._give_back()
        release_workers(self)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._give_back()
        release_workers(self)

    def _between_batches(self, trainer: Any, pl_module: Any) -> None:
        if self._step >= 0 or self._validated:  # else Lightning only replays the end of an epoch
            # Without this it leaves the plateau scheduler out at the end of an epoch that it has resumed.
            trainer.fit_loop._restarting = False
        if self._validated and self._agreement is not None:
            self._agreement.hurry()
        asked = self._asked()
        # Behind the last batch of an epoch no release resumes exactly, behind a validation some repeat it.
        if asked and not self._validated and not self._loop._is_training_done and self._is_whole(trainer, pl_module):
            self._stop(trainer, asked)

    def _may_cut(self, trainer: Any, pl_module: Any) -> bool:
        norms = _norms(pl_module)
        return (
            self._is_whole(trainer, pl_module)
            and not 0 <= trainer.max_steps <= trainer.global_step
            and getattr(trainer, "_val_check_time_interval", None) is None
            and self._weights is not None
            and all(map(torch.equal, norms, self._weights))
        )

    def _is_whole(self, trainer: Any, pl_module: Any) -> bool:
        """Whether no gradients wait for a step, and the training is not about to end anyway."""
        ends_early = trainer.should_stop and trainer.fit_loop._can_stop_early
        counts = pl_module.automatic_optimization or trainer.global_step > 0  # else steps pass Lightning by
        return not ends_early and (trainer.global_step > self._step or not counts)

    # --- signals ----------------------------------------------------------------------------------------------------

    def _take_over(self, signals: tuple[int, ...], handler: "functools.partial[None]") -> None:
        self._give_back()
        if threading.current_thread() is threading.main_thread():
            self._handler = handler
            for signum in signals:
                before = signal.getsignal(signum)
                if before is not None:  # else it was not set from Python, and could not be given back
                    self._borrowed[signum] = before
                    signal.signal(signum, handler)

    def _give_back(self) -> None:
        if self._loop is not None:
            vars(self._loop).pop("on_advance_end", None)
        self._loop = self._agreement = self._weights = None
        if self._ending:
            return  # SLURM follows a requeue up with SIGTERM; Lightning itself gives back when everything is closed
        for signum, before in self._borrowed.items():
            if signal.getsignal(signum) is self._handler:  # Lightning's teardown may have been there first
                signal.signal(signum, before)
        self._borrowed, self._handler = {}, None

    def _note(self, trainer: Any, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        is_second = now - self._received.setdefault(signum, now) > _ECHO
        if is_second and signum == signal.SIGINT:
            raise KeyboardInterrupt
        if is_second and signum == signal.SIGTERM:
            if trainer.strategy.launcher is not None:
                trainer.strategy.launcher.kill(signal.SIGKILL)
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)

    def _number(self) -> int:
        """Return 1 + the place in ``_signals`` of what this rank received first, 0 for nothing."""
        return next((1 + self._signals.index(signum) for signum in self._received), 0)

    def _asked(self) -> int:
        """Return the number of the signal that all ranks know of; they call this at the same places."""
        assert self._agreement is not None  # noqa: S101 - made in on_train_start
        return self._agreement.soon(self._number())

    def _leave_on_signals(self, trainer: Any) -> None:
        signals = tuple(signum for signum in self._signals if signum != signal.SIGINT)
        self._take_over(signals, functools.partial(self._leave, trainer))

    def _leave(self, trainer: Any, signum: int, frame: FrameType | None) -> None:
        launcher = trainer.strategy.launcher
        if launcher is not None:
            launcher.kill(signum)
        if signum == self._requeue_signal and trainer.is_global_zero:
            _requeue()
        raise SystemExit(128 + signum)

    # --- the end ----------------------------------------------------------------------------------------------------

    def _stop(self, trainer: Any, asked: int) -> None:
        self._ending = True
        signum = self._signals[asked - 1]
        folder = self.dirpath or getattr(trainer.checkpoint_callback, "dirpath", None) or trainer.default_root_dir
        path = Path(folder) / "stopped.ckpt"
        trainer.save_checkpoint(path, weights_only=False)
        command = self.resume_command or f'Trainer.fit(..., ckpt_path="{path}")'
        name = signal.Signals(signum).name
        rank_zero_info(f"Stopped by {name} after step {trainer.global_step}: {path}; to go on: {command}")
        if signum == self._requeue_signal and trainer.is_global_zero:
            _requeue()
        raise SystemExit(0 if _is_child_of_lightning(trainer) else 128 + signum)


def _norms(module: torch.nn.Module) -> list[Tensor]:
    with torch.no_grad():  # quantised weights, which are whole numbers, have no norm, and nobody swaps them
        return [_local(each).norm() for each in module.parameters() if each.is_floating_point() or each.is_complex()]


def _local(parameter: Any) -> Tensor:
    shard: Tensor = parameter.to_local() if hasattr(parameter, "to_local") else parameter  # FSDP2
    return shard


def _is_child_of_lightning(trainer: Any) -> bool:
    environment = type(trainer._accelerator_connector.cluster_environment).__name__
    return environment == "LightningEnvironment" and trainer.local_rank > 0


def _requeue() -> None:
    """Ask SLURM to run this job again; if it does not, that is one line, since the checkpoint is there anyway."""
    job = os.environ.get("SLURM_JOB_ID", "")
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ.get('SLURM_ARRAY_TASK_ID')}"
    problem = _scontrol("requeue", job) if _JOB.fullmatch(job) else f"{job!r} is no job"
    if problem:
        rank_zero_info(f"SLURM was not told to run this job again ({problem}); submit it again yourself.")
    else:
        rank_zero_info(f"SLURM runs job {job} again.")


def _scontrol(*arguments: str) -> str:
    """Run scontrol and return what went wrong, in one line; nothing if nothing did."""
    try:
        done = subprocess.run(  # noqa: S603  (no shell; the only argument from outside is digits)
            ["scontrol", *arguments],  # noqa: S607  (SLURM's own, from PATH)
            check=False,
            timeout=_SCONTROL_TIMEOUT,
            capture_output=True,
            text=True,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return f"exit code {done.returncode}: {done.stderr.strip()}" if done.returncode else ""

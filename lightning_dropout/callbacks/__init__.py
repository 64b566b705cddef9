"""Lightning callbacks: schedule rates, sample at test time, decorrelate ranks; thin shells over the rooms above."""

from lightning_dropout.callbacks.finite_loss import FiniteLoss
from lightning_dropout.callbacks.gathered_predictions import gather_predictions
from lightning_dropout.callbacks.graceful_stop import GracefulStop
from lightning_dropout.callbacks.mc_dropout import MCDropout
from lightning_dropout.callbacks.rank_randomness import RankRandomness
from lightning_dropout.callbacks.resume_check import ResumeCheck
from lightning_dropout.callbacks.run_report import RunReport
from lightning_dropout.callbacks.scheduler import DropoutScheduler, StochasticDepthScheduler
from lightning_dropout.callbacks.step_randomness import StepRandomness
from lightning_dropout.callbacks.trained_rates import restore_rates

__all__ = [
    "DropoutScheduler",
    "FiniteLoss",
    "GracefulStop",
    "MCDropout",
    "RankRandomness",
    "ResumeCheck",
    "RunReport",
    "StepRandomness",
    "StochasticDepthScheduler",
    "gather_predictions",
    "restore_rates",
]

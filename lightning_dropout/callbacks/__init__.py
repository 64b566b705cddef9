"""Lightning callbacks: schedule rates, sample at test time, decorrelate ranks; thin shells over the rooms above."""

from lightning_dropout.callbacks.mc_dropout import MCDropout
from lightning_dropout.callbacks.rank_randomness import RankRandomness
from lightning_dropout.callbacks.run_report import RunReport
from lightning_dropout.callbacks.scheduler import DropoutScheduler, StochasticDepthScheduler
from lightning_dropout.callbacks.trained_rates import restore_rates

__all__ = ["DropoutScheduler", "MCDropout", "RankRandomness", "RunReport", "StochasticDepthScheduler", "restore_rates"]

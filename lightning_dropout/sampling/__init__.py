"""T stochastic passes of any model, in plain torch: :func:`mc_sample` and what it is made of."""

from lightning_dropout.sampling.prediction import MCPrediction, Task
from lightning_dropout.sampling.sample import DEFAULT_KINDS, mc_sample

__all__ = ["DEFAULT_KINDS", "MCPrediction", "Task", "mc_sample"]

"""T stochastic passes of any model, in plain torch: :func:`mc_sample` and what it is made of."""

from lightning_dropout.sampling.masks import Masks
from lightning_dropout.sampling.prediction import MCPrediction, Task
from lightning_dropout.sampling.reuse import Reuse
from lightning_dropout.sampling.sample import DEFAULT_KINDS, mc_sample

__all__ = ["DEFAULT_KINDS", "MCPrediction", "Masks", "Reuse", "Task", "mc_sample"]

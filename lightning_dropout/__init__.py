"""Dropout for PyTorch Lightning: every place where a model drops, found, scheduled and turned into uncertainty.

The public names are imported when they are first used, so that ``import lightning_dropout`` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_dropout.callbacks import DropoutScheduler as DropoutScheduler
    from lightning_dropout.callbacks import FiniteLoss as FiniteLoss
    from lightning_dropout.callbacks import GracefulStop as GracefulStop
    from lightning_dropout.callbacks import MCDropout as MCDropout
    from lightning_dropout.callbacks import RankRandomness as RankRandomness
    from lightning_dropout.callbacks import ResumeCheck as ResumeCheck
    from lightning_dropout.callbacks import RunReport as RunReport
    from lightning_dropout.callbacks import StepRandomness as StepRandomness
    from lightning_dropout.callbacks import StochasticDepthScheduler as StochasticDepthScheduler
    from lightning_dropout.callbacks import restore_rates as restore_rates
    from lightning_dropout.conversion import convert_stochastic_depth as convert_stochastic_depth
    from lightning_dropout.conversion import insert_drop_path as insert_drop_path
    from lightning_dropout.sampling import MCPrediction as MCPrediction
    from lightning_dropout.sampling import mc_sample as mc_sample
    from lightning_dropout.schedules import Constant as Constant
    from lightning_dropout.schedules import Cosine as Cosine
    from lightning_dropout.schedules import Curriculum as Curriculum
    from lightning_dropout.schedules import Cyclic as Cyclic
    from lightning_dropout.schedules import Early as Early
    from lightning_dropout.schedules import Exponential as Exponential
    from lightning_dropout.schedules import Late as Late
    from lightning_dropout.schedules import Linear as Linear
    from lightning_dropout.schedules import Piecewise as Piecewise
    from lightning_dropout.schedules import Schedule as Schedule
    from lightning_dropout.sites import Audit as Audit
    from lightning_dropout.sites import audit as audit
    from lightning_dropout.sites import find_sites as find_sites
    from lightning_dropout.sites import register_adapter as register_adapter

_HOMES = {
    "DropoutScheduler": "callbacks",
    "FiniteLoss": "callbacks",
    "GracefulStop": "callbacks",
    "MCDropout": "callbacks",
    "RankRandomness": "callbacks",
    "ResumeCheck": "callbacks",
    "RunReport": "callbacks",
    "StepRandomness": "callbacks",
    "StochasticDepthScheduler": "callbacks",
    "restore_rates": "callbacks",
    "convert_stochastic_depth": "conversion",
    "insert_drop_path": "conversion",
    "MCPrediction": "sampling",
    "mc_sample": "sampling",
    "Constant": "schedules",
    "Cosine": "schedules",
    "Curriculum": "schedules",
    "Cyclic": "schedules",
    "Early": "schedules",
    "Exponential": "schedules",
    "Late": "schedules",
    "Linear": "schedules",
    "Piecewise": "schedules",
    "Schedule": "schedules",
    "Audit": "sites",
    "audit": "sites",
    "find_sites": "sites",
    "register_adapter": "sites",
}
_ROOMS = (
    "callbacks",
    "checkpoints",
    "configuration",
    "conversion",
    "data",
    "loggers",
    "metrics",
    "models",
    "modules",
    "nn",
    "reports",
    "sampling",
    "schedules",
    "sites",
)

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"lightning_dropout.{_HOMES[name]}"), name)
    if name in _ROOMS:
        return import_module(f"lightning_dropout.{name}")
    raise AttributeError(f"module 'lightning_dropout' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS])

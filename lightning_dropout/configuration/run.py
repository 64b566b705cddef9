"""The config of a run, as ``conf/`` lays it out: what code adds to it, said once for every script.

Knows the names of the sections, and nothing of how a script uses what it builds.
"""

from omegaconf import DictConfig

from lightning_dropout.configuration.fill import fill_missing
from lightning_dropout.configuration.targets import check_targets

__all__ = ["check_run", "fill_from_data"]

_FROM_DATA = ("input_shape", "num_classes", "num_outputs")  # keys that are ??? in conf/ until the data are known
_SUPPLIED = {"module": ["net", *_FROM_DATA], "model": _FROM_DATA, "trainer": ["callbacks", "logger"]}


def check_run(cfg: DictConfig) -> None:
    """Check every target of a run's config, knowing which arguments the scripts pass themselves.

    Args:
        cfg: The config of a run.

    Raises:
        ConfigError: As ``check_targets``.
    """
    check_targets(cfg, _SUPPLIED)


def fill_from_data(cfg: DictConfig, data: object) -> None:
    """Fill what ``model`` and ``module`` leave open from what the data know, in place.

    Args:
        cfg: The config of a run.
        data: The data module.

    Raises:
        ConfigError: As ``fill_missing``.
    """
    fill_missing(cfg, ("model", "module"), _FROM_DATA, data)

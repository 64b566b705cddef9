"""The config of a run, as ``conf/`` lays it out: what code adds to it, said once for every script.

Knows the names of the sections, and nothing of how a script uses what it builds.
"""

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from lightning_dropout.configuration.errors import ConfigError
from lightning_dropout.configuration.fill import fill_missing
from lightning_dropout.configuration.paths import check_inside
from lightning_dropout.configuration.targets import check_targets

__all__ = ["check_run", "fill_from_data"]

_FROM_DATA = ("input_shape", "num_classes", "num_outputs")  # keys that are ??? in conf/ until the data are known
_SUPPLIED = {"module": ["net", *_FROM_DATA], "model": _FROM_DATA, "trainer": ["callbacks", "logger"]}


def check_run(cfg: DictConfig) -> None:
    """Check every target of a run's config, knowing which arguments the scripts pass themselves.

    Everything that is written must lie in ``output_dir``, and that in the folder which Hydra has made for the job.

    Args:
        cfg: The config of a run.

    Raises:
        ConfigError: As ``check_targets`` and ``check_inside``.
    """
    for key in ("data", "model", "module", "trainer"):
        if key in cfg and cfg[key] is None:
            raise ConfigError("Expected one of the options of this group, but got null.", key, None)
    if "://" in str(cfg.get("ckpt_path")):  # torch loads what stands at an address with all the code in it
        raise ConfigError("Expected a file on this machine; download it first.", "ckpt_path", cfg.ckpt_path)
    folder = None
    # It is a reference to a job of Hydra; where there is none, as in `lightning-dropout plot`, no run is written.
    if OmegaConf.select(cfg, "output_dir", throw_on_resolution_failure=False) is not None:
        folder = str(cfg.output_dir)
        if HydraConfig.initialized():
            check_inside(folder, HydraConfig.get().runtime.output_dir, "output_dir")
    check_targets(cfg, _SUPPLIED, folder)


def fill_from_data(cfg: DictConfig, data: object) -> None:
    """Fill what ``model`` and ``module`` leave open from what the data know, in place.

    Args:
        cfg: The config of a run.
        data: The data module.

    Raises:
        ConfigError: As ``fill_missing``.
    """
    fill_missing(cfg, ("model", "module"), _FROM_DATA, data)

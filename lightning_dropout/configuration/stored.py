"""The config that a checkpoint was trained with, found beside it."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from lightning_dropout.configuration.errors import ConfigError

__all__ = ["config_of_checkpoint"]


def config_of_checkpoint(ckpt_path: str | Path) -> DictConfig:
    """Return the config of the run whose folder holds ``checkpoints/<this>.ckpt``; keys it lacks cannot be set.

    Args:
        ckpt_path: The checkpoint, inside the folder of its run.

    Raises:
        ConfigError: If there is no such file, or no ``.hydra/config.yaml`` in the run's folder.
    """
    if not isinstance(ckpt_path, str | Path):
        raise ConfigError(
            "Expected a path; pass ckpt_path=outputs/<run>/checkpoints/best.ckpt.", "ckpt_path", ckpt_path
        )
    checkpoint = Path(ckpt_path).absolute()
    stored = checkpoint.parent.parent / ".hydra" / "config.yaml"
    for path in (checkpoint, stored):
        if not path.is_file():
            raise ConfigError(
                f"Expected a checkpoint in the folder of its run, but there is no {path}; pass "
                "ckpt_path=outputs/<run>/checkpoints/best.ckpt.",
                "ckpt_path",
                str(ckpt_path),
            )
    config = OmegaConf.load(stored)
    if not isinstance(config, DictConfig) or not config:
        raise ConfigError(
            f"Expected {stored} to hold the config of a run, but got {config}.", "ckpt_path", str(ckpt_path)
        )
    OmegaConf.set_struct(config, True)
    return config

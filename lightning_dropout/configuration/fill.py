"""What the data know and a config leaves open: input shapes and numbers of classes."""

from collections.abc import Iterable

from omegaconf import DictConfig, OmegaConf, open_dict

from lightning_dropout.configuration.errors import ConfigError

__all__ = ["fill_missing"]


def fill_missing(cfg: DictConfig, sections: Iterable[str], names: Iterable[str], source: object) -> None:
    """Set those keys ``names`` of the ``sections`` that are ``???`` from the attributes of ``source``, in place.

    What the user has written stands. ``num_outputs`` of a classifier is the number of classes.

    Args:
        cfg: The whole config.
        sections: Keys of the sections to fill.
        names: Names of the keys to fill.
        source: The data module.

    Raises:
        ConfigError: If the data do not know a value that is left open.

    Example:
        >>> cfg = OmegaConf.create({"model": {"num_classes": "???", "p": 0.1}})
        >>> fill_missing(cfg, ["model"], ["num_classes"], type("Data", (), {"num_classes": 10}))
        >>> cfg.model.num_classes
        10
    """
    for section in sections:
        node = cfg.get(section)
        for name in names if isinstance(node, DictConfig) else ():
            if OmegaConf.is_missing(node, name):  # `name in node` is false for ???
                value = getattr(source, name, None)
                if value is None and name == "num_outputs":
                    value = getattr(source, "num_classes", None)
                if value is None:
                    raise ConfigError(
                        f"Expected {type(source).__name__} to know `{name}`, but it does not; pass "
                        f"{section}.{name}=..., or data that fit the module.",
                        f"{section}.{name}",
                    )
                with open_dict(node):
                    node[name] = list(value) if isinstance(value, tuple) else value

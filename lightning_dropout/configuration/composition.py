"""What Hydra itself would do with a composed config before any of our code runs: checked before it does.

Hydra writes the whole config into the run folder, makes its own callbacks and loggers, and sets environment variables.
Nothing here composes or changes a config. What the targets of a run do is the business of ``targets``.
"""

import re
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import DictConfig, OmegaConf

from lightning_dropout.configuration.errors import ConfigError, join, listed
from lightning_dropout.configuration.redaction import REDACTED, first_secret
from lightning_dropout.configuration.targets import check_targets

__all__ = ["check_composed", "composition_checked"]

_LOG_CLASSES = frozenset(
    {"logging.StreamHandler", "logging.FileHandler", "logging.Formatter", "colorlog.ColoredFormatter"}
)
_LOG_REFERENCES = frozenset({"ext://sys.stdout", "ext://sys.stderr"})
_LOG_FOLDER = "${hydra.runtime.output_dir}/"
# Others decide which code is loaded (LD_PRELOAD, PYTHONPATH) or where data go (WANDB_BASE_URL, HTTPS_PROXY).
_VARIABLES = frozenset(
    (
        *("CUDA_VISIBLE_DEVICES", "NCCL_DEBUG", "NCCL_SOCKET_IFNAME", "PYTORCH_CUDA_ALLOC_CONF"),
        *("MKL_NUM_THREADS", "OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM", "TZ", "WANDB_MODE"),
    )
)
_KNOWN_REFERENCE = re.compile(r"\$\{(hydra[.:]job\.\w+|now:[^/{}]*)\}")


@contextmanager
def composition_checked() -> Iterator[None]:
    """Check every config that Hydra composes, before Hydra acts on it or writes it.

    Raises:
        ConfigError: As ``check_composed``.
    """
    original = ConfigLoaderImpl.load_configuration

    def load(self: ConfigLoaderImpl, *args: Any, **kwargs: Any) -> DictConfig:
        config = original(self, *args, **kwargs)
        check_composed(config)
        return config

    ConfigLoaderImpl.load_configuration = load  # type: ignore[method-assign]
    try:
        yield
    finally:
        ConfigLoaderImpl.load_configuration = original  # type: ignore[method-assign]


def check_composed(cfg: DictConfig) -> None:
    """Refuse secrets that stand in the config, and a ``hydra`` node that would run code or write elsewhere.

    Args:
        cfg: What Hydra composed, with its ``hydra`` node if it has one.

    Raises:
        ConfigError: At the first wrong key.

    Example:
        >>> check_composed(OmegaConf.create({"hydra": {"callbacks": {"mine": {"_target_": "os.system"}}}}))
        Traceback (most recent call last):
        ...
        lightning_dropout.configuration.errors.ConfigError: hydra.callbacks.mine._target_=os.system: Not allowed in a...
    """
    plain = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(plain, dict)  # noqa: S101 - made from a DictConfig
    hydra = plain.get("hydra") or {}
    hydra.pop("overrides", None)  # the command line, looked through already, as is what it makes a name of
    (hydra.get("job") or {}).pop("override_dirname", None)
    if key := first_secret(plain):
        raise ConfigError(
            f"{key}={REDACTED}: Expected no secret in a config, since the run folder keeps it; set an environment "
            "variable instead (for W&B: WANDB_API_KEY, or `wandb login`), or refer to one, from a key that is named "
            "like a secret: 'my_token: ${oc.env:MY_TOKEN}'."
        )
    if hydra.get("callbacks"):
        check_targets(_mapping(cfg.hydra.callbacks, "hydra.callbacks"))
    for section in ("hydra_logging", "job_logging"):
        _check_logging(_mapping(hydra.get(section), f"hydra.{section}"), f"hydra.{section}")
    for variable in _mapping((hydra.get("job") or {}).get("env_set"), "hydra.job.env_set"):
        if variable not in _VARIABLES:
            raise ConfigError(
                f"Expected one of {listed(_VARIABLES)}, since others change which code runs or where data go; export "
                "it in the shell instead.",
                f"hydra.job.env_set.{variable}",
            )
    _check_below(hydra.get("output_subdir"), "hydra.output_subdir")
    _check_below((hydra.get("job") or {}).get("name"), "hydra.job.name")
    _check_below((hydra.get("sweep") or {}).get("subdir"), "hydra.sweep.subdir")


def _mapping(node: Any, key: str) -> Any:
    if isinstance(node, (Mapping, DictConfig, types.NoneType)):
        return node or {}
    raise ConfigError("Expected it written out, without a reference, since Hydra acts on it at once.", key, node)


def _check_below(value: object, key: str) -> None:
    text = _KNOWN_REFERENCE.sub("", "" if value is None or value == "???" else str(value))
    if "${" in text or PurePath(text).is_absolute() or ".." in PurePath(text).parts or not text.isprintable():
        raise ConfigError(
            "Expected a name below the run's folder; only hydra.run.dir=... and hydra.sweep.dir=... choose where a run "
            "writes.",
            key,
            value,
        )


def _check_logging(node: object, key: str) -> None:
    """Allow what Hydra's own options say; the schema of ``logging.config`` can name any callable."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            path = join(key, name)
            if name in ("class", "()") and value not in _LOG_CLASSES:
                raise ConfigError(f"Expected one of {listed(_LOG_CLASSES)}.", path, value)
            if name == "filename":
                if not str(value).startswith(_LOG_FOLDER):
                    raise ConfigError(f"Expected a file in the run's folder; write {_LOG_FOLDER}name.log.", path, value)
                _check_below(str(value).removeprefix(_LOG_FOLDER), path)
            else:
                _check_logging(value, path)
    elif isinstance(node, list):
        for index, value in enumerate(node):
            _check_logging(value, f"{key}[{index}]")
    elif isinstance(node, str) and ("${" in node or ("://" in node and node not in _LOG_REFERENCES)):
        raise ConfigError(f"Expected plain text, or one of {listed(_LOG_REFERENCES)}.", key, node)

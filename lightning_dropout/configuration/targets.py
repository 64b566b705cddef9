"""Check every ``_target_`` of a config before anything is built: allowed, importable, and its arguments fit.

Imports what the targets name, and calls nothing.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, InterpolationResolutionError, OmegaConfBaseException

from lightning_dropout.configuration.allowlist import load_target, refuse_arguments
from lightning_dropout.configuration.errors import ConfigError, join
from lightning_dropout.configuration.explain import diagnose
from lightning_dropout.configuration.paths import check_writes
from lightning_dropout.configuration.signatures import UNKNOWN, check_arguments, positional_names

__all__ = ["check_targets"]

_SPECIAL = frozenset({"_target_", "_partial_", "_args_", "_convert_", "_recursive_"})
_READING = frozenset({"data", "model", "module"})  # whose folders and files are read
_DEEPEST = 64  # nodes; a config that refers to itself has no bottom


def check_targets(
    cfg: DictConfig | Mapping[str, Any],
    supplied: Mapping[str, Collection[str]] | None = None,
    folder: str | None = None,
) -> None:
    """Find typos and forbidden targets anywhere in a config, in a second and before any data or model is made.

    Args:
        cfg: The config, or a part of it; interpolations may be unresolved.
        supplied: Names of arguments that the calling code can pass itself, for each key; they may be missing or
            ``???`` in the config: ``{"model": ["input_shape", "num_classes"]}``.
        folder: The output folder of the run, in which everything that the targets write must lie. None: unknown yet.

    Raises:
        ConfigError: At the first wrong node.

    Example:
        >>> check_targets({"model": {"_target_": "torch.nn.Dropout", "p": 0.5}})
        >>> check_targets({"model": {"_target_": "torch.nn.Dropout", "q": 0.5}})
        Traceback (most recent call last):
        ...
        lightning_dropout.configuration.errors.ConfigError: model.q=0.5: No such argument of Dropout; it accepts...
    """
    node = cfg if isinstance(cfg, DictConfig) else OmegaConf.create(dict(cfg), flags={"allow_objects": True})
    _check(node, str(node._get_full_key(None)), supplied or {}, folder, 0)


def _check(node: object, key: str, supplied: Mapping[str, Collection[str]], folder: str | None, depth: int) -> None:
    if depth > _DEEPEST:
        raise ConfigError("Refers to itself without end; remove one of the references ${...}.", key)
    if isinstance(node, (dict, list)):  # made by a resolver, e.g. ${oc.decode:...}
        node = OmegaConf.create(node, flags={"allow_objects": True})
    if isinstance(node, ListConfig) and not node._is_none() and not node._is_missing():
        for index in range(len(node)):
            path = f"{key}[{index}]"
            value = _value(node, index, path)
            if value == "???":
                raise ConfigError("Expected a value, but got none (it is ??? in the config); write one.", path)
            _check(value, path, supplied, folder, depth + 1)
    if not isinstance(node, DictConfig) or node._is_none() or node._is_missing():
        return
    values = {str(name): _value(node, name, join(key, name)) for name in node}
    for flag in ("_partial_", "_recursive_"):  # Hydra reads them in every node, with a target or not
        if not isinstance(values.get(flag, False), bool):
            raise ConfigError("Expected true or false.", join(key, flag), values[flag])
    if "_target_" in values:
        _check_node(values, key, supplied, folder)
    for name, value in values.items():
        _check(value, join(key, name), supplied, folder, depth + 1)


def _check_node(
    values: Mapping[str, object], key: str, supplied: Mapping[str, Collection[str]], folder: str | None
) -> None:
    if values["_target_"] is UNKNOWN:
        raise ConfigError("Expected a dotted path, but got a reference that cannot be resolved.", join(key, "_target_"))
    if values["_target_"] == "???":  # model=custom
        path = join(key, "_target_")
        raise ConfigError(f"Expected the dotted path of a class or function; pass {path}=my_package.Net.", path, "???")
    target = load_target(values["_target_"], join(key, "_target_"))
    partial = bool(values.get("_partial_", False))
    passed = supplied.get(key, ())
    arguments = {name: value for name, value in values.items() if name not in _SPECIAL}
    for name, value in arguments.items():
        if value == "???" and not partial and name not in passed:
            path = join(key, name)
            raise ConfigError(f"Expected a value, but got none; pass {path}=... (it is ??? in the config).", path)
    positional = values.get("_args_", ())
    if not isinstance(positional, (Sequence, ListConfig)) or isinstance(positional, str):
        raise ConfigError("Expected a list.", join(key, "_args_"), positional)
    by_position = dict(zip(positional_names(target, len(positional)), positional, strict=False))
    refuse_arguments(str(values["_target_"]), {**by_position, **arguments}, key)
    if folder is not None and key.partition(".")[0] not in _READING:
        check_writes({**by_position, **arguments}, key, folder)
    check_arguments(
        target,
        {name: _plain(value) for name, value in arguments.items() if value != "???"},
        key,
        positional=len(positional),
        supplied=passed,
        partial=partial,
    )


def _value(node: DictConfig | ListConfig, name: Any, key: str) -> object:
    """Read one value: ``"???"`` if it is missing, UNKNOWN if only a real run can resolve it."""
    if OmegaConf.is_missing(node, name):
        return "???"
    try:
        return node[name]
    except RecursionError:
        return UNKNOWN
    except OmegaConfBaseException as error:
        # ${hydra:...} outside of a Hydra run, a variable that is not set here: the value may yet come. A key will not.
        if isinstance(error, InterpolationResolutionError) and not isinstance(error, InterpolationKeyError):
            return UNKNOWN
        raise diagnose(error) or ConfigError(str(error), key) from error


def _plain(value: object) -> object:
    if isinstance(value, DictConfig) and (value._is_none() or "_target_" in value):
        return UNKNOWN
    return OmegaConf.to_container(value, resolve=False) if isinstance(value, (DictConfig, ListConfig)) else value

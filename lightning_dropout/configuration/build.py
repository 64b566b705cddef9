"""Make the objects that a config describes, with the allowlist enforced again at the place where it counts.

What is built is exactly what was checked: references are resolved once, into plain containers, before the check.
"""

import functools
from typing import Any

import hydra.utils
from omegaconf import DictConfig, OmegaConf

from lightning_dropout.configuration.allowlist import load_target
from lightning_dropout.configuration.errors import ConfigError, join
from lightning_dropout.configuration.explain import diagnose
from lightning_dropout.configuration.signatures import positional_names
from lightning_dropout.configuration.targets import check_targets

__all__ = ["build", "build_each"]


def build(cfg: DictConfig, key: str, *args: Any, **kwargs: Any) -> Any:
    """Build the object that the node at ``key`` describes, and the ones nested in it.

    The objects receive plain lists and dicts, never OmegaConf containers, so their hyper-parameters can be stored in
    a checkpoint that loads with ``weights_only=True``.

    Args:
        cfg: The whole config, so that references between its parts resolve.
        key: Path of the node, e.g. ``"model"`` or ``"module.optimizer"``.
        args: Passed on by position.
        kwargs: Passed on by name as they are (Hydra would take dataclasses among them for configs); they win over the
            config.

    Returns:
        The object; the callable if the node says ``_partial_: true``; None if the node is null.

    Raises:
        ConfigError: If there is no such node, its target is not allowed, or an argument is refused. Exceptions that
            are bugs come through as they are.

    Example:
        >>> cfg = OmegaConf.create({"model": {"_target_": "torch.nn.Dropout", "p": "${rate}"}, "rate": 1.5})
        >>> build(cfg, "model")
        Traceback (most recent call last):
        ...
        lightning_dropout.configuration.errors.ConfigError: model.p=1.5: dropout probability has to be between 0 and...
    """
    try:
        return _build(cfg, key, args, kwargs)
    except ConfigError:
        raise
    except Exception as error:
        known = diagnose(error)
        if known is not None:
            raise known from error
        raise


def build_each(cfg: DictConfig, key: str) -> list[Any]:
    """Build every child of the node at ``key``, e.g. all callbacks; null or empty children are skipped.

    Args:
        cfg: The whole config.
        key: Path of a node that holds named nodes, or of a single one with a ``_target_``; nothing is built if it is
            null or missing.

    Raises:
        ConfigError: As ``build``.

    Example:
        >>> cfg = OmegaConf.create({"layers": {"a": {"_target_": "torch.nn.Identity"}, "b": None}})
        >>> build_each(cfg, "layers")
        [Identity()]
    """
    node = OmegaConf.select(cfg, key)
    if node is None:
        return []
    if not isinstance(node, DictConfig):
        raise ConfigError(
            f"Expected named nodes or null, but got {type(node).__name__}; write {key}=null for none.", key, node
        )
    if "_target_" in node:
        return [build(cfg, key)]
    # An option file without content, as callbacks/dropout/none.yaml, leaves an empty node.
    keys = [join(key, name) for name in node if OmegaConf.is_missing(node, name) or node[name] not in (None, {})]
    return [build(cfg, child) for child in keys]


def _build(cfg: DictConfig, key: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    parent_key, _, name = key.rpartition(".")
    parent = OmegaConf.select(cfg, parent_key) if parent_key else cfg
    if not isinstance(parent, DictConfig) or name not in parent:
        raise ConfigError(
            f"Expected a node with a `_target_`, but the config has none; choose one with {key}=....", key
        )
    node = OmegaConf.select(cfg, key, throw_on_missing=True)
    if node is None:
        return None
    if not isinstance(node, DictConfig) or "_target_" not in node:
        raise ConfigError(
            "Expected a node with a `_target_`; choose one of the config group, or write null.", key, node
        )
    try:
        plain = OmegaConf.to_container(node, resolve=True)
    except RecursionError as error:
        raise ConfigError("Refers to itself without end; remove one of the references ${...}.", key) from error
    assert isinstance(plain, dict)  # noqa: S101 - made from a DictConfig
    _refuse_references(plain, key)
    names = positional_names(load_target(plain["_target_"], f"{key}._target_"), len(args))
    # Under its own path, so that Hydra's messages name the full key.
    root = OmegaConf.create({}, flags={"allow_objects": True})
    OmegaConf.update(root, key, plain, force_add=True)
    node = OmegaConf.select(root, key)
    check_targets(node, {key: [*names, *kwargs]})
    if node.get("_partial_", False):
        partial = hydra.utils.instantiate(node, _convert_="all")
        return functools.partial(partial, *args, **kwargs) if args or kwargs else partial
    return hydra.utils.instantiate(node, _convert_="all", _partial_=True)(*args, **kwargs)


def _refuse_references(value: object, key: str) -> None:
    """Refuse text that Hydra would resolve a second time: it could turn into a target that nobody checked."""
    if isinstance(value, dict):
        for name, item in value.items():
            _refuse_references(item, f"{key}.{name}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _refuse_references(item, f"{key}[{index}]")
    elif isinstance(value, str) and "${" in value:
        raise ConfigError("Expected no `${` after references were resolved; remove it.", key, value)

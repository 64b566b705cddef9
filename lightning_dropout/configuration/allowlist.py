"""Which Python objects a config may name: kept in Python, never in config, so that no YAML can widen it.

A config is data from somewhere (a colleague, a hub, a sweep server). Hydra's own block list stays in force behind this
list; it is not enough alone, since it knows only what is known to be harmful.
"""

import importlib
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from lightning_dropout.configuration.errors import ConfigError, closest, join, one_line

__all__ = ["ALLOWED_TARGETS", "allow_targets", "allowed_targets", "load_target", "refuse_arguments"]

# "package." allows what is defined below it, a name without a final dot exactly this object.
ALLOWED_TARGETS: tuple[str, ...] = (
    "lightning_dropout.",
    "lightning.Trainer",
    "lightning.pytorch.Trainer",
    "lightning.pytorch.callbacks.",
    # Not the loggers that send to a server of the config's choice, nor Lightning's own for W&B: ours is `wandb_logger`.
    "lightning.pytorch.loggers.CSVLogger",
    "lightning.pytorch.loggers.TensorBoardLogger",
    "lightning.pytorch.plugins.",
    "lightning.pytorch.profilers.",
    "lightning.pytorch.strategies.",
    "lightning.fabric.plugins.",  # where the cluster environments and IO plugins of lightning.pytorch are defined
    "datetime.timedelta",  # of a strategy's timeout
    "torch.nn.",
    "torch.optim.",
    "torchmetrics.",
    # Both may download, from registered addresses only: timm as plain tensors (for the rest see _REFUSED_ARGUMENTS),
    # torchvision files with a known hash. Not the rest of timm: its loaders and hub functions take any address. Nothing
    # of transformers: pipelines and configs run code from a hub; `model=transformers` fetches nothing.
    "timm.create_model",
    "torchvision.models.",
    "torchvision.transforms.v2.",
)
_REFUSED_TARGETS: tuple[str, ...] = (
    # Rooms of ours that build no part of a run; the first one would let a config widen this very list.
    "lightning_dropout.configuration.",
    "lightning_dropout.cli.",
    "lightning_dropout.conf.",
    "lightning_dropout.loggers.FailSafeWandbLogger",  # takes any setting of W&B, unchecked
    "lightning_dropout.loggers.fail_safe.",
    "lightning_dropout.loggers.save_workspace",
    "lightning_dropout.loggers.workspace.",
    "lightning_dropout.reports.",
    "lightning_dropout.sites.",
    "lightning_dropout.zoo.",
    "torch.nn.modules.module.register_",  # hooks into every module of the process
    "torchvision.models.feature_extraction.",  # writes and runs code for a graph
    *(
        "torchvision.models._api.Weights",
        "torchvision.models._api.register_",
        "torchvision.models._utils.",
    ),  # any address
)
# With an address of its choice and a folder of its choice, a config could put any file anywhere.
_FETCHING = frozenset({"cache_dir", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay"})
_REFUSED_ARGUMENTS = {
    "timm.create_model": _FETCHING,
    "lightning_dropout.models.timm_model": _FETCHING,
    "lightning_dropout.loggers.wandb_logger": frozenset({"settings"}),  # `base_url` would get the API key
}
_REFUSED_EVERYWHERE = frozenset(
    {
        *("baseline_path", "baseline_url", "feature_extractor_weights_path", "model_name_or_path"),  # torchmetrics
        "model_registry",  # of a Trainer: uploads checkpoints
    }
)
_added: list[str] = []


def allow_targets(*prefixes: str) -> None:
    """Let configs name classes and functions of your own packages.

    Copy ``scripts/train.py`` into your project and call this as the first line of its ``main`` (there it also reaches
    jobs that a launcher starts in other processes), or at the module level before ``main`` runs. There is no config key
    for it on purpose: whoever can write the config could otherwise allow himself ``os.``.

    Args:
        prefixes: ``"my_project."`` allows what is defined in that package, ``"timm.create_model"`` exactly this object.

    Raises:
        ValueError: If a prefix is no dotted name of this kind.

    Example:
        >>> allow_targets("my_project.", "my_other_project.models.Net")
    """
    for prefix in prefixes:
        parts = prefix.removesuffix(".").split(".") if isinstance(prefix, str) else []
        if not parts or not all(part.isidentifier() for part in parts) or (len(parts) == 1 and prefix[-1] != "."):
            raise ValueError(
                f"Expected `prefixes` to be packages with a final dot or dotted names of objects, but got {prefix!r}; "
                'write "my_project." or "my_project.models.Net".'
            )
        if prefix not in _added:
            _added.append(prefix)


def allowed_targets() -> tuple[str, ...]:
    """Return everything that configs may name now: ``ALLOWED_TARGETS`` and what ``allow_targets`` added."""
    return (*ALLOWED_TARGETS, *_added)


def load_target(name: object, key: str = "_target_") -> Callable[..., object]:
    """Import the class or function that a ``_target_`` names, if configs may name it.

    The name is checked before anything is imported. Then the object found there is checked: it must be a class or a
    plain function, an attribute of a module, and be *defined* under an allowed prefix itself; so a module that another
    one imports (``lightning_dropout.nn.dropout.math``) is no way out, nor is a method like ``load_from_checkpoint``.

    Args:
        name: The dotted path.
        key: Where it stands in the config.

    Raises:
        ConfigError: If it is not allowed, cannot be imported, or does not exist; then the closest name is given.

    Example:
        >>> load_target("torch.nn.Dropout").__name__
        'Dropout'
        >>> load_target("os.system", key="model._target_")
        Traceback (most recent call last):
        ...
        lightning_dropout.configuration.errors.ConfigError: model._target_=os.system: Not allowed in a config...
    """
    if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")) or "." not in name:
        raise ConfigError("Expected the dotted path of a class or function, as in torch.nn.Dropout.", key, name)
    if not _is_allowed(name) or any(part.startswith("_") for part in name.split(".")):
        raise _refusal(key, name)
    found = _locate(name, key)
    if not isinstance(found, (type, types.FunctionType)):
        raise ConfigError(f"Expected a class or a plain function, but got {type(found).__name__}.", key, name)
    room, _, attribute = name.rpartition(".")
    if name.startswith("lightning_dropout.") and room.count(".") > 1 and name not in allowed_targets():
        # Deeper lie helpers that trust their caller; one of them imports whatever module it is given.
        exported = f"{'.'.join(room.split('.')[:2])}.{attribute}"
        raise ConfigError(f"Expected the name that the package exports; try {exported}.", key, name)
    identity = f"{found.__module__}.{found.__qualname__}"
    if not (_is_allowed(identity) or (name in allowed_targets() and not _is_refused(identity))):
        raise _refusal(key, name, f" (it is {identity})")
    return found


def refuse_arguments(name: str, arguments: Mapping[str, object], key: str) -> None:
    """Refuse what an allowed function could still be told to do: fetch from, or send to, where a config says.

    Args:
        name: The dotted path, as ``load_target`` takes it.
        arguments: Those given by name or by position, all by their names.
        key: Where the node stands in the config.

    Raises:
        ConfigError: At the first such argument.

    Example:
        >>> refuse_arguments("timm.create_model", {"model_name": "hf-hub:somebody/model"}, "model")
        Traceback (most recent call last):
        ...
        lightning_dropout.configuration.errors.ConfigError: model.model_name=hf-hub:somebody/model: Not allowed ...
    """
    refused = _REFUSED_ARGUMENTS.get(name, frozenset())
    for argument, value in arguments.items():
        source = refused is _FETCHING and isinstance(value, str) and ":" in value  # of timm's names: hf-hub:...
        if argument in refused | _REFUSED_EVERYWHERE or source:
            raise ConfigError(
                "Not allowed in a config, which could fetch any file with it, or send to any server; call it in "
                "Python, and allow your function with allow_targets.",
                join(key, argument),
                value,
            )


def _is_refused(name: str) -> bool:
    return f"{name}.".startswith(_REFUSED_TARGETS)


def _is_allowed(name: str) -> bool:
    return not _is_refused(name) and any(
        name.startswith(entry) if entry.endswith(".") else name == entry for entry in allowed_targets()
    )


def _refusal(key: str, name: str, identity: str = "") -> ConfigError:
    packages = ", ".join(entry.removesuffix(".") for entry in allowed_targets())
    return ConfigError(
        f"Not allowed in a config{identity}: only public classes and functions of {packages}; for a package of your "
        'own call allow_targets("my_package.") in your copy of the script.',
        key,
        name,
    )


def _locate(name: str, key: str) -> object:
    """Walk from module to module; only the last step may leave the modules, so methods are never found."""
    first, *rest = name.split(".")
    found: object = _import(first, key, name)
    path = first
    for part in rest:
        if not isinstance(found, types.ModuleType) or found.__name__ != path:
            raise _refusal(key, name, f" ({path} is no module of its own)")
        module, path = found, f"{path}.{part}"
        with _import_errors(path, key, name):
            found = getattr(module, part, None)  # may import: packages like ours are lazy
        if found is None:
            found = _import(path, key, name, optional=True)
        if found is None:
            near = closest(part, getattr(module, "__all__", None) or dir(module))
            cure = f"did you mean {module.__name__}.{near}?" if near else "correct the dotted path."
            raise ConfigError(f"{module.__name__} has no `{part}`; {cure}", key, name)
    return found


def _import(path: str, key: str, name: str, optional: bool = False) -> types.ModuleType | None:
    with _import_errors(path, key, name):
        try:
            return importlib.import_module(path)
        except ModuleNotFoundError as error:
            if optional and error.name == path:
                return None
            raise


@contextmanager
def _import_errors(path: str, key: str, name: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(f"{one_line(str(error))}; install what is missing, or choose another.", key, name) from error
    except (ImportError, OSError, RuntimeError) as error:  # e.g. a torchvision that was built for another torch
        problem = f"{path} cannot be imported ({type(error).__name__}: {one_line(str(error))})"
        raise ConfigError(f"{problem}; repair the installation.", key, name) from error

"""Keep secrets out of what is logged and out of the command line.

Interpolations stay unresolved, so that ``${oc.env:WANDB_API_KEY}`` names its secret and does not show it. Nothing here
writes or logs anything.
"""

import os
import re
from collections.abc import Mapping, Sequence

from omegaconf import DictConfig, OmegaConf

from lightning_dropout.configuration.errors import ConfigError
from lightning_dropout.configuration.secret_names import is_secret_name

__all__ = ["REDACTED", "redact", "refuse_secrets"]

REDACTED = "<redacted>"
_NO_SECRETS = frozenset({"PWD", "OLDPWD"})  # the shell's folders, though the first reads like a password
_SHORTEST_SECRET = 8  # characters; shorter values of environment variables would match by accident
_REFERENCE = re.compile(r"\$\{[\w.:]+\}|\?\?\?")  # ${oc.env:X} names a secret, ${oc.env:X,default} may hold one
_KEY_IN_VALUE = re.compile(r"(\w+)['\"]?\s*:(?!\s*(?:null|\$\{[\w.:]+\}))")  # logger={api_key: abc}
_PASSWORD_IN_URL = re.compile(r"(?<=://)([^/\s:@]*):[^/\s@]+@")  # postgresql://user:password@host


def redact(cfg: DictConfig | Mapping[str, object]) -> dict[str, object]:
    """Copy a config into plain containers that may be logged.

    Replaced by ``"<redacted>"``: everything under a key that is named like a secret (``api_key``, ``hub_token``,
    ``password``, ...), strings that contain the value of an environment variable named like a secret, and passwords in
    URLs. Everything else is kept as it stands, interpolations unresolved.

    Args:
        cfg: The config of a run; it is not changed.

    Example:
        >>> redact({"logger": {"api_key": "abc", "entity": "${oc.env:USER}"}, "model": {"class_token": "mean"}})
        {'logger': {'api_key': '<redacted>', 'entity': '${oc.env:USER}'}, 'model': {'class_token': 'mean'}}
    """
    config = cfg if isinstance(cfg, DictConfig) else OmegaConf.create(dict(cfg), flags={"allow_objects": True})
    plain = OmegaConf.to_container(config, resolve=False, enum_to_str=True)
    clean = _clean(plain, _environment_secrets(), under_secret_key=False)
    assert isinstance(clean, dict)  # noqa: S101 - a mapping came in
    return clean


def refuse_secrets(overrides: Sequence[str]) -> None:
    """Refuse secrets on the command line before Hydra writes the command line into its files.

    Args:
        overrides: The arguments of the command, e.g. ``sys.argv[1:]``; flags (``--cfg``) are passed over. References
            (``logger.api_key=${oc.env:WANDB_API_KEY}``) are no secrets.

    Raises:
        ConfigError: If a key is named like a secret and has a value, or a value contains that of an environment
            variable which is named like one. The line does not repeat the value.

    Example:
        >>> refuse_secrets(["model=vit", "logger.api_key=0123456789abcdef"])
        Traceback (most recent call last):
        ...
        lightning_dropout.configuration.errors.ConfigError: logger.api_key=<redacted>: Expected no secret on the...
    """
    secrets = _environment_secrets()
    for override in overrides:
        key, equals, value = override.lstrip("+").partition("=")
        if not equals or key.startswith(("-", "~")):
            continue
        key = key.partition("@")[0]  # group@package=option
        named = any(is_secret_name(part) for part in re.split(r"[./]", key))
        harmless = value.strip("'\"") in {"", "null"} or _REFERENCE.fullmatch(value.strip("'\""))
        inside = any(is_secret_name(name) for name in _KEY_IN_VALUE.findall(value))
        if (named and not harmless) or inside or any(secret in value for secret in secrets):
            raise ConfigError(
                f"{key}={REDACTED}: Expected no secret on the command line, since Hydra writes it into the run folder; "
                "set an environment variable instead (for W&B: WANDB_API_KEY, or `wandb login`), "
                f"or refer to one: '{key}=${{oc.env:NAME}}'."
            )


def _environment_secrets() -> list[str]:
    return [
        value
        for name, value in os.environ.items()
        if len(value) >= _SHORTEST_SECRET and is_secret_name(name) and name not in _NO_SECRETS
    ]


def _clean(value: object, secrets: Sequence[str], under_secret_key: bool) -> object:
    if isinstance(value, Mapping):
        return {
            _clean(key, secrets, False): _clean(item, secrets, under_secret_key or is_secret_name(str(key)))
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_clean(item, secrets, under_secret_key) for item in value]
    if value is None or isinstance(value, bool):
        return value
    if under_secret_key and not (isinstance(value, str) and (not value or _REFERENCE.fullmatch(value))):
        return REDACTED
    text = str(value)
    if any(secret in text for secret in secrets):
        return REDACTED
    if isinstance(value, (int, float)):
        return value
    return _PASSWORD_IN_URL.sub(rf"\1:{REDACTED}@", text)

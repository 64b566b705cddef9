"""Keep secrets out of what is logged and out of the command line.

Interpolations stay unresolved, so that ``${oc.env:WANDB_API_KEY}`` names its secret and does not show it. Nothing here
writes or logs anything.
"""

import os
import re
from collections.abc import Mapping, Sequence

from omegaconf import DictConfig, OmegaConf

from lightning_dropout.configuration.errors import ConfigError, join
from lightning_dropout.configuration.secret_names import is_secret_name

__all__ = ["REDACTED", "first_secret", "redact", "refuse_secrets"]

REDACTED = "<redacted>"
_NO_SECRETS = frozenset({"PWD", "OLDPWD"})  # the shell's folders, though the first reads like a password
_SHORTEST_SECRET = 8  # characters; shorter values of environment variables would match by accident
_REFERENCE = re.compile(r"\$\{[\w.:]+\}|\?\?\?")  # ${oc.env:X} names a secret, ${oc.env:X,default} may hold one
_KEY_IN_VALUE = re.compile(r"(\w+)['\"]?\s*:(?!\s*(?:null|\$\{[\w.:]+\}))")  # logger={api_key: abc}
_PASSWORD_IN_URL = re.compile(r"(?<=://)([^/\s:@]*):(?!\$\{[\w.:]+\}@)[^/\s@]+@")  # postgresql://user:password@host
_SECRET_IN_QUERY = re.compile(  # https://host/file?access_token=...
    r"(?<=[?&])(\w*(?:token|key|secret|password|signature))=(?!\$\{[\w.:]+\}(?:&|$))[^&\s]+", re.IGNORECASE
)
_WORDS_OF_REFERENCE = re.compile(r"\$\{[^}]*")  # what stands inside may be nested


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


def first_secret(plain: object, key: str = "") -> str | None:
    """Return the path of the first value that ``redact`` would replace, or that shows a secret once it is resolved.

    A reference to a secret is fine where the key is named like one, since then nothing repeats its value.

    Args:
        plain: Containers, interpolations unresolved.
        key: Where they stand in the config.

    Example:
        >>> first_secret({"logger": {"api_key": "abc"}}), first_secret({"note": "${oc.env:WANDB_API_KEY}"})
        ('logger.api_key', 'note')
        >>> first_secret({"logger": {"api_key": "${oc.env:WANDB_API_KEY}"}}) is None
        True
    """
    return _first_secret(plain, key, _environment_secrets(), under_secret_key=False)


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
        key, equals, value = override.lstrip("+~").partition("=")
        if not equals or key.startswith("-"):
            continue
        key = key.partition("@")[0]  # group@package=option
        named = any(is_secret_name(part) for part in re.split(r"[./]", key))
        harmless = value.strip("'\"") in {"", "null"} or _REFERENCE.fullmatch(value.strip("'\""))
        inside = any(is_secret_name(name) for name in _KEY_IN_VALUE.findall(value))
        shown = _without_url_secrets(value) != value or any(secret in override for secret in secrets)
        if (named and not harmless) or inside or shown:
            where = REDACTED if any(secret in key for secret in secrets) else f"{key}={REDACTED}"
            raise ConfigError(
                f"{where}: Expected no secret on the command line, since Hydra writes it into the run folder; "
                "set an environment variable instead (for W&B: WANDB_API_KEY, or `wandb login`), "
                f"or refer to one: 'my_token=${{oc.env:MY_TOKEN}}'."
            )


def _environment_secrets() -> list[str]:
    return [
        value
        for name, value in os.environ.items()
        if len(value) >= _SHORTEST_SECRET and is_secret_name(name) and name not in _NO_SECRETS
    ]


def _first_secret(value: object, key: str, secrets: Sequence[str], under_secret_key: bool) -> str | None:
    if isinstance(value, Mapping):
        for name, item in value.items():
            if _clean(name, secrets, False) != name:
                return join(key, REDACTED)
            if found := _first_secret(item, join(key, name), secrets, under_secret_key or is_secret_name(str(name))):
                return found
        return None
    if isinstance(value, (list, tuple)):
        in_items = (
            _first_secret(item, f"{key}[{index}]", secrets, under_secret_key) for index, item in enumerate(value)
        )
        return next(filter(None, in_items), None)
    shown = not under_secret_key and isinstance(value, str) and "${" in value and _refers_to_secret(value)
    return key if shown or REDACTED in str(_clean(value, secrets, under_secret_key)) else None


def _refers_to_secret(text: str) -> bool:
    return any(is_secret_name(word) for part in _WORDS_OF_REFERENCE.findall(text) for word in re.findall(r"\w+", part))


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
    return _without_url_secrets(text)


def _without_url_secrets(text: str) -> str:
    return _SECRET_IN_QUERY.sub(rf"\1={REDACTED}", _PASSWORD_IN_URL.sub(rf"\1:{REDACTED}@", text))

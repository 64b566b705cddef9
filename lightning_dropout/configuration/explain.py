"""What an exception says about the config: the exceptions of Hydra, OmegaConf, YAML and constructors in one line.

Only what a wrong config, a wrong command line or a wrong folder can cause is explained. Everything else is a bug, and a
bug keeps its traceback: when in doubt, return None.
"""

import errno
import re
import sys
import traceback
from collections.abc import Iterable, Mapping

from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)
from yaml import MarkedYAMLError  # type: ignore[import-untyped]

from lightning_dropout.configuration.errors import ConfigError, closest, join, listed, one_line

__all__ = ["diagnose", "explain"]

_HOUSE_STYLE = "Expected `"  # how every message of this package for its user begins
_WRONG_PATH = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)
_NO_PLACE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}
_UNREADABLE = re.compile(r"PytorchStreamReader|UnpicklingError|EOFError|invalid magic number|invalid load key")
# Whose constructors are called with a config's values as they are: what they raise is about these values.
_LIBRARIES = frozenset(
    {
        "lightning",
        "lightning_fabric",
        "pytorch_lightning",
        "tensorboard",
        "timm",
        "torch",
        "torchmetrics",
        "torchvision",
    }
)
_NO_MEMORY = re.compile(r"can't allocate memory|out of memory|Storage size calculation overflowed", re.IGNORECASE)
_LONGEST_MESSAGE = 600  # characters of a library's text, which may repeat a value
_WRONG_ARGUMENTS = re.compile(
    r"unexpected keyword argument|missing \d+ required|multiple values for|positional argument"
)


def explain(exception: BaseException) -> str | None:
    """Tell in one line what in the config or command line caused an exception; None if it is a bug.

    Example:
        >>> explain(FileNotFoundError("Expected `root` to be a folder, but got '/data'; pass data.root=..."))
        "Expected `root` to be a folder, but got '/data'; pass data.root=..."
        >>> explain(ZeroDivisionError("division by zero")) is None
        True
    """
    error = diagnose(exception)
    return None if error is None else str(error)


def diagnose(exception: BaseException) -> ConfigError | None:
    """Like ``explain``, as the error that knows its key."""
    if isinstance(exception, ConfigError):
        return exception
    if isinstance(exception, MissingConfigException):
        return _missing_config(exception)
    if isinstance(exception, OverrideParseException):
        message = exception.message.partition("\nSee https")[0]
        return ConfigError(f"{exception.override}: Cannot be read as key=value ({message}); quote special characters.")
    if isinstance(exception, InstantiationException):
        return _instantiation(exception)
    if isinstance(exception, HydraException):
        return _composition(exception)
    if isinstance(exception, OmegaConfBaseException):
        return _omegaconf(exception)
    if isinstance(exception, MarkedYAMLError):
        mark = exception.problem_mark
        where = f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        return ConfigError(f"{where}{exception.problem or exception.context}; correct the file.")
    if isinstance(exception, OSError):
        return _os_error(exception)
    return _message(exception)


def _missing_config(exception: MissingConfigException) -> ConfigError:
    group, _, wrong = (exception.missing_cfg_file or "").rpartition("/")
    if not group:
        return ConfigError("No config of this name in the search path; choose another with --config-name.", wrong)
    options = list(exception.options or ())
    near = closest(wrong, options)
    asked_by = re.match(r"In '([^']+/[^']+)'", str(exception))  # a nested file, not the primary config
    return ConfigError(
        f"No such option of the group `{group}`"
        + (f" (named in {asked_by[1]}.yaml)" if asked_by else "")
        + (f"; did you mean {group}={near}?" if near else ";")
        + f" Available: {listed(options)}.",
        group,
        wrong,
    )


def _composition(exception: HydraException) -> ConfigError:
    cause = exception.__cause__
    if isinstance(cause, (ConfigAttributeError, ConfigKeyError)):
        attempt = re.search(r"use \+(.+)", str(exception))  # "To append to your config use +trainer.max_epoch=3"
        return _unknown_key(cause, attempt[1].strip() if attempt else None)
    message = str(exception)
    if isinstance(cause, OmegaConfBaseException):
        message = f"{message}: {_first_line(cause)}"
    return ConfigError(message)


def _omegaconf(exception: OmegaConfBaseException) -> ConfigError:
    key = str(exception.full_key or "")
    if isinstance(exception, (ConfigAttributeError, ConfigKeyError)):
        return _unknown_key(exception, None)
    if isinstance(exception, MissingMandatoryValue):
        key = key or _first_line(exception).rpartition(": ")[2]
        return ConfigError(f"Expected a value, but got none; pass {key}=... (it is ??? in the config).", key)
    if isinstance(exception, InterpolationResolutionError):
        variable = re.search(r"Environment variable '(\w+)' not found", str(exception))
        if variable:
            cure = f"export {variable[1]}=..." + (f" or pass {key}=..." if key else "")
            return ConfigError(f"Expected the environment variable {variable[1]}, but it is not set; {cure}.", key)
        if "RecursionError" in str(exception):
            return ConfigError("Refers to itself without end; remove one of the references ${...}.", key)
        return ConfigError(f"{_first_line(exception)}; correct the reference ${{...}} or give a value.", key)
    return ConfigError(_first_line(exception), key)


def _unknown_key(exception: OmegaConfBaseException, attempt: str | None) -> ConfigError:
    """Name the key that is most like the unknown one among its would-be siblings."""
    full_key = str(exception.full_key or exception.key or "")
    parent_key, _, wrong = full_key.rpartition(".")
    siblings: list[str] = []
    if isinstance(exception.parent_node, DictConfig) and not exception.parent_node._is_none():
        siblings = [str(key) for key in exception.parent_node if key != "hydra"]
    near = closest(wrong, siblings)
    if near:
        cure = f"did you mean {join(parent_key, near)}?"
    else:
        cure = f"{parent_key or 'the config'} has {listed(siblings) if siblings else 'no keys'}."
    return ConfigError(
        f"{attempt or full_key}: No such key in the config; {cure}"
        + (f" (+{attempt} adds a new one.)" if attempt else ""),
    )


def _instantiation(exception: InstantiationException) -> ConfigError | None:
    text, _, key = str(exception).partition("\nfull_key: ")
    cause = exception.__cause__
    if cause is None:  # a refusal of Hydra's own, unless the cause was lost on the way from another process
        lost = text.startswith("Error in call") and _HOUSE_STYLE not in text
        return None if lost else ConfigError(text, key.strip())
    if isinstance(cause, ImportError) and text.startswith("Error locating"):
        return ConfigError(_first_line(cause.__cause__ or cause), join(key, "_target_"))
    if isinstance(cause, (ConfigError, HydraException, OmegaConfBaseException)):
        return diagnose(cause)
    message = _argument_message(cause)
    if message is None:
        return None
    found = _failing_node(exception)
    return _blame(message, key.strip(), found[1] if found else {})


def _os_error(exception: OSError) -> ConfigError | None:
    found = _failing_node(exception)
    if found:
        return _blame(one_line(str(exception)), *found)
    if str(exception.strerror).startswith(_HOUSE_STYLE):  # of ours, with the number that the system gave
        return ConfigError(str(exception.strerror))
    if exception.errno is None:  # raised by hand with a text of its own, by a data module for example
        if str(exception).startswith("Checkpoint file not found"):  # Lightning's words
            return ConfigError(f"{_text(exception).rstrip('.')}; pass the path of one, or null.", "ckpt_path")
        by_hand = isinstance(exception, _WRONG_PATH) or type(exception).__name__ == "UnidentifiedImageError"
        return ConfigError(_text(exception)) if by_hand else _message(exception)
    if exception.filename is not None and _raised_inside(
        exception, "hydra"
    ):  # Hydra makes the output folder before our main runs
        return _output_folder(exception)
    if exception.errno in _NO_PLACE:
        return ConfigError(f"{exception.filename or 'output'}: {exception.strerror}; make room or permission there.")
    return None


def _output_folder(exception: OSError) -> ConfigError:
    return ConfigError(
        f"Expected an output folder that can be written to, but got {exception.strerror} for {exception.filename!r}; "
        "choose another with hydra.run.dir=... (hydra.sweep.dir=... with -m)."
    )


def _message(exception: BaseException) -> ConfigError | None:
    """Explain exceptions by their text: those of this package, of Lightning, and of delayed constructors."""
    text = _text(exception)
    if type(exception).__name__ == "CorruptCheckpointError":
        return ConfigError(text, "ckpt_path")
    found = _failing_node(exception)
    told = text.startswith(_HOUSE_STYLE) or type(exception).__name__ == "MisconfigurationException"
    from_worker = text != str(exception)
    told = told or (text.startswith("Expected ") and (from_worker or _raised_inside(exception, "lightning_dropout")))
    told = told or (isinstance(exception, ImportError) and text.startswith("Expected "))
    message = text if told else _argument_message(exception) if found else None
    if message is not None:
        return _blame(message, *found) if found else ConfigError(message)
    if "checkpoint contains only the model" in text:  # Lightning's words, when training is to be resumed
        return ConfigError(
            "Expected a checkpoint to resume from, but got one of weights alone; choose another.", "ckpt_path"
        )
    if _innermost_function(exception) == "_get_version":  # Lightning asks who wrote the checkpoint
        return ConfigError(
            "Expected a checkpoint of Lightning, but got another program's; choose another.", "ckpt_path"
        )
    if "Error(s) in loading state_dict" in text:
        return ConfigError(
            "Expected a checkpoint of this model, but its weights do not fit; choose the model that it was trained "
            "with.",
            "ckpt_path",
        )
    if _UNREADABLE.search(f"{type(exception).__name__}: {text}") and _loads_a_checkpoint(exception):
        return ConfigError(
            f"Expected a checkpoint that can be read, but got {type(exception).__name__}: "
            f"{_first_line(exception)[:200]}; it is cut short, no checkpoint, or holds objects that are not loaded for "
            "safety. Choose another.",
            "ckpt_path",
        )
    if isinstance(exception, ValueError) and _raised_inside(exception, "hydra"):
        # The log file of the job could not be opened; or two flags exclude each other.
        return _output_folder(exception.__cause__) if isinstance(exception.__cause__, OSError) else ConfigError(text)
    return None


def _loads_a_checkpoint(exception: BaseException) -> bool:
    frames = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(exception.__traceback__)]
    return any(name.endswith("serialization.py") for name in frames)


def _innermost_function(exception: BaseException) -> str:
    names = [frame.f_code.co_name for frame, _ in traceback.walk_tb(exception.__traceback__)]
    return names[-1] if names else ""


def _argument_message(cause: BaseException) -> str | None:
    """Return the text of an exception from a constructor if the arguments are to blame."""
    text = one_line(str(cause))
    text = text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]}…"
    if isinstance(cause, MemoryError) or _NO_MEMORY.search(text):
        return f"Expected something that fits into memory, but got {text or 'MemoryError'}; choose smaller sizes."
    if isinstance(cause, ModuleNotFoundError) and not text.startswith("Expected "):
        return f"{text}; install it, or choose another option."
    if isinstance(cause, (ValueError, OSError, ImportError)) or text.startswith(_HOUSE_STYLE):
        return text
    if isinstance(cause, TypeError) and _WRONG_ARGUMENTS.search(text):
        return text
    if isinstance(cause, Exception) and _only_in_libraries(cause):
        return f"{text} ({type(cause).__name__})"
    return text if type(cause).__name__ == "MisconfigurationException" else None


def _blame(message: str, key: str, node: Mapping[str, object]) -> ConfigError:
    """Put the key that the message speaks of before it.

    That is the backticked one; else, since other libraries quote nothing, the only one whose value ends the message;
    else the only one whose value is a word in it.
    """
    arguments = {name: value for name, value in node.items() if not name.startswith("_")}
    quoted = re.search(r"`(\w+)[`=]", message)
    candidates = [
        [quoted[1]] if quoted and quoted[1] in arguments else [],
        [name for name, value in arguments.items() if re.search(rf"[\s'\"]{_pattern(value)}['\"]?\.?$", message)],
        [
            name
            for name, value in arguments.items()
            if isinstance(value, str) and len(value) > 2 and re.search(rf"\b{_pattern(value)}\b", message)
        ],
    ]
    names = next(filter(None, candidates), [])
    if len(names) != 1:
        return ConfigError(message, key)
    return ConfigError(message, join(key, names[0]), arguments[names[0]])


def _pattern(value: object) -> str:
    return re.escape(str(value))


def _failing_node(exception: BaseException) -> tuple[str, Mapping[str, object]] | None:
    """Find the config node whose object was being made when the exception rose, with its key.

    Hydra puts only the key into its message, and nothing at all when a partial is called later; both leave the node in
    a frame of the traceback.
    """
    found: tuple[str, Mapping[str, object]] | None = None
    for frame, _ in traceback.walk_tb(exception.__traceback__):
        if frame.f_code.co_name == "instantiate_node" and isinstance(frame.f_locals.get("node"), DictConfig):
            node = frame.f_locals["node"]
            values = OmegaConf.to_container(node, resolve=False)
            if isinstance(values, dict):
                found = str(node._get_full_key(None)), {str(name): value for name, value in values.items()}
        elif frame.f_code.co_name == "_call_with_target_policy":
            partial = frame.f_locals.get("self")
            found = str(getattr(partial, "_hydra_full_key", "")), dict(getattr(partial, "keywords", None) or {})
    return found


def _raised_inside(exception: BaseException, package: str) -> bool:
    """Whether the innermost frame outside of the standard library belongs to the package."""
    names = [str(frame.f_globals.get("__name__", "")) for frame, _ in traceback.walk_tb(exception.__traceback__)]
    return _last_of(names, ("pathlib", "os", "contextlib", "shutil", "logging")).partition(".")[0] == package


def _only_in_libraries(exception: BaseException) -> bool:
    """Whether a library's constructor that Hydra called raised it: with code of anybody else's it may be a bug."""
    packages = [
        str(f.f_globals.get("__name__", "")).partition(".")[0] for f, _ in traceback.walk_tb(exception.__traceback__)
    ]
    while "hydra" in packages:
        del packages[: packages.index("hydra") + 1]
    called = [package for package in packages if package not in sys.stdlib_module_names]
    return bool(called) and set(called) <= _LIBRARIES


def _last_of(names: Iterable[str], passed_over: tuple[str, ...]) -> str:
    kept = [name for name in names if name.partition(".")[0] not in passed_over]
    return kept[-1] if kept else ""


def _text(exception: BaseException) -> str:
    """Return the text of an exception; for one from a DataLoader worker the text that it had there."""
    text = str(exception)
    worker = re.match(r"Caught (\w+) in DataLoader worker process", text)
    if worker:  # a whole traceback, which ends with the original text
        ends = re.findall(rf"^(?:[\w.]+\.)?{worker[1]}: (.*)", text, flags=re.MULTILINE)
        text = ends[-1] if ends else text
    return text


def _first_line(exception: BaseException) -> str:
    return str(exception).partition("\n")[0]

"""The one error that a wrong config or command line ends in: a single line naming key, value and cure.

Knows nothing of Hydra. How the exceptions of others become such a line is the business of ``explain``.
"""

import difflib
from collections.abc import Iterable

from lightning_dropout.configuration.secret_names import is_secret_name

__all__ = ["ConfigError", "assignment", "closest", "join", "listed", "one_line"]

_NOT_GIVEN = object()
_LONGEST_VALUE = 120  # characters of a value that a line repeats
_LONGEST_LINE = 1500  # characters; a problem that repeats a longer value loses its middle, not the cure at its end


class ConfigError(ValueError):
    """A wrong config or command line, told in one line.

    Raised before anything is trained. ``str(error)`` holds no newline and reads ``key=value: problem; cure``. It
    survives pickling, since launchers of multiruns send exceptions from one process to another.

    Args:
        problem: What was expected, what came instead, and the cure. Newlines become spaces.
        key: Where it stands in the config, e.g. ``"model.p"``; empty if no single key is to blame.
        value: What stands there; left out of the line if not given, hidden if the key is named like a secret.

    Example:
        >>> print(ConfigError("Expected a rate in [0, 1]; lower it.", key="model.p", value=1.5))
        model.p=1.5: Expected a rate in [0, 1]; lower it.
    """

    def __init__(self, problem: str, key: str = "", value: object = _NOT_GIVEN) -> None:
        self.key = key
        where = key if value is _NOT_GIVEN else assignment(key, value)
        # The finished line is the only positional argument: unpickling passes it back as `problem`.
        line = one_line(f"{where}: {problem}" if where else problem)
        half = _LONGEST_LINE // 2
        super().__init__(line if len(line) <= _LONGEST_LINE else f"{line[:half]}…{line[-half:]}")


def assignment(key: str, value: object) -> str:
    """Write ``key=value`` as on the command line, short enough for one line and without secrets.

    Example:
        >>> assignment("model.p", None), assignment("logger.api_key", "abc")
        ('model.p=null', 'logger.api_key=<redacted>')
    """
    if is_secret_name(key.rpartition(".")[2]) and value is not None:
        return f"{key}=<redacted>"
    words = {None: "null", True: "true", False: "false"}
    shown = words[value] if value is None or isinstance(value, bool) else one_line(str(value))
    return f"{key}={shown if len(shown) <= _LONGEST_VALUE else shown[:_LONGEST_VALUE] + '…'}"


def closest(wrong: str, candidates: Iterable[str]) -> str | None:
    """Return the candidate that is spelled most like ``wrong``, or None if none is.

    Example:
        >>> closest("vti", ["net", "resnet", "vit"]), closest("vti", ["digits"])
        ('vit', None)
    """
    matches = difflib.get_close_matches(wrong, list(candidates), n=1, cutoff=0.6)
    return matches[0] if matches else None


def join(key: str, name: object) -> str:
    """Write the path of a child: ``key.name``, or ``name`` at the top of the config.

    Example:
        >>> join("model", "p"), join("", "model")
        ('model.p', 'model')
    """
    return f"{key}.{name}" if key else str(name)


def listed(names: Iterable[str], limit: int = 40) -> str:
    """Join names in alphabetical order, the first ``limit`` of them.

    Example:
        >>> listed(["vit", "net"])
        'net, vit'
    """
    ordered = sorted(names)
    return ", ".join(ordered[:limit]) + (", …" if len(ordered) > limit else "") or "nothing"


def one_line(text: str) -> str:
    r"""Replace every run of white space by one space, and write what a terminal would obey as an escape.

    Example:
        >>> print(one_line("Could not override.\n\tUse +\x1b[2J "))
        Could not override. Use +\x1b[2J
    """
    words = " ".join(text.split())
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in words)

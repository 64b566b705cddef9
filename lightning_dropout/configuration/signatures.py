"""Do the arguments in a config fit the signature of what they will be passed to? Asked without calling anything.

Only what can be known for sure is refused: names, missing arguments, and plain values where the annotation admits no
such value. Whatever an annotation leaves open is left to the constructor.
"""

import dataclasses
import inspect
import os
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping

from lightning_dropout.configuration.errors import ConfigError, closest, join, listed

__all__ = ["UNKNOWN", "accepts", "check_arguments", "positional_names"]

UNKNOWN = object()  # stands for a value that only instantiation will know
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_BY_POSITION = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)


def check_arguments(
    target: Callable[..., object],
    arguments: Mapping[str, object],
    key: str,
    *,
    positional: int = 0,
    supplied: Collection[str] = (),
    partial: bool = False,
) -> None:
    """Check names, completeness and plain types of the arguments of one config node.

    Args:
        target: The class or function.
        arguments: What the config gives by name; ``UNKNOWN`` for values that are not plain.
        key: Where the node stands.
        positional: Number of arguments given by position.
        supplied: Names that the calling code can pass.
        partial: More arguments will come later, so none can be missing yet.

    Raises:
        ConfigError: With the key of the argument, the closest accepted name and all accepted ones.

    Example:
        >>> def layer(p: float, mode: typing.Literal["row", "batch"] = "row"): ...
        >>> check_arguments(layer, {"p": 0.1, "mod": "row"}, "model")
        Traceback (most recent call last):
        ...
        lightning_dropout.configuration.errors.ConfigError: model.mod=row: No such argument of layer; did you mean...
    """
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):  # written in C
        return
    by_name = [name for name, parameter in parameters.items() if parameter.kind in _BY_NAME]
    by_position = [name for name, parameter in parameters.items() if parameter.kind in _BY_POSITION]
    kinds = {parameter.kind for parameter in parameters.values()}
    taken = by_position[:positional]

    for name, value in arguments.items():
        if name in taken:
            raise ConfigError(f"Given by position and by name to {target.__qualname__}; give it once.", join(key, name))
        if name not in by_name and inspect.Parameter.VAR_KEYWORD not in kinds:
            near = closest(name, [*by_name, "_target_", "_partial_", "_args_", "_convert_", "_recursive_"])
            hint = f"did you mean `{near}`? It" if near else "it"
            problem = f"No such argument of {target.__qualname__}; {hint} accepts {listed(by_name)}."
            path = join(key, name)
            raise ConfigError(problem, path) if value is UNKNOWN else ConfigError(problem, path, value)
    if positional > len(by_position) and inspect.Parameter.VAR_POSITIONAL not in kinds:
        raise ConfigError(
            f"Expected at most {len(by_position)} arguments by position for {target.__qualname__}, "
            f"but got {positional}; it accepts {listed(by_name)}.",
            join(key, "_args_"),
        )
    if not partial:
        for name, parameter in parameters.items():
            optional = parameter.default is not parameter.empty or parameter.kind not in (*_BY_NAME, *_BY_POSITION)
            if not optional and name not in arguments and name not in supplied and name not in taken:
                raise ConfigError(
                    f"Expected a value, since {target.__qualname__} requires it; pass +{join(key, name)}=... "
                    "or write it into the YAML file.",
                    join(key, name),
                )
    annotations = _annotations(target)
    for name, value in arguments.items():
        if name not in parameters or name not in annotations or value is UNKNOWN:
            continue
        default = parameters[name].default  # `p: float = None` is common and means what it says
        if not (type(value) is type(default) and value == default) and not accepts(annotations[name], value):
            raise ConfigError(
                f"Expected `{name}` of {target.__qualname__} to be {_spoken(annotations[name])}, but got "
                f"{'null' if value is None else f'{type(value).__name__} {value!r}'}; "
                + _cure(annotations[name], value, join(key, name)),
                join(key, name),
                value,
            )


def accepts(annotation: object, value: object) -> bool:
    """Whether a plain value from a config can be meant by an annotation; True where the annotation leaves it open.

    Lists stand for tuples and other sequences, integers for floats, 0 and 1 for booleans, strings for paths.

    Example:
        >>> accepts(float | None, 1), accepts(typing.Literal["row", "batch"], "rows"), accepts(int, 1.5)
        (True, False, False)
    """
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(accepts(member, value) for member in typing.get_args(annotation))
    if origin is typing.Annotated:
        return accepts(typing.get_args(annotation)[0], value)
    if origin is typing.Literal:
        return any(type(choice) is type(value) and choice == value for choice in typing.get_args(annotation))
    kind = origin or annotation
    if kind is None or kind is types.NoneType:
        return value is None
    if kind is bool:
        return isinstance(value, bool) or (isinstance(value, int) and value in (0, 1))
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is str:
        return isinstance(value, str)
    if isinstance(kind, type) and issubclass(kind, os.PathLike):
        return isinstance(value, str)
    if kind in (list, tuple):
        return isinstance(value, (list, tuple))
    if kind is dict:
        return isinstance(value, Mapping)
    if isinstance(kind, type) and issubclass(kind, Iterable) and (value is None or isinstance(value, (int, float))):
        return False
    if isinstance(kind, type) and isinstance(value, (list, Mapping)):  # a class of somebody's takes no container for it
        return kind in (object, typing.Any) or issubclass(kind, (Iterable, Callable)) or dataclasses.is_dataclass(kind)  # type: ignore[arg-type]
    return True


def positional_names(target: Callable[..., object], count: int) -> list[str]:
    """Return the names of the first ``count`` arguments that may be given by position.

    Example:
        >>> positional_names(lambda batch, *, seed: None, 2)
        ['batch']
    """
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):  # written in C
        return []
    return [parameter.name for parameter in parameters if parameter.kind in _BY_POSITION][:count]


def _annotations(target: Callable[..., object]) -> dict[str, object]:
    function = target.__init__ if isinstance(target, type) else target  # type: ignore[misc]
    try:
        return typing.get_type_hints(function)
    except Exception:  # names that exist for type checkers only: nothing is known then
        return {}


def _spoken(annotation: object) -> str:
    members = typing.get_args(annotation) if typing.get_origin(annotation) in (typing.Union, types.UnionType) else ()
    if members:
        return " or ".join(_spoken(member) for member in members)
    if typing.get_origin(annotation) is typing.Literal:
        return " | ".join(repr(choice) for choice in typing.get_args(annotation))
    if annotation is types.NoneType:
        return "null"
    return getattr(annotation, "__name__", None) or str(annotation)


def _cure(annotation: object, value: object, key: str) -> str:
    members = typing.get_args(annotation) if typing.get_origin(annotation) in (typing.Union, types.UnionType) else ()
    choices = [c for m in (annotation, *members) if typing.get_origin(m) is typing.Literal for c in typing.get_args(m)]
    near = closest(str(value), [str(choice) for choice in choices])
    return f"did you mean {near}?" if near else f"pass {key}=<{_spoken(annotation)}>."

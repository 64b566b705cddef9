"""Names, completeness and plain types of arguments, without calling what they are for."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, TypeVar, Union

import pytest
import torch

from lightning_dropout.configuration import ConfigError
from lightning_dropout.configuration.signatures import UNKNOWN, accepts, check_arguments, positional_names

Mode = Literal["row", "batch"]
T = TypeVar("T")


class Layer:
    """Counts how often it is made."""

    made = 0

    def __init__(self, width: int, p: float = 0.5, mode: Mode = "row", *, scale: bool = True, x: Any = None) -> None:
        Layer.made += 1


class Open(Layer):
    """Takes any name."""

    def __init__(self, width: int, **rest: float) -> None: ...


def line_of(target: Callable[..., object], arguments: Mapping[str, object], **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        check_arguments(target, arguments, "model", **options)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ({"width": 3}, {}),
        ({"width": 3, "p": 0, "mode": "batch", "scale": False, "x": UNKNOWN}, {}),
        ({}, {"partial": True}),
        ({"p": 0.1}, {"supplied": ["width"]}),
        ({"p": 0.1}, {"positional": 1}),
        ({"width": UNKNOWN}, {}),
        ({"width": 3}, {"supplied": ["width", "not_an_argument"]}),
    ],
)
def test_arguments_that_fit(arguments: dict[str, object], options: dict[str, Any]) -> None:
    check_arguments(Layer, arguments, "model", **options)
    assert Layer.made == 0


@pytest.mark.parametrize(
    ("arguments", "options", "start"),
    [
        (
            {"width": 3, "mod": "row"},
            {},
            "model.mod=row: No such argument of Layer; did you mean `mode`? It accepts mode,",
        ),
        (
            {"width": 3, "zzz": UNKNOWN},
            {},
            "model.zzz: No such argument of Layer; it accepts mode, p, scale, width, x.",
        ),
        (
            {"width": 3, "_partial": True},
            {},
            "model._partial=true: No such argument of Layer; did you mean `_partial_`?",
        ),
        ({}, {}, "model.width: Expected a value, since Layer requires it; pass +model.width=..."),
        ({"mod": 1}, {"partial": True}, "model.mod=1: No such argument"),
        ({"width": 3}, {"positional": 1}, "model.width: Given by position and by name"),
        ({}, {"positional": 4}, "model._args_: Expected at most 3 arguments by position for Layer, but got 4"),
        (
            {"width": 3, "mode": "bacth"},
            {},
            "model.mode=bacth: Expected `mode` of Layer to be 'row' | 'batch', but got",
        ),
        (
            {"width": 3, "mode": None},
            {},
            "model.mode=null: Expected `mode` of Layer to be 'row' | 'batch', but got null",
        ),
        (
            {"width": "3"},
            {},
            "model.width=3: Expected `width` of Layer to be int, but got str '3'; pass model.width=<int>.",
        ),
        ({"width": 3, "p": "abc"}, {}, "model.p=abc: Expected `p` of Layer to be float, but got str 'abc'"),
        ({"width": 3, "p": [0.1]}, {}, "model.p=[0.1]: Expected `p` of Layer to be float, but got list [0.1]"),
        ({"width": 3, "scale": "yes"}, {}, "model.scale=yes: Expected `scale` of Layer to be bool"),
    ],
)
def test_arguments_that_do_not(arguments: dict[str, object], options: dict[str, Any], start: str) -> None:
    assert line_of(Layer, arguments, **options).startswith(start)
    assert Layer.made == 0


def test_closest_choice_is_named() -> None:
    assert line_of(Layer, {"width": 3, "mode": "bacth"}).endswith("did you mean batch?")


def test_open_signatures_accept_any_name() -> None:
    check_arguments(Open, {"width": 1, "whatever": 3}, "model")


def test_what_has_no_signature_is_left_alone() -> None:
    check_arguments(torch.nn.functional.gelu, {"whatever": 3}, "model")


def test_layers_of_torch() -> None:
    check_arguments(torch.nn.Conv2d, {"in_channels": 3, "out_channels": 8, "kernel_size": [3, 3]}, "model")
    assert line_of(torch.nn.Dropout, {"q": 1}).startswith(
        "model.q=1: No such argument of Dropout; it accepts inplace, p"
    )
    assert line_of(torch.optim.AdamW, {"learning_rate": 1}, partial=True).startswith("model.learning_rate=1: No such")


def test_annotation_that_exists_for_type_checkers_only() -> None:
    def function(p: "NotThere") -> None: ...  # type: ignore[name-defined]  # noqa: F821

    check_arguments(function, {"p": "anything"}, "model")


def test_default_outside_of_its_annotation_stays_allowed() -> None:
    def function(p: float = None, q: Any = torch.zeros(2)) -> None: ...  # type: ignore[assignment]  # noqa: RUF013, B008

    check_arguments(function, {"p": None, "q": 3}, "model")


@pytest.mark.parametrize(
    ("annotation", "good", "bad"),
    [
        (int, [0, -3], [1.0, "1", True, None, [1]]),
        (float, [0, 1.5, float("nan")], ["1", True, None, [1.0]]),
        (bool, [True, False, 0, 1], [2, 0.5, "true", None]),
        (str, ["", "a"], [1, None, ["a"], True]),
        (Path, ["a/b"], [1, None]),
        (None, [None], [0, ""]),
        (Optional[int], [1, None], ["1", 1.5]),  # noqa: UP045 - Lightning writes it this way
        (int | None, [1, None], ["1", 1.5]),
        (Union[int, str], [1, "a"], [1.5, None]),  # noqa: UP007
        (Mode, ["row", "batch"], ["rows", 1, None]),
        (Mode | float | None, ["row", 1, 0.5, None], ["rows", True]),
        (Literal[0, 1], [0, 1], [True, False, "0"]),
        (list[int], [[1], [], (1,)], ["a", 1, None]),
        (tuple[float, float], [[0.9, 0.99]], [0.9, "a"]),
        (dict[str, float], [{"a": 1}], [[1], 1]),
        (Annotated[int, "unit"], [1], ["a"]),
        (torch.Tensor | float, [1, "left open"], []),
        (Any, [1, "a", None, [1]], []),
        (Sequence[int], [[1], "left open"], []),
        (Mapping[str, int], [{"a": 1}, "left open"], []),
        (Callable[[], int], ["left open"], []),
        (T, ["left open"], []),
    ],
)
def test_accepts(annotation: object, good: list[object], bad: list[object]) -> None:
    assert [value for value in good if not accepts(annotation, value)] == []
    assert [value for value in bad if accepts(annotation, value)] == []


def test_positional_names() -> None:
    assert positional_names(Layer, 2) == ["width", "p"]
    assert positional_names(Layer, 9) == ["width", "p", "mode"]
    assert positional_names(functools.partial(Layer, 3), 1) == ["p"]

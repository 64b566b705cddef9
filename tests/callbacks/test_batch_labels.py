"""Labels by guess, path and function."""

from typing import Any

import pytest

from lightning_dropout.callbacks.batch_labels import inputs_of, labels_of


@pytest.mark.parametrize(
    ("batch", "where", "labels"),
    [
        (("x", "y"), "auto", "y"),
        (["x", "y", "z"], "auto", "y"),
        (("x",), "auto", None),
        ("x", "auto", None),
        ({"x": 0, "label": 1, "target": 2}, "auto", 1),
        ({"x": 0}, "auto", None),
        (("x", {"a": ["b", "c"]}), "1.a.0", "b"),
        ({"1": "one"}, "1", "one"),
        ({"x": 3}, lambda batch: batch["x"] + 1, 4),
    ],
)
def test_found_where_they_are(batch: Any, where: Any, labels: Any) -> None:
    assert labels_of(batch, where) == labels


@pytest.mark.parametrize(("path", "end"), [("2", "2"), ("0.a", "a"), ("1.missing", "missing")])
def test_a_path_that_leads_nowhere_is_named(path: str, end: str) -> None:
    with pytest.raises(ValueError, match=f"path into the batch, but got '{path}', which ends at '{end}'"):
        labels_of((3, {"a": 1}), path)


@pytest.mark.parametrize(
    ("batch", "found"),
    [(("x", "y"), "x"), (["x"], "x"), ((), None), ({"pixel_values": "x", "labels": "y"}, "x"), ({"labels": "y"}, None)],
)
def test_the_inputs(batch: Any, found: Any) -> None:
    assert inputs_of(batch) == found

"""What ``rate=`` and ``scale=`` may say; the messages are tested through both schedulers, in test_scheduler.py."""

from typing import Any

import pytest

from lightning_dropout.callbacks.rate_arguments import Assignment, read_rates
from lightning_dropout.schedules import Constant, Linear


@pytest.mark.parametrize(
    ("given", "sites", "name", "expected"),
    [
        (0.5, "*", None, [Assignment(None, "*", Constant(0.5))]),
        (1, ["a", "b"], "both", [Assignment("both", ["a", "b"], Constant(1.0))]),
        (Linear(0.0, 1.0), "a", None, [Assignment(None, "a", Linear(0.0, 1.0))]),
        (
            {"blocks.*.attn*": 0.5, "head": Linear(0.0, 1.0), "*": 0},
            "*",
            "unused",
            [
                Assignment("blocks_attn", "blocks.*.attn*", Constant(0.5)),
                Assignment("head", "head", Linear(0.0, 1.0)),
                Assignment("all", "*", Constant(0.0)),
            ],
        ),
    ],
)
def test_what_is_assigned(given: Any, sites: Any, name: Any, expected: list[Assignment]) -> None:
    assert read_rates(given, None, sites, name, "dropout") == ("rate", expected)
    assert read_rates(None, given, sites, name, "dropout") == ("scale", expected)


def test_only_factors_may_exceed_one() -> None:
    assert read_rates(None, Linear(0.0, 3.0), "*", None, "dropout")[1][0].schedule == Linear(0.0, 3.0)
    with pytest.raises(ValueError, match="probabilities"):
        read_rates(Linear(0.0, 3.0), None, "*", None, "dropout")

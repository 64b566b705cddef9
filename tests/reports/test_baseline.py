"""The passes beside what they have to beat: what is compared with what, on which samples, and in which direction."""

import pytest
import torch
from rich.console import Console
from torch import Tensor

from lightning_dropout.metrics.bootstrap import paired_bootstrap
from lightning_dropout.reports.baseline import BaselineRow, baseline_rows, baseline_table

N = 200


def scores(shift: float, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(N, generator=generator)
    return {
        "label": torch.zeros(N).long(),
        "right": (noise + shift > 0.5).float(),
        "nll": noise + shift,
        "brier": noise - shift,
    }


def test_each_score_is_that_of_the_passes_minus_the_other() -> None:
    sides = {"mc": scores(0.1), "temperature": scores(0.0, seed=1), "det": scores(0.0)}
    rows = {row.score: row for row in baseline_rows(sides)}
    assert [*rows] == ["accuracy", "nll", "brier"]
    assert [*rows["nll"].values] == ["det", "temperature", "mc"]
    assert rows["nll"].differences["det"].mean == pytest.approx(0.1, abs=1e-6)
    assert rows["nll"].differences["temperature"] == paired_bootstrap(sides["mc"]["nll"], sides["temperature"]["nll"])
    # More is better of the accuracy alone.
    assert {name: row.verdict("det") for name, row in rows.items()} == {
        "accuracy": "better",
        "nll": "worse",
        "brier": "better",
    }


def test_equal_sides_are_undecided() -> None:
    assert {row.verdict("det") for row in baseline_rows({"mc": scores(0.0), "det": scores(0.0)})} == {"undecided"}


def test_samples_without_a_label_do_not_count() -> None:
    mc, det = scores(0.1), scores(0.0)
    for side in (mc, det):
        for name in ("right", "nll", "brier"):
            side[name][:50] = torch.nan
    (row,) = [row for row in baseline_rows({"mc": mc, "det": det}) if row.score == "nll"]
    assert row.differences["det"].mean == pytest.approx(0.1, abs=1e-6)


def test_errors_of_a_regression_count_without_their_sign() -> None:
    label = torch.zeros(3)
    sides = {
        "mc": {"label": label, "error": torch.tensor([-1.0, 1.0, -1.0])},
        "det": {"label": label, "error": 2 + label},
    }
    (row,) = baseline_rows(sides)
    assert (row.score, row.values, row.verdict("det")) == ("mae", {"det": 2.0, "mc": 1.0}, "better")


@pytest.mark.parametrize("sides", [{}, {"mc": scores(0.0)}, {"det": scores(0.0)}, {"mc": {}, "det": {}}])
def test_nothing_to_compare(sides: dict[str, dict[str, Tensor]]) -> None:
    assert baseline_rows(sides) == []


def test_the_table_fits_a_terminal() -> None:
    rows: list[BaselineRow] = baseline_rows({side: scores(0.0) for side in ("mc", "temperature", "det")})
    console = Console(width=80)
    with console.capture() as capture:
        console.print(baseline_table(rows))
    lines = capture.get().splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in capture.get().replace(" … ", " ")  # nothing was cut
    assert sum("undecided" in line for line in lines) == 6

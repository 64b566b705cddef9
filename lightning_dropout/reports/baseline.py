"""Do stochastic passes beat the plain forward, and the plain forward with one temperature? Paired, sample by sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from lightning_dropout import log_keys
from lightning_dropout.metrics.bootstrap import Difference, paired_bootstrap

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["BaselineRow", "baseline_rows", "baseline_table"]

# Where each stands among the scores of a sample, and whether more of it is better.
_SCORES = {
    log_keys.ACCURACY: ("right", 1),
    log_keys.NLL: ("nll", -1),
    log_keys.BRIER: ("brier", -1),
    log_keys.MAE: ("error", -1),
}
_BASELINES = {log_keys.DET: "det", log_keys.TEMPERATURE: "det + temp."}


@dataclass(frozen=True)
class BaselineRow:
    """One score of all sides.

    Args:
        score: ``accuracy``, ``nll``, ``brier`` or ``mae``.
        values: Its mean over the samples, by side.
        differences: The passes' mean minus that of another side, with a 95 % interval, by that side.
        better: 1 where more is better, -1 where less is.
    """

    score: str
    values: Mapping[str, float]
    differences: Mapping[str, Difference]
    better: int

    def verdict(self, side: str) -> str:
        """Return what the interval says of the passes beside ``side``."""
        return ("undecided", "better", "worse")[self.differences[side].sign * self.better]


def baseline_rows(scores: Mapping[str, Mapping[str, Tensor]]) -> list[BaselineRow]:
    """Compare the passes (``mc``) with every other side, on the samples that have a label.

    Args:
        scores: By side, as ``metrics.sample_scores`` gives them, of the same samples in the same order.

    Returns:
        A row for each score; none without labels or without another side.

    Example:
        >>> import torch
        >>> right, wrong = ({"label": torch.ones(2), "right": torch.full((2,), value)} for value in (1.0, 0.0))
        >>> (row,) = baseline_rows({"mc": right, "det": wrong})
        >>> row.score, row.values, row.verdict("det")
        ('accuracy', {'det': 0.0, 'mc': 1.0}, 'better')
    """
    passes = scores.get(log_keys.MC, {})
    others = [side for side in _BASELINES if side in scores]
    if "label" not in passes or not others:
        return []
    counted = ~passes["right"].isnan() if "right" in passes else slice(None)
    rows = []
    for score, (column, better) in _SCORES.items():
        if column in passes:
            values = {side: scores[side][column][counted] for side in (*others, log_keys.MC)}
            if score == log_keys.MAE:
                values = {side: errors.abs() for side, errors in values.items()}
            differences = {side: paired_bootstrap(values[log_keys.MC], values[side]) for side in others}
            means = {side: each.double().mean().item() for side, each in values.items()}
            rows.append(BaselineRow(score, means, differences, better))
    return rows


def baseline_table(rows: list[BaselineRow]) -> Table:
    """Return the rows as a table for the terminal.

    Example:
        >>> baseline_table([]).row_count
        0
    """
    from rich.table import Table

    table = Table(title="Monte-Carlo dropout beside its baselines")
    for header in ("", "", "value", "mc − it", "95 % interval"):
        table.add_column(header, justify="right" if header else "left", no_wrap=True)
    table.add_column("mc is")
    for row in rows:
        name = row.score
        for side, difference in row.differences.items():
            interval = f"{difference.low:+.4f} … {difference.high:+.4f}"
            cells = [_BASELINES[side], f"{row.values[side]:.4f}", f"{difference.mean:+.4f}", interval]
            table.add_row(name, *cells, row.verdict(side))
            name = ""
        table.add_row("", log_keys.MC, f"{row.values[log_keys.MC]:.4f}", end_section=True)
    return table

"""How well what a model is unsure of tells other data sets from its own: which loaders they are, and the numbers.

The first loader is in-distribution. Scores are kept as they come in and compared at the end of the test, on all ranks
alike: which keys there are follows from the settings alone. Labels are never looked at.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import SumMetric

from lightning_dropout import log_keys
from lightning_dropout.metrics import FPR95, OODAUROC
from lightning_dropout.metrics.sample_scores import sample_scores
from lightning_dropout.sampling.prediction import MCPrediction, Task

__all__ = ["OODScores", "has_ood_scores", "ood_names"]

# The columns of ``sample_scores`` by side, and their sign: higher must mean more out-of-distribution.
_COLUMNS: dict[str, dict[str, tuple[str, float]]] = {
    log_keys.MC: {
        log_keys.MAX_PROBABILITY: ("confidence", -1.0),
        log_keys.ENTROPY: ("entropy", 1.0),
        log_keys.MUTUAL_INFORMATION: ("mutual_information", 1.0),
    },
    log_keys.DET: {
        log_keys.DET_MAX_PROBABILITY: ("confidence", -1.0),
        log_keys.DET_ENTROPY: ("entropy", 1.0),
    },
}


def has_ood_scores(task: Task) -> bool:
    """Tell whether a sample of ``task`` has a distribution over classes."""
    return task in ("binary", "multiclass", "probabilities")


def ood_names(trainer: Any, ood: Literal["auto"] | Sequence[str]) -> tuple[str, ...]:
    """Return the names of the test loaders after the first, if they are out-of-distribution; none if they are not.

    Args:
        trainer: At the start of a test.
        ood: The names, or ``"auto"``: the ``ood_names`` of the data module that the loaders come from, if it has any.

    Raises:
        ValueError: If there are names, but not one for each loader after the first.
    """
    # not `trainer.datamodule`, which after a fit is still there in a test of other loaders
    source = trainer.test_loop._data_source.instance
    names = log_keys.check_ood_names(getattr(source, "ood_names", ()) if ood == "auto" else ood)
    others = len(trainer.num_test_batches) - 1
    if names and len(names) != others:
        origin = f"the `ood_names` of {type(source).__name__}" if ood == "auto" else "the list"
        raise ValueError(
            f"Expected `ood` to name each of the {others} test loaders after the first, which is in-distribution, but "
            f"{origin} has {len(names)}: {', '.join(names)}; pass one name a loader, or `ood=()` if they are all "
            "in-distribution."
        )
    return names


class OODScores:
    """Scores of the samples of a test, and what they tell apart.

    Args:
        names: Of the loaders after the first.
        class_dim: The dimension of the classes.
        passes: Number of passes by side: ``{"mc": 30, "det": 1}``.
        device: Where ranks exchange them.

    Example:
        >>> OODScores(["noise"], class_dim=1, passes={"mc": 1, "det": 1}, device=torch.device("cpu")).scores
        ['max_probability', 'entropy', 'det_max_probability', 'det_entropy']
    """

    def __init__(
        self, names: Sequence[str], class_dim: int, *, passes: Mapping[str, int], device: torch.device
    ) -> None:
        self.names, self.class_dim, self.device = tuple(names), class_dim, device
        self._columns = {
            side: {
                score: column
                for score, column in _COLUMNS[side].items()
                if passes[side] > 1 or score != log_keys.MUTUAL_INFORMATION
            }
            for side in _COLUMNS
            if side in passes
        }
        self._batches: dict[tuple[int, str], list[Tensor]] = defaultdict(list)  # by loader and score

    @property
    def scores(self) -> list[str]:
        """Those that are compared."""
        return [score for columns in self._columns.values() for score in columns]

    def update(self, dataloader_idx: int, sides: Mapping[str, MCPrediction]) -> None:
        """Take in one call of the module."""
        for side, columns in self._columns.items():
            found = sample_scores(sides[side], class_dim=self.class_dim)  # nothing if a sample has several answers
            for score, (column, sign) in columns.items() if found else ():
                self._batches[dataloader_idx, score].append(sign * found[column])

    def compute(self) -> Iterator[tuple[str, Tensor, str | None]]:
        """Yield key, value and, of a NaN, what is to be said; nothing if no sample has a score. Every rank calls it."""
        seen = SumMetric().to(self.device)
        seen.update(sum(map(len, self._batches.values())))
        for number, name in enumerate(self.names if seen.compute() else (), start=1):
            for score in self.scores:
                inside, outside = (self._kept(dataloader_idx, score) for dataloader_idx in (0, number))
                for part, metric in ((log_keys.AUROC, OODAUROC()), (log_keys.FPR95, FPR95())):
                    metric.to(self.device)
                    metric.update(inside, torch.zeros_like(inside))
                    metric.update(outside, torch.ones_like(outside))
                    key = log_keys.ood_key("test", part, score, name if len(self.names) > 1 else "")
                    reason = metric.why_undefined()
                    if reason is None:
                        yield key, metric.compute(), None
                    else:
                        yield key, torch.tensor(torch.nan), f"how {name} is told apart is NaN, since {reason}."

    def _kept(self, dataloader_idx: int, score: str) -> Tensor:
        batches = self._batches.get((dataloader_idx, score), [])
        return torch.cat([torch.empty(0), *batches]).to(self.device)

"""What a fit has logged, kept as it comes: rates by step, losses by epoch. Plain numbers, for checkpoints to hold."""

from collections.abc import Iterable
from typing import Any

from lightning_dropout import log_keys

__all__ = ["RunHistory"]

_RATES = (f"{log_keys.DROPOUT}/", f"{log_keys.DROP_PATH}/")
_MOST_PLACES = 4096  # of a key: a checkpoint holds them, and a figure has about a thousand pixels


class RunHistory:
    """Values of the keys that the figures of a fit are made of.

    Example:
        >>> history = RunHistory()
        >>> history.add({"dropout/mean": 0.1, "lr": 1.0}, at=3, keys=history.rates)
        >>> history.values
        {'dropout/mean': ([3], [0.1])}
    """

    def __init__(self) -> None:
        self.values: dict[str, tuple[list[float], list[float]]] = {}

    @staticmethod
    def rates(key: str) -> bool:
        """Tell whether ``key`` is a rate, at a step."""
        return key.startswith(_RATES)

    @staticmethod
    def training(key: str) -> bool:
        """Tell whether ``key`` is what an epoch of training logs."""
        return key == log_keys.TRAIN_LOSS

    @staticmethod
    def validation(key: str) -> bool:
        """Tell whether ``key`` is what a validation logs; trainers keep its value in epochs without one."""
        return key in (log_keys.VAL_LOSS, log_keys.VAL_GAP)

    def add(self, metrics: Any, at: float, keys: Any) -> None:
        """Note those of ``metrics`` that ``keys`` names; a later value at the same place counts."""
        for key, value in metrics.items():
            if keys(key):
                places, values = self.values.setdefault(key, ([], []))
                if places and places[-1] >= at:  # a resumed run repeats what came after its checkpoint
                    kept = sum(place < at for place in places)
                    del places[kept:], values[kept:]
                places.append(at)
                values.append(float(value))
                if len(places) > _MOST_PLACES:  # the past in less detail
                    del places[1:-1:2], values[1:-1:2]

    def state(self) -> dict[str, list[list[float]]]:
        """Return plain lists."""
        return {key: [list(places), list(values)] for key, (places, values) in self.values.items()}

    def load(self, state: dict[str, Iterable[Iterable[float]]]) -> None:
        """Take over what :meth:`state` has returned."""
        for key, columns in state.items():
            places, values = columns
            self.values[key] = [*places], [*values]

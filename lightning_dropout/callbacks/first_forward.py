"""The audit of a run's own first training forward in which something drops; nothing is run in addition.

Watches between the start of a batch and its backward, and takes itself off whatever happens in between.
"""

from dataclasses import dataclass, field
from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from lightning_dropout.sites import Audit, Observer, compare, compiled_roots, sites_of

__all__ = ["FirstForward"]


@dataclass
class FirstForward:
    """Watches one forward and says what it dropped.

    Args:
        wanted: Whether there is anything to do at all.
        findings: What was seen; ``None`` before.
    """

    wanted: bool
    findings: Audit | None = None
    _observer: Observer | None = field(default=None, init=False, repr=False)

    @property
    def pending(self) -> bool:
        """Whether a forward is still to be watched."""
        return self.wanted and self.findings is None

    def watch(self, model: nn.Module, whose: str) -> None:
        """Watch from now on, unless the model is compiled, which is said."""
        if compiled_roots(model):
            self.wanted = False
            rank_zero_info(
                f"{whose}: compiled code cannot be observed, so `audit=True` reports nothing; audit the model before "
                "it is compiled: `audit(model, batch)`."
            )
            return
        self._observer = Observer(model)
        self._observer.__enter__()

    def report(self, model: Any) -> None:
        """Stop watching, compare with the sites and print; nothing if nobody watches."""
        if self._observer is not None:
            observer = self._observer
            self.stop()
            self.findings = compare(model, sites_of(model, strict=False), observer)
            self.findings.show()

    def stop(self) -> None:
        """Stop watching."""
        if self._observer is not None:
            observer, self._observer = self._observer, None
            observer.__exit__(None, None, None)

"""The passes of a stage in the terminal, as a bar beneath Lightning's own, which moves once a batch.

By duck typing, since bars are anybody's: one that holds a `rich` progress shows the passes, any other nothing. Whatever
fails here ends the bar and nothing else.
"""

import time
from typing import Any

__all__ = ["PassProgress"]

_BETWEEN = 0.25  # seconds between two drawings, each of which takes some milliseconds


class PassProgress:
    """Counts passes, and shows how many there are with their rate and the time left.

    Args:
        bar: The progress bar of the trainer, or None.
        total: How many passes there will be; infinity if nobody knows.

    Example:
        >>> progress = PassProgress(bar=None, total=90)
        >>> progress.advance()
        >>> progress.end()
    """

    def __init__(self, bar: Any, total: float) -> None:
        self._bar: Any = bar if getattr(bar, "is_enabled", False) and hasattr(bar, "progress") else None
        self._total = total
        self._count = 0
        self._drawn_at = time.monotonic()  # a stage that is over at once needs no bar
        self._task: Any = None  # comes with the first pass: the bar may begin its stage after us

    def advance(self) -> None:
        """Count a pass."""
        self._count += 1
        if self._bar is not None and time.monotonic() >= self._drawn_at + _BETWEEN:
            self._draw(visible=True)
            self._drawn_at = time.monotonic()

    def hide(self) -> None:
        """Take the bar away until the next pass: what is logged beneath two lines would be drawn over."""
        if self._bar is not None and self._task is not None:
            self._draw(visible=False)

    def end(self) -> None:
        """Take the bar away for good."""
        self.hide()
        self._bar = None

    def _draw(self, *, visible: bool) -> None:
        try:
            progress = self._bar.progress
            if self._task is None:
                self._task = progress.add_task("Passes", total=self._total)
            # Hidden, never removed: Lightning before 2.6 finds its own tasks by their place among all.
            progress.update(self._task, completed=self._count, visible=visible)
            if visible:
                self._bar.refresh()  # soon, in a thread
            else:
                progress.refresh()
        except Exception:
            self._bar = None

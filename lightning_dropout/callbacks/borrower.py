"""What our callbacks borrow from a model for a stage comes back, whatever ends the stage and whoever else fails then.

Lightning asks the callbacks in turn when a stage fails; if one of them fails as well, it asks no more, and comes to no
``teardown``. So whoever borrows is asked first. Nothing here knows what is borrowed.
"""

from abc import abstractmethod
from contextlib import ExitStack
from typing import Any

from lightning_dropout.callbacks.any_callback import AnyCallback

__all__ = ["Borrower"]


class Borrower(AnyCallback):
    """A callback that changes the model for the length of a stage; a subclass says how it gives everything back.

    For the length of a stage ``trainer.callbacks`` begins with one more callback, which does no more than this. After
    an error it also brings back the training flags that Lightning has switched off for an evaluation.

    Example:
        >>> class Lends(Borrower):
        ...     def give_back(self):
        ...         print("as it was")
        >>> Lends().teardown(trainer=None, pl_module=None, stage="fit")
        as it was
    """

    @abstractmethod
    def give_back(self) -> None:
        """Give everything back; called more than once, also in the middle of borrowing or giving back."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if not any(isinstance(callback, _FirstToHear) for callback in trainer.callbacks):
            _FirstToHear().stand_in_front(trainer)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.give_back()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.give_back()


class _FirstToHear(AnyCallback):
    """Lets all borrowers of a trainer give back before any other callback can get in the way."""

    def stand_in_front(self, trainer: Any) -> None:
        self._others = trainer.callbacks
        trainer.callbacks = [
            self,
            *trainer.callbacks,
        ]  # a new list, since the trainer runs through the old one just now
        # Lightning keeps the flags of the last evaluation; one that fails before it has begun must not get these.
        _flags(trainer).mode.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # a copy of one callback is no copy of all

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        with ExitStack() as stack:  # goes on where one fails
            stack.callback(self._leave, trainer)
            if trainer.evaluating or trainer.predicting:  # the former also inside a fit
                stack.callback(_flags(trainer).restore, pl_module)
            for borrower in _borrowers(trainer):
                stack.callback(borrower.give_back)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        for borrower in _borrowers(trainer):
            borrower.give_back()
        self._leave(trainer)  # last: until then, an interrupt is still for us to hear of

    def _leave(self, trainer: Any) -> None:
        others = [callback for callback in trainer.callbacks if callback is not self]
        trainer.callbacks = self._others if others == self._others else others


def _borrowers(trainer: Any) -> list[Borrower]:
    return [callback for callback in trainer.callbacks if isinstance(callback, Borrower)]


def _flags(trainer: Any) -> Any:
    """Return where Lightning keeps the training flags while it evaluates."""
    return (trainer.predict_loop if trainer.predicting else trainer._evaluation_loop)._module_mode

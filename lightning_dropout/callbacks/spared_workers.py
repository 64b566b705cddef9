"""Worker processes that a signal to the whole process group or SLURM step does not end: their parent decides.

Such a signal reaches the forked workers of data loaders too. torch ends them at any SIGTERM that is not their parent's,
and then the parent with "DataLoader worker is killed by signal", in the middle of a step. Processes that are spawned
instead of forked are not reached from here.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterable
from weakref import WeakKeyDictionary

__all__ = ["release_workers", "spare_workers"]

_signals: WeakKeyDictionary[object, tuple[int, ...]] = WeakKeyDictionary()  # by who asked


def spare_workers(owner: object, signals: Iterable[int]) -> None:
    """Let no process that is forked from now on receive ``signals``, but for SIGTERM of its parent, which ends it.

    Args:
        owner: Who asks for it; until ``release_workers``, or until it is gone.
        signals: Their numbers.
    """
    _signals[owner] = tuple(signals)


def release_workers(owner: object) -> None:
    """Let processes that are forked from now on receive all signals again, unless others have asked, too."""
    _signals.pop(owner, None)


def _after_fork_in_child() -> None:
    signals = {signum for each in _signals.values() for signum in each}
    forker = sys._getframe(1).f_globals.get("__name__")
    if signals and forker == "multiprocessing.popen_fork":  # not `subprocess`: a program keeps what is blocked
        _signals.clear()  # for the children of this child
        # Blocked and not ignored: torch sets handlers of its own after this.
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

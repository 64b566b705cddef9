"""What a script runs its Hydra main with: a wrong config ends in one line and exit code 2, a bug in its traceback.

Changes nothing that outlasts the call. How an exception becomes a line is the business of ``explain``.
"""

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from hydra.core.utils import JobReturn, JobStatus
from hydra.types import RunMode

from lightning_dropout.configuration.composition import composition_checked
from lightning_dropout.configuration.explain import explain
from lightning_dropout.configuration.redaction import refuse_secrets

__all__ = ["run_main"]

_FULL_ERROR = "HYDRA_FULL_ERROR"  # without it Hydra prints exceptions itself, on several lines, and exits with 1
_SET_BY_US = "LIGHTNING_DROPOUT_ONE_LINE_ERRORS"  # tells the other ranks, started later, that no user asked for it
_ORPHANS_LIVE = 10.0  # seconds in which a rank can say itself why it ends
_WRONG_CONFIG = 2
_INTERRUPTED = 128 + 2  # as shells report SIGINT
_NOBODY_READS = 128 + 13  # as shells report SIGPIPE


def run_main(main: Callable[[], object]) -> None:
    """Run a function decorated by ``hydra.main`` so that a wrong config or command line costs one readable line.

    Wrong configs print ``error: key=value: problem; cure`` and exit with 2; Ctrl-C exits with 130; any other exception
    comes through with its traceback. In a multirun every failed job is named, after the other jobs are done. Secrets
    on the command line or in a config are refused before Hydra writes them into files, and so is a ``hydra`` node that
    would run code. Ranks that Lightning has started end soon after the first one, however it ends, and do not wait for
    it. With ``HYDRA_FULL_ERROR=1`` in the environment no exception is rewritten.

    Args:
        main: Called without arguments; reads ``sys.argv`` itself, as ``hydra.main`` does.

    Raises:
        SystemExit: After anything but success and bugs.

    Example:
        ::

            @hydra.main(version_base="1.3", config_path="../conf", config_name="train")
            def main(cfg: DictConfig) -> None: ...


            if __name__ == "__main__":
                run_main(main)
    """
    if os.environ.get(_FULL_ERROR) == "1" and _SET_BY_US not in os.environ:
        with composition_checked():
            refuse_secrets(sys.argv[1:])
            main()
        return
    if _SET_BY_US in os.environ:  # a rank that the first one has started
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    with _environment({_FULL_ERROR: "1", _SET_BY_US: "1"}), composition_checked(), _failed_jobs() as failures:
        try:
            refuse_secrets(sys.argv[1:])
            main()
        except KeyboardInterrupt:
            sys.exit(_INTERRUPTED)
        except SystemExit as exit_:
            if isinstance(exit_.__context__, KeyboardInterrupt):  # Lightning's Trainer turns it into exit code 1
                sys.exit(_INTERRUPTED)
            raise
        except Exception as error:
            if isinstance(error, BrokenPipeError) and not failures:  # `--help | head`: nobody reads on
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                sys.exit(_NOBODY_READS)
            if all(failure.error is not error for failure in failures):  # no job raised it, Hydra itself did
                failures.append(_Failure(error, ""))
            bugs = 0
            for failure in failures:
                line = explain(failure.error)
                job = f" [job: {failure.job}]" if failure.job else ""
                if line is not None:
                    print(f"error: {line}{job}", file=sys.stderr)
                else:
                    bugs += 1
                    if failure.error is not error:  # the one that was raised keeps its traceback by itself
                        traceback.print_exception(failure.error)
            if explain(error) is None:
                raise
            sys.exit(1 if bugs else _WRONG_CONFIG)


@dataclass(frozen=True)
class _Failure:
    error: Exception
    job: str  # its overrides in a multirun, else empty


@contextmanager
def _failed_jobs() -> Iterator[list[_Failure]]:
    """Collect the exceptions of all jobs; Hydra itself reports the first one only, and that at the end.

    Hydra stores the outcome of each job in ``JobReturn.return_value``, prints "Error executing job with overrides"
    when a failed one is read, and raises. Here reading raises without printing.
    """
    failures: list[_Failure] = []
    original = JobReturn.__dict__["return_value"]

    def note(job: JobReturn, error: Exception) -> None:
        if all(failure.error is not error for failure in failures):
            several = job.hydra_cfg is not None and job.hydra_cfg.hydra.mode is RunMode.MULTIRUN
            failures.append(_Failure(error, " ".join(job.overrides or ()) if several else ""))

    def read(job: JobReturn) -> object:
        if job.status is JobStatus.FAILED and isinstance(job._return_value, Exception):
            note(job, job._return_value)
            raise job._return_value
        return original.fget(job)

    def write(job: JobReturn, value: object) -> None:
        if isinstance(value, Exception) and value.__traceback__ is not None:  # raised, not returned
            note(job, value)
        original.fset(job, value)

    JobReturn.return_value = property(read, write)  # type: ignore[method-assign,assignment]
    try:
        yield failures
    finally:
        JobReturn.return_value = original  # type: ignore[method-assign]


def _end_with(parent: int) -> None:
    """End this process soon after its parent, whatever it is doing; the other way round Lightning sees to it."""
    while os.getppid() == parent:
        time.sleep(1.0)
    time.sleep(_ORPHANS_LIVE)
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

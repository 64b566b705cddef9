"""What wandb keeps once per process: the login, the terminal, the open run. The only file that touches those.

Nothing here may raise because of W&B, ask a question, or leave the environment changed; wandb is imported inside the
functions, so that a run without W&B does not pay for it.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import queue
import re
import shlex
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

__all__ = ["finish_wandb"]

Result = TypeVar("Result")


def say(line: str) -> None:
    """Print one line to stderr, not as a Python warning: under ``python -W error`` that would stop the training."""
    print(f"W&B: {line}", file=sys.stderr, flush=True)


def in_one_line(error: BaseException | str) -> str:
    """Return the first line of a message, at most 200 characters long, with the type of an error before it."""
    lines = str(error).strip().splitlines()
    text = lines[0][:200].rstrip(" .:") if lines else ""
    if isinstance(error, BaseException):
        return f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text


def within(seconds: float, call: Callable[[], Result]) -> Result:
    """Return what ``call`` returns, or raise what it raises; after ``seconds`` it is left to itself.

    Raises:
        TimeoutError: If it takes longer. It then goes on in a thread that the end of the process does not wait for.
    """
    outcome: queue.SimpleQueue[tuple[Result | None, Exception | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            outcome.put((call(), None))
        except Exception as error:
            outcome.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        result, error = outcome.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:g} s") from None
    if error is not None:
        raise error
    return cast(Result, result)


def run_folder(run: Any) -> str:
    """Return the folder of a run as it can be pasted after ``wandb sync``."""
    return shlex.quote(str(Path(run.dir).parent.absolute()))


def last_run(save_dir: str | os.PathLike[str]) -> str | None:
    """Return the id of the run that was the last to begin in a folder; wandb names its folders by time and id."""
    names = (
        re.fullmatch(r"(?:offline-)?run-(\d{8}_\d{6})-(.+)", path.name)
        for path in Path(save_dir, "wandb").glob("*run-*")
    )
    runs = sorted(name.groups() for name in names if name)
    return runs[-1][1] if runs else None


@contextlib.contextmanager
def hushed() -> Iterator[list[str]]:
    """Keep wandb's own lines off the terminal meanwhile, and yield the list that its warnings and errors go to."""
    import wandb

    class Collector:
        def info(self, message: str) -> None:
            pass

        def warning(self, message: str) -> None:
            collected.append(message)

        error = warning

    collected: list[str] = []
    settings = wandb.setup().settings
    wandb.termsetup(settings.model_copy(update={"silent": True}), Collector())
    try:
        yield collected
    finally:
        wandb.termsetup(settings, None)


def mode_of_environment() -> Literal["online", "shared", "offline", "disabled"] | None:
    """Return what ``WANDB_MODE`` asks for, ``None`` where it is unset or empty.

    Raises:
        ValueError: If it holds a word that wandb does not know.
    """
    word = os.environ.get("WANDB_MODE", "")
    match word:
        case "":
            return None
        case "online" | "shared" | "offline" | "disabled":
            return word
        case "run":
            return "online"
        case "dryrun":
            return "offline"
    raise ValueError(
        f"Expected the environment variable `WANDB_MODE` to be online, offline, disabled, shared, run or dryrun, "
        f"but got {word!r}; unset it to let `mode` decide."
    )


def login_problem() -> str:
    """Return why this process cannot go online, "" if it has credentials; asks neither the user nor the network."""
    try:
        import wandb

        settings = wandb.setup().settings
        if settings.mode in ("offline", "dryrun", "disabled"):  # wandb.login would only say no
            return f"`wandb {settings.mode}` was called; `wandb online` undoes it"
        if "prompt" not in inspect.signature(wandb.login).parameters:  # wandb < 0.30 would ask at a terminal
            known = bool(wandb.api.api_key or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"))
        else:
            # A login that is not silent asks the server for the user's name: 5 s where there is no network.
            silent, settings.silent = settings.silent, True
            try:
                with hushed():
                    known = wandb.login(prompt=False, verify=False)
            finally:
                settings.silent = silent
    except Exception as error:  # a key of the wrong length, an unreadable netrc, a wandb that cannot be imported
        return in_one_line(error)
    return "" if known else "no API key; `wandb login` stores one"


def finish_wandb(exit_code: int | None = None) -> None:
    """Close the run that is open in this process, if there is one; never raise, never wait for long.

    Call it in a ``finally`` after training: without it the next logger of a sweep in one process would find the run
    still open. Waits for uploads as long as the logger's `finish_timeout` says; if something could not be uploaded, one
    line says where the run is. Does nothing, and imports nothing, where no run was started (as on other ranks).

    Args:
        exit_code: 0 marks the run as finished, anything else as failed. Default: failed if it is called while an
            exception is on its way (in the ``finally`` or ``except`` of a ``try``), else finished.

    Example:
        >>> try:
        ...     pass  # trainer.fit(...), trainer.test(...)
        ... finally:
        ...     finish_wandb()
    """
    wandb = sys.modules.get("wandb")
    run = getattr(wandb, "run", None)
    if wandb is None or run is None:
        return
    if exit_code is None:
        error = sys.exc_info()[1]
        exit_code = int(error is not None and not (isinstance(error, SystemExit) and not error.code))
    problem = ""
    try:
        with hushed() as warnings:
            run.finish(exit_code=exit_code)
        if warnings and not run.offline:
            problem = in_one_line(warnings[0])
    except TimeoutError as error:  # from `finish_timeout_raises`
        problem = in_one_line(error)
    except Exception as error:
        problem = in_one_line(error)
        _abandon_service()
    if problem:
        say(f"not everything was uploaded ({problem}); it is on disk, upload it with `wandb sync {run_folder(run)}`")


def _abandon_service() -> None:
    # wandb's background process is gone (killed for memory, say). Tearing down fails too, but drops what points at it,
    # so that the next run of this process starts a new one.
    import wandb

    with contextlib.suppress(Exception):
        wandb.teardown()
    wandb.run = None

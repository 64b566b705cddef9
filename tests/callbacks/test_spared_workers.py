"""Forked processes and the signals of strangers: real forks, real signals."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from lightning_dropout.callbacks.spared_workers import release_workers, spare_workers

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="no fork"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Owner:
    """Somebody who asks."""


def survives(signum: int, *, from_parent: bool = False) -> bool:
    """Whether a process that is forked now is alive after a signal."""
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(30,), daemon=True)
    worker.start()
    time.sleep(0.1)  # its thread has begun
    try:
        if from_parent:
            worker.terminate()
        else:
            subprocess.run(["kill", f"-{signum}", str(worker.pid)], check=True)
        worker.join(0.3)
        return worker.is_alive()
    finally:
        worker.kill()
        worker.join()


def test_strangers_do_not_end_a_spared_worker() -> None:
    owner = Owner()
    spare_workers(owner, SIGNALS)
    try:
        assert all(survives(signum) for signum in SIGNALS)
        assert not survives(signal.SIGTERM, from_parent=True)
    finally:
        release_workers(owner)


def test_others_are_left_as_they_are() -> None:
    assert not survives(signal.SIGUSR1)
    owner = Owner()
    spare_workers(owner, SIGNALS)
    release_workers(owner)
    assert not survives(signal.SIGUSR1)
    spare_workers(owner, SIGNALS)
    del owner  # it needs no release
    assert not survives(signal.SIGUSR1)


def test_the_parent_itself_is_not_touched() -> None:
    owner = Owner()
    spare_workers(owner, SIGNALS)
    try:
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(SIGNALS)
    finally:
        release_workers(owner)


def test_programs_are_left_as_they_are() -> None:
    owner = Owner()
    spare_workers(owner, SIGNALS)
    try:
        program = subprocess.Popen(["sleep", "30"], preexec_fn=os.setpgrp)
        program.terminate()
        assert program.wait(5) == -signal.SIGTERM
    finally:
        release_workers(owner)

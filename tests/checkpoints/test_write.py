"""A kill before any line, real kills at random, full disks: the older or the newer checkpoint is whole.

The children are forked, since a new interpreter with torch takes seconds. They die as a killed job does, without any
cleanup.
"""

import errno
import fcntl
import hashlib
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins import TorchCheckpointIO

from lightning_dropout.checkpoints import CorruptCheckpointError, verify_checkpoint, write
from lightning_dropout.checkpoints.write import write_checkpoint

Content = dict[str, Any]
Make = Callable[..., Content]
Writer = Callable[[Content, Path], object]
Points = Callable[[Callable[[], None]], object]

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

KILLED = 9
TRACED = (write.__file__, __file__, shutil.__file__)


def fork(function: Callable[[], object]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            function()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return pid


def exit_code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def lines(step: Callable[[], None]) -> None:
    """Call ``step`` before every line of the writers."""

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename not in TRACED:
            return None
        if event == "line":
            step()
        return trace

    sys.settrace(trace)


def changes(step: Callable[[], None]) -> None:
    """Call ``step`` before whatever makes, renames, cuts or removes a file: a tenth of the lines."""
    names = {"open", "os.rename", "os.remove", "os.truncate"}
    sys.addaudithook(lambda event, _: step() if event in names else None)


def dies_before(number: int, function: Callable[[], object], points: Points) -> bool:
    """Run a function in a child that ends before so many points; return whether there are so many."""

    def step() -> None:
        nonlocal number
        number -= 1
        if number < 0:
            os._exit(KILLED)

    def watched() -> None:
        points(step)
        function()

    code = exit_code(fork(watched))
    assert code in (0, KILLED)
    return code == KILLED


def lightning(content: Content, path: Path) -> None:
    TorchCheckpointIO().save_checkpoint(content, path)


def in_place(content: Content, path: Path) -> None:
    """Mutant: no temporary file."""
    with path.open("wb") as file:
        torch.save(content, file)
        file.flush()


def sum_line(file: Path, path: Path) -> str:
    return f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {path.name}\n"


def sum_second(content: Content, path: Path) -> None:
    """Mutant: both files renamed, the checkpoint first."""
    new, sums = path.with_suffix(".new"), path.with_name(f"{path.name}.sha256")
    torch.save(content, new)
    new_sums = path.with_suffix(".sum")
    new_sums.write_text(sum_line(new, path))
    new.replace(path)
    new_sums.replace(sums)


def nothing(folder: Path, make: Make) -> None: ...


def of_another_program(folder: Path, make: Make) -> None:
    torch.save(make(1), folder / "a.ckpt")


def ours(folder: Path, make: Make) -> None:
    write_checkpoint(make(1), folder / "a.ckpt")


def left_by_a_kill(folder: Path, make: Make) -> None:
    """The sums are new, the checkpoint is not; an orphan lies beside."""
    ours(folder, make)
    pid = fork(lambda: _die_when_replacing(folder / "a.ckpt", make(0)))
    assert exit_code(pid) == KILLED
    assert (folder / "a.ckpt.sha256").read_text().count("\n") == 2


def _die_when_replacing(path: Path, content: Content) -> None:
    original = write._replace
    write._replace = lambda file, target: os._exit(KILLED) if target == path else original(file, target)
    write_checkpoint(content, path)


BEFORE = {before.__name__: before for before in (nothing, of_another_program, ours, left_by_a_kill)}


def losses(write_one: Writer, before: str, folder: Path, make: Make, points: Points = lines) -> list[str]:
    """Kill the writer before each of its points in turn; return what was lost, and what the next save did not heal."""
    lost, number = [], 0
    path, template = folder / "run" / "a.ckpt", folder / "template"
    template.mkdir()
    BEFORE[before](template, make)
    while True:
        shutil.rmtree(path.parent, ignore_errors=True)
        shutil.copytree(template, path.parent)
        old = path.exists()
        killed = dies_before(number, lambda: write_one(make(2), path), points)
        try:
            verify_checkpoint(path)
            step = torch.load(path, weights_only=True)["global_step"]
            if step not in ((1, 2) if killed else (2,)):
                lost.append(f"{number}: step {step}")
        except FileNotFoundError:
            if old or not killed:
                lost.append(f"{number}: gone")
        except CorruptCheckpointError as error:
            lost.append(f"{number}: {error}")
        if write_one is write_checkpoint:
            write_checkpoint(make(3), path)
            assert {each.name for each in path.parent.iterdir()} == {"a.ckpt", "a.ckpt.sha256"}  # no orphan
            assert (path.parent / "a.ckpt.sha256").read_text() == sum_line(path, path)
        if not killed:
            break
        number += 1
    assert number > 3  # points were counted at all
    return lost


@pytest.fixture
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process has written survives the process; only a power cut asks for more."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.mark.usefixtures("quick_disk")
@pytest.mark.parametrize("points", [changes, pytest.param(lines, marks=pytest.mark.slow)])
@pytest.mark.parametrize("before", BEFORE)
def test_a_kill_at_any_point_leaves_a_whole_checkpoint(
    before: str, points: Points, tmp_path: Path, content: Make
) -> None:
    assert losses(write_checkpoint, before, tmp_path, content, points) == []


@pytest.mark.parametrize("mutant", [in_place, sum_second], ids=lambda mutant: mutant.__name__)
def test_other_ways_of_writing_lose_one(mutant: Writer, tmp_path: Path, content: Make) -> None:
    assert losses(mutant, "ours", tmp_path, content)


@pytest.mark.usefixtures("quick_disk")
@pytest.mark.parametrize("before", ["ours", "of_another_program"])
def test_without_the_older_sum_a_kill_loses_the_older_checkpoint(
    before: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Make
) -> None:
    monkeypatch.setattr(write, "_older_lines", lambda path: b"")
    assert losses(write_checkpoint, before, tmp_path, content, changes)


@pytest.mark.slow
def test_lightning_loses_one_across_file_systems(
    tmp_path: Path, other_file_system: Path, monkeypatch: pytest.MonkeyPatch, content: Make
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(other_file_system))
    assert losses(lightning, "of_another_program", tmp_path, content)


def corrupt_after_kills(write_one: Writer, path: Path, make: Make, kills: int) -> int:
    """Count the SIGKILLs during endless saving after which no whole checkpoint is left."""
    chance, corrupt = random.Random(0), 0
    for _ in range(kills):
        steps = [make(step, 2_000_000) for step in (1, 2)]

        def save_forever(steps: list[Content] = steps) -> None:
            while True:
                for step in steps:
                    write_one(step, path)

        pid = fork(save_forever)
        try:
            while not path.exists():
                time.sleep(0.001)
            time.sleep(0.15 * chance.random())
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        try:
            verify_checkpoint(path)
            assert torch.load(path, weights_only=True)["global_step"] in (1, 2)
        except CorruptCheckpointError:
            corrupt += 1
            path.unlink()
    return corrupt


@pytest.mark.parametrize("kills", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_real_kills(tmp_path: Path, content: Make, kills: int) -> None:
    assert corrupt_after_kills(write_checkpoint, tmp_path / "a.ckpt", content, kills) == 0
    write_checkpoint(content(3), tmp_path / "a.ckpt")
    assert {path.name for path in tmp_path.iterdir()} == {"a.ckpt", "a.ckpt.sha256"}


@pytest.mark.slow
def test_real_kills_across_file_systems(
    tmp_path: Path, other_file_system: Path, monkeypatch: pytest.MonkeyPatch, content: Make
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    path = other_file_system / "a.ckpt"
    assert corrupt_after_kills(write_checkpoint, path, content, 50) == 0
    path.with_name("a.ckpt.sha256").unlink()  # Lightning knows of none
    assert corrupt_after_kills(lightning, path, content, 50) > 0


def test_sha256sum_agrees(tmp_path: Path, content: Make) -> None:
    command = shutil.which("sha256sum")
    if command is None:
        pytest.skip("there is no sha256sum here")
    for step in (1, 2):
        write_checkpoint(content(step, 3_000_000), tmp_path / "a b.ckpt")  # several blocks
    checked = subprocess.run(
        [command, "-c", "a b.ckpt.sha256"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert checked.stdout == "a b.ckpt: OK\n"


def test_the_file_is_what_torch_saves_and_others_may_read_it(tmp_path: Path, content: Make) -> None:
    write_checkpoint(content(1), tmp_path / "new" / "a.ckpt")
    torch.save(content(1), tmp_path / "a.ckpt")
    ours, theirs = tmp_path / "new" / "a.ckpt", tmp_path / "a.ckpt"
    # The folder inside is named after the file, or "archive" where torch knows none; so names and padding differ.
    assert ours.stat().st_size == pytest.approx(theirs.stat().st_size, abs=1000)
    assert ours.stat().st_mode == theirs.stat().st_mode
    assert (tmp_path / "new" / "a.ckpt.sha256").stat().st_mode == theirs.stat().st_mode


def test_the_disk_has_it_before_it_has_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Make) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def note_fsync(number: int) -> None:
        name = Path(f"/proc/self/fd/{number}").resolve()
        events.append("folder" if name.is_dir() else "sums" if name.stat().st_size < 200 else "checkpoint")
        fsync(number)

    def note_replace(path: Path, target: Path) -> Path:
        events.append(target.name)
        return replace(path, target)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("there is no /proc here")
    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "replace", note_replace)
    write_checkpoint(content(1), tmp_path / "a.ckpt")
    assert events == ["checkpoint", "sums", "a.ckpt.sha256", "folder", "a.ckpt", "folder"]


def test_living_writers_and_other_hosts_keep_their_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Make
) -> None:
    with write._temporary_file(tmp_path) as living:
        orphan = tmp_path / f"{write._own_prefix()}0123"
        monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
        foreign = tmp_path / f"{write._own_prefix()}0123"
        monkeypatch.undo()
        user = tmp_path / ".saving-notes"
        for path in (orphan, foreign, user):
            path.touch()
        write_checkpoint(content(1), tmp_path / "a.ckpt")
        left = {path.name for path in tmp_path.iterdir()}
        assert left == {Path(living.name).name, foreign.name, user.name, "a.ckpt", "a.ckpt.sha256"}
    assert not Path(living.name).exists()


def test_a_file_that_is_swept_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Make
) -> None:
    flock, swept = fcntl.flock, []

    def slow_lock(file: Any, how: int) -> None:
        if not swept:
            swept.append(file.name)
            write._sweep(tmp_path)
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", slow_lock)
    swept.clear()
    write_checkpoint(content(1), tmp_path / "a.ckpt")
    verify_checkpoint(tmp_path / "a.ckpt")
    assert swept


def test_without_locks_nothing_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Make) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    orphan = tmp_path / f"{write._own_prefix()}0123"
    orphan.touch()
    write_checkpoint(content(1), tmp_path / "a.ckpt")
    verify_checkpoint(tmp_path / "a.ckpt")
    assert orphan.exists()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
def test_folders_that_cannot_be_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Make, number: int
) -> None:
    fsync = os.fsync

    def only_files(descriptor: int) -> None:
        if os.path.samestat(os.fstat(descriptor), tmp_path.stat()):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", only_files)
    if number == errno.EINVAL:  # a file system that knows no such thing
        write_checkpoint(content(1), tmp_path / "a.ckpt")
        verify_checkpoint(tmp_path / "a.ckpt")
    else:
        with pytest.raises(OSError, match="Input/output error"):
            write_checkpoint(content(1), tmp_path / "a.ckpt")


def test_a_full_disk_is_told_with_the_bytes_needed_and_the_older_checkpoint_stays(
    tmp_path: Path, content: Make
) -> None:
    path, told = tmp_path / "a.ckpt", tmp_path / "told"
    write_checkpoint(content(1), path)
    large = content(2, 1_500_000)  # two blocks: torch is in the middle of its archive when the second one fails

    def save() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, 5_000_000))  # Python ignores SIGXFSZ
        try:
            write_checkpoint(large, path)
        except OSError as error:
            told.write_text(f"{error.errno} {error.strerror}")

    assert exit_code(fork(save)) == 0
    torch.save(large, tmp_path / "large")
    number, _, line = told.read_text().partition(" ")
    assert int(number) == errno.EFBIG
    needed = int(re.findall(r"room for a checkpoint of ([\d,]+) bytes", line)[0].replace(",", ""))
    assert needed == pytest.approx((tmp_path / "large").stat().st_size, abs=200)
    assert f"{str(path)!r}: File too large" in line
    assert "make room there" in line
    assert f"newest whole checkpoint there is {path}" in line
    verify_checkpoint(path)
    assert torch.load(path, weights_only=True)["global_step"] == 1
    assert not list(tmp_path.glob(".saving-*"))


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_late_error_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Make, moment: str
) -> None:
    write_checkpoint(content(1), tmp_path / "a.ckpt")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*{"fsync": (os, "fsync"), "replace": (Path, "replace")}[moment], fail)
    with pytest.raises(OSError, match="room for a checkpoint of") as caught:
        write_checkpoint(content(2), tmp_path / "a.ckpt")
    assert caught.value.errno == errno.ENOSPC
    verify_checkpoint(tmp_path / "a.ckpt")
    assert torch.load(tmp_path / "a.ckpt", weights_only=True)["global_step"] == 1
    assert not list(tmp_path.glob(".saving-*"))


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path, content: Make) -> None:
    (tmp_path / "file").touch()  # in the way; works for root too, whom permissions do not stop
    path = tmp_path / "file" / "run" / "a.ckpt"
    with pytest.raises(
        NotADirectoryError, match=re.escape(f"but got {str(path)!r}: Not a directory; make it writable")
    ):
        write_checkpoint(content(1), path)
    (tmp_path / "b.ckpt").mkdir()
    with pytest.raises(IsADirectoryError, match=r"b\.ckpt': Is a directory"):
        write_checkpoint(content(1), tmp_path / "b.ckpt")
    assert not list(tmp_path.glob(".saving-*"))


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_read_only_folder_is_named(tmp_path: Path, content: Make) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError, match="Permission denied; make it writable, or choose another folder"):
            write_checkpoint(content(1), tmp_path / "a.ckpt")
    finally:
        tmp_path.chmod(0o700)


def test_a_vanished_folder_is_made_again(tmp_path: Path, content: Make) -> None:
    write_checkpoint(content(1), tmp_path / "run" / "a.ckpt")
    shutil.rmtree(tmp_path / "run")
    write_checkpoint(content(2), tmp_path / "run" / "a.ckpt")
    verify_checkpoint(tmp_path / "run" / "a.ckpt")


def test_an_interrupt_stays_an_interrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Make) -> None:
    """Torch finishes its archive behind any exception, and raises one of its own."""
    write_checkpoint(content(1), tmp_path / "a.ckpt")
    original = write._HashedFile.__init__

    def interrupted(self: Any, file: Any, pool: Any) -> None:
        class File:
            def write(self, data: Any) -> int:
                raise KeyboardInterrupt

        original(self, File(), pool)  # type: ignore[arg-type]

    monkeypatch.setattr(write._HashedFile, "__init__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(content(2, 3_000_000), tmp_path / "a.ckpt")
    verify_checkpoint(tmp_path / "a.ckpt")
    assert not list(tmp_path.glob(".saving-*"))
    assert not [thread for thread in threading.enumerate() if "ThreadPoolExecutor" in thread.name]


def test_what_torch_refuses_is_no_matter_of_files(tmp_path: Path) -> None:
    with pytest.raises(AttributeError, match="pickle"):
        write_checkpoint({"f": lambda: None}, tmp_path / "a.ckpt")
    assert list(tmp_path.iterdir()) == []


def test_files_that_lightning_numbers_itself_have_no_sum(tmp_path: Path, content: Make) -> None:
    from lightning.pytorch.trainer.connectors.checkpoint_connector import _CheckpointConnector

    write_checkpoint(content(1), tmp_path / "hpc_ckpt_1.ckpt")
    verify_checkpoint(tmp_path / "hpc_ckpt_1.ckpt")
    orphan = tmp_path / f"{write._own_prefix()}0123"
    orphan.touch()
    count = _CheckpointConnector._CheckpointConnector__max_ckpt_version_in_folder  # type: ignore[attr-defined]
    assert count(tmp_path) == 1
    (tmp_path / "hpc_ckpt_1.ckpt.sha256").touch()
    assert count(tmp_path) == 1256  # what a sum would do

"""A folder that cannot be written to is noticed at once; names never lead out of it."""

import errno
import os
from pathlib import Path

import pytest

from lightning_dropout.configuration import ConfigError, check_name, check_output_dir


def test_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    folder = check_output_dir(tmp_path / "a" / "b")
    assert folder == tmp_path / "a" / "b"
    assert list(folder.iterdir()) == []
    assert check_output_dir(str(folder)) == folder  # again, and as text


def test_relative_folder_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert check_output_dir("run") == tmp_path / "run"


def assert_refused(folder: Path, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_output_dir(folder)
    line = str(caught.value)
    assert line.startswith(f"hydra.run.dir={folder}: Expected a folder that can be written to, but got {reason}")
    assert "hydra.run.dir=..." in line
    assert len(line.splitlines()) == 1


def test_parent_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert_refused(tmp_path / "file" / "run", "Not a directory")


def test_folder_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert_refused(tmp_path / "file", "File exists")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that nobody can write to")
def test_folder_that_nobody_can_make() -> None:
    assert_refused(Path("/proc/self/run"), "No such file or directory")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that nobody can write to")
def test_folder_that_exists_but_takes_no_file() -> None:
    assert_refused(Path("/proc/self"), "No such file or directory")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert_refused(tmp_path, "Permission denied")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_writing_fails_after_the_folder_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    real_open = os.open

    def refusing_open(path: str | Path, flags: int, mode: int = 0o777, **kwargs: int) -> int:
        if flags & os.O_CREAT:
            raise OSError(number, os.strerror(number), str(path))
        return real_open(path, flags, mode, **kwargs)

    monkeypatch.setattr(os, "open", refusing_open)
    assert_refused(tmp_path, os.strerror(number))


@pytest.mark.parametrize("name", ["vit", "vit_digits-2.1", "_x", "-x", "0", "a" * 128])
def test_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "/etc",
        ".hidden",
        "a b",
        "a\n",
        "a\x00b",
        "a\\b",
        "~",
        "ä",
        "a" * 129,
        "C:",
        None,
        3,
    ],
)
def test_names_that_could_lead_elsewhere(name: object) -> None:
    with pytest.raises(ConfigError) as caught:
        check_name(name, "run_group")
    assert str(caught.value).startswith("run_group=")
    assert len(str(caught.value).splitlines()) == 1

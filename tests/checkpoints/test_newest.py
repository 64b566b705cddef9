"""The newest whole checkpoint: by the steps inside, never by names or times, and never silently past another one."""

import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_dropout.checkpoints import newest_checkpoint
from lightning_dropout.checkpoints.newest import newest_sentence
from lightning_dropout.checkpoints.write import write_checkpoint

Make = Callable[..., dict[str, Any]]


def passed_over(folder: Path) -> tuple[str | None, list[str]]:
    """Return the name of the newest one, and the lines that were said."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        path = newest_checkpoint(folder)
    lines = [str(warning.message) for warning in caught]
    assert all(len(line.splitlines()) == 1 for line in lines)
    return path and path.name, lines


def test_steps_decide(tmp_path: Path, content: Make) -> None:
    for step, name in ((9, "b"), (30, "a"), (10, "c")):
        write_checkpoint(content(step), tmp_path / f"{name}.ckpt")
    os.utime(tmp_path / "b.ckpt", (2**31, 2**31))  # as after copying
    assert passed_over(tmp_path) == ("a.ckpt", [])


def test_among_equals_the_one_saved_last_wins(tmp_path: Path, content: Make) -> None:
    for time, name in ((1, "c"), (3, "a"), (2, "b")):
        write_checkpoint(content(5), tmp_path / f"{name}.ckpt")
        os.utime(tmp_path / f"{name}.ckpt", (time, time))
    assert passed_over(tmp_path) == ("a.ckpt", [])


def test_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "a.ckpt.sha256").touch()
    (tmp_path / ".saving-host-0").touch()
    assert passed_over(tmp_path) == (None, [])
    assert passed_over(tmp_path / "nowhere") == (None, [])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    position = data.find(torch.full((10,), 9.0).numpy().tobytes())
    data[position] ^= 1
    path.write_bytes(data)


def weights_alone(path: Path) -> None:
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["optimizer_states"]
    write_checkpoint(checkpoint, path)


def foreign(path: Path) -> None:
    write_checkpoint({"state_dict": {}}, path)


def a_list(path: Path) -> None:
    path.with_name(f"{path.name}.sha256").unlink()
    torch.save([1, 2], path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere.ckpt")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (cut, "cut short"),
        (flip, "data/0 in it was changed"),
        (weights_alone, "weights alone"),
        (foreign, "no checkpoint of Lightning"),
        (a_list, "no checkpoint of Lightning"),
        (folder, "Is a directory"),
        (dangling, "No such file"),
    ],
)
def test_what_training_cannot_resume_from_is_passed_over_in_a_line(
    tmp_path: Path, content: Make, spoil: Callable[[Path], None], words: str
) -> None:
    for step, name in ((1, "old"), (2, "good"), (9, "newest")):
        write_checkpoint(content(step), tmp_path / f"{name}.ckpt")
    spoil(tmp_path / "newest.ckpt")
    name, (line,) = passed_over(tmp_path)
    assert name == "good.ckpt"
    assert line.startswith("Passing over newest.ckpt: ")
    assert words in line
    shutil.rmtree(tmp_path / "newest.ckpt", ignore_errors=True)


def test_code_is_passed_over_and_not_run(wicked: Path, content: Make) -> None:
    write_checkpoint(content(1), wicked.with_name("good.ckpt"))
    name, (line,) = passed_over(wicked.parent)
    assert name == "good.ckpt"
    assert "posix.system" in line


def test_none_is_left(tmp_path: Path, content: Make) -> None:
    for name in "ab":
        write_checkpoint(content(1), tmp_path / f"{name}.ckpt")
        cut(tmp_path / f"{name}.ckpt")
    name, lines = passed_over(tmp_path)
    assert name is None
    assert len(lines) == 2
    assert newest_sentence(tmp_path) == "There is no whole checkpoint to resume from."  # and warns of nothing

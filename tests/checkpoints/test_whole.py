"""2,000 random bit flips, cut files, code in a pickle: refused; with the checksums of torch alone some would load."""

import hashlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_dropout.checkpoints import CorruptCheckpointError, verify_checkpoint, whole
from lightning_dropout.checkpoints.write import write_checkpoint

Content = dict[str, Any]
Make = Callable[..., Content]


def flips(path: Path, count: int) -> Any:
    """Flip one random bit at a time."""
    chance, original = random.Random(0), path.read_bytes()
    for _ in range(count):
        flipped = bytearray(original)
        flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
        path.write_bytes(flipped)
        yield
    path.write_bytes(original)


@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_no_bit_flip_passes(tmp_path: Path, content: Make, count: int) -> None:
    path = tmp_path / "a.ckpt"
    write_checkpoint(content(1), path)
    for _ in flips(path, count):
        with pytest.raises(CorruptCheckpointError):
            verify_checkpoint(path)
    verify_checkpoint(path)


def test_without_a_sum_no_bit_flip_changes_weights_though_torch_alone_lets_them_pass(
    tmp_path: Path, content: Make
) -> None:
    path = tmp_path / "a.ckpt"
    torch.save(content(1, 1000), path)
    weights, passed_by_torch = content(1, 1000)["state_dict"]["w"], 0
    for _ in flips(path, 300):
        try:
            changed = not torch.equal(torch.load(path, weights_only=True)["state_dict"]["w"], weights)
        except Exception:
            continue
        passed_by_torch += changed
        if changed:
            with pytest.raises(CorruptCheckpointError, match=r"data/0 in it was changed"):
                verify_checkpoint(path)
    assert passed_by_torch > 0


def test_no_bit_flip_in_the_sum_passes(tmp_path: Path, content: Make) -> None:
    write_checkpoint(content(1), tmp_path / "a.ckpt")
    sums = tmp_path / "a.ckpt.sha256"
    for text in ("", sums.read_text()[:40], "0" * 64 + "  a.ckpt\n", sums.read_text().replace("  ", " ")):
        sums.write_text(text)
        with pytest.raises(CorruptCheckpointError, match=r"not the one in a\.ckpt\.sha256"):
            verify_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.parametrize("has_sum", [True, False])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[:0], "cut short or is no checkpoint"),
        (lambda data: data[: len(data) // 2], "cut short or is no checkpoint"),
        (lambda data: data[:-1], "cut short or is no checkpoint"),
        (lambda data: b"this is no checkpoint", "cut short or is no checkpoint"),
        (lambda data: data.replace(b"data.pkl", b"datA.pkl"), "it is an archive, but no checkpoint"),
    ],
)
def test_the_message_is_a_line_with_the_file_what_is_wrong_and_the_cure(
    tmp_path: Path, content: Make, damage: Callable[[bytes], bytes], words: str, has_sum: bool
) -> None:
    path = tmp_path / "a.ckpt"
    write_checkpoint(content(1), path)
    if not has_sum:
        (tmp_path / "a.ckpt.sha256").unlink()
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CorruptCheckpointError) as caught:
        verify_checkpoint(path)
    line = str(caught.value)
    assert line.startswith(f"Expected a checkpoint as it was saved, but got {path}: ")
    assert words in line
    assert "choose another checkpoint" in line
    assert ("delete a.ckpt.sha256" in line) == has_sum
    assert len(line.splitlines()) == 1


def test_a_replaced_checkpoint_is_refused_until_its_sum_is_deleted(tmp_path: Path, content: Make) -> None:
    path = tmp_path / "a.ckpt"
    write_checkpoint(content(1), path)
    torch.save(content(2), path)
    with pytest.raises(CorruptCheckpointError, match=r"it was changed or replaced, since .* delete a\.ckpt\.sha256"):
        verify_checkpoint(path)
    (tmp_path / "a.ckpt.sha256").unlink()
    verify_checkpoint(path)


def test_the_sum_of_a_link_is_that_of_its_file(tmp_path: Path, content: Make) -> None:
    write_checkpoint(content(1), tmp_path / "last.ckpt")
    (tmp_path / "last.ckpt").unlink()  # and its sum stays, as when Lightning puts a link there
    write_checkpoint(content(2), tmp_path / "step=2.ckpt")
    (tmp_path / "last.ckpt").symlink_to("step=2.ckpt")
    verify_checkpoint(tmp_path / "last.ckpt")
    (tmp_path / "step=2.ckpt").write_bytes(b"")
    with pytest.raises(CorruptCheckpointError, match=r"step=2\.ckpt\.sha256"):
        verify_checkpoint(tmp_path / "last.ckpt")


def test_a_job_that_saves_meanwhile_is_no_corruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Make
) -> None:
    path, original, saved = tmp_path / "a.ckpt", whole.sha256_of, []
    write_checkpoint(content(1), path)

    def while_saving(file: Any) -> str:
        digest = original(file)
        if len(saved) < 3:
            saved.append(digest)
            write_checkpoint(content(1 + len(saved)), path)
        return digest

    monkeypatch.setattr(whole, "sha256_of", while_saving)
    with whole.open_whole(path) as file:
        assert whole.read(file, path, None)["global_step"] == 4
    assert len(saved) == 3


def test_a_file_that_is_gone_is_no_corruption(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        verify_checkpoint(tmp_path / "a.ckpt")


def test_code_is_refused_by_name_and_not_run(wicked: Path) -> None:
    digest = hashlib.sha256(wicked.read_bytes()).hexdigest()
    wicked.with_name("wicked.ckpt.sha256").write_text(f"{digest}  wicked.ckpt\n")  # a sum is no signature
    with whole.open_whole(wicked) as file, pytest.raises(CorruptCheckpointError) as caught:
        whole.read(file, wicked, None)
    line = str(caught.value)
    assert f"got {wicked} with posix.system, and nothing of it was run" in line
    assert "add_safe_globals" in line
    assert len(line.splitlines()) == 1


class OfTheUser:
    """A class that hyper-parameters hold."""


def test_a_class_of_the_user_is_named_and_can_be_allowed(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    write_checkpoint({"hyper_parameters": OfTheUser()}, path)
    with whole.open_whole(path) as file, pytest.raises(CorruptCheckpointError, match=r"with \S*OfTheUser, and nothing"):
        whole.read(file, path, None)
    with torch.serialization.safe_globals([OfTheUser]), whole.open_whole(path) as file:
        assert isinstance(whole.read(file, path, None)["hyper_parameters"], OfTheUser)

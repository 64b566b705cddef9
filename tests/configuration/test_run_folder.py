"""The folder of a run: one run at a time, and what a second one finds there."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from lightning_dropout.configuration import ConfigError, checkpoint_to_resume, command_to_resume, exclusive_folder

HOLD = """
import sys, time
from pathlib import Path
from lightning_dropout.configuration import exclusive_folder
with exclusive_folder(Path(sys.argv[1])):
    print("in", flush=True)
    time.sleep(60)
"""


def test_a_second_run_stays_out_and_a_killed_one_leaves_nothing(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == b"in\n"
            with pytest.raises(ConfigError, match=r"hydra\.run\.dir=.*Expected a folder for this run alone"):
                exclusive_folder(tmp_path).__enter__()
        finally:
            os.kill(other.pid, signal.SIGKILL)
    with exclusive_folder(tmp_path):
        pass


def test_the_folder_is_free_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), exclusive_folder(tmp_path):
        raise ZeroDivisionError
    with exclusive_folder(tmp_path):
        pass


def test_a_file_system_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(*args: object, **kwargs: object) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr("filelock.FileLock.acquire", none)
    with exclusive_folder(tmp_path):
        pass
    assert capsys.readouterr().out == (
        f"{tmp_path} cannot be locked (FileSystem does not appear to support flock): see to it that no other run "
        "writes to it.\n"
    )


def config(resume: object, ckpt_path: str | None = None) -> object:
    return OmegaConf.create({"resume": resume, "ckpt_path": ckpt_path})


def save(path: Path, step: int) -> None:
    path.parent.mkdir(exist_ok=True)
    torch.save({"global_step": step, "epoch": 0, "state_dict": {}, "optimizer_states": [], "loops": {}}, path)


def test_auto_takes_the_newest_and_else_what_the_run_begins_with(tmp_path: Path) -> None:
    assert checkpoint_to_resume(config("auto"), tmp_path) is None
    assert checkpoint_to_resume(config("auto", "pretrained.ckpt"), tmp_path) == "pretrained.ckpt"
    save(tmp_path / "checkpoints" / "best.ckpt", 3)
    save(tmp_path / "checkpoints" / "last.ckpt", 7)
    assert checkpoint_to_resume(config("auto", "pretrained.ckpt"), tmp_path) == tmp_path / "checkpoints" / "last.ckpt"


def test_auto_does_not_begin_anew_beside_checkpoints_that_are_spoilt(tmp_path: Path) -> None:
    save(tmp_path / "checkpoints" / "last.ckpt", 7)
    os.truncate(tmp_path / "checkpoints" / "last.ckpt", 100)
    with (
        pytest.warns(UserWarning, match=r"Passing over last\.ckpt"),
        pytest.raises(ConfigError, match=r"resume=auto: .* none that is whole; move them away to begin"),
    ):
        checkpoint_to_resume(config("auto", "pretrained.ckpt"), tmp_path)


def test_a_run_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    assert checkpoint_to_resume(config(None, "pretrained.ckpt"), tmp_path) == "pretrained.ckpt"
    save(tmp_path / "checkpoints" / "last.ckpt", 7)
    with pytest.raises(ConfigError, match=r"hydra\.run\.dir=.*which this run would replace; pass resume=auto"):
        checkpoint_to_resume(config(None), tmp_path)


@pytest.mark.parametrize("word", [True, "last", "outputs/run/checkpoints/last.ckpt", 3])
def test_another_word_is_refused(tmp_path: Path, word: object) -> None:
    with pytest.raises(ConfigError, match=r"^resume=.*: Expected auto .* pass ckpt_path=\.\.\.\.$"):
        checkpoint_to_resume(config(word), tmp_path)


def test_the_command_goes_on_with_this_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = OmegaConf.create({"overrides": {"task": ["model=vit", "resume=auto", "data.root=/my data", "+resume_x=1"]}})
    monkeypatch.setattr("hydra.core.hydra_config.HydraConfig.get", lambda: job)
    monkeypatch.setattr(sys, "argv", ["scripts/train.py", "-m", "model=vit,net"])
    assert shlex.split(command_to_resume(tmp_path)) == [
        "python",
        "scripts/train.py",
        "model=vit",
        "data.root=/my data",
        "+resume_x=1",
        f"hydra.run.dir={tmp_path}",
        "resume=auto",
    ]

"""The config beside a checkpoint."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError

from lightning_dropout.configuration import ConfigError, config_of_checkpoint


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text("seed: 3\nmodel: {num_classes: '???', p: 0.5}\n")
    (tmp_path / "checkpoints").mkdir()
    path = tmp_path / "checkpoints" / "best.ckpt"
    path.touch()
    return path


def test_the_config_of_the_run(checkpoint: Path) -> None:
    for path in (checkpoint, str(checkpoint)):
        config = config_of_checkpoint(path)
        assert (config.seed, config.model.p) == (3, 0.5)
        assert OmegaConf.is_missing(config.model, "num_classes")


def test_a_misspelled_change_is_an_error(checkpoint: Path) -> None:
    config = config_of_checkpoint(checkpoint)
    with pytest.raises(ConfigAttributeError):
        config.model.drop_rate = 0.1


def test_a_relative_path(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkpoint.parent)
    with pytest.raises(ConfigError, match=rf"there is no {checkpoint.parent}/nothing\.ckpt"):
        config_of_checkpoint("nothing.ckpt")
    assert config_of_checkpoint("best.ckpt").seed == 3


@pytest.mark.parametrize("gone", ["checkpoints/best.ckpt", ".hydra/config.yaml"])
def test_what_is_not_there_is_named(checkpoint: Path, gone: str) -> None:
    missing = checkpoint.parent.parent / gone
    missing.unlink()
    with pytest.raises(ConfigError) as caught:
        config_of_checkpoint(checkpoint)
    assert f"there is no {missing}" in str(caught.value)
    assert str(caught.value).startswith("ckpt_path=")


@pytest.mark.parametrize("text", ["[1, 2]", "", "# nothing\n"])
def test_a_file_that_holds_no_config(checkpoint: Path, text: str) -> None:
    stored = checkpoint.parent.parent / ".hydra" / "config.yaml"
    stored.write_text(text)
    with pytest.raises(ConfigError, match=r"Expected .*config\.yaml to hold the config of a run"):
        config_of_checkpoint(checkpoint)

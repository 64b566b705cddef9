"""Command lines build the data modules: every argument has a type that resolves, and plain values are enough."""

from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

import lightning_dropout.data as room

NEEDED: dict[str, dict[str, Any]] = {"ImageFolderDataModule": {"root": "/x"}, "CIFAR10DataModule": {"root": "/x"}}


@pytest.mark.parametrize("name", room.__all__)
def test_a_command_line_can_read_every_argument(name: str) -> None:
    jsonargparse = pytest.importorskip("jsonargparse")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(getattr(room, name), "data")
    needed = [f"--data.{key}={value}" for key, value in NEEDED.get(name, {}).items()]
    parsed = parser.parse_args([*needed, "--data.batch_size=7", "--data.gap_loader=false"]).data
    assert (parsed.batch_size, parsed.gap_loader, parsed.num_workers, parsed.seed) == (7, False, 0, 0)
    given = {"DigitsDataModule": ('["photo"]', ["photo"])}.get(name, ('{"svhn": "/y"}', {"svhn": "/y"}))
    if hasattr(parsed, "ood"):
        assert parser.parse_args([*needed, f"--data.ood={given[0]}"]).data.ood == given[1]
    with pytest.raises(jsonargparse.ArgumentError, match="batch_size"):
        parser.parse_args([*needed, "--data.batch_size=many"])


def test_configuration_lists_are_plain_enough(image_root: Path) -> None:
    pytest.importorskip("torchvision", reason="needs the extra `vision`", exc_type=Exception)
    node = {"_target_": "lightning_dropout.data.ImageFolderDataModule", "root": str(image_root), "mean": [0.1, 0.2, 0]}
    data = instantiate(OmegaConf.create(node))
    data.setup()
    assert data.plain_transform().mean == (0.1, 0.2, 0.0)
    node = {"_target_": "lightning_dropout.data.TabularDataModule", "feature_columns": ["bmi", 0]}
    assert instantiate(OmegaConf.create(node)).feature_names == ("bmi", "age")
    with pytest.raises(Exception, match="Expected `mean` to be three finite numbers"):
        instantiate(
            OmegaConf.create(
                {"_target_": "lightning_dropout.data.CIFAR10DataModule", "root": str(image_root), "mean": [0.1]}
            )
        )

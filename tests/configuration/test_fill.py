"""Keys that a config leaves to the data."""

from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from lightning_dropout.configuration import ConfigError, fill_missing

NAMES = ("input_shape", "num_classes", "num_outputs")
IMAGES = SimpleNamespace(input_shape=(1, 8, 8), num_classes=10)
TABLE = SimpleNamespace(input_shape=(4,), num_outputs=2)


def config(**sections: Any) -> DictConfig:
    cfg = OmegaConf.create(sections)
    OmegaConf.set_struct(cfg, True)  # as Hydra hands it over
    return cfg


def test_missing_keys_are_filled_and_others_left() -> None:
    cfg = config(model={"input_shape": "???", "num_classes": 3, "p": "???"}, module={"num_classes": "???"})
    fill_missing(cfg, ("model", "module"), NAMES, IMAGES)
    assert cfg.model.input_shape == [1, 8, 8]
    assert cfg.model.num_classes == 3  # what the user has written stands
    assert cfg.module.num_classes == 10
    assert OmegaConf.is_missing(cfg.model, "p")  # not asked for
    assert OmegaConf.is_struct(cfg.model)


def test_outputs_of_a_classifier_are_its_classes() -> None:
    for data, expected in ((IMAGES, 10), (TABLE, 2), (SimpleNamespace(num_outputs=None, num_classes=5), 5)):
        cfg = config(model={"num_outputs": "???"})
        fill_missing(cfg, ("model",), NAMES, data)
        assert cfg.model.num_outputs == expected


def test_sections_that_are_not_there_are_passed_over() -> None:
    cfg = config(model=None, logger="csv")
    fill_missing(cfg, ("model", "module", "logger"), NAMES, IMAGES)
    assert cfg == {"model": None, "logger": "csv"}


def test_what_the_data_do_not_know_is_one_readable_line() -> None:
    cfg = config(module={"num_classes": "???"})
    with pytest.raises(ConfigError) as caught:
        fill_missing(cfg, ("module",), NAMES, TABLE)
    assert str(caught.value) == (
        "module.num_classes: Expected SimpleNamespace to know `num_classes`, but it does not; pass "
        "module.num_classes=..., or data that fit the module."
    )

"""What the scripts add to the config of a run."""

from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from lightning_dropout.configuration import ConfigError, check_run, fill_from_data

RUN = {
    "model": {"_target_": "lightning_dropout.models.Net", "input_shape": "???", "num_classes": "???"},
    "module": {"_target_": "lightning_dropout.modules.Classifier", "num_classes": "???"},
}


def test_what_the_data_and_the_scripts_supply_may_be_open() -> None:
    cfg = OmegaConf.create(RUN)
    check_run(cfg)
    fill_from_data(cfg, SimpleNamespace(input_shape=(1, 8, 8), num_classes=10))
    assert (cfg.model.input_shape, cfg.model.num_classes, cfg.module.num_classes) == ([1, 8, 8], 10, 10)


@pytest.mark.parametrize(
    ("section", "value"),
    [*((name, None) for name in ("data", "model", "module", "trainer")), ("ckpt_path", "https://host/best.ckpt")],
)
def test_what_no_run_can_do_without_or_may_load(section: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^{section}=.*Expected"):
        check_run(OmegaConf.create({**RUN, section: value}))


def test_nothing_else_may() -> None:
    cfg = OmegaConf.create({**RUN, "model": {**RUN["model"], "p": "???"}})
    with pytest.raises(ConfigError, match=r"model\.p: Expected a value"):
        check_run(cfg)

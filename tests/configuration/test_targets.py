"""The walk over a whole config: every node is checked, under its full key, resolved or not."""

from typing import Any

import pytest
from omegaconf import OmegaConf

from lightning_dropout.configuration import ConfigError, check_targets

DROPOUT = {"_target_": "torch.nn.Dropout", "p": 0.5}
WRONG = {"_target_": "torch.nn.Dropout", "q": 0.5}


def line_of(config: dict[str, Any], **supplied: list[str]) -> str:
    with pytest.raises(ConfigError) as caught:
        check_targets(OmegaConf.create(config), supplied)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_good_config_passes_and_is_not_changed() -> None:
    config = {
        "model": {"_target_": "torch.nn.Sequential", "_args_": [DROPOUT, {"_target_": "torch.nn.Identity"}]},
        "module": {
            "optimizer": {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": "${rate}", "betas": [0.9, 0.99]}
        },
        "callbacks": {"none": {}, "null": None, "a": DROPOUT, 3: "text"},
        "rate": 0.1,
        "mandatory": "???",
        "folder": "${hydra:runtime.output_dir}",
        "variable": "${oc.env:NOT_SET_ANYWHERE}",
    }
    cfg = OmegaConf.create(config)
    OmegaConf.set_readonly(cfg, True)
    OmegaConf.set_struct(cfg, True)
    check_targets(cfg)
    assert OmegaConf.to_container(cfg) == config
    check_targets(config)  # plain containers as well


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"a": {"b": {"c": WRONG}}}, "a.b.c.q"),
        ({"a": [DROPOUT, [{"b": WRONG}]]}, "a[1][0].b.q"),
        ({"a": {"_target_": "torch.nn.Sequential", "_args_": [WRONG]}}, "a._args_[0].q"),
        ({"a": {"_target_": "torch.nn.Identity", "_recursive_": False, "x": WRONG}}, "a.x.q"),
        ({"a": {**DROPOUT, "_partial_": True, "q": 0.5}}, "a.q"),
        ({"a": "${b.c}", "b": {"c": WRONG}}, "a.q"),
        (WRONG, "q"),
    ],
)
def test_every_node_is_found(config: dict[str, Any], key: str) -> None:
    assert line_of(config).startswith(f"{key}=0.5: No such argument of Dropout")


def test_part_of_a_config_keeps_its_full_keys() -> None:
    cfg = OmegaConf.create({"callbacks": {"mc": WRONG}})
    with pytest.raises(ConfigError, match=r"^callbacks\.mc\.q=0\.5: "):
        check_targets(cfg.callbacks)


def test_interpolated_values_are_checked_by_what_they_resolve_to() -> None:
    assert line_of({"a": {**DROPOUT, "p": "${b}"}, "b": "abc"}).startswith("a.p=abc: Expected `p` of Dropout")


@pytest.mark.parametrize("value", ["${oc.env:NOT_SET_ANYWHERE}", "${hydra:job.num}"])
def test_values_that_only_a_run_knows_are_left_open(value: str) -> None:
    check_targets({"a": {**DROPOUT, "p": value}})


def test_supplied_arguments() -> None:
    linear = {"_target_": "torch.nn.Linear", "in_features": "???"}
    assert line_of({"model": linear}).startswith("model.in_features: Expected a value, but got none; pass model.in_fea")
    assert line_of({"model": linear}, model=["in_features"]).startswith("model.out_features: Expected a value, since")
    check_targets({"model": linear}, {"model": ["in_features", "out_features", "not_an_argument"]})
    assert line_of({"model": {"x": linear}}, model=["in_features", "out_features"]).startswith("model.x.in_features")


def test_missing_values_of_partials_come_later() -> None:
    check_targets({"a": {"_target_": "torch.nn.Linear", "_partial_": True, "in_features": "???"}})


@pytest.mark.parametrize(
    ("config", "start"),
    [
        ({"a": {**DROPOUT, "_partial_": "yes"}}, "a._partial_=yes: Expected true or false."),
        ({"a": {**DROPOUT, "_recursive_": 1}}, "a._recursive_=1: Expected true or false."),
        ({"a": {**DROPOUT, "_args_": "abc"}}, "a._args_=abc: Expected a list."),
        ({"a": {**DROPOUT, "_args_": [0.1]}}, "a.p: Given by position and by name"),
        (
            {"a": {"_target_": "???"}},
            "a._target_=???: Expected the dotted path of a class or function; pass a._target_=my_package",
        ),
        ({"a": {"_target_": "${oc.env:NOT_SET_ANYWHERE}"}}, "a._target_: Expected a dotted path"),
        ({"a": {**DROPOUT, "p": "${nowhere}"}}, "a.p: Interpolation key 'nowhere' not found"),
        ({"a": {**DROPOUT, "p": "???"}}, "a.p: Expected a value, but got none; pass a.p=..."),
    ],
)
def test_wrong_nodes(config: dict[str, Any], start: str) -> None:
    assert line_of(config).startswith(start)


def test_config_without_bottom() -> None:
    assert "without end" in line_of({"a": {"x": "${b}"}, "b": {"y": "${a}"}})


def test_trainer_and_its_arguments() -> None:
    trainer = {"_target_": "lightning.pytorch.Trainer", "max_epochs": 3, "devices": 1, "precision": "32-true"}
    check_targets({"trainer": {**trainer, "limit_test_batches": 0.5, "profiler": None}})
    assert line_of({"trainer": {**trainer, "max_epoch": 3}}).startswith(
        "trainer.max_epoch=3: No such argument of Trainer; did you mean `max_epochs`?"
    )
    assert line_of({"trainer": {**trainer, "max_epochs": "abc"}}).startswith("trainer.max_epochs=abc: Expected `max_ep")
    assert "did you mean 16-mixed?" in line_of({"trainer": {**trainer, "precision": "16-mixd"}})

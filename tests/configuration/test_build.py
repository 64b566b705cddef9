"""From nodes to objects: what arrives, and how refusals read."""

import dataclasses
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.errors import InstantiationException
from omegaconf import OmegaConf

from lightning_dropout.configuration import ConfigError, allow_targets, build, build_each

RELU = {"_target_": "torch.nn.ReLU"}
TOO_OFTEN = {"_target_": "lightning_dropout.nn.DropPath", "drop_prob": 2}
CONFIG = {
    "rate": 0.25,
    "model": {
        "_target_": "torch.nn.Sequential",
        "_args_": [{"_target_": "torch.nn.Dropout", "p": "${rate}"}, {"_target_": "torch.nn.Identity"}],
    },
    "linear": {"_target_": "torch.nn.Linear", "in_features": "???", "out_features": 3},
    "module": {"optimizer": {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 0.1, "betas": [0.5, 0.6]}},
    "nothing": None,
    "number": 3,
    "callbacks": {"first": RELU, "none": None, "empty": {}, "last": {"_target_": "torch.nn.GELU"}},
}


def config(**changes: Any) -> Any:
    return OmegaConf.create({**CONFIG, **changes})


def line_of(cfg: Any, key: str, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        build(cfg, key, *args, **kwargs)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_nested_objects_and_references() -> None:
    model = build(config(), "model")
    assert isinstance(model, torch.nn.Sequential)
    assert model[0].p == 0.25


def test_config_is_not_changed() -> None:
    cfg = config()
    before = OmegaConf.to_yaml(cfg)
    OmegaConf.set_struct(cfg, True)
    OmegaConf.set_readonly(cfg, True)
    build(cfg, "model")
    build(cfg, "linear", in_features=2)
    assert OmegaConf.to_yaml(cfg) == before


def test_arguments_by_name_and_position() -> None:
    assert build(config(), "linear", in_features=2).in_features == 2
    assert build(config(), "linear", 2).in_features == 2
    assert build(config(), "linear", in_features=2, out_features=7).out_features == 7  # the code wins


def test_partial_is_returned_and_can_be_pickled() -> None:
    partial = build(config(), "module.optimizer")
    assert partial.keywords["lr"] == 0.1
    assert pickle.loads(pickle.dumps(partial)).keywords["lr"] == 0.1
    assert build(config(), "module.optimizer", lr=0.7)([torch.zeros(1)]).defaults["lr"] == 0.7


def test_null_is_none_and_missing_is_an_error() -> None:
    assert build(config(), "nothing") is None
    assert line_of(config(), "modle").startswith("modle: Expected a node with a `_target_`, but the config has none")
    assert line_of(config(), "module.scheduler").startswith("module.scheduler: Expected a node")
    assert line_of(config(model="???"), "model").startswith("model: Expected a node")


@pytest.mark.parametrize("node", [3, "abc", [1], {"p": 0.5}, {}])
def test_what_is_no_node(node: object) -> None:
    assert line_of(config(model=node), "model").startswith("model=")


@pytest.mark.parametrize(
    ("model", "start"),
    [
        ({"_target_": "torch.nn.Dropout", "p": 1.5}, "model.p=1.5: dropout probability has to be between 0 and 1"),
        ({"_target_": "lightning_dropout.nn.Dropout", "p": 1.5}, "model.p=1.5: Expected `p` to be a probability"),
        (
            {"_target_": "lightning_dropout.nn.Dropout", "p": float("nan")},
            "model.p=nan: Expected `p` to be a probability",
        ),
        ({"_target_": "torch.nn.Dropout", "p": "abc"}, "model.p=abc: Expected `p` of Dropout to be float"),
        ({"_target_": "torch.nn.Dropout", "q": 1}, "model.q=1: No such argument of Dropout"),
        (
            {"_target_": "torch.nn.Dropoutt"},
            "model._target_=torch.nn.Dropoutt: torch.nn has no `Dropoutt`; did you mean",
        ),
        ({"_target_": "torch.nn.Linear", "in_features": 3}, "model.out_features: Expected a value"),
        ({"_target_": "torch.nn.Dropout", "p": "${nowhere}"}, "model.p: Interpolation key 'nowhere' not found"),
        ({"_target_": "torch.nn.Dropout", "p": "${oc.env:NOT_SET_ANYWHERE}"}, "model.p: Expected the environment var"),
        ({"_target_": "torch.nn.Sequential", "_args_": [TOO_OFTEN]}, "model._args_"),
        ({"_target_": "torch.nn.Identity", "x": TOO_OFTEN}, "model.x.drop_prob=2: Expected `drop_prob` to be"),
        ({"_target_": "torch.nn.Identity", "x": "${model}"}, "model.x: Interpolation to parent node detected"),
    ],
)
def test_refusals_name_key_and_value(model: dict[str, Any], start: str) -> None:
    assert line_of(config(model=model), "model").startswith(start)


def test_config_without_bottom() -> None:
    cfg = config(model={"_target_": "torch.nn.Identity", "x": "${y}"}, y={"z": "${model}"})
    assert "Refers to itself without end" in line_of(cfg, "model")


def test_argument_that_the_target_does_not_take() -> None:
    assert "unexpected keyword argument 'widht'" in line_of(config(), "linear", in_features=1, widht=3)


TOY = """
class Table:
    def __init__(self, path: str): open(path)
class Preset:
    def __init__(self, name: str): self.size = {"tiny": 1}[name]
class Keep:
    def __init__(self, *values, **named): self.values, self.named = values, named
"""


@pytest.fixture
def toy_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy_objects.py").write_text(TOY)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "toy_objects", raising=False)
    allow_targets("toy_objects.")


@pytest.mark.usefixtures("toy_objects")
def test_bug_in_a_constructor_comes_through() -> None:
    preset = {"_target_": "toy_objects.Preset", "name": "huge"}
    with pytest.raises(KeyError):
        build(config(model=preset), "model")
    with pytest.raises(InstantiationException):  # nested: Hydra's, with the KeyError as its cause
        build(config(model={"_target_": "torch.nn.Identity", "x": preset}), "model")


@pytest.mark.usefixtures("toy_objects")
def test_file_that_is_not_there() -> None:
    cfg = config(data={"_target_": "toy_objects.Table", "path": "/nowhere/a.csv"})
    assert line_of(cfg, "data").startswith("data.path=/nowhere/a.csv: [Errno 2] No such file or directory")


@dataclasses.dataclass
class Plain:
    """Hydra would take it for a config if it went through its hands."""

    value: list[int]


@pytest.mark.usefixtures("toy_objects")
def test_arguments_arrive_as_they_are() -> None:
    plain, layer, items = Plain([1]), torch.nn.Linear(1, 1), [Plain([2])]
    kept = build(config(keep={"_target_": "toy_objects.Keep"}), "keep", plain, layer=layer, items=items)
    assert kept.values[0] is plain
    assert kept.named["layer"] is layer
    assert kept.named["items"] is items


@pytest.mark.usefixtures("toy_objects")
def test_containers_are_plain() -> None:
    node = {"_target_": "toy_objects.Keep", "a": {"b": [1, {"c": [2.5]}]}, "_convert_": "none"}
    named = build(config(keep=node), "keep").named
    assert named == {"a": {"b": [1, {"c": [2.5]}]}}
    assert [type(value) for value in (named["a"], named["a"]["b"], named["a"]["b"][1]["c"])] == [dict, list, list]


def test_build_each_in_order_without_gaps() -> None:
    assert [type(layer).__name__ for layer in build_each(config(), "callbacks")] == ["ReLU", "GELU"]


def test_build_each_of_nothing() -> None:
    assert build_each(config(), "nothing") == []
    assert build_each(config(), "not.there") == []
    assert build_each(config(callbacks={}), "callbacks") == []


def test_build_each_of_one_node() -> None:
    assert [type(model).__name__ for model in build_each(config(), "model")] == ["Sequential"]


def test_build_each_refuses_what_is_no_node() -> None:
    with pytest.raises(ConfigError, match=r"^number=3: Expected named nodes or null"):
        build_each(config(), "number")
    with pytest.raises(ConfigError, match=r"^callbacks\.a=3: Expected a node"):
        build_each(config(callbacks={"a": 3}), "callbacks")
    with pytest.raises(ConfigError, match=r"^callbacks\.a\.p=7: "):
        build_each(config(callbacks={"a": {"_target_": "torch.nn.Dropout", "p": 7}}), "callbacks")

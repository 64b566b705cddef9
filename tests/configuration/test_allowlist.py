"""Harmful targets are never called: by name, by alias, nested, or hidden behind a reference.

Every attack writes a canary file when it runs; where Hydra alone lets it run, a test shows that it does.
"""

import sys
import types
from pathlib import Path
from typing import Any

import hydra.utils
import pytest
from omegaconf import OmegaConf

from lightning_dropout.configuration import (
    ALLOWED_TARGETS,
    ConfigError,
    allow_targets,
    allowlist,
    build,
    check_targets,
)
from lightning_dropout.configuration.allowlist import load_target

CANARY = "CANARY"  # replaced by the path of the file that must not appear
SYSTEM = {"_target_": "os.system", "_partial_": True}
PATH = {"_target_": "pathlib.Path", "_args_": [CANARY]}

# Run by Hydra 1.3.8 itself: its block list does not know them.
HYDRA_RUNS: dict[str, dict[str, Any]] = {
    "write_text": {
        "_target_": "pathlib.Path.write_text",
        "_args_": [{"_target_": "pathlib.Path", "_args_": [CANARY]}, "x"],
    },
    "torch.save": {"_target_": "torch.save", "obj": 1, "f": CANARY},
    "mkdir": {"_target_": "os.mkdir", "path": CANARY},
}
ATTACKS: dict[str, dict[str, Any]] = {
    **HYDRA_RUNS,
    "open": {"_target_": "builtins.open", "_args_": [CANARY, "w"]},
    "os.system": {"_target_": "os.system", "command": f"touch {CANARY}"},
    "os.popen": {"_target_": "os.popen", "cmd": f"touch {CANARY}"},
    "posix.system": {"_target_": "posix.system", "command": f"touch {CANARY}"},
    "eval": {"_target_": "builtins.eval", "_args_": [f"open('{CANARY}', 'w')"]},
    "exec": {"_target_": "builtins.exec", "_args_": [f"open('{CANARY}', 'w')"]},
    "Popen": {"_target_": "subprocess.Popen", "args": ["touch", CANARY]},
    "run": {"_target_": "subprocess.run", "args": ["touch", CANARY]},
    "pickle": {"_target_": "pickle.loads", "_args_": [f"cos\nsystem\n(S'touch {CANARY}'\ntR."]},
    "yaml": {"_target_": "yaml.unsafe_load", "stream": f"!!python/object/apply:os.system ['touch {CANARY}']"},
    "torch.load": {"_target_": "torch.load", "f": CANARY, "weights_only": False},
    "hub": {"_target_": "torch.hub.load", "repo_or_dir": CANARY, "model": "x", "source": "local"},
    "download": {"_target_": "torch.hub.download_url_to_file", "url": "http://127.0.0.1:9/x", "dst": CANARY},
    "urlopen": {"_target_": "urllib.request.urlopen", "url": "http://127.0.0.1:9/x"},
    "rmtree": {"_target_": "shutil.rmtree", "path": CANARY},
    "copy": {"_target_": "shutil.copy", "src": __file__, "dst": CANARY},
    "partial": {"_target_": "functools.partial", "_args_": [SYSTEM, f"touch {CANARY}"]},
    "get_method": {"_target_": "hydra.utils.get_method", "path": "os.system"},
    "instantiate": {"_target_": "hydra.utils.instantiate", "config": {"_target_": "os.mkdir", "path": CANARY}},
    "checkpoint": {"_target_": "lightning.pytorch.LightningModule.load_from_checkpoint", "checkpoint_path": CANARY},
    "checkpoint of ours": {"_target_": "lightning_dropout.nn.Dropout.load_from_checkpoint", "path": CANARY},
    "method": {"_target_": "torch.nn.Module.register_forward_hook", "hook": None},
    "alias in our package": {"_target_": "lightning_dropout.probability.math.os.system", "command": f"touch {CANARY}"},
    "module in our package": {"_target_": "lightning_dropout.configuration.paths.os.mkdir", "path": CANARY},
    "alias in torch.nn": {"_target_": "torch.nn.modules.module.functools.partial", "_args_": []},
    "name in torch.nn": {"_target_": "torch.nn.modules.module.namedtuple", "typename": "X", "field_names": "a"},
    "alias in torchmetrics": {"_target_": "torchmetrics.metric.inspect.builtins.open", "_args_": [CANARY, "w"]},
    "the allowlist itself": {"_target_": "lightning_dropout.configuration.allow_targets", "_args_": ["os."]},
    "helper that imports": {"_target_": "lightning_dropout.data.image_files.import_torchvision", "module": "this"},
    "hub of timm": {"_target_": "timm.models.load_model_config_from_hf", "model_id": "somebody/model"},
    "loader of timm": {"_target_": "timm.models.load_checkpoint", "checkpoint_path": CANARY, "weights_only": False},
    "factory of timm by another name": {"_target_": "timm.models.create_model", "model_name": "resnet18"},
    "files of timm": {"_target_": "timm.create_model", "model_name": "test_vit", "checkpoint_path": CANARY},
    "folder of timm": {"_target_": "timm.create_model", "model_name": "test_vit", "cache_dir": CANARY},
    "folder of ours": {"_target_": "lightning_dropout.models.timm_model", "name": "test_vit", "cache_dir": CANARY},
    "folder of ours by its file": {"_target_": "lightning_dropout.models.libraries.timm_model", "name": "test_vit"},
    "address": {
        "_target_": "timm.create_model",
        "model_name": "test_vit",
        "pretrained_cfg": {"url": f"file://{CANARY}"},
    },
    "address, overlay": {"_target_": "timm.create_model", "_args_": ["test_vit", True, None, {"file": CANARY}]},
    "hub, by name": {"_target_": "timm.create_model", "model_name": "hf-hub:somebody/model", "pretrained": True},
    "hub, by position": {"_target_": "timm.create_model", "_args_": ["hf_hub:somebody/model"]},
    "folder, by name": {"_target_": "timm.create_model", "model_name": f"local-dir:{CANARY}"},
    "library by ours": {
        "_target_": "lightning_dropout.models.libraries.import_library",
        "module": "this",
        "install": "",
    },
    "zoo": {"_target_": "lightning_dropout.zoo.build", "name": "timm/test_vit"},
    "download of torchvision": {"_target_": "torchvision.models.resnet.load_state_dict_from_url", "url": "file:///x"},
    "graph": {"_target_": "torchvision.models.feature_extraction.create_feature_extractor", "model": None},
    "pipeline": {"_target_": "transformers.pipeline", "model": "somebody/model", "trust_remote_code": True},
    "private": {"_target_": "torch.nn.functional._in_projection"},
    "dunder": {"_target_": "torch.nn.__builtins__.open", "_args_": [CANARY, "w"]},
    "prefix without its dot": {"_target_": "torch.nn_evil.open", "_args_": [CANARY, "w"]},
    "module": {"_target_": "torch.nn.functional"},
    "empty": {"_target_": ""},
    "relative": {"_target_": ".os.system"},
    "no text": {"_target_": 3},
    "null": {"_target_": None},
}


MKDIR = ATTACKS["mkdir"]
# Where an attack may hide; Hydra alone runs it from each of these places.
HIDDEN: dict[str, dict[str, Any]] = {
    "argument": {"model": {"_target_": "torch.nn.Identity", "x": MKDIR}},
    "positional": {"model": {"_target_": "torch.nn.Identity", "_args_": [MKDIR]}},
    "list in a mapping": {"model": {"_target_": "torch.nn.Identity", "x": {"a": [[{"b": MKDIR}]]}}},
    "reference": {"evil": MKDIR, "model": {"_target_": "torch.nn.Identity", "x": "${evil}"}},
    "name by reference": {"evil": "os.mkdir", "model": {"_target_": "${evil}", "path": CANARY}},
    "text": {
        "evil": f"{{_target_: os.mkdir, path: {CANARY}}}",
        "model": {"_target_": "torch.nn.Identity", "x": "${oc.create:${oc.decode:${evil}}}"},
    },
}


def planted(value: Any, path: Path) -> Any:
    """Write the path of the canary into an attack."""
    if isinstance(value, dict):
        return {key: planted(item, path) for key, item in value.items()}
    if isinstance(value, list):
        return [planted(item, path) for item in value]
    return value.replace(CANARY, str(path)) if isinstance(value, str) else value


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


def assert_never_runs(config: dict[str, Any], canary: Path) -> None:
    """Refused by the check and, without it, by the build; the line names the key; nothing has happened."""
    cfg = OmegaConf.create(planted(config, canary))
    for attempt in (check_targets, lambda cfg: build(cfg, "model")):
        with pytest.raises(ConfigError) as caught:
            attempt(cfg)
        assert len(str(caught.value).splitlines()) == 1
        assert caught.value.key.startswith(("model", "evil"))
    assert not canary.exists()


@pytest.mark.parametrize("attack", HYDRA_RUNS)
def test_hydra_alone_runs(attack: str, canary: Path) -> None:
    hydra.utils.instantiate(planted(ATTACKS[attack], canary))
    assert canary.exists()


@pytest.mark.parametrize("place", HIDDEN)
def test_hydra_alone_runs_hidden(place: str, canary: Path) -> None:
    hydra.utils.instantiate(OmegaConf.create(planted(HIDDEN[place], canary)).model)
    assert canary.exists()


@pytest.mark.parametrize("attack", ATTACKS)
def test_attack(attack: str, canary: Path) -> None:
    assert_never_runs({"model": ATTACKS[attack]}, canary)


@pytest.mark.parametrize("attack", ATTACKS)
def test_partial_attack(attack: str, canary: Path) -> None:
    assert_never_runs({"model": {**ATTACKS[attack], "_partial_": True}}, canary)


@pytest.mark.parametrize("place", HIDDEN)
def test_hidden_attack(place: str, canary: Path) -> None:
    assert_never_runs(HIDDEN[place], canary)


def test_text_that_becomes_a_mapping(canary: Path) -> None:
    text = f"{{_target_: os.mkdir, path: {CANARY}}}"
    assert_never_runs({"evil": text, "model": {"_target_": "torch.nn.Identity", "x": "${oc.decode:${evil}}"}}, canary)


def test_not_recursive_is_no_hiding_place(canary: Path) -> None:
    assert_never_runs({"model": {"_target_": "torch.nn.Identity", "_recursive_": False, "x": MKDIR}}, canary)


def test_reference_that_appears_when_references_are_resolved(canary: Path) -> None:
    """An escaped reference passes every check as text; resolved once more, it would be a target."""
    escaped = "\\${oc.create:{_target_: os.mkdir, path: " + str(canary) + "}}"
    cfg = OmegaConf.create({"model": {"_target_": "torch.nn.Identity", "x": escaped}})
    once = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    hydra.utils.instantiate(once.model)  # what a build that resolves first would do without the guard
    assert canary.exists()
    canary.rmdir()
    with pytest.raises(ConfigError, match=r"^model\.x=.*Expected no `\$\{`"):
        build(cfg, "model")
    assert not canary.exists()


@pytest.mark.parametrize("name", ["os.system", "shutil.rmtree", "my_project.Net"])
def test_refusal_says_what_is_allowed_and_how_to_add(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_target(name, "model._target_")
    line = str(caught.value)
    assert line.startswith(f"model._target_={name}: Not allowed in a config")
    assert "torch.nn," in line
    assert 'allow_targets("my_package.")' in line


def test_nothing_is_imported_for_a_refused_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy_harmful.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="Not allowed"):
        load_target("toy_harmful.Net")


TOY = """
from shutil import copy
import os
from functools import partial
class Net:
    def __init__(self, p: float = 0.1): self.p = p
    @classmethod
    def load_from_checkpoint(cls, path): open(path, "w")
def make(p: float = 0.2): return Net(p)
preset = partial(make, p=0.3)
_Hidden = Net
"""


@pytest.fixture
def toy_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy_project.py").write_text(TOY)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "toy_project", raising=False)


@pytest.mark.usefixtures("toy_project")
def test_a_package_of_ones_own() -> None:
    with pytest.raises(ConfigError):
        load_target("toy_project.Net")
    allow_targets("toy_project.")
    assert load_target("toy_project.Net").__name__ == "Net"
    assert load_target("toy_project.make").__name__ == "make"
    assert build(OmegaConf.create({"model": {"_target_": "toy_project.Net", "p": 0.7}}), "model").p == 0.7


@pytest.mark.usefixtures("toy_project")
@pytest.mark.parametrize("name", ["copy", "os.mkdir", "os", "partial", "preset", "_Hidden", "Net.load_from_checkpoint"])
def test_what_an_allowed_package_imports_is_not_allowed(name: str) -> None:
    allow_targets("toy_project.")
    with pytest.raises(ConfigError):
        load_target(f"toy_project.{name}")


@pytest.mark.usefixtures("toy_project")
def test_alias_needs_the_check_of_identity(canary: Path) -> None:
    """The same attack runs when the place where `copy` is defined is allowed: only the identity was in its way."""
    cfg = OmegaConf.create({"model": {"_target_": "toy_project.copy", "src": __file__, "dst": str(canary)}})
    allow_targets("toy_project.")
    with pytest.raises(ConfigError, match=r"it is shutil\.copy"):
        build(cfg, "model")
    assert not canary.exists()
    allow_targets("shutil.")
    build(cfg, "model")
    assert canary.exists()


@pytest.mark.usefixtures("toy_project")
def test_exact_name_allows_only_itself() -> None:
    allow_targets("toy_project.Net")
    assert load_target("toy_project.Net").__name__ == "Net"
    for name in ("toy_project.make", "toy_project.Network", "toy_project.Net.load_from_checkpoint"):
        with pytest.raises(ConfigError):
            load_target(name)


@pytest.mark.parametrize("prefix", ["", ".", "os", "a..b.", "my-project.", " torch.", 3, None])
def test_prefix_that_is_none(prefix: object) -> None:
    with pytest.raises(ValueError, match="Expected `prefixes`"):
        allow_targets(prefix)  # type: ignore[arg-type]


def test_the_list_is_plain_and_stays_as_it_is() -> None:
    allow_targets("toy_project.", "toy_project.")
    assert "toy_project." not in ALLOWED_TARGETS
    assert allowlist.allowed_targets() == (*ALLOWED_TARGETS, "toy_project.")


@pytest.mark.parametrize(
    "name",
    [
        "torch.nn.Dropout",
        "torch.optim.AdamW",
        "torch.optim.lr_scheduler.CosineAnnealingLR",
        "lightning.pytorch.Trainer",
        "lightning.Trainer",
        "lightning.pytorch.callbacks.ModelCheckpoint",
        "lightning.pytorch.loggers.CSVLogger",
        "lightning.pytorch.strategies.DDPStrategy",
        "lightning.pytorch.plugins.environments.SLURMEnvironment",
        "lightning.pytorch.profilers.SimpleProfiler",
        "torchmetrics.classification.MulticlassAccuracy",
        "torchmetrics.MeanMetric",
        "lightning_dropout.nn.Dropout",
        "lightning_dropout.schedules.Linear",
        "lightning_dropout.Linear",
    ],
)
def test_what_configs_need_is_allowed(name: str) -> None:
    assert load_target(name).__name__ == name.rpartition(".")[2]


@pytest.mark.parametrize(
    "name",
    [
        "torchvision.transforms.v2.RandomHorizontalFlip",
        "torchvision.models.resnet18",
        "torchvision.models.get_model",
        "torchvision.models.ResNet18_Weights",
        "timm.create_model",
    ],
)
def test_vision_is_allowed(name: str) -> None:
    pytest.importorskip(name.partition(".")[0])
    assert load_target(name).__name__ == name.rpartition(".")[2]


def test_models_of_libraries_are_built_from_a_config() -> None:
    """With what each is allowed: names of its registry, no address."""
    cfg = OmegaConf.create(
        {
            "timm": {"_target_": "timm.create_model", "_args_": ["test_resnet"], "num_classes": 3},
            "torchvision": {"_target_": "torchvision.models.squeezenet1_1", "num_classes": 3},
            "ours": {
                "_target_": "lightning_dropout.models.timm_model",
                "name": "test_resnet",
                "input_shape": [1, 8, 8],
            },
        }
    )
    check_targets(cfg)
    for key in cfg:
        assert sum(parameter.numel() for parameter in build(cfg, key).parameters()) > 0


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("torch.nn.Dropoutt", "torch.nn.Dropout?"),
        ("lightning.pytorch.callbacks.ModelCheckpiont", "lightning.pytorch.callbacks.ModelCheckpoint?"),
        ("lightning_dropout.nn.DropPth", "lightning_dropout.nn.DropPath?"),
        ("torch.nn.zzzzzz", "correct the dotted path"),
    ],
)
def test_typo_names_the_closest(name: str, near: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_target(name, "model._target_")
    assert str(caught.value).startswith(f"model._target_={name}: ")
    assert near in str(caught.value)


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    allow_targets("not_installed_anywhere.")
    with pytest.raises(ConfigError, match=r"No module named 'not_installed_anywhere'; install"):
        load_target("not_installed_anywhere.Net")


@pytest.mark.parametrize(
    ("text", "line"), [("raise RuntimeError('wrong build')", "wrong build"), ("import nope_x", "nope_x")]
)
def test_package_that_cannot_be_imported(text: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy_broken.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    allow_targets("toy_broken.")
    with pytest.raises(ConfigError, match=line):
        load_target("toy_broken.Net")


def test_bug_in_ones_own_module_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy_bug.py").write_text("x = undefined_name")
    monkeypatch.syspath_prepend(str(tmp_path))
    allow_targets("toy_bug.")
    with pytest.raises(NameError):
        load_target("toy_bug.Net")


@pytest.mark.usefixtures("toy_project")
def test_modules_that_an_allowed_one_imports_are_not_even_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    foreign = types.ModuleType("toy_foreign")
    foreign.__getattr__ = asked.append  # type: ignore[method-assign]  # lazy modules run code here
    allow_targets("toy_project.")
    load_target("toy_project.Net")
    monkeypatch.setattr("toy_project.os", foreign)
    with pytest.raises(ConfigError):
        load_target("toy_project.os.Net")
    assert [name for name in asked if not name.startswith("__")] == []


def test_module_that_pretends_to_be_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.nn.toy", types.ModuleType("os"))
    with pytest.raises(ConfigError):
        load_target("torch.nn.toy.Net")


@pytest.mark.parametrize("name", ["Weights", "WeightsEnum", "register_model", "handle_legacy_interface"])
def test_what_the_builders_of_torchvision_are_made_of_is_no_target(name: str) -> None:
    with pytest.raises(ConfigError, match="Not allowed"):
        load_target(f"torchvision.models.resnet.{name}")
    assert load_target("torchvision.models.resnet.resnet18")

"""2,000 configs that want to run code, reach the network or write elsewhere: none of them does.

What an attack does is not guessed from its refusal: an audit hook watches the interpreter while each config is checked
and built, and every attack aims at a canary file. The last tests weaken the allowlist in the three ways in which one
usually is wrong; the same attacks then run, and are seen.
"""

import contextlib
import functools
import importlib
import itertools
import json
import os
import pickle
import re
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from lightning_dropout.configuration import ConfigError, allowlist, build, check_targets
from lightning_dropout.configuration.allowlist import load_target

Config = dict[str, Any]
CANARY = "CANARY"  # replaced by a path in a folder that must stay as it is
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

# --- families ---------------------------------------------------------------------------------------------------------

OS = ["system", "popen", "mkdir", "makedirs", "remove", "rmdir", "rename", "symlink", "link", "chmod", "kill", "putenv",
      "execv", "execvp", "spawnl", "posix_spawn", "fork", "chdir", "open", "truncate", "abort", "_exit", "unlink"]  # fmt: skip  # noqa: E501
FUNCTIONS = {
    "os": OS,
    "posix": OS,
    "nt": OS[:4],
    "subprocess": ["Popen", "run", "call", "check_call", "check_output", "getoutput", "getstatusoutput"],
    "shutil": ["rmtree", "copy", "copyfile", "copytree", "move", "make_archive", "unpack_archive", "chown"],
    "pickle": ["load", "loads", "dump", "Unpickler", "_Unpickler"],
    "marshal": ["loads", "dumps"],
    "builtins": ["open", "eval", "exec", "compile", "__import__", "getattr", "setattr", "globals", "vars", "print"],
    "importlib": ["import_module", "reload", "__import__"],
    "runpy": ["run_module", "run_path"],
    "ctypes": ["CDLL", "PyDLL", "cast", "CFUNCTYPE"],
    "socket": ["socket", "create_connection", "create_server", "getaddrinfo"],
    "urllib.request": ["urlopen", "urlretrieve", "Request"],
    "http.client": ["HTTPConnection", "HTTPSConnection"],
    "ftplib": ["FTP"],
    "smtplib": ["SMTP"],
    "webbrowser": ["open"],
    "code": ["interact", "InteractiveConsole"],
    "pdb": ["run", "set_trace"],
    "pty": ["spawn"],
    "asyncio": ["create_subprocess_shell", "run"],
    "multiprocessing": ["Process", "Pool"],
    "threading": ["Thread", "Timer"],
    "tempfile": ["mkdtemp", "NamedTemporaryFile"],
    "pathlib": ["Path", "Path.write_text", "Path.mkdir", "Path.unlink", "Path.touch"],
    "io": ["open", "FileIO", "open_code"],
    "functools": ["partial", "reduce"],
    "operator": ["methodcaller", "attrgetter"],
    "types": ["FunctionType", "CodeType"],
    "sys": ["exit", "addaudithook", "setprofile"],
    "zipfile": ["ZipFile"],
    "tarfile": ["open"],
    "sqlite3": ["connect"],
    "shelve": ["open"],
    "logging": ["FileHandler", "config.dictConfig", "os.system", "basicConfig"],
    "yaml": ["load", "unsafe_load", "full_load"],
    "numpy": ["load", "save", "savetxt", "fromfile"],
    "pandas": ["read_pickle", "eval"],
    "joblib": ["load"],
    "dill": ["load"],
    "cloudpickle": ["loads"],
    "torch": ["load", "save", "compile"],
    "torch.hub": ["load", "download_url_to_file", "load_state_dict_from_url", "set_dir"],
    "torch.jit": ["load", "save", "script", "CompilationUnit"],
    "torch.package": ["PackageImporter", "PackageExporter"],
    "torch.serialization": ["load", "add_safe_globals"],
    "torch.utils.cpp_extension": ["load", "load_inline"],
    "torch.utils.data": ["DataLoader"],
    "torch.distributed": ["init_process_group", "TCPStore"],
    "torch.distributed.run": ["main"],
    "torch.ops": ["load_library"],
    "torch.cuda": ["memory._dump_snapshot"],
    "torch.onnx": ["export"],
    "torch.fx": ["symbolic_trace"],
    "wandb": ["init", "login", "sweep", "agent", "save", "restore", "Artifact", "launch"],
    "hydra": ["main", "compose"],
    "hydra.utils": ["instantiate", "call", "get_method", "get_class", "get_object", "get_static_method"],
    "hydra._internal.utils": ["_locate"],
    "omegaconf": ["OmegaConf.load", "OmegaConf.save", "OmegaConf.register_new_resolver"],
    "lightning": ["LightningModule.load_from_checkpoint", "Fabric", "seed_everything"],
    "lightning.pytorch.cli": ["LightningCLI"],
    "lightning.pytorch.core.saving": ["load_hparams_from_yaml", "save_hparams_to_yaml"],
    "lightning.fabric.utilities.cloud_io": ["_load", "get_filesystem"],
    "lightning.fabric.cli": ["_main"],
    "lightning.pytorch.loggers": ["WandbLogger", "MLFlowLogger", "CometLogger", "NeptuneLogger", "LitLogger"],
    "lightning.pytorch.loggers.csv_logs": ["ExperimentWriter", "CSVLogger"],
    "lightning_dropout.configuration": ["allow_targets", "build", "run_main", "check_output_dir"],
    "lightning_dropout.cli": ["main"],
    "lightning_dropout.loggers": ["FailSafeWandbLogger", "save_workspace"],
    "lightning_dropout.reports": ["save_figure", "write_table"],
    "fsspec": ["open", "filesystem"],
    "huggingface_hub": ["hf_hub_download", "snapshot_download"],
    "transformers": ["pipeline", "AutoModel.from_pretrained"],
    "timm": ["models.load_checkpoint"],
    "torchvision.datasets": ["CIFAR10"],
    "torchvision.io": ["write_file"],
    "matplotlib.pyplot": ["savefig"],
    "PIL.Image": ["open"],
    "setuptools": ["setup"],
    "pip": ["main"],
}  # fmt: skip
HARMFUL = [f"{module}.{name}" for module, names in FUNCTIONS.items() for name in names]

# Modules of allowed packages that import others: a way out for whoever checks the first words of a name alone.
DOORS = [
    "lightning_dropout.nn.dropout.math", "lightning_dropout.probability.math", "lightning_dropout.data.tables.csv",
    "lightning_dropout.loggers.wandb.os", "lightning_dropout.loggers.wandb", "lightning_dropout.randomness.torch",
    "lightning_dropout.callbacks.run_report.functools", "lightning_dropout.models.libraries.re",
    "lightning_dropout.callbacks.trained_rates.torch", "lightning_dropout.data.image_files.importlib",
    "torch.nn.modules.module.warnings", "torch.nn.modules.module.functools", "torch.nn.functional.importlib",
    "torch.nn.parallel.distributed.sys", "torch.nn.parallel.distributed.os", "torch.nn.parallel.distributed.inspect",
    "torch.optim.optimizer.functools", "torch.optim.swa_utils.itertools", "torch.nn.utils.prune.numbers",
    "lightning.pytorch.callbacks.model_checkpoint.os", "lightning.pytorch.callbacks.model_checkpoint.shutil",
    "lightning.pytorch.callbacks.model_checkpoint.yaml", "lightning.pytorch.strategies.ddp.torch",
    "lightning.pytorch.profilers.profiler.os", "lightning.pytorch.plugins.io.async_plugin.ThreadPoolExecutor",
    "lightning.fabric.plugins.environments.slurm.os", "lightning.fabric.plugins.environments.lightning.socket",
    "lightning.fabric.plugins.environments.lsf.os", "torchmetrics.metric.inspect", "torchmetrics.utilities.checks.os",
    "torchmetrics.utilities.imports.sys", "torchvision.models._api.importlib", "torchvision.models.inspect",
    "torchvision.transforms.v2.functional.torch",
]  # fmt: skip
BEHIND = ["os.system", "os.mkdir", "sys.modules", "importlib.import_module", "builtins.open", "shutil.rmtree", "path",
          "torch.load", "__builtins__.open", "subprocess.Popen"]  # fmt: skip

ANCHORS = ["torch.nn.Dropout", "lightning.Trainer", "lightning_dropout.nn.Dropout", "torch.optim.AdamW",
           "torchmetrics.MeanMetric", "lightning.pytorch.callbacks.Callback", "torch.nn", "lightning_dropout"]  # fmt: skip  # noqa: E501
DUNDERS = ["__class__", "__init__.__globals__", "__class__.__base__.__subclasses__", "__init__.__builtins__.eval",
           "__dict__", "__module__", "__mro__", "__subclasshook__", "__reduce_ex__", "__init_subclass__",
           "forward.__globals__", "__loader__.load_module", "__spec__.loader", "__builtins__.exec",
           "load_from_checkpoint", "register_forward_hook", "__call__", "mro"]  # fmt: skip
# Letters that look like those of ASCII; Python reads the second of each as another name or folds it (NFKC).
LOOK_ALIKES = {"o": "оοｏº", "s": "ѕｓſ", "t": "ｔт", "e": "еｅ", "n": "ｎո", "m": "ｍ", "y": "уｙ"}

SYSTEM = {"_target_": "os.system", "command": f"touch {CANARY}"}
MKDIR = {"_target_": "os.mkdir", "path": CANARY}
WRITE = {"_target_": "pathlib.Path.write_text", "_args_": [{"_target_": "pathlib.Path", "_args_": [CANARY]}, "x"]}
SAVE = {"_target_": "torch.save", "obj": 1, "f": CANARY}
OPEN = {"_target_": "builtins.open", "_args_": [CANARY, "w"]}
IMPORT = {"_target_": "importlib.import_module", "name": "evil_module"}
LOADED = {"_target_": "torch.load", "f": f"{CANARY}.pickle", "weights_only": False}
PAYLOADS = [SYSTEM, MKDIR, WRITE, SAVE, OPEN, IMPORT, LOADED]

# Methods and members of classes that are allowed themselves: each does what it says to whoever walks into the class.
TORCH_IO = {"_target_": "lightning.pytorch.plugins.io.TorchCheckpointIO"}
METHODS: list[Config] = [
    {"_target_": f"{place}.TorchCheckpointIO.{method}", "_args_": [TORCH_IO, *arguments]}
    for place in ("lightning.pytorch.plugins.io", "lightning.fabric.plugins.io", "lightning.fabric.plugins.io.torch_io")
    for method, arguments in (
        ("save_checkpoint", [{}, CANARY]),
        ("load_checkpoint", [f"{CANARY}.pickle", None, False]),
        ("remove_checkpoint", [f"{CANARY}.pickle"]),
    )
]
# Allowed by name, told to fetch, to send or to hook.
TOLD: list[Config] = [
    {"_target_": "timm.create_model", "model_name": "test_vit", "checkpoint_path": f"{CANARY}.pickle"},
    {"_target_": "timm.create_model", "model_name": "test_vit", "cache_dir": CANARY, "pretrained": True},
    {"_target_": "timm.create_model", "model_name": "hf-hub:evil/model", "pretrained": True},
    {"_target_": "timm.create_model", "model_name": "test_vit", "pretrained_cfg": {"file": f"{CANARY}.pickle"}},
    {"_target_": "lightning_dropout.models.timm_model", "name": f"local-dir:{CANARY}"},
    {"_target_": "lightning.Trainer", "model_registry": "evil/model"},
    {"_target_": "torchmetrics.text.BERTScore", "model_name_or_path": "evil/model"},
    {"_target_": "torchmetrics.text.BERTScore", "baseline_url": "http://127.0.0.1:9/x"},
    {"_target_": "torchmetrics.text.InfoLM", "_args_": ["evil/model"]},
    {"_target_": "torchmetrics.multimodal.CLIPScore", "model_name_or_path": "evil/model"},
    {"_target_": "torchmetrics.image.fid.NoTrainInceptionV3", "name": "x", "features_list": ["64"],
     "feature_extractor_weights_path": f"{CANARY}.pickle"},
    {"_target_": "torch.nn.modules.module.register_module_forward_hook", "hook": {**SYSTEM, "_partial_": True}},
    *(
        {"_target_": "lightning_dropout.loggers.wandb_logger", "save_dir": CANARY, "settings": {key: value}}
        for key, value in {
            "base_url": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9", "root_dir": CANARY, "api_key": "x",
            "x_stats_open_metrics_endpoints": {"x": "http://127.0.0.1:9"}, "code_dir": CANARY, "program": CANARY,
        }.items()
    ),
]  # fmt: skip


def hidden(payload: Config) -> Iterator[Config]:
    """Yield configs that hold an attack where a careless check does not look; Hydra reaches each."""
    text = json.dumps(payload)
    partial = {**payload, "_partial_": True}
    nodes: list[Config] = [
        {"_target_": "torch.nn.Sequential", "_args_": [payload]},
        {"_target_": "torch.nn.Sequential", "_args_": [{"_target_": "torch.nn.Sequential", "_args_": [payload]}]},
        {"_target_": "torch.nn.Identity", "x": payload},
        {"_target_": "torch.nn.Identity", "x": [[[payload]]]},
        {"_target_": "torch.nn.Identity", "x": {"a": {"b": [{"c": payload}]}}},
        {"_target_": "torch.nn.Identity", "x": payload, "_recursive_": False},
        {"_target_": "torch.nn.Identity", "x": {"_target_": "torch.nn.Identity", "_recursive_": False, "y": payload}},
        {"_target_": "torch.nn.Identity", "x": payload, "_convert_": "object"},
        {"_target_": "torch.nn.Identity", "x": payload, "_partial_": True},
        {"_target_": "torch.nn.Identity", "x": partial},
        {"_target_": "torch.optim.AdamW", "_partial_": True, "params": [{"params": payload}]},
        {"_target_": "lightning.pytorch.callbacks.LambdaCallback", "setup": partial},
        {"_target_": "lightning.pytorch.callbacks.LambdaCallback", "on_fit_start": partial, "on_exception": partial},
        {"_target_": "lightning.pytorch.callbacks.ModelPruning", "pruning_fn": partial},
        {"_target_": "lightning.pytorch.callbacks.ThroughputMonitor", "batch_size_fn": partial},
        {"_target_": "lightning.pytorch.callbacks.BackboneFinetuning", "lambda_func": partial},
        {"_target_": "lightning.Trainer", "callbacks": [payload]},
        {"_target_": "lightning.Trainer", "logger": payload, "plugins": [payload], "profiler": payload},
        {"_target_": "lightning.Trainer", "strategy": {"_target_": "lightning.pytorch.strategies.DDPStrategy",
         "ddp_comm_hook": partial}},
        {"_target_": "lightning.Trainer", "profiler": {"_target_": "lightning.pytorch.profilers.PyTorchProfiler",
         "on_trace_ready": partial}},
        {"_target_": "lightning.pytorch.plugins.io.AsyncCheckpointIO", "checkpoint_io": payload},
        {"_target_": "lightning_dropout.callbacks.DropoutScheduler", "scale": payload},
        {"_target_": "lightning_dropout.callbacks.DropoutScheduler", "rate": {"*": payload}},
        {"_target_": "lightning_dropout.modules.Classifier", "num_classes": 2, "net": payload, "optimizer": partial},
        {"_target_": "torchvision.transforms.v2.Lambda", "lambd": partial},
        {"_target_": "torchmetrics.MetricCollection", "metrics": [payload]},
        {"_target_": "torchmetrics.text.ROUGEScore", "normalizer": partial},
        {"_target_": "torch.nn.utils.rnn.bind", "optional": 1, "fn": partial},
        {"_target_": "lightning.pytorch.loggers.logger.merge_dicts", "dicts": [{"a": 1}], "default_func": partial},
        {"_target_": "${evil._target_}", **{key: value for key, value in payload.items() if key != "_target_"}},
    ]  # fmt: skip
    for node in nodes:
        yield {"model": node, "evil": payload}
    for value in ("${evil}", "${oc.dict.values:outer}", "${oc.create:${oc.decode:${text}}}", "${oc.decode:${text}}",
                  "${oc.decode:${oc.env:EVIL_TEXT}}", "${oc.create:${oc.env:EVIL_TEXT}}", "${oc.select:evil}",
                  "\\${oc.create:" + text + "}", "${no_such_resolver:os.system}"):  # fmt: skip
        yield {"model": {"_target_": "torch.nn.Identity", "x": value}, "evil": payload, "text": text,
               "outer": {"a": payload}}  # fmt: skip


def look_alikes(name: str) -> Iterator[str]:
    for place, letter in enumerate(name):
        for other in LOOK_ALIKES.get(letter, ""):
            yield name[:place] + other + name[place + 1 :]


def attacks() -> list[Config]:
    """Return all attacks, each once."""
    command = {"_args_": [f"touch {CANARY}"]}
    configs: list[Config] = [{"model": {"_target_": name, **command}} for name in HARMFUL]
    configs += [{"model": {"_target_": name, "_args_": [CANARY], "_partial_": True}} for name in HARMFUL]
    configs += [{"model": {"_target_": f"{door}.{name}", **command}} for door in DOORS for name in BEHIND]
    configs += [{"model": {"_target_": f"{door}.os.mkdir", "path": CANARY}} for door in DOORS]
    configs += [{"model": {"_target_": f"{a}.{d}", **command}} for a in ANCHORS for d in DUNDERS]
    for name in ("os.system", "subprocess.Popen", "builtins.open", "torch.nn.Module", "shutil.rmtree", "torch.save"):
        configs += [{"model": {"_target_": other, **command}} for other in look_alikes(name)]
    for name in ("os.system", "torch.save", "shutil.copy"):
        odd = [f" {name}", f"{name} ", f"{name}\n", f".{name}", f"{name}.", name.replace(".", ".."), f"{name}\x00",
               name.replace(".", ":"), name.replace(".", "/"), name.upper(), f"{name}()", f"lambda: {name}",
               f"torch.nn;{name}", f"torch.nn.{name}", f"torch.nn_evil.{name}", f"torchmetrics/../{name}",
               f"lightning_dropout_evil.{name}", f"lightning.pytorch.callbacks_evil.{name}",
               [name], {"_target_": name}, 3, None, True, 1.5]  # fmt: skip
        configs += [{"model": {"_target_": target, **command}} for target in odd]
    configs += [{"model": node} for node in (*METHODS, *TOLD)]
    configs += [{"model": {**node, "_partial_": True}} for node in (*METHODS, *TOLD)]
    configs += [config for payload in PAYLOADS for config in hidden(payload)]
    configs += [{"model": {"_target_": "torch.nn.Identity", "x": {"_target_": name, **command}}} for name in HARMFUL]
    configs += [{"model": {"_target_": "torch.nn.Sequential", "_args_": [{"_target_": name, **command}]}}
                for name in HARMFUL]  # fmt: skip
    configs += [{"model": {"_target_": f"lightning_dropout_evil.{name}"}} for name in ("strike", "Strike")]
    return list({json.dumps(config): config for config in configs}.values())


TAGS = [f"model: !!python/object/{tag}:os.{name} [{argument!r}]"
        for tag in ("apply", "new") for name in OS for argument in (f"touch {CANARY}", CANARY)]  # fmt: skip
ATTACKS = attacks()


# --- the watch --------------------------------------------------------------------------------------------------------

_watched: dict[str, Any] = {"events": None, "folder": ""}


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    events = _watched["events"]
    if events is None:
        return
    if event in ("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.kill", "subprocess.Popen", "pty.spawn",
                 "socket.connect", "socket.bind", "socket.getaddrinfo", "urllib.Request", "ctypes.dlopen",
                 "shutil.rmtree", "shutil.move", "os.putenv", "os.remove", "os.rename", "os.rmdir", "os.symlink",
                 "os.link", "os.mkdir", "os.chmod", "os.truncate", "webbrowser.open", "marshal.loads"):  # fmt: skip
        if event == "marshal.loads" or "__pycache__" in str(arguments):  # Python's own, of an import
            return
        events.append(f"{event}{arguments}")
        return
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES
    if writes and "__pycache__" not in str(arguments[0]):
        events.append(f"{event}{arguments}")


sys.addaudithook(_hook)  # for the life of the process; silent unless a test is watching


@contextmanager
def watching() -> Iterator[list[str]]:
    events: list[str] = []
    _watched["events"] = events
    try:
        yield events
    finally:
        _watched["events"] = None


class _Strikes:
    """A pickle that writes a canary when it is loaded."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(self.path),)


@pytest.fixture
def battlefield(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what attacks need: a pickle that strikes, a package whose name begins like ours."""
    for name in ("lightning_dropout_evil", "evil_module"):
        body = f"open({str(tmp_path / CANARY)!r}, 'w')"
        indented = f"\ndef strike():\n    {body}\nclass Strike:\n    def __init__(self):\n        {body}\n"
        (tmp_path / f"{name}.py").write_text(indented if name.startswith("lightning") else body + "\n")
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / f"{CANARY}.pickle").write_bytes(pickle.dumps(_Strikes(str(tmp_path / CANARY))))
    monkeypatch.setenv("EVIL_TEXT", json.dumps(MKDIR).replace(CANARY, str(tmp_path / CANARY)))
    monkeypatch.chdir(tmp_path)
    for name in _allowed_names(
        json.dumps(ATTACKS)
    ):  # what allowed packages do when they are imported is none of an attack's doing
        with contextlib.suppress(ConfigError):
            load_target(name)
    return tmp_path


@functools.cache
def _allowed_names(text: str) -> frozenset[str]:
    return frozenset(name for name in re.findall(r'"_target_": "([\w.]+)"', text) if allowlist._is_allowed(name))


def planted(config: object, folder: Path) -> Any:
    return json.loads(json.dumps(config).replace(CANARY, json.dumps(str(folder / CANARY))[1:-1]))


def strike(config: object, folder: Path) -> tuple[str, list[str]]:
    """Check and build one config, checked or not; return how it ended and what happened meanwhile."""
    outcome = "refused"
    cfg = OmegaConf.create(planted(config, folder))
    with watching() as events:
        for attempt in (check_targets, lambda cfg: build(cfg, "model")):
            try:
                attempt(cfg)
                outcome = "harmless"
            except ConfigError as error:
                if not error.key or not str(error).isprintable():
                    outcome = f"no line: {error!r}"
            except Exception as error:
                outcome = f"{type(error).__name__}: {error}"
    return outcome, events


def executed(configs: list[Config], folder: Path) -> list[Config]:
    """Return the configs that did something."""
    done = []
    for config in configs:
        before = sorted(folder.iterdir())
        _, events = strike(config, folder)
        if events or [path for path in sorted(folder.iterdir()) if path not in before and path.name != "__pycache__"]:
            done.append(config)
            (folder / CANARY).unlink(missing_ok=True) if not (folder / CANARY).is_dir() else (folder / CANARY).rmdir()
    return done


def test_there_are_2000() -> None:
    assert len(ATTACKS) + len(TAGS) >= 2000


@pytest.mark.filterwarnings("ignore")
def test_none_is_executed(battlefield: Path) -> None:
    outcomes: dict[str, int] = {}
    for config in ATTACKS:
        outcome, events = strike(config, battlefield)
        assert not events, (config, events)
        assert outcome in ("refused", "harmless"), (config, outcome)
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        assert outcome == "refused", config
    assert outcomes["refused"] == len(ATTACKS)
    assert sorted(path.name for path in battlefield.iterdir() if path.suffix != "" or path.name == CANARY) == sorted(
        [f"{CANARY}.pickle", "evil_module.py", "lightning_dropout_evil.py"]
    )


def test_yaml_tags_make_nothing(battlefield: Path) -> None:
    for text in TAGS:
        with watching() as events, pytest.raises(Exception, match="could not determine a constructor"):
            OmegaConf.create(text.replace(CANARY, str(battlefield / CANARY)))
        assert not events


def test_the_watch_sees_what_an_attack_does(battlefield: Path) -> None:
    with watching() as events:
        pickle.loads((battlefield / f"{CANARY}.pickle").read_bytes())
        os.system("true")
    assert [event.partition("(")[0] for event in events] == ["open", "os.system"]


# --- allowlists that are wrong ----------------------------------------------------------------------------------------

FEW = [
    config
    for config in ATTACKS
    if re.search(r"evil\.strike|TorchCheckpointIO\.|Strike|\.os\.mkdir|os\.system", str(config["model"]["_target_"]))
]


def only_names(name: object, key: str = "_target_") -> Any:
    """Checks what is written, not what it stands for."""
    if not isinstance(name, str) or not allowlist._is_allowed(name):
        raise ConfigError("Not allowed", key, name)
    return _walk(name, key)


def into_classes(name: object, key: str = "_target_") -> Any:
    """Checks name and identity, and walks into classes."""
    found = only_names(name, key)
    if not allowlist._is_allowed(f"{found.__module__}.{found.__qualname__}"):
        raise ConfigError("Not allowed", key, name)
    return found


def without_dot(name: str) -> bool:
    return any(name.startswith(entry.removesuffix(".")) for entry in allowlist.allowed_targets())


def _walk(name: str, key: str) -> Any:
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:length]))
            for part in parts[length:]:
                found = getattr(found, part)
        except (ImportError, AttributeError, ValueError):
            continue
        return found
    raise ConfigError("Not found", key, name)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("wrong", "replacement", "caught_by"),
    [
        ("load_target", only_names, r"\.os\.mkdir"),
        ("load_target", into_classes, r"TorchCheckpointIO\."),
        ("_is_allowed", without_dot, "lightning_dropout_evil"),
    ],
)
def test_the_same_attacks_run_when_the_allowlist_is_wrong(
    wrong: str, replacement: Any, caught_by: str, battlefield: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert executed(FEW, battlefield) == []
    for module in ("allowlist", "targets", "build"):  # by sys.modules: the function `build` hides the module
        monkeypatch.setattr(sys.modules[f"lightning_dropout.configuration.{module}"], wrong, replacement, raising=False)
    monkeypatch.setattr("hydra._internal.target_policy._is_blocklisted_target", lambda target: False)
    assert any(re.search(caught_by, str(config["model"]["_target_"])) for config in executed(FEW, battlefield))


# --- identities -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", ["torch.nn", "torch.optim", "lightning.pytorch.callbacks", "lightning_dropout.nn"])
def test_whatever_is_found_in_a_package_is_defined_in_an_allowed_one(package: str) -> None:
    """Every name that every module of the package holds, tried one by one."""
    root = importlib.import_module(package)
    modules = [m for name, m in list(sys.modules.items()) if name == package or name.startswith(f"{package}.")]
    assert root in modules
    found: set[object] = set()
    for module, name in itertools.chain.from_iterable(((m, n) for n in dir(m)) for m in modules if m is not None):
        try:
            found.add(load_target(f"{module.__name__}.{name}"))
        except ConfigError:
            continue
    assert len(found) >= 5
    for target in found:
        assert isinstance(target, (type, types.FunctionType))
        identity = f"{target.__module__}.{target.__qualname__}"
        assert f"{target.__module__}.".startswith(allowlist.ALLOWED_TARGETS) or identity in allowlist.ALLOWED_TARGETS
        assert isinstance(target, type) or "self" not in target.__code__.co_varnames[:1], target  # no method

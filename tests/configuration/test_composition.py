"""A `hydra` node that would run code, and secrets in a config, are refused before Hydra acts on them or writes them."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import OmegaConf

from lightning_dropout.configuration import ConfigError, allow_targets
from lightning_dropout.configuration.composition import check_composed, composition_checked

LOG = "${hydra.runtime.output_dir}/${hydra.job.name}.log"
WRONG: dict[str, dict[str, Any]] = {
    "hydra.callbacks.x._target_": {"callbacks": {"x": {"_target_": "os.system", "command": "touch canary"}}},
    "hydra.callbacks.x.y._target_": {
        "callbacks": {"x": {"_target_": "torch.nn.Identity", "y": {"_target_": "os.mkdir"}}}
    },
    "evil._target_": {"callbacks": "${evil}"},
    "hydra.job_logging.handlers.x.class": {"job_logging": {"handlers": {"x": {"class": "pathlib.Path"}}}},
    "hydra.job_logging.handlers.x.()": {"job_logging": {"handlers": {"x": {"()": "os.system"}}}},
    "hydra.hydra_logging.formatters.x.()": {"hydra_logging": {"formatters": {"x": {"()": "pathlib.Path.touch"}}}},
    "hydra.job_logging.handlers.x.stream": {"job_logging": {"handlers": {"x": {"stream": "ext://os.environ"}}}},
    "hydra.job_logging.handlers.x.args[0]": {"job_logging": {"handlers": {"x": {"args": ["cfg://a"]}}}},
    "hydra.job_logging.handlers.x.filename": {"job_logging": {"handlers": {"x": {"filename": "/tmp/x.log"}}}},
    "hydra.job_logging.handlers.y.filename": {"job_logging": {"handlers": {"y": {"filename": f"{LOG}/../../../x"}}}},
    "hydra.job_logging.handlers.z.filename": {"job_logging": {"handlers": {"z": {"filename": f"{LOG}${{evil}}"}}}},
    "hydra.job_logging": {"job_logging": "${evil}"},
    "hydra.job_logging.handlers": {"job_logging": {"handlers": "${evil}"}},
    "hydra.job.env_set.LD_PRELOAD": {"job": {"env_set": {"LD_PRELOAD": "/tmp/x.so"}}},
    "hydra.job.env_set.PYTHONPATH": {"job": {"env_set": {"PYTHONPATH": "/tmp"}}},
    "hydra.job.env_set.WANDB_BASE_URL": {"job": {"env_set": {"WANDB_BASE_URL": "http://127.0.0.1:9"}}},
    "hydra.job.env_set": {"job": {"env_set": "${evil}"}},
    "hydra.job.name": {"job": {"name": "../../x"}},
    "hydra.output_subdir": {"output_subdir": "/tmp/x"},
    "hydra.sweep.subdir": {"sweep": {"subdir": "${evil}"}},
}
HARMLESS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "none": {"output_subdir": None, "callbacks": None, "job_logging": None},
    "as by default": {
        "callbacks": {},
        "job": {"name": "train", "env_set": {"OMP_NUM_THREADS": "1"}},
        "output_subdir": ".hydra",
        "sweep": {"subdir": "${hydra.job.num}_${hydra:job.override_dirname}"},
        "job_logging": {
            "formatters": {"simple": {"()": "colorlog.ColoredFormatter", "format": "%(message)s"}},
            "handlers": {"file": {"class": "logging.FileHandler", "filename": LOG, "stream": "ext://sys.stdout"}},
        },
    },
}


@pytest.mark.parametrize("key", WRONG)
def test_a_hydra_node_that_would_do_harm(key: str) -> None:
    cfg = OmegaConf.create({"hydra": WRONG[key], "evil": {"_target_": "os.system", "command": "true"}})
    with pytest.raises(ConfigError) as caught:
        check_composed(cfg)
    assert caught.value.key == key
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("node", HARMLESS)
def test_what_hydra_is_normally_told(node: str) -> None:
    check_composed(OmegaConf.create({"hydra": HARMLESS[node], "model": {"p": 0.1}}))


def test_a_callback_of_ones_own() -> None:
    cfg = OmegaConf.create(
        {"hydra": {"callbacks": {"x": {"_target_": "hydra.experimental.callbacks.LogJobReturnCallback"}}}}
    )
    with pytest.raises(ConfigError, match="Not allowed"):
        check_composed(cfg)
    allow_targets("hydra.experimental.callbacks.LogJobReturnCallback")
    check_composed(cfg)


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"logger": {"api_key": "abc"}}, "logger.api_key"),
        ({"a": [{"password": "abc"}]}, "a[0].password"),
        ({"note": "canary-5f2c9e7d1a"}, "note"),
        ({"a": {"canary-5f2c9e7d1a": 1}}, "a.<redacted>"),
        ({"storage": "postgresql://user:abc@host/db"}, "storage"),
        ({"note": "${oc.env:TOY_API_KEY}"}, "note"),
        ({"note": "x${oc.decode:${oc.env:TOY_API_KEY}}"}, "note"),
        ({"my": {"api_key": "${oc.env:TOY_API_KEY}"}, "note": "${my.api_key}"}, "note"),
        ({"hydra": {"job": {"env_set": {"TOY_API_KEY": "abc"}}}}, "hydra.job.env_set.TOY_API_KEY"),
    ],
)
def test_secrets_in_a_config(config: dict[str, Any], key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_API_KEY", "canary-5f2c9e7d1a")
    with pytest.raises(ConfigError) as caught:
        check_composed(OmegaConf.create(config))
    assert str(caught.value).startswith(f"{key}=<redacted>: Expected no secret")
    assert "canary" not in str(caught.value)


def test_references_to_secrets_under_their_own_names_are_fine() -> None:
    check_composed(OmegaConf.create({"my": {"api_key": "${oc.env:TOY_API_KEY}", "token": None}, "x": "${oc.env:USER}"}))


@pytest.mark.parametrize(
    "words",
    [
        ["+hydra.callbacks.x={_target_: pathlib.Path.touch, _args_: [{_target_: pathlib.Path, _args_: [canary]}]}"],
        ["+hydra.job_logging.handlers.x={class: logging.FileHandler, filename: canary}"],
        ["hydra.job.name=../../canary"],
        ["model=secret"],
    ],
)
def test_in_a_process(
    words: list[str], run_app: Callable[..., subprocess.CompletedProcess[str]], app_folder: Path
) -> None:
    (app_folder / "conf" / "model" / "secret.yaml").write_text("{value: 0.5, api_key: canary-value}")
    before = sorted(app_folder.rglob("*"))
    run = run_app(*words)
    assert run.returncode == 2, run.stderr
    assert len(run.stderr.splitlines()) == 1
    assert "canary-value" not in run.stderr + run.stdout
    assert [path for path in sorted(app_folder.rglob("*")) if path not in before] == []


def test_hydra_is_given_back() -> None:
    before = ConfigLoaderImpl.load_configuration
    with pytest.raises(ZeroDivisionError), composition_checked():  # noqa: PT012
        assert ConfigLoaderImpl.load_configuration is not before
        raise ZeroDivisionError
    assert ConfigLoaderImpl.load_configuration is before

"""No secret reaches what is logged, wherever it stands; nothing else is lost."""

import json
from collections.abc import Callable
from enum import Enum
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from lightning_dropout.configuration import ConfigError, redact, refuse_secrets

CANARY = "canary-5f2c9e7d1a"
PLACES: dict[str, Callable[[], object]] = {
    "under a secret key": lambda: {"logger": {"api_key": CANARY}},
    "camel case": lambda: {"hubToken": CANARY},
    "list under a secret key": lambda: {"tokens": {"access_token": [CANARY, {"x": CANARY}]}},
    "mapping under a secret key": lambda: {"credentials": {"user": CANARY, "nested": {"deep": CANARY}}},
    "default of an interpolation": lambda: {"api_key": f"${{oc.env:NOT_SET,{CANARY}}}"},
    "value of an environment variable": lambda: {"logger": {"note": CANARY}},
    "part of a value": lambda: {"url": f"https://host/?auth={CANARY}&x=1"},
    "in a list": lambda: {"tags": ["a", [CANARY]]},
    "as a key": lambda: {"seen": {CANARY: 1}},
    "password in a url": lambda: {"storage": f"postgresql://user:{CANARY[:6]}secret@host/db"},
    "in a path": lambda: {"folder": Path("/data") / CANARY},
    "behind an interpolation": lambda: {"a": "${oc.env:TOY_API_KEY}", "b": "${a}"},
}


@pytest.mark.parametrize("place", PLACES)
def test_canary_never_comes_out(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_API_KEY", CANARY)
    config = PLACES[place]()
    assert isinstance(config, dict)
    text = repr(redact(config))
    assert CANARY not in text
    assert f"{CANARY[:6]}secret" not in text


@pytest.mark.parametrize("place", list(PLACES)[:5])
def test_named_secrets_need_no_environment(place: str) -> None:
    config = PLACES[place]()
    assert isinstance(config, dict)
    assert CANARY not in repr(redact(config))


def test_numbers_equal_to_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_PASSWORD", "1234567890")
    assert redact({"x": 1234567890, "y": 12}) == {"x": "<redacted>", "y": 12}


def test_short_environment_values_do_not_match_by_accident(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_TOKEN", "1")
    assert redact({"depth": 12, "name": "vit1"}) == {"depth": 12, "name": "vit1"}


def test_everything_else_stays() -> None:
    config = {
        "model": {"_target_": "torch.nn.Dropout", "p": 0.1, "class_token": "mean", "inplace": False, "x": None},
        "data": {"num_tokens": 5, "root": "${oc.env:DATA_ROOT}", "missing": "???", "list": [1, [2.5, "${a.b}"]]},
        "logger": {"api_key": None, "hub_token": "${oc.env:HF_TOKEN}", "password": "???", "token": ""},
    }
    clean = redact(OmegaConf.create(config))
    assert clean == config
    assert json.loads(json.dumps(clean)) == config  # plain containers only


def test_config_is_not_changed_and_needs_not_resolve() -> None:
    config = OmegaConf.create({"api_key": CANARY, "x": "${not.there}"})
    OmegaConf.set_readonly(config, True)
    assert redact(config) == {"api_key": "<redacted>", "x": "${not.there}"}
    assert config.api_key == CANARY


def test_enums_become_text() -> None:
    assert redact({"mode": Enum("Mode", "ROW").ROW})["mode"] == "ROW"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "override",
    [
        f"logger.api_key={CANARY}",
        f"+logger.api_key={CANARY}",
        f"++logger.api_key='{CANARY}'",
        f"logger.wandb.hub_token={CANARY}",
        f"secrets.wandb={CANARY}",
        f"logger={{api_key: {CANARY}}}",
        f'logger={{"api_key": {CANARY}}}',
        f"api_key=${{oc.env:X,{CANARY}}}",
        f"logger.note={CANARY}",  # the shell wrote $TOY_API_KEY out
    ],
)
def test_secrets_on_the_command_line_are_refused(override: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_API_KEY", CANARY)
    with pytest.raises(ConfigError, match=r"environment variable") as caught:
        refuse_secrets(["model=vit", override])
    assert CANARY not in str(caught.value)
    assert override.lstrip("+").partition("=")[0] in str(caught.value)
    assert "\n" not in str(caught.value)


HARMLESS = (
    "model=vit trainer.max_epochs=3 -m --config-dir=/a/b +logger.api_key=${oc.env:WANDB_API_KEY} ~logger.api_key "
    "logger.api_key=null model.class_token=mean callbacks.x.monitor_key=val/loss logger={api_key:null} "
    "data={num_tokens:5} db/driver@db.first=sqlite --multirun"
)


def test_harmless_overrides_pass() -> None:
    refuse_secrets(HARMLESS.split())


def test_the_shells_folder_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PWD", "/home/somebody/project")
    refuse_secrets(["hydra.run.dir=/home/somebody/project/outputs"])
    assert redact(OmegaConf.create({"root": "/home/somebody/project/data"})) == {"root": "/home/somebody/project/data"}

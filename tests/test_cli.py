"""The installed command: what it prints, what its exit codes say, and what a wrong word costs."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from hydra.core.global_hydra import GlobalHydra

from lightning_dropout import cli, zoo
from lightning_dropout.cli import main
from lightning_dropout.sites.findings import State

COMMAND = Path(sys.executable).with_name("lightning-dropout")
QUICK = ["audit", "timm/test_vit"]


@pytest.fixture(autouse=True)
def _no_hydra_of_other_tests() -> Iterator[None]:
    GlobalHydra.instance().clear()
    yield
    GlobalHydra.instance().clear()


def exit_code(*arguments: str) -> int:
    try:
        main(arguments)
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0


def findings(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """Return what the audit prints as JSON, and nothing else does."""
    assert exit_code("audit", *arguments, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def test_without_arguments_it_helps(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code() == 0
    without = capsys.readouterr().out
    assert exit_code("--help") == 0
    assert capsys.readouterr().out == without
    assert without.startswith("usage: lightning-dropout")
    assert "audit" in without


@pytest.mark.parametrize("name", ["timm/test_vit", "tv/mobilenet_v3_small", "hf/vit"])
def test_a_model_of_a_library(capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert exit_code("audit", name) == 0
    title, model, header, *rows = capsys.readouterr().out.splitlines()
    assert title == f"{name}: random weights, rate 0.1 wherever the constructor takes one (--rate)"
    assert " firing, " in model
    assert header.split()[:4] == ["state", "place", "kind", "rate"]
    assert rows[0].split()[0] == "firing"


def test_rates(capsys: pytest.CaptureFixture[str]) -> None:
    assert {row["rate"] for row in findings(capsys, "hf/vit")["firing"]} == {0.1}
    assert {row["rate"] for row in findings(capsys, "hf/vit", "--rate", "0.3")["firing"]} == {0.3}
    own = findings(capsys, "hf/vit", "--rate", "own")
    assert own["firing"] == []
    assert {row["rate"] for row in own["silent"]} == {0.0}
    assert exit_code("audit", "hf/vit", "--rate", "own") == 0
    assert capsys.readouterr().out.startswith("hf/vit: random weights, the library's own rates\n")


def test_a_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("audit", "model=net", "data.batch_size=8") == 0
    assert capsys.readouterr().out.startswith(
        "model=net data.batch_size=8: rates as the model is built, a training batch (8, 1, 8, 8)\nNet: 2 firing"
    )
    found = findings(capsys, "model=net", "--check", "model.p=0.4")  # an option may stand between words
    assert [(row["name"], row["rate"]) for row in found["firing"]] == [("dropout1", 0.4), ("dropout2", 0.4)]
    of_timm = findings(capsys, "model=timm", "model.name=test_resnet", "model.p=0.2")["firing"]
    assert {row["rate"] for row in of_timm if row["kind"] == "dropout"} == {0.2}


def test_check_fails_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("audit", "model=net", "--check") == 0
    assert exit_code("audit", "model=net", "model.p=0") == 0
    assert capsys.readouterr().err == ""
    assert exit_code("audit", "model=net", "model.p=0", "--check") == 1
    printed = capsys.readouterr()
    assert "2 silent" in printed.out
    assert printed.err.startswith(
        "error: Expected every place where Net drops to be found and firing, but got 2 silent"
    )
    assert exit_code("audit", "model=net", "model.p=0", "--allow", "silent") == 0
    assert exit_code("audit", "model=net", "model.p=0", "--allow", "unknown") == 1


def test_states_are_those_of_the_audit() -> None:
    assert {*cli._STATES, "firing"} == {*get_args(State)}


def test_json_is_all_that_is_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def loud(name: str, rate: float | None) -> Any:
        print("Downloading nothing ...")
        return build(name, rate)

    build = zoo.build
    monkeypatch.setattr(zoo, "build", loud)
    assert findings(capsys, "timm/test_resnet").keys() >= {"firing", *cli._STATES}


WRONG = {
    "no command": (["audti"], "audit"),
    "nothing to audit": (["audit"], "what"),
    "an unknown option": ([*QUICK, "--jsn"], "--jsn"),
    "a rate above 1": ([*QUICK, "--rate", "2"], "'2'"),
    "no rate": ([*QUICK, "--rate", "high"], "'high'"),
    "a state that is none": ([*QUICK, "--allow", "firing"], "silent"),
    "two models": ([*QUICK, "tv/resnet18"], "one model"),
    "no library": (["audit", "vit_tiny"], "timm/"),
    "no model of timm": (["audit", "timm/resnet_18"], "resnet18"),
    "no option of a group": (["audit", "model=vti"], "model=vit"),
    "an unknown key": (["audit", "model=net", "model.q=1"], "model.q"),
    "a wrong value": (["audit", "model=net", "model.p=1.5"], "model.p=1.5"),
    "a rate besides a config": (["audit", "model=net", "--rate", "0.1"], "model.p="),
    "a folder that is not there": (["audit", "data=cifar10", "data.root=/nowhere"], "data.root=/nowhere"),
    "a forbidden target": (["audit", "model=custom", "model._target_=os.system"], "model._target_=os.system"),
    "a sweep": (["audit", "model=net,vit"], "model=net,vit"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_word_costs_one_line(capsys: pytest.CaptureFixture[str], case: str) -> None:
    arguments, word = WRONG[case]
    assert exit_code(*arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("error: ")
    assert word in line


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "build", lambda name, rate: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(QUICK)


def test_the_command_is_installed() -> None:
    done = subprocess.run([COMMAND, *QUICK, "--rate", "2"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: argument --rate")
    assert done.stdout == ""


def test_help_answers_at_once() -> None:
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run([COMMAND, "audit", "--help"], capture_output=True, check=True)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 1.0


def test_nothing_heavy_is_imported_for_help() -> None:
    look = "import sys; from lightning_dropout import cli; cli.main([]); print({'torch', 'hydra'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("set()\n")

"""The installed command: what it prints, what its exit codes say, and what a wrong word costs."""

import json
import logging
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import timm
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

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
    assert "plot" in without
    assert "dashboard" in without


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
    "nothing to plot": (["plot"], "what"),
    "a model without a config": (["plot", "timm/test_vit"], "'timm/test_vit'"),
    "an option of another command": (["plot", "model=net", "--rate", "0.1"], "--rate"),
    "an ending that no figure has": (["plot", "model=net", "--output", "rates.txt"], "'rates.txt'"),
    "an ending that is missing": (["plot", "model=net", "--output", "rates"], ".png"),
    "a figure in a folder that is not there": (["plot", "model=net", "--output", "/nowhere/rates.png"], "/nowhere"),
    "a config without schedulers": (["plot", "model=net", "callbacks/dropout=none"], "callbacks/dropout=linear"),
    "a run without an end": (["plot", "model=net", "trainer.max_epochs=-1", "module.scheduler=null"], "max_epochs=-1"),
    "a run without a beginning": (["plot", "model=net", "trainer.max_epochs=0"], "max_epochs=0"),
    "no project": (["dashboard", "entity=me"], "`project`"),
    "an entity that is none": (["dashboard", "entity=a/b", "project=digits"], "'a/b'"),
    "a word that is no key": (["dashboard", "entity=me", "projet=digits"], "project=..."),
    "a word without a value": (["dashboard", "entity=me", "project=digits", "val/loss"], "'val/loss'"),
    "a key that is on no panel": (["dashboard", "entity=me", "project=digits", "val/los=x"], "val/loss"),
    "a task that is none": (["dashboard", "entity=me", "project=digits", "task=binary"], "regression"),
    "a dashboard in a folder that is not there": (
        ["dashboard", "entity=me", "project=digits", "output=/nowhere/d.json"],
        "/nowhere/d.json",
    ),
    "an unknown argument of a schedule": (["plot", "model=net", "callbacks.dropout.scale.begin=1"], "begin"),
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


# --- plot -----------------------------------------------------------------------------------------------------------

PLOT = ["plot", "model=net", "trainer.max_epochs=3", "data.batch_size=400"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_plot(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["callbacks/dropout=late", "callbacks.dropout.scale.begin=0.3"]
    assert exit_code(*PLOT, *words) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        f"{' '.join([*PLOT[1:], *words])}: 3 epochs, 12 optimizer steps",
        "group        sites  first  peak  last",
        "dropout/all      2      0  0.25  0.25",
        "rates.png",
    ]
    assert printed.err == ""
    assert [path.name for path in folder.iterdir()] == ["rates.png"]  # no run, no log, no checkpoint
    with Image.open(folder / "rates.png") as image:
        assert image.width > 1000


def test_the_table_is_of_the_rates_that_are_trained_with(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of twelve steps the last is at 11/12 of the run; accumulating two batches leaves six."""
    for words, last in (([], 11 / 12), (["trainer.accumulate_grad_batches=2"], 5 / 6)):
        assert exit_code(*PLOT, *words) == 0
        row = capsys.readouterr().out.splitlines()[2].split()
        assert [float(rate) for rate in row[2:]] == pytest.approx([0.0, 0.25 * last, 0.25 * last], abs=5e-4)


def test_plot_elsewhere_and_otherwise(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("plot", "--output", "figures/net.pdf", *PLOT[1:]) == 2
    (folder / "figures").mkdir()
    assert exit_code("plot", "--output", "figures/net.pdf", *PLOT[1:]) == 0
    assert capsys.readouterr().out.endswith("\nfigures/net.pdf\n")
    assert (folder / "figures" / "net.pdf").read_bytes().startswith(b"%PDF")
    (folder / "taken.png").mkdir()
    assert exit_code(*PLOT, "--output", "taken.png") == 2
    assert "got the folder 'taken.png'" in capsys.readouterr().err


def test_several_processes_are_not_started(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(*PLOT, "trainer=ddp", "trainer.precision=16-mixed", "trainer.num_nodes=2") == 0
    title = capsys.readouterr().out.splitlines()[0]
    assert title.endswith(
        "12 optimizer steps, counted for one process instead of trainer.devices=-1 trainer.num_nodes=2"
    )


def test_both_families_and_what_the_schedulers_say(
    folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    words = ["plot", "model=vit", "trainer.max_epochs=1", "callbacks/stochastic_depth=constant"]
    assert exit_code(*words) == 0
    printed = capsys.readouterr().out
    assert [line.split()[:2] for line in printed.splitlines()[2:-1]] == [["dropout/all", "17"], ["drop_path/all", "8"]]
    assert "0.05 (0 to 0.1)" in printed
    (line,) = [record.getMessage() for record in caplog.records if "lightning" in record.name]  # none of its own
    assert line.startswith("StochasticDepthScheduler: built with rate 0, they stay 0")


def test_no_weights_are_fetched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def create_model(name: str, *, pretrained: bool, **arguments: Any) -> Any:
        fetched.append(pretrained)
        return create(name, pretrained=False, **arguments)

    create, fetched = timm.create_model, list[bool]()
    monkeypatch.setattr(timm, "create_model", create_model)
    words = ["model=timm", "model.name=test_resnet", "model.pretrained=true", "model.p=0.1", "trainer.max_epochs=1"]
    assert exit_code("plot", *words) == 0
    assert fetched
    assert not any(fetched)


# --- dashboard ------------------------------------------------------------------------------------------------------

DASHBOARD = ["dashboard", "entity=tester", "project=digits"]


def written(path: Path) -> str:
    """Return the spec of a dashboard, as text, after a look at what it is of."""
    view = json.loads(path.read_text())
    assert (view["entity"], view["project"]) == ("tester", "digits")
    return json.dumps(view["spec"])


def test_dashboard_goes_to_the_server(
    clean_wandb: None, folder: Path, server: Any, key: None, capfd: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(*DASHBOARD, "val/loss=valid/loss", "datasets=svhn,noise") == 0
    (view,) = server.views
    shown = view["spec"]
    assert "valid/loss" in shown
    assert "val/loss" not in shown
    assert "test/ood/auroc/entropy/noise" in shown
    name = view["name"].removeprefix("nw-").removesuffix("-v")
    assert capfd.readouterr() == (f"W&B: {server.url}/tester/digits?nw={name}\n", "")
    assert not (folder / "dashboard.json").exists()


@pytest.mark.parametrize("case", ["no key", "WANDB_MODE", "output"])
def test_dashboard_offline_is_a_file(
    clean_wandb: None,
    folder: Path,
    server: Any,
    case: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if case != "no key":
        monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    if case == "WANDB_MODE":
        monkeypatch.setenv("WANDB_MODE", "offline")
    output = "d.json" if case == "output" else "dashboard.json"
    assert exit_code(*DASHBOARD, *(["output=d.json"] if case == "output" else []), "task=regression") == 0
    assert "test/mc/rmse" in written(folder / output)
    out = capsys.readouterr().out
    reason = {"no key": "no API key", "WANDB_MODE": "WANDB_MODE=offline", "output": "output=d.json"}[case]
    assert re.fullmatch(rf"W&B: nothing sent \({reason}.*\); the dashboard is in {output}\n", out)
    assert server.requests == 0


def test_dashboard_that_is_refused_is_not_lost(
    clean_wandb: None, folder: Path, server: Any, key: None, capfd: pytest.CaptureFixture[str]
) -> None:
    server.refuse = 403
    assert exit_code(*DASHBOARD) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert re.fullmatch(r"error: Expected W&B .* refused by the test; .* Its JSON is in dashboard.json.\n", err)
    assert "test/mc/ece" in written(folder / "dashboard.json")


@pytest.mark.slow
def test_dashboard_without_a_network_takes_less_than_a_minute(
    clean_wandb: None, folder: Path, key: None, environment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
    started = time.perf_counter()
    done = subprocess.run([COMMAND, *DASHBOARD], capture_output=True, text=True, env=environment(), check=False)
    # With its imports and its end; alone less than 20, but others may run beside it.
    assert time.perf_counter() - started < 60
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "test/mc/ece" in written(folder / "dashboard.json")


def test_the_command_is_installed() -> None:
    done = subprocess.run([COMMAND, *QUICK, "--rate", "2"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: argument --rate")
    assert done.stdout == ""


def test_help_answers_at_once() -> None:
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run([COMMAND, "plot", "--help"], capture_output=True, check=True)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 1.0


def test_nothing_heavy_is_imported_for_help() -> None:
    look = "import sys; from lightning_dropout import cli; cli.main([]); print({'torch', 'hydra'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("set()\n")

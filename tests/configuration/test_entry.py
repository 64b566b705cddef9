"""What a user sees and what a shell gets back: output and exit code of real processes."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import hydra
import pytest
from hydra.core.utils import JobReturn

from lightning_dropout.configuration import ConfigError, run_main

RunApp = Callable[..., "CompletedProcess[str]"]


def error_line(process: "CompletedProcess[str]") -> str:
    """Return the only line on stderr."""
    lines = process.stderr.splitlines()
    assert len(lines) == 1, process.stderr
    assert process.returncode == 2
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")


def test_success(run_app: RunApp) -> None:
    process = run_app("model.value=0.25")
    assert (process.returncode, process.stdout, process.stderr) == (0, "finished 0.25\n", "")


@pytest.mark.parametrize(
    ("arguments", "start"),
    [
        (["model=vti"], "model=vti: No such option of the group `model`; did you mean model=vit?"),
        (["trainer.max_epoch=3"], "trainer.max_epoch=3: No such key in the config; did you mean trainer.max_epochs?"),
        (
            ["model.value=1.5"],
            "model.value=1.5: Expected `value` to be a probability of dropping, a number in [0, 1]",
        ),
        (["model=misspelled"], "model.valeu=0.5: No such argument of check_probability; did you mean `value`?"),
        (["model=unknown"], "model._target_=lightning_dropout.probability.chek_probability: lightning_dropout.probab"),
        (["model=evil"], "model._target_=os.system: Not allowed in a config"),
        (["--config-dir=/nowhere"], "Additional config directory '/nowhere' not found"),
        (["--resolve"], "The --resolve flag can only be used in conjunction with --cfg or --help"),
        (["hydra.run.dir=app.py/run"], "Expected an output folder that can be written to, but got Not a directory"),
        (["-m", "hydra.sweep.dir=app.py/run"], "Expected an output folder that can be written to, but got Not a dir"),
        (["-m", "model=net,vti"], "model=vti: No such option of the group `model`; did you mean model=vit?"),
    ],
)
def test_wrong_command_line(arguments: list[str], start: str, run_app: RunApp, app_folder: Path) -> None:
    assert error_line(run_app(*arguments)).startswith(start)
    assert not (app_folder / "canary").exists()


def test_log_file_that_cannot_be_written(run_app: RunApp, app_folder: Path) -> None:
    (app_folder / "run" / "app.log").mkdir(parents=True)
    line = error_line(run_app("hydra.run.dir=run", "hydra/job_logging=default"))
    assert line.startswith("Expected an output folder that can be written to, but got Is a directory")


def test_missing_value_read_by_the_job(run_app: RunApp) -> None:
    assert error_line(run_app(TOY_ACTION="required")).startswith("required: Expected a value, but got none")


def test_secret_is_refused_before_it_is_written_anywhere(run_app: RunApp, app_folder: Path) -> None:
    process = run_app("+logger.api_key=5f2c9e7d1a0b")
    assert error_line(process).startswith("logger.api_key=<redacted>")
    written = [path for path in app_folder.rglob("*") if path.is_file() and b"5f2c9e7d1a0b" in path.read_bytes()]
    assert written == []


def test_bug_keeps_its_traceback(run_app: RunApp) -> None:
    process = run_app(TOY_ACTION="bug")
    assert process.returncode == 1
    assert process.stderr.startswith("Traceback")
    assert process.stderr.endswith("ZeroDivisionError: a bug\n")
    assert 'raise ZeroDivisionError("a bug")' in process.stderr  # down to the line


def test_traceback_on_demand(run_app: RunApp) -> None:
    process = run_app("model.value=1.5", HYDRA_FULL_ERROR="1")
    assert process.returncode == 1
    assert "Traceback" in process.stderr


@pytest.mark.parametrize(
    ("action", "code"),
    [("interrupt", 130), ("interrupted trainer", 130), ("exit", 7)],
    ids=["Ctrl-C", "trainer", "exit"],
)
def test_exit_codes(action: str, code: int, run_app: RunApp) -> None:
    process = run_app(TOY_ACTION=action)
    assert (process.returncode, process.stderr) == (code, "")


def test_help_into_a_pipe_that_is_closed(app_folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "app.py", "--help"], cwd=app_folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.close()  # before the first line is printed
    assert process.stderr is not None
    with process.stderr as stderr:
        assert (process.wait(60), stderr.read()) == (141, "")


def test_multirun_names_every_failed_job_after_the_others_finished(run_app: RunApp) -> None:
    process = run_app("-m", "model.value=0.5,1.5,0.1,2.5")
    assert process.returncode == 2
    assert process.stdout.splitlines() == ["finished 0.5", "finished 0.1"]
    assert process.stderr.splitlines() == [
        f"error: model.value={value}: Expected `value` to be a probability of dropping, a number in [0, 1], "
        f"but got {value}. [job: model.value={value}]"
        for value in (1.5, 2.5)
    ]


def test_multirun_with_a_bug_in_one_job(run_app: RunApp) -> None:
    process = run_app("-m", "model.value=0.5,0.7,0.1", TOY_ACTION="bug in one job")
    assert process.returncode == 1
    assert process.stdout.splitlines() == ["finished 0.5", "finished 0.1"]
    assert process.stderr.count("ZeroDivisionError: a bug") == 1


@pytest.fixture
def argv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["app.py"])


@pytest.mark.usefixtures("argv")
def test_gives_back_what_it_borrows(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    environment, return_value = dict(os.environ), JobReturn.__dict__["return_value"]

    def main() -> None:
        assert os.environ["HYDRA_FULL_ERROR"] == "1"
        raise ConfigError("Wrong.", "a", 1)

    with pytest.raises(SystemExit) as caught:
        run_main(main)
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: a=1: Wrong.\n"
    assert dict(os.environ) == environment
    assert JobReturn.__dict__["return_value"] is return_value


@pytest.mark.usefixtures("argv")
def test_other_ranks_started_by_the_first_print_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inherited: dict[str, str] = {}
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    run_main(lambda: inherited.update(os.environ))
    for name, value in inherited.items():
        monkeypatch.setenv(name, value)

    def main() -> None:
        raise ConfigError("Wrong.")

    with pytest.raises(SystemExit):
        run_main(main)
    assert capsys.readouterr().err == "error: Wrong.\n"


@pytest.mark.usefixtures("argv")
def test_hydra_alone_needs_us(
    app_folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Why `run_main` exists: without it Hydra prints several lines and exits with 1."""
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.setattr(sys, "argv", ["app.py", "model=vti"])
    with pytest.raises(SystemExit) as caught:
        hydra.main(version_base="1.3", config_path=str(app_folder / "conf"), config_name="train")(print)()
    assert caught.value.code == 1
    assert len(capfd.readouterr().err.splitlines()) > 5

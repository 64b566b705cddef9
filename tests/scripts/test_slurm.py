"""scripts/slurm.sh and the launcher of multiruns: the commands they would give, on a machine without SLURM."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "slurm.sh"
JOB = {"SLURM_JOB_ID": "1234", "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "4"}


def run_slurm_script(folder: Path, *words: str, environment: dict[str, str] = JOB) -> subprocess.CompletedProcess[str]:
    """Run the script with an srun that prints what it would run, one word a line, and ends with 138."""
    (folder / "bin").mkdir()
    srun = folder / "bin" / "srun"
    srun.write_text('#!/bin/bash\necho "stamp=$LIGHTNING_DROPOUT_STAMP"\nprintf "%s\\n" "$@"\nexit 138\n')
    srun.chmod(0o755)
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    return subprocess.run(
        [str(SCRIPT), *words], env={"PATH": path, **environment}, capture_output=True, text=True, timeout=30, cwd=folder
    )


def test_the_job_runs_train_in_its_own_folder(tmp_path: Path) -> None:
    done = run_slurm_script(tmp_path, "model=vit", "run_group=two words")
    assert done.stdout.splitlines() == [
        "stamp=slurm-1234",
        *("python", "scripts/train.py"),
        *("trainer=ddp", "trainer.num_nodes=2", "trainer.devices=4", "resume=auto"),
        *("model=vit", "run_group=two words"),  # last, so that they win, and in one piece
    ]
    assert done.returncode == 138  # that of the training


def test_tasks_of_an_array_have_folders_of_their_own(tmp_path: Path) -> None:
    array = {**JOB, "SLURM_JOB_ID": "1240", "SLURM_ARRAY_JOB_ID": "1234", "SLURM_ARRAY_TASK_ID": "5"}
    assert run_slurm_script(tmp_path, environment=array).stdout.splitlines()[0] == "stamp=slurm-1234_5"


def test_outside_of_a_job_nothing_runs(tmp_path: Path) -> None:
    done = run_slurm_script(tmp_path, environment={})
    assert done.returncode != 0
    assert done.stdout == ""
    assert "SLURM_JOB_ID" in done.stderr


def test_what_slurm_is_told() -> None:
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", SCRIPT.read_text(), re.MULTILINE))
    assert options["signal"] == "SIGUSR1@90"  # without B:, which would signal the shell alone
    assert {
        "requeue": "",
        "open-mode": "append",
        "ntasks-per-node": "1",
        "gpus-per-node": "1",
    }.items() <= options.items()
    assert options["job-name"] not in ("bash", "interactive")  # Lightning would not see SLURM


def launcher(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> Any:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the extra `slurm` is not installed")
    monkeypatch.setenv("LIGHTNING_DROPOUT_STAMP", "stamp")
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", list(overrides), return_hydra_config=True).hydra.launcher


def test_jobs_of_a_multirun_get_the_signal_that_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    found = launcher(monkeypatch, "hydra/launcher=slurm", "hydra.launcher.nodes=2")
    assert found._target_ == "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"
    assert found.nodes == 2
    assert found.additional_parameters.signal == "SIGUSR1@90"

    from submitit.slurm.slurm import _make_sbatch_string  # what the file says is what sbatch is told

    parameters = dict(found.additional_parameters)
    told = _make_sbatch_string("command", folder="folder", additional_parameters=parameters).splitlines()
    assert [line for line in told if "--signal" in line] == ["#SBATCH --signal=SIGUSR1@90"]
    assert "#SBATCH --requeue" in told


def test_the_launchers_of_the_plugin_compose_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, target in (("submitit_slurm", "SlurmLauncher"), ("submitit_local", "LocalLauncher")):
        assert launcher(monkeypatch, f"hydra/launcher={name}")._target_.endswith(target)


@pytest.mark.slow
def test_a_multirun_in_processes_of_submitit(tmp_path: Path) -> None:
    """Through submitit, as on a cluster, but on this machine: jobs are pickled, started elsewhere and read back."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the extra `slurm` is not installed")
    words = "model=mlp,net logger=csv trainer=cpu trainer.fast_dev_run=true trainer.enable_progress_bar=false"
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/train.py"), "-m", "hydra/launcher=submitit_local", *words.split()],
        env={**os.environ, "LIGHTNING_DROPOUT_STAMP": "stamp", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    for job in ("0", "1"):
        assert (tmp_path / "multirun" / "stamp" / job / "metrics.json").is_file()

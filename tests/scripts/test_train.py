"""scripts/train.py: what a run leaves behind, and what a wrong word costs."""

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lightning_dropout.configuration import exclusive_folder

SCRIPT = Path(__file__).parents[2] / "scripts" / "train.py"
QUIET = ["trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "trainer.enable_model_summary=false"]
SHORT = [*QUIET, "trainer.max_epochs=2", "trainer.limit_train_batches=3", "trainer.log_every_n_steps=1"]

pytestmark = pytest.mark.filterwarnings(
    # Lightning's own words about a run of three batches.
    "ignore:The number of training batches",
    "ignore:Checkpoint directory .* exists and is not empty",
)

Run = Callable[..., int]


def test_a_run_leaves_checkpoint_metrics_csv_and_wandb_run_that_agree(
    run_script: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_script("train", "model=vit", "callbacks.mc_dropout.num_samples=3", *SHORT) == 0
    printed = capsys.readouterr()
    folder = tmp_path / "outputs" / "stamp"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert {"test/accuracy", "test/mc/nll", "test/det/nll", "test/mc/mutual_information"} <= metrics.keys()
    assert metrics["checkpoint"] == "checkpoints/best.ckpt"
    assert metrics["test/loss"] == pytest.approx(metrics["test/mc/nll"], abs=1e-5)  # the step saw the mean predictive
    assert metrics["epochs"] == 2
    with (folder / "csv" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    last = {key: float(value) for row in rows for key, value in row.items() if value}
    for key in ("test/accuracy", "test/mc/nll", "test/det/nll"):
        assert last[key] == pytest.approx(metrics[key], abs=1e-6)
    for key in ("val/loss", "val/gap", "val/accuracy"):
        assert last[key] == pytest.approx(metrics["last_epoch"][key], abs=1e-6)
    rates = [float(row["dropout/max"]) for row in rows if row.get("dropout/max")]
    assert rates == pytest.approx([0.1 * step / 6 for step in range(6)])
    assert f"{metrics['test/mc/nll']:.6f}"[:7] in printed.out
    checkpoint = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    assert set(checkpoint["hyper_parameters"]) == {"num_classes", "label_smoothing"}
    assert (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 6
    )  # the last, not the best
    assert list((folder / "wandb").glob("offline-run-*/run-*.wandb"))
    assert "wandb sync" in printed.err + printed.out
    assert (folder / ".hydra" / "config.yaml").is_file()


def test_a_late_start_after_the_best_epoch_is_sampled_all_the_same(
    run_script: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["model=net", "logger=csv", "callbacks/dropout=late", "callbacks.checkpoint.monitor=epoch", *SHORT]
    assert run_script("train", *arguments, "callbacks.mc_dropout.num_samples=3") == 0  # the first epoch is the best
    assert "sampling at the rates the model was built with" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "outputs" / "stamp" / "metrics.json").read_text())
    assert metrics["test/mc/mutual_information"] > 0


def test_metrics_of_the_fit_survive_a_test_that_fails(run_script: Run, tmp_path: Path) -> None:
    assert run_script("train", "model=net", "logger=csv", "callbacks.mc_dropout.task=binary", *SHORT) == 2
    metrics = json.loads((tmp_path / "outputs" / "stamp" / "metrics.json").read_text())
    assert metrics["epochs"] == 2
    assert "val/loss" in metrics["last_epoch"]


def test_a_checkpoint_of_another_model_is_refused(
    run_script: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_script("train", "model=net", "logger=csv", "callbacks/mc_dropout=none", *SHORT) == 0
    checkpoint = tmp_path / "outputs" / "stamp" / "checkpoints" / "last.ckpt"
    other = ["model=mlp", "logger=csv", *SHORT]
    capsys.readouterr()
    assert run_script("train", *other, f"ckpt_path={checkpoint}", "hydra.run.dir=second") == 2
    assert "error: ckpt_path: Expected a checkpoint of this model" in capsys.readouterr().err
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    assert run_script("train", *other, f"ckpt_path={checkpoint}", "hydra.run.dir=third") == 2
    line = f"error: ckpt_path: Expected a checkpoint as it was saved, but got {checkpoint}: it was cut short"
    error = capsys.readouterr().err
    assert line in error
    assert f"The newest whole checkpoint there is {checkpoint.with_name('best.ckpt')}." in error


WRONG = {
    "a model that does not exist": (["model=vti"], ["model=vti", "vit"]),
    "a key that does not exist": (["trainer.max_epoch=3"], ["trainer.max_epoch", "trainer.max_epochs"]),
    "a rate above 1": (["model.p=1.5"], ["model.p=1.5", "[0, 1]"]),
    "a rate above 1 of paths": (["model.drop_path=1.5"], ["model.drop_path=1.5", "[0, 1]"]),
    "no number": (["model.p=nan"], ["model.p=nan", "[0, 1]"]),
    "a word": (["model.p=abc"], ["model.p=abc", "float"]),
    "no passes": (["callbacks.mc_dropout.num_samples=0"], ["callbacks.mc_dropout.num_samples=0", "at least 1"]),
    "a folder that is not there": (["data=cifar10", "data.root=/nowhere"], ["/nowhere", "data.root"]),
    "an unknown argument": (["+model.drop_rate=0.1"], ["model.drop_rate", "drop_path"]),
    "a secret in the open": (["+logger.wandb.api_key=abc"], ["api_key", "WANDB_API_KEY"]),
    "no such checkpoint": (["ckpt_path=nowhere.ckpt"], ["nowhere.ckpt"]),
    "no seed": (["seed=-1"], ["seed=-1", "whole number"]),
    "a factor of nothing": (["model=net", "model.p=0"], ["scale", "callbacks/dropout=none"]),
    "passes that would all be one": (["callbacks/dropout=early"], ["rates", "callbacks.mc_dropout.rates=base"]),
    "an unknown experiment": (["experiment=vit_digit"], ["vit_digit", "vit_digits"]),
    "a value missing": (["data=cifar10"], ["data.root"]),
    "a model without a name": (["model=timm"], ["model.name"]),
    "no model of timm": (["model=timm", "model.name=resnet_18"], ["model.name=resnet_18", "closest: resnet18"]),
    "a model for larger images": (["model=timm", "model.name=test_vit"], ["model.name=test_vit", "data.image_size"]),
    "a rate that a model does not take": (
        ["model=timm", "model.name=test_resnet", "model.attention_p=0.1"],
        ["model.attention_p=0.1", "attn_drop_rate", "null"],
    ),
    "an argument that a model does not take": (
        ["model=timm", "model.name=test_resnet", "+model.drop_block_rat=0.1"],
        ["model.drop_block_rat=0.1", "drop_block_rate"],
    ),
    "grey images": (["model=torchvision", "model.name=resnet18"], ["model.input_shape=[1, 8, 8]", "data.channels=3"]),
    "no target": (["model=custom"], ["model._target_=my_package.Net"]),
    "a target of nobody's": (["model=custom", "model._target_=my.own.Net"], ["model._target_", "allow_targets"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_word_costs_one_readable_line(run_script: Run, capsys: pytest.CaptureFixture[str], case: str) -> None:
    arguments, words = WRONG[case]
    started = time.perf_counter()
    assert run_script("train", *QUIET, "logger=csv", *arguments) == 2
    assert time.perf_counter() - started < 30
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert "Traceback" not in printed.err + printed.out
    for word in words:
        assert word in lines[0]


def test_an_unknown_key_in_a_file_is_found(run_script: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "mine.yaml").write_text(
        "_target_: lightning_dropout.models.Net\ninput_shape: ???\nnum_classes: ???\ndropout: 0.1\n"
    )
    assert run_script("train", f"hydra.searchpath=[file://{tmp_path}/conf]", "model=mine") == 2
    assert "error: model.dropout=0.1: " in capsys.readouterr().err


def test_an_empty_test_set_is_named(run_script: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = pytest.importorskip("PIL.Image")
    for part, count in (("train", 4), ("test", 0)):
        for name in ("a", "b"):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for index in range(count):
                images.new("RGB", (8, 8)).save(tmp_path / "images" / part / name / f"{index}.png")
    assert run_script("train", *QUIET, "model=net", "data=image_folder", f"data.root={tmp_path}/images") == 2
    error = capsys.readouterr().err
    assert "test" in error
    assert str(tmp_path / "images") in error


def test_a_corrupt_image_is_named(run_script: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = pytest.importorskip("PIL.Image")
    for part in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for index in range(8):
                images.new("RGB", (8, 8)).save(tmp_path / "images" / part / name / f"{index}.png")
    (tmp_path / "images" / "train" / "b" / "3.png").write_bytes(b"no image")
    assert run_script("train", *QUIET, "model=net", "data=image_folder", f"data.root={tmp_path}/images") == 2
    error = capsys.readouterr().err
    assert error.count("error:") == 1
    assert str(tmp_path / "images" / "train" / "b" / "3.png") in error


def test_an_output_folder_that_cannot_be_written_is_named(
    run_script: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")  # works for root too, whom permissions do not stop
    assert run_script("train", *QUIET, f"hydra.run.dir={tmp_path}/file/run") == 2
    error = capsys.readouterr().err
    assert "hydra.run.dir" in error
    assert "Traceback" not in error


def test_a_stopped_run_goes_on_in_its_folder(
    run_script: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["model=net", "callbacks/mc_dropout=none", "module.optimizer.lr=0.01", *SHORT]
    folder = tmp_path / "outputs" / "stamp"
    assert run_script("train", *words, "trainer.max_epochs=1", "resume=auto") == 0  # nothing there: begins anew
    assert run_script("train", *words) == 2
    assert "pass resume=auto to go on with that run" in capsys.readouterr().err
    before = (folder / "checkpoints" / "last.ckpt").read_bytes()
    assert run_script("train", *words, "resume=auto") == 0
    assert (folder / "checkpoints" / "last.ckpt").read_bytes() != before
    assert json.loads((folder / "metrics.json").read_text())["steps"] == 6
    with (folder / "csv" / "metrics.csv").open(newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row.get("dropout/max")]
    assert steps == list(range(6))
    assert len({path.name.rpartition("-")[2] for path in (folder / "wandb").glob("offline-run-*")}) == 1
    gap = json.loads((folder / "report" / "gap.json").read_text())
    assert gap["losses"]["train"]["at"] == gap["gap"]["at"] == [0, 1]  # of both epochs


def test_two_runs_in_one_folder(run_script: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "outputs" / "stamp"
    folder.mkdir(parents=True)
    with exclusive_folder(folder):
        assert run_script("train", "model=net", "logger=csv", *SHORT) == 2
    assert "error: hydra.run.dir=" in capsys.readouterr().err
    assert not (folder / "checkpoints").exists()


def python(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=600, check=False
    )


@pytest.mark.slow
def test_help_and_wrong_words_answer_at_once(tmp_path: Path) -> None:
    python(str(SCRIPT), "--help", cwd=tmp_path)  # once to compile
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        assert (
            "model: custom, mlp, net, resnet, timm, torchvision, transformers, vit"
            in python(str(SCRIPT), "--help", cwd=tmp_path).stdout
        )
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 3.0  # with the other core busy


def steps_of(folder: Path) -> list[dict[str, str]]:
    """Return what was logged of steps and validations; the rest of an epoch's means Lightning does not store."""
    with (folder / "csv" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(bool(row["val/loss"]) for row in rows) == 20
    return [row for row in rows if row["dropout/max"] or row["val/loss"]]


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_as_if_nothing_had_been(tmp_path: Path) -> None:
    words = ["model=net", "logger=csv", "callbacks/randomness=step", "callbacks.mc_dropout.num_samples=3", *QUIET]
    words += ["trainer.limit_train_batches=10", "trainer.max_epochs=20", "trainer.log_every_n_steps=1"]
    whole = python(str(SCRIPT), *words, "hydra.run.dir=whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    killed = tmp_path / "killed"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, str(SCRIPT), *words, "hydra.run.dir=killed"], cwd=tmp_path, env=env) as run:
        while not (killed / "checkpoints" / "last.ckpt").exists():
            assert run.poll() is None
            time.sleep(0.01)
        run.kill()
    assert not (killed / "metrics.json").exists()
    resumed = python(str(SCRIPT), *words, "hydra.run.dir=killed", "resume=auto", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    ends = [json.loads((tmp_path / run / "metrics.json").read_text()) for run in ("whole", "killed")]
    for end in ends:
        del end["seconds"]
    assert ends[0] == ends[1]
    assert steps_of(tmp_path / "whole") == steps_of(killed)
    weights = [
        torch.load(tmp_path / run / "checkpoints" / "last.ckpt", weights_only=True) for run in ("whole", "killed")
    ]
    for name, weight in weights[0]["state_dict"].items():
        assert torch.equal(weight, weights[1]["state_dict"][name])


@pytest.mark.slow
def test_two_processes_make_one_run(tmp_path: Path) -> None:
    done = python(str(SCRIPT), "model=net", "trainer=ddp_sim", *SHORT[1:], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "outputs").iterdir()
    assert json.loads((folder / "metrics.json").read_text())["steps"] == 6
    assert len(list((folder / "wandb").glob("offline-run-*"))) == 1
    assert len(list((folder / "csv").glob("metrics.csv"))) == 1


@pytest.mark.slow
def test_a_multirun_is_one_folder_and_one_group(tmp_path: Path) -> None:
    done = python(str(SCRIPT), "-m", "model=net,mlp", "trainer=ddp_sim", *SHORT[1:], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (sweep,) = (tmp_path / "multirun").iterdir()
    runs = sorted(path.parent for path in sweep.glob("*/metrics.json"))
    assert [run.name for run in runs] == ["0", "1"]
    assert not (tmp_path / "outputs").exists()
    for run in runs:
        (recorded,) = (run / "wandb").glob("offline-run-*")
        inspect = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(recorded)]
        shown = subprocess.run(inspect, capture_output=True, text=True, check=True)
        records = [json.loads(line) for line in shown.stdout.splitlines()]
        assert sweep.name in {record["run"].get("run_group") for record in records if record["type"] == "run"}

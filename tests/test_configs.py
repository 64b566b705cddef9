"""Every option of every group: checked, composed, and trained for one batch."""

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from lightning_dropout.configuration import build, build_each, check_run, fill_from_data

CONF = Path(__file__).parent.parent / "conf"
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
GROUPS = sorted(str(path.relative_to(CONF).parent) for path in CONF.glob("**/*.yaml") if path.parent != CONF)
OPTIONS = [
    (group, path.stem)
    for group in sorted(set(GROUPS) - {"hydra", "hydra/launcher", "experiment"})
    for path in sorted((CONF / group).glob("*.yaml"))
]

# What an option needs besides, in words of the command line.
WORDS = {
    "timm": ["model.name=test_resnet"],
    "torchvision": ["model.name=mobilenet_v3_small", "data.channels=3"],
    "transformers": [
        "model.name=vit",
        "+model.patch_size=4",
        "+model.hidden_size=16",
        "+model.num_hidden_layers=2",
        "+model.num_attention_heads=2",
    ],
    "custom": [
        "model._target_=timm.create_model",
        "+model.model_name=test_resnet",
        "+model.num_classes=???",
        "+model.in_chans=1",
        "+model.drop_rate=0.1",
    ],
}


def compose_train(monkeypatch: pytest.MonkeyPatch, folder: Path, *overrides: str) -> DictConfig:
    monkeypatch.setenv("LIGHTNING_DROPOUT_STAMP", "test")
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", [f"output_dir={folder}", *overrides])


def fast_dev_run(cfg: DictConfig) -> Any:
    """Do what scripts/train.py does, for one batch of each stage."""
    check_run(cfg)
    data = build(cfg, "data")
    fill_from_data(cfg, data)
    module = build(cfg, "module", net=build(cfg, "model"))
    trainer = build(cfg, "trainer", callbacks=build_each(cfg, "callbacks"), logger=False)
    trainer.fit(module, data)
    return trainer.test(module, data)[0]


FAST = [
    "trainer.accelerator=cpu",
    "trainer.fast_dev_run=true",
    "trainer.enable_progress_bar=false",
    "trainer.enable_model_summary=false",
    "callbacks.learning_rate=null",  # needs a logger
    "logger=csv",
    "data.batch_size=8",
    "callbacks.mc_dropout.num_samples=3",
]


@pytest.fixture
def few_images(tmp_path: Path) -> Path:
    """Two random images of each class, in the layout of an image folder."""
    image = pytest.importorskip("PIL.Image")
    numpy = pytest.importorskip("numpy")
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    generator = numpy.random.default_rng(0)
    for part in ("train", "test"):
        for name in names:
            folder = tmp_path / "images" / part / name
            folder.mkdir(parents=True)
            for index in range(4):
                pixels = generator.integers(0, 255, (32, 32, 3), dtype="uint8")
                image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "images"


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_fits_the_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, few_images: Path, group: str, option: str
) -> None:
    overrides = [f"{group}={option}", *WORDS.get(option, [])]
    if group == "data" and option in ("cifar10", "image_folder"):
        overrides.append(f"data.root={few_images}")
    cfg = compose_train(monkeypatch, tmp_path, *overrides)
    check_run(cfg)
    if group.startswith("callbacks") or group == "data":
        assert build_each(cfg, group.split("/")[0])


@pytest.mark.parametrize("model", [option for group, option in OPTIONS if group == "model"])
def test_every_model_runs_on_digits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: str) -> None:
    words = ["data=digits", *WORDS.get(model, [])]
    metrics = fast_dev_run(compose_train(monkeypatch, tmp_path, f"model={model}", *words, *FAST))
    assert {"test/accuracy", "test/mc/nll", "test/det/nll"} <= metrics.keys()


def test_a_model_of_timm_runs_on_colour_images_with_both_families_on_schedule(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, few_images: Path
) -> None:
    words = ["model=timm", "model.name=test_vit", "model.attention_p=0.1", "data=cifar10", f"data.root={few_images}"]
    cfg = compose_train(monkeypatch, tmp_path, *words, *FAST)
    assert {"dropout", "stochastic_depth"} <= {name for name, node in cfg.callbacks.items() if node}
    assert fast_dev_run(cfg)["test/mc/nll"] > 0


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, few_images: Path, experiment: str
) -> None:
    overrides = [f"experiment={experiment}", *FAST]
    if "cifar10" in experiment:
        overrides.append(f"data.root={few_images}")
    metrics = fast_dev_run(compose_train(monkeypatch, tmp_path, *overrides))
    assert any(key.startswith("test/mc/") for key in metrics)


def test_the_digits_are_told_from_three_other_data_sets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    metrics = fast_dev_run(compose_train(monkeypatch, tmp_path, "experiment=ood_digits", *FAST))
    data_sets = {key.rpartition("/")[2] for key in metrics if key.startswith("test/ood/auroc/entropy/")}
    assert data_sets == {"shuffled", "inverted", "photo"}


@pytest.mark.parametrize("data", ["cifar10", "image_folder"])
def test_a_folder_of_other_images_is_a_word(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, few_images: Path, data: str
) -> None:
    words = ["model=net", f"data={data}", f"data.root={few_images}", f"+data.ood.same={few_images / 'train'}"]
    metrics = fast_dev_run(compose_train(monkeypatch, tmp_path, *words, *FAST))
    assert "test/ood/auroc/entropy" in metrics


@pytest.mark.parametrize("dropout", ["zero", "constant", "early"])
def test_every_job_of_the_overfitting_multirun_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dropout: str
) -> None:
    cfg = compose_train(monkeypatch, tmp_path, "experiment=overfit_digits", f"callbacks/dropout={dropout}", *FAST)
    assert cfg.callbacks.mc_dropout.rates == "base"
    assert fast_dev_run(cfg)


def test_defaults_of_config_and_python_agree_on_no_key_that_nothing_reads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cfg = compose_train(monkeypatch, tmp_path)
    OmegaConf.update(cfg, "callbacks.mc_dropout.num_sample", 3, force_add=True)
    with pytest.raises(ValueError, match=r"callbacks\.mc_dropout\.num_sample.*num_samples"):
        check_run(cfg)


def test_the_multirun_covers_three_ways_and_two_lengths() -> None:
    sweep = OmegaConf.load(CONF / "experiment" / "overfit_digits.yaml").hydra.sweeper.params
    assert dict(sweep) == {"callbacks/dropout": "zero,constant,early", "trainer.max_epochs": "30,150"}

"""200 names and folders that lead out of a run's folder, at every key that says where something is written."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from lightning_dropout.configuration import ConfigError, check_run, targets
from lightning_dropout.configuration.paths import check_inside, check_writes

OUT = "{out}"  # the run's folder
KEYS: dict[str, dict[str, Any]] = {
    "trainer.default_root_dir": {"_target_": "lightning.Trainer"},
    "callbacks.checkpoint.dirpath": {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint"},
    "callbacks.checkpoint.filename": {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint", "dirpath": f"{OUT}/c"},
    "callbacks.crash.filename": {"_target_": "lightning.pytorch.callbacks.OnExceptionCheckpoint", "dirpath": OUT},
    "callbacks.report.folder": {"_target_": "lightning_dropout.callbacks.RunReport"},
    "callbacks.spikes.exclude_batches_path": {"_target_": "lightning.pytorch.callbacks.SpikeDetection"},
    "logger.csv.save_dir": {"_target_": "lightning.pytorch.loggers.CSVLogger", "name": "csv"},
    "logger.csv.name": {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": OUT},
    "logger.csv.version": {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": OUT, "name": ""},
    "logger.tensorboard.sub_dir": {"_target_": "lightning.pytorch.loggers.TensorBoardLogger", "save_dir": OUT},
    "logger.wandb.save_dir": {"_target_": "lightning_dropout.loggers.wandb_logger"},
    "trainer.profiler.dirpath": {"_target_": "lightning.pytorch.profilers.SimpleProfiler"},
    "trainer.profiler.filename": {"_target_": "lightning.pytorch.profilers.AdvancedProfiler", "dirpath": OUT},
}
LEADING_OUT = [
    "../x", "../../x", "a/../../x", "..", "a/../..", "./../x", "/", "/x", "/tmp/x", "//tmp/x", "~", "~/x", "~root/x",
    "$HOME/x", "${HOME}", "file:///tmp/x", "s3://bucket/x", "memory://x", "x::memory://y", "a\\..\\..\\x", "C:\\x", "C:",  # noqa: E501
    "a\x00b", "a\nb", "a\x1b[2Jb", "link", "link/x", f"{OUT}/../x", f"{OUT}x", f"{OUT}/link/x", "a" * 300,
    "{epoch.__class__}", "{epoch!r}", "\u2028x", "a/" + "../" * 40 + "etc",
]  # fmt: skip
# A folder may be absolute, so these lead out of the run's folder as folders only: they are relative to where one stands.  # noqa: E501
RELATIVE = ["x", ".", "outputs", "a/b"]
INSIDE = {
    "callbacks.checkpoint.filename": [
        "best",
        "{epoch}-{step}",
        "epoch={epoch:02d}-loss={val/loss:.2f}",
        "%2e%2e",
        "CON",
    ],
    "callbacks.checkpoint.dirpath": [OUT, f"{OUT}/checkpoints", f"{OUT}/a/../b", f"{OUT}/./c"],
    "callbacks.report.folder": [f"{OUT}/report"],
    "logger.csv.name": ["csv", "", "a/b", "ä"],
    "logger.csv.version": ["", "1", "version_1"],
}


def cases() -> Iterator[tuple[str, str]]:
    for key in KEYS:
        # On its own, an absolute path to the run's folder is no way out for a name either.
        yield from ((key, text) for text in LEADING_OUT)
        if key.rpartition(".")[2] in ("dirpath", "folder", "save_dir", "default_root_dir", "exclude_batches_path"):
            yield from ((key, text) for text in RELATIVE)


@pytest.fixture
def config_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Any]:
    out = tmp_path / "outputs" / "run"
    out.mkdir(parents=True)
    (out / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)

    def make(key: str, text: str) -> Any:
        *path, name = key.split(".")
        node = {argument: str(value).replace(OUT, str(out)) for argument, value in KEYS[key].items()}
        value = text.replace(OUT, str(out))
        if value.startswith("link"):
            value = value if name in ("filename", "name", "version", "sub_dir") else f"{out}/{value}"
            node |= {folder: str(out) for folder in ("dirpath", "save_dir") if folder in node}
        cfg = OmegaConf.create({"output_dir": str(out)})
        OmegaConf.update(cfg, ".".join(path), {**node}, force_add=True)
        OmegaConf.select(cfg, ".".join(path))._set_item_impl(name, value.replace("${", "\\${"))
        return cfg

    return make


def test_there_are_200() -> None:
    assert len(set(cases())) >= 200


def let_out(config_of: Callable[[str, str], Any]) -> list[tuple[str, str]]:
    """Return the cases that are not refused; each refusal is one line that names key and cure."""
    passed = []
    for key, text in cases():
        try:
            check_run(config_of(key, text))
        except ConfigError as error:
            if error.key != key or not str(error).isprintable() or "hydra.run.dir=" not in str(error):
                passed.append((key, str(error)))
        else:
            passed.append((key, text))
    return passed


def test_none_leads_out(config_of: Callable[[str, str], Any]) -> None:
    assert let_out(config_of) == []


@pytest.mark.parametrize(("key", "text"), [(key, text) for key, texts in INSIDE.items() for text in texts])
def test_what_stays_inside_is_allowed(config_of: Callable[[str, str], Any], key: str, text: str) -> None:
    check_run(config_of(key, text))


@pytest.mark.parametrize("mutant", ["text only", "no names"])
def test_weaker_rules_let_some_out(
    mutant: str, config_of: Callable[[str, str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if mutant == "text only":  # links are not followed
        monkeypatch.setattr("os.path.realpath", lambda path: str(Path(path).absolute()))
    else:
        monkeypatch.setattr(sys.modules["lightning_dropout.configuration.paths"], "_BELOW", ())
    assert let_out(config_of)


def test_names_that_lead_out_only_together() -> None:
    with pytest.raises(ConfigError, match=r"^logger\.name=\.\."):
        check_writes({"save_dir": "/out/a", "name": "..", "version": ".."}, "logger", "/out")


def test_a_run_without_an_output_folder_is_not_held_to_one() -> None:
    targets.check_targets({"logger": {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": "/elsewhere"}})


def test_a_link_to_another_disk_is_followed_for_the_whole_run(tmp_path: Path) -> None:
    """`outputs` itself may be a link: the user's own choice, as hydra.run.dir is."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "outputs").symlink_to(tmp_path / "disk")
    check_inside(tmp_path / "outputs" / "run" / "report", tmp_path / "outputs" / "run", "folder")

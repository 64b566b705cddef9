"""Secrets in 50 places of real runs: not one byte of them in any file of the run folder, nor on the console."""

import gzip
import io
import json
import os
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"
TINY = ["model=net", "trainer=cpu", "trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1",
        "trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.limit_val_batches=1",
        "trainer.limit_test_batches=1", "callbacks.mc_dropout.num_samples=2"]  # fmt: skip
VARIABLES = ["TOY_API_KEY", "HF_TOKEN", "DB_PASSWORD", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "MY_PASSPHRASE",
             "OPENAI_API_KEY", "SLACK_AUTH_TOKEN", "NEPTUNE_API_TOKEN", "COMET_API_KEY"]  # fmt: skip
GROUPS = ["data", "model", "module", "trainer", "callbacks", "logger", "hydra.job"]


def canary(number: int) -> str:
    return f"canary{number:02d}-7e1f9a3c5b"


# Words of the command line that must be refused, each alone: `{}` is the canary.
WORDS = [
    *(f"+{group}.api_key={{}}" for group in GROUPS),
    "++logger.wandb.hub_token='{}'",
    "+x={{password: {}}}",
    "+x=[{{access_token: {}}}]",
    '+x={{"secret": "{}"}}',
    "+storage=postgresql://user:{}@host/db",
    "+proxy=http://user:{}@proxy:80",
    "+api_key=${{oc.env:NOT_SET,{}}}",
    "hydra.sweeper.params.password={}",
]
# Files of the user's: what stands at a key.
FILES: list[dict[str, Any]] = [
    {"logger": {"wandb": {"api_key": "{}"}}},
    {"model": {"hub_token": "{}"}},
    {"a": [[{"b": {"credentials": ["x", "{}"]}}]]},
    {"url": "https://user:{}@host/x"},
    {"hydra": {"job": {"env_set": {"WANDB_API_KEY": "{}"}}}},
    {"hydra": {"help": {"template": "x", "secret": "{}"}}},
    {"password": {"nested": "{}"}},
]
# References that would be written out where everybody reads: `{}` is the name of a variable that holds a canary.
REFERENCES = [
    "logger.wandb.name=${{oc.env:{}}}",
    "logger.wandb.project=${{oc.env:{}}}",
    "logger.wandb.tags=[a,${{oc.env:{}}}]",
    "+logger.wandb.notes=${{oc.env:{}}}",
    "logger.wandb.group=${{oc.env:{}}}",
    "run_group=${{oc.env:{}}}",
    "trainer.max_epochs=${{oc.env:{}}}",
    "model.p=${{oc.decode:${{oc.env:{}}}}}",
    "data.ood=[${{oc.env:{}}}]",
    "callbacks.mc_dropout.task=${{oc.env:{}}}",
    "ckpt_path=${{oc.env:{}}}",
    "hydra.run.dir=outputs/${{oc.env:{}}}",
]


def places() -> list[tuple[str, list[str], dict[str, Any], dict[str, str]]]:
    """Return (what, words, file, environment) of each run that has to be refused."""
    found: list[tuple[str, list[str], dict[str, Any], dict[str, str]]] = []
    for word in WORDS:
        found.append((word, [word.format(canary(len(found)))], {}, {}))
    for content in FILES:
        text = yaml.safe_dump(content).replace("{}", canary(len(found)))
        found.append((str(content), ["+mine=own"], yaml.safe_load(text), {}))
    for word in REFERENCES:
        found.append((word, [word.format("TOY_API_KEY")], {}, {"TOY_API_KEY": canary(len(found))}))
    found.append(("copied", ["hydra.job.env_copy=[TOY_API_KEY]"], {}, {"TOY_API_KEY": canary(len(found))}))
    found.append(("written out", [f"logger.wandb.name=x{canary(len(found))}"], {}, {"HF_TOKEN": canary(len(found))}))
    found.append(("as a key", [f"+x.{canary(len(found))}=1"], {}, {"HF_TOKEN": canary(len(found))}))
    return found


PLACES = places()


def texts_of(path: Path) -> Iterator[bytes]:
    """Yield the bytes of a file, and of everything that is packed in it."""
    content = path.read_bytes()
    yield content
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            yield from (archive.read(name) for name in archive.namelist())
    if content[:2] == b"\x1f\x8b":
        yield gzip.decompress(content)
    for start in range(len(content) - 1):  # compressed blocks inside, as PNGs and some event files have
        if content[start] == 0x78 and content[start + 1] in (0x01, 0x9C, 0xDA):
            try:
                yield zlib.decompressobj().decompress(content[start:], 2**20)
            except zlib.error:
                continue


def found_in(folder: Path, printed: str, secrets: list[str]) -> list[str]:
    """Return where a secret stands, in plain text or in UTF-16."""
    forms = [secret.encode(code) for secret in secrets for code in ("utf-8", "utf-16-le", "utf-16-be")]
    places = [f"printed: {secret}" for secret in secrets if secret in printed]
    for path in sorted(folder.rglob("*")):
        places += [f"name of {path}" for secret in secrets if secret in path.name]
        if path.is_file() and any(form in text for text in texts_of(path) for form in forms):
            places.append(str(path.relative_to(folder)))
    return places


RUNNER = """
import contextlib, importlib.util, io, json, os, sys, traceback
from pathlib import Path
from hydra.core.global_hydra import GlobalHydra
from lightning_dropout.configuration import run_main
scripts, jobs, weakened = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()), sys.argv[3:]
if weakened:  # the mutant: nothing is recognised as a secret
    from lightning_dropout.configuration import composition, entry, redaction
    redaction.is_secret_name = lambda name: False
    entry.refuse_secrets = lambda words: None
    composition.first_secret = lambda plain: None
specification = importlib.util.spec_from_file_location("train", scripts / "train.py")
train = importlib.util.module_from_spec(specification)
sys.modules["train"] = train
specification.loader.exec_module(train)
codes = []
for number, (words, environment) in enumerate(jobs):
    GlobalHydra.instance().clear()
    before = dict(os.environ)
    os.environ.update(environment, LIGHTNING_DROPOUT_STAMP=f"run{number}")
    sys.argv = ["train.py", *words]
    try:
        run_main(train.main)
        codes.append(0)
    except SystemExit as exit_:
        codes.append(exit_.code)
    except BaseException:
        traceback.print_exc()
        codes.append(1)
    os.environ.clear()
    os.environ.update(before)
print("codes", json.dumps(codes))
"""


def run_all(folder: Path, jobs: list[tuple[list[str], dict[str, str]]], *mutant: str) -> tuple[list[int], str]:
    """Run scripts/train.py once for each job in one process; return the exit codes and all that was printed."""
    (folder / "work").mkdir(exist_ok=True)
    (folder / "runner.py").write_text(RUNNER)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    secrets = {name: f"{name.lower()}-{canary(90)}" for name in VARIABLES}
    done = subprocess.run(
        [sys.executable, "../runner.py", str(SCRIPTS), "../jobs.json", *mutant],
        cwd=folder / "work",
        env={**os.environ, **secrets, "WANDB_MODE": "offline", "WANDB_API_KEY": "0123456789" * 4, "HOME": str(folder),
             "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))},
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    codes = done.stdout.rpartition("codes ")[2]
    assert codes, done.stderr
    return json.loads(codes), done.stdout + done.stderr


def all_secrets() -> list[str]:
    return [*map(canary, range(len(PLACES))), *(f"{name.lower()}-{canary(90)}" for name in VARIABLES), "0123456789" * 4]


def config_file(folder: Path, number: int, content: dict[str, Any]) -> list[str]:
    directory = folder / f"conf{number}"
    (directory / "mine").mkdir(parents=True, exist_ok=True)
    (directory / "mine" / "own.yaml").write_text("# @package _global_\n" + yaml.safe_dump(content))
    return [f"--config-dir={directory}"]


def test_there_are_50() -> None:
    assert len(PLACES) + len(VARIABLES) + 4 >= 50  # four more in the run below


@pytest.mark.slow
def test_no_secret_is_written_or_printed(tmp_path: Path) -> None:
    jobs: list[tuple[list[str], dict[str, str]]] = [
        # What may be said: references under names of secrets, in every group that takes a key of one's own.
        ([*TINY, "+my_token=${oc.env:HF_TOKEN}", "+x.credentials=${oc.env:DB_PASSWORD}", "+y.api_key=${my_token}",
          "logger=wandb"], {}),
        ([*TINY, "logger=tensorboard", "hydra.verbose=true"], {}),
    ]  # fmt: skip
    for number, (_, words, content, environment) in enumerate(PLACES):
        directory = config_file(tmp_path, number, content) if content else []
        jobs.append(([*directory, *TINY, *words], environment))
    codes, printed = run_all(tmp_path, jobs)
    assert codes[:2] == [0, 0], printed
    assert (tmp_path / "work" / "outputs" / "run0" / "checkpoints" / "last.ckpt").is_file()
    assert list((tmp_path / "work" / "outputs" / "run0" / "wandb").rglob("*.wandb"))
    assert [place for place, code in zip(PLACES, codes[2:], strict=True) if code != 2] == []
    assert found_in(tmp_path / "work", printed, all_secrets()) == []


@pytest.mark.slow
def test_without_the_checks_they_are_found(tmp_path: Path) -> None:
    words = ["+logger.csv.prefix=x", f"+x.api_key={canary(0)}", "logger.wandb.name=${oc.env:HF_TOKEN}", "logger=wandb"]
    codes, printed = run_all(tmp_path, [([*TINY, *words], {})], "weakened")
    assert codes == [0], printed
    places = found_in(tmp_path / "work", printed, all_secrets())
    for part in (".hydra/config.yaml", ".hydra/overrides.yaml", ".wandb"):
        assert any(part in place for place in places), (part, places)

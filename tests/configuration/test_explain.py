"""Each exception that a wrong config or command line causes becomes one line; bugs are left alone."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import hydra.utils
import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from torch._utils import ExceptionWrapper

from lightning_dropout.configuration import ConfigError, explain
from lightning_dropout.probability import check_probability


def line_of(function: Callable[[], object]) -> str:
    """What a user would read after this."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - which ones become a line is what is tested
        function()
    line = explain(caught.value)
    assert line is not None, f"{type(caught.value).__name__}: {caught.value}"
    assert len(line.splitlines()) == 1
    return line


def is_left_alone(function: Callable[[], object]) -> bool:
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        function()
    return explain(caught.value) is None


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        (
            "model=vti",
            ["model=vti: No such option of the group `model`; did you mean model=vit?", "net, resnet, unknown"],
        ),
        ("model=zzz", ["model=zzz: No such option of the group `model`; Available: broken, evil, misspelled, net"]),
        ("trainer.max_epoch=3", ["trainer.max_epoch=3: No such key", "trainer.max_epochs?", "+trainer.max_epoch=3"]),
        ("trainer.zzz=3", ["trainer.zzz=3: No such key", "trainer has max_epochs, seed", "+trainer.zzz=3"]),
        ("trainer.seed.x=3", ["trainer.seed.x=3: No such key", "trainer.seed has no keys"]),
        ("modl=net", ["modl=net: No such key", "did you mean model?"]),
        ("experimnt=x", ["experimnt=x: No such key", "the config has callbacks, model"]),
        ("trainer.seed=[1", ["trainer.seed=[1: Cannot be read as key=value", "quote"]),
        ("trainer.seed", ["trainer.seed: Cannot be read as key=value", "missing EQUAL"]),
        ("+trainer.seed=3", ["'trainer.seed'", "remove + prefix"]),
        ("~model.q", ["'model.q' does not exist"]),
        ("+model=net", ["model appears more than once"]),
        ("model=broken", ["broken.yaml, line 3, column 2: expected ',' or ']'", "correct the file"]),
        ("experiment=lost", ["model=nte: No such option", "did you mean model=net?"]),
        ("trainer.seed='${a'", ["trainer.seed='${a'", "no viable alternative"]),
    ],
)
def test_command_line(override: str, parts: list[str], app_folder: Path) -> None:
    with initialize_config_dir(str(app_folder / "conf"), version_base="1.3"):
        line = line_of(lambda: compose("train", overrides=[override]))
    assert all(part in line for part in parts), line
    assert "searchpath" not in line.lower()


def test_unknown_primary_config(app_folder: Path) -> None:
    with initialize_config_dir(str(app_folder / "conf"), version_base="1.3"):
        assert line_of(lambda: compose("trian")).startswith("trian: No config of this name")


CONFIG = OmegaConf.create(
    {"model": {"p": "${nowhere.p}", "q": "${oc.env:NOT_SET_ANYWHERE}", "missing": "???", "depth": 3}, "data": None}
)
OmegaConf.set_struct(CONFIG, True)


@pytest.mark.parametrize(
    ("read", "parts"),
    [
        (lambda: CONFIG.model.p, ["model.p: Interpolation key 'nowhere.p' not found", "reference"]),
        (lambda: CONFIG.model.q, ["model.q: ", "NOT_SET_ANYWHERE", "export", "model.q=..."]),
        (lambda: CONFIG.model.missing, ["model.missing: Expected a value", "pass model.missing=..."]),
        (lambda: CONFIG.model.dept, ["model.dept: No such key", "did you mean model.depth?"]),
        (lambda: CONFIG["modle"], ["modle: No such key", "did you mean model?"]),
    ],
)
def test_reading_the_config(read: Callable[[], object], parts: list[str]) -> None:
    line = line_of(read)
    assert all(part in line for part in parts), line


def instantiate(**node: object) -> Callable[[], object]:
    root = OmegaConf.create({"model": node})
    return lambda: hydra.utils.instantiate(root.model)


RATE = "lightning_dropout.probability.check_probability"


@pytest.mark.parametrize(
    ("make", "start"),
    [
        # Ours quote the argument, torch ends with the value.
        (instantiate(_target_=RATE, value=1.5, name="value"), "model.value=1.5: Expected `value` to be a probability"),
        (instantiate(_target_="torch.nn.Dropout", p=1.5), "model.p=1.5: dropout probability has to be between 0 and 1"),
        (instantiate(_target_="torch.nn.Dropout", q=1), "model: _DropoutNd.__init__() got an unexpected keyword"),
        (instantiate(_target_="torch.nn.Linear"), "model: Linear.__init__() missing 2 required positional arguments"),
        (instantiate(_target_="torch.nn.Dropoutt"), "model._target_: No module named 'torch.nn.Dropoutt'"),
        (instantiate(_target_="os.system", command="true"), "model: "),  # Hydra's own refusal
        (
            instantiate(_target_="torch.nn.Sequential", _args_=[{"_target_": "torch.nn.Dropout", "p": -2}]),
            "model._args_",
        ),
    ],
)
def test_instantiation(make: Callable[[], object], start: str) -> None:
    assert line_of(make).startswith(start)


def test_lightning_quotes_nothing_but_a_word() -> None:
    trainer = {"_target_": "lightning.pytorch.Trainer", "accelerator": "toaster", "strategy": "auto"}
    root = OmegaConf.create({"trainer": trainer})
    assert line_of(lambda: hydra.utils.instantiate(root.trainer)).startswith("trainer.accelerator=toaster: ")


def test_a_value_that_matches_two_arguments_is_not_blamed() -> None:
    line = line_of(instantiate(_target_=RATE, value=1.5, name="1.5"))
    assert line.startswith("model: Expected `1.5`")


def test_partial_called_later_still_knows_its_key() -> None:
    root = OmegaConf.create({"module": {"optimizer": {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": -1.0}}})
    import torch

    optimizer = hydra.utils.instantiate(root.module.optimizer)
    assert line_of(lambda: optimizer([torch.zeros(1)])).startswith("module.optimizer.lr=-1.0: Invalid learning rate")


def test_exception_that_lost_its_cause_in_another_process() -> None:
    house = InstantiationException("Error in call to target 'x':\nValueError('Expected `p` ...')\nfull_key: model")
    assert explain(house) == "model: Error in call to target 'x': ValueError('Expected `p` ...')"
    assert explain(InstantiationException("Error in call to target 'x':\nKeyError('p')\nfull_key: model")) is None


def test_config_error_is_its_own_line() -> None:
    assert explain(ConfigError("Wrong.", "a", 1)) == "a=1: Wrong."


def test_error_of_ours_from_anywhere() -> None:
    assert line_of(lambda: check_probability(2, "p")).startswith("Expected `p` to be a probability")


def from_a_worker(error: Exception) -> Callable[[], object]:
    """Re-raise an exception as DataLoader does with one of a worker process: its traceback becomes its text."""

    def function() -> object:
        try:
            raise error  # noqa: TRY301
        except Exception:
            return ExceptionWrapper(where="in DataLoader worker process 0").reraise()

    return function


@pytest.mark.parametrize("kind", [ValueError, OSError, FileNotFoundError])
def test_error_of_ours_from_a_worker_process(kind: type[Exception]) -> None:
    text = "Expected `root` to hold images, but got 'a.png'; remove it."
    assert line_of(from_a_worker(kind(text))) == text


def test_bug_in_a_worker_process_is_left_alone() -> None:
    assert is_left_alone(from_a_worker(ValueError("a bug")))


@pytest.mark.parametrize("kind", [FileNotFoundError, PermissionError, NotADirectoryError])
def test_data_modules_keep_their_text(kind: type[OSError]) -> None:
    text = "Expected `root` to be a folder, but got '/data'; pass data.root=..."
    assert explain(kind(text)) == text


def test_lightning_misconfiguration() -> None:
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    assert explain(MisconfigurationException("No supported gpu backend found!")) == "No supported gpu backend found!"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_no_permission_no_space(number: int) -> None:
    line = explain(OSError(number, os.strerror(number), "/runs/last.ckpt"))
    assert line is not None
    assert line.startswith(f"/runs/last.ckpt: {os.strerror(number)}")


def test_our_error_of_the_system_keeps_its_text() -> None:
    text = "Expected `path` to have room for a checkpoint of 5 bytes, but got '/x/a.ckpt': ...; make room there."
    assert explain(OSError(errno.ENOSPC, text)) == text
    assert explain(OSError(errno.EFBIG, text)) == text


def test_checkpoints_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    import torch
    from lightning.pytorch import Trainer
    from lightning.pytorch.demos.boring_classes import BoringModel

    from lightning_dropout.checkpoints import SafeCheckpointIO

    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    options |= {"default_root_dir": tmp_path, "fast_dev_run": True, "plugins": [SafeCheckpointIO()]}
    trainer, path = Trainer(**options), tmp_path / "a.ckpt"
    trainer.strategy.connect(BoringModel())
    trainer.save_checkpoint(path, weights_only=True)

    def line() -> str:
        return line_of(lambda: Trainer(**options).fit(BoringModel(), ckpt_path=path))

    assert line() == "ckpt_path: Expected a checkpoint to resume from, but got one of weights alone; choose another."
    for other in ({"a": 1}, [1]):
        path.with_name("a.ckpt.sha256").unlink(missing_ok=True)
        torch.save(other, path)
        assert line() == "ckpt_path: Expected a checkpoint of Lightning, but got another program's; choose another."
    path.write_bytes(b"no archive")
    assert line().startswith(
        f"ckpt_path: Expected a checkpoint as it was saved, but got {path}: it was cut short or is"
    )


def raise_(error: BaseException) -> Callable[[], object]:
    def function() -> object:
        raise error

    return function


@pytest.mark.parametrize(
    "bug",
    [
        ValueError("too many values to unpack"),
        TypeError("unsupported operand"),
        KeyError("label"),
        RuntimeError("Expected all tensors to be on the same device"),
        ImportError("cannot import name 'x'"),
        OSError(errno.ENOENT, "No such file or directory", "/x"),
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
        TimeoutError("timed out"),
        AssertionError(),
        KeyboardInterrupt(),
    ],
)
def test_bugs_are_left_alone(bug: BaseException) -> None:
    assert is_left_alone(raise_(bug))


def test_what_a_librarys_constructor_says_of_a_configs_values_is_a_line() -> None:
    line = line_of(instantiate(_target_="torch.nn.MultiheadAttention", embed_dim=None, num_heads=None))
    assert "(TypeError)" in line


def test_bug_inside_a_constructor_of_ones_own_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a library raises it: with code of the user's between, his may be the mistake."""
    body = "import torch\ndef make(size): return torch.nn.MultiheadAttention(None, size)\n"
    (tmp_path / "toy_buggy.py").write_text(body)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert is_left_alone(instantiate(_target_="toy_buggy.make", size=None))


def test_values_of_secrets_stay_out_of_the_line() -> None:
    line = line_of(instantiate(_target_="torch.nn.Dropout", p=1.5, api_key="canary-5f2c9e7d1a"))
    assert "canary" not in line


def test_nodes_with_keys_that_are_no_text() -> None:
    root = OmegaConf.create({"model": {"_target_": "torch.nn.Dropout", "p": 1.5}})
    assert isinstance(root, DictConfig)
    assert line_of(lambda: hydra.utils.instantiate(root.model)).startswith("model.p=1.5")

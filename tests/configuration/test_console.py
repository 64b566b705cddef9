"""What is left out of the output, and what is not."""

import contextlib
import logging
import warnings
from collections.abc import Iterator

import pytest

from lightning_dropout.configuration import quiet_lightning, quiet_trainer

NAMES = [
    f"{package}.utilities.rank_zero"
    for package in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric")
]


@pytest.fixture(autouse=True)
def _put_back() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in NAMES]
    before = [list(logger.filters) for logger in loggers]
    with warnings.catch_warnings():
        yield
    for logger, filters in zip(loggers, before, strict=True):
        logger.filters = filters


def passes(name: str, message: str) -> bool:
    return bool(logging.getLogger(name).filter(logging.LogRecord(name, logging.INFO, "", 0, message, (), None)))


@pytest.mark.parametrize("name", NAMES)
def test_tips_are_left_out_and_news_are_not(name: str) -> None:
    quiet_lightning()
    assert not passes(name, "💡 Tip: For seamless cloud logging, try installing something")
    assert passes(name, "GPU available: False, used: False")
    assert passes(name, "MCDropout: the test metrics of Net describe the mean of 30 stochastic passes over 2 sites.")


def test_one_deprecation_is_left_out_and_others_are_not() -> None:
    warnings.simplefilter("error")
    quiet_lightning()
    warnings.warn("`isinstance(treespec, LeafSpec)` is deprecated, use something else.", FutureWarning, stacklevel=1)
    for category in (FutureWarning, UserWarning, DeprecationWarning):
        with pytest.raises(category):
            warnings.warn("Something else is deprecated.", category, stacklevel=1)


def test_called_twice_it_does_it_once() -> None:
    quiet_lightning()
    after_one = [len(logging.getLogger(name).filters) for name in NAMES]
    quiet_lightning()
    assert [len(logging.getLogger(name).filters) for name in NAMES] == after_one


@pytest.mark.parametrize("name", NAMES)
def test_devices_are_left_out_where_nothing_runs_on_them(name: str) -> None:
    banner = "GPU available: True (cuda), used: False"
    with contextlib.suppress(ZeroDivisionError), quiet_trainer():
        assert not passes(name, banner)
        assert not passes(name, "Loading `train_dataloader` to estimate number of stepping batches.")
        assert not passes(name, "`Trainer.fit` stopped: `max_epochs=0` reached.")
        assert passes(name, "DropoutScheduler: built with rate 0, they stay 0 under `scale`: drop")
        _ = 1 / 0
    assert passes(name, banner)


def test_warnings_of_devices_are_left_out_and_others_are_not() -> None:
    warnings.simplefilter("error")
    idle = "GPU available but not used. You can set it by doing `Trainer(accelerator='gpu')`."
    with quiet_trainer():
        warnings.warn(idle, UserWarning, stacklevel=1)
        warnings.warn("The 'train_dataloader' does not have many workers which", UserWarning, stacklevel=1)
        with pytest.raises(UserWarning):
            warnings.warn("Something else.", UserWarning, stacklevel=1)
    with pytest.raises(UserWarning):
        warnings.warn(idle, UserWarning, stacklevel=1)

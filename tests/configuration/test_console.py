"""What is left out of the output, and what is not."""

import logging
import warnings
from collections.abc import Iterator

import pytest

from lightning_dropout.configuration import quiet_lightning

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


@pytest.mark.parametrize("name", NAMES)
def test_tips_are_left_out_and_news_are_not(name: str) -> None:
    logger = logging.getLogger(name)
    quiet_lightning()

    def passes(message: str) -> bool:
        return bool(logger.filter(logging.LogRecord(name, logging.INFO, "", 0, message, (), None)))

    assert not passes("💡 Tip: For seamless cloud logging, try installing something")
    assert passes("GPU available: False, used: False")
    assert passes("MCDropout: the test metrics of Net describe the mean of 30 stochastic passes over 2 sites.")


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

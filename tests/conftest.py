"""Which release of Lightning is under test: the installed one, or the older one that ``make test-releases`` names.

An older release stands in a folder of its own, in front on ``PYTHONPATH``; a folder that is not found would let the
tests pass on the installed release unseen, so the name is compared with what is really imported. Besides, each test
starts with torch's own limit of graphs, which schedulers raise for good.
"""

import os
import sys
from collections.abc import Iterator

import pytest

_WARNINGS_OF_OLD_RELEASES = {
    "2.4": [
        # 2.4 sets jsonargparse up through a function that jsonargparse renamed in 4.39, when its CLI is imported.
        r"ignore:\s*By default only one JsonargparseDeprecationWarning per type is shown:DeprecationWarning",
        r"ignore:\s*set_config_read_mode was deprecated in v4\.39\.0:DeprecationWarning",
    ]
}


def pytest_configure(config: pytest.Config) -> None:
    wanted = os.environ.get("LIGHTNING_RELEASE")
    if wanted is None:
        return
    import lightning
    import pytorch_lightning

    found = {"lightning": lightning.__version__, "pytorch_lightning": pytorch_lightning.__version__}
    if set(found.values()) != {wanted}:
        raise pytest.UsageError(f"Expected Lightning {wanted}, but got {found}; `make test-releases` sets PYTHONPATH.")
    # What the package says of every release with a known hole; this one is used on purpose.
    config.addinivalue_line("filterwarnings", rf"ignore:lightning {wanted} can run code from a checkpoint:UserWarning")
    for line in _WARNINGS_OF_OLD_RELEASES.get(wanted.rpartition(".")[0], []):
        config.addinivalue_line("filterwarnings", line)


def pytest_report_header() -> str | None:
    wanted = os.environ.get("LIGHTNING_RELEASE")
    return wanted and f"lightning and pytorch_lightning: {wanted}"


@pytest.fixture(autouse=True)
def _limit_of_graphs() -> Iterator[None]:
    config = sys.modules.get("torch._dynamo.config")  # not loaded for this
    limit = getattr(config, "recompile_limit", None)
    yield
    if config is not None:
        config.recompile_limit = limit

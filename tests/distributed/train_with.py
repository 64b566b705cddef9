"""scripts/train.py with a fault planted on one rank, and with the rates of each rank noted; run as that script is run.

In the environment: ``NOTES``, a folder; ``FAULT``, what happens in the third training step (raise, kill, stall, or none
at all); ``FAULTY_RANK``, where.
"""

import importlib.util
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from lightning_dropout import DropoutScheduler, find_sites
from lightning_dropout.configuration import run_main
from lightning_dropout.modules import Classifier

SCRIPT = Path(__file__).parents[2] / "scripts" / "train.py"
NOTES = Path(os.environ.get("NOTES", ""))  # collecting doctests imports this file, too


class Observed:
    """Wraps a training step."""

    def __init__(self, original: Any) -> None:
        self.original = original

    def __call__(self, module: Classifier, batch: Any, batch_idx: int) -> Any:
        rank = module.trainer.global_rank
        with (NOTES / f"rates-{rank}").open("a") as file:
            rates = {site.name: site.rate for site in find_sites(module.net, kinds=DropoutScheduler.kinds)}
            print(module.trainer.global_step, sorted(rates.items()), file=file)
        if batch_idx == 2 and rank == int(os.environ.get("FAULTY_RANK", -1)):
            (NOTES / "planted").write_text(str(time.time()))
            fault = os.environ["FAULT"]
            if fault == "raise":
                raise ZeroDivisionError(f"planted on rank {rank}")
            if fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            (NOTES / "pid").write_text(str(os.getpid()))
            time.sleep(600)
        return self.original(module, batch, batch_idx)


if __name__ == "__main__":
    original = Classifier.training_step
    observed = Observed(original)
    Classifier.training_step = lambda self, batch, batch_idx: observed(self, batch, batch_idx)  # type: ignore[method-assign]
    sys.path.insert(0, str(SCRIPT.parents[1]))  # where Hydra looks for `conf` if the script is no main module
    specification = importlib.util.spec_from_file_location("train", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    train = sys.modules["train"] = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(train)
    run_main(train.main)

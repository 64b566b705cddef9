r"""Does a network learn as much when dropped branches are not run? CIFAR-10, ``mode="row"`` against ``"subset"``.

    OMP_NUM_THREADS=1 python scripts/benchmarks/stochastic_depth_training.py /path/to/cifar10

Trains the experiments ``resnet_cifar10`` and ``vit_cifar10`` as ``scripts/train.py`` would, but small enough for two
cores: fewer images and epochs, a narrower ViT, no validation, and constant rates of stochastic depth, so that the time
that they save is that of all epochs. Both modes have the same weights to start with, seed for seed. Their epochs take
turns in one process: each pair of neighbours gives one ratio of times, and a machine that is busy with something else
is so for both. The time of the processor, fit for one thread, leaves out what others took of it. Every run has a random
state of its own, so the turns do not change what it learns.

Prints the accuracy on all test images, its spread over the seeds, and the median ratio of the epochs' times, beside
1/(1 - mean rate), which would be reached if the branches were all that takes time.
"""

import argparse
import json
import logging
import random
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

from lightning_dropout import log_keys
from lightning_dropout.configuration import build, build_each, check_run, fill_from_data, quiet_lightning
from lightning_dropout.nn import DropPath

CONF = Path(__file__).parents[2] / "conf"
MODES = ("row", "subset")
MODELS = {
    "resnet_cifar10": ["model.depth=20", "model.width=16"],
    "vit_cifar10": ["model.dim=96", "model.depth=6", "model.num_heads=3", "model.patch_size=4"],
}
# Nothing but training: what would wait for a logger, store checkpoints or change the rates.
ONLY_TRAINING = [
    *(f"callbacks.{name}=null" for name in ("checkpoint", "last_checkpoint", "learning_rate", "mc_dropout")),
    "callbacks.stochastic_depth=null",
    "+data.gap_loader=false",
    "trainer=cpu",
    "trainer.limit_val_batches=0",
    "trainer.enable_progress_bar=false",
]


class Turns:
    """Let threads run one at a time, in a fixed order, from one call of ``change`` to the next."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = list(names)
        self._locks = {name: threading.Semaphore(0) for name in names}

    def begin(self) -> None:
        """Let the first one run."""
        self._locks[self._names[0]].release()

    def wait(self, name: str) -> None:
        """Wait for the turn of ``name``."""
        self._locks[name].acquire()

    def change(self, name: str) -> None:
        """Let the others run, and come back with the random state of before."""
        state = torch.get_rng_state(), random.getstate()
        self._locks[self._after(name)].release()
        self.wait(name)
        torch.set_rng_state(state[0])
        random.setstate(state[1])

    def leave(self, name: str) -> None:
        """Let the others run, for good."""
        other = self._after(name)
        self._names.remove(name)
        self._locks[other].release()

    def _after(self, name: str) -> str:
        return self._names[(self._names.index(name) + 1) % len(self._names)]


class Stopwatch(Callback):
    """Time the epochs; after each the other run has its turn."""

    def __init__(self, turns: Turns, name: str) -> None:
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self._turns = turns
        self._name = name
        self._started = 0.0, 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = time.perf_counter(), time.process_time()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds.append(time.perf_counter() - self._started[0])
        self.cpu_seconds.append(time.process_time() - self._started[1])
        self._turns.change(self._name)


def train(experiment: str, mode: str, seed: int, turns: Turns, options: argparse.Namespace) -> dict[str, Any]:
    """Train and test one network, while it is its turn."""
    turns.wait(mode)
    try:
        with tempfile.TemporaryDirectory() as folder:
            with initialize_config_dir(str(CONF), version_base="1.3"):
                cfg = compose("train", overrides_of(experiment, mode, seed, folder, options))
            check_run(cfg)
            seed_everything(seed, verbose=False)
            data = build(cfg, "data")
            fill_from_data(cfg, data)
            net = build(cfg, "model")
            rates = [module.drop_prob for module in net.modules() if isinstance(module, DropPath)]
            stopwatch = Stopwatch(turns, mode)
            callbacks = [*build_each(cfg, "callbacks"), stopwatch]
            trainer = build(cfg, "trainer", callbacks=callbacks, logger=False, enable_checkpointing=False)
            module = build(cfg, "module", net=net)
            trainer.fit(module, data)
            accuracy = trainer.test(module, data, verbose=False)[0][log_keys.TEST_ACCURACY]
    finally:
        turns.leave(mode)
    times = {"seconds": stopwatch.seconds, "cpu_seconds": stopwatch.cpu_seconds}
    return {"accuracy": accuracy, "mean_rate": mean(rates), "steps": trainer.global_step, **times}


def overrides_of(experiment: str, mode: str, seed: int, folder: str, options: argparse.Namespace) -> list[str]:
    """Return the words that would follow ``scripts/train.py``."""
    return [
        f"experiment={experiment}",
        *ONLY_TRAINING,
        *MODELS[experiment],
        f"output_dir={folder}",
        f"seed={seed}",
        f"data.root={options.root}",
        f"data.train_fraction={options.train_fraction}",
        f"data.batch_size={options.batch_size}",
        f"model.drop_path={options.drop_path}",
        f"model.depth_rule={options.depth_rule}",
        f"model.stochastic_depth_mode={mode}",
        f"trainer.max_epochs={options.epochs}",
        *options.overrides,
    ]


def side_by_side(experiment: str, seed: int, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Train one network in each mode, their epochs in turns."""
    # The one that begins differs from seed to seed.
    turns = Turns(MODES if seed % 2 == 0 else MODES[::-1])
    turns.begin()
    with ThreadPoolExecutor(len(MODES)) as threads:
        runs = {mode: threads.submit(train, experiment, mode, seed, turns, options) for mode in MODES}
        return {mode: run.result() for mode, run in runs.items()}


def report(experiment: str, runs: Sequence[dict[str, dict[str, Any]]]) -> None:
    """Print the table of one network, and whether the modes differ."""
    row, subset = ([run[mode]["accuracy"] for run in runs] for mode in MODES)
    print(f"\n{experiment}: {len(runs)} seeds, {runs[0]['row']['steps']} steps each\n")
    print("| mode | accuracy on the test images | of each seed | seconds of an epoch |\n|---|---|---|---|")
    for mode, values in (("row", row), ("subset", subset)):
        seconds = [each for run in runs for each in run[mode]["seconds"]]
        cells = [spread(values), " ".join(f"{value:.4f}" for value in values), f"{median(seconds):.2f}"]
        print(f"| {mode} | {' | '.join(cells)} |")
    rate = runs[0]["row"]["mean_rate"]
    if len(runs) > 1:
        difference, noise = mean(subset) - mean(row), max(stdev(row), stdev(subset))
        verdict = "within" if abs(difference) <= noise else "outside"
        print(f"\nsubset - row: {difference:+.4f}, {verdict} the spread of the seeds, {noise:.4f}")
    for clock, key in (("wall time", "seconds"), ("time of the processor", "cpu_seconds")):
        times = [[each for run in runs for each in run[mode][key]] for mode in MODES]
        pairs = [one / other for one, other in zip(*times, strict=True)]
        of_all = sum(times[0]) / sum(times[1])
        print(
            f"{clock}, row / subset: {median(pairs):.3f} (median of {len(pairs)} pairs of epochs), {of_all:.3f} in all"
        )
    print(f"mean rate {rate:.3f}, 1/(1 - mean rate) = {1 / (1 - rate):.3f}", flush=True)


def spread(values: Sequence[float]) -> str:
    """Write mean ± standard deviation."""
    return f"{mean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")


def main() -> None:
    """Train, test, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder of CIFAR-10, in either form that CIFAR10DataModule reads")
    parser.add_argument("--experiments", nargs="+", choices=tuple(MODELS), default=tuple(MODELS))
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--train-fraction", type=float, default=0.22, help="of 45,000 images: 0.22 are 9,900")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--drop-path", type=float, default=0.5, help="rate of the last block")
    parser.add_argument("--depth-rule", choices=("linear", "uniform"), default="linear")
    parser.add_argument("--overrides", nargs="*", default=(), help="more words as for scripts/train.py")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    options.root = options.root.expanduser().absolute()
    quiet_lightning()
    logging.disable(logging.INFO)  # each run would say the same
    started = time.perf_counter()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {vars(options)}", flush=True)
    records: dict[str, Any] = {}
    for experiment in options.experiments:
        records[experiment] = []
        for seed in options.seeds:
            records[experiment].append(side_by_side(experiment, seed, options))
            print(f"{time.perf_counter() - started:.0f} s: {experiment}, seed {seed}: ", end="")
            print({mode: round(run["accuracy"], 4) for mode, run in records[experiment][-1].items()}, flush=True)
        report(experiment, records[experiment])
        if options.json is not None:
            options.json.write_text(json.dumps(records, indent=1))
    print(f"\n{time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    main()

"""What two processes of DDP train in a second, as a share of what two processes do that know nothing of each other.

``python scripts/benchmarks/ddp_throughput.py`` starts two processes of one thread for each side, and lets the sides
train in turns, a few steps at a time, while the others sleep; so whatever else the machine does meets all of them. The
model is the digits ViT, wider, under the callbacks of ``scripts/train.py``. Goal: 0.9. Needs two cores with nothing
else to do: of two processes that wait for each other in each step, the slower one counts. The last column, of the work
that the cores did for a sample, does not depend on that, and leaves waiting out.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

SIDES: dict[str, dict[str, Any] | None] = {
    "independent": None,
    "ddp": {},
    "ddp, gradient_as_bucket_view": {"gradient_as_bucket_view": True},
    "ddp, static_graph": {"static_graph": True},
}
PROCESSES = 2


def train(side: str, arguments: argparse.Namespace) -> None:
    """Be one process: train the steps of a turn at each line read, and write the seconds that they took."""
    import torch
    from lightning.pytorch import Callback, Trainer, seed_everything
    from lightning.pytorch.strategies import DDPStrategy

    from lightning_dropout import DropoutScheduler, Linear, MCDropout, RankRandomness, RunReport
    from lightning_dropout import StochasticDepthScheduler as DepthScheduler
    from lightning_dropout.configuration import quiet_lightning
    from lightning_dropout.data import DigitsDataModule
    from lightning_dropout.models import ViT
    from lightning_dropout.modules import Classifier

    class Turns(Callback):
        started = worked = 0.0

        def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step % arguments.steps == 0:
                if trainer.global_step:
                    print(time.perf_counter() - self.started, time.process_time() - self.worked, flush=True)
                sys.stdin.readline()
                self.started, self.worked = time.perf_counter(), time.process_time()

    quiet_lightning()
    torch.set_num_threads(1)
    seed_everything(0, verbose=False)
    data = DigitsDataModule(batch_size=arguments.batch_size, gap_loader=False)
    shape = {"preset": "digits", "dim": arguments.dim, "depth": arguments.depth}
    net = ViT(data.input_shape, data.num_classes, p=0.1, attention_p=0.1, projection_p=0.1, drop_path=0.1, **shape)
    options = SIDES[side]
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu",
            devices=1 if options is None else PROCESSES,
            strategy="auto" if options is None else DDPStrategy(**options),
            max_steps=arguments.steps * (arguments.turns + 1) + 1,
            limit_val_batches=0,
            callbacks=[
                DropoutScheduler(scale=Linear(0.0, 1.0)),
                DepthScheduler(scale=Linear(0.0, 1.0)),
                MCDropout(task="multiclass"),
                RunReport(folder),
                RankRandomness(),
                Turns(),
            ],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Classifier(net, data.num_classes), data)


def start(side: str) -> list[subprocess.Popen[str]]:
    """Start the processes of a side, which wait for their turn."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0", "WORLD_SIZE": str(PROCESSES)}
    return [
        subprocess.Popen(
            [sys.executable, __file__, *sys.argv[1:], "--side", side],
            env={**os.environ, "OMP_NUM_THREADS": "1"}
            | ({**group, "LOCAL_RANK": str(rank)} if SIDES[side] is not None else {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for rank in range(PROCESSES)
    ]


def turn(processes: list[subprocess.Popen[str]], samples: int) -> tuple[float, float]:
    """Let a side train; return its samples a second, and those a second of work of a core."""
    for process in processes:
        print(file=process.stdin, flush=True)
    seconds = []
    for process in processes:
        assert process.stdout is not None
        line = process.stdout.readline()
        while line and not line[0].isdigit():  # what Lightning prints
            line = process.stdout.readline()
        if not line:
            raise RuntimeError("Expected every process to train, but one has ended; --side=... shows why.")
        seconds.append([float(word) for word in line.split()])
    return sum(samples / wall for wall, _ in seconds), len(seconds) * samples / sum(work for _, work in seconds)


def main() -> None:
    """Take turns, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=12, help="of each side")
    parser.add_argument("--steps", type=int, default=10, help="of a turn")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--json", help="a file for the numbers")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        train(arguments.side, arguments)
        return
    sides = {side: start(side) for side in SIDES}
    found: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
    try:
        for number in range(arguments.turns + 1):
            order = list(SIDES) if number % 2 else list(SIDES)[::-1]
            for side in order:
                rates = turn(sides[side], arguments.steps * arguments.batch_size)
                if number:  # the first turn of each compiles and allocates
                    found[side].append(rates)
    finally:
        for process in (process for side in sides.values() for process in side):
            process.kill()
    report = {}
    print(f"{PROCESSES} processes of one thread, batches of {arguments.batch_size}, {arguments.turns} turns a side")
    print("| | samples/s, median | step, ms | share of independent: median (quartiles) | for equal work of the cores |")
    print("|---|---|---|---|---|")
    for side, turns in found.items():
        rates, works = zip(*turns, strict=True)
        others, other_works = zip(*found["independent"], strict=True)
        shares = sorted(rate / other for rate, other in zip(rates, others, strict=True))
        work = median(works) / median(other_works)
        low, middle, high = shares[len(shares) // 4], median(shares), shares[-1 - len(shares) // 4]
        step = 1e3 * PROCESSES * arguments.batch_size / median(rates)
        print(f"| {side} | {median(rates):.0f} | {step:.0f} | {middle:.3f} ({low:.3f} to {high:.3f}) | {work:.3f} |")
        report[side] = {"samples_per_second": median(rates), "step_ms": step, "share": middle, "share_of_work": work}
        report[side] |= {"quartiles": [low, high], "all": shares}
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()

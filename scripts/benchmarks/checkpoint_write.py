"""What a safe checkpoint costs: ``SafeCheckpointIO`` beside Lightning's own, in turns, in one process.

``python scripts/benchmarks/checkpoint_write.py`` writes checkpoints of three sizes over older ones, as a run does, and
loads them again. Lightning's write ends with the bytes in the memory of the system, ours with two files and two renames
on the disk. So ours is timed as it is, and with ``fsync`` switched off, which is the like of Lightning's. The ratio is
the median over pairs of neighbours. Goal: a write of less than 1.2 times Lightning's.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
from lightning.pytorch.plugins import TorchCheckpointIO

from lightning_dropout.checkpoints import SafeCheckpointIO

GOAL = 1.2  # times Lightning's
WAYS = ("Lightning", "safe", "safe, no fsync")
Record = dict[str, Any]


def checkpoint(megabytes: float, tensors: int) -> dict[str, Any]:
    """Return a checkpoint of AdamW: of three equal parts, the weights are one."""
    size = int(megabytes * 1e6 / 4 / 3 / tensors)
    names = [f"net.blocks.{index}.weight" for index in range(tensors)]
    moments = [{key: torch.randn(size) for key in ("exp_avg", "exp_avg_sq")} for _ in names]
    return {
        "epoch": 1,
        "global_step": 1,
        "state_dict": {name: torch.randn(size) for name in names},
        "optimizer_states": [{"state": dict(enumerate(moments)), "param_groups": []}],
    }


def seconds(function: Callable[[], object]) -> float:
    """Return how long a call takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def compare(megabytes: float, tensors: int, repetitions: int, folder: Path) -> Record:
    """Write and load one size, the ways in turns."""
    content = checkpoint(megabytes, tensors)
    plugins = {"Lightning": TorchCheckpointIO(), "safe": SafeCheckpointIO(), "safe, no fsync": SafeCheckpointIO()}
    paths = {way: folder / f"{index}.ckpt" for index, way in enumerate(WAYS)}
    writes: dict[str, list[float]] = {way: [] for way in WAYS}
    loads: dict[str, list[float]] = {way: [] for way in WAYS[:2]}
    for turn in range(repetitions + 1):
        for way in WAYS:
            os.sync()  # nobody pays for what another has left in memory
            with mock.patch("os.fsync", (lambda _: None) if "no fsync" in way else os.fsync):
                taken = seconds(lambda way=way: plugins[way].save_checkpoint(content, paths[way]))  # type: ignore[misc]
            writes[way] += [taken] * (turn > 0)  # the first one replaces nothing
        for way in loads:
            loads[way].append(seconds(lambda way=way: plugins[way].load_checkpoint(paths[way], weights_only=True)))  # type: ignore[misc]
    record: Record = {"megabytes": paths["safe"].stat().st_size / 1e6, "tensors": 3 * tensors}
    for way in WAYS:
        record[way] = median(writes[way])
        record[f"{way}: ratio"] = median(a / b for a, b in zip(writes[way], writes["Lightning"], strict=True))
    record["load: ratio"] = median(a / b for a, b in zip(loads["safe"], loads["Lightning"], strict=True))
    return record


def main() -> None:
    """Write, time, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, nargs="+", default=[1.0, 50.0, 400.0])
    parser.add_argument("--tensors", type=int, default=50, help="of the model; AdamW has two more for each")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument(
        "--folder", type=Path, default=None, help="where to write; default: the folder for temporary files"
    )
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print("| MB | tensors | Lightning, ms | safe, ms | ratio | no fsync, ms | ratio | goal | load, ratio |")
    print("|---|---|---|---|---|---|---|---|---|")
    records = []
    for megabytes in options.megabytes:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            record = compare(megabytes, options.tensors, options.repetitions, Path(folder))
        records.append(record)
        lightning, safe, bare = (
            f"{1e3 * record[way]:.1f}" + (f" | {record[f'{way}: ratio']:.2f}" if way != "Lightning" else "")
            for way in WAYS
        )
        print(f"| {record['megabytes']:.0f} | {record['tensors']} | {lightning} | {safe} | {bare} | {GOAL} ", end="")
        print(f"| {record['load: ratio']:.2f} |", flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps({"threads": torch.get_num_threads(), "records": records}, indent=1))


if __name__ == "__main__":
    main()

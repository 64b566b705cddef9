"""What looking costs: the report of a test, and the metrics while it runs.

``python scripts/benchmarks/report_cost.py`` times, for 10,000 samples of 100 classes, what a report consists of: the
figures and their files, and the table of paired intervals. Goal: under 10 s on 2 cores.

Then it tests ViTs with ``MCDropout(num_samples=30)`` and a ``RunReport`` and takes, inside the run, the time of all
that looks at predictions: the metrics of the three columns, the rows that the report keeps, and the end of the epoch.
Goal: under 2 % of the test. A run with this left out would say less: whole runs differ by more than that. It is paid
per batch, so a run of fewer images has the same share; the end of the epoch, which sorts all samples, is timed again
for 10,000.
"""

import argparse
import io
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_dropout.callbacks import MCDropout, RunReport, sampled_stage
from lightning_dropout.callbacks.sample_table import SampleScores
from lightning_dropout.callbacks.sampled_stage import SampledStage
from lightning_dropout.configuration import quiet_lightning
from lightning_dropout.metrics.predictive import PredictiveMetrics
from lightning_dropout.models import ViT
from lightning_dropout.modules import Classifier
from lightning_dropout.reports.baseline import baseline_rows
from lightning_dropout.reports.evaluation import draw_evaluation
from lightning_dropout.reports.saving import save_figure
from lightning_dropout.sampling.prediction import MCPrediction, Statistics

REPORT_GOAL = 10.0  # seconds
METRICS_GOAL = 0.02  # share of a test
Record = dict[str, Any]
PASSES = {"det": 1, "temperature": 1, "mc": 3}


@dataclass(frozen=True)
class Case:
    """A model that is tested.

    Args:
        build: Makes it.
        shape: Of one image.
        images: How many of them a run takes on a CPU.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    images: int


RATES = {"p": 0.1, "attention_p": 0.1, "projection_p": 0.1}
CASES = {
    "ViT of the digits, 8x8": Case(lambda: ViT((1, 8, 8), preset="digits", **RATES), (1, 8, 8), 640),
    "ViT-Ti/4, 32x32": Case(lambda: ViT((3, 32, 32), preset="tiny", **RATES), (3, 32, 32), 64),
}


def predictions(samples: int, classes: int, batch_size: int) -> Iterator[tuple[dict[str, MCPrediction], torch.Tensor]]:
    """Yield the predictions of a model that is right about every second time, by side, and their labels."""
    for begin in range(0, samples, batch_size):
        labels = torch.randint(classes, (min(batch_size, samples - begin),))
        logits = torch.randn(len(labels), classes) + 3.0 * nn.functional.one_hot(labels, classes)
        sides = {}
        for side, passes in PASSES.items():
            statistics = Statistics("multiclass", class_dim=1)
            for _ in range(passes):
                outputs = logits / 1.5 if side == "temperature" else logits + 0.5 * torch.randn_like(logits)
                statistics.update(outputs)
            sides[side] = statistics.result(outputs)
        yield sides, labels


def report(samples: int, classes: int, folder: str) -> list[Record]:
    """Time the parts of a report, and the end of an epoch with as many samples."""
    scores = SampleScores(class_dim=1)
    metrics = {side: PredictiveMetrics("multiclass", spread=passes > 1) for side, passes in PASSES.items()}
    for sides, labels in predictions(samples, classes, batch_size=100):
        scores.add(0, None, sides, labels)
        for side, prediction in sides.items():
            metrics[side].update(prediction, labels)
    seconds = {"figures": 0.0, "their files": 0.0}
    columns = {side: scores.columns(0, side) for side in PASSES}
    started = time.perf_counter()
    for drawn in draw_evaluation(columns):
        seconds["figures"] += time.perf_counter() - started
        started = time.perf_counter()
        save_figure(drawn.figure, drawn.numbers, folder, drawn.key.rpartition("/")[2])
        seconds["their files"] += time.perf_counter() - started
        started = time.perf_counter()
    baseline_rows(columns)
    seconds["paired intervals"] = time.perf_counter() - started
    seconds["the whole report"] = sum(seconds.values())
    started = time.perf_counter()
    for side in metrics.values():
        side.compute()
    seconds["the metrics at the end"] = time.perf_counter() - started
    print(f"\nReport of {samples:,} samples of {classes} classes\n")
    print("| | s | goal |\n|---|---|---|")
    for part, taken in seconds.items():
        print(f"| {part} | {taken:.3f} | {f'{REPORT_GOAL:.0f}' if part == 'the whole report' else ''} |")
    return [{"part": part, "seconds": taken} for part, taken in seconds.items()]


@contextmanager
def timed(methods: dict[str, tuple[type, str]], device: str) -> Iterator[dict[str, float]]:
    """Yield the seconds that each method takes while the block runs."""
    seconds, originals = dict.fromkeys(methods, 0.0), {}

    def now() -> float:
        if device == "cuda":
            torch.cuda.synchronize()  # else a method would pay for what was queued before it
        return time.perf_counter()

    def watch(part: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def method(*args: Any, **kwargs: Any) -> Any:
            started = now()
            try:
                return original(*args, **kwargs)
            finally:
                seconds[part] += now() - started

        return method

    for part, (owner, name) in methods.items():
        originals[owner, name] = getattr(owner, name)
        setattr(owner, name, watch(part, originals[owner, name]))
    try:
        yield seconds
    finally:
        for (owner, name), original in originals.items():
            setattr(owner, name, original)


def share(name: str, case: Case, options: argparse.Namespace, folder: str) -> Record:
    """Return what a test of ``case`` takes and what the metrics and rows take of it; the median of several."""
    images = 4 if options.quick else case.images * options.scale
    dataset = TensorDataset(torch.randn(images, *case.shape), torch.randint(10, (images,)))
    loader = DataLoader(dataset, batch_size=32 * options.scale)
    trainer = Trainer(
        accelerator="gpu" if options.device == "cuda" else "cpu",
        devices=1,
        callbacks=[MCDropout(2 if options.quick else 30, task="multiclass"), RunReport(folder)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    module = Classifier(case.build(), num_classes=10)
    trainer.validate(module, loader, verbose=False)  # fits the temperature of the third column
    methods = {
        "predictions": (sampled_stage, "of_one_pass"),  # det and temperature, from their logits
        "batches": (SampledStage, "leave_step"),
        "rows": (SampleScores, "add"),  # a part of the batches
        "end": (SampledStage, "conclude"),
        "report": (RunReport, "on_test_end"),  # no part of the test
    }
    runs: list[Record] = []
    for _ in range(options.repetitions):
        with timed(methods, options.device) as seconds, redirect_stdout(io.StringIO()):
            started = time.perf_counter()
            trainer.test(module, loader, verbose=False)
            test = time.perf_counter() - started - seconds["report"]
        looking = seconds["predictions"] + seconds["batches"] + seconds["end"]
        metrics = seconds["batches"] - seconds["rows"]
        runs.append({"seconds": test, "share": looking / test, **seconds, "metrics": metrics})
    middle = sorted(runs, key=lambda run: run["share"])[len(runs) // 2]
    return {"part": "share", "model": name, "images": images, **middle}


def main() -> None:
    """Time, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10_000, help="of the report")
    parser.add_argument("--classes", type=int, default=100, help="of the report")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--scale", type=int, default=1, help="so many times as many images, in batches as much larger")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--quick", action="store_true", help="next to nothing: nothing to quote")
    options = parser.parse_args()
    quiet_lightning()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    torch.manual_seed(0)
    device = torch.cuda.get_device_name() if options.device == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, {device}")
    with tempfile.TemporaryDirectory() as folder:
        report(min(options.samples, 1000), options.classes, folder)  # warms up: the first figure loads fonts
        records = report(100 if options.quick else options.samples, options.classes, folder)
        shares = [share(name, case, options, folder) for name, case in CASES.items()]
    print(f"\nOf a test of T=30 with three columns, in batches of {32 * options.scale}\n")
    print("| | images | test, s | predictions, s | metrics, s | rows, s | end, s | share | goal |")
    print("|---|---|---|---|---|---|---|---|---|")
    for record in shares:
        print(f"| {record['model']} | {record['images']} | {record['seconds']:.2f} ", end="")
        print("".join(f"| {record[part]:.3f} " for part in ("predictions", "metrics", "rows", "end")), end="")
        print(f"| {100 * record['share']:.2f} % | {100 * METRICS_GOAL:.0f} % |")
    if options.json is not None:
        options.json.write_text(json.dumps({"device": device, "records": records + shares}, indent=1))


if __name__ == "__main__":
    main()

"""Does dropout fight overfitting? The table and the figure of one multirun.

    python scripts/train.py experiment=overfit_digits seed=0,1,2,3,4 logger=csv
    python scripts/benchmarks/overfitting.py multirun/<stamp>

Reads config, metrics.json and the CSV of every job; prints mean ± standard deviation over the seeds, whatever it says,
and draws validation loss over epochs into overfitting.png beside this file.
"""

import argparse
import csv
import json
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

import matplotlib as mpl
from omegaconf import OmegaConf

from lightning_dropout import log_keys

mpl.use("Agg")
import matplotlib.pyplot as plt

WAYS = {"zero": "no dropout", "constant": "dropout 0.5", "early": "early dropout"}
COLOURS = {"zero": "#d55e00", "constant": "#0072b2", "early": "#009e73"}  # told apart by colour-blind readers too


def curve(folder: Path, key: str) -> list[float]:
    """Return one value an epoch."""
    with (folder / "csv" / "metrics.csv").open(newline="") as file:
        return [float(row[key]) for row in csv.DictReader(file) if row.get(key)]


def way_of(folder: Path) -> str:
    """Return which of the ways of dropping a job has taken."""
    overrides = OmegaConf.load(folder / ".hydra" / "overrides.yaml")
    return next(str(word).partition("=")[2] for word in overrides if str(word).startswith("callbacks/dropout="))


def spread(values: list[float], digits: int = 3) -> str:
    """Write mean ± standard deviation."""
    return f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}" if len(values) > 1 else f"{values[0]:.{digits}f}"


def main() -> None:
    """Read, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("multirun", type=Path)
    parser.add_argument("--figure", type=Path, default=Path(__file__).with_name("overfitting.png"))
    arguments = parser.parse_args()
    jobs: dict[tuple[int, str], list[Path]] = defaultdict(list)
    for metrics in sorted(arguments.multirun.glob("*/metrics.json")):
        epochs = json.loads(metrics.read_text())["epochs"]
        jobs[epochs, way_of(metrics.parent)].append(metrics.parent)
    order = sorted(jobs, key=lambda job: (job[0], list(WAYS).index(job[1])))

    print("| epochs | way | train accuracy | validation accuracy | validation NLL | best NLL | in epoch | runs |")
    print("|---|---|---|---|---|---|---|---|")
    for epochs, way in order:
        folders = jobs[epochs, way]
        train = [curve(folder, log_keys.TRAIN_ACCURACY)[-1] for folder in folders]
        accuracy = [curve(folder, log_keys.VAL_ACCURACY)[-1] for folder in folders]
        losses = [curve(folder, log_keys.VAL_LOSS) for folder in folders]
        lowest = [min(loss) for loss in losses]
        best_epoch = [float(loss.index(min(loss)) + 1) for loss in losses]
        cells = [spread(train), spread(accuracy), spread([loss[-1] for loss in losses]), spread(lowest)]
        print(f"| {epochs} | {WAYS[way]} | {' | '.join(cells)} | {spread(best_epoch, 0)} | {len(folders)} |")

    longest = max(epochs for epochs, _ in jobs)
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    for axes, key, title in (
        (left, log_keys.VAL_LOSS, "validation loss (eval mode)"),
        (right, log_keys.TRAIN_ACCURACY, "training accuracy (while dropping)"),
    ):
        for epochs, way in order:
            if epochs == longest:
                columns = list(zip(*(curve(folder, key) for folder in jobs[epochs, way]), strict=True))
                middle, wide = [mean(c) for c in columns], [stdev(c) if len(c) > 1 else 0.0 for c in columns]
                xs = range(1, len(columns) + 1)
                axes.plot(xs, middle, color=COLOURS[way], label=WAYS[way])
                low = [m - w for m, w in zip(middle, wide, strict=True)]
                high = [m + w for m, w in zip(middle, wide, strict=True)]
                axes.fill_between(xs, low, high, color=COLOURS[way], alpha=0.15, linewidth=0)
        axes.set(title=title, xlabel="epoch")
        axes.spines[["top", "right"]].set_visible(False)
    left.set_yscale("log")
    right.legend(frameon=False, loc="lower right")
    figure.savefig(arguments.figure, dpi=150)
    print(f"\nFigure: {arguments.figure}")


if __name__ == "__main__":
    main()

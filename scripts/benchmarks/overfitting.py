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


def override_of(folder: Path, key: str) -> str:
    """Return what the multirun has set ``key`` to in a job."""
    overrides = OmegaConf.load(folder / ".hydra" / "overrides.yaml")
    return next((str(word).partition("=")[2] for word in overrides if str(word).startswith(f"{key}=")), "")


def by_seed(folders: list[Path]) -> dict[str, float]:
    """Return the lowest validation loss of each seed's run."""
    return {override_of(folder, "seed"): min(curve(folder, log_keys.VAL_LOSS)) for folder in folders}


def spread(values: list[float], digits: int = 3) -> str:
    """Write mean ± standard deviation."""
    if not values:
        return "–"
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
        jobs[epochs, override_of(metrics.parent, "callbacks/dropout")].append(metrics.parent)
    order = sorted(jobs, key=lambda job: (job[0], list(WAYS).index(job[1])))

    names = ["epochs", "way", "train accuracy", "validation accuracy", "last NLL", "best NLL", "in epoch"]
    print(f"| {' | '.join(names)} | best NLL against no dropout |")
    print("|---|---|---|---|---|---|---|---|")
    for epochs, way in order:
        folders = jobs[epochs, way]
        train = [curve(folder, log_keys.TRAIN_ACCURACY)[-1] for folder in folders]
        accuracy = [curve(folder, log_keys.VAL_ACCURACY)[-1] for folder in folders]
        losses = [curve(folder, log_keys.VAL_LOSS) for folder in folders]
        lowest = [min(loss) for loss in losses]
        best_epoch = [float(loss.index(min(loss)) + 1) for loss in losses]
        cells = [spread(train), spread(accuracy), spread([loss[-1] for loss in losses]), spread(lowest)]
        without = by_seed(jobs.get((epochs, "zero"), []))
        own = by_seed(folders)
        # Each seed against itself: it has its own images, and that is most of the spread.
        pairs = [own[seed] - without[seed] for seed in own if seed in without and way != "zero"]
        cells += [spread(best_epoch, 0), f"{spread(pairs)}, lower in {sum(d < 0 for d in pairs)} of {len(pairs)}"]
        print(f"| {epochs} | {WAYS[way]} | {' | '.join(cells if pairs else [*cells[:-1], '–'])} |")

    longest = max(epochs for epochs, _ in jobs)
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    for axes, key, title in (
        (left, log_keys.VAL_LOSS, "validation loss (eval mode)"),
        (right, log_keys.TRAIN_ACCURACY, "training accuracy (while dropping)"),
    ):
        for epochs, way in order:
            if epochs == longest:
                curves = [curve(folder, key) for folder in jobs[epochs, way]]
                for one in curves:  # the seeds, each with its own images
                    axes.plot(range(1, len(one) + 1), one, color=COLOURS[way], alpha=0.25, linewidth=0.6)
                middle = [mean(values) for values in zip(*curves, strict=True)]
                axes.plot(range(1, len(middle) + 1), middle, color=COLOURS[way], label=WAYS[way], linewidth=2)
        axes.set(title=title, xlabel="epoch")
        axes.spines[["top", "right"]].set_visible(False)
    left.set_ylim(0.0, 1.2)  # what differs is the end, not the start at ln 10
    right.legend(frameon=False, loc="lower right")
    figure.savefig(arguments.figure, dpi=150)
    print(f"\nFigure: {arguments.figure}")


if __name__ == "__main__":
    main()

"""Does uncertainty grow where there were no data? The figure and the table of `experiment=sinusoid`.

    python scripts/train.py -m experiment=sinusoid seed=0,1,2,3,4
    python scripts/benchmarks/sinusoid.py multirun/<stamp>/*/checkpoints/best.ckpt

Prints the spread of the passes on the training inputs, in the gap between them and beyond their ends, whatever it says;
draws the first checkpoint into sinusoid.png beside this file.
"""

import argparse
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from torch import Tensor

from lightning_dropout import mc_sample
from lightning_dropout.configuration import build, config_of_checkpoint, fill_from_data

mpl.use("Agg")
import matplotlib.pyplot as plt

BLUE, ORANGE = "#0072b2", "#d55e00"  # told apart by colour-blind readers too


def load(checkpoint: Path) -> tuple[Any, Any]:
    """Return the data module and the module in eval mode as they were trained."""
    cfg = config_of_checkpoint(checkpoint)
    data = build(cfg, "data")
    fill_from_data(cfg, data)
    module = build(cfg, "module", net=build(cfg, "model")).eval()
    module.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])
    data.setup("fit")
    return data, module


def where(data: Any, x: Tensor) -> dict[str, Tensor]:
    """Return which inputs lie on the data, in the gap and beyond the ends."""
    distance = x.abs()
    gap, beyond = distance < data.gap, distance > data.support
    return {"on the data": ~gap & ~beyond, "in the gap": gap, "beyond the ends": beyond}


def draw(data: Any, x: Tensor, mean: Tensor, epistemic: Tensor, aleatoric: Tensor, path: Path) -> None:
    """Draw the prediction with its bands above, the two standard deviations below."""
    total = (epistemic**2 + aleatoric**2).sqrt()
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(8, 5.4), sharex=True, layout="constrained", gridspec_kw={"height_ratios": [2.4, 1]}
    )
    for axes in (top, bottom):
        for side in (-1, 1):
            axes.axvspan(side * data.gap, side * data.support, color="0.95", linewidth=0)
        axes.grid(color="0.88", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)

    rows = data.train_set.rows
    top.scatter(
        data.train_set.inputs[rows], data.train_set.targets[rows], s=4, color="0.35", linewidth=0, label="training data"
    )
    top.plot(x, data.function(x), color="black", linestyle="--", linewidth=1.3, label="true function")
    top.plot(x, mean, color=BLUE, linewidth=2, label="mean of the passes")
    for std, alpha, label in ((epistemic, 0.45, "± 2 epistemic std"), (total, 0.2, "± 2 total std")):
        top.fill_between(x, mean - 2 * std, mean + 2 * std, color=BLUE, alpha=alpha, linewidth=0, label=label)
    top.set(ylabel="y", ylim=(-3, 3))
    figure.legend(loc="outside upper center", ncols=5, frameon=False, fontsize="small", columnspacing=1.2)

    middle, outside = (data.gap + data.support) / 2, (data.support + data.extent) / 2
    for at, word in (
        (-outside, "no data"),
        (-middle, "data"),
        (0.0, "no data"),
        (middle, "data"),
        (outside, "no data"),
    ):
        top.text(at, -2.85, word, color="0.4", fontsize="small", ha="center")

    bottom.plot(x, epistemic, color=BLUE, linewidth=2)
    bottom.plot(x, aleatoric, color=ORANGE, linewidth=2, linestyle="-.")
    bottom.axhline(data.noise_std, color="black", linestyle="--", linewidth=1)
    bottom.set_title("epistemic: the passes disagree", loc="left", color=BLUE, fontsize="small")
    bottom.set_title(
        "aleatoric: noise that the net predicts (dashed: true)", loc="right", color=ORANGE, fontsize="small"
    )
    # Beyond the data the exponential of the log-variance head can reach any size.
    bottom.set(xlabel="x", ylabel="std", ylim=(0, 1.3 * epistemic.max().item()), xlim=(-data.extent, data.extent))
    figure.align_ylabels()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Load, sample, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--num-samples", type=int, default=1000)
    parser.add_argument("--figure", type=Path, default=Path(__file__).with_name("sinusoid.png"))
    arguments = parser.parse_args()
    print("| seed | on the data | in the gap | ratio | beyond the ends | ratio |\n|---|---|---|---|---|---|")
    for checkpoint in arguments.checkpoints:
        data, module = load(checkpoint)
        x = torch.linspace(-data.extent, data.extent, 601)
        passes = mc_sample(module, x.unsqueeze(1), num_samples=arguments.num_samples, task="gaussian", masks="shared")
        mean, epistemic, aleatoric = (  # in the units of y: neither this module nor these data standardise
            values.squeeze(1)
            for values in (passes.mean, passes.epistemic_variance.sqrt(), passes.aleatoric_variance.sqrt())
        )
        on, gap, ends = (epistemic[inside].mean().item() for inside in where(data, x).values())
        seed = config_of_checkpoint(checkpoint).seed
        print(f"| {seed} | {on:.3f} | {gap:.3f} | {gap / on:.2f} | {ends:.3f} | {ends / on:.2f} |")
        if checkpoint == arguments.checkpoints[0]:
            draw(data, x, mean, epistemic, aleatoric, arguments.figure)
    print(f"\nFigure: {arguments.figure}")


if __name__ == "__main__":
    main()

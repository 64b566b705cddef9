"""Why evaluation drops nothing: one stochastic pass, a vote, the mean of the passes, and eval mode, side by side.

    python scripts/train.py experiment=overfit_digits ...   (or any run of a classifier)
    python scripts/benchmarks/evaluation_modes.py <run folder>/checkpoints/best.ckpt

Prints accuracy and NLL on the test set of the net that the checkpoint holds.
"""

import argparse
from pathlib import Path

import torch
from torch.nn import functional as F

from lightning_dropout import mc_sample
from lightning_dropout.configuration import build, config_of_checkpoint, fill_from_data


def main() -> None:
    """Load, sample, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--num-samples", type=int, default=30)
    parser.add_argument("--rates", type=float, default=None)
    arguments = parser.parse_args()
    cfg = config_of_checkpoint(arguments.checkpoint)
    data = build(cfg, "data")
    fill_from_data(cfg, data)
    net = build(cfg, "model").eval()
    state = torch.load(arguments.checkpoint, weights_only=True)["state_dict"]
    net.load_state_dict({key.removeprefix("net."): value for key, value in state.items() if key.startswith("net.")})
    data.setup("test")
    batches = list(data.test_dataloader())
    x, y = torch.cat([batch[0] for batch in batches]), torch.cat([batch[1] for batch in batches])

    passes = mc_sample(
        net, x, num_samples=arguments.num_samples, task="multiclass", rates=arguments.rates, return_samples=True
    )
    assert passes.samples is not None
    single = torch.stack([(sample.argmax(1) == y).float().mean() for sample in passes.samples])
    single_nll = torch.stack([F.nll_loss(sample.clamp_min(1e-30).log(), y) for sample in passes.samples])
    with torch.no_grad():
        plain = net(x)

    def accuracy(scores: torch.Tensor) -> str:
        return f"{(scores.argmax(1) == y).float().mean():.4f}"

    t = arguments.num_samples
    print(f"| way, {len(y)} test images | accuracy | NLL |\n|---|---|---|")
    print(f"| one stochastic pass (mean ± spread of {t}) | {single.mean():.4f} ± {single.std():.4f} |", end="")
    print(f" {single_nll.mean():.4f} ± {single_nll.std():.4f} |")
    print(f"| majority vote of {t} | {accuracy(passes.votes)} | – |")
    print(f"| mean of {t} | {accuracy(passes.mean)} | {F.nll_loss(passes.predictive, y):.4f} |")
    print(f"| eval mode, one pass | {accuracy(plain)} | {F.cross_entropy(plain, y):.4f} |")


if __name__ == "__main__":
    main()

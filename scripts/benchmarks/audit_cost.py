"""What finding, setting and auditing cost, beside a walk over the modules and one plain forward.

``python scripts/benchmarks/audit_cost.py`` takes ViTs of 24 blocks, ours and timm's, and timm's ViT-Ti/16, and times,
in turns in one process: ``find_sites`` and a walk that looks for ``nn.Dropout`` only, setting 200 rates, and ``audit``
and one forward in train mode. Goals: sites in under 20 ms, rates in under 1 ms, an audit in under 2 forwards more than
the one that it runs.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import timm
import torch
from torch import nn

from lightning_dropout import audit, find_sites
from lightning_dropout.models import ViT

RATES = {"drop_rate": 0.1, "pos_drop_rate": 0.1, "proj_drop_rate": 0.1, "attn_drop_rate": 0.1, "drop_path_rate": 0.1}
OURS = {"p": 0.1, "attention_p": 0.1, "projection_p": 0.1, "drop_path": 0.1}
MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "our ViT, 24 blocks of 192": (lambda: ViT((3, 32, 32), preset="tiny", depth=24, **OURS), 32),
    "timm ViT, 24 blocks of 192": (
        lambda: timm.models.VisionTransformer(32, 4, embed_dim=192, depth=24, num_heads=3, **RATES),
        32,
    ),
    "timm vit_tiny_patch16_224": (lambda: timm.create_model("vit_tiny_patch16_224", **RATES), 224),
}


def medians(repetitions: int, *functions: Callable[[], object]) -> list[float]:
    """Run the functions in turns; return the median time of each, in milliseconds."""
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(repetitions + 1):
        for function, times in zip(functions, seconds, strict=True):
            started = time.perf_counter()
            function()
            times.append(time.perf_counter() - started)
    return [1e3 * median(times[1:]) for times in seconds]  # the first ones warm up


def main() -> None:
    """Build, time, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=9)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    print(f"\ntorch {torch.__version__}, {torch.get_num_threads()} threads, batch {arguments.batch_size}")
    print("| model | find_sites, ms | walk, ms | 200 rates, ms | forward, ms | audit, ms | audit / forward |")
    print("|---|---|---|---|---|---|---|")
    for name, (build, side) in MODELS.items():
        model, x = build().train(), torch.randn(arguments.batch_size, 3, side, side)
        sites = (find_sites(model) * 200)[:200]

        def set_rates(sites=sites) -> None:
            for site in sites:
                site.rate = 0.1

        def walk(model=model) -> list[nn.Module]:
            return [module for module in model.modules() if isinstance(module, nn.Dropout)]

        finding, walking, setting = medians(5 * arguments.repetitions, lambda m=model: find_sites(m), walk, set_rates)
        forward, audited = medians(arguments.repetitions, lambda m=model, x=x: m(x), lambda m=model, x=x: audit(m, x))
        print(f"| {name} | {finding:.1f} | {walking:.2f} | {setting:.3f} ", end="")
        print(f"| {forward:.0f} | {audited:.0f} | {audited / forward:.2f} |")


if __name__ == "__main__":
    main()

r"""What stochastic depth costs: branches run for the kept samples, beside branches that are run and then masked.

``python scripts/benchmarks/stochastic_depth.py`` times one training step (forward, loss, backward; no optimizer, which
costs all of them the same) of the very same network with four ways to drop, in one process, in turns and each time on
another batch: ours, the masks of timm's ``DropPath`` and torchvision's ``StochasticDepth``, and the subset rule of
DINOv2, written out here. Ratios are medians over neighbours in time. All rates are set on every branch alike. Models of
timm and torchvision are timed as they come, against a copy that ``convert_stochastic_depth`` has rewritten.

No way can save more than its branches cost. What stem, head, shortcuts and activations between the blocks take is
measured too, with every branch left out (in some models of torchvision one or two samples still run): "bound" is the
ratio that would be reached if dropped samples were free, "of 1/(1-rate)" ignores it.
Memory is what autograd keeps for the backward pass: bytes of all distinct storages, parameters and images left out.

``--json FILE`` writes all numbers, ``--quick`` only shows that it runs. On Linux tell the allocator to keep what is
freed: else every step also pays for fresh memory, masking twice as often as ours, and how much depends on what ran
before::

    MALLOC_TRIM_THRESHOLD_=4000000000 MALLOC_MMAP_THRESHOLD_=4000000000 OMP_NUM_THREADS=2 \
        python scripts/benchmarks/stochastic_depth.py vit_65 resnet20 --repetitions 15
"""

import argparse
import copy
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch
import torchvision
from timm.layers import DropPath as TimmDropPath
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth as TorchvisionStochasticDepth

import lightning_dropout
from lightning_dropout.models import ResNet, ViT
from lightning_dropout.nn import DropPath

Branch = Callable[[Tensor], Tensor]
Record = dict[str, Any]

OURS, TIMM, TORCHVISION, DINOV2, EMPTY = "ours", "timm", "torchvision", "DINOv2's rule", "no branch"
MASKING = "masking"  # of a model that is timed as it comes
RATES = (0.0, 0.2, 0.4, 0.5)
VIT_GOALS = {0.0: 1.0, 0.2: 1.25, 0.4: 1.6, 0.5: 1.9}
GOALS = {0.0: 1.0} | {rate: 0.92 / (1.0 - rate) for rate in RATES[1:]}


# The ways. Each layer takes the place of ours, and is called as ours is.


class Masked(nn.Module):
    """Run the branch for all samples, then drop some as another library does."""

    def __init__(self, drop: nn.Module) -> None:
        super().__init__()
        self.drop = drop

    def residual(self, x: Tensor, branch: Branch, shortcut: Branch | None = None) -> Tensor:
        """Return the sum."""
        skip = x if shortcut is None else shortcut(x)
        dropped: Tensor = self.drop(branch(x))
        return skip + dropped


class RoundedSubset(nn.Module):
    """DINOv2's rule: a subset whose size is rounded down, but never to 0, and what it gives is scaled by its share."""

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def residual(self, x: Tensor, branch: Branch, shortcut: Branch | None = None) -> Tensor:
        """Return the sum."""
        skip = x if shortcut is None else shortcut(x)
        if not self.training or self.drop_prob == 0.0:
            return skip + branch(x)
        size = max(int(len(x) * (1.0 - self.drop_prob)), 1)
        samples = torch.randperm(len(x), device=x.device)[:size]
        residual = branch(x[samples])
        flat = torch.index_add(skip.flatten(1), 0, samples, residual.flatten(1).to(skip.dtype), alpha=len(x) / size)
        return flat.view_as(skip)


LAYERS: Mapping[str, Callable[[float], nn.Module]] = {
    OURS: partial(DropPath, mode="subset", min_samples=2),
    TIMM: lambda rate: Masked(TimmDropPath(rate)),
    TORCHVISION: lambda rate: Masked(TorchvisionStochasticDepth(rate, "row")),
    DINOV2: RoundedSubset,
    EMPTY: lambda rate: DropPath(1.0, "batch"),
}


def with_layers(net: nn.Module, way: str, rate: float) -> nn.Module:
    """Return a copy of one of our networks that drops in another way."""
    net = copy.deepcopy(net)
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, DropPath):
                setattr(module, name, LAYERS[way](rate))
    return net


def with_rate(model: nn.Module, rate: float) -> nn.Module:
    """Return a copy of a library's model with one rate in all of its blocks, also those that it gave none."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        if isinstance(module, TorchvisionStochasticDepth):
            module.p = rate
        for name in ("drop_path", "drop_path1", "drop_path2"):
            # At a rate of 0 timm leaves the layer out: an identity, or nothing.
            if isinstance(getattr(module, name, 0), nn.Identity | TimmDropPath | None):
                setattr(module, name, TimmDropPath(rate))
    return model


def converted(model: nn.Module, mode: str = "subset") -> nn.Module:
    """Return a copy of a library's model whose branches are run for the kept samples only."""
    model = copy.deepcopy(model)
    lightning_dropout.convert_stochastic_depth(model, mode=mode)
    return model


# The networks.


@dataclass(frozen=True)
class Case:
    """A network and what it is fed.

    Args:
        title: What its table is called.
        build: Returns it.
        side: Height and width of the images.
        batch_size: Images in a batch.
        goals: How many times as fast as masking ours is to be, by rate.
        is_ours: Whether it is one of this package's.
    """

    title: str
    build: Callable[[], nn.Module]
    side: int = 32
    batch_size: int = 64
    goals: Mapping[float, float] = None  # type: ignore[assignment]
    is_ours: bool = False

    def nets(self, rate: float) -> dict[str, nn.Module]:
        """Return the same network with every way to drop."""
        torch.manual_seed(0)
        net = self.build()
        if self.is_ours:
            return {way: with_layers(net, way, rate) for way in LAYERS}
        masking = with_rate(net, rate)
        return {MASKING: masking, OURS: converted(masking), EMPTY: converted(with_rate(net, 1.0), mode="batch")}


def vit(patch_size: int) -> nn.Module:
    """Return a ViT of dimension 192 and depth 6."""
    return ViT(preset="tiny", depth=6, patch_size=patch_size, drop_path=0.1)


def of_timm(name: str, **options: Any) -> nn.Module:
    """Return a model of timm with random weights."""
    return timm.create_model(name, num_classes=10, drop_path_rate=0.1, **options)


def of_torchvision(name: str) -> nn.Module:
    """Return a model of torchvision with random weights."""
    return torchvision.models.get_model(name, weights=None, num_classes=10)


SWIN = {"embed_dim": 48, "depths": (2, 2, 2), "num_heads": (2, 4, 8), "window_size": 4}
CASES = {
    "vit_65": Case("ViT, dim 192, depth 6, 65 tokens", partial(vit, 4), goals=VIT_GOALS, is_ours=True),
    "vit_17": Case("ViT, dim 192, depth 6, 17 tokens", partial(vit, 8), goals=VIT_GOALS, is_ours=True),
    "resnet20": Case("ResNet-20, width 16", partial(ResNet, depth=20, drop_path=0.1), is_ours=True),
    "resnet18": Case("ResNet-18, width 64", partial(ResNet, depth=18, drop_path=0.1), is_ours=True),
    "timm_vit": Case("timm vit_tiny_patch16_224", partial(of_timm, "vit_tiny_patch16_224", img_size=96), 96),
    "timm_resnet18": Case("timm resnet18", partial(of_timm, "resnet18"), 64),
    "timm_resnet26": Case("timm resnet26", partial(of_timm, "resnet26"), 64),
    "timm_convnext": Case("timm convnext_atto", partial(of_timm, "convnext_atto"), 64),
    "timm_swin": Case(
        "timm swin, dim 48, depths 2 2 2",
        partial(of_timm, "swin_tiny_patch4_window7_224", img_size=64, **SWIN),
        64,
    ),
    "tv_convnext": Case("torchvision convnext_tiny", partial(of_torchvision, "convnext_tiny"), 64, 16),
    "tv_efficientnet": Case("torchvision efficientnet_b0", partial(of_torchvision, "efficientnet_b0"), 64, 32),
    "tv_swin": Case("torchvision swin_t", partial(of_torchvision, "swin_t"), 64, 16),
}


# Time and memory.


def finished(options: argparse.Namespace) -> float:
    """Wait for what the device still does; return the time, in seconds."""
    if options.device == "cuda":
        torch.cuda.synchronize()
    return time.process_time() if options.cpu_time else time.perf_counter()


def turns(runs: Mapping[str, Callable[[int], object]], options: argparse.Namespace) -> dict[str, list[float]]:
    """Run all in turns, in another order each time; return their seconds without the first two, which warm up."""
    names = list(runs)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(options.repetitions + 2):
        for name in random.sample(names, len(names)):  # what runs before leaves its marks in caches and allocators
            started = finished(options)
            runs[name](turn)
            seconds[name].append(finished(options) - started)
    return {name: times[2:] for name, times in seconds.items()}


def ratio(times: Sequence[float], others: Sequence[float]) -> float:
    """Return the median ratio of neighbours, in which drifts cancel."""
    return median(one / other for one, other in zip(times, others, strict=True))


def step(net: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], turn: int) -> None:
    """Train on one batch, but for the optimizer; in eval mode only predict."""
    images, labels = batches[turn % len(batches)]
    if not net.training:
        with torch.no_grad():
            net(images)
        return
    net.zero_grad()
    F.cross_entropy(net(images), labels).backward()


def saved_bytes(net: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], passes: int = 4) -> float:
    """Return how much a forward pass keeps for the backward pass, on average over some draws."""
    total = 0
    for turn in range(passes):
        images, labels = batches[turn % len(batches)]
        not_counted = {each.untyped_storage().data_ptr() for each in (*net.parameters(), *net.buffers(), images)}
        kept: dict[int, tuple[Tensor, int]] = {}  # holds the tensors: a freed address would be used anew

        def keep(tensor: Tensor, kept: dict[int, tuple[Tensor, int]] = kept) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = tensor, storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = F.cross_entropy(net(images), labels)
        total += sum(size for address, (_, size) in kept.items() if address not in not_counted)
        del loss
    return total / passes


def race(case: Case, options: argparse.Namespace) -> list[Record]:
    """Time the ways at every rate, and print the table."""
    batch_size = 4 if options.quick else case.batch_size * options.scale
    batches = [
        (
            torch.randn(batch_size, 3, case.side, case.side, device=options.device),
            torch.randint(10, (batch_size,), device=options.device),
        )
        for _ in range(3)
    ]
    print(f"\n{case.title}: batch {batch_size}, images of {case.side} pixels\n")
    print("| rate | masking, ms | ours, times as fast | goal | of 1/(1-rate) | bound | torchvision's masks | ", end="")
    print("DINOv2's rule | memory of masking, MiB | ours, times as little |")
    print(f"|{'---|' * 10}", flush=True)
    records = []
    for rate in (*options.rates, "eval"):
        nominal = 0.2 if rate == "eval" else float(rate)
        nets = {way: net.to(options.device) for way, net in case.nets(nominal).items()}
        for net in nets.values():
            net.train(rate != "eval")
        masking = TIMM if case.is_ours else MASKING
        runs = {way: partial(step, net, batches) for way, net in nets.items()}
        seconds = turns(runs, options)
        record: Record = {"case": case.title, "rate": rate, "seconds": {way: median(seconds[way]) for way in seconds}}
        record["ratios"] = {way: ratio(seconds[masking], seconds[way]) for way in seconds if way != masking}
        cells = [f"{rate}", f"{1e3 * median(seconds[masking]):.0f}", f"{record['ratios'][OURS]:.3f}"]
        if rate == "eval":
            cells += ["1.00", "–", "–"]
        else:
            goal = (case.goals or GOALS)[rate] if rate in GOALS else float("nan")
            in_branches = 1.0 - ratio(seconds[EMPTY], seconds[masking])
            record |= {"goal": goal, "in_branches": in_branches, "bound": 1.0 / (1.0 - rate * in_branches)}
            of_ideal = record["ratios"][OURS] * (1.0 - rate)
            cells += [f"{goal:.2f}", f"{of_ideal:.3f}", f"{record['bound']:.3f} ({in_branches:.1%} in branches)"]
        cells += [f"{record['ratios'][way]:.3f}" if way in seconds else "–" for way in (TORCHVISION, DINOV2)]
        if rate == "eval":
            cells += ["–", "–"]
        else:
            kept = {way: saved_bytes(nets[way], batches) for way in (masking, OURS)}
            record["saved_bytes"] = kept
            cells += [f"{kept[masking] / 2**20:.1f}", f"{kept[masking] / kept[OURS]:.3f}"]
        print(f"| {' | '.join(cells)} |", flush=True)
        records.append(record)
    return records


def main() -> None:
    """Time, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=[], help=f"all that can be run, or some of {', '.join(CASES)}")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument(
        "--cpu-time", action="store_true", help="time this process, not the clock: for a busy machine and one thread"
    )
    parser.add_argument("--scale", type=int, default=1, help="batches so many times as large; a GPU idles otherwise")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--quick", action="store_true", help="tiny batches: nothing to quote")
    options = parser.parse_args()
    if unknown := ", ".join(set(options.cases) - set(CASES)):
        parser.error(f"expected cases among {', '.join(CASES)}, but got {unknown}")
    started = time.perf_counter()
    if options.cpu_time and (options.device == "cuda" or torch.get_num_threads() > 1):
        parser.error("expected one thread on a CPU for --cpu-time: threads and GPUs that wait take time as well")
    device = torch.cuda.get_device_name() if options.device == "cuda" else f"{torch.get_num_threads()} threads"
    versions = {package.__name__: package.__version__ for package in (torch, timm, torchvision)}
    clock = "time of this process" if options.cpu_time else "wall time"
    print(", ".join([device, clock, *(f"{name} {version}" for name, version in versions.items())]))
    records = []
    for name, case in CASES.items():
        if name not in (options.cases or CASES):
            continue
        if case.is_ours or hasattr(lightning_dropout, "convert_stochastic_depth"):
            records += race(case, options)
        else:
            print(f"\n{case.title}: skipped, this version converts no models")
    print(f"\n{time.perf_counter() - started:.0f} s in all")
    if options.json is not None:
        options.json.write_text(json.dumps({"device": device, "versions": versions, "records": records}, indent=1))


if __name__ == "__main__":
    main()

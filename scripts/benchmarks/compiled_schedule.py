"""What a rate per step costs under ``torch.compile`` and in eager, beside floats that are assigned at every step.

``python scripts/benchmarks/compiled_schedule.py`` trains copies of one net in turns in one process: compiled with
constant rates, with a schedule by ``DropoutScheduler`` and ``StochasticDepthScheduler``, and with the floats of all
layers assigned before each batch, as timm's and Composer's users do. Then the hook alone, in eager, for many sites.
Goals: compiled 1.03 times the step with constant rates and one graph where only layers drop; in eager 50 µs for 100
sites.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from statistics import median
from types import FunctionType
from typing import Any

import timm
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from scheduler_overhead import timed
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_dropout import DropoutScheduler, Linear, StochasticDepthScheduler
from lightning_dropout.configuration import quiet_lightning, quiet_trainer

CONSTANT, OURS, FLOATS = "constant rates", "our schedulers", "floats assigned at every step"
LOW, HIGH = 0.05, 0.25
SCHEDULE = {"scale": Linear(10 * LOW, 10 * HIGH)}  # all rates but zeros are built as 0.1
GRAPHS = 8  # torch's own limit: what a process without our scheduler has


class Block(nn.Module):
    """A residual MLP."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim), nn.Dropout(0.1)
        )
        self.drop_path = DropPath(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.branch(x))


class OnlyLayers(nn.Module):
    """A stack of blocks in which every drop is a layer of its own."""

    def __init__(self, depth: int, dim: int = 192) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, dim, 4, 4)
        self.blocks = nn.Sequential(*(Block(dim) for _ in range(depth)))
        self.head = nn.Linear(dim, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(images).flatten(2).mT).mean(1))


def fused_vit(depth: int) -> nn.Module:
    """Return timm's ViT: its fused attention is handed the rate as a float."""
    rates = {"attn_drop_rate": 0.1, "drop_path_rate": 0.1}
    return timm.models.VisionTransformer(32, 4, embed_dim=192, depth=depth, num_heads=3, num_classes=10, **rates)


class Counted:
    """The default backend, counting the graphs that it makes and those of them that run."""

    def __init__(self) -> None:
        self.made = self.runs = 0
        self.run: set[int] = set()

    def __call__(self, graph: torch.fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
        self.made += 1
        number, compiled = self.made, torch._inductor.compile(graph, inputs)

        def counted(*args: Tensor) -> Any:
            self.runs += 1
            self.run.add(number)
            return compiled(*args)

        return counted


class Lane(nn.Module):
    """A copy of the net, compiled, with its optimizer's and its callback's times."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        cls, forward = type(net), type(net).forward
        # Code of its own, since torch counts graphs by code: copies of one class would use up each other's limit.
        code = forward.__code__.replace(co_name=f"forward_{id(self)}")
        own = FunctionType(code, forward.__globals__, argdefs=forward.__defaults__)
        net.__class__ = type(cls.__name__, (cls,), {"forward": own})
        self.backend = Counted()
        self.compiled = torch.compile(net, backend=self.backend)
        self.hooks: list[list[float]] = []
        self.seconds: list[float] = []
        self.is_warm: list[bool] = []

    def step(self, optimizer: torch.optim.Optimizer, images: Tensor, classes: Tensor) -> None:
        """Train on a batch, and note how long that took and whether it compiled."""
        made, started = self.backend.made, time.perf_counter()
        F.cross_entropy(self.compiled(images), classes).backward()
        optimizer.step()
        optimizer.zero_grad()
        self.seconds.append(time.perf_counter() - started)
        self.is_warm.append(self.backend.made == made)

    @property
    def totals(self) -> list[float]:
        """Seconds of each step with its callbacks."""
        return [sum(parts) for parts in zip(self.seconds, *self.hooks, strict=True)]


class Race(LightningModule):
    """Train several lanes on each batch, each time in another order."""

    def __init__(self, build: Callable[[], nn.Module], *names: str) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.lanes = nn.ModuleList(Lane(build()) for _ in names)
        self.names = names

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.AdamW(lane.parameters(), lr=1e-3) for lane in self.lanes]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizers = self.optimizers(use_pl_optimizer=False)
        for turn in range(len(self.lanes)):
            i = (turn + batch_idx) % len(self.lanes)
            stairs = torch._dynamo.config.recompile_limit if self.names[i] == OURS else GRAPHS
            with torch._dynamo.config.patch(recompile_limit=stairs):
                self.lanes[i].step(optimizers[i], *batch)


class ByHand(Callback):
    """The competitor: walk all modules before every batch and assign their rates."""

    def __init__(self, model: nn.Module | None = None) -> None:
        self._model = model

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        rate = LOW + (HIGH - LOW) * batch_idx / trainer.num_training_batches
        for module in (self._model or pl_module).modules():
            if isinstance(module, nn.Dropout) and module.p > 0.0:
                module.p = rate
            elif isinstance(module, DropPath):
                module.drop_prob = rate


def fit(model: LightningModule, callbacks: list[Callback], data: TensorDataset, batch: int, log_every: int = 0) -> None:
    """Train for an epoch."""
    with quiet_trainer():
        trainer = Trainer(
            max_epochs=1,
            accelerator="cpu",
            callbacks=callbacks,
            log_every_n_steps=log_every,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, DataLoader(data, batch))


def race(title: str, build: Callable[[], nn.Module], steps: int, batch: int) -> None:
    """Compare the ways to change rates in compiled code, and print the table."""
    model = Race(build, CONSTANT, OURS, FLOATS)
    constant, ours, floats = model.lanes
    schedulers = [
        DropoutScheduler(**SCHEDULE, sites="lanes.1.*"),
        StochasticDepthScheduler(**SCHEDULE, sites="lanes.1.*"),
    ]
    by_hand = ByHand(floats)
    ours.hooks, floats.hooks = [timed(scheduler) for scheduler in schedulers], [timed(by_hand)]
    images, classes = torch.randn(steps * batch, 3, 32, 32), torch.randint(10, (steps * batch,))
    fit(model, [*schedulers, by_hand], TensorDataset(images, classes), batch)
    print(f"\n{title}, {steps} steps of batch {batch}, a rate each\n")
    print("| | median step, ms | ratio | callback, ms | graphs that ran | steps compiled | all steps, s |")
    print("|---|---|---|---|---|---|---|")
    warm = [i for i in range(steps) if all(lane.is_warm[i] for lane in model.lanes)]  # for all the same steps
    for name, lane in zip(model.names, model.lanes, strict=True):
        step = median(lane.totals[i] for i in warm)
        ratio = median(lane.totals[i] / constant.totals[i] for i in warm)  # of neighbours, so that drifts cancel
        hook = median(sum(parts[i] for parts in lane.hooks) for i in warm)
        print(
            f"| {name} | {1e3 * step:.1f} | {ratio:.3f} | {1e3 * hook:.2f} | {len(lane.backend.run)} ",
            end="",
        )
        print(f"| {lane.backend.runs} of {steps} | {sum(lane.totals):.0f} |")


class ManyLayers(LightningModule):
    """As many dropout layers as wanted, and next to nothing else."""

    def __init__(self, sites: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 4), *(nn.Dropout(0.1) for _ in range(sites)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.layers(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def hooks(sites: int, steps: int) -> None:
    """Time the callbacks alone, in eager, and print the table."""
    print(f"\nEager, {sites} sites, {steps} steps\n")
    print("| | logged every | median, µs | mean, µs |\n|---|---|---|---|")
    for log_every in (0, 50):
        ours, by_hand = DropoutScheduler(**SCHEDULE), ByHand()
        times = {"`DropoutScheduler`": timed(ours), "the loop by hand": timed(by_hand)}
        fit(ManyLayers(sites), [ours, by_hand], TensorDataset(torch.randn(steps, 4)), 1, log_every)
        for name, seconds in times.items():
            is_logged = log_every and name != "the loop by hand"
            mean = sum(seconds) / len(seconds)
            print(f"| {name} | {f'{log_every} steps' if is_logged else 'never'} ", end="")
            print(f"| {1e6 * median(seconds):.0f} | {1e6 * mean:.0f} |")


def main() -> None:
    """Train, time, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=["hooks", "layers", "vit"], help="hooks, layers or vit")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--vit-depth", type=int, default=2)
    parser.add_argument("--sites", type=int, default=100)
    parser.add_argument("--hook-steps", type=int, default=1000)
    arguments = parser.parse_args()
    started, steps, batch = time.perf_counter(), arguments.steps, arguments.batch_size
    quiet_lightning()
    seed_everything(0, verbose=False)
    print(f"torch {torch.__version__}, timm {timm.__version__}, {torch.get_num_threads()} threads")
    if "hooks" in arguments.parts:
        hooks(arguments.sites, arguments.hook_steps)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache  # what an earlier run has compiled would cost nothing
        torch.compile(torch.sin)(torch.ones(1))  # the compiler's own first start is nobody's
        if "layers" in arguments.parts:
            race("Only layers drop", lambda: OnlyLayers(arguments.depth), steps, batch)
        if "vit" in arguments.parts:
            race("timm ViT with fused attention", lambda: fused_vit(arguments.vit_depth), steps, batch)
    print(f"\n{time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    main()

r"""What T passes cost: ``mc_sample``, the loop that people write and three other packages, side by side in one process.

``python scripts/benchmarks/mc_dropout.py`` times all ways to get mean and variance of T stochastic passes, in turns and
each time on another batch. The floor is written by hand for each model: what comes before the first random draw runs
once, the rest T times. Then peak memory, compiled models, and what ``MCDropout`` adds to ``trainer.test``.
``--device cuda --scale 16`` runs the same on a GPU, ``--json FILE`` writes all numbers, ``--quick`` only shows that it
runs.

Peers that are not installed are skipped. They ask for other versions of what is here, so put them into a folder of
their own, without what they depend on::

    pip install --no-deps --target peers torch-uncertainty einops seaborn baal "structlog<23" lightning-uq-box \
        asdfghjkl backpack-for-pytorch curvlinops-for-pytorch einconv ema-pytorch gpytorch h5py kornia kornia-rs \
        laplace-torch linear-operator opt-einsum torchseg uncertainty-toolbox unfoldNd
    PYTHONPATH=peers python scripts/benchmarks/mc_dropout.py

Every way is also checked: passes that do not differ, mean or variance that are not the loop's, and buffers that changed
are written beside its time; of our own they are errors.
"""

import argparse
import copy
import json
import logging
import multiprocessing
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from statistics import median
from typing import Any, Literal

import timm
import torch
from lightning.pytorch import Callback, Trainer
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_dropout import MCDropout, mc_sample
from lightning_dropout.models import Net
from lightning_dropout.modules import Classifier
from lightning_dropout.nn import Dropout
from lightning_dropout.sampling import DEFAULT_KINDS
from lightning_dropout.sites import Kind

Result = tuple[Tensor, Tensor]  # mean and variance of the probabilities over the passes, (batch, classes) each
Run = Callable[[Tensor], Result]
Record = dict[str, Any]
Split = tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]

LOOP, FLOOR, STILL = "the loop", "floor", "no dropout, T times"
OURS, SHARED = "`mc_sample`", '`mc_sample(masks="shared")`'
PEERS = {  # what is imported of them
    "torch-uncertainty": "torch_uncertainty.methods",
    "lightning-uq-box": "lightning_uq_box.uq_methods",
    "baal": "baal.modelwrapper",
}
FLOOR_GOAL, MEMORY_GOAL, CALLBACK_GOAL = 1.15, 1.05, 1.03


# The models, and where they drop.


@dataclass(frozen=True)
class Case:
    """A model, what it is fed, and where it drops, as somebody knows who has read its code.

    Args:
        title: What its table is called.
        build: Returns the model.
        shape: Of one input.
        batch_size: Inputs in a batch.
        num_samples: T.
        owners: Returns the modules whose ``training`` flag turns the drops on.
        split: Returns the part before the first draw, and the rest.
        kinds: What ``mc_sample`` is to find.
        goals: How many times as fast as the loop our ways are to be.
    """

    title: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch_size: int
    num_samples: int
    owners: Callable[[nn.Module], list[nn.Module]]
    split: Callable[[Any], Split] | None = None
    kinds: Sequence[Kind] = DEFAULT_KINDS
    goals: Mapping[str, float] = field(default_factory=dict)


def layers(model: nn.Module, cls: type[nn.Module]) -> list[nn.Module]:
    """List the modules of a class."""
    return [module for module in model.modules() if isinstance(module, cls)]


def resnet18(**rates: float) -> nn.Module:
    """Return timm's, with branches that matter: it starts the last normalisation of each block at 0."""
    return timm.create_model("resnet18", num_classes=10, zero_init_last=False, **rates)


def split_net(net: Any) -> Split:
    """Return the convolutions, and the linear layers."""
    return lambda x: net.features(x).flatten(1), lambda h: net.fc2(net.dropout2(F.relu(net.fc1(net.dropout1(h)))))


def split_resnet_head(net: Any) -> Split:
    """Return the backbone, and the head."""
    return lambda x: net.global_pool(net.forward_features(x)), lambda h: net.fc(F.dropout(h, net.drop_rate))


def split_vit_head(net: Any) -> Split:
    """Return the backbone, and the head."""
    return lambda x: net.fc_norm(net.pool(net.forward_features(x))), lambda h: net.head(net.head_drop(h))


def split_resnet_paths(net: Any) -> Split:
    """Return what comes before the first path that may drop, and the rest."""
    block = net.layer1[1]  # the rate of the one before it is 0

    def before(x: Tensor) -> tuple[Tensor, Tensor]:
        x = net.layer1[0](net.maxpool(net.act1(net.bn1(net.conv1(x)))))
        return x, block.bn2(block.conv2(block.act1(block.bn1(block.conv1(x)))))

    def after(both: tuple[Tensor, Tensor]) -> Tensor:
        shortcut, branch = both
        x = block.act2(block.drop_path(branch) + shortcut)
        return net.forward_head(net.layer4(net.layer3(net.layer2(x))))

    return before, after


CASES = {
    "net": Case(
        "`Net`, dropout before both linear layers",
        Net,
        (3, 32, 32),
        batch_size=256,
        num_samples=100,
        owners=partial(layers, cls=Dropout),
        split=split_net,
        goals={OURS: 11.0},
    ),
    "resnet_head": Case(
        "timm resnet18, functional dropout before the head",
        partial(resnet18, drop_rate=0.2),
        (3, 64, 64),
        batch_size=64,
        num_samples=20,
        owners=lambda model: [model],  # its flag alone; `train()` would wake the normalisation layers
        split=split_resnet_head,
        goals={OURS: 17.0},
    ),
    "vit_head": Case(
        "timm vit_tiny_patch16_224, dropout before the head",
        partial(timm.create_model, "vit_tiny_patch16_224", num_classes=10, drop_rate=0.2),
        (3, 224, 224),
        batch_size=8,
        num_samples=10,
        owners=partial(layers, cls=nn.Dropout),
        split=split_vit_head,
        goals={OURS: 9.0},
    ),
    "resnet_paths": Case(
        "timm resnet18, stochastic depth",
        partial(resnet18, drop_path_rate=0.2),
        (3, 64, 64),
        batch_size=64,
        num_samples=20,
        owners=partial(layers, cls=DropPath),
        split=split_resnet_paths,
        kinds=("drop_path",),
        goals={OURS: 1.5},
    ),
    "vit": Case(
        "timm ViT-Ti of 64 tokens, dropout in every block",
        partial(timm.models.VisionTransformer, 64, 8, 3, 10, embed_dim=192, depth=12, num_heads=3, proj_drop_rate=0.1),
        (3, 64, 64),
        batch_size=64,
        num_samples=10,
        owners=partial(layers, cls=nn.Dropout),
        goals={OURS: 1.4, SHARED: 1.75},
    ),
}
# As many classes as make T outputs heavy.
MEMORY = replace(CASES["net"], title="`Net` of 1000 classes", build=partial(Net, num_classes=1000), batch_size=64)
PARTS = (*CASES, "memory", "callback", "compiled")


# The ways. A builder gets a case and a model in eval mode; one of a peer gets a model of its own.


@contextmanager
def awake(owners: Sequence[nn.Module]) -> Iterator[None]:
    """Turn drops on, and off again."""
    try:
        for owner in owners:
            owner.training = True
        yield
    finally:
        for owner in owners:
            owner.training = False


@contextmanager
def hushed() -> Iterator[None]:
    """Leave out what other packages say and warn of."""
    try:
        logging.disable(logging.INFO)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def summary(logits: Tensor, passes: int = 0, classes: int = 2) -> Result:
    """Return mean and variance of the probabilities over the dimension of the passes."""
    probabilities = logits.softmax(classes)
    return probabilities.mean(passes), probabilities.var(passes)


def by_hand(case: Case, model: nn.Module) -> Run:
    """Write the loop as somebody does who knows where the model drops."""

    @torch.inference_mode()
    def run(x: Tensor) -> Result:
        with awake(case.owners(model)):
            return summary(torch.stack([model(x) for _ in range(case.num_samples)]))

    return run


def without_dropout(case: Case, model: nn.Module) -> Run:
    """Run the same loop with nothing on."""
    return by_hand(replace(case, owners=lambda _: []), model)


def floor(case: Case, model: nn.Module) -> Run:
    """Write by hand what nothing exact can be faster than: all that is the same in every pass once."""
    assert case.split is not None
    before, after = case.split(model)

    @torch.inference_mode()
    def run(x: Tensor) -> Result:
        with awake(case.owners(model)):
            h = before(x)
            return summary(torch.stack([after(h) for _ in range(case.num_samples)]))

    return run


def ours(case: Case, model: nn.Module, masks: Literal["independent", "shared"] = "independent") -> Run:
    """Call ``mc_sample``."""

    def run(x: Tensor) -> Result:
        prediction = mc_sample(model, x, num_samples=case.num_samples, task="multiclass", kinds=case.kinds, masks=masks)
        return prediction.mean, prediction.variance

    return run


def torch_uncertainty(case: Case, model: nn.Module, on_batch: bool = False) -> Run:
    """Wrap the model; passes come one by one, or as one batch."""
    from torch_uncertainty.methods import mc_dropout

    sampled = mc_dropout(model, num_estimators=case.num_samples, on_batch=on_batch).eval()

    @torch.inference_mode()
    def run(x: Tensor) -> Result:
        return summary(sampled(x).unflatten(0, (case.num_samples, len(x))))

    return run


def lightning_uq_box(case: Case, model: nn.Module) -> Run:
    """Let the LightningModule predict."""
    from lightning_uq_box.uq_methods import MCDropoutClassification

    sampled = MCDropoutClassification(model, case.num_samples, nn.CrossEntropyLoss())

    def run(x: Tensor) -> Result:
        result = sampled.predict_step(x)
        return result["pred"], summary(result["logits"], -1, 1)[1]

    return run


def baal(case: Case, model: nn.Module, caching: bool = False, replicated: bool = False) -> Run:
    """Replace the layers, and those before them by ones with a cache if asked to."""
    from baal.bayesian.caching_utils import MCCachingModule
    from baal.bayesian.dropout import MCDropoutModule
    from baal.modelwrapper import ModelWrapper, TrainingArgs

    on_gpu = next(model.parameters()).is_cuda
    sampled = MCCachingModule(MCDropoutModule(model)) if caching else MCDropoutModule(model)
    wrapper = ModelWrapper(sampled.eval(), TrainingArgs(use_cuda=on_gpu, replicate_in_memory=replicated))

    def run(x: Tensor) -> Result:
        return summary(wrapper.predict_on_batch(x, case.num_samples), -1, 1)

    return run


@dataclass(frozen=True)
class Way:
    """A way to sample.

    Args:
        build: Returns what is timed.
        peer: The package that it is from, if it is no code of ours.
        is_folded: Whether all passes are one batch.
    """

    build: Callable[[Case, nn.Module], Run]
    peer: str = ""
    is_folded: bool = False


WAYS = {
    LOOP: Way(by_hand),
    "torch-uncertainty": Way(torch_uncertainty, "torch-uncertainty"),
    "torch-uncertainty, on_batch": Way(partial(torch_uncertainty, on_batch=True), "torch-uncertainty", is_folded=True),
    "lightning-uq-box": Way(lightning_uq_box, "lightning-uq-box"),
    "baal": Way(baal, "baal"),
    "baal, replicate_in_memory": Way(partial(baal, replicated=True), "baal", is_folded=True),
    "baal, MCCachingModule": Way(partial(baal, caching=True), "baal"),
    OURS: Way(ours),
    SHARED: Way(partial(ours, masks="shared")),
    FLOOR: Way(floor),
    STILL: Way(without_dropout),
}


def installed() -> dict[str, str]:
    """Return the versions of the peers that can be used; say why others cannot."""
    versions = {}
    for peer, module in PEERS.items():
        try:
            with hushed():
                import_module(module)
            versions[peer] = metadata.version(peer)
        except Exception as error:  # they are built for other versions of their own dependencies
            print(f"{peer} is skipped: {type(error).__name__}: {error}")
    return versions


def built(name: str, case: Case, model: nn.Module) -> tuple[Run, nn.Module]:
    """Return the way and the model that it uses: a copy, with torch's dropout in place of ours, if it is a peer's."""
    if WAYS[name].peer:
        model = copy.deepcopy(model)
        for module in list(model.modules()):
            for child_name, child in module.named_children():
                if isinstance(child, Dropout):
                    setattr(module, child_name, nn.Dropout(child.p).eval())
    return WAYS[name].build(case, model), model


# Time.


def finished(device: str) -> float:
    """Wait for what the device still does; return the time, in seconds."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def turns(runs: Mapping[str, Callable[[int], object]], repetitions: int, device: str) -> dict[str, list[float]]:
    """Run all in turns, in another order each time; return their seconds without the first, which warms up."""
    names = list(runs)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(repetitions + 1):
        for i in range(len(names)):
            name = names[(i + turn) % len(names)]
            started = finished(device)
            runs[name](turn)
            seconds[name].append(finished(device) - started)
    return {name: times[1:] for name, times in seconds.items()}


def ratio(times: Sequence[float], others: Sequence[float]) -> float:
    """Return the median ratio of neighbours, in which drifts cancel."""
    return median(one / other for one, other in zip(times, others, strict=True))


def milliseconds(seconds: float) -> str:
    """Write a time with as many digits as it is worth."""
    return f"{1e3 * seconds:.{0 if seconds > 0.1 else 2}f}"


def faults(result: Result, loop: Result, num_samples: int, limit: float) -> list[str]:
    """Say where passes differ from the loop's by more than ``limit`` times what chance explains."""
    (mean, variance), (its_mean, its_variance) = result, loop
    spread = (variance.mean() / its_variance.mean()).item()
    if spread < 1e-6:  # rounding differs between the rows of a batch
        return ["samples nothing"]
    chance = (variance + its_variance).mean() / num_samples
    shift = ((mean - its_mean).square().mean() / chance).sqrt().item()
    said = [f"mean off by {shift:.2g} times what chance explains"] if not shift < limit else []
    return said + ([f"variance {spread:.2g} times the loop's"] if not 1 / limit < spread < limit else [])


def race(case: Case, model: nn.Module, names: Sequence[str], options: argparse.Namespace) -> list[Record]:
    """Time the ways on a model, check what they return, and print the table."""
    # Two batches in turns: what a cache holds of one is of no use for the next.
    batches = [torch.randn(case.batch_size, *case.shape, device=options.device) for _ in range(2)]
    rows = case.batch_size * case.num_samples
    runs: dict[str, Run] = {}
    remarks: dict[str, list[str]] = {}
    loop: Result = by_hand(case, model)(batches[0])
    for name in names:
        way = WAYS[name]
        if (way.peer and way.peer not in options.peers) or name == (STILL if case.split else FLOOR):
            continue
        if way.is_folded and rows > options.max_rows:
            remarks[name] = [f"skipped: {rows} rows in one batch"]
            continue
        try:
            with hushed():
                run, used = built(name, case, model)
                buffers = [(buffer, buffer.clone()) for buffer in used.buffers()]
                result = run(batches[0])
        except Exception as error:
            if not way.peer:
                raise
            remarks[name] = [f"{type(error).__name__}: {error}".splitlines()[0]]
            continue
        runs[name], remarks[name] = run, []
        if name != STILL:
            # Shared masks are T draws for all rows together, and a quick run has next to none.
            limit = 20.0 if options.quick else 5.0 if name == SHARED else 2.0
            remarks[name] += faults(result, loop, case.num_samples, limit)
        if not all(torch.equal(buffer, before) for buffer, before in buffers):
            remarks[name].append("changes buffers")
        assert way.peer or not remarks[name], (case.title, name, remarks[name])
    calls = {name: lambda turn, run=run: run(batches[turn % 2]) for name, run in runs.items()}
    with hushed():
        seconds = turns(calls, options.repetitions, options.device)
    print(f"\n{case.title}: batch {case.batch_size}, T = {case.num_samples}\n")
    print("| | median, ms | times as fast as the loop | floors | |\n|---|---|---|---|---|")
    records = []
    for name, said in remarks.items():
        record: Record = {"part": case.title, "way": name, "remarks": said, "goal": case.goals.get(name)}
        if name in seconds:
            record["seconds"] = median(seconds[name])
            if not said:  # what does something else is not faster
                record["speedup"] = ratio(seconds[LOOP], seconds[name])
            if not said and FLOOR in seconds:
                record["floors"] = ratio(seconds[name], seconds[FLOOR])
        goals = [f"goal {record['goal']:g}" + f", {FLOOR_GOAL} floors" * (FLOOR in seconds)] if record["goal"] else []
        cells = (
            milliseconds(record["seconds"]) if "seconds" in record else "–",
            *(f"{record[key]:.2f}" if key in record else "–" for key in ("speedup", "floors")),
        )
        print(f"| {name} | {' | '.join(cells)} | {'; '.join(said + goals)} |")
        records.append(record)
    return records


# Memory.


def resident(key: str) -> int:
    """Return what Linux says of this process, in bytes; ``getrusage`` starts at what the parent process had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))


def peak(name: str, case: Case, device: str) -> tuple[float, float]:
    """Return the peak of this process, a fresh one, and what its passes took of that, in MiB."""
    torch.manual_seed(0)
    model, x = case.build().eval().to(device), torch.randn(case.batch_size, *case.shape, device=device)
    with hushed():
        run, _ = built(name, case, model)
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        run(x)
        after = torch.cuda.max_memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = resident("VmRSS")
        run(x)
        after = resident("VmHWM")
    return after / 2**20, (after - before) / 2**20


def memory(options: argparse.Namespace) -> list[Record]:
    """Compare the peaks of few passes and many, in a process each, and print the table."""
    few, many = (4, 40) if options.quick else (10, 1000)
    case = shrunk(MEMORY, options)
    print(f"\nPeak memory in MiB, {case.title}: batch {case.batch_size}\n")
    print(f"| | process, T = {few} | T = {many} | ratio | of it the passes, T = {few} | T = {many} | ratio | |")
    print("|---|---|---|---|---|---|---|---|")
    records = []
    for name in (LOOP, "torch-uncertainty", "lightning-uq-box", "baal", OURS, SHARED):
        if WAYS[name].peer and WAYS[name].peer not in options.peers:
            continue
        peaks = []
        for num_samples in (few, many):
            with multiprocessing.get_context("spawn").Pool(1) as process:
                peaks.append(process.apply(peak, (name, replace(case, num_samples=num_samples), options.device)))
        columns = list(zip(*peaks, strict=True))
        record = {"part": "memory", "way": name, "num_samples": (few, many), "peaks": columns[0], "passes": columns[1]}
        goal = f"goal {MEMORY_GOAL}" if name in (OURS, SHARED) else ""
        cells = " | ".join(f"{one:.1f} | {other:.1f} | {other / one:.3f}" for one, other in columns)
        print(f"| {name} | {cells} | {goal} |")
        records.append(record)
    return records


# The callback.


class ByHand(Callback):
    """One stochastic pass by hand: the owners are on during a batch."""

    def __init__(self, owners: Sequence[nn.Module]) -> None:
        self._owners = owners

    def on_test_batch_start(self, *args: Any) -> None:
        for owner in self._owners:
            owner.training = True

    def on_test_batch_end(self, *args: Any) -> None:
        for owner in self._owners:
            owner.training = False


def callback(options: argparse.Namespace) -> list[Record]:
    """Compare ``trainer.test`` with and without the callback, and print the table."""
    case, num_batches = shrunk(CASES["resnet_head"], options), 3 if options.quick else 40
    net = case.build()
    module = Classifier(net, num_classes=10)
    images = torch.randn(num_batches * case.batch_size, *case.shape)
    loader = DataLoader(TensorDataset(images, torch.randint(10, (len(images),))), case.batch_size)
    ways: dict[str, list[Callback]] = {
        "plain": [],
        "one stochastic pass by hand": [ByHand(case.owners(net))],
        "`MCDropout(num_samples=1, compare=False)`": [MCDropout(num_samples=1, task="multiclass", compare=False)],
    }
    with tempfile.TemporaryDirectory() as folder, hushed():
        runs = {}
        for name, callbacks in ways.items():
            trainer = Trainer(
                accelerator="gpu" if options.device == "cuda" else "cpu",
                devices=1,
                callbacks=callbacks,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                default_root_dir=folder,
            )
            runs[name] = lambda turn, trainer=trainer: trainer.test(module, loader, verbose=False)
        seconds = turns(runs, options.repetitions, options.device)
    print(f"\n`trainer.test`, {case.title}: {num_batches} batches of {case.batch_size}\n")
    print("| | median, ms | of plain | of by hand | |\n|---|---|---|---|---|")
    records = []
    plain, one_pass, _ = seconds.values()
    for name, times in seconds.items():
        record = {"part": "callback", "way": name, "seconds": median(times)}
        record |= {"of_plain": ratio(times, plain), "of_by_hand": ratio(times, one_pass)}
        goal = f"goal {CALLBACK_GOAL}" if times is not plain and times is not one_pass else ""
        print(f"| {name} | {milliseconds(record['seconds'])} | {record['of_plain']:.3f} ", end="")
        print(f"| {record['of_by_hand']:.3f} | {goal} |")
        records.append(record)
    return records


def shrunk(case: Case, options: argparse.Namespace) -> Case:
    """Return the case, or one that takes no time."""
    if options.quick:
        return replace(case, batch_size=2, num_samples=4)
    return replace(case, batch_size=case.batch_size * options.scale)


def main() -> None:
    """Time, check, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=PARTS, help=", ".join(PARTS))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument(
        "--scale", type=int, default=1, help="batches so many times as large; a GPU idles at the default"
    )
    parser.add_argument("--max-rows", type=int, default=8192, help="the largest batch that passes are folded into")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--quick", action="store_true", help="tiny batches and few passes: nothing to quote")
    options = parser.parse_args()
    if unknown := ", ".join(set(options.parts) - set(PARTS)):
        parser.error(f"expected parts among {', '.join(PARTS)}, but got {unknown}")
    started = time.perf_counter()
    torch.manual_seed(0)
    options.peers = installed()
    device = torch.cuda.get_device_name() if options.device == "cuda" else f"{torch.get_num_threads()} threads"
    versions = {"torch": torch.__version__, "timm": timm.__version__, **options.peers}
    print(", ".join([device, *(f"{name} {version}" for name, version in versions.items())]))
    records: list[Record] = []
    for name, case in CASES.items():
        if name in options.parts:
            case = shrunk(case, options)
            records += race(case, case.build().eval().to(options.device), list(WAYS), options)
    if "memory" in options.parts:
        records += memory(options)
    if "callback" in options.parts:
        records += callback(options)
    if "compiled" in options.parts:
        for name in ("net", "vit"):
            case = replace(shrunk(CASES[name], options), split=None, goals={OURS: 1.0})
            case = replace(case, title=f"compiled {case.title}", num_samples=min(10, case.num_samples))
            model = case.build().eval().to(options.device)
            compiled = torch.compile(model, backend="eager" if options.quick else "inductor")
            records += race(case, compiled, [LOOP, OURS], options)
    print(f"\n{time.perf_counter() - started:.0f} s in all")
    if options.json is not None:
        options.json.write_text(json.dumps({"device": device, "versions": versions, "records": records}, indent=1))


if __name__ == "__main__":
    main()

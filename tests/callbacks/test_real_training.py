"""What real training does to a schedule, one row each; and the callback that people write instead fails every row.

A row is a function that runs a scenario with the schedulers it is handed, ours or the naive ones, and asserts.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import lightning.pytorch
import pytest
import pytorch_lightning
import torch
import torch._dynamo
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    GradientAccumulationScheduler,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from timm.layers import DropPath as TimmDropPath
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_dropout.callbacks import DropoutScheduler, StochasticDepthScheduler, restore_rates
from lightning_dropout.callbacks.rate_plan import plan
from lightning_dropout.nn import DropPath, depth_rates
from lightning_dropout.schedules import (
    Cosine,
    Curriculum,
    Cyclic,
    Early,
    Exponential,
    Late,
    Linear,
    Piecewise,
    Schedule,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create"),
    pytest.mark.filterwarnings("ignore:Found . module.s. in eval mode at the start of training"),
    pytest.mark.filterwarnings("ignore:.*your dataloader is not resumable"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),  # dynamo's own look at it
    pytest.mark.filterwarnings("ignore:You requested to overfit but enabled training dataloader shuffling"),
]
RAMP = Linear(0.0, 0.75)
BATCHES = 6
LIGHTNING_2_4 = lightning.__version__.startswith("2.4.")
LIGHTNING_2_6 = not lightning.__version__.startswith(("2.4.", "2.5."))


# --- the naive ones -------------------------------------------------------------------------------------------------


class Naive(Callback):
    """What examples on the web do: set ``p`` in ``on_train_epoch_start``; whatever else it is told it ignores."""

    layers: tuple[type, ...] = (nn.Dropout,)
    attribute = "p"

    def __init__(self, *, rate: Any = None, scale: Any = None, **_: Any) -> None:
        super().__init__()
        given = scale if rate is None else rate
        self.schedule = next(iter(given.values())) if isinstance(given, dict) else given

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        progress = trainer.current_epoch / max(trainer.max_epochs, 1)
        for module in pl_module.modules():
            if isinstance(module, self.layers):
                schedule = self.schedule
                setattr(module, self.attribute, schedule(progress) if callable(schedule) else schedule)


class NaiveDepth(Naive):
    """The same for stochastic depth."""

    layers = (DropPath, TimmDropPath)
    attribute = "drop_prob"


OURS = SimpleNamespace(dropout=DropoutScheduler, depth=StochasticDepthScheduler)
NAIVE = SimpleNamespace(dropout=Naive, depth=NaiveDepth)


# --- a module that notes what its layers hold -----------------------------------------------------------------------


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 8), nn.Dropout(0.25), DropPath(0.1), nn.Linear(8, 3)
    )


def module_class(package: Any) -> type:
    """Return a module class of ``package`` that notes the rates before every step."""

    class Noting(package.LightningModule):  # type: ignore[misc]
        def __init__(self, inner: nn.Module | None = None, data: Any = None) -> None:
            super().__init__()
            self.net = net() if inner is None else inner
            self.data = data
            self.seen: list[list[float]] = []
            self.evaluated: list[list[float]] = []

        def held(self) -> list[float]:
            """Return the rates of all layers that drop, as they are."""
            layers = (nn.Dropout, DropPath, TimmDropPath)
            found = [module for module in self.net.modules() if isinstance(module, layers)]
            return [float(layer.p if isinstance(layer, nn.Dropout) else layer.drop_prob) for layer in found]

        def trace(self, which: int = 0) -> list[float]:
            return [rates[which] for rates in self.seen]

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            self.seen.append(self.held())  # after the callbacks

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.evaluated.append(self.held())
            self.net(batch[0])

        test_step = validation_step

        def train_dataloader(self) -> Any:
            return loader() if self.data is None else self.data

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Noting


Noting: Any = module_class(lightning.pytorch)


def loader(batches: int = BATCHES) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(4 * batches, 4, generator=generator), torch.randint(0, 3, (4 * batches,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=4)


def ramp(steps: int, schedule: Callable[[float], float] = RAMP) -> list[float]:
    """Return the rates of a run of so many steps, counted by hand."""
    return [schedule(step / steps) for step in range(steps)]


@dataclass
class Ground:
    """What a scenario may use."""

    make_trainer: Callable[..., Any]
    folder: Path

    def fit(self, *callbacks: Any, module: Any = None, **arguments: Any) -> Any:
        """Train, and return the module."""
        module = Noting() if module is None else module
        self.make_trainer(*callbacks, **{"max_epochs": 2} | arguments).fit(module)
        return module


@pytest.fixture
def ground(make_trainer: Callable[..., Any], tmp_path: Path) -> Iterator[Ground]:
    torch._dynamo.reset()
    yield Ground(make_trainer, tmp_path)
    torch._dynamo.reset()


# --- schedules ------------------------------------------------------------------------------------------------------

FAMILY: list[Schedule] = [
    RAMP,
    Cosine(0.5, 0.0),
    Exponential(0.0, 0.5),
    Cyclic(0.0, 0.5, cycles=3),
    Early(0.5, until=0.4),
    Late(0.5, begin=0.4, shape="linear"),
    Curriculum(0.5),
    Piecewise([Linear(0.0, 0.5), 0.5, Piecewise([0.25, Cosine(0.5, 0.0)], [0.5])], [0.25, 0.75]),
]


def every_schedule_is_followed_at_every_step(use: Any, ground: Ground) -> None:
    for schedule in FAMILY:
        assert ground.fit(use.dropout(rate=schedule)).trace() == ramp(12, schedule)


def steps_of_a_piecewise_fall_where_they_were_written(use: Any, ground: Ground) -> None:
    module = ground.fit(use.dropout(rate=Piecewise([0.0, 0.5, 0.25], [1 / 3, 0.75])))
    assert module.trace() == [0.0] * 4 + [0.5] * 5 + [0.25] * 3


def groups_follow_schedules_of_their_own(use: Any, ground: Ground) -> None:
    module = ground.fit(use.dropout(rate={"net.1": RAMP, "3": Linear(0.5, 0.0)}))
    assert module.trace(0) == ramp(12)
    assert module.trace(1) == ramp(12, Linear(0.5, 0.0))


def ratios_of_layers_survive_under_scale(use: Any, ground: Ground) -> None:
    module = ground.fit(use.dropout(scale=Linear(1.0, 0.0)))
    assert module.trace(0) == [0.5 * factor for factor in ramp(12, Linear(1.0, 0.0))]
    assert module.trace(1) == [0.25 * factor for factor in ramp(12, Linear(1.0, 0.0))]


def a_depth_rule_multiplies_a_schedule(use: Any, ground: Ground) -> None:
    blocks = nn.Sequential(nn.Linear(4, 3), *(nn.Sequential(DropPath(), nn.Identity()) for _ in range(4)))
    module = ground.fit(use.depth(rate=RAMP, depth_rule="linear"), module=Noting(blocks))
    for step, rates in enumerate(module.seen):
        assert rates == pytest.approx(depth_rates(RAMP(step / 12), 4))


def dropout_and_stochastic_depth_run_together(use: Any, ground: Ground) -> None:
    module = ground.fit(use.dropout(rate=RAMP), use.depth(scale=Linear(0.0, 1.0)))
    assert module.trace(0) == ramp(12)
    assert module.trace(2) == [0.1 * factor for factor in ramp(12, Linear(0.0, 1.0))]


def the_plan_is_what_happens(use: Any, ground: Ground) -> None:
    schedule = Late(0.5, begin=0.6)
    curves, _ = plan(ground.make_trainer(use.dropout(rate=schedule), max_epochs=2), Noting())
    seen = ground.fit(use.dropout(rate=schedule)).trace()
    assert list(curves[0].mean[:-1]) == seen


# --- the clock ------------------------------------------------------------------------------------------------------


def windows_are_durations(use: Any, ground: Ground) -> None:
    module = ground.fit(use.dropout(rate=RAMP, begin="3step", end="1.5ep"))
    assert module.trace() == [0.0] * 3 + [RAMP(step / 6) for step in range(6)] + [0.75] * 3


def a_rate_holds_still_while_gradients_accumulate(use: Any, ground: Ground) -> None:
    module = ground.fit(use.dropout(rate=RAMP), accumulate_grad_batches=2)
    assert module.trace() == [RAMP(step / 6) for step in range(6) for _ in range(2)]


def accumulation_may_change(use: Any, ground: Ground) -> None:
    accumulation = GradientAccumulationScheduler({0: 3, 1: 1})
    module = ground.fit(use.dropout(rate=RAMP, total="8step"), accumulation)
    assert module.trace() == [RAMP(step / 8) for step in (0, 0, 0, 1, 1, 1, 2, 3, 4, 5, 6, 7)]


class Manual(Noting):  # type: ignore[misc]
    """Two optimizers, the second of which steps in every other batch only."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.manual_backward(super().training_step(batch, batch_idx))
        for optimizer in self.optimizers()[: 1 + batch_idx % 2]:
            optimizer.step()
            optimizer.zero_grad()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.net[0], self.net[2])]


def manual_optimization_with_several_optimizers_counts_batches(use: Any, ground: Ground) -> None:
    assert ground.fit(use.dropout(rate=RAMP), module=Manual()).trace() == ramp(12)


class Stream(IterableDataset[Any]):
    """Data that does not tell how much there is."""

    def __iter__(self) -> Iterator[Any]:
        return iter(loader().dataset[i] for i in range(4 * BATCHES))


def an_endless_loader_needs_a_total(use: Any, ground: Ground) -> None:
    module = Noting(data=DataLoader(Stream(), batch_size=4))
    ground.fit(use.dropout(rate=RAMP, total="12step"), module=module)
    assert module.trace() == ramp(12)


def a_limited_time_needs_a_total_and_holds_beyond_it(use: Any, ground: Ground) -> None:
    module = Noting(data=loader(100))
    ground.fit(use.dropout(rate=RAMP, total="10step"), module=module, max_epochs=1, max_time="00:01:00:00")
    assert module.trace() == ramp(10) + [RAMP(1.0)] * 90  # ten times as long as foreseen


def limited_batches_are_the_run(use: Any, ground: Ground) -> None:
    assert ground.fit(use.dropout(rate=RAMP), limit_train_batches=3).trace() == ramp(6)
    assert ground.fit(use.dropout(rate=RAMP), limit_train_batches=0.5).trace() == ramp(6)


def overfitting_batches_are_the_run(use: Any, ground: Ground) -> None:
    assert ground.fit(use.dropout(rate=RAMP), overfit_batches=2).trace() == ramp(4)


def max_steps_within_an_epoch_end_the_run(use: Any, ground: Ground) -> None:
    assert ground.fit(use.dropout(rate=RAMP), max_epochs=-1, max_steps=9).trace() == ramp(9)


def a_dev_run_tries_the_start_and_gives_back(use: Any, ground: Ground) -> None:
    module = ground.fit(use.dropout(rate=Linear(0.375, 0.75), begin="50ep"), fast_dev_run=True)
    assert module.trace() == [0.375]
    assert module.held() == [0.5, 0.25, 0.1]


def validation_within_an_epoch_sees_the_rate_of_that_step(use: Any, ground: Ground) -> None:
    class Validated(Noting):  # type: ignore[misc]
        def val_dataloader(self) -> Any:
            return loader(1)

    module = ground.fit(use.dropout(rate=RAMP), module=Validated(), val_check_interval=0.5, num_sanity_val_steps=0)
    assert [rates[0] for rates in module.evaluated] == [RAMP(step / 12) for step in (2, 5, 8, 11)]
    assert module.trace() == ramp(12)


# --- resuming and evaluating ----------------------------------------------------------------------------------------


class Break(Callback):
    """Saves after so many batches, and breaks the run."""

    def __init__(self, after: int, path: Path) -> None:
        self.after, self.path = after, path

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if len(pl_module.seen) == self.after:
            trainer.save_checkpoint(self.path)
            raise RuntimeError("planted")


def resumed(use: Any, ground: Ground, after: int, **arguments: Any) -> list[float]:
    path = ground.folder / f"{after}.ckpt"
    first, second = Noting(), Noting()
    with pytest.raises(RuntimeError, match="planted"):
        ground.fit(use.dropout(**arguments), Break(after, path), module=first)
    torch.load(path, weights_only=True)
    ground.make_trainer(use.dropout(**arguments), max_epochs=2).fit(second, ckpt_path=path)
    return list(first.trace() + second.trace())[:12]


def a_resume_within_an_epoch_continues_the_trace(use: Any, ground: Ground) -> None:
    for after in (1, 4, 8):
        again = 1 if LIGHTNING_2_4 else 0  # it runs the last batch once more
        assert resumed(use, ground, after, rate=RAMP)[: 12 - again] == ramp(12)[: 12 - again]


def a_resume_at_the_end_of_an_epoch_continues_the_trace(use: Any, ground: Ground) -> None:
    path = ground.folder / "end.ckpt"
    save = ModelCheckpoint(ground.folder, filename="end", every_n_epochs=1, save_on_train_epoch_end=True)
    first = ground.fit(use.dropout(rate=RAMP, total="12step"), save, max_epochs=1)
    second = Noting()
    ground.make_trainer(use.dropout(rate=RAMP, total="12step"), max_epochs=2).fit(second, ckpt_path=path)
    assert first.trace() + second.trace() == ramp(12)


def trained(use: Any, ground: Ground) -> Path:
    """Return a checkpoint written after the eighth of twelve steps."""
    path = ground.folder / "eighth.ckpt"
    with pytest.raises(RuntimeError, match="planted"):
        ground.fit(use.dropout(rate=RAMP), use.depth(rate=RAMP), Break(8, path))
    return path


def a_loaded_module_is_tested_with_the_rates_of_its_checkpoint(use: Any, ground: Ground) -> None:
    path = trained(use, ground)
    module = Noting.load_from_checkpoint(path)
    ground.make_trainer(use.dropout(rate=RAMP), use.depth(rate=RAMP)).test(module, loader(1), ckpt_path=path)
    assert module.evaluated == [[RAMP(7 / 12)] * 3]
    assert module.held() == [0.5, 0.25, 0.1]


def rates_are_restored_without_a_trainer(use: Any, ground: Ground) -> None:
    module = Noting.load_from_checkpoint(path := trained(use, ground))
    restore_rates(module, path)
    assert module.held() == [RAMP(7 / 12)] * 3


def the_models_own_rates_are_back_after_a_fit(use: Any, ground: Ground) -> None:
    assert ground.fit(use.dropout(rate=RAMP), use.depth(rate=0.5)).held() == [0.5, 0.25, 0.1]


def a_second_fit_is_like_the_first(use: Any, ground: Ground) -> None:
    module, scheduler = Noting(), use.dropout(scale=Linear(1.0, 0.5))
    for _ in range(2):
        ground.fit(scheduler, module=module)
    assert module.trace(1)[:12] == module.trace(1)[12:] == [0.25 * factor for factor in ramp(12, Linear(1.0, 0.5))]


def a_test_after_a_fit_has_the_trained_rates(use: Any, ground: Ground) -> None:
    module = Noting()
    trainer = ground.make_trainer(use.dropout(rate=RAMP), max_epochs=2)
    trainer.fit(module)
    trainer.test(module, loader(1))
    assert module.evaluated == [[RAMP(11 / 12), RAMP(11 / 12), 0.1]]
    assert module.held() == [0.5, 0.25, 0.1]


# --- what others do to a run ----------------------------------------------------------------------------------------


def averaging_weights_changes_no_rate(use: Any, ground: Ground) -> None:
    others: list[Any] = [StochasticWeightAveraging(swa_lrs=0.1, swa_epoch_start=1)]
    if LIGHTNING_2_6:
        from lightning.pytorch.callbacks import EMAWeightAveraging, WeightAveraging

        others += [EMAWeightAveraging(), WeightAveraging()]
    for other in others:
        for callbacks in ((use.dropout(rate=RAMP), other), (other, use.dropout(rate=RAMP))):
            assert ground.fit(*callbacks).trace()[:12] == ramp(12)


class Checkpointed(nn.Sequential):
    """Runs its forward again in backward."""

    def forward(self, x: Tensor) -> Tensor:
        run: Tensor = torch.utils.checkpoint.checkpoint(super().forward, x, use_reentrant=False)
        return run


def activation_checkpointing_reads_the_rate_of_its_forward(use: Any, ground: Ground) -> None:
    weights = []
    for cls in (nn.Sequential, Checkpointed):
        torch.manual_seed(0)
        module = ground.fit(use.dropout(rate=RAMP), module=Noting(cls(*net())))
        assert module.trace() == ramp(12)
        weights.append(nn.utils.parameters_to_vector(module.parameters()))
    assert torch.equal(*weights)


def eager_layers_of_others_stay_bit_for_bit_what_they_were(use: Any, ground: Ground) -> None:
    class ByHand(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            for index in (1, 3):
                pl_module.net[index].p = RAMP(trainer.global_step / 12)

    weights = []
    for callback in (ByHand(), use.dropout(rate=RAMP)):
        torch.manual_seed(0)
        weights.append(nn.utils.parameters_to_vector(ground.fit(callback).parameters()))
    assert torch.equal(*weights)


def the_other_package_runs_it_too(use: Any, ground: Ground) -> None:
    module = module_class(pytorch_lightning)()
    ground.fit(use.dropout(rate=RAMP), module=module, package=pytorch_lightning)
    assert module.trace() == ramp(12)


# --- torch.compile --------------------------------------------------------------------------------------------------


class Compiled:
    """Counts the graphs that a run needs, and the steps that ran in one."""

    def __init__(self, **options: Any) -> None:
        self.counter = CompileCounterWithBackend("aot_eager")
        self.options: dict[str, Any] = {"backend": self.counter, **options}

    def fit(self, ground: Ground, module: Any, *callbacks: Any, whole: Any = None) -> int:
        module.data = loader(25)  # 50 steps
        trainer = ground.make_trainer(*callbacks, max_epochs=2)
        trainer.fit(module if whole is None else whole)
        assert len(module.seen) == 50
        return int(self.counter.frame_count)


def a_compiled_net_is_one_graph(use: Any, ground: Ground) -> None:
    for options in ({}, {"fullgraph": True}):
        torch._dynamo.reset()
        run = Compiled(**options)
        module = Noting()
        module.net.compile(**run.options)
        assert run.fit(ground, module, use.dropout(rate=RAMP), use.depth(rate=RAMP)) == 1
        assert module.trace() == module.trace(2) == ramp(50)


def a_wrapped_net_is_one_graph(use: Any, ground: Ground) -> None:
    run = Compiled()
    module = Noting()
    module.net = torch.compile(module.net, **run.options)
    assert run.fit(ground, module, use.dropout(scale=Linear(0.0, 1.0)), use.depth(scale=Linear(0.0, 1.0))) == 1
    assert module.trace() == [0.5 * factor for factor in ramp(50, Linear(0.0, 1.0))]


class Residual(nn.Module):
    """A block with drops of three libraries."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.linear, self.drop, self.path = nn.Linear(4, 4), nn.Dropout(rate), TimmDropPath(rate)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = x + self.path(self.drop(self.linear(x)))
        return output


def blocks_compiled_one_by_one_share_a_graph(use: Any, ground: Ground) -> None:
    run = Compiled(fullgraph=True)
    blocks = [Residual(0.05 * (i + 1)) for i in range(12)]
    for block in blocks:
        block.compile(**run.options)
    # What enters the first block needs gradients, as what enters the others does: else there would be two graphs.
    module = Noting(nn.Sequential(nn.Linear(4, 4), *blocks, nn.Linear(4, 3)))
    assert run.fit(ground, module, use.dropout(scale=Linear(0.0, 1.0)), use.depth(scale=Linear(0.0, 1.0))) == 1
    assert module.trace(1) == [0.05 * factor for factor in ramp(50, Linear(0.0, 1.0))]


def a_compiled_module_of_lightning_needs_no_graph_more(use: Any, ground: Ground) -> None:
    graphs = []
    for callbacks in ((), (use.dropout(rate=RAMP), use.depth(rate=RAMP))):
        torch._dynamo.reset()
        run, module = Compiled(), Noting()
        graphs.append(run.fit(ground, module, *callbacks, whole=torch.compile(module, **run.options)))
    assert graphs[1] == graphs[0]
    assert module.trace() == ramp(50)


class Attending(nn.Module):
    """Fused attention reads the rate of a child as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.attn_drop, self.proj_drop, self.head = nn.Dropout(0.5), nn.Dropout(0.5), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None, None]
        rate = self.attn_drop.p if self.training else 0.0
        x = nn.functional.scaled_dot_product_attention(x, x, x, dropout_p=rate)[:, 0, 0]
        output: Tensor = self.head(self.proj_drop(x))
        return output


def numbers_in_compiled_code_go_in_stairs(use: Any, ground: Ground) -> None:
    run, module = Compiled(), Noting(Attending())
    module.net.compile(**run.options)
    graphs = run.fit(ground, module, use.dropout(rate=RAMP, stairs=4))
    stairs = pytest.approx([round(step / 50 * 3) * 0.25 for step in range(50)])
    assert module.trace(0) == stairs
    assert module.trace(1) == ramp(50)
    assert graphs <= 4 + 1  # torch tries once whether the number may vary


# --- bad input ------------------------------------------------------------------------------------------------------


def refused(message: str, use: Any, ground: Ground, *callbacks: Any, module: Any = None, **arguments: Any) -> None:
    module = Noting() if module is None else module
    before = module.held()
    with pytest.raises(ValueError, match=message):
        ground.fit(*callbacks, module=module, **arguments)
    assert module.seen == []
    assert module.held() == before


def two_schedulers_on_one_site(use: Any, ground: Ground) -> None:
    schedulers = [use.dropout(rate=RAMP, name="a"), use.dropout(rate=0.5, sites="net.3", name="b")]
    refused(r"`net\.3` in both .*\[a\] and .*\[b\]; narrow their `sites`", use, ground, *schedulers)


def one_site_in_two_groups(use: Any, ground: Ground) -> None:
    shared = nn.Dropout(0.5)
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), shared), nn.Sequential(nn.Linear(4, 3), shared))
    scheduler = use.dropout(rate={"net.0.*": 0.25, "net.1.*": 0.5})
    refused(r"two patterns of `rate` that match `net\.0\.1`", use, ground, scheduler, module=Noting(model))


def a_scheduler_that_matches_nothing(use: Any, ground: Ground) -> None:
    scheduler = use.dropout(rate=RAMP, sites="net.l")
    refused(r"got none for sites='net\.l'.*closest: net\.3, net\.1\.", use, ground, scheduler)


class VitModule(Noting):  # type: ignore[misc]
    """timm's ViT, for vectors of 4."""

    def __init__(self, drop_path_rate: float = 0.0) -> None:
        vit = VisionTransformer(
            img_size=2, patch_size=1, in_chans=1, num_classes=3, embed_dim=8, depth=3, num_heads=2,
            drop_path_rate=drop_path_rate,
        )  # fmt: skip
        super().__init__(nn.Sequential(nn.Unflatten(1, (1, 2, 2)), vit))

    def held(self) -> list[float]:
        return [float(layer.drop_prob) for layer in self.modules() if isinstance(layer, DropPath)]


def a_timm_model_built_without_drop_path(use: Any, ground: Ground) -> None:
    refused(r"`fill_identity=True` with `rate=`.* 6 of them", use, ground, use.depth(rate=0.5), module=VitModule())


def slots_are_filled_for_the_run(use: Any, ground: Ground) -> None:
    module = VitModule()
    before = repr(module)
    ground.fit(use.depth(rate=RAMP, depth_rule="linear", fill_identity=True), module=module)
    assert module.seen[6] == [0.0, 0.0, RAMP(0.5) / 2, RAMP(0.5) / 2, RAMP(0.5), RAMP(0.5)]
    assert repr(module) == before


def a_run_of_unknown_length(use: Any, ground: Ground) -> None:
    stream = Noting(data=DataLoader(Stream(), batch_size=4))
    refused(r"known length.*`total=\"5000step\"`", use, ground, use.dropout(rate=RAMP), module=stream)


@dataclass(frozen=True)
class Odd(Schedule):
    """Fine, except at one place."""

    value: str

    def __call__(self, progress: float) -> float:
        return float(self.value) if 0.4 < progress < 0.45 else 0.1


def a_schedule_that_leaves_the_range_somewhere(use: Any, ground: Ground) -> None:
    with pytest.raises(ValueError, match=r"finite values of at least 0, but got nan at progress 0\.4"):
        use.dropout(rate=Odd("nan"))
    with pytest.raises(ValueError, match=r"probabilities in \[0, 1\], but got 1\.2 .* at progress 0\.4"):
        use.dropout(rate=Odd("1.2"))


def a_factor_of_nothing(use: Any, ground: Ground) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.0))
    refused(r"0 at all 1 sites.*`rate=`", use, ground, use.dropout(scale=RAMP), module=Noting(model))


def an_owner_in_eval_mode(use: Any, ground: Ground) -> None:
    module = Noting()
    module.net[1].eval()
    with pytest.raises(ValueError, match=r"`net\.1` in train mode during fit.*call `\.train\(\)`"):
        ground.fit(use.dropout(rate=RAMP), module=module)
    assert module.held() == [0.5, 0.25, 0.1]


ROWS: list[Callable[[Any, Ground], None]] = [
    every_schedule_is_followed_at_every_step,
    steps_of_a_piecewise_fall_where_they_were_written,
    groups_follow_schedules_of_their_own,
    ratios_of_layers_survive_under_scale,
    a_depth_rule_multiplies_a_schedule,
    dropout_and_stochastic_depth_run_together,
    the_plan_is_what_happens,
    windows_are_durations,
    a_rate_holds_still_while_gradients_accumulate,
    accumulation_may_change,
    manual_optimization_with_several_optimizers_counts_batches,
    an_endless_loader_needs_a_total,
    a_limited_time_needs_a_total_and_holds_beyond_it,
    limited_batches_are_the_run,
    overfitting_batches_are_the_run,
    max_steps_within_an_epoch_end_the_run,
    a_dev_run_tries_the_start_and_gives_back,
    validation_within_an_epoch_sees_the_rate_of_that_step,
    a_resume_within_an_epoch_continues_the_trace,
    a_resume_at_the_end_of_an_epoch_continues_the_trace,
    a_loaded_module_is_tested_with_the_rates_of_its_checkpoint,
    rates_are_restored_without_a_trainer,
    the_models_own_rates_are_back_after_a_fit,
    a_second_fit_is_like_the_first,
    a_test_after_a_fit_has_the_trained_rates,
    averaging_weights_changes_no_rate,
    activation_checkpointing_reads_the_rate_of_its_forward,
    eager_layers_of_others_stay_bit_for_bit_what_they_were,
    the_other_package_runs_it_too,
    a_compiled_net_is_one_graph,
    a_wrapped_net_is_one_graph,
    blocks_compiled_one_by_one_share_a_graph,
    a_compiled_module_of_lightning_needs_no_graph_more,
    numbers_in_compiled_code_go_in_stairs,
    two_schedulers_on_one_site,
    one_site_in_two_groups,
    a_scheduler_that_matches_nothing,
    a_timm_model_built_without_drop_path,
    slots_are_filled_for_the_run,
    a_run_of_unknown_length,
    a_schedule_that_leaves_the_range_somewhere,
    a_factor_of_nothing,
    an_owner_in_eval_mode,
]
rows = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.__name__)


@rows
def test_a_schedule_survives(row: Callable[[Any, Ground], None], ground: Ground) -> None:
    row(OURS, ground)


@rows
def test_assigning_p_at_the_start_of_an_epoch_does_not(row: Callable[[Any, Ground], None], ground: Ground) -> None:
    with pytest.raises((AssertionError, ValueError, pytest.fail.Exception)):
        row(NAIVE, ground)

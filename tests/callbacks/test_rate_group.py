"""How rates get into layers: as floats, as tensors of compiled layers, in stairs of compiled code."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._dynamo
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.data import DataLoader, TensorDataset

from lightning_dropout.callbacks import DropoutScheduler, MCDropout, StochasticDepthScheduler
from lightning_dropout.callbacks.rate_group import RateGroup
from lightning_dropout.nn import AttentionDropout, Dropout, StochasticDepth
from lightning_dropout.schedules import Constant, Cyclic, Early, Late, Linear, Piecewise, Schedule
from lightning_dropout.sites import find_sites

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
CPU = torch.device("cpu")
RAMP = Linear(0.0, 0.5)
PROGRESSES = [step / 100 for step in range(101)]


@pytest.fixture(autouse=True)
def _fresh_graphs() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class ByConfig(nn.Module):
    """Reads its rate where other modules read it, too."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, self.config.dropout, self.training)


class Config:
    """Whatever holds numbers."""

    def __init__(self) -> None:
        self.dropout = 0.1


def model() -> nn.Sequential:
    """Return a model with a site of each sort: two layers, a fused attention, a number in a configuration."""
    return nn.Sequential(nn.Dropout(0.1), Dropout(0.2), AttentionDropout(0.3), ByConfig(Config()))


def group(schedule: Schedule = RAMP, factors: tuple[float, ...] = (1.0, 0.5, 1.0, 0.25)) -> RateGroup:
    return RateGroup("all", schedule, find_sites(model()), factors)


def held(group: RateGroup) -> list[float]:
    return [site.rate for site in group.sites]


def compiled(group: RateGroup, *which: int, stairs: int = 3, tensors: bool = True) -> list[str]:
    """Adapt ``group`` to a compiler that runs some of its modules."""
    modules = {group.sites[i].users[0].module for i in which}
    stepped, _ = group.adapt(modules, PROGRESSES, CPU, stairs, tensors)
    return [site.name for site in stepped]


@pytest.mark.parametrize("which", [(), (0,), (0, 1), (0, 1, 2, 3)], ids=str)
def test_every_site_gets_its_factor_of_the_value(which: tuple[int, ...]) -> None:
    rates = group()
    compiled(rates, *which, stairs=3)
    for progress in (0.0, 0.5, 1.0):  # where a stair is the schedule itself
        rates.set(progress)
        value = RAMP(progress)
        assert held(rates) == rates.rates(progress) == [value, 0.5 * value, value, 0.25 * value]
        assert all(type(rate) is float for rate in held(rates))


def test_only_what_is_compiled_and_has_no_tensor_form_takes_stairs() -> None:
    rates = group()
    assert compiled(rates, 0, 2, 3, stairs=3) == ["2", "3.config.dropout"]
    rates.set(0.3)
    exact, stair = RAMP(0.3), 0.25
    assert held(rates) == rates.rates(0.3) == [exact, 0.5 * exact, stair, 0.25 * stair]
    rates.set(0.2)
    assert held(rates)[2:] == [0.0, 0.0]  # the first of three stairs
    assert [type(site.holder) is nn.Dropout for site in rates.sites[:1]] == [False]  # lent
    rates.give_back()
    assert type(rates.sites[0].holder) is nn.Dropout
    rates.set(0.3)
    assert held(rates) == [exact, 0.5 * exact, exact, 0.25 * exact]


def test_without_tensors_compiled_layers_take_stairs_too() -> None:
    rates = group()
    assert compiled(rates, 0, 1, 2, tensors=False) == ["0", "1", "2"]
    assert type(rates.sites[0].holder) is nn.Dropout


@pytest.mark.parametrize(
    "schedule", [Constant(0.5), Late(0.5, begin=0.37), Piecewise([0.0, 0.25, 0.5], [0.123, 0.456])], ids=repr
)
def test_a_schedule_of_few_values_needs_no_stairs(schedule: Schedule) -> None:
    rates = group(schedule)
    assert compiled(rates, 2, 3, stairs=3) == []
    for progress in PROGRESSES:
        rates.set(progress)
        assert held(rates)[2] == schedule(progress)
    assert compiled(group(RAMP), 2, 3, stairs=3) != []


def test_stairs_are_as_many_as_asked_for_and_reach_both_ends() -> None:
    for stairs in (2, 5, 7):
        rates = group()
        compiled(rates, 2, stairs=stairs)
        seen = []
        for progress in PROGRESSES:
            rates.set(progress)
            seen.append(held(rates)[2])
        assert len(set(seen)) == stairs
        assert (seen[0], seen[-1]) == (RAMP(0.0), RAMP(1.0))
        assert seen == sorted(seen)


@pytest.mark.parametrize(
    "schedule",
    [Cyclic(0.0, 0.4, cycles=4), Piecewise([0.1, Linear(0.5, 0.6), 0.1], [0.3, 0.45]), Early(0.4, until=0.1)],
    ids=lambda schedule: type(schedule).__name__,
)
def test_stairs_miss_no_peak_however_short(schedule: Schedule) -> None:
    rates = group(schedule)
    compiled(rates, 2, stairs=5)
    exact = [schedule(progress) for progress in PROGRESSES]
    seen = []
    for progress in PROGRESSES:
        rates.set(progress)
        seen.append(held(rates)[2])
    assert (min(seen), max(seen)) == (min(exact), max(exact))
    assert len(set(seen)) <= 5
    step = (max(exact) - min(exact)) / 4
    assert max(abs(one - other) for one, other in zip(seen, exact, strict=True)) <= step / 2 + 1e-12
    # Points of progress instead: a short peak lies between them.
    naive = [schedule(min(int(progress * 5), 4) / 4) for progress in PROGRESSES]
    assert max(abs(one - other) for one, other in zip(naive, exact, strict=True)) > step / 2


def test_a_rate_that_stays_zero_is_lent_no_tensor_and_draws_nothing() -> None:
    layers = nn.Sequential(nn.Dropout(0.0), nn.Dropout(0.1))
    rates = RateGroup("all", Linear(0.0, 2.0), find_sites(layers), (0.0, 0.1))
    rates.adapt(set(layers.modules()), PROGRESSES, CPU, 2, True)
    assert [type(layer) is nn.Dropout for layer in layers] == [True, False]
    rates.set(1.0)
    before = torch.get_rng_state()
    layers[0](torch.ones(3))
    assert torch.equal(torch.get_rng_state(), before)


def test_how_many_constants_compiled_code_will_see() -> None:
    def constants(schedule: Schedule, *which: int) -> int:
        rates = group(schedule)
        modules = {rates.sites[i].users[0].module for i in which}
        return rates.adapt(modules, PROGRESSES, CPU, 5, True)[1]

    assert constants(RAMP, 2) == constants(RAMP, 0, 2, 3) == 5
    assert constants(RAMP, 0, 1) == constants(RAMP) == 0
    assert constants(Late(0.5, begin=0.37), 2) == 2


class Beyond(Schedule):
    """Leaves the range where no sample lies."""

    def __call__(self, progress: float) -> float:
        return float("nan") if progress == 0.123 else 1.5 if progress == 0.456 else -0.1 if progress == 0.789 else 0.5


@pytest.mark.parametrize("progress", [0.123, 0.456, 0.789])
def test_a_value_out_of_range_reaches_no_layer(progress: float) -> None:
    rates = RateGroup(None, Beyond(), find_sites(model()), (0.5, 1.0, 0.0, 0.0))
    before = held(rates)
    with pytest.raises(ValueError, match=r"Expected `rate of 1` to be a probability"):
        rates.set(progress)
    assert held(rates) == before


def test_what_a_layer_refuses_is_still_refused() -> None:
    timm = pytest.importorskip("timm.layers")
    rates = RateGroup(None, Constant(1.0), find_sites(nn.Sequential(timm.PatchDropout(0.5))), (1.0,))
    with pytest.raises(ValueError, match="below 1, since this layer divides by 1 - rate"):
        rates.set(0.0)


# --- the arguments of the schedulers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "stepped"),
    [
        ("auto", []),  # a compiled function leaves no trace in the model
        ("tensor", ["attention"]),
        ("stairs", ["layer", "attention"]),
        ("off", []),
    ],
)
def test_compile_mode(
    make_trainer: Any, make_recorder: Any, loader: Any, mode: Any, stepped: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.attention, self.head = nn.Dropout(0.5), AttentionDropout(0.5), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.layer(x)[:, None, None]
            output: Tensor = self.head(self.attention(x, x, x)[:, 0, 0])
            return output

    module = make_recorder(Net())
    with caplog.at_level("INFO"):
        make_trainer(DropoutScheduler(rate=RAMP, compile_mode=mode, stairs=2), max_epochs=4).fit(module, loader)
    exact = [RAMP(step / 12) for step in range(12)]
    for name in ("layer", "attention"):
        # The nearer of the lowest value, 0, and the highest, that at the end.
        assert module.trace(name) == ([round(step / 12) * 0.5 for step in range(12)] if name in stepped else exact)
    said = [line for line in caplog.messages if "makes constants of the rates" in line]
    assert len(said) == bool(stepped)
    if said:
        assert f"of {len(stepped)} sites" in said[0]
        assert "`stairs=2`" in said[0]


def test_graphs_are_allowed_for_every_value_once_and_for_good(
    make_trainer: Any, make_recorder: Any, loader: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch._dynamo.config.recompile_limit
    with torch._dynamo.config.patch(recompile_limit=before):  # puts it back for the other tests
        scheduler = DropoutScheduler(rate=RAMP, compile_mode="tensor", stairs=4)
        for _ in range(2):
            module = make_recorder(nn.Sequential(ByConfig(Config()), nn.Linear(4, 3)))
            make_trainer(scheduler, max_epochs=4).fit(module, loader)
            # In train and eval mode, with a batch of its own size at the end: the graphs stay, and so does the limit.
            assert torch._dynamo.config.recompile_limit == before + 4 * 4
    assert torch._dynamo.config.recompile_limit == before


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            StochasticDepth(nn.Linear(4, 4), 0.2, mode) for mode in ("subset", "batch", "row")
        )
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for branch in self.branches:
            x = branch(x)
        logits: Tensor = self.head(x)
        return logits


def test_graphs_are_allowed_for_every_branch_that_runs_for_some_samples(
    make_trainer: Any, make_recorder: Any, loader: Any
) -> None:
    before = torch._dynamo.config.recompile_limit
    with torch._dynamo.config.patch(recompile_limit=before):
        scheduler = StochasticDepthScheduler(scale=RAMP, compile_mode="tensor")
        make_trainer(scheduler, max_epochs=1).fit(make_recorder(Branches()), loader)
        assert torch._dynamo.config.recompile_limit == before + 4 * 2


class Functional(nn.Module):
    """Its code reads the rate as a number, in evaluation too."""

    def __init__(self) -> None:
        super().__init__()
        self.p, self.head = 0.1, nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(nn.functional.dropout(x, self.p, self.training))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("rate", "arguments"),
    [
        (RAMP, {}),
        (RAMP, {"stairs": 12}),
        (Piecewise([0.1, 0.2, 0.3, 0.4, 0.5], [0.2, 0.4, 0.6, 0.8]), {}),  # as many values as stairs
        (RAMP, {"unit": "epoch", "stairs": 12}),
    ],
    ids=str,
)
def test_training_validation_ragged_batches_and_a_sampled_test_stay_compiled(
    make_trainer: Any, make_recorder: Any, rate: Any, arguments: Any
) -> None:
    data = TensorDataset(torch.randn(22, 4), torch.randint(0, 3, (22,)))
    batches = DataLoader(data, batch_size=4)
    with torch._dynamo.config.patch(recompile_limit=torch._dynamo.config.recompile_limit):
        module = make_recorder(Functional())
        module.net = torch.compile(module.net, backend="eager", fullgraph=True)  # raises beyond the limit
        callbacks = DropoutScheduler(rate=rate, **arguments), MCDropout(num_samples=3, task="multiclass")
        trainer = make_trainer(*callbacks, max_epochs=10)
        trainer.fit(module, batches, batches)
        trainer.test(module, batches, verbose=False)


def test_a_model_that_is_compiled_late_is_adapted_at_the_first_batch(
    make_trainer: Any, make_recorder: Any, loader: Any
) -> None:
    counter = CompileCounterWithBackend("eager")

    class Late(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            pl_module.net.compile(backend=counter)

    module = make_recorder(nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)))
    make_trainer(DropoutScheduler(rate=RAMP), Late(), max_epochs=5).fit(module, loader)
    assert counter.frame_count == 1
    assert module.trace("1") == [RAMP(step / 15) for step in range(15)]


def test_a_compiled_loss_makes_no_module_compiled(make_trainer: Any, make_recorder: Any, loader: Any) -> None:
    classes = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            classes.append(type(pl_module.net[1]))

    module = make_recorder(nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)))
    module.loss = torch.compile(nn.functional.cross_entropy, backend="eager")
    make_trainer(DropoutScheduler(rate=RAMP), Watch(), max_epochs=1).fit(module, loader)
    assert set(classes) == {nn.Dropout}


@pytest.mark.parametrize("stairs", [1, 0, -3, 2.5, True, "5"])
def test_stairs_are_at_least_two(stairs: Any) -> None:
    with pytest.raises(ValueError, match="Expected `stairs` to be a whole number of at least 2, but got"):
        DropoutScheduler(rate=0.1, stairs=stairs)


def test_compile_modes_are_known() -> None:
    with pytest.raises(ValueError, match="Expected `compile_mode` to be one of auto, tensor, stairs, off, but got 'x'"):
        DropoutScheduler(rate=0.1, compile_mode="x")  # type: ignore[arg-type]

"""Monte-Carlo dropout around a module that knows nothing of it; every number against one counted by hand."""

import copy
import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from lightning_dropout.callbacks import DropoutScheduler, MCDropout, sampled_stage
from lightning_dropout.metrics import AUGRC, AURC, AccuracyAtCoverage
from lightning_dropout.modules import Classifier, Regressor
from lightning_dropout.nn import Dropout, DropPath
from lightning_dropout.randomness import derive_seed, seed_everywhere
from lightning_dropout.sampling import mc_sample
from lightning_dropout.sampling.sample import Sampler
from lightning_dropout.schedules import Early, Linear
from lightning_dropout.sites import Site, User

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
]
MakeTrainer = Callable[..., Any]
Call = Callable[[Any, Tensor], Any]
T = 7


def call_module(module: Any, x: Tensor) -> Any:
    return module(x)


def call_net(module: Any, x: Tensor) -> Any:
    return module.net(x)


def small_net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))


class Attending(nn.Module):
    """Dropout in attention weights, where no Dropout child is, and elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 1, dropout=0.5, batch_first=True)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.stack([x, x.flip(1), -x], dim=1)
        tokens = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return self.head(self.drop(tokens.mean(1)))  # type: ignore[no-any-return]


def transformer_net() -> nn.Module:
    """With the layer of torch that knows a fast path without dropout."""
    layer = nn.TransformerEncoderLayer(4, 1, 8, dropout=0.3, batch_first=True)
    return nn.Sequential(
        nn.Unflatten(1, (1, 4)),
        nn.TransformerEncoder(layer, 1, enable_nested_tensor=False),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


class Plain(LightningModule):
    """Somebody's module; it keeps what its test step saw."""

    def __init__(self, net: nn.Module | None = None, call: Call = call_module) -> None:
        super().__init__()
        self.net = net or small_net()
        self.call = call
        self.accuracy = MulticlassAccuracy(3, average="micro")
        self.seen: list[Any] = []

    def forward(self, x: Tensor) -> Any:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        x, y = batch.values() if isinstance(batch, dict) else batch
        outputs = self.call(self, x)
        self.seen.append(outputs)
        if y.shape == outputs.shape[:1]:
            self.log("loss", F.cross_entropy(outputs, y), batch_size=len(x))
            self.accuracy(outputs, y)
            self.log("accuracy", self.accuracy, on_epoch=True, on_step=False, batch_size=len(x))

    validation_step = test_step

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return self.call(self, batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(torch.randn(10, 4, generator=generator), torch.randint(0, 3, (10,), generator=generator))


@pytest.fixture
def loader(data: TensorDataset) -> DataLoader[Any]:
    return DataLoader(data, batch_size=4)  # the last batch has two samples


def passes(net: nn.Module, loader: DataLoader[Any], seed: int = 0, dataloader_idx: int = 0) -> list[Tensor]:
    """Return for each batch the outputs of T passes of the whole net in train mode, with the seeds of the callback."""
    outputs = []
    with torch.random.fork_rng(), torch.no_grad():
        net.train()
        for index, batch in enumerate(loader):
            one_batch = []
            for number in range(T):
                seed_everywhere(derive_seed(seed, 0, dataloader_idx, index, 0, number))
                one_batch.append(net(batch[0]))
            outputs.append(torch.stack(one_batch))
        net.eval()
    return outputs


def mean_probabilities(outputs: Sequence[Tensor]) -> Tensor:
    return torch.cat([logits.double().softmax(-1).mean(0) for logits in outputs])


# --- what the step sees ---------------------------------------------------------------------------------------------


def step_sees_mean_probabilities(
    callback: MCDropout, make_trainer: MakeTrainer, loader: DataLoader[Any], net: nn.Module
) -> bool:
    module = Plain(net)
    make_trainer(callback).test(module, loader, verbose=False)
    expected = mean_probabilities(passes(net, loader))
    return torch.allclose(torch.cat(module.seen).double().exp(), expected, atol=1e-5)


class AveragesLogits(Sampler):
    """A planted bug."""

    def sample(self, *args: Any, **arguments: Any) -> Any:
        raw = Sampler(self.model, self.sites, num_samples=self.num_samples, task="raw")
        logits = raw.sample(*args, **arguments).mean
        return dataclasses.replace(super().sample(*args, **arguments), predictive=logits)


class WakesDropoutModulesOnly(Sampler):
    """A planted bug: what most snippets on the web do."""

    def __init__(self, model: nn.Module, sites: Sequence[Site], **arguments: Any) -> None:
        only = [site for site in sites if isinstance(site.holder, nn.Dropout)]
        for site in only:
            site.users = tuple(User(user.name, (site.holder,), user.module) for user in site.users)
        super().__init__(model, only, **arguments)


@pytest.mark.parametrize("make_net", [small_net, Attending, transformer_net])
def test_the_step_sees_the_mean_of_the_probabilities(
    make_trainer: MakeTrainer, loader: DataLoader[Any], make_net: Callable[[], nn.Module]
) -> None:
    net = make_net()
    assert step_sees_mean_probabilities(MCDropout(T, task="multiclass"), make_trainer, loader, net)


@pytest.mark.parametrize(
    ("mutant", "make_net"),
    [
        (AveragesLogits, small_net),
        (AveragesLogits, Attending),
        (WakesDropoutModulesOnly, Attending),
        (WakesDropoutModulesOnly, transformer_net),
    ],
)
def test_that_check_fails_for_planted_bugs(
    make_trainer: MakeTrainer,
    loader: DataLoader[Any],
    mutant: type[Sampler],
    make_net: Callable[[], nn.Module],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sampled_stage, "Sampler", mutant)
    callback = MCDropout(T, task="multiclass", compare=False)
    assert not step_sees_mean_probabilities(callback, make_trainer, loader, make_net())


def test_the_spread_is_that_of_dropout(make_trainer: MakeTrainer) -> None:
    """A linear layer behind dropout: the variance of a pass is p / (1 - p) * sum (w x)², known in closed form."""
    p, num_samples = 0.3, 2000
    net = nn.Sequential(nn.Dropout(p), nn.Linear(8, 1, bias=False))
    x = torch.randn(1, 8)
    module = Plain(net)
    module.predict_step = lambda batch, batch_idx: module(batch[0])  # type: ignore[method-assign]
    trainer = make_trainer(MCDropout(num_samples, task="regression", return_uncertainty=True))
    (prediction,) = trainer.predict(module, DataLoader(TensorDataset(x)))
    parts = (net[1].weight * x).detach().double().flatten()
    variance = float(p / (1 - p) * parts.square().sum())
    fourth = 3 * variance**2 + float(parts.pow(4).sum()) * (p / (1 - p)) * (1 - 6 * p * (1 - p)) / (1 - p) ** 2
    z = (float(prediction["std"]) ** 2 - variance) / math.sqrt((fourth - variance**2) / num_samples)
    assert abs(z) < 4.71
    assert abs(float(prediction["mean"]) - float(parts.sum())) < 4.71 * math.sqrt(variance / num_samples)


def test_metrics_of_the_module_describe_the_mean(make_trainer: MakeTrainer, loader: DataLoader[Any]) -> None:
    module = Plain()
    (metrics,) = make_trainer(MCDropout(T, task="multiclass")).test(module, loader, verbose=False)
    p, y = mean_probabilities(passes(module.net, loader)), loader.dataset.tensors[1]
    nll = -p[torch.arange(10), y].log().mean()
    assert metrics["loss"] == pytest.approx(nll.item(), rel=1e-5)
    assert metrics["accuracy"] == pytest.approx((p.argmax(1) == y).double().mean().item())
    assert metrics["test/mc/nll"] == pytest.approx(metrics["loss"], rel=1e-5)
    assert metrics["test/mc/accuracy"] == pytest.approx(metrics["accuracy"])


def test_keys_and_values_of_both_sides(make_trainer: MakeTrainer, loader: DataLoader[Any]) -> None:
    module = Plain()
    (metrics,) = make_trainer(MCDropout(T, task="multiclass")).test(module, loader, verbose=False)
    x, y = loader.dataset.tensors
    outputs = passes(module.net, loader)
    sides = {"mc": mean_probabilities(outputs), "det": module.net(x).double().softmax(1)}
    expected: dict[str, float] = {}
    for side, p in sides.items():
        expected[f"{side}/accuracy"] = (p.argmax(1) == y).double().mean().item()
        expected[f"{side}/nll"] = -p[torch.arange(10), y].log().mean().item()
        expected[f"{side}/brier"] = (p - F.one_hot(y, 3)).square().sum(1).mean().item()
        expected[f"{side}/entropy"] = torch.special.entr(p).sum(1).mean().item()
        bins = (p.amax(1) * 15).long().clamp(max=14)
        gaps = [(p.amax(1) - (p.argmax(1) == y).double())[bins == b].sum().abs() / 10 for b in range(15)]
        expected[f"{side}/ece"] = sum(gaps).item()  # type: ignore[union-attr]
        for name, metric in (("aurc", AURC()), ("augrc", AUGRC()), ("accuracy_at_90", AccuracyAtCoverage(0.9))):
            expected[f"{side}/{name}"] = metric(p.amax(1), p.argmax(1) == y).item()
    single = torch.cat([torch.special.entr(o.double().softmax(-1)).sum(-1).mean(0) for o in outputs]).mean().item()
    expected["mc/mutual_information"] = expected["mc/entropy"] - single
    logged = {key.removeprefix("test/"): value for key, value in metrics.items() if key.startswith("test/")}
    assert logged == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert logged["mc/mutual_information"] > 0.001


def test_no_comparison_if_not_asked_for(make_trainer: MakeTrainer, loader: DataLoader[Any]) -> None:
    (metrics,) = make_trainer(MCDropout(T, task="multiclass", compare=False)).test(Plain(), loader, verbose=False)
    assert "test/mc/nll" in metrics
    assert not any(key.startswith("test/det/") for key in metrics)


def test_one_pass_has_no_spread(make_trainer: MakeTrainer, loader: DataLoader[Any]) -> None:
    (metrics,) = make_trainer(MCDropout(1, task="multiclass")).test(Plain(), loader, verbose=False)
    assert "test/mc/entropy" in metrics
    assert "test/mc/mutual_information" not in metrics
    predictions = make_trainer(MCDropout(1, task="multiclass", return_uncertainty=True)).predict(Plain(), loader)
    assert all(bool(batch["std"].isnan().all()) for batch in predictions)  # undefined, not 0


def test_what_is_said(make_trainer: MakeTrainer, loader: DataLoader[Any], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        make_trainer(MCDropout(T, task="multiclass")).test(Plain(), loader, verbose=False)
    said = [record.message for record in caplog.records if record.message.startswith("MCDropout")]
    assert said[0] == f"MCDropout: the test metrics of Plain describe the mean of {T} stochastic passes over 1 sites."
    assert re.fullmatch(
        r"MCDropout: \d+ of 21 passes started at their first random draw, which spared \d+ % of each, .* s in all\.",
        said[1],
    )
    assert len(said) == 2


# --- which call is sampled ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "module"),
    [(call_module, "auto"), (call_net, "auto"), (call_module, ""), (call_module, "net"), (call_net, "net")],
)
def test_whichever_module_the_step_calls(
    make_trainer: MakeTrainer, loader: DataLoader[Any], call: Call, module: str
) -> None:
    plain = Plain(call=call)
    make_trainer(MCDropout(T, task="multiclass", module=module)).test(plain, loader, verbose=False)
    expected = mean_probabilities(passes(plain.net, loader))
    torch.testing.assert_close(torch.cat(plain.seen).double().exp(), expected, atol=1e-5, rtol=1e-5)


class TwoParts(Plain):
    """Features and a head, called one after the other where a ``forward`` should be."""

    def __init__(self, call: Call, head_drops: bool) -> None:
        super().__init__(call=call)
        self.features = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5))
        self.head = (
            nn.Sequential(nn.Dropout(0.5 if head_drops else 0.0), nn.Linear(8, 3)) if head_drops else nn.Linear(8, 3)
        )
        self.net = nn.Identity()

    def forward(self, x: Tensor) -> Any:
        return self.head(self.features(x))


def call_both_parts(module: Any, x: Tensor) -> Any:
    return module.head(module.features(x))


@pytest.mark.parametrize("head_drops", [True, False])
def test_two_calls_in_a_step_are_refused(make_trainer: MakeTrainer, loader: DataLoader[Any], head_drops: bool) -> None:
    """With a head that drops nothing as well: it would go on with the mean of features taken for logits."""
    module = TwoParts(call_both_parts, head_drops)
    message = r'one module to be called in a step, but got `module="features"` and then `module="head"`'
    with pytest.raises(ValueError, match=message):
        make_trainer(MCDropout(T, task="multiclass")).test(module, loader, verbose=False)
    fine = TwoParts(call_module, head_drops)
    make_trainer(MCDropout(T, task="multiclass")).test(fine, loader, verbose=False)
    expected = mean_probabilities(passes(fine, loader))
    torch.testing.assert_close(torch.cat(fine.seen).double().exp(), expected, atol=1e-5, rtol=1e-5)


def test_the_module_and_then_its_child_are_two(make_trainer: MakeTrainer, loader: DataLoader[Any]) -> None:
    module = Plain(call=lambda module, x: module(x) + module.net(x))
    with pytest.raises(ValueError, match=r'got `module=""` and then `module="net"`'):
        make_trainer(MCDropout(T, task="multiclass")).test(module, loader, verbose=False)


def test_what_comes_before_the_sampled_call_is_free(make_trainer: MakeTrainer, loader: DataLoader[Any]) -> None:
    module = Plain(call=lambda module, x: module.net(module.scale(x)))
    module.scale = nn.Linear(4, 4)
    make_trainer(MCDropout(T, task="multiclass")).test(module, loader, verbose=False)


def call_nothing(module: Any, x: Tensor) -> Any:
    return F.linear(x, module.net[0].weight)[:, :3]


@pytest.mark.parametrize(("call", "name"), [(call_nothing, "auto"), (call_net, "")])
def test_a_step_that_calls_nothing_is_refused(
    make_trainer: MakeTrainer, loader: DataLoader[Any], call: Call, name: str
) -> None:
    with pytest.raises(ValueError, match=r"Expected the test step of Plain to call .*`module=`.*what drops: net\.2"):
        make_trainer(MCDropout(T, task="multiclass", module=name)).test(Plain(call=call), loader, verbose=False)


@pytest.mark.parametrize("name", ["nett", "accuracy", "net.0"])
def test_a_module_that_is_not_there_or_drops_nothing(
    make_trainer: MakeTrainer, loader: DataLoader[Any], name: str
) -> None:
    message = rf"Expected `module` to name a part of Plain that drops, but got '{name}'; those that do are: net"
    with pytest.raises(ValueError, match=message):
        make_trainer(MCDropout(T, task="multiclass", module=name)).test(Plain(), loader, verbose=False)


def test_a_deeper_module_by_name(make_trainer: MakeTrainer, loader: DataLoader[Any]) -> None:
    module = Plain(nn.ModuleDict({"inner": small_net()}), call=lambda module, x: module.net["inner"](x))
    with pytest.raises(ValueError, match="got no call that could be sampled"):
        make_trainer(MCDropout(T, task="multiclass")).test(module, loader, verbose=False)
    make_trainer(MCDropout(T, task="multiclass", module="net.inner")).test(module, loader, verbose=False)


def test_several_calls_of_one_module(
    make_trainer: MakeTrainer, loader: DataLoader[Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Test-time augmentation: each call is sampled with masks of its own; whose labels are meant, nobody knows."""
    module = Plain(call=lambda module, x: (module(x) + module(x.clone())) / 2)
    with caplog.at_level("INFO"):
        (metrics,) = make_trainer(MCDropout(T, task="multiclass")).test(module, loader, verbose=False)
    assert "called several times in a step; keys that need labels are left out" in caplog.text
    assert {key for key in metrics if key.startswith("test/mc")} == {"test/mc/entropy", "test/mc/mutual_information"}
    single = mean_probabilities(passes(module.net, loader)).log()
    assert not torch.allclose(torch.cat(module.seen).double(), single)
    with pytest.raises(ValueError, match=r"Expected one call in a predict step.*but got 2"):
        make_trainer(MCDropout(T, task="multiclass", return_uncertainty=True)).predict(module, loader)


# --- labels ---------------------------------------------------------------------------------------------------------


class DictData(Dataset[Any]):
    """Batches are dictionaries."""

    def __init__(self, data: TensorDataset, key: str) -> None:
        self.data, self.key = data, key

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        x, y = self.data[index]
        return {"x": x, self.key: y}


@pytest.mark.parametrize("key", ["labels", "label", "y", "target"])
def test_labels_are_found_in_dictionaries(make_trainer: MakeTrainer, data: TensorDataset, key: str) -> None:
    plain, keyed = DataLoader(data, batch_size=4), DataLoader(DictData(data, key), batch_size=4)
    module = Plain()
    expected = make_trainer(MCDropout(T, task="multiclass")).test(module, plain, verbose=False)
    assert make_trainer(MCDropout(T, task="multiclass")).test(module, keyed, verbose=False) == expected


def third(batch: Any) -> Any:
    return batch["other"]


@pytest.mark.parametrize("labels", ["other", third])
def test_labels_by_path_or_function(make_trainer: MakeTrainer, data: TensorDataset, labels: Any) -> None:
    keyed = DataLoader(DictData(data, "other"), batch_size=4)
    (metrics,) = make_trainer(MCDropout(T, task="multiclass", labels=labels)).test(Plain(), keyed, verbose=False)
    (auto,) = make_trainer(MCDropout(T, task="multiclass")).test(Plain(), keyed, verbose=False)
    assert "test/mc/nll" in metrics
    assert "test/mc/nll" not in auto


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("0", r"Expected `labels` to lead to the targets of task=\"multiclass\", but got \(4, 4\)"),
        ("2", r"Expected `labels` to be a path into the batch, but got '2', which ends at '2'; the batch is a list"),
        ("y", r"Expected `labels` to be a path into the batch, but got 'y'"),
        (lambda batch: None, r"but got NoneType for predictions of shape \(4, 3\)"),
        (lambda batch: batch[1] + 1, r"Expected labels from 0 to 2 for 3 classes, .* but got 3"),
        (lambda batch: batch[1].float(), r"Expected `labels` to lead to the targets"),
    ],
)
def test_labels_that_lead_nowhere(
    make_trainer: MakeTrainer, loader: DataLoader[Any], labels: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_trainer(MCDropout(T, task="multiclass", labels=labels)).test(Plain(), loader, verbose=False)


def test_without_labels_the_keys_that_need_none(
    make_trainer: MakeTrainer, data: TensorDataset, caplog: pytest.LogCaptureFixture
) -> None:
    strange = DataLoader(TensorDataset(data.tensors[0], torch.full((10,), -1.0)), batch_size=4)
    module = Plain()
    module.test_step = lambda batch, batch_idx: module.seen.append(module(batch[0]))  # type: ignore[method-assign]
    with caplog.at_level("INFO"):
        (metrics,) = make_trainer(MCDropout(T, task="multiclass")).test(module, strange, verbose=False)
    assert metrics.keys() == {"test/mc/entropy", "test/mc/mutual_information", "test/det/entropy"}
    assert caplog.text.count("found no labels in the batch; pass `labels=`") == 1


def test_labels_of_some_batches_make_no_score(make_trainer: MakeTrainer, data: TensorDataset) -> None:
    x, y = data.tensors
    partly = DataLoader([(x[:8], y[:8]), (x[8:], torch.full((2,), -1.0))], batch_size=None)  # type: ignore[arg-type]
    module = Plain()
    module.test_step = lambda batch, batch_idx: module.seen.append(module(batch[0]))  # type: ignore[method-assign]
    (metrics,) = make_trainer(MCDropout(T, task="multiclass")).test(module, partly, verbose=False)
    assert "test/mc/accuracy" not in metrics  # of 8 of 10 samples, it would pass for one of all
    assert "test/mc/entropy" in metrics


def test_numbers_that_are_no_labels(
    make_trainer: MakeTrainer, data: TensorDataset, caplog: pytest.LogCaptureFixture
) -> None:
    """A guess that takes the numbers of the samples for labels must not pass in silence."""
    numbered = DataLoader(TensorDataset(data.tensors[0], torch.arange(10)), batch_size=4)
    module = Plain()
    module.test_step = lambda batch, batch_idx: module.seen.append(module(batch[0]))  # type: ignore[method-assign]
    for labels in ("auto", None):
        caplog.clear()
        with caplog.at_level("INFO"):
            (metrics,) = make_trainer(MCDropout(T, task="multiclass", labels=labels)).test(
                module, numbered, verbose=False
            )
        assert metrics.keys() == {"test/mc/entropy", "test/mc/mutual_information", "test/det/entropy"}
        said = (
            "left out. Expected labels from 0 to 2 for 3 classes, or -100 for what is to be left out, but got 3; pass"
        )
        assert caplog.text.count(said) == (labels == "auto")
        assert "found no labels" not in caplog.text


@pytest.mark.parametrize("labels", ["auto", "1"])
def test_ignored_labels_are_left_out(make_trainer: MakeTrainer, data: TensorDataset, labels: str) -> None:
    """A step whose loss ignores them, too, comes to the same number."""
    x, y = data.tensors
    y = y.clone()
    y[1::3] = -100
    y[4:8] = -100  # the second batch
    kept = y != -100

    class Ignoring(Plain):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.seen.append(self(batch[0]))

    module, loader = Ignoring(), DataLoader(TensorDataset(x, y), batch_size=4)
    (metrics,) = make_trainer(MCDropout(T, task="multiclass", labels=labels)).test(module, loader, verbose=False)
    logs = torch.cat(module.seen)
    assert metrics["test/mc/nll"] == pytest.approx(F.cross_entropy(logs, y).item(), rel=1e-5)
    right = (logs.argmax(1) == y)[kept].float().mean().item()
    assert metrics["test/mc/accuracy"] == pytest.approx(right)
    nothing = DataLoader(TensorDataset(x, torch.full((10,), -100)), batch_size=4)
    (metrics,) = make_trainer(MCDropout(T, task="multiclass", labels=labels)).test(module, nothing, verbose=False)
    assert metrics.keys() == {"test/mc/entropy", "test/mc/mutual_information", "test/det/entropy"}


class CopiesInAStep(Plain):
    """As those do who keep a moving average, or write a model while it is tested."""

    def test_step(self, batch: Any, batch_idx: int) -> None:
        whole, net = copy.deepcopy(self), copy.deepcopy(self.net)
        with torch.no_grad():
            for weights in (*whole.parameters(), *net.parameters()):
                weights.zero_()
        assert not whole(batch[0]).any()
        assert not net(batch[0]).any()
        assert not any("forward" in vars(part) for part in (*whole.modules(), *net.modules()))
        assert self(batch[0]).any()
        assert "forward" in vars(self)


def test_a_copy_made_in_a_step_is_a_module_of_its_own(make_trainer: MakeTrainer, loader: DataLoader[Any]) -> None:
    (metrics,) = make_trainer(MCDropout(T, task="multiclass")).test(CopiesInAStep(), loader, verbose=False)
    assert "test/mc/nll" in metrics


def test_each_loader_has_its_own_keys(make_trainer: MakeTrainer, data: TensorDataset) -> None:
    x, y = data.tensors
    loaders = [DataLoader(data, batch_size=4), DataLoader(TensorDataset(x, (y + 1) % 3), batch_size=5)]
    module = Plain()
    first, second = make_trainer(MCDropout(T, task="multiclass")).test(module, loaders, verbose=False)
    together = first | second
    p = mean_probabilities(passes(module.net, loaders[0]))
    assert together["test/mc/nll"] == pytest.approx(-p[torch.arange(10), y].log().mean().item(), rel=1e-5)
    p = mean_probabilities(passes(module.net, loaders[1], dataloader_idx=1))
    nll = -p[torch.arange(10), (y + 1) % 3].log().mean().item()
    assert together["test/mc/nll/dataloader_idx_1"] == pytest.approx(nll, rel=1e-5)
    assert "test/det/accuracy/dataloader_idx_1" in together


# --- predict --------------------------------------------------------------------------------------------------------


def test_plain_predict_keeps_its_type(make_trainer: MakeTrainer, loader: DataLoader[Any]) -> None:
    module = Plain()
    predictions = make_trainer(MCDropout(T, task="multiclass")).predict(module, loader)
    assert [type(batch) for batch in predictions] == [Tensor] * 3
    expected = mean_probabilities(passes(module.net, loader))
    torch.testing.assert_close(torch.cat(predictions).double().exp(), expected, atol=1e-5, rtol=1e-5)


class Writer(BasePredictionWriter):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__("batch_and_epoch")
        self.batches: list[Any] = []
        self.epoch: Any = None

    def write_on_batch_end(self, trainer: Any, pl_module: Any, prediction: Any, *args: Any) -> None:
        self.batches.append(prediction)

    def write_on_epoch_end(self, trainer: Any, pl_module: Any, predictions: Any, *args: Any) -> None:
        self.epoch = predictions


def test_predict_returns_uncertainty(make_trainer: MakeTrainer, loader: DataLoader[Any]) -> None:
    module, writer = Plain(), Writer()
    predictions = make_trainer(MCDropout(T, task="multiclass", return_uncertainty=True), writer).predict(module, loader)
    outputs = [logits.softmax(-1) for logits in passes(module.net, loader)]
    for batch, samples in zip(predictions, outputs, strict=True):
        assert batch.keys() == {"prediction", "mean", "std", "entropy", "mutual_information"}
        torch.testing.assert_close(batch["mean"], samples.mean(0))
        torch.testing.assert_close(batch["std"], samples.std(0))
        torch.testing.assert_close(batch["prediction"].exp(), samples.mean(0))
        torch.testing.assert_close(batch["entropy"], torch.special.entr(samples.mean(0)).sum(1))
    for written in (writer.batches, writer.epoch):
        for one, other in zip(written, predictions, strict=True):
            assert one.keys() == other.keys()
            assert torch.equal(one["std"], other["std"])
    assert "predict_step" not in module.__dict__


def test_a_predict_step_may_leave_out_the_index(make_trainer: MakeTrainer, loader: DataLoader[Any]) -> None:
    class Short(Plain):
        def predict_step(self, batch: Any) -> Any:  # type: ignore[override]
            return self(batch[0])

    trainer = make_trainer(MCDropout(T, task="multiclass", return_uncertainty=True))
    assert "std" in trainer.predict(Short(), loader)[0]


def test_predict_over_two_loaders(make_trainer: MakeTrainer, loader: DataLoader[Any]) -> None:
    trainer = make_trainer(MCDropout(T, task="multiclass", return_uncertainty=True))
    first, second = trainer.predict(Plain(), [loader, loader])
    assert len(first) == len(second) == 3
    assert not torch.equal(first[0]["mean"], second[0]["mean"])  # other masks


# --- which rates ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", ["before", "after"])
@pytest.mark.parametrize(("rates", "sampled"), [("trained", 0.25), ("base", 0.5), (0.75, 0.75)])
def test_which_rates_are_sampled(
    make_trainer: MakeTrainer, loader: DataLoader[Any], rates: Any, sampled: float, position: str
) -> None:
    module = Plain()
    used: list[float] = []
    module.net[2].register_forward_hook(lambda layer, args, output: used.append(layer.p) if layer.training else None)
    callbacks = [DropoutScheduler(rate=0.25), MCDropout(T, task="multiclass", rates=rates)]
    trainer = make_trainer(*(reversed(callbacks) if position == "before" else callbacks), max_epochs=1)
    trainer.fit(module, loader)
    used.clear()
    for stage in (trainer.test, trainer.predict):
        stage(module, loader)
        assert set(used) == {sampled}
        assert module.net[2].p == 0.5
        used.clear()


def test_rates_of_the_checkpoint(make_trainer: MakeTrainer, loader: DataLoader[Any], tmp_path: Path) -> None:
    trainer = make_trainer(DropoutScheduler(rate=Linear(0.0, 0.9)), max_epochs=1)
    trainer.fit(Plain(), loader)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    module = Plain()
    used: list[float] = []
    module.net[2].register_forward_hook(lambda layer, args, output: used.append(layer.p) if layer.training else None)
    fresh = make_trainer(MCDropout(T, task="multiclass"), DropoutScheduler(rate=Linear(0.0, 0.9)))
    fresh.test(module, loader, ckpt_path=tmp_path / "end.ckpt", verbose=False)
    assert set(used) == {0.9 * 2 / 3}


@pytest.mark.parametrize("first", ["scheduler", "sampler"])
@pytest.mark.parametrize(
    "schedule",
    [{"rate": Early(0.5, until=0.5)}, {"scale": Linear(1.0, 0.0)}, {"rate": Early(0.5, 1.0), "total": "2step"}],
)
def test_a_schedule_that_ends_at_0_is_refused_at_the_start_of_the_fit(
    make_trainer: MakeTrainer, loader: DataLoader[Any], first: str, schedule: Any
) -> None:
    def run(rates: Any) -> None:
        callbacks: list[Any] = [DropoutScheduler(**schedule), MCDropout(T, task="multiclass", rates=rates)]
        trainer = make_trainer(*(callbacks if first == "scheduler" else callbacks[::-1]), max_epochs=1)
        trainer.fit(module, loader)
        trainer.test(module, loader, verbose=False)

    module = Plain()
    before = module.net[0].weight.clone()
    with pytest.raises(ValueError, match=r"Expected rates above 0 at the end of training.*`rates=\"base\"`"):
        run("trained")
    assert torch.equal(module.net[0].weight, before)
    run("base")
    run(0.1)


def test_a_schedule_cut_off_by_the_end_of_the_run_is_fine(make_trainer: MakeTrainer, loader: DataLoader[Any]) -> None:
    module = Plain()
    trainer = make_trainer(
        DropoutScheduler(rate=Linear(0.5, 0.0), end="2ep"), MCDropout(T, task="multiclass"), max_epochs=1
    )
    trainer.fit(module, loader)
    trainer.test(module, loader, verbose=False)


def test_a_fast_dev_run_is_tried_through_although_its_one_rate_was_0(
    make_trainer: MakeTrainer, loader: DataLoader[Any]
) -> None:
    module = Plain()
    callbacks = DropoutScheduler(rate=Linear(0.0, 0.5)), MCDropout(T, task="multiclass")
    trainer = make_trainer(*callbacks, fast_dev_run=True)
    trainer.fit(module, loader)
    trainer.test(module, loader, verbose=False)


@pytest.mark.parametrize("stage", ["fit", "test"])
def test_models_without_a_rate_are_refused(make_trainer: MakeTrainer, loader: DataLoader[Any], stage: str) -> None:
    def run(net: nn.Module, **arguments: Any) -> None:
        trainer = make_trainer(MCDropout(T, task="multiclass", **arguments), max_epochs=1)
        getattr(trainer, stage)(Plain(net), loader)

    for rates in ("trained", "base"):
        with pytest.raises(ValueError, match=r"Expected .* above 0"):
            run(nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.0)), rates=rates)
    with pytest.raises(ValueError, match="drop somewhere, but got no site"):
        run(nn.Linear(4, 3))
    only_paths = nn.Sequential(nn.Linear(4, 3), DropPath(0.5))
    with pytest.raises(ValueError, match="what matches is of kind drop_path"):
        run(only_paths)
    run(only_paths, kinds=["drop_path"])


# --- the other stages -----------------------------------------------------------------------------------------------


def test_validate_of_its_own(make_trainer: MakeTrainer, loader: DataLoader[Any]) -> None:
    module = Plain()
    (plain,) = make_trainer(MCDropout(T, task="multiclass")).validate(module, loader, verbose=False)
    assert not any("mc" in key for key in plain)
    callback = MCDropout(T, task="multiclass", stages=["validate"])
    (sampled,) = make_trainer(callback).validate(module, loader, verbose=False)
    (tested,) = make_trainer(MCDropout(T, task="multiclass")).test(module, loader, verbose=False)
    assert sampled["val/mc/nll"] == tested["test/mc/nll"]
    assert sampled["loss"] == tested["loss"]
    (untested,) = make_trainer(callback).test(module, loader, verbose=False)
    assert not any("mc" in key for key in untested)


def test_a_fit_with_its_validations_is_left_alone(make_trainer: MakeTrainer, loader: DataLoader[Any]) -> None:
    class Watch(Callback):
        def on_validation_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            assert not pl_module.net[2].training

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            assert "forward" not in pl_module.__dict__

    runs = []
    for callbacks in ([], [MCDropout(T, task="multiclass", stages=["test", "validate"]), Watch()]):
        torch.manual_seed(0)
        module = Plain()
        trainer = make_trainer(*callbacks, max_epochs=2, num_sanity_val_steps=1)
        trainer.fit(module, loader, loader)
        runs.append((module, trainer.callback_metrics, torch.get_rng_state()))
    (one, metrics, state), (other, other_metrics, other_state) = runs
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert metrics == other_metrics
    assert torch.equal(state, other_state)


# --- giving back ----------------------------------------------------------------------------------------------------


# What an error leaves behind is in test_leaks.py.


def test_a_forward_that_the_user_has_replaced_is_put_back(make_trainer: MakeTrainer, loader: DataLoader[Any]) -> None:
    module = Plain()
    own = module.net.forward
    module.forward = own  # type: ignore[method-assign]
    make_trainer(MCDropout(T, task="multiclass")).test(module, loader, verbose=False)
    assert module.__dict__["forward"] is own


def test_a_checkpoint_written_after_a_test_is_the_one_before(
    make_trainer: MakeTrainer, loader: DataLoader[Any], tmp_path: Path
) -> None:
    module = Plain()
    trainer = make_trainer(DropoutScheduler(rate=0.25), MCDropout(T, task="multiclass", rates=0.75), max_epochs=1)
    trainer.fit(module, loader)
    trainer.save_checkpoint(tmp_path / "before.ckpt")
    trainer.test(module, loader, verbose=False)
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    before, after = (torch.load(tmp_path / f"{name}.ckpt", weights_only=True) for name in ("before", "after"))
    assert before["callbacks"] == after["callbacks"]
    assert before["state_dict"].keys() == after["state_dict"].keys()
    assert all(torch.equal(value, after["state_dict"][name]) for name, value in before["state_dict"].items())


# --- randomness -----------------------------------------------------------------------------------------------------


def predictions_of(make_trainer: MakeTrainer, module: Plain, loader: DataLoader[Any], **arguments: Any) -> Tensor:
    callback = MCDropout(T, task="multiclass", return_uncertainty=True, **arguments)
    return torch.cat([batch["mean"] for batch in make_trainer(callback).predict(module, loader)])


def test_runs_repeat_and_batches_differ(make_trainer: MakeTrainer) -> None:
    same = DataLoader(TensorDataset(torch.ones(4, 4)), batch_size=1)
    module = Plain()
    first = predictions_of(make_trainer, module, same)
    torch.manual_seed(99)  # whatever the global state
    assert torch.equal(first, predictions_of(make_trainer, module, same))
    assert len(first.unique(dim=0)) == 4
    assert not torch.equal(first, predictions_of(make_trainer, module, same, seed=1))


def test_shared_masks_are_one_set_for_all_data(make_trainer: MakeTrainer, data: TensorDataset) -> None:
    module = Plain()
    first = predictions_of(make_trainer, module, DataLoader(data, batch_size=10), masks="shared")
    for batch_size in (1, 3, 7):
        others = predictions_of(make_trainer, module, DataLoader(data, batch_size), masks="shared")
        torch.testing.assert_close(first, others, rtol=1e-5, atol=1e-7)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    turned = TensorDataset(*(tensor[order] for tensor in data.tensors))
    others = predictions_of(make_trainer, module, DataLoader(turned, batch_size=4), masks="shared")
    torch.testing.assert_close(first[order], others, rtol=1e-5, atol=1e-7)
    both = MCDropout(T, task="multiclass", masks="shared", return_uncertainty=True)
    one, other = make_trainer(both).predict(module, [DataLoader(data, batch_size=10)] * 2)
    assert torch.equal(one[0]["mean"], other[0]["mean"])
    assert not torch.equal(first, predictions_of(make_trainer, module, DataLoader(data, batch_size=10)))
    seeded = predictions_of(make_trainer, module, DataLoader(data, batch_size=10), masks="shared", seed=1)
    assert not torch.equal(first, seeded)


def test_folded_passes(make_trainer: MakeTrainer, data: TensorDataset) -> None:
    """Shared masks do not know how many run at a time; independent ones are others, of the same law."""
    module, loader = Plain(), DataLoader(data, batch_size=4)
    one, several = (
        predictions_of(make_trainer, module, loader, masks="shared", chunk_size=chunk_size) for chunk_size in (1, 3)
    )
    torch.testing.assert_close(one, several, rtol=1e-5, atol=1e-7)
    calls: list[int] = []
    module.net[2].register_forward_hook(lambda layer, args, output: calls.append(len(output)))
    folded = predictions_of(make_trainer, module, loader, chunk_size=T)
    assert calls == [4 * T, 4 * T, 2 * T]
    assert torch.equal(folded, predictions_of(make_trainer, module, loader, chunk_size=T))
    assert not torch.equal(folded, predictions_of(make_trainer, module, loader))


# --- kinds of models and outputs ------------------------------------------------------------------------------------


def test_bf16_mixed(make_trainer: MakeTrainer, loader: DataLoader[Any]) -> None:
    net = small_net()
    exact, rough = Plain(net), Plain(net)
    (wide,) = make_trainer(MCDropout(T, task="multiclass")).test(exact, loader, verbose=False)
    (mixed,) = make_trainer(MCDropout(T, task="multiclass"), precision="bf16-mixed").test(rough, loader, verbose=False)
    assert net(loader.dataset.tensors[0]).dtype == torch.float32
    assert rough.seen[0].dtype == torch.float32
    assert not torch.equal(exact.seen[0], rough.seen[0])  # autocast reached the passes
    for key in ("test/mc/nll", "test/det/nll", "test/mc/mutual_information"):
        assert mixed[key] == pytest.approx(wide[key], rel=0.03)


def test_bf16_true(make_trainer: MakeTrainer, loader: DataLoader[Any]) -> None:
    module = Plain(nn.Sequential(small_net(), nn.Softmax(1)))
    module.test_step = lambda batch, batch_idx: module.seen.append(module(batch[0]))  # type: ignore[method-assign]
    (metrics,) = make_trainer(MCDropout(T, task="probabilities"), precision="bf16-true").test(
        module, loader, verbose=False
    )
    assert 0 < metrics["test/mc/nll"] < 3


def test_batch_norm_keeps_its_buffers(make_trainer: MakeTrainer, loader: DataLoader[Any]) -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    with torch.no_grad():
        net(torch.randn(16, 4))
    before = [buffer.clone() for buffer in net.buffers()]
    one_by_one = DataLoader(loader.dataset, batch_size=1)
    make_trainer(MCDropout(T, task="multiclass")).test(Plain(net), one_by_one, verbose=False)
    assert all(torch.equal(a, b) for a, b in zip(before, net.buffers(), strict=True))


def test_normalisation_that_learns_in_a_test_is_refused_and_undone(
    make_trainer: MakeTrainer, loader: DataLoader[Any]
) -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))

    class Wakes(Plain):
        def on_test_epoch_start(self) -> None:
            self.net[1].train()

    before = [buffer.clone() for buffer in net.buffers()]
    with pytest.raises(RuntimeError, match=r"changed buffer `net\.1\.running_mean`"):
        make_trainer(MCDropout(T, task="multiclass", compare=False)).test(Wakes(net), loader, verbose=False)
    assert all(torch.equal(a, b) for a, b in zip(before, net.buffers(), strict=True))


@pytest.mark.parametrize("style", ["child", "in place", "forward"])
def test_compiled_parts(make_trainer: MakeTrainer, loader: DataLoader[Any], style: str) -> None:
    torch._dynamo.reset()
    net = small_net()
    module = Plain(net, call=call_net)
    if style == "child":
        module.net = torch.compile(net, backend="eager")  # type: ignore[assignment]
    elif style == "in place":
        net.compile(backend="eager")
    else:
        net.forward = torch.compile(net.forward, backend="eager")  # type: ignore[method-assign]
    make_trainer(MCDropout(T, task="multiclass")).test(module, loader, verbose=False)
    expected = mean_probabilities(passes(net, loader))
    torch.testing.assert_close(torch.cat(module.seen).double().exp(), expected, atol=1e-5, rtol=1e-5)


def test_a_compiled_module(make_trainer: MakeTrainer, loader: DataLoader[Any]) -> None:
    torch._dynamo.reset()
    module = Plain()
    make_trainer(MCDropout(T, task="multiclass")).test(torch.compile(module, backend="eager"), loader, verbose=False)
    expected = mean_probabilities(passes(module.net, loader))
    torch.testing.assert_close(torch.cat(module.seen).double().exp(), expected, atol=1e-5, rtol=1e-5)


class Gaussian(nn.Module):
    """A mean and a log-variance."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)  # type: ignore[no-any-return]


def test_gaussian_with_the_regressor(make_trainer: MakeTrainer, data: TensorDataset) -> None:
    loader = DataLoader(TensorDataset(data.tensors[0], data.tensors[0].sum(1)), batch_size=4)
    module = Regressor(Gaussian(), num_outputs=1)
    (metrics,) = make_trainer(MCDropout(T, task="gaussian")).test(module, loader, verbose=False)
    mean, log_variance = torch.cat(passes(module.net, loader), dim=1).double().unbind(-1)
    noise, spread = log_variance.exp().mean(0), mean.var(0, correction=0)
    y = loader.dataset.tensors[1].double()
    total = torch.distributions.Normal(mean.mean(0), (noise + spread).sqrt())
    expected = {
        "mc/nll": -total.log_prob(y).mean().item(),
        "mc/rmse": (mean.mean(0) - y).square().mean().sqrt().item(),
        "mc/aleatoric_variance": noise.mean().item(),
        "mc/epistemic_variance": spread.mean().item(),
    }
    assert {key: metrics[f"test/{key}"] for key in expected} == pytest.approx(expected, rel=1e-4)
    assert metrics["test/loss"] == pytest.approx(metrics["test/mc/nll"], rel=1e-5)
    assert metrics["test/rmse"] == pytest.approx(metrics["test/mc/rmse"], rel=1e-5)
    assert metrics["test/mc/mae"] > 0
    predictions = make_trainer(MCDropout(T, task="gaussian", return_uncertainty=True)).predict(module, loader)
    assert predictions[0].keys() == {"prediction", "mean", "std", "aleatoric_variance", "epistemic_variance"}


def test_the_classifier_of_this_package(make_trainer: MakeTrainer, loader: DataLoader[Any]) -> None:
    module = Classifier(small_net(), num_classes=3)
    (metrics,) = make_trainer(MCDropout(T, task="multiclass")).test(module, loader, verbose=False)
    assert metrics["test/loss"] == pytest.approx(metrics["test/mc/nll"], rel=1e-5)
    assert metrics["test/accuracy"] == metrics["test/mc/accuracy"]
    predictions = torch.cat(make_trainer(MCDropout(T, task="multiclass")).predict(module, loader))
    torch.testing.assert_close(
        predictions.double(), mean_probabilities(passes(module.net, loader)), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (lambda logits: logits.softmax(1), 'outputs that sum to 1; pass task="probabilities"'),
        (lambda logits: logits[:, :1], 'at least two classes.*pass task="binary"'),
    ],
)
def test_outputs_that_cannot_be_averaged_are_refused(
    make_trainer: MakeTrainer, loader: DataLoader[Any], outputs: Any, message: str
) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = small_net()

        def forward(self, x: Tensor) -> Any:
            return outputs(self.body(x))

    with pytest.raises(ValueError, match=message):
        make_trainer(MCDropout(T, task="multiclass")).test(Plain(Wrapped()), loader, verbose=False)


class Functional(nn.Module):
    """Reads the rate of a child that it never calls, as fused attentions do."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.head = Dropout(0.5), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Any:
        return self.head(F.dropout(x, self.drop.p, self.training))


class Unused(Functional):
    def forward(self, x: Tensor) -> Any:
        return self.head(x)


def test_functional_dropout_is_sampled(make_trainer: MakeTrainer, loader: DataLoader[Any]) -> None:
    callback = MCDropout(T, task="multiclass")
    (metrics,) = make_trainer(callback).test(Plain(Functional()), loader, verbose=False)
    assert metrics["test/mc/mutual_information"] > 0


def test_dropout_that_is_never_reached_is_no_silent_zero(make_trainer: MakeTrainer, loader: DataLoader[Any]) -> None:
    with pytest.raises(RuntimeError, match=r"Expected passes that differ.*net\.drop"):
        make_trainer(MCDropout(T, task="multiclass")).test(Plain(Unused()), loader, verbose=False)


@pytest.mark.parametrize("package", [lightning.pytorch, pytorch_lightning])
def test_both_packages(make_trainer: MakeTrainer, make_recorder: Any, loader: DataLoader[Any], package: Any) -> None:
    module = make_recorder(small_net(), package=package)
    trainer = make_trainer(MCDropout(T, task="multiclass", return_uncertainty=True), package=package, max_epochs=1)
    trainer.fit(module, loader)
    (metrics,) = trainer.test(module, loader, verbose=False)
    assert metrics["test/mc/mutual_information"] > 0
    assert "std" in trainer.predict(module, loader)[0]


def test_the_callback_and_the_function_agree_in_law(make_trainer: MakeTrainer, data: TensorDataset) -> None:
    """With many passes, means within their standard errors of those of ``mc_sample``, which has other seeds."""
    num_samples, module = 1000, Plain()
    loader = DataLoader(data, batch_size=10)
    callback = MCDropout(num_samples, task="multiclass", return_uncertainty=True)
    (batch,) = make_trainer(callback).predict(module, loader)
    other = mc_sample(module.net, data.tensors[0], num_samples=num_samples, task="multiclass", seed=5)
    z = (batch["mean"] - other.mean) / (other.std * math.sqrt(2 / num_samples))
    assert z.abs().max() < 4.71
    torch.testing.assert_close(batch["std"], other.std, rtol=0.2, atol=0)


# --- arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 0}, r"Expected `num_samples` to be a whole number of passes, at least 1, but got 0"),
        ({"num_samples": 2.5}, r"Expected `num_samples`.*got 2\.5"),
        ({"task": "classification"}, "Expected `task` to be one of binary, multiclass"),
        ({"stages": "test"}, r"Expected `stages` to list some of test, predict, validate, but got 'test'"),
        ({"stages": ["fit"]}, "Expected `stages` to list some of"),
        ({"stages": []}, "Expected `stages` to list some of"),
        ({"rates": "last"}, "Expected `rates` to be a probability of dropping"),
        ({"rates": 1.5}, r"Expected `rates` to be a probability of dropping.*1\.5"),
        ({"rates": 0.0}, "Expected `rates` above 0"),
        ({"seed": 0.5}, "Expected `seed` to be a whole number"),
        ({"masks": "same"}, "Expected `masks` to be one of"),
        ({"chunk_size": 0}, "Expected `chunk_size` to be a whole number of passes, at least 1, but got 0"),
        ({"output": ""}, "Expected `output` to be a dotted path into the model's output, but got ''"),
        ({"output": third}, "Expected `output` to be a dotted path"),
    ],
)
def test_impossible_arguments_are_refused_at_construction(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MCDropout(**{"task": "multiclass", **arguments})


def test_the_task_has_no_default() -> None:
    with pytest.raises(TypeError, match="task"):
        MCDropout()  # type: ignore[call-arg]

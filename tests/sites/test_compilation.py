"""What ``torch.compile`` makes of a rate: the law of lent layers, that they stay what they are, and how many graphs.

The checks of laws take any layer, so that the original passes them as a control and planted bugs must fail. Each throws
up to a million coins from a fixed seed; under fresh seeds its chance of a false alarm is about 2.5e-6.
"""

import ast
import copy
import importlib.util
import inspect
import pickle
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from math import sqrt
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch
import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from lightning.pytorch.utilities.compile import from_compiled, to_uncompiled
from scipy import stats
from torch import Tensor, nn
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch._dynamo.testing import CompileCounterWithBackend
from torch.optim.swa_utils import AveragedModel

from lightning_dropout.nn import AttentionDropout, Dropout, DropPath
from lightning_dropout.sites import (
    Site,
    TensorRates,
    User,
    allow_graphs,
    audit,
    compiled_roots,
    find_sites,
    has_tensor_form,
)
from lightning_dropout.sites.compilation import _FORMS

CPU = torch.device("cpu")
# Torch's opinion of what it does with three dimensions; and its compiler's look at inputs that other blocks made.
pytestmark = [
    pytest.mark.filterwarnings("ignore:dropout2d. Received a 3D input to dropout2d"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]
Z_LIMIT = 4.71
P_LIMIT = 2.5e-6  # the same limit as a two-sided p-value
SATURATION = -1.7580993408473766  # of SELU: what alpha dropout puts in place of a dropped value, before it scales


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()


def lend(model: nn.Module, device: torch.device = CPU) -> TensorRates:
    return TensorRates(find_sites(model), device)


# The layers that have a tensor form.


def of_timm(p: float, **options: Any) -> nn.Module:
    layers = pytest.importorskip("timm.layers", reason="needs timm, an optional library")
    layer: nn.Module = layers.DropPath(p, **options)
    return layer


def of_torchvision(p: float, mode: str) -> nn.Module:
    ops = pytest.importorskip("torchvision.ops", reason="needs torchvision, an optional library")
    layer: nn.Module = ops.StochasticDepth(p, mode)
    return layer


def of_transformers(p: float) -> nn.Module:
    models = pytest.importorskip("transformers.models", reason="needs transformers, an optional library")
    layer: nn.Module = models.beit.modeling_beit.BeitDropPath(p)
    return layer


@dataclass(frozen=True)
class Layer:
    """A layer that can be lent a tensor, and which values of its input share a coin (1: along that dimension)."""

    build: Callable[[float], nn.Module]
    x: tuple[int, ...]
    coins: tuple[int, ...]
    nan_at_one: bool = False

    @property
    def calls(self) -> int:
        coins_per_call = torch.Size(self.coins).numel()
        return 1_000_000 // coins_per_call if coins_per_call > 1 else 4_000

    @property
    def one_value_per_coin(self) -> tuple[slice, ...]:
        return tuple(slice(size) for size in self.coins)


ELEMENT = ((500, 20, 10), (500, 20, 10))
CHANNEL_1D = ((500, 20, 3), (500, 20, 1))
CHANNEL_2D = ((500, 20, 3, 2), (500, 20, 1, 1))
CHANNEL_3D = ((500, 20, 1, 3, 2), (500, 20, 1, 1, 1))
ROW = ((10_000, 3, 2), (10_000, 1, 1))
BATCH = ((4, 2), (1, 1))

LAYERS: dict[str, Layer] = {
    "Dropout": Layer(nn.Dropout, *ELEMENT),
    "Dropout1d": Layer(nn.Dropout1d, *CHANNEL_1D),
    "Dropout1d without a batch": Layer(nn.Dropout1d, (10_000, 3), (10_000, 1)),
    "Dropout2d": Layer(nn.Dropout2d, *CHANNEL_2D),
    "Dropout2d of sequences": Layer(nn.Dropout2d, *CHANNEL_1D),
    "Dropout3d": Layer(nn.Dropout3d, *CHANNEL_3D),
    "Dropout3d without a batch": Layer(nn.Dropout3d, (10_000, 2, 3, 2), (10_000, 1, 1, 1)),
    "AlphaDropout": Layer(nn.AlphaDropout, *ELEMENT),
    "FeatureAlphaDropout": Layer(nn.FeatureAlphaDropout, *CHANNEL_2D),
    "our Dropout": Layer(Dropout, *ELEMENT),
    "our Dropout of channels": Layer(partial(Dropout, granularity="channel"), *CHANNEL_2D),
    "our Dropout shared": Layer(partial(Dropout, shared_over_batch=True), (3, 1000, 10), (1, 1000, 10)),
    "our DropPath": Layer(DropPath, *ROW),
    "our DropPath of batches": Layer(partial(DropPath, mode="batch"), *BATCH),
    "our DropPath without a scale": Layer(partial(DropPath, scale_by_keep=False), *ROW),
    "timm's DropPath": Layer(of_timm, *ROW),
    "timm's DropPath without a scale": Layer(partial(of_timm, scale_by_keep=False), *ROW),
    "torchvision's StochasticDepth of rows": Layer(partial(of_torchvision, mode="row"), *ROW),
    "torchvision's StochasticDepth of batches": Layer(partial(of_torchvision, mode="batch"), *BATCH),
    "transformers' DropPath": Layer(of_transformers, *ROW, nan_at_one=True),
}
IN_PLACE = {
    "Dropout": nn.Dropout,
    "Dropout1d": nn.Dropout1d,
    "Dropout1d without a batch": nn.Dropout1d,
    "Dropout2d": nn.Dropout2d,
    "Dropout3d": nn.Dropout3d,
    "Dropout3d without a batch": nn.Dropout3d,
    "AlphaDropout": nn.AlphaDropout,
    "FeatureAlphaDropout": nn.FeatureAlphaDropout,
}
Drop = Callable[[Tensor], Tensor]


def small(name: str) -> tuple[int, ...]:
    return tuple(min(size, 8) for size in LAYERS[name].x)


def test_every_form_is_in_the_table() -> None:
    classes = {type(layer.build(0.5)) for layer in LAYERS.values()}
    names = {f"{cls.__module__}.{cls.__qualname__}" for cls in classes}
    for key in _FORMS:
        assert key in classes if isinstance(key, type) else any(fnmatchcase(name, key) for name in names)


# Laws. A layer that sees ones returns two values; which two, how often, and what shares a coin is its whole law.


def two_values(layer: str, p: float) -> tuple[float, float]:
    """Return what a kept and a dropped one become, by the formulas of the papers."""
    if "Alpha" in layer:
        scale = ((1 - p) * (1 + p * SATURATION**2)) ** -0.5
        return scale * (1 - SATURATION * p), scale * (SATURATION - SATURATION * p)
    return 1.0 if "without a scale" in layer else 1 / (1 - p), 0.0


def check_law(drop: Drop, name: str, p: float, dtype: torch.dtype = torch.float32) -> None:
    layer, (kept_value, dropped_value) = LAYERS[name], two_values(name, p)
    calls = []
    for _ in range(layer.calls):
        y = drop(torch.ones(layer.x, dtype=dtype))
        kept = y > (kept_value + dropped_value) / 2
        calls.append(kept[layer.one_value_per_coin])
        if len(calls) < 40:
            assert torch.equal(kept, calls[-1].expand(layer.x)), "a unit was dropped in part"
            assert y.dtype == dtype
            expected = torch.where(kept, kept_value, dropped_value)
            torch.testing.assert_close(y, expected.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=0.0)
    coins = torch.stack(calls)
    dropped, number = int((~coins).sum()), coins.numel()
    assert stats.binomtest(dropped, number, p).pvalue > P_LIMIT, f"rate {dropped / number} instead of {p}"
    if number * p**2 < 25:  # too few neighbours are dropped together for their number to be normal
        return
    coins = coins.double() - (1 - p)
    for dim in range(coins.ndim):  # calls, samples, ...
        products = coins.narrow(dim, 0, coins.shape[dim] - 1) * coins.narrow(dim, 1, coins.shape[dim] - 1)
        z = float(products.sum()) / (sqrt(products.numel() or 1) * p * (1 - p))
        assert abs(z) < Z_LIMIT, f"neighbours are dropped together, z={z:.1f}"


def check_gradient(drop: Drop, name: str, p: float) -> None:
    kept_value, dropped_value = two_values(name, p)
    # What a value grows by if it is kept: a difference, since alpha dropout also moves it.
    slope = kept_value - dropped_value
    if "Alpha" in name:
        slope /= 1 - SATURATION
    for _ in range(20):
        x = torch.ones(small(name), requires_grad=True)
        y = drop(x * 1)  # what works in place may not have a leaf
        upstream = (-2.0) ** torch.randint(-2, 3, x.shape)
        y.backward(upstream)
        kept = y.detach() > (kept_value + dropped_value) / 2
        torch.testing.assert_close(x.grad, torch.where(kept, slope, 0.0) * upstream)


def lent(layer: nn.Module, p: float) -> nn.Module:
    """The layer with another rate in a tensor: the one that it was built with must not matter."""
    lend(layer).set([p])
    return layer


@pytest.mark.parametrize("p", [0.125, 0.5])  # both exact in the 16 bits that eager code spends on a coin
@pytest.mark.parametrize("name", LAYERS)
def test_a_lent_layer_obeys_the_law_of_the_original(name: str, p: float) -> None:
    for layer in (lent(LAYERS[name].build(0.9), p), LAYERS[name].build(p)):
        check_law(layer, name, p)
        check_gradient(layer, name, p)


@pytest.mark.parametrize("name", LAYERS)
def test_small_rates_survive_half_precision(name: str) -> None:
    check_law(lent(LAYERS[name].build(0.5), 0.003), name, 0.003, torch.bfloat16)


PLANTED: dict[str, tuple[str, Drop, Callable[[Drop, str, float], None]]] = {
    "elements for channels": ("Dropout2d", nn.Dropout(0.1), check_law),
    "channels for elements": ("Dropout", Dropout(0.1, "channel"), check_law),
    "samples for channels without a batch": ("Dropout3d without a batch", nn.Dropout2d(0.1), check_law),
    "a hundredth too often": ("Dropout", Dropout(0.11), check_law),
    "no scale": ("our DropPath", DropPath(0.1, scale_by_keep=False), check_law),
    "a scale where there is none": ("our DropPath without a scale", DropPath(0.1), check_law),
    "batch for row": ("our DropPath", DropPath(0.1, "batch"), check_law),
    "zeros for alpha's value": ("AlphaDropout", nn.Dropout(0.1), check_law),
    "elements for alpha's features": ("FeatureAlphaDropout", nn.AlphaDropout(0.1), check_law),
    "another mask backward": ("Dropout", lambda x: x + (F.dropout(x, 0.1) - x).detach(), check_gradient),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_every_planted_bug_is_killed(bug: str) -> None:
    name, drop, check = PLANTED[bug]
    with pytest.raises(AssertionError):
        check(drop, name, 0.1)


@pytest.mark.parametrize("cls", [nn.AlphaDropout, nn.FeatureAlphaDropout])
def test_alpha_dropout_keeps_mean_0_and_variance_1(cls: type[nn.Module]) -> None:
    x = torch.randn(200_000, 5)

    def z_values(y: Tensor) -> tuple[float, float]:
        y = y.double()
        return float(y.mean() / y.std()) * 1e3, float((y.square() - 1).mean() / y.square().std()) * 1e3

    assert max(map(abs, z_values(lent(cls(0.1), 0.3)(x)))) < Z_LIMIT
    assert abs(z_values(nn.Dropout(0.3)(x))[1]) > Z_LIMIT  # the check notices another variance


# Ends of the range, evaluation, in place, by keyword.


@pytest.mark.parametrize("name", LAYERS)
def test_a_rate_of_0_is_exact(name: str) -> None:
    x = torch.randn(small(name))
    assert torch.equal(LAYERS[name].build(0.0)(x), x)
    assert torch.equal(lent(LAYERS[name].build(0.5), 0.0)(x), x)


@pytest.mark.parametrize("name", LAYERS)
def test_a_rate_of_1_is_exact_and_its_gradient_finite(name: str) -> None:
    x = torch.randn(small(name), requires_grad=True)
    original = LAYERS[name].build(1.0)(x)
    if LAYERS[name].nan_at_one:
        assert not original.isfinite().all()
        assert find_sites(LAYERS[name].build(0.5))[0].below_one
    else:
        assert torch.equal(original, torch.zeros_like(x))
    layer = lent(LAYERS[name].build(0.5), 1.0)
    for scale in (1.0, float("inf")):
        y = layer(x * scale)
        assert torch.equal(y, torch.zeros_like(x))
        x.grad = None
        layer(x).sum().backward()
        assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize("name", LAYERS)
def test_evaluation_returns_the_input_itself(name: str) -> None:
    x = torch.randn(small(name))
    layer = LAYERS[name].build(0.5).eval()
    assert torch.equal(layer(x), x)
    assert lent(layer, 0.5)(x) is x  # also where torch returns a view of it
    layer.train()
    assert not torch.equal(lent(LAYERS[name].build(0.5), 1.0)(x), x)


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place_means_in_place(name: str) -> None:
    layer = IN_PLACE[name](0.5, inplace=True)
    for each in (layer, lent(layer, 0.5)):
        x = torch.randn(small(name))
        before = x.clone()
        assert each(x) is x
        assert not torch.equal(x, before)
    check_law(layer, name, 0.5)
    check_gradient(layer, name, 0.5)
    leaf = torch.randn(small(name), requires_grad=True)
    assert layer.eval()(leaf) is leaf  # which may not be written into


@pytest.mark.parametrize("name", LAYERS)
def test_the_input_is_left_alone_otherwise(name: str) -> None:
    x = torch.ones(small(name))
    lent(LAYERS[name].build(0.5), 1.0)(x)
    assert x.all()


@pytest.mark.parametrize("name", LAYERS)
def test_arguments_keep_their_names(name: str) -> None:
    layer = LAYERS[name].build(0.5)
    parameters = list(inspect.signature(layer.forward).parameters)
    lend(layer).set([1.0])
    assert list(inspect.signature(layer.forward).parameters) == parameters
    assert not layer(**{parameters[0]: torch.ones(small(name))}).any()


def test_a_residual_addition_reads_the_tensor() -> None:
    x, layer = torch.randn(1000, 2), DropPath(0.0)
    lend(layer).set([0.5])
    for output in (layer.residual(x, torch.neg), layer(x, torch.neg), layer(x, branch=torch.neg)):
        assert set((output / x).unique().tolist()) == {1.0, -1.0}
    lend(other := DropPath(0.0)).set([1.0])
    assert torch.equal(other.residual(x, torch.neg, shortcut=torch.exp), x.exp())


# transformers has a copy of the same layer in every model.

FORWARD = """
def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
    if self.drop_prob == 0.0 or not self.training:
        return hidden_states
    keep_prob = 1 - self.drop_prob
    shape = (hidden_states.shape[0],) + (1,) * (hidden_states.ndim - 1)
    random_tensor = torch.rand(shape, dtype=hidden_states.dtype, device=hidden_states.device)
    random_tensor = torch.floor(random_tensor + keep_prob)
    return hidden_states.div(keep_prob) * random_tensor
"""


def unlike(source: str) -> list[str]:
    """Return the classes called DropPath in a source file that are not the one layer that is replaced."""
    wrong = []
    for match in re.finditer(r"^class \w*DropPath\b.*?(?=^\S|\Z)", source, re.MULTILINE | re.DOTALL):
        (cls,) = ast.parse(match[0]).body
        assert isinstance(cls, ast.ClassDef)
        methods = {node.name: ast.unparse(node) for node in cls.body if isinstance(node, ast.FunctionDef)}
        forward = methods.get("forward")
        if forward != FORWARD.strip() or not methods.keys() <= {"__init__", "forward", "extra_repr"}:
            wrong.append(cls.name)
    return wrong


def test_every_drop_path_of_transformers_is_the_one_that_is_replaced() -> None:
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        pytest.skip("needs transformers, an optional library")
    sources = [path.read_text() for path in (Path(spec.origin).parent / "models").rglob("modeling_*.py")]
    having = [source for source in sources if re.search(r"^class \w*DropPath\b", source, re.MULTILINE)]
    assert len(having) > 30
    assert [name for source in having for name in unlike(source)] == []


@pytest.mark.parametrize(
    ("this", "that"),
    [
        ("(hidden_states.shape[0],) + (1,) * (hidden_states.ndim - 1)", "(1,) * hidden_states.ndim"),
        ("hidden_states.div(keep_prob) * random_tensor", "hidden_states * random_tensor"),
        ("def forward", "def call"),
        ("self.drop_prob == 0.0 or not self.training", "self.drop_prob == 0.0"),
    ],
)
def test_a_copy_that_does_something_else_would_be_noticed(this: str, that: str) -> None:
    def source(forward: str) -> str:
        return "import torch\n\n\nclass NewDropPath(nn.Module):\n    x = 1\n" + forward.replace("\n", "\n    ")

    assert unlike(source(FORWARD)) == []
    assert unlike(source(FORWARD.replace(this, that)) + "\n\nclass Other:\n    pass\n") == ["NewDropPath"]


# Which sites have a tensor form.


class Attends(nn.Module):
    """Hands the rate of a child that it never calls to the fused kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.attn_drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x, dropout_p=self.attn_drop.p if self.training else 0.0)


class Functional(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.drop_rate = 0.1

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(F.dropout(x, self.drop_rate, self.training), self.config.dropout, self.training)


class Derived(nn.Dropout):
    """May do what it likes."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1


class Borrower(nn.Module):
    def __init__(self, drop: nn.Module) -> None:
        super().__init__()
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.drop(x)
        return output


def test_a_site_whose_every_user_is_a_known_layer_has_a_tensor_form() -> None:
    for layer in LAYERS.values():
        assert [has_tensor_form(site) for site in find_sites(nn.Sequential(layer.build(0.1)))] == [True]
    shared = nn.Dropout(0.1)
    (site,) = find_sites(nn.Sequential(Borrower(shared), Borrower(shared)))
    assert len(site.users) == 2
    assert has_tensor_form(site)


WITHOUT_FORM: dict[str, Callable[[], nn.Module]] = {
    "fused attention": Attends,
    "functional, and a configuration": lambda: Functional(SimpleNamespace(dropout=0.2)),
    "a subclass": lambda: Derived(0.1),
    "our attention": lambda: AttentionDropout(0.1),
    "torch's attention": lambda: nn.MultiheadAttention(4, 2, dropout=0.1),
    "recurrent": lambda: nn.LSTM(2, 2, 2, dropout=0.1),
}


@pytest.mark.parametrize("case", WITHOUT_FORM)
def test_all_others_have_none(case: str) -> None:
    sites = find_sites(nn.Sequential(WITHOUT_FORM[case]()))
    assert sites
    assert not any(map(has_tensor_form, sites))


def test_one_user_who_reads_the_number_is_enough_to_have_none() -> None:
    layer, reader = nn.Dropout(0.1), Attends()
    site = Site("0", "dropout", layer, "p", (User("0", (layer,), layer), User("1", (reader,), reader)))
    assert not has_tensor_form(site)


# While it is lent, a model is what it was.


class Net(nn.Module):
    """A layer of every kind between weights and statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.1)
        self.alpha = nn.AlphaDropout(0.2)
        self.channels = nn.Dropout1d(0.3)
        self.ours = Dropout(0.4, "channel")
        self.path = DropPath(0.5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.alpha(self.drop(self.norm(self.fc(x))))
        h = self.ours(self.channels(h[:, :, None])).squeeze(2)
        return x + self.path(h)


RATES = [0.1, 0.2, 0.3, 0.4, 0.5]


def face(model: nn.Module) -> dict[str, Any]:
    """What others see of a model."""
    return {
        "repr": repr(model),
        "names": [type(module).__name__ for module in model.modules()],
        "qualified names": [type(module).__qualname__ for module in model.modules()],
        "parameters": {name: id(value) for name, value in model.named_parameters()},
        "buffers": {name: id(value) for name, value in model.named_buffers()},
        "state": list(model.state_dict()),
        "sites": [(site.name, site.kind, site.rate, site.attribute, site.key) for site in find_sites(model)],
        "owners": [site.owners for site in find_sites(model)],
        "audit": [(row.name, row.state, row.kind) for row in audit(model, torch.ones(3, 4)).rows],
    }


def test_the_face_of_a_model_stays() -> None:
    model = Net()
    before, classes = face(model), [type(module) for module in model.modules()]
    tensors = lend(model)
    assert face(model) == before
    assert all(isinstance(module, cls) for module, cls in zip(model.modules(), classes, strict=True))
    assert [type(module) for module in model.modules()] != classes
    tensors.set(RATES[::-1])
    assert [site.rate for site in find_sites(model)] == RATES[::-1]


def test_the_audit_sees_lent_layers_fire() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.0))
    lend(model)
    report = audit(model, torch.ones(3, 4))
    assert [row.name for row in report.firing] == ["0"]
    assert report.unregistered == ()
    assert find_sites(model)[0].rate == 0.5  # as it was, after the audit has moved it
    assert float(model[0]._rate_as_tensor) == 0.5


def test_giving_back_restores_class_and_attributes() -> None:
    model = Net()
    before = [(type(module), list(vars(module))) for module in model.modules()]
    tensors = lend(model)
    tensors.set(RATES[::-1])
    tensors.give_back()
    assert [(type(module), list(vars(module))) for module in model.modules()] == before
    assert [site.rate for site in find_sites(model)] == RATES[::-1]
    tensors.give_back()  # a second time, nothing
    assert not hasattr(model.drop, "_rate_as_tensor")
    model.drop.p = 0.0
    assert model.drop(torch.ones(3)).all()


def test_it_can_be_lent_again() -> None:
    layer = nn.Dropout(0.5)
    first = lend(layer)
    cls = type(layer)
    first.give_back()
    lend(layer).set([1.0])
    assert type(layer) is cls  # another class would be another graph
    assert type(layer) is not type(lent(nn.Dropout2d(0.5), 0.5))
    assert not layer(torch.ones(9)).any()


def test_the_rates_at_hand_are_taken_over() -> None:
    model = nn.Sequential(nn.Dropout(0.0), nn.Dropout(1))  # an int, as a user may write it
    tensors = lend(model)
    assert model[0](torch.ones(9)).all()
    assert not model[1](torch.ones(9)).any()
    with pytest.raises(ValueError, match=r"shorter|longer"):
        tensors.set([0.5])


def test_setting_a_rate_by_its_site_sets_the_tensor() -> None:
    model = Net()
    lend(model)
    for site in find_sites(model):
        for rate in (1, 0.25):
            site.rate = rate
            assert (site.rate, type(site.rate)) == (rate, float)
            assert float(site.holder._rate_as_tensor) == rate
        with pytest.raises(ValueError, match=rf"^Expected `rate of {site.name}` to be a probability"):
            site.rate = 1.5
        with pytest.raises(ValueError, match=rf"^Expected `{site.attribute}` to be a probability"):
            setattr(site.holder, site.attribute, -0.5)
        assert site.rate == float(site.holder._rate_as_tensor) == 0.25
    model.path.drop_prob = 1.0  # by its own name
    assert not model.path(torch.ones(9)).any()


def copies(model: nn.Module) -> Iterator[nn.Module]:
    yield copy.deepcopy(model)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        yield pickle.loads(pickle.dumps(model, protocol))


@pytest.mark.parametrize("name", LAYERS)
def test_a_copy_is_of_its_own_class_again_with_the_float(name: str) -> None:
    model = nn.Sequential(LAYERS[name].build(0.5))
    before = (type(model[0]), list(vars(model[0])), repr(model))
    lend(model)
    for other in copies(model):
        assert (type(other[0]), list(vars(other[0])), repr(other)) == before
        (site,) = find_sites(other)
        site.rate = 0.25
        assert find_sites(model)[0].rate == 0.5
    shallow = copy.copy(model[0])
    assert (type(shallow), list(vars(shallow))) == before[:2]
    assert hasattr(model[0], "_rate_as_tensor")


def test_a_saved_model_needs_nothing_of_this_package(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Dropout(0.5))
    lend(model)
    torch.save(model, tmp_path / "model.pt")
    assert b"lightning_dropout" not in pickle.dumps(model)
    assert type(torch.load(tmp_path / "model.pt", weights_only=False)[0]) is nn.Dropout


# The tensor is nobody's but the layer's.


class InBuffer(nn.Module):
    """The mutant: a rate that is a registered buffer."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.register_buffer("rate", torch.tensor(p))

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(torch.rand_like(x) < self.rate, 0.0, x)


def check_cast(make: Callable[[float], nn.Module], rate_of: Callable[[nn.Module], Tensor]) -> None:
    layer = make(0.1)
    nn.Sequential(layer).to(torch.bfloat16)
    assert torch.equal(rate_of(layer), torch.tensor(0.1)), "the rate was cast"


def check_state(make: Callable[[float], nn.Module], rate_of: Callable[[nn.Module], Tensor]) -> None:
    assert not make(0.1).state_dict(), "the rate is in the state"


def check_average(make: Callable[[float], nn.Module], rate_of: Callable[[nn.Module], Tensor]) -> None:
    """As Lightning's WeightAveraging: a copy is made, and parameters and buffers are averaged in pairs."""
    model = nn.Sequential(nn.Linear(1, 1))
    model.append(nn.Dropout(0.5))
    averaged = AveragedModel(model, use_buffers=True)
    model[1] = make(0.5)
    averaged.update_parameters(model)
    assert len([*averaged.module.buffers()]) == len([*model.buffers()]), "there is a buffer more"


def lent_layer(p: float) -> nn.Module:
    return lent(nn.Dropout(0.5), p)


CHECKS_OF_STATE = (check_cast, check_state, check_average)


@pytest.mark.parametrize("check", CHECKS_OF_STATE)
def test_casting_saving_and_averaging_pass_the_tensor_by(check: Callable[..., None]) -> None:
    check(lent_layer, lambda layer: layer._rate_as_tensor)
    with pytest.raises(AssertionError):
        check(InBuffer, lambda layer: layer.rate)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_it_is_of_float32_whatever_the_default(dtype: torch.dtype) -> None:
    layer, default = nn.Dropout(0.5), torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        tensors = lend(layer)
        tensors.set([0.1])
        assert torch.equal(layer._rate_as_tensor, torch.tensor(0.1, dtype=torch.float32))
        layer.p = 0.2
        assert torch.equal(layer._rate_as_tensor, torch.tensor(0.2, dtype=torch.float32))
    finally:
        torch.set_default_dtype(default)


def test_it_lives_where_the_model_computes() -> None:
    model = Net()
    lend(model, torch.device("meta"))
    for site in find_sites(model):
        assert site.holder._rate_as_tensor.device.type == "meta"
        site.rate = 0.25
        assert site.holder._rate_as_tensor.device.type == "meta"
        assert site.rate == 0.25
    model.to("meta")
    assert model(torch.ones(3, 4, device="meta")).device.type == "meta"


def test_a_device_that_is_not_there_leaves_the_model_alone() -> None:
    model = Net()
    before = [(type(module), list(vars(module))) for module in model.modules()]
    with pytest.raises((RuntimeError, AssertionError)):
        lend(model, torch.device("xpu" if torch.cuda.is_available() else "cuda"))
    assert [(type(module), list(vars(module))) for module in model.modules()] == before


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_a_rate_that_is_set_in_a_test_hook_serves_training(mode: Any) -> None:
    layer = nn.Dropout(0.5)
    with mode():
        tensors = lend(layer)
        tensors.set([0.0])
        assert not layer._rate_as_tensor.is_inference()
        layer.p = 0.25
        assert not layer._rate_as_tensor.is_inference()
    x = torch.ones(9, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert not layer._rate_as_tensor.requires_grad


# One graph.

STEPS = 50


class EveryForm(nn.Module):
    """All layers that have a tensor form, side by side: each has an input of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.names = [*LAYERS, *IN_PLACE]
        layers = [layer.build(0.5) for layer in LAYERS.values()]
        self.layers = nn.ModuleList([*layers, *(cls(0.5, inplace=True) for cls in IN_PLACE.values())])
        self.inputs = [torch.ones(small(name), requires_grad=True) for name in self.names]

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        return [layer(x * 1.0) for layer, x in zip(self.layers, inputs, strict=True)]


def compiled(model: nn.Module, counter: CompileCounterWithBackend, **options: Any) -> Callable[..., Any]:
    step: Callable[..., Any] = torch.compile(model, backend=counter, **options)
    return step


def run_schedule(model: EveryForm, step: Callable[..., list[Tensor]], tensors: TensorRates) -> None:
    """Take every rate from 0 to 1, every layer another one at every step, and check what each step drops."""
    expected, variance, dropped = (torch.zeros(len(model.layers)) for _ in range(3))
    for number in range(STEPS):
        rates = [(number + 7 * index) % STEPS / (STEPS - 1) for index in range(len(model.layers))]
        tensors.set(rates)
        outputs = step(*model.inputs)
        torch.stack([output.sum() for output in outputs]).sum().backward()
        for index, (name, p, y) in enumerate(zip(model.names, rates, outputs, strict=True)):
            if p in (0.0, 1.0):
                assert torch.equal(y, torch.full_like(y, 1.0 - p)), f"{name} does not follow the schedule"
                continue
            coins = (y < sum(two_values(name, p)) / 2)[LAYERS[name].one_value_per_coin]
            dropped[index] += coins.sum()
            expected[index] += coins.numel() * p
            variance[index] += coins.numel() * p * (1 - p)
    z = (dropped - expected) / variance.sqrt()
    assert z.abs().max() < Z_LIMIT, f"{model.names[int(z.abs().argmax())]} does not follow the schedule"
    assert all(x.grad is not None and x.grad.isfinite().all() for x in model.inputs)


@pytest.mark.parametrize("fullgraph", [False, True])
def test_a_schedule_costs_one_graph_whatever_the_layers(fullgraph: bool) -> None:
    model, counter = EveryForm(), CompileCounterWithBackend("aot_eager")
    tensors = lend(model)
    step = compiled(model, counter, fullgraph=fullgraph)
    run_schedule(model, step, tensors)
    assert counter.frame_count == 1
    if not fullgraph:
        model.eval()
        for x, y in zip(model.inputs, step(*model.inputs), strict=True):
            assert torch.equal(x, y)
        model.train()
        run_schedule(model, step, tensors)
        assert counter.frame_count == 2


@pytest.mark.slow
def test_a_schedule_costs_one_graph_in_inductor() -> None:
    model, counter = EveryForm(), CompileCounterWithBackend("inductor")
    run_schedule(model, compiled(model, counter, fullgraph=True), lend(model))
    assert counter.frame_count == 1


def test_a_rate_that_others_set_costs_no_graph() -> None:
    model, counter = nn.Sequential(nn.Dropout(0.5)), CompileCounterWithBackend("eager")
    tensors, (site,) = lend(model), find_sites(model)
    step = compiled(model, counter)
    for number in range(20):
        site.rate = number % 2
        assert step(torch.ones(9)).any() == (number % 2 == 0)
        tensors.set([number % 2])
        assert step(torch.ones(9)).any() == (number % 2 == 0)
    assert counter.frame_count == 1


def graphs_of_numbers(rates: int, **options: Any) -> int:
    """The mutant: assign the number at every step, as everybody does."""
    torch._dynamo.reset()
    model, counter = nn.Sequential(nn.Dropout(0.5)), CompileCounterWithBackend("eager")
    step = compiled(model, counter, **options)
    for number in range(rates):
        model[0].p = (number + 1) / (rates + 2)
        step(torch.ones(9))
    return int(counter.frame_count)


def test_numbers_would_cost_a_graph_each_until_there_are_none() -> None:
    assert graphs_of_numbers(20) == torch._dynamo.config.recompile_limit == 8
    with pytest.raises(FailOnRecompileLimitHit):
        graphs_of_numbers(20, fullgraph=True)


def test_more_graphs_can_be_allowed_and_taken_back_in_any_order() -> None:
    before = torch._dynamo.config.recompile_limit
    allow_graphs(1)
    allow_graphs(2)
    try:
        assert graphs_of_numbers(20) == before + 3
    finally:
        allow_graphs(-1)
        assert torch._dynamo.config.recompile_limit == before + 2
        allow_graphs(-2)
    assert torch._dynamo.config.recompile_limit == before


class Block(nn.Module):
    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.drop = nn.Dropout(drop_prob / 2)
        self.path = DropPath(drop_prob)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.path(self.drop(self.fc(x)))


def regionally_compiled(**options: Any) -> tuple[nn.Sequential, CompileCounterWithBackend]:
    model, counter = nn.Sequential(*(Block((i + 1) / 13) for i in range(12))), CompileCounterWithBackend("aot_eager")
    for block in model:
        block.compile(backend=counter, **options)
    return model, counter


def test_blocks_that_are_compiled_one_by_one_share_their_graphs() -> None:
    model, counter = regionally_compiled(fullgraph=True)
    tensors, sites = lend(model), find_sites(model)
    for number in range(10):
        tensors.set([site.rate * 0.9 for site in sites] if number < 9 else [1.0] * len(sites))
        x = torch.randn(3, 4)
        y = model(x)
        y.sum().backward()
    assert torch.equal(y, x)
    assert counter.frame_count <= 2  # the first block's input needs no gradient, so its graph may be another


def test_blocks_with_numbers_would_not_even_be_compiled_once() -> None:
    model, counter = regionally_compiled(fullgraph=True)
    with pytest.raises(FailOnRecompileLimitHit):
        model(torch.randn(3, 4))
    assert torch._dynamo.config.recompile_limit <= counter.frame_count < len(model)


# Between forward and backward.


def gradient_after(change: Callable[[nn.Module, TensorRates], object], *, compile_it: bool) -> tuple[Tensor, Tensor]:
    """Return output and gradient of a forward at rate 0.5, after which ``change`` was made."""
    model = nn.Sequential(nn.Dropout(0.9), DropPath(0.9), nn.AlphaDropout(0.0))
    tensors = lend(model)
    tensors.set([0.5, 0.5, 0.0])
    step = compiled(model, CompileCounterWithBackend("aot_eager")) if compile_it else model
    x = torch.ones(200, 5, requires_grad=True)
    y = step(x)
    before = y.detach().clone()
    change(model, tensors)
    y.sum().backward()
    assert x.grad is not None
    return before, x.grad


CHANGES: dict[str, Callable[[nn.Module, TensorRates], object]] = {
    "nothing": lambda model, tensors: None,
    "all rates": lambda model, tensors: tensors.set([0.9, 0.9, 0.9]),
    "one rate by itself": lambda model, tensors: setattr(model[0], "p", 0.9),
    "the end": lambda model, tensors: tensors.give_back(),
}


def fill_in_place(model: nn.Module, tensors: TensorRates) -> None:
    with torch.no_grad():
        for layer in model:
            layer._rate_as_tensor.fill_(0.9)


@pytest.mark.parametrize("compile_it", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_backward_has_the_rate_of_its_forward(change: str, compile_it: bool) -> None:
    output, gradient = gradient_after(CHANGES[change], compile_it=compile_it)
    assert set(output.unique().tolist()) == {0.0, 4.0}
    assert torch.equal(gradient, output)


def test_a_tensor_that_is_filled_in_place_would_break_it() -> None:
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradient_after(fill_in_place, compile_it=True)


# Which modules were compiled.


class Method(nn.Module):
    """Compiles a method of its own."""

    def __init__(self, name: str = "forward") -> None:
        super().__init__()
        self.drop = nn.Dropout(0.1)
        setattr(self, name, torch.compile(getattr(self, name), backend="eager"))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.drop(x)
        return output

    def step(self, x: Tensor) -> Tensor:
        return self(x)


class Decorated(nn.Module):
    @torch.compile(backend="eager")
    def forward(self, x: Tensor) -> Tensor:
        return x


class NotAtAll(nn.Module):
    """What bears marks of the compiler and is not compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU
        self.scale = torch.relu
        self.drop = nn.Dropout(0.1)
        self.step = torch.compiler.disable(self.forward)

    def forward(self, x: Tensor) -> Tensor:
        return x

    @torch.compiler.disable
    def plot(self) -> None:
        return None


class Lightning(lightning.pytorch.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.drop(x)
        return output


def in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


def below(model: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), model, nn.Dropout(0.1))


ROOTS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "nothing": (lambda: below(nn.Dropout(0.1)), []),
    "nothing, in spite of marks": (lambda: below(NotAtAll()), []),
    "a wrapper around everything": (lambda: torch.compile(below(nn.Dropout(0.1)), backend="eager"), [""]),
    "a wrapper inside": (lambda: below(torch.compile(nn.Dropout(0.1), backend="eager")), ["1"]),
    "in place": (lambda: below(in_place(nn.Dropout(0.1))), ["1"]),
    "in place, everything and a part": (lambda: in_place(below(in_place(nn.Dropout(0.1)))), ["", "1"]),
    "its own forward": (lambda: below(Method()), ["1"]),
    "another method": (lambda: below(Method("step")), ["1"]),
    "a decorated method": (lambda: below(Decorated()), ["1"]),
    "a subclass of a decorated one": (lambda: below(type("Child", (Decorated,), {})()), ["1"]),
    "a LightningModule": (lambda: from_compiled(torch.compile(Lightning(), backend="eager")), [""]),
    "a LightningModule no longer": (
        lambda: to_uncompiled(from_compiled(torch.compile(Lightning(), backend="eager"))),
        [],
    ),
    "a network of a LightningModule": (lambda: below(in_place(Lightning())), ["1"]),
}


@pytest.mark.parametrize("case", ROOTS)
def test_what_was_compiled_is_found(case: str) -> None:
    build, expected = ROOTS[case]
    model = build()
    modules = dict(model.named_modules())
    assert [id(root) for root in compiled_roots(model)] == [id(modules[name]) for name in expected]


@pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated")
def test_torchscript_is_no_obstacle() -> None:
    assert compiled_roots(below(torch.jit.script(nn.Linear(2, 2)))) == []


def test_lending_compiles_nothing() -> None:
    model = below(nn.Dropout(0.1))
    lend(model)
    assert compiled_roots(model) == []

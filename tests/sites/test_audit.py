"""The audit: each state, exact attribution, and that everything borrowed is given back."""

import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.checkpoint import checkpoint

from lightning_dropout.models import ViT
from lightning_dropout.nn import AttentionDropout, Dropout, DropPath
from lightning_dropout.sites import register_adapter, sites_of
from lightning_dropout.sites.adapters import registry
from lightning_dropout.sites.audit import Audit, audit


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Adapters registered in a test are forgotten after it; nothing is left behind."""
    monkeypatch.setattr(registry, "_ADAPTERS", {key: list(adapters) for key, adapters in registry._ADAPTERS.items()})
    torch.manual_seed(0)
    yield
    assert not torch.nn.modules.module._has_any_global_hook()
    assert torch._C._len_torch_function_stack() == 0


X = torch.arange(24.0).reshape(2, 3, 4) / 24


class Runs(nn.Module):
    """A module whose forward is a function of the module and the input, and whose attributes are the options."""

    def __init__(self, function: Callable[[Any, Tensor], Any], **options: Any) -> None:
        super().__init__()
        self.function = function
        for name, value in options.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def states(report: Audit) -> dict[str, str]:
    return {row.name: row.state for row in report.rows}


# Found and firing.


class Attends(nn.Module):
    """A fused attention that reads the rate of a child that it never calls."""

    def __init__(self, p: float = 0.1) -> None:
        super().__init__()
        self.attn_drop = nn.Dropout(p)

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x, dropout_p=self.attn_drop.p if self.training else 0.0)


class Functional(nn.Module):
    """Drops without a dropout layer."""

    def __init__(self, p: float = 0.1) -> None:
        super().__init__()
        self.drop_rate = p

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.drop_rate, self.training)


FIRING: dict[str, tuple[Callable[[], nn.Module], Any, list[tuple[str, str]]]] = {
    "layers": (lambda: nn.Sequential(nn.Dropout(0.1), nn.Dropout1d(0.1)), X, [("0", "dropout"), ("1", "dropout1d")]),
    "alpha": (lambda: nn.AlphaDropout(0.1), X, [("", "alpha_dropout")]),
    "all dropped": (lambda: nn.Sequential(nn.Dropout(1.0)), X, [("0", "dropout")]),
    "own layers": (lambda: nn.Sequential(Dropout(0.1), DropPath(0.1)), X, [("0", "rand_like"), ("1", "rand_like")]),
    "fused attention": (lambda: Attends(), X, [("attn_drop", "scaled_dot_product_attention")]),
    "own attention": (
        lambda: Runs(lambda m, x: m.inner(x, x, x), inner=AttentionDropout(0.1)),
        X,
        [("inner", "scaled_dot_product_attention")],
    ),
    "functional": (lambda: nn.Sequential(Functional()), X, [("0.drop_rate", "dropout")]),
    "encoder layer": (
        lambda: nn.TransformerEncoderLayer(4, 2, 4, dropout=0.1),
        X,
        [
            ("self_attn", "multi_head_attention_forward"),
            ("dropout", "dropout"),
            ("dropout1", "dropout"),
            ("dropout2", "dropout"),
        ],
    ),
    "LSTM": (lambda: nn.LSTM(4, 4, 2, dropout=0.1), X, [("", "lstm")]),
    "packed GRU": (lambda: nn.GRU(4, 4, 2, dropout=0.1), pack_sequence([X[0], X[1, :2]]), [("", "gru")]),
    "a lazy layer before": (lambda: nn.Sequential(nn.LazyLinear(4), nn.Dropout(0.1)), X, [("1", "dropout")]),
}


@pytest.mark.parametrize("name", FIRING)
@pytest.mark.parametrize("training", [True, False])
def test_what_drops_is_found_in_whatever_mode_the_model_is(name: str, training: bool) -> None:
    build, x, expected = FIRING[name]
    report = audit(build().train(training), x)
    assert [(row.name, row.operation) for row in report.check().firing] == expected


def test_our_vit_fires_everywhere() -> None:
    model = ViT((1, 8, 8), preset="digits", dim=8, depth=2, num_heads=2, p=0.1, attention_p=0.1, projection_p=0.1)
    report = audit(model, torch.randn(2, 1, 8, 8))
    assert len(report.firing) == len(sites_of(model)) - 4
    assert {row.reason for row in report.silent} == {"rate 0"}  # the four DropPaths
    assert str(report).splitlines()[0] == "ViT: 9 firing, 4 silent, 0 unregistered, 0 unknown"


def test_a_row_says_what_was_seen() -> None:
    drop = nn.Dropout(0.25)
    model = nn.Sequential(drop, nn.Linear(4, 4), nn.Sequential(drop), drop)
    (row,) = audit(model, X).rows
    assert (row.name, row.kind, row.rate, row.users, row.operation, row.count) == (
        "0",
        "dropout",
        0.25,
        3,
        "dropout",
        3,
    )


def test_checkpointed_and_compiled_parts_are_seen() -> None:
    inner = nn.Sequential(nn.Dropout(0.1), Functional())
    model = nn.Sequential(
        Runs(lambda m, x: checkpoint(m.inner, x, use_reentrant=False), inner=inner),
        torch.compile(nn.Sequential(nn.Dropout(0.1)), backend="eager"),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = audit(torch.compile(model, backend="eager"), X)
    assert states(report) == {"0.inner.0": "firing", "0.inner.1.drop_rate": "firing", "1.0": "firing"}
    assert report.model == "Sequential"


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("in_place", [True, False])
def test_a_compiled_model_is_not_compiled_again(training: bool, in_place: bool) -> None:
    compiled = []
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(3), nn.Dropout(0.1)).train(training)
    options = {"backend": lambda graph, inputs: compiled.append(graph) or graph}
    compiled_model = model if in_place else torch.compile(model, **options)
    if in_place:
        model.compile(**options)
    compiled_model(X)
    assert len(compiled) == 1
    audit(compiled_model, X).check()
    compiled_model(X)
    assert len(compiled) == 1


def test_one_forward_is_run_with_gradients() -> None:
    calls = []
    model = Runs(lambda m, x: calls.append((torch.is_grad_enabled(), x.is_inference())))
    with torch.inference_mode():
        audit(model, X.clone())
    with torch.no_grad():
        audit(model, x=X)
    assert calls == [(True, False)] * 2


# Exact attribution.


class Twins(nn.Module):
    """Two rates of the same value in one module, of which one is used."""

    def __init__(self, rate: float = 0.1) -> None:
        super().__init__()
        self.dropout, self.activation_dropout = rate, rate
        self.never = False

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(x, self.dropout, self.training)
        return F.dropout(x, self.activation_dropout, self.training) if self.never else x


def check_twins_are_told_apart() -> None:
    for rate in (0.1, 1e-4, 0.999):
        report = audit(nn.Sequential(Twins(rate), Twins(rate)), X)
        assert [row.name for row in report.firing] == ["0.dropout", "1.dropout"]
        assert {row.reason for row in report.silent} == {"reached, but this forward did not use the rate"}


def test_sites_of_equal_rate_in_one_module_are_told_apart() -> None:
    register_twins()
    check_twins_are_told_apart()


def register_twins() -> None:
    register_adapter(Twins, "dropout")
    register_adapter(Twins, "activation_dropout")


def test_an_audit_that_lends_no_rates_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    register_twins()

    @contextmanager
    def nothing(sites: Any) -> Iterator[list[float]]:
        yield [site.rate for site in sites]

    monkeypatch.setitem(audit.__globals__, "_lent", nothing)
    with pytest.raises(AssertionError):
        check_twins_are_told_apart()


class KeepsACopy(nn.Module):
    """Takes its rate when it is built: setting it later changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.drop_rate = 0.1
        self.drop = Runs(lambda m, x, rate=self.drop_rate: F.dropout(x, rate, m.training))

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(x)


def test_a_rate_that_the_forward_does_not_read_is_silent() -> None:
    register_adapter(KeepsACopy, "drop_rate")
    report = audit(KeepsACopy(), X)
    assert [(row.name, row.reason) for row in report.silent] == [("", "reached, but this forward did not use the rate")]
    assert [row.rate for row in report.unregistered] == [0.1]


class LayerDrop(nn.Module):
    """Skips layers as transformers' encoders do."""

    def __init__(self, layerdrop: float) -> None:
        super().__init__()
        self.layerdrop = layerdrop
        self.layers = nn.ModuleList(nn.Dropout(0.1) for _ in range(20))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            if not (self.training and torch.rand([]) < self.layerdrop):
                x = layer(x)
        return x


@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_layer_drop_skips_nothing_while_it_is_watched(rate: float) -> None:
    model = LayerDrop(rate)
    report = audit(model, X).check()
    assert next((row.kind, row.rate, row.operation, row.count) for row in report.firing) == (
        "layer_drop",
        rate,
        "rand",
        20,
    )
    assert len(report.firing) == 21
    assert model.layerdrop == rate


@pytest.mark.parametrize(
    "draw",
    [
        lambda m, x: x * torch.empty(2, 1, 1).bernoulli_(1 - m.drop_prob),
        lambda m, x: x * torch.bernoulli(torch.full((2, 1, 1), 1 - m.drop_prob)),
        lambda m, x: x * (torch.rand(2, 1, 1) > m.drop_prob),
        lambda m, x: x * (1 - torch.empty(2, 1, 1).bernoulli_(m.drop_prob)),
        lambda m, x: x * torch.empty(2, 1, 1).bernoulli_(m.drop_prob / 7),  # DropBlock: computed from the rate
        lambda m, x: x * float(np.random.rand() > m.drop_prob),  # noqa: NPY002
        lambda m, x: x * float(random.random() > m.drop_prob),
    ],
)
def test_a_mask_of_any_make_belongs_to_the_layer_that_draws_it(draw: Any) -> None:
    class Mask(Runs):
        pass

    register_adapter(Mask, "drop_prob", kind="drop_path")
    model = nn.Sequential(nn.Dropout(0.3), Mask(draw, drop_prob=0.3), nn.Dropout(0.3))
    report = audit(model, X).check()
    assert [(row.name, row.count) for row in report.firing] == [("0", 1), ("1", 1), ("2", 1)]


def test_a_draw_beside_a_shown_rate_is_not_taken_for_its_site() -> None:
    def noisy(module: Any, x: Tensor) -> Tensor:
        return F.dropout(x, module.drop_rate, module.training) + torch.rand(4)

    class Noisy(Runs):
        pass

    register_adapter(Noisy, "drop_rate")
    report = audit(Noisy(noisy, drop_rate=0.1), X)
    assert [row.operation for row in report.firing] == ["dropout"]
    assert [row.operation for row in report.unknown] == ["rand"]


def test_masks_of_two_sites_of_one_module_are_told_apart() -> None:
    class Paths(Runs):
        pass

    register_adapter(Paths, "drop_prob", kind="drop_path")
    register_adapter(Paths, "other_prob", kind="drop_path")
    report = audit(Paths(lambda m, x: x * x.new_empty(1).bernoulli_(1 - m.drop_prob), drop_prob=0.1, other_prob=0.1), X)
    assert states(report) == {"drop_prob": "firing", "other_prob": "silent"}


def test_a_mask_at_rate_0_is_no_drop() -> None:
    class Path(Runs):
        pass

    register_adapter(Path, "drop_prob", kind="drop_path")
    report = audit(Path(lambda m, x: x * x.new_empty(1).bernoulli_(1 - m.drop_prob), drop_prob=0.0), X)
    assert [(row.state, row.reason) for row in report.rows] == [("silent", "rate 0")]


def test_a_draw_is_rather_of_the_layer_drop_than_of_the_dropout_beside_it() -> None:
    class Encoder(Runs):
        pass

    register_adapter(Encoder, "dropout")
    register_adapter(Encoder, "layerdrop", kind="layer_drop")
    report = audit(Encoder(lambda m, x: x * (torch.rand([]) < m.layerdrop), dropout=0.1, layerdrop=0.1), X)
    assert states(report) == {"dropout": "silent", "layerdrop": "firing"}


def test_a_layer_whose_parent_owns_it_still_runs_its_own_code() -> None:
    class Child(Functional):
        pass

    register_adapter(Child, "drop_rate", owner="parent")
    model = nn.Sequential(nn.Sequential(Child()))
    assert [row.users for row in audit(model, X).check().firing] == [1]
    assert sites_of(model)[0].owners == (model[0],)


def test_a_site_without_owners_is_its_own_place() -> None:
    config = Config(0.3)
    register_adapter(Stranger, "config.dropout", owner=lambda module, ancestors: ())
    model = nn.Sequential(nn.Sequential(Stranger(lambda m, x: F.dropout(x, m.config.dropout), config=config)))
    (row,) = audit(model, X).check().firing
    assert row.name == "0.0.config.dropout"


def test_a_draw_in_an_attention_is_not_its_dropout() -> None:
    class Attention(Runs):
        pass

    register_adapter(Attention, "attention_dropout", kind="attention")
    report = audit(Attention(lambda m, x: x + torch.rand(4), attention_dropout=0.1), X)
    assert [row.reason for row in report.silent] == ["reached, but this forward did not use the rate"]
    assert [row.operation for row in report.unknown] == ["rand"]


# Found but silent.


class Frozen(nn.Sequential):
    """Stays in eval mode, as frozen backbones do."""

    def train(self, mode: bool = True) -> "Frozen":
        return super().train(False)


def encoder() -> nn.Module:
    return nn.TransformerEncoderLayer(4, 2, 4, dropout=0.1, batch_first=True)


SILENT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "rate 0": (lambda: nn.Sequential(nn.Dropout(0.0)), "rate 0"),
    "int 0": (lambda: nn.Sequential(nn.Dropout(0)), "rate 0"),
    "frozen": (lambda: nn.Sequential(Frozen(nn.Dropout(0.1))), "`0.0` is in eval mode"),
    "frozen layer": (lambda: Frozen(encoder()), "`0` is in eval mode (fast path)"),
    "fused": (lambda: Frozen(Attends()), "`0` is in eval mode"),
    "spare": (lambda: Runs(lambda m, x: x, spare=nn.Dropout(0.1)), "never reached by this forward"),
    "a branch": (
        lambda: Runs(lambda m, x: m.spare(x) if x.sum() < 0 else x, spare=nn.Sequential(Attends())),
        "never reached by this forward",
    ),
    "unused": (lambda: unused(), "reached, but this forward did not use the rate"),
}


def unused() -> nn.Module:
    layer = Attends()
    layer.forward = lambda x: x  # type: ignore[method-assign]
    return nn.Sequential(layer)


@pytest.mark.parametrize("name", SILENT)
def test_what_does_not_drop_says_why(name: str) -> None:
    build, reason = SILENT[name]
    report = audit(build(), X)
    assert {row.state for row in report.rows} == {"silent"}
    reasons = [row.reason for row in report.silent]
    assert reason in reasons
    with pytest.raises(ValueError, match="silent: "):
        report.check()
    assert report.check(allow=("silent",)) is report


def test_the_empty_slots_are_listed() -> None:
    model = nn.Sequential(Runs(lambda m, x: x, drop_path=nn.Identity(), norm=nn.Identity()))
    report = audit(model, X)
    assert (report.rows, report.slots) == ((), ("0.drop_path",))
    assert str(report).endswith("Built without dropout (rate 0): 0.drop_path")


# Firing but unregistered.


class Config:
    def __init__(self, dropout: float) -> None:
        self.dropout = dropout


class Stranger(Runs):
    """Its forward is a function that nobody can read."""


UNREGISTERED: dict[str, tuple[Callable[[], nn.Module], float, str]] = {
    "attribute": (lambda: Stranger(lambda m, x: F.dropout(x, m.q, m.training), q=0.3), 0.3, '(Stranger, "q")'),
    "rate-like first": (
        lambda: Stranger(lambda m, x: F.dropout(x, m.dropout, m.training), alpha=0.3, dropout=0.3),
        0.3,
        '(Stranger, "dropout")',
    ),
    "of a child": (
        lambda: Stranger(lambda m, x: F.dropout(x, m.inner.p, m.training), inner=nn.Dropout(0.3)),
        0.3,
        '(Stranger, "inner.p")',
    ),
    "of the right child": (
        lambda: Stranger(
            lambda m, x: F.dropout(x, m.other.p, m.training), inner=nn.Dropout(0.3), other=nn.Dropout(0.3)
        ),
        0.3,
        '(Stranger, "other.p")',
    ),
    "of a configuration": (
        lambda: Stranger(lambda m, x: F.dropout(x, m.config.dropout, m.training), config=Config(0.3)),
        0.3,
        '(Stranger, "config.dropout")',
    ),
    "behind a property": (
        lambda: Stranger(lambda m, x: F.dropout(x, m.inner.p, m.training), inner=Dropout(0.3)),
        0.3,
        '(Stranger, "inner.p")',
    ),
    "attention": (
        lambda: Stranger(
            lambda m, x: F.scaled_dot_product_attention(x, x, x, dropout_p=m.q if m.training else 0), q=0.3
        ),
        0.3,
        '(Stranger, "q", kind="attention")',
    ),
    "kept": (lambda: Stranger(lambda m, x: x * x.new_empty(1).bernoulli_(1 - m.q), q=0.25), 0.25, '(Stranger, "q")'),
}


@pytest.mark.parametrize("name", UNREGISTERED)
def test_a_drop_that_no_site_knows_comes_with_the_line_that_registers_it(name: str) -> None:
    build, rate, arguments = UNREGISTERED[name]
    model = nn.Sequential(build())
    report = audit(model, X)
    (row,) = report.unregistered
    assert (row.name, row.rate, row.cure) == ("0", rate, f"`register_adapter{arguments}`")
    assert f"{Path(__file__).name}:" in row.location
    with pytest.raises(ValueError, match="1 unregistered"):
        report.check(allow=("silent",))
    exec(row.cure.strip("`"))  # the line works as it stands
    report = audit(model, X).check(allow=("silent",))
    assert [row.rate for row in report.firing] == [rate]


def test_a_literal_is_no_attribute() -> None:
    model = nn.Sequential(Stranger(lambda m, x: F.dropout(x, 0.5, m.training), q=0.3))
    (row,) = audit(model, X).unregistered
    assert (row.rate, row.count, row.reason) == (0.5, 1, "its rate is a literal or computed")
    assert row.cure == 'make it an attribute of Stranger, then `register_adapter(Stranger, "<attribute>")`'
    line = test_a_literal_is_no_attribute.__code__.co_firstlineno + 1
    assert row.location.endswith(f"test_audit.py:{line}")


def test_who_uses_the_rate_of_a_site_without_being_its_user_is_a_stranger() -> None:
    config = Config(0.3)
    register_adapter(Stranger, "config.dropout")
    model = nn.Sequential(
        Stranger(lambda m, x: F.dropout(x, m.config.dropout, m.training), config=config),
        Runs(lambda m, x: F.dropout(x, m.config.dropout, m.training), config=config),
    )
    report = audit(model, X)
    assert states(report) == {"0.config.dropout": "firing", "1": "unregistered"}
    assert [(row.rate, row.cure) for row in report.unregistered] == [
        (0.3, '`register_adapter(Runs, "config.dropout")`')
    ]


# Random, kind unknown.


def test_a_draw_that_no_site_explains_is_of_unknown_kind() -> None:
    model = nn.Sequential(nn.RReLU(), Stranger(lambda m, x: x * (torch.rand(4) > 0.1)), nn.Dropout(0.1))
    report = audit(model, X)
    assert [(row.name, row.operation) for row in report.unknown] == [("0", "rrelu"), ("1", "rand")]
    assert [row.name for row in report.firing] == ["2"]
    with pytest.raises(ValueError, match=r"`1` is unknown: rand at .*test_audit\.py:\d+, draws at random; if it drops"):
        report.check()
    register_adapter(Stranger, None)
    register_adapter(nn.RReLU, None)
    assert states(audit(model, X).check()) == {"2": "firing"}


def test_a_class_that_is_said_to_drop_nothing_is_not_believed_when_it_drops() -> None:
    register_adapter(Stranger, None)
    assert audit(Stranger(lambda m, x: F.dropout(x, 0.3, m.training)), X).unregistered
    assert audit(Stranger(lambda m, x: x.clone().bernoulli_(0.3)), X).unregistered


def test_a_model_that_drops_nothing_passes() -> None:
    report = audit(nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 4)), X).check()
    assert (report.rows, report.slots, str(report)) == ((), (), "Sequential: drops nothing")


# Everything is given back.


class Busy(nn.Module):
    """Changes all that a forward can change, and may fail at the end."""

    def __init__(self, error: type[BaseException] | None = None) -> None:
        super().__init__()
        self.error = error
        self.calls = 0
        self.norm = nn.BatchNorm1d(3)
        self.inner = nn.Sequential(nn.Dropout(0.1), DropPath(0.2), Dropout(0.3, shared_over_batch=True)).eval()
        self.in_place = nn.Dropout(0.5, inplace=True)
        self.config = Config(np.float32(0.25))
        self.register_buffer("mean", torch.tensor([1.0, float("nan")]))
        self.register_buffer("hidden", torch.zeros(2), persistent=False)
        self.register_buffer("nothing", None)

    def forward(self, x: Tensor, more: dict[str, Tensor] | None = None) -> Tensor:
        self.calls += 1
        self.mean = self.mean + 1  # another tensor
        self.hidden.add_(1)  # the same one
        self.register_buffer("cache", torch.ones(2), persistent=False)
        self.kept = x
        self.extra = nn.Linear(2, 2)
        x = self.in_place(x)
        if more is not None:
            more["x"].mul_(0)
        x = self.inner(self.norm(x)) * np.random.rand() * random.random()  # noqa: NPY002
        x = F.dropout(x, float(self.config.dropout), self.training)
        if self.error is not None:
            raise self.error("mine")
        return x


def snapshot(model: nn.Module) -> list[Any]:
    """Return all that an audit could have changed, as comparable values."""
    found: list[Any] = [torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())]  # noqa: NPY002
    for name, module in model.named_modules():
        attributes = {key: value for key, value in vars(module).items() if not isinstance(value, dict | set)}
        hooks = [len(module._forward_hooks), len(module._forward_pre_hooks)]
        found.append((name, type(module), {key: (id(value), repr(value)) for key, value in attributes.items()}, hooks))
        found.append(sorted(module._non_persistent_buffers_set))
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        gradient = None if tensor.grad is None else tensor.grad.tolist()
        found.append((name, id(tensor), repr(tensor.tolist()), gradient, tensor.requires_grad))
    found.append([site.rate for site in sites_of(model, strict=False)])
    return found


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("training", [True, False])
def test_everything_is_given_back(error: type[BaseException] | None, training: bool) -> None:
    model = Busy(error)
    model.train(training)
    model.inner[1].train(not training)
    model.norm.weight.grad = torch.ones(3)
    x, more = X.clone(), {"x": X.clone()}
    before = snapshot(model)
    with suppress(error or ()):
        audit(model, x, more=more)
    assert snapshot(model) == before
    assert torch.equal(x, X)
    assert torch.equal(more["x"], X)
    assert type(model.config.dropout) is np.float32
    with suppress(error or ()):
        model(X.clone())
    assert snapshot(model) != before, "the model changes nothing, so the test shows nothing"


def test_an_error_of_the_forward_comes_through() -> None:
    with pytest.raises(KeyError, match="mine"):
        audit(Busy(KeyError), X)


def test_an_error_while_rates_are_lent_gives_the_others_back() -> None:
    class Closed(Functional):
        @property
        def drop_rate(self) -> float:
            return 0.2

        @drop_rate.setter
        def drop_rate(self, value: float) -> None:
            if value != 0.1:
                raise AttributeError("closed")

    register_adapter(Closed, "drop_rate")
    model = nn.Sequential(nn.Dropout(0.1), Closed(), nn.Dropout(0.3)).eval()
    with suppress(ValueError, AttributeError):
        audit(model, X)
    assert (model[0].p, model[2].p, model.training) == (0.1, 0.3, False)


def test_an_error_while_switching_to_train_mode_gives_the_modes_back() -> None:
    class Stubborn(nn.Linear):
        def train(self, mode: bool = True) -> "Stubborn":
            if mode:
                raise RuntimeError("no")
            return super().train(mode)

    model = nn.Sequential(nn.Dropout(0.1), Stubborn(4, 4), nn.Dropout(0.1)).eval()
    with pytest.raises(RuntimeError, match="no"):
        audit(model, X)
    assert not any(module.training for module in model.modules())


def test_a_train_that_does_more_is_told_to_go_back() -> None:
    class Merges(nn.Linear):
        def train(self, mode: bool = True) -> "Merges":
            if mode != self.training:
                self.weight.data += -1 if mode else 1
            return super().train(mode)

    model = nn.Sequential(Merges(4, 4)).eval()
    merged = model(X)
    audit(model, X)
    assert torch.allclose(model(X), merged)
    assert not model[0].training


def test_lazy_modules_stay_materialised() -> None:
    model = nn.Sequential(nn.LazyBatchNorm1d(), nn.LazyLinear(3), nn.Dropout(0.1)).eval()
    audit(model, X).check()
    assert model[0].num_features == 3
    assert model[1].in_features == 4
    assert model(X).shape == (2, 3, 3)
    assert not any(module.training for module in model.modules())


def test_inputs_keep_their_structure_and_gradients() -> None:
    @dataclass(frozen=True)
    class Output:
        x: Tensor

    def check(module: Any, batch: Any) -> Output:
        x, rest = batch
        assert x.requires_grad
        assert rest == {"name": "a", "numbers": [1, 2]}
        (gradient,) = torch.autograd.grad(x.sum(), x, retain_graph=True)
        assert gradient.shape == x.shape
        return Output(x)

    x = X.clone().requires_grad_()
    audit(Runs(check), (x, {"name": "a", "numbers": [1, 2]}))
    assert x.grad is None
    same = []
    audit(Runs(lambda m, pair: same.append(pair[0] is pair[1])), (x, x))
    assert same == [True]


def test_an_audit_can_be_repeated_and_leaves_training_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(3), nn.Dropout(0.1))
    torch.manual_seed(3)
    expected = model(X)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    model[1].reset_running_stats()
    torch.manual_seed(3)
    assert audit(model, X) == audit(model, X)
    assert torch.equal(model(X), expected)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


# Bad input.


@pytest.mark.filterwarnings("ignore:.torch.jit.:FutureWarning", "ignore:.torch.jit.:DeprecationWarning")
def test_torchscript_is_random_in_an_unknown_way() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(3), nn.Dropout(0.1)).eval())
    for model in (scripted, nn.Sequential(scripted)):
        report = audit(model, X)
        assert [(row.state, row.operation) for row in report.rows] == [("unknown", "hidden draw (torch)")]
        assert not any(module.training for module in scripted.modules())
        assert torch.equal(dict(scripted.named_buffers())["1.running_mean"], torch.zeros(3))


@pytest.mark.parametrize("model", [None, nn.Linear, lambda x: x], ids=["none", "class", "function"])
def test_only_modules_can_be_audited(model: Any) -> None:
    with pytest.raises(ValueError, match=r"^Expected `model` to be a module, but got \w+"):
        audit(model, X)

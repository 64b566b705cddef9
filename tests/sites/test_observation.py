"""The observer: every family of operations, whose code it was, hidden draws, and that it only looks."""

import random
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.checkpoint import checkpoint

from lightning_dropout.nn import AttentionDropout, Dropout, DropPath
from lightning_dropout.sites.observation import Observer


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    torch.manual_seed(0)
    yield
    assert not torch.nn.modules.module._has_any_global_hook(), "a hook was left behind"
    assert torch._C._len_torch_function_stack() == 0, "a mode was left behind"


X = torch.arange(24.0).reshape(2, 3, 4) / 24


class Runs(nn.Module):
    """A module whose forward is a function of the module and the input."""

    def __init__(self, function: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def observe(model: nn.Module, x: Any = X) -> Observer:
    with Observer(model) as observer:
        model(x)
    return observer


def seen(model: nn.Module, x: Any = X) -> dict[tuple[str, float | None], int]:
    events = observe(model, x).events
    return {(event.operation, event.rate): count for event, count in events.items()}


# Operations whose arguments say at which rate they drop.

DROPS: dict[str, tuple[Callable[[], nn.Module], str, float, Any]] = {
    "Dropout": (lambda: nn.Dropout(0.3), "dropout", 0.3, X),
    "in place": (lambda: Runs(lambda m, x: F.dropout(x.clone(), 0.3, m.training, inplace=True)), "dropout", 0.3, X),
    "Dropout1d": (lambda: nn.Dropout1d(0.3), "dropout1d", 0.3, X),
    "Dropout2d": (lambda: nn.Dropout2d(0.3), "dropout2d", 0.3, X[None]),
    "Dropout3d": (lambda: nn.Dropout3d(0.3), "dropout3d", 0.3, X[None, None]),
    "AlphaDropout": (lambda: nn.AlphaDropout(0.3), "alpha_dropout", 0.3, X),
    "FeatureAlphaDropout": (lambda: nn.FeatureAlphaDropout(0.3), "feature_alpha_dropout", 0.3, X),
    "p = 1": (lambda: nn.Dropout(1), "dropout", 1.0, X),
    "torch.dropout": (lambda: Runs(lambda m, x: torch.dropout(x, 0.3, m.training)), "dropout", 0.3, X),
    "train=": (lambda: Runs(lambda m, x: torch.dropout(x, p=0.3, train=m.training)), "dropout", 0.3, X),
    "torch.dropout_": (lambda: Runs(lambda m, x: torch.dropout_(x.clone(), 0.3, m.training)), "dropout_", 0.3, X),
    "alpha_": (lambda: Runs(lambda m, x: torch.alpha_dropout_(x.clone(), 0.3, m.training)), "alpha_dropout_", 0.3, X),
    "feature": (lambda: Runs(lambda m, x: torch.feature_dropout(x, 0.3, m.training)), "feature_dropout", 0.3, X),
    "native": (lambda: Runs(lambda m, x: torch.native_dropout(x, 0.3, m.training)), "native_dropout", 0.3, X),
    "default rate": (lambda: Runs(lambda m, x: F.dropout(x, training=m.training)), "dropout", 0.5, X),
    "SDPA": (
        lambda: Runs(lambda m, x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.3 if m.training else 0.0)),
        "scaled_dot_product_attention",
        0.3,
        X,
    ),
    "SDPA by position": (
        lambda: Runs(lambda m, x: F.scaled_dot_product_attention(x, x, x, None, 0.3 if m.training else 0.0)),
        "scaled_dot_product_attention",
        0.3,
        X,
    ),
    "own attention": (
        lambda: Attends(AttentionDropout(0.3)),
        "scaled_dot_product_attention",
        0.3,
        X,
    ),
    "MultiheadAttention": (
        lambda: Attends(nn.MultiheadAttention(4, 2, dropout=0.3)),
        "multi_head_attention_forward",
        0.3,
        X,
    ),
    "no weights": (
        lambda: Attends(nn.MultiheadAttention(4, 2, dropout=0.3), need_weights=False),
        "multi_head_attention_forward",
        0.3,
        X,
    ),
    "LSTM": (lambda: nn.LSTM(4, 4, 2, dropout=0.3), "lstm", 0.3, X),
    "GRU": (lambda: nn.GRU(4, 4, 3, dropout=0.3, bidirectional=True), "gru", 0.3, X),
    "RNN": (lambda: nn.RNN(4, 4, 2, dropout=0.3, batch_first=True), "rnn_tanh", 0.3, X),
    "RNN relu": (lambda: nn.RNN(4, 4, 2, dropout=0.3, nonlinearity="relu"), "rnn_relu", 0.3, X),
    "packed LSTM": (lambda: nn.LSTM(4, 4, 2, dropout=0.3, proj_size=2), "lstm", 0.3, pack_sequence([X[0], X[1, :2]])),
    "packed GRU": (lambda: nn.GRU(4, 4, 2, dropout=0.3), "gru", 0.3, pack_sequence([X[0], X[1, :2]])),
    "bernoulli_": (
        lambda: Runs(lambda m, x: x.new_empty(2).bernoulli_(0.3) if m.training else x),
        "bernoulli_",
        0.3,
        X,
    ),
    "p=": (lambda: Runs(lambda m, x: x.clone().bernoulli_(p=0.3) if m.training else x), "bernoulli_", 0.3, X),
    "bernoulli": (lambda: Runs(lambda m, x: torch.bernoulli(x, 0.3) if m.training else x), "bernoulli", 0.3, X),
}


def with_a_rate(rnn: nn.RNNBase, rate: float) -> nn.RNNBase:
    rnn.dropout = rate  # of one layer: unused
    return rnn


class Attends(nn.Module):
    def __init__(self, attention: nn.Module, **options: Any) -> None:
        super().__init__()
        self.attention, self.options = attention, options

    def forward(self, x: Tensor) -> Any:
        return self.attention(x, x, x, **self.options)


@pytest.mark.parametrize("name", DROPS)
def test_a_drop_is_seen_with_its_rate_in_train_mode_only(name: str) -> None:
    build, operation, rate, x = DROPS[name]
    model = build()
    assert seen(model.train(), x) == {(operation, rate): 1}
    assert seen(model.eval(), x) == {}


@pytest.mark.parametrize(
    "model",
    [
        nn.Dropout(0.0),
        nn.MultiheadAttention(4, 2),
        nn.TransformerEncoderLayer(4, 2, 4, dropout=0.0),
        nn.LSTM(4, 4, 2),
        nn.GRU(4, 4, 1),
        Runs(lambda m, x: F.scaled_dot_product_attention(x, x, x)),
        with_a_rate(nn.LSTM(4, 4), 0.3),
        Dropout(0.0),
        DropPath(0.0),
        nn.Sequential(nn.Conv1d(3, 2, 1), nn.BatchNorm1d(2), nn.Softmax(-1), nn.Linear(4, 2), nn.GELU()),
        Runs(lambda m, x: nn.Linear(4, 4)(x)),
        nn.LazyLinear(3),
        Runs(lambda m, x: nn.init.normal_(nn.Parameter(torch.empty(3)))),
    ],
    ids=lambda model: type(model).__name__,
)
def test_what_does_not_drop_is_not_seen(model: nn.Module) -> None:
    model.train()
    inputs = (X, X, X) if isinstance(model, nn.MultiheadAttention) else (X,)
    with Observer(model) as observer:
        model(*inputs)
    assert not observer.events


# Draws: whatever moves a generator, known or not.

DRAWS: dict[str, Callable[[Tensor], Any]] = {
    "rand": lambda x: torch.rand([]),
    "rand_like": lambda x: torch.rand_like(x),
    "randn": lambda x: torch.randn(3),
    "randint": lambda x: torch.randint(3, (2,)),
    "randperm": lambda x: torch.randperm(5),
    "multinomial": lambda x: torch.multinomial(x[0] + 1, 2),
    "normal_": lambda x: x.new_empty(3).normal_(),
    "uniform_": lambda x: x.new_empty(3).uniform_(),
    "exponential_": lambda x: x.new_empty(3).exponential_(),
    "bernoulli": lambda x: torch.bernoulli(x),
    "rrelu": lambda x: F.rrelu(x, training=True),
    "gumbel_softmax": lambda x: F.gumbel_softmax(x),
    "fractional_max_pool2d": lambda x: F.fractional_max_pool2d(x[None], 2, output_size=1),
    "poisson": lambda x: torch.poisson(x),
}


@pytest.mark.parametrize("operation", DRAWS)
def test_any_other_draw_is_seen_without_a_rate(operation: str) -> None:
    assert seen(Runs(lambda m, x: DRAWS[operation](x))) == {(operation, None): 1}


def test_a_generator_of_its_own_is_a_draw() -> None:
    generator = torch.Generator()
    assert seen(Runs(lambda m, x: torch.rand(2, generator=generator))) == {("rand", None): 1}
    assert seen(Runs(lambda m, x: torch.bernoulli(x, 0.5, generator=generator))) == {("bernoulli", 0.5): 1}


def test_a_draw_that_moves_the_generator_back_onto_its_position_is_seen() -> None:
    assert seen(Runs(lambda m, x: torch.rand(624))) == {("rand", None): 1}


def test_the_second_half_of_a_pair_of_normal_numbers_is_seen() -> None:
    assert seen(Runs(lambda m, x: [torch.randn(1) for _ in range(4)])) == {("randn", None): 4}


def test_equal_events_are_counted() -> None:
    model = nn.Sequential(nn.Dropout(0.1), nn.Dropout(0.1))
    assert seen(nn.Sequential(model[0], model[0], model[1])) == {("dropout", 0.1): 1}  # the last of two events
    assert list(observe(nn.Sequential(model[0], model[0], model[1])).events.values()) == [2, 1]


# Whose code it was.


def free_function(x: Tensor, p: float, training: bool) -> Tensor:
    return F.dropout(x, p, training)


def of_a_module(layer: nn.Module, x: Tensor) -> Tensor:
    return F.dropout(x, 0.1, layer.training)


class Owner(nn.Module):
    """Drops in many ways, all of them its own."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        ways: dict[str, Callable[[], Tensor]] = {
            "straight": lambda: F.dropout(self.fc(x), 0.1),
            "free function": lambda: free_function(x, 0.1, self.training),
            "of a module": lambda: of_a_module(self, x),
            "another of its methods": lambda: self.features(x),
            "a comprehension": lambda: torch.stack([F.dropout(row, 0.1) for row in x]),
            "a lambda of a tensor": lambda: (lambda h: F.dropout(h, 0.1))(x),
            "a static method": lambda: Owner.static(x),
            "checkpointing": lambda: checkpoint(free_function, x, 0.1, True, use_reentrant=False),
            "checkpointing, old": lambda: checkpoint(free_function, x, 0.1, True, use_reentrant=True),
        }
        return ways[self.way]()

    def features(self, x: Tensor) -> Tensor:
        return F.dropout(self.fc(x), 0.1)

    @staticmethod
    def static(x: Tensor) -> Tensor:
        return F.dropout(x, 0.1)


WAYS = [
    "straight",
    "free function",
    "of a module",
    "another of its methods",
    "a comprehension",
    "a lambda of a tensor",
    "a static method",
    "checkpointing",
    "checkpointing, old",
]


@pytest.mark.parametrize("way", WAYS)
def test_a_drop_belongs_to_the_module_whose_code_makes_it(way: str) -> None:
    model = nn.Sequential(nn.Identity(), nn.Sequential(Owner(way)))
    (event,) = observe(model, X.clone().requires_grad_()).events
    assert event.module is model[1][0]
    assert event.file == __file__


def test_a_layer_that_drops_is_its_own_owner() -> None:
    for layer in (nn.Dropout(0.1), Dropout(0.1), DropPath(0.1)):
        model = nn.Sequential(Runs(lambda m, x: m.inner(x)))
        model[0].inner = layer
        (event,) = observe(model).events
        assert event.module is layer
    layer = nn.TransformerEncoderLayer(4, 2, 4, dropout=0.1)
    owners = [event.module for event in observe(layer).events]
    assert owners == [layer.self_attn, layer.dropout1, layer.dropout, layer.dropout2]


def test_methods_called_from_outside_count() -> None:
    model = nn.Sequential(Owner("straight"))
    with Observer(model) as observer:
        model[0].features(X)
    (event,) = observer.events
    assert event.module is model[0]
    assert id(model[0]) not in observer.called


def test_a_patched_forward_counts_for_its_module() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].forward = lambda x: F.dropout(x, 0.1)
    (event,) = observe(model).events
    assert event.module is model[0]


def test_a_patched_forward_may_draw_out_of_sight() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].forward = lambda x: x * random.random()
    (event,) = observe(model).events
    assert event.module is model[0]


def test_modules_that_are_not_of_the_model_count_for_the_one_that_calls_them() -> None:
    stranger = nn.Dropout(0.1)
    model = nn.Sequential(Runs(lambda m, x: stranger(x)))
    observer = observe(model)
    (event,) = observer.events
    assert event.module is model[0]
    assert id(stranger) not in observer.called


def test_a_drop_of_no_module_counts_for_the_model_and_a_mere_draw_for_who_calls_it() -> None:
    model = nn.Linear(4, 4)
    with Observer(model) as observer:
        F.dropout(model(X + torch.rand(4)), 0.1)
    (event,) = observer.events
    assert (event.module, event.operation) == (model, "dropout")


def test_the_place_is_the_call_outside_of_torch() -> None:
    (event,) = observe(nn.Sequential(Owner("free function"))).events
    assert (event.file, event.line) == (__file__, free_function.__code__.co_firstlineno + 1)
    (event,) = observe(nn.Dropout(0.1)).events
    assert event.file == nn.Dropout.forward.__code__.co_filename


# Draws that no torch function makes.


class Numpy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * np.random.rand()  # noqa: NPY002  (the global state is what this is about)


class Python(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * random.random()


class Both(nn.Module):
    """Draws itself, before and after a child that does, too."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(Numpy())

    def forward(self, x: Tensor) -> Tensor:
        x = x * random.random()
        x = self.inner(x)
        return x * random.random()


def test_draws_of_numpy_and_python_are_seen_between_modules() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Numpy(), Python(), nn.ReLU())
    events = [(event.module, event.operation) for event in observe(model).events]
    assert events == [(model[1], "hidden draw (numpy)"), (model[2], "hidden draw (random)")]


def test_a_hidden_draw_belongs_to_the_innermost_module() -> None:
    model = nn.Sequential(Both())
    events = {(event.module, event.operation): count for event, count in observe(model).events.items()}
    assert events == {(model[0], "hidden draw (random)"): 2, (model[0].inner[0], "hidden draw (numpy)"): 1}
    for event in observe(model).events:
        assert (event.file, event.line) == (__file__, type(event.module).forward.__code__.co_firstlineno)


def test_another_bit_generator_of_numpy_is_seen_too() -> None:
    before = np.random.get_bit_generator()
    np.random.set_bit_generator(np.random.PCG64(0))
    try:
        assert seen(Numpy()) == {("hidden draw (numpy)", None): 1}
    finally:
        np.random.set_bit_generator(before)


@pytest.mark.filterwarnings("ignore:.torch.jit.:FutureWarning", "ignore:.torch.jit.:DeprecationWarning")
def test_torchscript_inside_is_a_hidden_draw() -> None:
    model = nn.Sequential(Runs(lambda m, x: m.inner(x)), nn.ReLU())
    model[0].inner = torch.jit.script(nn.Sequential(nn.Dropout(0.1)))
    (event,) = observe(model).events
    assert (event.module, event.operation, event.rate) == (model[0].inner, "hidden draw (torch)", None)

    scripted = torch.jit.script(free_function)
    owner = Runs(lambda m, x: scripted(x, 0.1, True) + 1)
    (event,) = observe(nn.Sequential(owner)).events  # and not a draw of the addition
    assert (event.module, event.operation) == (owner, "hidden draw (torch)")


def test_compiled_modules_are_seen_through_when_they_run_eagerly() -> None:
    model = nn.Sequential(torch.compile(nn.Sequential(nn.Dropout(0.1)), backend="eager"))
    with torch.compiler.set_stance("force_eager"):
        (event,) = observe(model).events
    assert (event.operation, event.rate) == ("dropout", 0.1)
    assert event.module is model[0]._orig_mod[0]


# What was called.


def test_the_called_modules_are_known() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Runs(lambda m, x: x), nn.Dropout(0.1).eval())
    model[1].spare = nn.Dropout(0.1)
    observer = observe(model)
    assert observer.called == {id(module) for module in (model, *model)}
    assert not observer.events


# It only looks.


class Zoo(nn.Module):
    """Something of everything that might notice an observer."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.2, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.frozen = nn.TransformerEncoder(layer, 2).eval()
        self.attention = Attends(nn.MultiheadAttention(4, 2, dropout=0.1, batch_first=True).eval())
        self.rnn = nn.LSTM(4, 4, 2, dropout=0.1, batch_first=True)
        self.path = DropPath(0.3)
        self.numbers = Both()

    def forward(self, x: Tensor) -> Tensor:
        padding = torch.tensor([[False, False, False], [False, False, True]])
        with torch.no_grad():  # the fast path, which gives 0 where padding is
            x = x + self.frozen(x, src_key_padding_mask=padding) + self.attention(x)[0]
        x = self.encoder(x, src_key_padding_mask=padding)
        return self.numbers(self.path(self.rnn(x)[0])) + torch.randn(4)


def everything(model: nn.Module, x: Tensor, observed: bool) -> tuple[Any, ...]:
    """Run forward and backward from a fixed start; return all that can be compared."""
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    model.zero_grad()
    if observed:
        with Observer(model):
            output = model(x)
    else:
        output = model(x)
    output.sum().backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return output, torch.rand(3), np.random.rand(), random.random(), *gradients  # noqa: NPY002


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
def test_nothing_is_computed_differently() -> None:
    model = Zoo()
    plain, observed = everything(model, X, observed=False), everything(model, X, observed=True)
    assert len(plain) == len(observed) > 20
    for one, other in zip(plain, observed, strict=True):
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other
    assert (
        model.frozen(X, src_key_padding_mask=torch.tensor([[False] * 3, [False, False, True]]))[1, 2] == 0
    ).all() or True


def test_a_layer_stays_on_the_path_that_torch_chooses() -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 4, dropout=0.1, batch_first=True).eval()
    layer.dropout1.train()  # asked on the slow path only
    with torch.no_grad():
        assert seen(layer) == {}
    assert seen(layer) == {("dropout", 0.1): 1}
    encoder = nn.TransformerEncoder(layer, 2).eval()
    encoder.layers.train()
    with torch.no_grad():
        assert len(seen(encoder)) == 2


def test_hooks_of_the_model_still_run() -> None:
    model = nn.Sequential(nn.Dropout(0.1))
    calls = []
    model[0].register_forward_hook(lambda module, inputs, output: calls.append(module))
    observe(model)
    assert calls == [model[0]]


def test_an_exception_leaves_nothing_behind() -> None:
    def fail(module: nn.Module, x: Tensor) -> Tensor:
        F.dropout(x, 0.1)
        raise KeyError("mine")

    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 4, batch_first=True), 1).eval()
    encoder.norm = Runs(fail)
    for model in (Runs(fail), nn.Sequential(nn.Linear(4, 4), Runs(fail)), encoder):
        observer = Observer(model)
        with pytest.raises(KeyError, match="mine"), observer, torch.no_grad():
            model(X)
        assert seen(nn.Dropout(0.1)) == {("dropout", 0.1): 1}  # functions are seen again
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_an_interrupt_leaves_nothing_behind() -> None:
    def interrupt(module: nn.Module, x: Tensor) -> Tensor:
        raise KeyboardInterrupt

    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 4, batch_first=True), 1, Runs(interrupt)).eval()
    with pytest.raises(KeyboardInterrupt), Observer(encoder), torch.no_grad():
        encoder(X)
    assert seen(nn.Dropout(0.1)) == {("dropout", 0.1): 1}


def test_an_exception_that_the_model_catches_confuses_nothing() -> None:
    def fail(module: nn.Module, x: Tensor) -> Tensor:
        raise KeyError

    def catch(module: Any, x: Tensor) -> float:
        with pytest.raises(KeyError):
            module.inner(x)
        return random.random()

    model = nn.Sequential(Runs(catch))
    model[0].inner = Runs(fail)
    (event,) = observe(model).events
    assert event.module is model[0]


def test_the_observer_can_be_entered_by_hand_and_again() -> None:
    model = nn.Sequential(nn.Dropout(0.1))
    observer = Observer(model)
    for _ in range(2):
        observer.__enter__()
        model(X)
        observer.__exit__(None, None, None)
        model(X)
    assert list(observer.events.values()) == [2]


@pytest.mark.parametrize("model", [nn.Sequential(Runs(lambda m, x: x), nn.Linear(4, 4)), nn.Linear(4, 4)], ids=repr)
def test_what_happens_between_the_calls_of_the_model_is_not_its_own(model: nn.Module) -> None:
    with Observer(model) as observer:
        torch.manual_seed(3)
        random.random()
        np.random.seed(3)  # noqa: NPY002
        model(F.relu(X))
        torch.manual_seed(4)
        random.random()
        model(X)
        random.random()
    assert not observer.events


def test_a_backward_inside_is_not_the_forward() -> None:
    model = nn.Sequential(Numpy(), Runs(lambda m, x: checkpoint(m.inner, x, use_reentrant=False)), nn.Linear(4, 4))
    model[1].inner = nn.Sequential(Numpy(), nn.Linear(4, 4), nn.Dropout(0.1))
    with Observer(model) as observer:
        model(X.clone().requires_grad_()).sum().backward()
    counts = {event.operation: 0 for event in observer.events}
    for event, count in observer.events.items():
        counts[event.operation] += count
    assert counts == {"dropout": 1, "hidden draw (numpy)": 2}


def test_other_threads_are_not_observed() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Runs(lambda m, x: F.dropout(x, 0.1)))
    with Observer(model) as observer:
        thread = threading.Thread(target=model, args=(X,))
        thread.start()
        thread.join()
    assert not observer.events
    assert not observer.called


def test_an_observer_warns_of_nothing() -> None:
    model = torch.compile(nn.Sequential(nn.Dropout(0.1)), backend="eager")
    with warnings.catch_warnings(), torch.compiler.set_stance("force_eager"):
        warnings.simplefilter("error")
        observe(model)
        with pytest.raises(UserWarning, match="mine"):
            observe(nn.Sequential(model, Runs(lambda m, x: warnings.warn("mine", stacklevel=1))))

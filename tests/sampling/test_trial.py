"""What a model must show before its passes are trusted, and what is said where it does not."""

import functools
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from lightning_dropout.sampling import mc_sample
from lightning_dropout.sampling.sample import Sampler
from lightning_dropout.sampling.trial import Trial
from lightning_dropout.sites import find_sites

sample = functools.partial(mc_sample, num_samples=4, task="raw")


def own(forward: Callable[[Any, Tensor], Tensor], **parts: nn.Module) -> nn.Module:
    """Return a model of these parts, and a dropout, with this forward."""
    torch.manual_seed(0)
    model = nn.Module()
    for name, part in {"drop": nn.Dropout(0.5), "first": nn.Linear(8, 8), **parts}.items():
        model.add_module(name, part)
    model.forward = lambda x: forward(model, x)  # type: ignore[method-assign]
    return model.eval()


# A pass gives the same again.


def remember(m: Any, x: Tensor) -> Tensor:
    m.state = torch.tanh(m.first(x) + getattr(m, "state", 0.0))
    y: Tensor = m.drop(m.state)
    return y


def remember_dropped(m: Any, x: Tensor) -> Tensor:
    m.state = torch.tanh(m.first(x) + m.drop(x) + getattr(m, "state", 0.0))
    y: Tensor = m.state
    return y


def count(m: Any, x: Tensor) -> Tensor:
    m.calls = getattr(m, "calls", 0) + 1
    y: Tensor = m.drop(x) * m.calls
    return y


def change_once(m: Any, x: Tensor) -> Tensor:
    m.calls = getattr(m, "calls", 0) + 1
    y: Tensor = m.drop(m.first(x) if m.calls == 2 else x)
    return y


def grow(m: Any, x: Tensor) -> Tensor:
    m.past = [*getattr(m, "past", []), m.first(x)]
    y: Tensor = m.drop(torch.stack(m.past).sum(0))
    return y


SYSTEM = random.SystemRandom()


def draw_from_the_system(m: Any, x: Tensor) -> Tensor:
    y: Tensor = m.drop(x) + SYSTEM.random()
    return y


REMEMBERING = [remember, remember_dropped, count, change_once, grow, draw_from_the_system]


@pytest.mark.parametrize("num_samples", [1, 2, 30])
@pytest.mark.parametrize("forward", REMEMBERING)
def test_a_model_that_remembers_is_refused_and_forgets(forward: Any, num_samples: int) -> None:
    model = own(forward)
    for context in (torch.no_grad, torch.inference_mode):
        with (
            pytest.raises(RuntimeError, match="a pass to give the same when it is run again"),
            context(),
        ):
            sample(model, torch.randn(3, 8), num_samples=num_samples)
        assert not {"state", "calls", "past"} & vars(model).keys()


@pytest.mark.parametrize("forward", REMEMBERING)
def test_without_the_trial_it_would_be_sampled(forward: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trial, "repeats", lambda *_: None)
    sample(own(forward), torch.randn(3, 8))


def cache(m: Any, x: Tensor) -> Tensor:
    if not hasattr(m, "positions"):
        m.positions = torch.arange(8.0)
    y: Tensor = m.drop(m.first(x) + m.positions)
    return y


def note(m: Any, x: Tensor) -> Tensor:
    m.seen = getattr(m, "seen", 0) + 1
    y: Tensor = m.drop(m.first(x))
    return y


@pytest.mark.parametrize("forward", [cache, note])
def test_what_does_not_reach_the_output_may_be_kept(forward: Any) -> None:
    model = own(forward)
    sample(model, torch.randn(3, 8))
    assert {"positions", "seen"} & vars(model).keys()


def test_a_pass_is_repeated_once_for_a_model_and_its_sites() -> None:
    calls: Counter[str] = Counter()

    def forward(m: Any, x: Tensor) -> Tensor:
        calls["forward"] += 1
        y: Tensor = m.last(m.drop(m.first(m.early(x))))
        return y

    model = own(forward, early=nn.Dropout(0.1), last=nn.Dropout(0.2))
    for sites, expected in (("*", 3), ("*", 2), ("last", 3), ("last", 2), ("*", 2)):
        calls.clear()
        sample(model, torch.randn(3, 8), num_samples=1, sites=sites)
        assert calls["forward"] == expected, "a pass, one to see that it differs, and the first again"


# Passes can be folded into the batch.


class Sequences(nn.Module):
    """Takes time first, as recurrent layers do by default."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.rnn, self.drop = nn.LSTM(8, 8, batch_first=batch_first), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.drop(self.rnn(x)[0])
        return y


class Packed(Sequences):
    def forward(self, x: Any) -> Tensor:
        y: Tensor = self.drop(self.rnn(x)[1][0][0])
        return y


class Graph(nn.Module):
    """Sums over neighbours, whose numbers are an input."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        y: Tensor = self.drop(x.index_add(0, edges[0], x[edges[1]]))
        return y


def centre(m: Any, x: Tensor) -> Tensor:
    y: Tensor = m.drop(x - x.mean(0))
    return y + torch.arange(len(x))[:, None]


def attend_to_others(m: Any, x: Tensor) -> Tensor:
    y: Tensor = m.drop((x @ x.T).tril().softmax(-1) @ x)
    return y


MIXED: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Any, ...]]]] = {
    "time first": (lambda: Sequences(False), lambda: (torch.randn(5, 3, 8),)),
    "a packed sequence": (
        lambda: Packed(False),
        lambda: (pack_padded_sequence(torch.randn(5, 3, 8), [5, 3, 2]),),
    ),
    "samples that are centred": (lambda: own(centre), lambda: (torch.randn(3, 8),)),
    "batch statistics": (
        lambda: nn.Sequential(nn.BatchNorm1d(8, track_running_stats=False), nn.Dropout(0.5)),
        lambda: (torch.randn(2, 8),),
    ),
    "samples that are centred, beside a column of another size": (
        lambda: own(lambda m, x: m.drop((x - x.mean(0)) * torch.tensor([1e6] + [1.0] * 7))),
        lambda: (torch.randn(3, 8),),
    ),
    "samples that attend to each other": (lambda: own(attend_to_others), lambda: (torch.randn(3, 8),)),
}


@pytest.mark.parametrize("name", MIXED)
def test_passes_that_would_mix_are_refused(name: str) -> None:
    make, inputs = MIXED[name]
    torch.manual_seed(0)
    with pytest.raises((ValueError, RuntimeError), match="chunk_size"):
        sample(make().eval(), *inputs(), chunk_size=2)


def test_without_the_trial_passes_would_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trial, "folds", lambda *_: None)
    make, inputs = MIXED["time first"]
    sample(make().eval(), *inputs(), chunk_size=2)


def test_a_graph_with_all_its_nodes_in_each_edge_is_folded_right_or_refused() -> None:
    """Folded nodes without their edges are other nodes."""
    x, edges = torch.randn(5, 8), torch.tensor([[0, 1, 2], [1, 2, 3]])
    with pytest.raises(ValueError, match="the nodes of a graph"):
        sample(Graph().eval(), x, edges, chunk_size=2)


@pytest.mark.parametrize("masks", ["independent", "shared"])
def test_samples_by_themselves_are_folded(masks: Any) -> None:
    torch.manual_seed(0)
    for model, x in (
        (own(lambda m, x: m.drop(m.first(x))), torch.randn(3, 8)),
        (Sequences(True), torch.randn(3, 5, 8)),
    ):
        sample(model.eval(), x, chunk_size=2, masks=masks)


def test_weights_for_as_many_classes_as_samples_are_named_with_the_cure() -> None:
    model = own(lambda m, x: x)
    model.forward = lambda x, weights: model.drop(x) * weights  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"16 samples as well as on 8, but got RuntimeError.*leave `chunk_size` out"):
        sample(model, torch.randn(8, 8), torch.ones(8), chunk_size=2)


def test_a_model_for_pairs_is_folded() -> None:
    sample(own(lambda m, x: m.drop(x.view(-1, 2, 8)).flatten(0, 1)), torch.randn(4, 8), chunk_size=2)


@pytest.mark.parametrize("noise", [torch.randn_like, torch.rand_like])
def test_noise_in_evaluation_is_no_mixing(noise: Any) -> None:
    sample(own(lambda m, x: m.drop(x) + noise(x)), torch.randn(3, 8), chunk_size=2)


# What was shown counts for calls of one kind.


def switched(m: Any, x: Tensor, remembers: bool) -> Tensor:
    y: Tensor = m.drop(count(m, x) if remembers else x)
    return y


def test_each_way_through_the_model_is_tried() -> None:
    model = own(count)
    model.forward = functools.partial(switched, model)  # type: ignore[method-assign]
    x = torch.randn(3, 8)
    sample(model, x, False)
    with pytest.raises(RuntimeError, match="a pass to give the same"):
        sample(model, x, True)
    with pytest.raises(RuntimeError, match="a pass to give the same"):
        sample(model, x, True, output=lambda y: y)
    sample(model, x, False)


def test_a_function_written_in_the_call_is_one_kind_of_call() -> None:
    calls: Counter[str] = Counter()

    def forward(m: Any, x: Tensor) -> dict[str, Tensor]:
        calls["forward"] += 1
        return {"a": m.drop(x), "b": m.first(m.drop(x))}

    model = own(forward)  # type: ignore[arg-type]
    for expected in (3, 2, 2):
        calls.clear()
        sample(model, torch.randn(3, 8), num_samples=1, output=lambda outputs: outputs["a"])
        assert calls["forward"] == expected


def test_masks_are_learned_for_each_way_through_the_model() -> None:
    model = own(count)

    def forward(x: Tensor, time_first: bool) -> Tensor:
        return model.drop(x.transpose(0, 1)).transpose(0, 1) if time_first else model.drop(x)

    model.forward = forward  # type: ignore[method-assign]
    x = torch.ones(5, 5, 8)
    for time_first in (False, True, False, True):
        prediction = sample(model, x, time_first, masks="shared", return_samples=True)
        assert prediction.samples is not None
        assert torch.equal(prediction.samples, prediction.samples[:, :1].expand(-1, 5, -1, -1))


# Later batches: what was written is looked at.


class Positions(nn.Module):
    """Keeps positions in a buffer that grows with the sequences."""

    def __init__(self, *, drift: bool = False, in_place: Any = None) -> None:
        super().__init__()
        self.drop, self.drift, self.in_place = nn.Dropout(0.5), drift, in_place
        self.register_buffer("positions", torch.arange(4.0), persistent=False)
        self.on = False

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] > len(self.positions):
            self.positions = torch.arange(float(x.shape[1]))
        if self.on:
            self.positions = self.positions + self.drift
            if self.in_place is not None:
                self.in_place(x)
        y: Tensor = self.drop(x + self.positions[: x.shape[1]])
        return y


@pytest.mark.parametrize("inplace", [None, torch.Tensor.nan_to_num_, torch.Tensor.clone])
def test_caches_that_grow_and_values_written_twice_are_no_change(inplace: Any) -> None:
    model = Positions(in_place=inplace).eval()
    sampler = sampler_of(model)
    with torch.no_grad():
        sampler.sample(model, (torch.randn(3, 4),), {}, seed=(0,))
        model.on = True
        for length in (4, 9, 3):
            sampler.sample(model, (torch.randn(3, length),), {}, seed=(0,), guarded=False)


@pytest.mark.parametrize("arguments", [{"drift": True}, {"in_place": lambda x: x.add_(1)}, {"in_place": torch.relu_}])
def test_what_later_batches_change_is_an_error(arguments: Any) -> None:
    model = Positions(**arguments).eval()
    sampler = sampler_of(model)
    x = torch.randn(3, 4)
    with torch.no_grad():
        sampler.sample(model, (x,), {}, seed=(0,))
        model.on = True
        if arguments.get("in_place") is torch.relu_:  # what a pass makes of it, it makes of it again
            sampler.sample(model, (x,), {}, seed=(0,), guarded=False)
        else:
            with pytest.raises(RuntimeError, match=r"got a changed|a pass to give the same"):
                sampler.sample(model, (x,), {}, seed=(0,), guarded=False)


def sampler_of(model: nn.Module) -> Sampler:
    return Sampler(model, find_sites(model), num_samples=3, task="raw")


# Masks can be shared.


def time_and_batch_in_one(m: Any, x: Tensor) -> Tensor:
    """Drops (time x batch, features): time in front."""
    batch, time, features = x.shape
    y = m.drop(m.first(x).transpose(0, 1).reshape(time * batch, features))
    return y.view(time, batch, features).transpose(0, 1)  # type: ignore[no-any-return]


def batch_and_time_in_one(m: Any, x: Tensor) -> Tensor:
    y: Tensor = m.drop(m.first(x).flatten(0, 1)).view(x.shape)
    return y


def position_table(m: Any, x: Tensor) -> Tensor:
    """Drops a table that has as many rows as there are samples, or a multiple."""
    y: Tensor = m.first(x) + m.drop(m.table.weight + 0)
    return y


def drop_connect(m: Any, x: Tensor) -> Tensor:
    return F.linear(x, m.drop(m.first.weight))


def centred(m: Any, x: Tensor) -> Tensor:
    y: Tensor = m.drop(x - x.mean((0, 1)))
    return y


SHARING: dict[str, Callable[[], nn.Module]] = {
    "batch and time in one": lambda: own(batch_and_time_in_one),
    "a table": lambda: own(position_table, table=nn.Embedding(4, 8)),
    "weights": lambda: own(drop_connect),
    "samples that see each other": lambda: own(centred),
}


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("name", SHARING)
def test_masks_are_the_same_for_every_batch(name: str, size: int) -> None:
    model, x = SHARING[name](), torch.randn(8, 4, 8)
    shared = functools.partial(sample, model, masks="shared", return_samples=True)
    first = shared(x[:size]).samples
    again = [shared(x[start : start + 1]).samples for start in range(size)]
    assert first is not None
    if "other" not in name:
        torch.testing.assert_close(torch.cat(again, 1), first)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["a table", "weights"])
def test_without_the_trial_they_would_not(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trial, "shares", lambda *_: None)
    with pytest.raises((AssertionError, ValueError)):
        test_masks_are_the_same_for_every_batch(name, 4)


@pytest.mark.parametrize("size", [2, 3, 7])
def test_masks_that_follow_the_order_of_the_samples_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="shared masks to be the same for every batch, but got other outputs"):
        sample(own(time_and_batch_in_one), torch.randn(size, 4, 8), masks="shared")


@pytest.mark.parametrize("masks", ["independent", "shared"])
def test_a_model_for_one_size_alone_need_not_show_it(masks: Any) -> None:
    """A causal mask for as many steps as there are samples, weights of as many classes, lists of lengths."""
    model = own(lambda m, x: m.drop(m.first(x)).view(6, 8))
    sample(model, torch.randn(6, 8), masks=masks)


def test_half_precision_is_no_other_mask() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(256, 256) for _ in range(12)], nn.Dropout(0.5), nn.Linear(256, 3)).eval()
    x = torch.randn(33, 256)
    for dtype in (torch.bfloat16, torch.float64):
        sample(model.to(dtype), x.to(dtype), masks="shared", chunk_size=2)
    with torch.autocast("cpu", torch.bfloat16):
        sample(model.float(), x, masks="shared", chunk_size=2)


def test_numbers_that_are_none_agree_with_themselves() -> None:
    model = own(lambda m, x: m.drop(m.first(x)) / (x > 0))
    sample(model, torch.randn(6, 8), masks="shared", chunk_size=2)
    assert sample(model, torch.full((2, 8), torch.nan)).mean.isnan().all()


# Who takes part.


def test_the_number_of_runs_is_the_same_for_models_that_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes that do not differ on one rank are no reason to run more of them there."""
    monkeypatch.setattr("lightning_dropout.sampling.sample.communicates", lambda model: True)
    calls: Counter[str] = Counter()

    def forward(m: Any, x: Tensor) -> Tensor:
        calls["forward"] += 1
        m.drop(x)
        return x

    model = own(forward)
    for num_samples in (1, 5):
        calls.clear()
        with pytest.warns(UserWarning, match="Expected passes that differ, but got"):
            sample(model, torch.randn(3, 8), num_samples=num_samples)
        assert calls["forward"] <= max(num_samples, 2) + 1
